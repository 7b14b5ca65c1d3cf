//! From polling to WebSocket, with nothing lost and nothing told twice.

use relay_testkit::http::StatusCode;
use relay_testkit::relay::RelayServer;
use serde_json::json;

use crate::suite;
use crate::wire::{Polling, Socket};

async fn relay() -> RelayServer {
    RelayServer::start(suite(false)).await.unwrap()
}

async fn probing(relay: &RelayServer, session: &Polling<'_>) -> Socket {
    let query = format!("&sid={}", session.sid);
    let mut socket = Socket::connect(relay, &query).await.unwrap();
    socket.send("2probe").await;
    assert_eq!(socket.next().await.as_deref(), Some("3probe"));
    socket
}

#[tokio::test]
async fn a_websocket_takes_over_and_the_poll_is_let_go() {
    let relay = relay().await;
    let session = Polling::open(&relay).await;
    let mut socket = probing(&relay, &session).await;
    assert_eq!(session.get().await.text(), "6");
    socket.send("5").await;
    socket.send("40").await;
    assert!(socket.packet().await.unwrap().starts_with("40{"));
    socket.send("42[\"message\",1]").await;
    assert_eq!(socket.packet().await.unwrap(), "42[\"message-back\",1]");
}

#[tokio::test]
async fn after_the_takeover_nothing_else_is_taken_for_the_session() {
    let relay = relay().await;
    let session = Polling::open(&relay).await;
    let mut socket = probing(&relay, &session).await;
    socket.send("5").await;
    socket.send("40").await;
    assert!(socket.packet().await.unwrap().starts_with("40{"));
    for answer in [session.get().await, session.post("3").await] {
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.json()["code"], json!(3));
    }
    // As the reference server does: opened, and closed.
    let second = Socket::connect(&relay, &format!("&sid={}", session.sid)).await;
    second.unwrap().closed().await;
    socket.send("42[\"message\",1]").await;
    assert_eq!(socket.packet().await.unwrap(), "42[\"message-back\",1]");
}

#[tokio::test]
async fn a_websocket_that_does_not_take_over_leaves_polling_as_it_was() {
    let relay = relay().await;
    let session = Polling::open(&relay).await;
    session.say("40").await;
    session.packets(1).await;
    let mut socket = probing(&relay, &session).await;
    socket.send("4hello").await;
    socket.closed().await;
    session.say("42[\"message\",1]").await;
    assert_eq!(session.packets(1).await, ["42[\"message-back\",1]"]);
    // And another may try.
    let mut socket = probing(&relay, &session).await;
    socket.send("5").await;
    socket.send("42[\"message\",2]").await;
    assert_eq!(socket.packet().await.unwrap(), "42[\"message-back\",2]");
}

#[tokio::test]
async fn what_waits_while_the_transport_changes_comes_once_and_in_order() {
    let relay = relay().await;
    let session = Polling::open(&relay).await;
    session.say("40\x1e420[\"watch\",\"j\"]").await;
    let mut told = session.packets(2).await;
    assert_eq!(told.pop().as_deref(), Some("430[{\"watching\":\"job:j\"}]"));
    let mut told = Vec::new();
    let mut publish = (1..).map(|n| (n, json!({"n": n})));
    let mut some = async |count: usize| {
        for (_, data) in publish.by_ref().take(count) {
            relay.milestone("j", "o", "step", &data).await.unwrap();
        }
    };
    // Before, during and after: with no poll there, with one that is let go, and over the WebSocket.
    some(5).await;
    let mut socket = probing(&relay, &session).await;
    some(5).await;
    told.extend(session.packets(1).await);
    some(5).await;
    socket.send("5").await;
    some(5).await;
    while !told
        .last()
        .is_some_and(|packet: &String| packet.contains(",20]"))
    {
        told.push(socket.packet().await.unwrap());
    }
    told.retain(|packet| packet != "6");
    let wanted: Vec<_> = (1..=20).map(|n| format!("42[\"milestone\",{n}]")).collect();
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn a_client_that_does_not_poll_gets_the_latest_state_and_every_milestone() {
    let relay = relay().await;
    let session = Polling::open(&relay).await;
    session.say("40\x1e42[\"watch\",\"j\"]").await;
    session.packets(1).await;
    for n in 1..=50 {
        let state = json!({"status": "running", "current": n, "total": 50});
        relay.publish("j", "o", &state).await.unwrap();
        if n % 10 == 0 {
            let data = json!({"n": n});
            relay.milestone("j", "o", "step", &data).await.unwrap();
        }
    }
    let ending = json!({"status": "completed", "current": 50, "total": 50});
    relay.publish("j", "o", &ending).await.unwrap();
    // Nothing waits for its interval any more once the ending is there; at most a bunch came before it.
    let mut told = Vec::new();
    while told
        .last()
        .is_none_or(|last: &String| last != "42[\"state\",50,\"completed\"]")
    {
        told.extend(session.packets(1).await);
    }
    let milestones: Vec<_> = told
        .iter()
        .filter(|each| each.contains("milestone"))
        .collect();
    assert_eq!(milestones.len(), 5, "{told:?}");
    assert!(told.len() <= 12, "superseded states were kept: {told:?}");
}
