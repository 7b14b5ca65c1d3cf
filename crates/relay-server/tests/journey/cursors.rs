//! What a cursor is worth: on another relay, after a restart, and taken in the middle of a resume.

use std::time::Duration;

use relay_testkit::client::{Frame, Heard, Transport, Watch, Watcher};
use relay_testkit::http::{Connection, Request};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{RelayServer, Settings};
use serde_json::{Value, json};

use crate::{SOON, settings};

fn state(mark: u64) -> Value {
    json!({"status": "running", "meta": {"mark": mark}})
}

/// The mark of a state or a milestone; nothing else has one.
fn mark(frame: &Frame) -> Option<u64> {
    let mark = frame.0["data"]["mark"].as_u64();
    mark.or(frame.job()["meta"]["mark"].as_u64())
}

#[tokio::test]
async fn a_cursor_of_one_relay_resumes_on_another() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let first = RelayServer::start(settings(&nats)).await.unwrap();
    let second = RelayServer::start(settings(&nats)).await.unwrap();
    let streams = &Transport::ALL[..3];
    for (index, (before, after)) in streams
        .iter()
        .zip(streams.iter().cycle().skip(1))
        .enumerate()
    {
        let job = format!("j{index}");
        let topics = || Watch::topics([format!("job:{job}")]);
        first
            .publish(&job, "o", &json!({"status": "running", "progress": 10}))
            .await
            .unwrap();
        let mut watcher = Watcher::connect(*before, &first.address(), topics())
            .await
            .unwrap();
        watcher
            .until(SOON, "the snapshot", |frame| frame.kind() == "state")
            .await
            .unwrap();
        let cursor = watcher.cursor();
        watcher.close().await;
        first
            .milestone(&job, "o", "page_ready", &json!({"page": 1}))
            .await
            .unwrap();
        let mut watcher = Watcher::connect(*after, &second.address(), topics().from(cursor))
            .await
            .unwrap();
        let frame = watcher
            .until(SOON, "what was missed", |frame| {
                matches!(frame.kind(), "state" | "milestone" | "gap")
            })
            .await
            .unwrap();
        assert_eq!(frame.kind(), "milestone", "{before} to {after}: {frame}");
        assert_eq!(frame.0["data"]["page"], 1, "{before} to {after}: {frame}");
    }
}

/// What is in memory after a restart depends on who asked first; what a cursor is owed does not.
#[tokio::test]
async fn a_cursor_from_before_a_restart_gets_its_milestones_whoever_asked_first() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut relay = RelayServer::start(settings(&nats)).await.unwrap();
    let state = |mark: u64| json!({"status": "running", "meta": {"mark": mark}});
    let before = relay.publish("j", "o", &state(1)).await.unwrap();
    relay
        .milestone("j", "o", "page_ready", &json!({"mark": 2}))
        .await
        .unwrap();
    relay.publish("j", "o", &state(3)).await.unwrap();
    for first in [
        "nobody",
        "/v1/jobs/j",
        "/v1/sse?topic=user:o",
        "/v1/sse?topic=job:j",
    ] {
        relay.restart().await.unwrap();
        if first != "nobody" {
            let mut asked = Connection::open(&relay.address()).await.unwrap();
            asked.start(Request::get(first)).await.unwrap();
        }
        for transport in &Transport::ALL[..3] {
            let watch = Watch::topics(["job:j"]).from(Some(before.clone()));
            let mut watcher = Watcher::connect(*transport, &relay.address(), watch)
                .await
                .unwrap();
            let mut marks = Vec::new();
            let caught_up = watcher.until(SOON, "state 3", |frame| {
                let mark = &frame.0["data"]["mark"];
                marks.extend(mark.as_u64().or(frame.job()["meta"]["mark"].as_u64()));
                marks.last() == Some(&3)
            });
            caught_up.await.unwrap();
            assert_eq!(marks, [2, 3], "{transport}, when {first} was asked first");
        }
    }
}

#[tokio::test]
async fn who_is_back_before_the_bus_waits_for_it_and_keeps_the_connection() {
    let mut nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut relay = RelayServer::start(settings(&nats).only_live())
        .await
        .unwrap();
    relay.ready().await.unwrap();
    relay.publish("a", "o", &state(1)).await.unwrap();
    relay.publish("b", "o", &state(2)).await.unwrap();
    let topics = || Watch::topics(["job:a", "job:b"]);
    let address = relay.address();
    let watcher = Watcher::connect(Transport::WebSocket, &address, topics());
    let mut watcher = watcher.await.unwrap();
    let mut told = 0;
    let both = |frame: &Frame| {
        told += u32::from(mark(frame).is_some());
        told == 2
    };
    watcher.until(SOON, "both snapshots", both).await.unwrap();
    let before = watcher.cursor();
    watcher.close().await;
    for (job, missed) in [("a", 3), ("b", 4)] {
        let missed = json!({"mark": missed});
        relay.milestone(job, "o", "page", &missed).await.unwrap();
    }
    nats.kill();
    relay.kill();
    relay.restart().await.unwrap();
    let mut watchers = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse] {
        let watcher = Watcher::connect(transport, &address, topics().from(before.clone()));
        watchers.push((transport, watcher.await.unwrap()));
    }
    nats.restart().await.unwrap();
    for (transport, watcher) in &mut watchers {
        let mut marks = Vec::new();
        while marks.len() < 2 {
            let told = watcher.until(SOON, "a missed milestone", |it| mark(it).is_some());
            let told = told.await;
            let told = told.unwrap_or_else(|error| panic!("{transport}: {error}"));
            marks.extend(mark(&told));
        }
        marks.sort_unstable();
        assert_eq!(marks, [3, 4], "{transport}");
    }
}

/// A client may go after any frame: the cursor it has then speaks for all its topics, and for no more
/// than it was told of each.
async fn a_resume_may_be_cut_anywhere(topics: usize) {
    let relay = RelayServer::start(Settings::new(env!("CARGO_BIN_EXE_relay")))
        .await
        .unwrap();
    let jobs: Vec<String> = (0..topics).map(|index| format!("j{index:02}")).collect();
    let watch = |cursor: Option<String>| {
        Watch::topics(jobs.iter().map(|job| format!("job:{job}"))).from(cursor)
    };
    for job in &jobs {
        relay.publish(job, "o", &state(1)).await.unwrap();
    }
    let mut watcher = Watcher::connect(Transport::Sse, &relay.address(), watch(None))
        .await
        .unwrap();
    let mut snapshots = 0;
    let all = watcher.until(SOON, "all snapshots", |frame| {
        snapshots += usize::from(frame.kind() == "state");
        snapshots == topics
    });
    all.await.unwrap();
    let start = watcher.cursor();
    for job in &jobs {
        relay
            .milestone(job, "o", "page_ready", &json!({"mark": 2}))
            .await
            .unwrap();
        relay.publish(job, "o", &state(3)).await.unwrap();
    }
    let expected: Vec<String> = jobs
        .iter()
        .flat_map(|job| [2, 3].map(|mark| format!("{job} {mark}")))
        .collect();
    for transport in [Transport::WebSocket, Transport::Sse] {
        // a `subscribed` and two updates of each; on a WebSocket a `hello` before them
        for cut in 0..=3 * topics + 1 {
            let mut told = Vec::new();
            let mut watcher = Watcher::connect(transport, &relay.address(), watch(start.clone()))
                .await
                .unwrap();
            for _ in 0..cut {
                if told.len() < expected.len()
                    && let Heard::Frame(frame) = watcher.next(SOON).await
                {
                    told.extend(mark(&frame).map(|mark| format!("{} {mark}", frame.job_id())));
                }
            }
            let again = watch(watcher.cursor());
            watcher.vanish();
            let mut watcher = Watcher::connect(transport, &relay.address(), again)
                .await
                .unwrap();
            while told.len() < expected.len() {
                match watcher.next(Duration::from_secs(3)).await {
                    Heard::Frame(frame) => {
                        assert_ne!(
                            frame.0["recovered"], false,
                            "{transport} cut at {cut}: {frame}"
                        );
                        told.extend(mark(&frame).map(|mark| format!("{} {mark}", frame.job_id())));
                    }
                    other => panic!("{transport} cut at {cut}: {other:?}; had {told:?}"),
                }
            }
            told.sort();
            assert_eq!(told, expected, "{transport} cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_resume_of_three_topics_cut_anywhere_loses_nothing_and_repeats_nothing() {
    a_resume_may_be_cut_anywhere(3).await;
}

/// More topics than a cursor lists one by one.
#[tokio::test]
async fn a_resume_of_twelve_topics_cut_anywhere_loses_nothing_and_repeats_nothing() {
    a_resume_may_be_cut_anywhere(12).await;
}

/// `wait` is how long to wait for news; the snapshot is waited for in any case.
#[tokio::test]
async fn a_poll_that_does_not_wait_for_news_still_has_the_snapshot() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let first = RelayServer::start(settings(&nats)).await.unwrap();
    first.publish("j1", "o", &state(1)).await.unwrap();
    let second = RelayServer::start(settings(&nats)).await.unwrap();
    let poll = |job: &str| second.send(Request::get(format!("/v1/poll?topic=job:{job}&wait=0")));
    let answer = poll("j1").await.unwrap();
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert_eq!(answer.json()["frames"][0]["job"]["meta"]["mark"], 1);
    let answer = poll("never-published").await.unwrap();
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert_eq!(answer.json()["frames"], json!([]));
}

/// A tag is a cursor: who stands at or past the state has it, wherever it was told.
#[tokio::test]
async fn a_document_is_not_sent_again_to_who_stands_past_it() {
    let relay = RelayServer::start(Settings::new(env!("CARGO_BIN_EXE_relay")))
        .await
        .unwrap();
    let at_state = relay.publish("j1", "o", &state(1)).await.unwrap();
    let past_it = relay
        .milestone("j1", "o", "page_ready", &json!({"page": 1}))
        .await
        .unwrap();
    let ask = |cursor: String| {
        let tag = format!("W/\"other\", \"{cursor}\"");
        relay.send(Request::get("/v1/jobs/j1").header("if-none-match", tag))
    };
    for cursor in [at_state, past_it.clone()] {
        let answer = ask(cursor.clone()).await.unwrap();
        assert_eq!(answer.status.as_u16(), 304);
        assert_eq!(answer.header("etag"), format!("\"{cursor}\""));
    }
    relay.publish("j1", "o", &state(2)).await.unwrap();
    assert_eq!(ask(past_it).await.unwrap().status.as_u16(), 200);
}
