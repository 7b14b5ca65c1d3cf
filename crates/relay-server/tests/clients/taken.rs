//! What clients take without reading it, or before they are known: it is counted, and bounded.

use std::collections::BTreeSet;

use http::Method;
use relay_testkit::client::raw::Raw;
use relay_testkit::http::Request;
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use serde_json::json;
use tokio::net::TcpSocket;

use crate::identity::{of, token, with_tokens};
use crate::{SOON, settings};

/// Publishes so many jobs of alice with a message of so many bytes.
async fn publish(relay: &RelayServer, jobs: usize, bytes: usize, token: Option<&str>) {
    let message = "m".repeat(bytes);
    let lines = (0..jobs).map(|job| {
        let line = json!({"job_id": format!("j{job}"), "owner": "alice", "status": "running", "message": message});
        format!("{line}\n")
    });
    let lines: Vec<String> = lines.collect();
    for batch in lines.chunks(200) {
        let request = Request::new(Method::POST, "/v1/publish").bearer(token);
        let answer = relay.send(request.body(batch.concat())).await.unwrap();
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_large_snapshot_is_told_to_a_poll_in_parts_each_job_once() {
    let relay = RelayServer::start(settings()).await.unwrap();
    publish(&relay, 300, 4000, None).await;
    let (mut cursor, mut told, mut answers) = (None::<String>, BTreeSet::new(), 0);
    loop {
        let since = cursor.map(|cursor| format!("&cursor={cursor}"));
        let path = format!(
            "/v1/poll?topic=user:alice&wait=0{}",
            since.unwrap_or_default()
        );
        let answer = relay.send(Request::get(&path)).await.unwrap();
        assert_eq!(answer.status.as_u16(), 200);
        assert!(answer.body.len() < 384 << 10, "{} bytes", answer.body.len());
        let body = answer.json();
        assert_eq!(body["recovered"], answers > 0, "what came before stays");
        let frames = body["frames"].as_array().unwrap();
        for frame in frames {
            let job = frame["job"]["job_id"].as_str().unwrap().to_owned();
            assert!(told.insert(job), "{frame} for the second time");
        }
        cursor = Some(body["cursor"].as_str().unwrap().to_owned());
        answers += 1;
        if frames.is_empty() {
            break;
        }
    }
    assert_eq!(told.len(), 300);
    assert!(answers > 4, "{answers} answers");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_a_connection_of_its_user() {
    let settings = with_tokens().set("limits.connections_per_user", 2);
    let relay = RelayServer::start(settings).await.unwrap();
    let worker = token(&of("worker").publish(&["*"]));
    publish(&relay, 600, 8000, Some(&worker)).await;
    let alice = token(&of("alice"));
    let poll = format!(
        "GET /v1/poll?topic=user:alice&wait=0 HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {alice}\r\n\r\n"
    );
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect_narrow(&relay.address()).await.unwrap();
        // Many requests on one socket: more answers than the kernel holds.
        raw.send(poll.repeat(64)).await.unwrap();
        assert!(raw.read_until("HTTP/1.1 200", SOON).await.contains("200"));
        unread.push(raw);
    }
    let in_use = async || {
        let metrics = relay.metrics().await.unwrap();
        let used = |what| metrics.sum("relay_limit_in_use", what);
        (used("connections"), used("answer_bytes"))
    };
    wait::until_some(SOON, "both to count", async || {
        (in_use().await.0 == 2.0).then_some(())
    })
    .await
    .unwrap();
    let request = Request::get("/v1/poll?topic=user:alice&wait=0").bearer(Some(&alice));
    let answer = relay.send(request).await.unwrap();
    assert_eq!(answer.error_code(), "user_limit");
    let (_, bytes) = in_use().await;
    assert!((1.0..700_000.0).contains(&bytes), "{bytes}");
    drop(unread);
    wait::until_some(SOON, "nothing to count", async || {
        (in_use().await == (0.0, 0.0)).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_token_that_may_publish_nothing_is_rejected_before_its_body() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let token = token(&of("alice"));
    for line in ["POST /v1/publish", "POST /v1/jobs/j", "PATCH /v1/jobs/j"] {
        let mut raw = Raw::connect(&relay.address()).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 60000\r\n\r\n"
        );
        raw.send(head).await.unwrap();
        let answer = raw.read_until("may_not_publish", SOON).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{line}: {answer}");
    }
}

#[tokio::test]
async fn sockets_of_one_address_are_bounded_and_another_address_is_served() {
    // One shard takes them in the order in which they came.
    let settings = settings()
        .set("limits.connections_per_address", 4)
        .set("http.shards", 1);
    let relay = RelayServer::start(settings).await.unwrap();
    let mut idle = Vec::new();
    // Twice as many as connections, and 64 more.
    for _ in 0..72 {
        idle.push(Raw::connect(&relay.address()).await.unwrap());
    }
    let mut one_more = Raw::connect(&relay.address()).await.unwrap();
    let answer = one_more.read_until("address_limit", SOON).await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains("retry-after: 5"), "{answer}");
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket
        .connect(relay.address().parse().unwrap())
        .await
        .unwrap();
    let mut bystander = Raw::from(stream);
    let request = "GET /v1/jobs/j HTTP/1.1\r\nhost: localhost\r\n\r\n";
    bystander.send(request).await.unwrap();
    let answer = bystander.read_until("unknown_job", SOON).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
