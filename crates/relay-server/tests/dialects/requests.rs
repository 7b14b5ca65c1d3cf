//! Messages that ask for work: passed on where the dialect's file names a subject, and answered.

use std::time::Duration;

use relay_testkit::client::raw::Raw;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{RelayServer, Settings};

use crate::settings;
use crate::transcript::{Heard, Socket};

const SOON: Duration = Duration::from_secs(10);

/// The shipped file of a media converter with a worker behind it.
fn with_worker(directory: &std::path::Path) -> Settings {
    let file = "extends = \"media-conversion\"\n\
                [requests.start_conversion]\nsubject = \"work.start\"\ntimeout = \"2s\"\n";
    std::fs::write(directory.join("media-conversion.toml"), file).unwrap();
    settings()
        .set("dialects.enabled", "media-conversion")
        .set("dialects.directory", directory.display())
}

#[tokio::test]
async fn a_request_reaches_the_worker_and_its_answer_the_client() {
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let settings = with_worker(directory.path())
        .set("bus.mode", "nats")
        .set("nats.url", nats.url());
    let relay = RelayServer::start(settings).await.unwrap();
    let address = nats.url().trim_start_matches("nats://").to_owned();
    let mut worker = Raw::connect(&address).await.unwrap();
    worker
        .send("CONNECT {\"verbose\":false}\r\nSUB work.start 1\r\nPING\r\n")
        .await
        .unwrap();
    worker.read_until("PONG", SOON).await;

    let mut socket = Socket::open(&relay, "/api/ws").await;
    socket
        .send(r#"{"type":"start_conversion","payload":{"url":"https://a.example/b"}}"#)
        .await;
    let asked = worker.read_until("example/b\"}\r\n", SOON).await;
    let head = asked
        .lines()
        .find(|line| line.starts_with("MSG work.start 1 "))
        .unwrap();
    assert!(
        asked.contains(r#"{"url":"https://a.example/b"}"#),
        "{asked}"
    );
    let reply = head.split(' ').nth(3).unwrap();
    let answer = r#"{"type":"conversion_started","payload":{"jobId":"m7"}}"#;
    let publish = format!("PUB {reply} {}\r\n{answer}\r\n", answer.len());
    worker.send(publish).await.unwrap();
    assert_eq!(socket.next().await, Heard::Text(answer.to_owned()));

    // The page that had it started asks for nothing more, and is told how it goes.
    let state =
        serde_json::json!({"status": "running", "progress": 7, "ts": "2026-11-21T10:00:00Z"});
    relay.publish("m7", "alice", &state).await.unwrap();
    let Heard::Text(update) = socket.next().await else {
        panic!("closed");
    };
    let expected = r#"{"type":"progress_update","payload":{"jobId":"m7","progress":7,"#;
    assert!(update.starts_with(expected), "{update}");
}

#[tokio::test]
async fn what_an_answer_asks_for_is_what_its_client_may() {
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = "description = \"x\"\n[[routes]]\npath = \"/x\"\ntransport = \"websocket\"\n\
                [requests.work]\nsubject = \"work\"\n\
                [messages]\ncommand = '{request: \"work\", data: .}'\n\
                answer = '{subscribe: .data}, {request: \"work\", data: .}'\n\
                [frames]\nanswer = 'empty'\nsubscribed = '[.topic]'\nerror = '.code'\n";
    std::fs::write(directory.path().join("mine.toml"), file).unwrap();
    let settings = settings()
        .set("dialects.enabled", "mine")
        .set("dialects.directory", directory.path().display())
        .set("bus.mode", "nats")
        .set("nats.url", nats.url());
    let relay = RelayServer::start(settings).await.unwrap();
    let address = nats.url().trim_start_matches("nats://").to_owned();
    let mut worker = Raw::connect(&address).await.unwrap();
    worker
        .send("CONNECT {\"verbose\":false}\r\nSUB work 1\r\nPING\r\n")
        .await
        .unwrap();
    worker.read_until("PONG", SOON).await;
    let mut socket = Socket::open(&relay, "/x").await;
    for (answer, expected) in [
        ("\"job:m7\"", "[\"job:m7\"]"),
        ("\"lunch\"", "\"bad_topic\""),
    ] {
        socket.send("{}").await;
        let asked = worker.read_until("{}\r\n", SOON).await;
        let reply = asked.split(' ').nth(3).unwrap();
        let publish = format!("PUB {reply} {}\r\n{answer}\r\n", answer.len());
        worker.send(publish).await.unwrap();
        assert_eq!(socket.next().await, Heard::Text(expected.to_owned()));
    }
    // An answer that asks again would go on for ever.
    let failures = "relay_dialect_failures_total{dialect=\"mine\",mapping=\"messages.answer\",reason=\"not_an_instruction\"}";
    assert_eq!(relay.metrics().await.unwrap().get(failures), Some(2.0));
}

#[tokio::test]
async fn a_request_nobody_answers_is_an_error_that_says_so() {
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let settings = with_worker(directory.path())
        .set("bus.mode", "nats")
        .set("nats.url", nats.url());
    let relay = RelayServer::start(settings).await.unwrap();
    let mut socket = Socket::open(&relay, "/api/ws").await;
    socket
        .send(r#"{"type":"start_conversion","payload":{}}"#)
        .await;
    let expected = r#"{"type":"error","payload":{"error":"start_conversion cannot be done at the moment: the bus rejected the request: nobody listens on work.start"}}"#;
    assert_eq!(socket.next().await, Heard::Text(expected.to_owned()));
}
