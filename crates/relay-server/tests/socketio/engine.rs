//! What the official Engine.IO suite asks of any server.

use relay_testkit::http::{Answer, Connection, Method, Request, StatusCode};
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::wire::{PATH, Polling, Socket};
use crate::{PING_INTERVAL, PING_TIMEOUT, SOON, suite};

async fn hurried() -> RelayServer {
    RelayServer::start(suite(true)).await.unwrap()
}

async fn calm() -> RelayServer {
    RelayServer::start(suite(false)).await.unwrap()
}

/// The status and Engine.IO's number of a refusal.
fn refused(answer: &Answer) -> (u16, Value) {
    (answer.status.as_u16(), answer.json()["code"].clone())
}

async fn send(relay: &RelayServer, method: Method, query: &str) -> Answer {
    let request = Request::new(method, format!("/socket.io/?{query}"));
    relay.send(request).await.unwrap()
}

fn assert_opens(open: &Value, upgrades: &Value) {
    let keys: Vec<_> = open.as_object().unwrap().keys().collect();
    let wanted = [
        "maxPayload",
        "pingInterval",
        "pingTimeout",
        "sid",
        "upgrades",
    ];
    assert_eq!(keys.len(), wanted.len(), "{open}");
    assert!(wanted.iter().all(|key| open.get(key).is_some()), "{open}");
    assert!(open["sid"].is_string());
    assert_eq!(&open["upgrades"], upgrades);
    assert_eq!(open["pingInterval"], json!(300));
    assert_eq!(open["pingTimeout"], json!(200));
    assert_eq!(open["maxPayload"], json!(65536));
}

#[tokio::test]
async fn a_session_opens_over_polling_and_over_websocket() {
    let relay = hurried().await;
    let answer = send(&relay, Method::GET, "EIO=4&transport=polling").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "text/plain; charset=UTF-8");
    let text = answer.text();
    let open: Value = serde_json::from_str(text.strip_prefix('0').unwrap()).unwrap();
    assert_opens(&open, &json!(["websocket"]));
    let (_socket, open) = Socket::open(&relay).await;
    assert_opens(&open, &json!([]));
}

#[tokio::test]
async fn a_handshake_that_is_wrong_is_refused_with_the_official_number() {
    let relay = calm().await;
    for (method, query, code) in [
        (Method::GET, "transport=polling", 5),
        (Method::GET, "EIO=abc&transport=polling", 5),
        (Method::GET, "EIO=3&transport=polling", 5),
        (Method::GET, "EIO=4", 0),
        (Method::GET, "EIO=4&transport=abc", 0),
        (Method::POST, "EIO=4&transport=polling", 2),
        (Method::GET, "EIO=4&transport=websocket", 3),
    ] {
        let answer = send(&relay, method.clone(), query).await;
        assert_eq!(refused(&answer), (400, json!(code)), "{method} {query}");
        assert!(answer.json()["reason"].is_string());
    }
    for query in [
        "transport=websocket",
        "EIO=abc&transport=websocket",
        "EIO=4",
        "EIO=4&transport=abc",
    ] {
        let refused = Socket::to(&relay, &format!("/socket.io/?{query}")).await;
        assert_eq!(
            refused.err().map(|(status, _)| status),
            Some(400),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_payload_carries_one_packet_or_several() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    session.say("40").await;
    assert!(session.packets(1).await[0].starts_with("40{\"sid\""));
    session.say("42[\"message\",\"hello\"]").await;
    assert_eq!(session.packets(1).await, ["42[\"message-back\",\"hello\"]"]);
    let several = [1, 2, 3]
        .map(|n| format!("42[\"message\",{n}]"))
        .join("\x1e");
    session.say(&several).await;
    let answer = session.get().await.text();
    assert_eq!(answer, several.replace("message", "message-back"));
}

#[tokio::test]
async fn a_payload_with_binary_is_read_and_the_binary_refused() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    session.say("40").await;
    session.packets(1).await;
    session
        .say("451-7[\"message-with-ack\",{\"_placeholder\":true,\"num\":0}]\x1ebAQIDBA==\x1e42[\"message\",1]")
        .await;
    let packets = session.packets(2).await;
    assert_eq!(
        packets,
        [
            "437[{\"error\":\"binary_unsupported\"}]",
            "42[\"message-back\",1]"
        ]
    );
}

#[tokio::test]
async fn a_packet_of_no_kind_ends_the_session() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    assert_eq!(refused(&session.post("abc").await), (400, json!(3)));
    assert_eq!(refused(&session.get().await), (400, json!(1)));
    let (mut socket, _) = Socket::open(&relay).await;
    socket.send("abc").await;
    socket.closed().await;
}

#[tokio::test]
async fn a_second_poll_ends_the_session() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    // Whichever is first waits until the other comes, and is told that the session is over.
    let (one, other) = tokio::join!(session.get(), session.get());
    let mut answers = [&one, &other].map(|answer| (answer.status.as_u16(), answer.text()));
    answers.sort();
    assert_eq!(answers[0], (200, "1".to_owned()));
    assert_eq!(answers[1].0, 400, "{answers:?}");
    assert_eq!(refused(&session.get().await), (400, json!(1)));
}

#[tokio::test]
async fn a_second_post_ends_the_session() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    let mut slow = relay_testkit::client::raw::Raw::connect(&relay.address())
        .await
        .unwrap();
    let path = format!("{PATH}&transport=polling&sid={}", session.sid);
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n4");
    slow.send(head).await.unwrap();
    wait::until_some(SOON, "the overlap to be refused", async || {
        let answer = session.post("3").await;
        (answer.status == StatusCode::BAD_REQUEST).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(refused(&session.get().await), (400, json!(1)));
}

#[tokio::test]
async fn a_poll_whose_client_went_away_ends_the_session() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    let path = format!("{PATH}&transport=polling&sid={}", session.sid);
    let mut connection = Connection::open(&relay.address()).await.unwrap();
    let waiting = connection.start(Request::get(path));
    assert!(tokio::time::timeout(PING_TIMEOUT, waiting).await.is_err());
    drop(connection);
    wait::until_some(SOON, "the session's end", async || {
        let metrics = relay.metrics().await.unwrap();
        (metrics.sum("relay_connections", "") == 0.0).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(refused(&session.get().await), (400, json!(1)));
}

#[tokio::test]
async fn a_payload_above_its_bound_is_refused_and_ends_the_session() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    let large = format!("4{}", "x".repeat(70_000));
    assert_eq!(session.post(large).await.status.as_u16(), 413);
    assert_eq!(refused(&session.get().await), (400, json!(1)));
    let many = "3\x1e".repeat(1000);
    let session = Polling::open(&relay).await;
    assert_eq!(refused(&session.post(many).await), (400, json!(3)));
}

#[tokio::test]
async fn the_server_pings_and_the_client_answers() {
    // Often, and with time enough for an answer on a busy machine.
    let patient = suite(true).set("delivery.dead_after", "20s");
    let relay = RelayServer::start(patient).await.unwrap();
    let session = Polling::open(&relay).await;
    session.say("40").await;
    session.get().await;
    for _ in 0..3 {
        assert_eq!(session.get().await.text(), "2");
        session.say("3").await;
    }
    let mut socket = Socket::joined(&relay, "40").await;
    for _ in 0..3 {
        assert_eq!(socket.next().await.as_deref(), Some("2"));
        socket.send("3").await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_dropped() {
    let relay = hurried().await;
    let session = Polling::open(&relay).await;
    let (mut socket, _) = Socket::open(&relay).await;
    let opened = Instant::now();
    socket.closed().await;
    assert!(opened.elapsed() >= PING_INTERVAL, "too early");
    sleep(PING_TIMEOUT).await;
    assert_eq!(refused(&session.get().await), (400, json!(1)));
}

#[tokio::test]
async fn a_client_leaves_by_a_packet() {
    let relay = calm().await;
    let session = Polling::open(&relay).await;
    let leave = async {
        // Time for the poll to be there first; the session ends whichever comes first.
        sleep(PING_TIMEOUT).await;
        session.say("1").await;
    };
    let (poll, ()) = tokio::join!(session.get(), leave);
    assert_eq!((poll.status, poll.text().as_str()), (StatusCode::OK, "6"));
    assert_eq!(refused(&session.get().await), (400, json!(1)));
    let (mut socket, _) = Socket::open(&relay).await;
    socket.send("1").await;
    socket.closed().await;
}

#[tokio::test]
async fn a_ping_of_the_client_is_the_wrong_way_round() {
    let relay = calm().await;
    let (mut socket, _) = Socket::open(&relay).await;
    socket.send("2").await;
    socket.closed().await;
}

#[tokio::test]
async fn jsonp_and_binary_bodies_are_refused() {
    let relay = calm().await;
    let answer = send(&relay, Method::GET, "EIO=4&transport=polling&j=0").await;
    assert_eq!(refused(&answer), (400, json!(3)));
    let session = Polling::open(&relay).await;
    let path = format!("{PATH}&transport=polling&sid={}", session.sid);
    let request = Request::new(Method::POST, path)
        .header("content-type", "application/octet-stream")
        .body("3");
    assert_eq!(
        refused(&relay.send(request).await.unwrap()),
        (400, json!(3))
    );
}
