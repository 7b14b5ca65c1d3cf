//! Clients that once ended the whole process, or the reading of a whole shard, and must not again.

use std::time::Duration;

use relay_testkit::client::WebSocketClient;
use relay_testkit::client::raw::Raw;
use relay_testkit::http::Request;
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use serde_json::{Value, json};

use crate::identity::{of, token, with_tokens};
use crate::neighbour::Neighbour;
use crate::{SOON, settings};

/// How many jobs of `owner` end, with a message of so many bytes.
async fn end_jobs(relay: &RelayServer, owner: &str, jobs: usize, bytes: usize, more: Value) {
    for job in 0..jobs {
        let mut state = json!({"status": "completed", "message": "x".repeat(bytes)});
        state
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap_or_default());
        relay
            .publish(&format!("ended-{job}"), owner, &state)
            .await
            .unwrap();
    }
}

/// Watches a user with acknowledgements it will not send, and reads the snapshot of so many endings.
async fn watch_endings(relay: &RelayServer, owner: &str, jobs: usize) -> WebSocketClient {
    let mut client = WebSocketClient::open_narrow(&relay.address(), "/v1/ws", &[])
        .await
        .unwrap();
    let subscribe = json!({"type": "subscribe", "topic": format!("user:{owner}"), "ack": true});
    client.send(&subscribe).await.unwrap();
    for _ in 0..jobs {
        client
            .until(SOON, "an ending", |frame| frame.kind() == "state")
            .await
            .unwrap();
    }
    client
}

async fn counted(relay: &RelayServer, series: &str) -> f64 {
    relay
        .metrics()
        .await
        .unwrap()
        .get(series)
        .unwrap_or_default()
}

async fn until_closed_as(relay: &RelayServer, reason: &str) {
    let series =
        format!(r#"relay_connections_closed_total{{reason="{reason}",transport="websocket"}}"#);
    wait::until_some(SOON, "the client to be closed", async || {
        (counted(relay, &series).await >= 1.0).then_some(())
    })
    .await
    .unwrap();
}

/// All endings are due again, more than may wait, while another topic's snapshot of them fills the socket.
#[tokio::test]
async fn regression_a_second_topic_of_the_same_endings_that_is_not_read_closes_its_client_alone() {
    let relay = RelayServer::start(settings().set("delivery.ack_timeout", "2s"))
        .await
        .unwrap();
    let mut neighbour = Neighbour::of(&relay).await.unwrap();
    end_jobs(&relay, "alice", 120, 30_000, json!({"parent_id": "g"})).await;
    let mut client = watch_endings(&relay, "alice", 120).await;
    for _ in 0..4 {
        client
            .send(&json!({"type": "subscribe", "topic": "group:g"}))
            .await
            .unwrap();
        client
            .send(&json!({"type": "unsubscribe", "topic": "group:g"}))
            .await
            .unwrap();
    }
    client
        .send(&json!({"type": "subscribe", "topic": "group:g"}))
        .await
        .unwrap();
    until_closed_as(&relay, "slow").await;
    neighbour.is_undisturbed(&relay).await.unwrap();
}

/// A text frame as clients have to mask it, with a mask of zeros.
fn masked(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let mut frame = vec![0x81, 0xfe];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

/// Connections that are reset while a hundred foreign topics of theirs are refused.
#[tokio::test]
async fn regression_clients_cut_off_while_they_are_refused_leave_the_shard_reading() {
    let relay = RelayServer::start(with_tokens().set("http.shards", 1))
        .await
        .unwrap();
    let mine = token(&of("neighbour").publish(&["neighbour"]));
    let mut neighbour = Neighbour::with_token(&relay, Some(mine)).await.unwrap();
    let topics: Vec<String> = (0..100).map(|n| format!("topic=user:x{n}")).collect();
    let request = format!(
        "GET /v1/ws?auth=message&{} HTTP/1.1\r\nhost: {}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        topics.join("&"),
        relay.address()
    );
    let token = token(&of("mallory"));
    let auth = masked(&json!({"type": "auth", "token": token}).to_string());
    for _ in 0..30 {
        let mut raw = Raw::connect_narrow(&relay.address()).await.unwrap();
        raw.send(&request).await.unwrap();
        raw.read_until("\r\n\r\n", SOON).await;
        raw.send(&auth).await.unwrap();
        raw.vanish();
    }
    neighbour.is_undisturbed(&relay).await.unwrap();
    let mut newcomer = WebSocketClient::connect(&relay.address(), Some(&token))
        .await
        .unwrap();
    newcomer
        .send(&json!({"type": "ping", "id": 1}))
        .await
        .unwrap();
    newcomer
        .until(Duration::from_secs(5), "a pong", |frame| {
            frame.kind() == "pong"
        })
        .await
        .unwrap();
    let answer = relay
        .send(Request::get("/v1/jobs/neighbours-job").bearer(Some(&token)))
        .await
        .unwrap();
    assert_eq!(answer.status.as_u16(), 403);
}
