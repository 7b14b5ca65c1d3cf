//! Jobs that are taken away: what is told, what stays, and what a node that was not there comes to.

use relay_core::id::Name;
use relay_core::kind::{Kind, Kinds};

use super::*;
use crate::hub::{PublishError, PublishRequest, Verb};

const RUNNING: &str = r#"{"status":"running","parent_id":"g"}"#;
const LATE: &str = r#"{"status":"completed"}"#;
const ANEW: &str = r#"{"status":"running","attempt":2}"#;

async fn publish(hub: &Hub, verb: Verb, payload: &'static str) -> Result<Position, PublishError> {
    let request = PublishRequest {
        job: name("m1"),
        caller: None,
        owner: None,
        verb,
        payload: Bytes::from_static(payload.as_bytes()),
        key: None,
    };
    let published = hub.publish(request, |_| true).await;
    published.map(|published| published.at)
}

fn told(hub: &Hub) -> Vec<String> {
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let told = messages.iter().filter_map(|message| match message {
        Message::Publish(publication) => Some(format!("{publication:?}")),
        _ => None,
    });
    told.collect()
}

#[tokio::test]
async fn a_removed_job_is_gone_from_topics_counts_and_lookups() {
    let hub = hub();
    take(&hub, "m1", What::State, RUNNING);
    take(&hub, "m2", What::State, r#"{"status":"running"}"#);
    for topic in ["user:alice", "group:g"] {
        join(&hub, topic, None);
    }
    let unknown = PublishRequest {
        job: name("none"),
        caller: None,
        owner: None,
        verb: Verb::Remove,
        payload: Bytes::new(),
        key: None,
    };
    let unknown = hub.publish(unknown, |_| true).await;
    assert!(matches!(unknown, Err(PublishError::NothingToRemove(_))));
    let removed = publish(&hub, Verb::Remove, "").await.unwrap();
    assert_eq!(removed, at(3));
    assert_eq!(told(&hub), ["m1@3 removed"]);
    let again = publish(&hub, Verb::Remove, "").await.unwrap();
    assert_eq!(
        (again, told(&hub)),
        (at(3), Vec::new()),
        "it was done before"
    );

    let lookup = hub.lookup(&job("m1")).await;
    assert!(lookup.state.is_none() && lookup.removed.is_some());
    let survey = hub.survey(&Topic::parse("user:alice").unwrap()).await;
    assert_eq!(survey.unwrap().tally.total(), 1);
    assert_eq!(seqs(&join(&hub, "user:alice", None)), [2]);
    assert_eq!(seqs(&join(&hub, "group:g", None)), [0; 0]);
    for topic in ["user:alice", "group:g", "job:m1"] {
        let returned = join(&hub, topic, Some(2));
        assert_eq!(
            (seqs(&returned), returned.recovered),
            (vec![3], true),
            "{topic}"
        );
    }
    assert_eq!(
        seqs(&join(&hub, "job:m1", None)),
        [3],
        "nobody waits for it"
    );

    let late = publish(&hub, Verb::Put(What::State), LATE).await;
    assert!(matches!(late, Err(PublishError::Declined(late)) if late.code() == "removed"));
    publish(&hub, Verb::Put(What::State), ANEW).await.unwrap();
    assert_eq!(seqs(&join(&hub, "job:m1", None)), [4]);
}

#[tokio::test]
async fn a_removal_on_anothers_subject_removes_nothing() {
    let hub = hub();
    take(&hub, "m1", What::State, RUNNING);
    hub.ingest(&mut vec![Incoming {
        job: job("mallory/m1"),
        what: What::State,
        payload: Bytes::from_static(br#"{"status":"removed"}"#),
        seq: Seq::new(2),
        previous: Some(Seq::ZERO),
        stored_at: WallTime::default(),
        first: None,
    }]);
    assert!(hub.lookup(&job("m1")).await.state.is_some());
}

#[tokio::test]
async fn an_expired_removal_is_forgotten_without_a_word() {
    let hub = hub();
    take(&hub, "m1", What::State, RUNNING);
    take(&hub, "m1", What::State, r#"{"status":"removed"}"#);
    join(&hub, "user:alice", None);
    hub.say_gone(&mut hub.table.lock(), &job("m1"), Seq::new(9));
    assert_eq!(told(&hub), [""; 0]);
    assert!(hub.lookup(&job("m1")).await.removed.is_none());
}

/// A node that reads a stream which has a past.
fn node(stream: &Arc<Stream>, kinds: Kinds) -> (Arc<Hub>, JoinSet<()>) {
    let settings = HubSettings {
        kinds: Arc::new(kinds),
        ..settings()
    };
    let hub = Hub::new(
        settings,
        Backing::Stored(stream.clone()),
        Clock::start(),
        EPOCH,
    );
    let high = stream.inner.lock().high;
    hub.live(EPOCH, high);
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    (hub, tasks)
}

#[tokio::test(start_paused = true)]
async fn a_node_started_later_knows_that_a_job_was_removed() {
    let stream = Arc::new(Stream::default());
    let clip = What::Milestone(name("clip"));
    stream.append("m1", What::State, RUNNING.to_owned(), false);
    stream.append("m1", clip, "1".to_owned(), false);
    let removal = r#"{"status":"removed","parent_id":"g"}"#.to_owned();
    stream.append("m1", What::State, removal, true);
    for (topic, since, expected) in [
        ("user:alice", None, vec![]),
        ("user:alice", Some(2), vec![3]),
        ("group:g", Some(2), vec![3]),
        ("job:m1", None, vec![3]),
    ] {
        let (hub, _tasks) = node(&stream, Kinds::default());
        let (first, beside) = first_word(&hub, topic, since).await;
        assert_eq!((first, beside), (expected, vec![]), "{topic} {since:?}");
    }
}

fn declared() -> Kinds {
    let names = |text| vec![Name::parse(text).unwrap()];
    Kinds::new([(
        "*".to_owned(),
        Kind {
            after_ending: names("opened"),
            removed_by: names("event_deleted"),
        },
    )])
}

#[tokio::test(start_paused = true)]
async fn what_a_kind_declares_counts_on_a_node_started_later() {
    for (milestone, job, user, total) in [
        ("opened", vec![1, 2], vec![1, 2], 1),
        ("event_deleted", vec![2], vec![], 0),
        ("clip", vec![1], vec![1], 1),
    ] {
        let stream = Arc::new(Stream::default());
        stream.append("m1", What::State, LATE.to_owned(), true);
        let what = What::Milestone(name(milestone));
        stream.append("m1", what, "1".to_owned(), false);
        let survey = Topic::parse("user:alice").unwrap();
        let (hub, _tasks) = node(&stream, declared());
        let survey = hub.survey(&survey).await.unwrap();
        assert_eq!(survey.tally.total(), total, "{milestone}");
        for (topic, expected) in [("job:m1", job), ("user:alice", user)] {
            let (hub, _tasks) = node(&stream, declared());
            let (first, _) = first_word(&hub, topic, None).await;
            assert_eq!(first, expected, "{milestone} {topic}");
        }
    }
}
