//! Publishing through the relay.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish};
use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::{First, Outgoing, Rejection, Reused, Stamp, Store, StoreError, What};
use relay_core::job::Finality;
use relay_core::moment::WallTime;
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, Worker, chain, connection, job, name, outgoing, settings};

#[tokio::test]
async fn what_is_published_is_numbered_stored_and_comes_by() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let milestone = outgoing("u", "j", What::Milestone(name("clip")), "m");
    assert_eq!(
        mode.store
            .publish(outgoing("u", "j", What::State, "s"))
            .await
            .unwrap(),
        Seq::new(1)
    );
    assert_eq!(mode.store.publish(milestone).await.unwrap(), Seq::new(2));
    let updates = mode.heard.updates_until(2).await;
    assert_eq!(chain(&updates), [(1, Some(0)), (2, Some(0))]);
    assert_eq!(updates[1].what, What::Milestone(name("clip")));
}

fn stamped(job: &str, id: u128, content: u128) -> Outgoing {
    Outgoing {
        stamp: Some(Stamp { id, content }),
        ..outgoing("u", job, What::State, "{}")
    }
}

#[tokio::test]
async fn the_same_request_is_stored_once_and_one_without_a_key_is_never_a_duplicate() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    let other = Mode::at(&server.url());
    mode.heard.live(1).await;
    other.heard.live(1).await;
    let publish = async |mode: &Mode, outgoing| mode.store.publish(outgoing).await;
    assert_eq!(
        publish(&mode, stamped("j", 1, 7)).await.unwrap(),
        Seq::new(1)
    );
    assert_eq!(
        publish(&mode, stamped("j", 1, 7)).await.unwrap(),
        Seq::new(1)
    );
    assert_eq!(
        publish(&other, stamped("j", 1, 7)).await.unwrap(),
        Seq::new(1)
    );
    let bare = || outgoing("u", "j", What::State, "{}");
    assert_eq!(publish(&mode, bare()).await.unwrap(), Seq::new(2));
    assert_eq!(publish(&mode, bare()).await.unwrap(), Seq::new(3));
    // A patch that comes again follows what it became itself.
    let patch = |last| Outgoing {
        expected_last: Some(Seq::new(last)),
        ..stamped("j", 2, 7)
    };
    assert_eq!(publish(&mode, patch(3)).await.unwrap(), Seq::new(4));
    assert_eq!(publish(&other, patch(4)).await.unwrap(), Seq::new(4));
}

#[tokio::test]
async fn another_body_under_the_same_key_is_not_stored_and_said() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    mode.store.publish(stamped("j", 1, 7)).await.unwrap();
    let other = mode.store.publish(stamped("j", 1, 8)).await;
    assert!(
        matches!(other, Err(StoreError::Reused(Reused::OtherBody))),
        "{other:?}"
    );
    // Whether it was this one, nobody can tell any more.
    let worker = Worker::at(&server.url()).await;
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    stream.delete_message(1).await.unwrap();
    let gone = mode.store.publish(stamped("j", 1, 7)).await;
    assert!(
        matches!(gone, Err(StoreError::Reused(Reused::NoLongerStored))),
        "{gone:?}"
    );
}

/// Message ids are one name space for everybody who publishes over NATS.
#[tokio::test]
async fn somebody_elses_message_under_the_same_id_swallows_nothing() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    let id = format!("relay-key-{:032x}", 1);
    let forged = [("Nats-Msg-Id", &*id), ("Relay-Content", "7")];
    worker
        .publish_with("progress.mallory.own.state", &forged, "{}")
        .await;
    assert_eq!(
        mode.store.publish(stamped("j", 1, 7)).await.unwrap(),
        Seq::new(2)
    );
    let updates = mode.heard.updates_until(2).await;
    assert_eq!(updates[1].job, job("j"));
}

#[tokio::test]
async fn an_expected_last_number_that_is_not_the_last_is_a_conflict() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let publish = |expected_last| {
        mode.store.publish(Outgoing {
            expected_last: Some(Seq::new(expected_last)),
            ..outgoing("u", "j", What::State, "{}")
        })
    };
    assert_eq!(publish(0).await.unwrap(), Seq::new(1));
    assert!(matches!(publish(0).await, Err(StoreError::Conflict)));
    assert_eq!(publish(1).await.unwrap(), Seq::new(2));
}

#[tokio::test]
async fn an_ending_is_kept_alone_and_for_its_time() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::start(
        JetStreamSettings {
            terminal_ttl: Duration::from_secs(3600),
            ..settings()
        },
        &connection(&server.url()),
    );
    mode.heard.live(1).await;
    mode.store
        .publish(outgoing("u", "j", What::State, "1"))
        .await
        .unwrap();
    let ending = Outgoing {
        finality: Finality::Ending,
        ..outgoing("u", "j", What::State, "2")
    };
    assert_eq!(mode.store.publish(ending).await.unwrap(), Seq::new(2));
    let worker = Worker::at(&server.url()).await;
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 1);
    let stored = stream.get_raw_message(2).await.unwrap();
    let ttl = stored.headers.get("Nats-TTL").unwrap().as_str();
    assert!(matches!(ttl, "3600" | "3600s"), "{ttl}");
}

/// What a worker publishes after its ending does not push it out.
#[tokio::test]
async fn an_ending_that_is_stored_again_is_alone_with_the_number_and_the_time_it_had() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    assert_eq!(mode.store.kept_per_subject(), Some(64));
    let worker = Worker::at(&server.url()).await;
    let ending = worker
        .publish("progress.u.j.state", r#"{"status":"completed"}"#)
        .await;
    for _ in 0..10 {
        worker.publish("progress.u.j.state", "late").await;
    }
    let live = mode.heard.updates_until(11).await;
    let hour = 3_600_000_000;
    let first = First {
        seq: ending,
        stored_at: WallTime::from_unix_micros(live[0].stored_at.as_unix_micros() - hour),
    };
    let again = |expected| Outgoing {
        finality: Finality::Ending,
        first: Some(first),
        expected_last: Some(Seq::new(expected)),
        ..outgoing("u", "j", What::State, r#"{"status":"completed"}"#)
    };
    let outrun = mode.store.publish(again(10)).await;
    assert!(matches!(outrun, Err(StoreError::Conflict)), "{outrun:?}");
    assert_eq!(mode.store.publish(again(11)).await.unwrap(), Seq::new(12));
    // Of two nodes, one.
    let second = mode.store.publish(again(11)).await;
    assert!(matches!(second, Err(StoreError::Conflict)), "{second:?}");
    let live = mode.heard.updates_until(12).await;
    assert_eq!(live[11].first, Some(first));
    let history = mode.store.load_job(job("j"), Seq::new(12)).await.unwrap();
    assert_eq!(chain(&history.updates), [(12, Some(0))]);
    assert_eq!(history.updates[0].first, Some(first));
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    let stored = stream.get_raw_message(12).await.unwrap();
    let ttl = stored.headers.get("Nats-TTL").unwrap().as_str();
    let seconds: u64 = ttl.trim_end_matches('s').parse().unwrap();
    assert!(
        (82_000..82_801).contains(&seconds),
        "23 hours are left: {ttl}"
    );
}

#[tokio::test]
async fn a_refusal_is_told_as_one() {
    let server = NatsServer::start(Options::jetstream().config("max_payload: 4096"))
        .await
        .unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let large = "x".repeat(5_000);
    let refused = mode
        .store
        .publish(outgoing("u", "j", What::State, &large))
        .await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Refused(Rejection::TooLarge { .. }))
        ),
        "{refused:?}"
    );
    let gone = mode.store.publish(outgoing("u", "j", What::Gone, "")).await;
    assert!(matches!(gone, Err(StoreError::Refused(_))), "{gone:?}");
}

/// A stream that somebody made otherwise than the relay would.
async fn with_stream(change: impl FnOnce(&mut Config)) -> (NatsServer, Mode) {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let worker = Worker::at(&server.url()).await;
    let mut config = Config {
        name: "PROGRESS".into(),
        subjects: vec!["progress.>".into()],
        allow_rollup: true,
        allow_message_ttl: true,
        allow_direct: true,
        republish: Some(Republish {
            source: "progress.>".into(),
            destination: "live.progress.>".into(),
            headers_only: false,
        }),
        ..Config::default()
    };
    change(&mut config);
    worker.jetstream.create_stream(config).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    (server, mode)
}

#[tokio::test]
async fn what_the_stream_rejects_for_its_size_is_too_large() {
    let (_server, mode) = with_stream(|config| config.max_message_size = 2000).await;
    let large = outgoing("u", "j", What::State, &"x".repeat(3000));
    let refused = mode.store.publish(large).await.unwrap_err();
    let StoreError::Refused(Rejection::TooLarge { words }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(
        words.contains("message size exceeds maximum allowed"),
        "{words}"
    );
}

#[tokio::test]
async fn a_full_stream_that_keeps_what_is_old_says_so() {
    for change in [
        (|config| {
            config.discard = DiscardPolicy::New;
            config.discard_new_per_subject = true;
            config.max_messages_per_subject = 1;
        }) as fn(&mut Config),
        |config| {
            config.discard = DiscardPolicy::New;
            config.max_messages = 1;
        },
        |config| {
            config.discard = DiscardPolicy::New;
            config.max_bytes = 300;
        },
    ] {
        let (_server, mode) = with_stream(change).await;
        let publish = || mode.store.publish(outgoing("u", "j", What::State, "{}"));
        publish().await.unwrap();
        let refused = publish().await.unwrap_err();
        let StoreError::Refused(Rejection::Full { words }) = &refused else {
            panic!("{refused:?}");
        };
        assert!(words.contains("maximum"), "{words}");
    }
}

#[tokio::test]
async fn a_stream_that_is_sealed_while_it_is_read_rejects_for_good() {
    let (server, mode) = with_stream(|_| {}).await;
    let worker = Worker::at(&server.url()).await;
    let mut stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.sealed = true;
    worker.jetstream.update_stream(config).await.unwrap();
    let refused = mode
        .store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await;
    assert!(
        matches!(refused, Err(StoreError::Refused(Rejection::NotTaken(_)))),
        "{refused:?}"
    );
}
