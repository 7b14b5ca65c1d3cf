//! A job that is seen through several topics of one connection.

use relay_testkit::client::{Frame, Transport, Watch, Watcher, WebSocketClient};
use relay_testkit::relay::RelayServer;
use serde_json::{Value, json};

use crate::{SOON, settings};

fn state(mark: u64) -> Value {
    json!({"status": "running", "parent_id": "album", "meta": {"mark": mark}})
}

/// Listens until the job's state with `mark` came; the marks of all its states until then.
async fn marks_until(watcher: &mut Watcher, mark: u64) -> Vec<u64> {
    let mut marks = Vec::new();
    let until = watcher.until(SOON, "the last state", |frame| {
        marks.extend(frame.job()["meta"]["mark"].as_u64());
        marks.last() == Some(&mark)
    });
    until.await.unwrap();
    marks
}

/// Design, promise 2: nothing twice on one connection.
#[tokio::test]
async fn a_job_seen_through_three_topics_of_one_url_is_told_once() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let topics = ["group:album", "user:alice", "job:j1"];
    for transport in [Transport::WebSocket, Transport::Sse, Transport::LongPoll] {
        let first = u64::from(transport as u8) * 10;
        relay
            .publish("j1", "alice", &state(first + 1))
            .await
            .unwrap();
        let mut watcher = Watcher::connect(transport, &relay.address(), Watch::topics(topics))
            .await
            .unwrap();
        assert_eq!(marks_until(&mut watcher, first + 1).await, [first + 1]);
        relay
            .publish("j1", "alice", &state(first + 2))
            .await
            .unwrap();
        assert_eq!(marks_until(&mut watcher, first + 2).await, [first + 2]);
        let cursor = watcher.cursor();
        watcher.close().await;

        relay
            .publish("j1", "alice", &state(first + 3))
            .await
            .unwrap();
        let again = Watch::topics(topics).from(cursor);
        let mut watcher = Watcher::connect(transport, &relay.address(), again)
            .await
            .unwrap();
        assert_eq!(marks_until(&mut watcher, first + 3).await, [first + 3]);
        relay
            .publish("j1", "alice", &state(first + 4))
            .await
            .unwrap();
        assert_eq!(marks_until(&mut watcher, first + 4).await, [first + 4]);
        watcher.close().await;
    }
}

/// Who asks for one more topic without a cursor asks for its snapshot, whatever else is watched.
#[tokio::test]
async fn a_topic_subscribed_later_begins_with_its_snapshot() {
    let relay = RelayServer::start(settings()).await.unwrap();
    relay.publish("j1", "alice", &state(1)).await.unwrap();
    let mut client = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();
    for topic in ["user:alice", "job:j1"] {
        client.subscribe(topic, None).await.unwrap();
        let state = client
            .until(SOON, "the snapshot", |frame| frame.kind() == "state")
            .await
            .unwrap();
        assert_eq!(state.topic(), topic);
    }
}

/// Listens until it is told how the jobs of its topic stand, with `count` of them in `status`.
async fn counted(watcher: &mut Watcher, status: &str, count: u32) -> Frame {
    let counts = |frame: &Frame| frame.kind() == "aggregate" && frame.0["counts"][status] == count;
    watcher.until(SOON, status, counts).await.unwrap()
}

#[tokio::test]
async fn a_user_is_told_how_many_jobs_stand_how_from_the_first_on() {
    let relay = RelayServer::start(settings()).await.unwrap();
    for (user, transport) in [("alice", Transport::WebSocket), ("bob", Transport::Sse)] {
        let topic = format!("user:{user}");
        let watch = Watch::topics([topic.as_str()]);
        let mut watcher = Watcher::connect(transport, &relay.address(), watch)
            .await
            .unwrap();
        let none = counted(&mut watcher, "running", 0).await;
        assert_eq!(none.0["total"], 0, "{none}");
        for status in ["running", "completed"] {
            let state = json!({"status": status});
            relay.publish(user, user, &state).await.unwrap();
            let one = counted(&mut watcher, status, 1).await;
            assert_eq!((one.topic(), &one.0["total"]), (topic.as_str(), &json!(1)));
        }
        watcher.close().await;
    }
}

#[tokio::test]
async fn a_group_carries_the_weighted_progress_and_the_worst_status_of_its_jobs() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let child = |status: &str, progress: u32, weight: u32| json!({"status": status, "progress": progress, "weight": weight, "parent_id": "album"});
    relay
        .publish("c1", "alice", &child("completed", 100, 3))
        .await
        .unwrap();
    for (attempt, transport) in [(1, Transport::WebSocket), (2, Transport::Sse)] {
        let state = |status: &str, progress| {
            let mut state = child(status, progress, 1);
            state["attempt"] = json!(attempt);
            state
        };
        relay
            .publish("c2", "alice", &state("running", 20))
            .await
            .unwrap();
        let watch = Watch::topics(["group:album", "job:c1"]);
        let mut watcher = Watcher::connect(transport, &relay.address(), watch)
            .await
            .unwrap();
        let first = watcher
            .until(SOON, "how it stands", |frame| frame.kind() == "aggregate")
            .await
            .unwrap();
        assert_eq!(first.topic(), "group:album");
        assert_eq!(first.0["total"], 2, "{first}");
        assert_eq!(first.0["progress"], 80.0, "{first}");
        assert_eq!(first.0["status"], "running", "{first}");
        relay
            .publish("c2", "alice", &state("failed", 20))
            .await
            .unwrap();
        let then = watcher
            .until(SOON, "the change", |frame| {
                frame.kind() == "aggregate" && frame.0["status"] == "failed"
            })
            .await
            .unwrap();
        assert_eq!(then.0["counts"]["failed"], 1, "{then}");
        assert!(then.cursor().is_none(), "{then}");
        watcher.close().await;
    }
}
