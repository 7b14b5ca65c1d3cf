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
    let shipped = include_str!("../../../../config/dialects/media-conversion.toml");
    let file = format!(
        "{shipped}\n[requests.start_conversion]\nsubject = \"work.start\"\ntimeout = \"2s\"\n"
    );
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
    let Heard::Text(text) = socket.next().await else {
        panic!("closed");
    };
    assert_eq!(text, answer);
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
    let expected = r#"{"type":"error","payload":{"error":"start_conversion cannot be done at the moment: the bus refused: nobody listens on work.start"}}"#;
    assert_eq!(socket.next().await, Heard::Text(expected.to_owned()));
}
