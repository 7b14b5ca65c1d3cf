//! Clients that take and do not give: they never read, never answer, or go without a word.

use std::time::Duration;

use relay_testkit::client::raw::Raw;
use relay_testkit::client::{Transport, Watch, Watcher, WebSocketClient};
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use serde_json::json;

use crate::neighbour::Neighbour;
use crate::{SOON, open_connections, settings};

/// Jobs whose states are large, and published faster than a client that does not read can be told.
const LOUD_JOBS: usize = 10;

async fn shout(relay: &RelayServer, round: usize) {
    for job in 0..LOUD_JOBS {
        let state = json!({"status": "running", "current": round, "total": 100_000, "message": "x".repeat(50_000)});
        relay
            .publish(&format!("loud-{job}"), "loud", &state)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn clients_that_never_read_are_let_go_and_nobody_else_notices() {
    let relay = RelayServer::start(
        settings()
            .set("delivery.write_timeout", "500ms")
            .set("delivery.max_failures", 1),
    )
    .await
    .unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    let mut deaf = Vec::new();
    for _ in 0..10 {
        let path = "/v1/ws?topic=user:loud";
        deaf.push(
            WebSocketClient::open_narrow(&relay.address(), path, &[])
                .await
                .unwrap(),
        );
    }
    assert_eq!(open_connections(&relay).await, 11.0);
    for round in 1.. {
        shout(&relay, round).await;
        neighbour.is_undisturbed(&relay).await.unwrap();
        if open_connections(&relay).await <= 1.0 {
            break;
        }
        assert!(
            round < 200,
            "still open: {}",
            open_connections(&relay).await
        );
    }
    neighbour.is_undisturbed(&relay).await.unwrap();
}

#[tokio::test]
async fn clients_gone_without_a_goodbye_are_forgotten() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    let before = open_connections(&relay).await;
    for _ in 0..10 {
        for transport in [Transport::WebSocket, Transport::Sse] {
            let mut watcher = Watcher::connect(
                transport,
                &relay.address(),
                Watch::topics(["user:neighbour"]),
            )
            .await
            .unwrap();
            watcher
                .until(SOON, "a state", |frame| frame.kind() == "state")
                .await
                .unwrap();
            watcher.vanish();
        }
    }
    wait::until_some(SOON, "the gone to be forgotten", async || {
        (open_connections(&relay).await <= before).then_some(())
    })
    .await
    .unwrap();
    neighbour.is_undisturbed(&relay).await.unwrap();
}

#[tokio::test]
async fn a_client_that_gives_no_sign_of_life_is_closed_with_4408() {
    let relay = RelayServer::start(
        settings()
            .set("delivery.ping_interval", "300ms")
            .set("delivery.dead_after", "1s"),
    )
    .await
    .unwrap();
    let mut raw = Raw::connect(&relay.address()).await.unwrap();
    raw.send(format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        relay.address()
    ))
    .await
    .unwrap();
    // one that reads its socket answers pings by itself, and so stays
    let mut lively = WebSocketClient::connect(&relay.address(), None)
        .await
        .unwrap();
    let watching = async {
        let heard = lively.next(Duration::from_millis(2500)).await;
        let more = lively.next(Duration::from_millis(2500)).await;
        (heard, more, lively)
    };
    let (rest, (_, more, _lively)) = tokio::join!(raw.read_to_end(SOON), watching);
    let rest = rest.expect("the relay did not close");
    let [high, low] = 4408_u16.to_be_bytes();
    assert!(
        rest.windows(4)
            .any(|bytes| bytes[0] == 0x88 && bytes[2..] == [high, low]),
        "no close frame with 4408 in {rest:?}"
    );
    assert_eq!(more, relay_testkit::client::Heard::Quiet);
}
