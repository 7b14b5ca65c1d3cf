//! Clients that close their sending side behind a request (`SHUT_WR`) and wait: what was asked is answered.

use relay_testkit::client::raw::Raw;
use relay_testkit::http::Request;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;

use crate::{SOON, open_connections, settings};

/// Sends one request and nothing more, and gives the answer.
async fn ask(relay: &RelayServer, line: &str, body: &str) -> String {
    let length = body.len();
    let mut raw = Raw::connect(&relay.address()).await.unwrap();
    raw.send(format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
    .await
    .unwrap();
    raw.stop_sending().await.unwrap();
    let answer = raw.read_to_end(SOON).await.expect("it is closed behind");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn every_request_of_a_client_that_sends_no_more_is_answered() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let settings = settings()
        .jetstream(&nats.url())
        .set("dialects.enabled", "video-generation");
    let relay = RelayServer::start(settings).await.unwrap();
    let running = r#"{"status":"running","progress":1}"#;
    let line = r#"{"job_id":"c","status":"running"}"#;
    for (request, body, status) in [
        ("POST /v1/jobs/a?owner=o", running, 202),
        ("PATCH /v1/jobs/a", r#"{"progress":2}"#, 202),
        ("POST /v1/jobs/a/milestones/m", "{}", 202),
        ("POST /v1/publish", line, 202),
        ("GET /v1/jobs/a", "", 200),
        ("GET /v1/jobs/unheard-of", "", 404),
        ("GET /v1/poll?topic=job:a", "", 200),
        ("GET /api/v1/generations/a", "", 200),
        ("GET /socket.io/?EIO=4&transport=polling", "", 200),
    ] {
        let answer = ask(&relay, request, body).await;
        let head = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&head), "{request}: {answer}");
    }
    let job = relay.send(Request::get("/v1/jobs/a")).await.unwrap();
    assert_eq!(job.json()["progress"], 2);
    let job = relay.send(Request::get("/v1/jobs/c")).await.unwrap();
    assert_eq!(job.json()["status"], "running");
}

#[tokio::test]
async fn a_client_that_sends_no_more_is_not_kept_waiting_for_news() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let wait = "GET /v1/poll?topic=job:quiet&wait=60";
    let answer = ask(&relay, wait, "").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\"frames\":[]"), "{answer}");
    assert_eq!(open_connections(&relay).await, 0.0);
}

#[tokio::test]
async fn a_payload_of_a_polling_session_is_taken_when_its_client_sends_no_more() {
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/socketio");
    let settings = settings()
        .set("dialects.enabled", "rooms")
        .set("dialects.directory", files.display());
    let relay = RelayServer::start(settings).await.unwrap();
    let path = "/socket.io/?EIO=4&transport=polling";
    let open = relay.send(Request::get(path)).await.unwrap();
    let packet = String::from_utf8(open.body.to_vec()).unwrap();
    let open: serde_json::Value = serde_json::from_str(&packet[1..]).unwrap();
    let session = format!("{path}&sid={}", open["sid"].as_str().unwrap());
    let posted = ask(&relay, &format!("POST {session}"), "40/empty,").await;
    assert!(posted.ends_with("\r\n\r\nok"), "{posted}");
    let connected = ask(&relay, &format!("GET {session}"), "").await;
    assert!(connected.contains("40/empty,{"), "{connected}");
    let (post, get) = (format!("POST {session}"), format!("GET {session}"));
    let echoed = ask(&relay, &post, r#"42/empty,0["echo"]"#).await;
    assert!(echoed.ends_with("\r\n\r\nok"));
    // With nothing to be told it would wait, and looks like a client that went away.
    ask(&relay, &get, "").await;
    let left = ask(&relay, &get, "").await;
    assert!(left.contains("closed its sending side"), "{left}");
    assert_eq!(open_connections(&relay).await, 0.0);
}

#[tokio::test]
async fn a_stream_ends_when_its_client_sends_no_more() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let answer = ask(&relay, "GET /v1/sse?topic=job:quiet", "").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 200 "),
        "{answer}"
    );
    wait::until_some(SOON, "its place is free", async || {
        (open_connections(&relay).await == 0.0).then_some(())
    })
    .await
    .unwrap();
}
