//! Clients that say what no client should: each gets an answer that says what was wrong.

use relay_testkit::client::raw::Raw;
use relay_testkit::client::{Refused, SseClient, Transport, Watch, Watcher, WebSocketClient};
use relay_testkit::http::Request;
use relay_testkit::relay::RelayServer;
use serde_json::json;

use crate::neighbour::Neighbour;
use crate::{SOON, settings};

#[tokio::test]
async fn a_message_that_makes_no_sense_is_answered_and_the_connection_goes_on() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    let mut client = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();

    for (said, code) in [
        ("this is not JSON", "bad_json"),
        ("{\"type\":", "bad_json"),
        (r#"{"type":"dance","id":7}"#, "unknown_type"),
        (
            r#"{"type":"subscribe","id":7,"topic":"jobs:1"}"#,
            "bad_topic",
        ),
        (
            r#"{"type":"subscribe","id":7,"topic":"job:a.b"}"#,
            "bad_topic",
        ),
        (
            r#"{"type":"subscribe","id":7,"topic":"job:a","cursor":"rubbish!"}"#,
            "bad_cursor",
        ),
    ] {
        client.send_text(said).await.unwrap();
        let error = client
            .until(SOON, code, |frame| frame.kind() == "error")
            .await
            .unwrap();
        assert_eq!(error.code(), code, "{said} was answered with {error}");
        assert!(error.0["message"].as_str().unwrap().len() > 10, "{error}");
        if said.contains("\"id\":7") {
            assert_eq!(error.0["id"], 7, "{said} was answered with {error}");
        }
    }
    client.send_binary(b"\x00\x01\x02").await.unwrap();
    let error = client
        .until(SOON, "the answer to bytes", |frame| frame.kind() == "error")
        .await
        .unwrap();
    assert_eq!(error.code(), "binary_unsupported", "{error}");

    // none of this has cost the client its connection
    client
        .send(&json!({"type": "ping", "id": "still here"}))
        .await
        .unwrap();
    let pong = client
        .until(SOON, "a pong", |frame| frame.kind() == "pong")
        .await
        .unwrap();
    assert_eq!(pong.0["id"], "still here");
    assert!(pong.0["ts"].as_u64().unwrap() > 1_700_000_000_000, "{pong}");
    neighbour.is_undisturbed(&relay).await.unwrap();
}

#[tokio::test]
async fn nonsense_in_a_url_is_refused_with_a_reason() {
    let relay = RelayServer::start(settings()).await.unwrap();
    for (path, code) in [
        ("/v1/sse", "no_topic"),
        ("/v1/sse?topic=jobs:1", "bad_topic"),
        ("/v1/poll?topic=job:a.b", "bad_topic"),
        ("/v1/poll?topic=job:a&cursor=rubbish!", "bad_cursor"),
        ("/v1/ws?topic=nothing", "bad_topic"),
    ] {
        let mut request = Request::get(path);
        if path.starts_with("/v1/ws") {
            request = request
                .header("upgrade", "websocket")
                .header("connection", "upgrade")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        }
        let mut connection = relay_testkit::http::Connection::open(&relay.address())
            .await
            .unwrap();
        let answer = connection.send(request, SOON).await.unwrap();
        assert_eq!(answer.status.as_u16(), 400, "{path}: {}", answer.text());
        assert_eq!(answer.error_code(), code, "{path}: {}", answer.text());
    }
    let unknown = relay
        .send(Request::get("/v1/jobs/nobody-knows-it"))
        .await
        .unwrap();
    assert_eq!(
        (unknown.status.as_u16(), unknown.error_code().as_str()),
        (404, "unknown_job")
    );
}

#[tokio::test]
async fn a_message_too_large_ends_the_connection_with_1009() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    let mut client = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();
    let large = json!({"type": "ping", "id": "x".repeat(70 * 1024)}).to_string();
    client.send_text(large).await.unwrap();
    let (code, reason) = client.until_closed(SOON).await.unwrap();
    assert_eq!(code, Some(1009), "{reason}");
    neighbour.is_undisturbed(&relay).await.unwrap();
}

#[tokio::test]
async fn text_that_is_not_utf8_ends_the_connection_with_1007() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let mut raw = upgraded(&relay).await;
    // a masked text frame of two bytes with an all-zero mask
    raw.send([0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28])
        .await
        .unwrap();
    assert_closes_with(&mut raw, 1007).await;
}

#[tokio::test]
async fn a_frame_without_a_mask_ends_the_connection_with_1002() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let mut raw = upgraded(&relay).await;
    raw.send([0x81, 0x02, b'{', b'}']).await.unwrap();
    assert_closes_with(&mut raw, 1002).await;
}

/// A bare socket, past its upgrade and its `hello`.
async fn upgraded(relay: &RelayServer) -> Raw {
    let mut raw = Raw::connect(&relay.address()).await.unwrap();
    raw.send(format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        relay.address()
    ))
    .await
    .unwrap();
    let hello = raw.read_until("\"hello\"", SOON).await;
    assert!(hello.contains("\"hello\""), "{hello}");
    raw
}

async fn assert_closes_with(raw: &mut Raw, code: u16) {
    let rest = raw
        .read_to_end(SOON)
        .await
        .expect("the relay did not close");
    let [high, low] = code.to_be_bytes();
    let close = rest
        .windows(4)
        .any(|bytes| bytes[0] == 0x88 && bytes[2] == high && bytes[3] == low);
    assert!(close, "no close frame with {code} in {rest:?}");
}

#[tokio::test]
async fn messages_too_frequent_end_the_connection_with_4429() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    let mut client = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();
    // all in one go: what a page does that sends in a loop
    client.flood(r#"{"type":"ping"}"#, 1000).await;
    let (code, reason) = client.until_closed(SOON).await.unwrap();
    assert_eq!(code, Some(4429), "{reason}");
    neighbour.is_undisturbed(&relay).await.unwrap();
}

#[tokio::test]
async fn the_subscription_after_the_last_allowed_one_is_refused_and_the_others_stay() {
    let relay = RelayServer::start(settings().set("limits.messages_burst", 1000))
        .await
        .unwrap();
    let mut client = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();
    for index in 0..101 {
        client
            .subscribe(&format!("job:many-{index}"), None)
            .await
            .unwrap();
    }
    let error = client
        .until(SOON, "the refusal", |frame| frame.kind() == "error")
        .await
        .unwrap();
    assert_eq!(error.code(), "too_many_subscriptions", "{error}");
    assert_eq!(error.0["id"], "job:many-100");
    relay
        .publish("many-99", "o", &json!({"status": "running"}))
        .await
        .unwrap();
    client
        .until(SOON, "job 99", |frame| frame.job_id() == "many-99")
        .await
        .unwrap();

    let topics: Vec<String> = (0..101).map(|index| format!("job:many-{index}")).collect();
    let error = SseClient::connect(&relay.address(), Watch::topics(topics))
        .await
        .unwrap_err();
    let refused = Refused::of(&error).unwrap();
    assert_eq!(refused.code(), "too_many_subscriptions", "{refused}");
}

#[tokio::test]
async fn a_cursor_from_another_life_gives_a_snapshot_and_no_error() {
    let mut relay = RelayServer::start(settings()).await.unwrap();
    let state = json!({"status": "running", "progress": 40});
    let old = relay.publish("j", "o", &state).await.unwrap();
    // an embedded relay without a file forgets, and begins a new epoch
    relay.restart().await.unwrap();
    relay.publish("j", "o", &state).await.unwrap();
    for transport in &Transport::ALL[..3] {
        let watch = Watch::topics(["job:j"]).from(Some(old.clone()));
        let mut watcher = Watcher::connect(*transport, &relay.address(), watch)
            .await
            .unwrap();
        let frame = watcher
            .until(SOON, "the snapshot", |frame| {
                matches!(frame.kind(), "state" | "error")
            })
            .await
            .unwrap();
        assert_eq!(frame.job()["progress"], 40.0, "{transport}: {frame}");
        assert_ne!(frame.cursor(), Some(old.as_str()), "{transport}");
    }
    let mut client = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();
    client.subscribe("job:j", Some(&old)).await.unwrap();
    let subscribed = client
        .until(SOON, "subscribed", |frame| frame.kind() == "subscribed")
        .await
        .unwrap();
    assert_eq!(subscribed.0["recovered"], false, "{subscribed}");
    assert_eq!(subscribed.0["jobs"], 1, "{subscribed}");
}

#[tokio::test]
async fn bytes_that_are_not_http_and_headers_that_never_end_are_hung_up_on() {
    let relay = RelayServer::start(settings().set("http.header_timeout", "500ms"))
        .await
        .unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    let mut rubbish = Raw::connect(&relay.address()).await.unwrap();
    rubbish
        .send("\x16\x03\x01 this is not for you\r\n\r\n")
        .await
        .unwrap();
    let mut silent = Raw::connect(&relay.address()).await.unwrap();
    let mut slow = Raw::connect(&relay.address()).await.unwrap();
    slow.send("GET /v1/sse?topic=job:a HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        .await
        .unwrap();
    assert!(rubbish.closes(SOON).await, "rubbish");
    assert!(slow.closes(SOON).await, "headers without an end");
    assert!(silent.closes(SOON).await, "not one byte");
    neighbour.is_undisturbed(&relay).await.unwrap();
}
