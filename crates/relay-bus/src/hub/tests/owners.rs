//! Whose a job is: an id belongs to its owner, whoever else uses it, on every node, after whatever the store let go of.

use relay_core::watcher::beginning::Several;

use super::*;

const RUNNING: &str = r#"{"status":"running"}"#;

/// What is joined by the client `own`.
fn ask(hub: &Hub, topic: &str, own: Option<&str>) {
    hub.join(JoinRequest {
        shard: 0,
        connection: ConnectionId(1),
        subscription: SUBSCRIPTION,
        topic: Topic::parse(topic).unwrap(),
        own: own.map(name),
        cursor: None,
        again: Again::Nothing,
    });
}

/// Whose it is that a client is answered about, and the numbers of what it is told; or the owners there are.
fn answer(hub: &Hub) -> (Option<String>, Vec<u64>, Vec<String>) {
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let joined = messages.into_iter().find_map(|message| match message {
        Message::Joined(_, joined) => Some(joined),
        _ => None,
    });
    let joined = joined.expect("nothing is answered");
    let owners = |several: &Several| {
        let owners = several.owners.iter();
        owners.map(|(owner, _)| owner.to_string()).collect()
    };
    let several = joined.several.as_deref().map(owners);
    let owner = joined.owner.as_ref().map(ToString::to_string);
    (owner, seqs(&joined), several.unwrap_or_default())
}

async fn answered(hub: &Hub, topic: &str, own: Option<&str>) -> (Option<String>, Vec<u64>) {
    ask(hub, topic, own);
    sleep(Duration::from_secs(2)).await;
    let (owner, told, several) = answer(hub);
    assert_eq!(several, [""; 0]);
    (owner, told)
}

fn node(stream: &Arc<Stream>) -> (Arc<Hub>, JoinSet<()>) {
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, stream.inner.lock().high);
    let tasks = [hub.clone().run()].into_iter().collect();
    (hub, tasks)
}

fn state(stream: &Stream, job: &str, json: &str, ends: bool) -> Incoming {
    stream.append(job, What::State, json.to_owned(), ends)
}

/// An ending rolls up what was before it, so the first message that is stored may be another's.
#[tokio::test(start_paused = true)]
async fn whose_a_job_is_does_not_hang_on_what_the_store_has_let_go_of() {
    let stream = Arc::new(Stream::default());
    let completed = r#"{"status":"completed"}"#;
    let all = [
        state(&stream, "alice/z", RUNNING, false),
        state(&stream, "mallory/z", RUNNING, false),
        state(&stream, "alice/z", completed, true),
    ];
    let (seen_live, _tasks) = node(&Arc::new(Stream::default()));
    seen_live.ingest(&mut all.to_vec());
    let (restarted, _tasks) = node(&stream);
    for hub in [seen_live, restarted] {
        let alices = answered(&hub, "job:z", Some("alice")).await;
        assert_eq!(alices, (Some("alice".to_owned()), vec![3]));
        let mallorys = answered(&hub, "job:z", Some("mallory")).await;
        assert_eq!(mallorys, (Some("mallory".to_owned()), vec![2]));
        for (topic, owner, told) in [("job:alice/z", "alice", 3), ("job:mallory/z", "mallory", 2)] {
            let exact = answered(&hub, topic, None).await;
            assert_eq!(exact, (Some(owner.to_owned()), vec![told]), "{topic}");
        }
        assert!(
            hub.lookup(&job("alice/z"))
                .await
                .state
                .unwrap()
                .is_terminal()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_marker_counts_on_its_own_subject_alone() {
    for stored in [false, true] {
        let stream = Arc::new(Stream::default());
        let (hub, _tasks) = match stored {
            true => node(&stream),
            false => (self::hub(), JoinSet::new()),
        };
        hub.ingest(&mut vec![
            state(&stream, "alice/x", RUNNING, false),
            state(&stream, "mallory/x", RUNNING, false),
        ]);
        answered(&hub, "job:x", Some("alice")).await;
        let marker = stream.append("mallory/x", What::Gone, String::new(), false);
        hub.ingest(&mut vec![marker]);
        let mut messages = Vec::new();
        hub.inbox(0).drain(&mut messages);
        let gone = messages.iter().filter_map(|message| match message {
            Message::Publish(it) if matches!(it.body, Body::Gone(_)) => Some(it.name()),
            _ => None,
        });
        let gone: Vec<_> = gone.collect();
        assert!(!gone.contains(&job("alice/x")), "{gone:?}");
        assert!(hub.lookup(&job("alice/x")).await.state.is_some());
        let mallorys = hub.lookup(&job("mallory/x")).await.state;
        // This store has kept what was before the marker.
        assert!(stored || mallorys.is_none());
    }
}

/// A node that knows nothing of an id asks whose jobs there are, and of many tells them all.
#[tokio::test(start_paused = true)]
async fn who_has_no_job_called_so_is_told_whose_there_are() {
    let stream = Arc::new(Stream::default());
    state(&stream, "alice/z", RUNNING, false);
    state(&stream, "bob/z", RUNNING, false);
    let (hub, _tasks) = node(&stream);
    for _ in 0..2 {
        ask(&hub, "job:z", Some("carol"));
        sleep(Duration::from_secs(3)).await;
        assert_eq!(
            answer(&hub),
            (None, vec![], vec!["alice".to_owned(), "bob".to_owned()])
        );
    }
    let owners = hub
        .owners(&Topic::parse("job:z").unwrap(), Some(&name("bob")))
        .await;
    assert_eq!(owners, Some(vec![name("bob")]));
}

/// However many use an id, its owner's own is found, and no more than some are kept in mind.
#[tokio::test(start_paused = true)]
async fn a_thousand_owners_of_one_id_hide_nobodys_own() {
    let stream = Arc::new(Stream::default());
    for n in 0..1000 {
        state(&stream, &format!("m{n}/z"), RUNNING, false);
    }
    state(&stream, "zoe/z", RUNNING, false);
    let (hub, _tasks) = node(&stream);
    let zoes = answered(&hub, "job:z", Some("zoe")).await;
    assert_eq!(zoes, (Some("zoe".to_owned()), vec![1001]));
    assert!(
        hub.stats().jobs <= 17,
        "hers, and as many as are considered"
    );
    ask(&hub, "job:z", Some("carol"));
    sleep(Duration::from_secs(5)).await;
    assert!((2..=16).contains(&answer(&hub).2.len()));
}

/// Whoever waits for an id without saying whose is told of a job that began while the bus was away.
#[tokio::test(start_paused = true)]
async fn a_job_that_began_while_the_bus_was_away_is_told_to_whoever_waits_for_its_id() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = node(&stream);
    assert_eq!(answered(&hub, "job:z", Some("alice")).await, (None, vec![]));
    hub.lost("scripted");
    let missed = state(&stream, "alice/z", RUNNING, false);
    hub.live(EPOCH, missed.seq);
    sleep(Duration::from_secs(5)).await;
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let told = messages.iter().filter_map(|message| match message {
        Message::Publish(it) => Some((it.name(), it.seq)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [(job("alice/z"), missed.seq)]);
}

#[tokio::test]
async fn a_group_is_its_owners_and_nobody_else_puts_children_into_it() {
    let hub = hub();
    let child = |status: &str| format!(r#"{{"status":"{status}","parent_id":"g1"}}"#);
    take(&hub, "alice/c1", What::State, &child("running"));
    take(&hub, "mallory/c2", What::State, &child("failed"));
    for (topic, own) in [("group:g1", Some("alice")), ("group:alice/g1", None)] {
        ask(&hub, topic, own);
        assert_eq!(
            answer(&hub),
            (Some("alice".to_owned()), vec![1], vec![]),
            "{topic}"
        );
    }
    let tally = async |topic: &str| hub.survey(&Topic::parse(topic).unwrap()).await;
    let alices = tally("group:alice/g1").await.unwrap().tally;
    assert_eq!(alices.worst(), Some(Status::Running));
    assert_eq!(alices.total(), 1);
    assert_eq!(tally("group:mallory/g1").await.unwrap().tally.total(), 1);
    ask(&hub, "group:g1", Some("carol"));
    assert_eq!(answer(&hub).2, ["alice", "mallory"]);
}

/// What nobody waits for any more, and nobody has, leaves nothing.
#[tokio::test(start_paused = true)]
async fn an_id_that_was_asked_for_leaves_nothing_behind() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = node(&stream);
    for n in 0..100 {
        let topic = Topic::parse(&format!("job:none{n}")).unwrap();
        assert_eq!(hub.owners(&topic, None).await, Some(vec![]));
        ask(&hub, &topic.to_string(), None);
        sleep(Duration::from_secs(1)).await;
        hub.leave(&topic, 0);
    }
    assert_eq!((hub.stats().jobs, hub.table.lock().names.len()), (0, 0));
}
