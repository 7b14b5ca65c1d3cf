//! Messages that make the relay panic: read, one is skipped and the rest goes on; entered, the process ends.

use std::process::Command;

use super::*;
use crate::hub::{PublishError, PublishRequest, Verb};
use crate::poison;
use relay_core::job::Declined;

/// Its updates make the code panic that reads them.
const POISON: &str = "panics-when-judged";

fn update(job: &str, seq: u64) -> Incoming {
    Incoming {
        job: self::job(job),
        what: What::State,
        payload: Bytes::from_static(br#"{"status":"running"}"#),
        seq: Seq::new(seq),
        previous: Some(Seq::ZERO),
        stored_at: Clock::start().wall(),
        first: None,
    }
}

fn counted(hub: &Hub) -> BTreeMap<&'static str, u64> {
    hub.stats().counts.into_iter().collect()
}

fn join(hub: &Hub, topic: &str) {
    hub.join(JoinRequest {
        shard: 0,
        connection: ConnectionId(1),
        subscription: SUBSCRIPTION,
        topic: Topic::parse(topic).unwrap(),
        own: None,
        cursor: None,
        again: Again::Nothing,
    });
}

fn published(hub: &Hub) -> Vec<u64> {
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let seq = |message| match message {
        Message::Publish(publication) => Some(publication.seq.get()),
        _ => None,
    };
    messages.into_iter().filter_map(seq).collect()
}

#[test]
fn a_message_that_panics_is_counted_and_skipped_and_the_rest_of_its_batch_is_told() {
    let stream = Arc::new(Stream::default());
    let backings = [
        Backing::Embedded,
        Backing::Passing(stream.clone()),
        Backing::Stored(stream),
    ];
    for backing in backings {
        let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
        hub.live(EPOCH, Seq::new(0));
        for job in ["before", "after", POISON] {
            join(&hub, &format!("job:alice/{job}"));
        }
        // What a store would have to be asked for is not what this is about.
        let repairs: Vec<_> = ["before", "after", POISON].map(self::job).into();
        for job in &repairs {
            drop(hub.table().take_repair(job));
        }
        let mut batch = vec![update("before", 1), update(POISON, 2), update("after", 3)];
        hub.ingest(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(published(&hub), [1, 3]);
        let counted = counted(&hub);
        assert_eq!(counted["accepted"], 2);
        assert_eq!(counted["panicked"], 1);
        assert_eq!(counted.values().sum::<u64>(), 3, "each in exactly one");
        assert_eq!(hub.place().seq, Seq::new(3), "it has come by all the same");
    }
}

#[test]
fn a_message_that_panics_while_its_group_is_looked_for_is_skipped() {
    let hub = Hub::new(
        settings(),
        Backing::Stored(Arc::new(Stream::default())),
        Clock::start(),
        EPOCH,
    );
    hub.live(EPOCH, Seq::new(0));
    join(&hub, "group:g");
    // Something before it was not seen, and only its body says whose group it belongs to.
    let hole = Incoming {
        previous: Some(Seq::new(1)),
        ..update(POISON, 2)
    };
    hub.ingest(&mut vec![hole, update("after", 3)]);
    let counted = counted(&hub);
    assert_eq!((counted["panicked"], counted["accepted"]), (1, 1));
    assert_eq!(counted.values().sum::<u64>(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stored_message_that_panics_keeps_nobody_waiting() {
    let stream = Arc::new(Stream::default());
    let running = || r#"{"status":"running"}"#.to_owned();
    stream.append(POISON, What::State, running(), false);
    stream.append("good", What::State, running(), false);
    let hub = Hub::new(settings(), Backing::Stored(stream), Clock::start(), EPOCH);
    hub.live(EPOCH, Seq::new(2));
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    assert!(hub.lookup(&job(POISON)).await.state.is_none());
    assert!(hub.lookup(&job("good")).await.state.is_some());
    join(&hub, "user:alice");
    sleep(Duration::from_secs(5)).await;
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let joined = |message: &Message| matches!(message, Message::Joined(_, joined) if joined.publications.len() == 1);
    assert!(messages.iter().any(joined));
    assert!(tasks.try_join_next().is_none(), "the hub runs on");
}

#[tokio::test]
async fn publishing_what_panics_is_an_error_of_the_relay_and_puts_nothing_on_the_bus() {
    let hub = Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH);
    let publish = async |job: &str| {
        let request = PublishRequest {
            job: name(job),
            caller: None,
            owner: Some(owner()),
            verb: Verb::Put(What::State),
            payload: Bytes::from_static(br#"{"status":"running"}"#),
            key: None,
        };
        hub.publish(request, |_| true).await
    };
    for poison in ["panics-when-published", POISON] {
        let refused = publish(poison).await.unwrap_err();
        assert!(
            matches!(refused, PublishError::Declined(Declined::Panicked)),
            "{refused}"
        );
    }
    assert!(publish("good").await.is_ok());
    assert_eq!(hub.stats().jobs, 1);
}

#[test]
fn a_job_that_panics_when_it_is_restored_is_left_out_and_not_claimed_to_be_known() {
    let hub = Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH);
    hub.ingest(&mut vec![
        update("panics-when-rebuilt", 1),
        update("good", 2),
    ]);
    let restarted = Hub::new(settings(), Backing::Embedded, Clock::start(), Epoch::new(2));
    restarted.restore(hub.history()).unwrap();
    assert_eq!(restarted.stats().jobs, 1);
    assert_eq!(restarted.table().known_from(), Seq::new(1));
}

/// The table is as it was, so the panic is the affair of whoever had it.
#[test]
fn a_panic_of_whoever_only_reads_the_table_harms_nobody_else() {
    let hub = Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH);
    let reader = hub.clone();
    let panicked = std::thread::spawn(move || {
        let table = reader.table();
        assert_eq!(table.high(), Seq::MAX, "a fault injected by a test");
    });
    assert!(panicked.join().is_err());
    hub.ingest(&mut vec![update("good", 1)]);
    assert_eq!(counted(&hub)["accepted"], 1);
}

/// A connection's task that panics gives its subscriptions back on its way.
#[test]
fn a_goodbye_while_another_panic_unwinds_ends_nothing() {
    struct Goodbye(Arc<Hub>);
    impl Drop for Goodbye {
        fn drop(&mut self) {
            self.0.leave(&Topic::parse("job:good").unwrap(), 0);
        }
    }
    let hub = Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH);
    join(&hub, "job:good");
    let connection = hub.clone();
    let panicked = std::thread::spawn(move || {
        let _goodbye = Goodbye(connection);
        poison::fault("a-connection", "a-connection");
    });
    assert!(panicked.join().is_err());
    hub.ingest(&mut vec![update("good", 1)]);
    assert_eq!(published(&hub), [0; 0], "nobody watches any more");
}

#[test]
fn a_panic_that_leaves_the_table_half_changed_ends_the_process() {
    let child = "hub::tests::poison::the_process_that_ends";
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("a fault injected by a test"), "{said}");
}

#[test]
#[ignore = "it ends its process; a_panic_that_leaves_the_table_half_changed_ends_the_process runs it in another"]
fn the_process_that_ends() {
    let hub = Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH);
    let entering = std::thread::spawn(move || {
        hub.ingest(&mut vec![update("panics-when-entered", 1)]);
    });
    // Whatever comes of the thread, this process should be gone by now.
    drop(entering.join());
}
