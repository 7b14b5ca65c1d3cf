//! What the official Socket.IO suite asks of any server.

use relay_testkit::client::raw::Raw;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::RelayServer;
use serde_json::Value;

use crate::wire::Socket;
use crate::{SOON, suite};

async fn relay() -> RelayServer {
    RelayServer::start(suite(false)).await.unwrap()
}

/// A namespace's handshake: what stands before the object, and whether the object is `{"sid": text}`.
fn handshake<'a>(packet: &'a str, head: &str) -> Option<&'a str> {
    let object: Value = serde_json::from_str(packet.strip_prefix(head)?).ok()?;
    let only = object.as_object()?.len() == 1 && object["sid"].is_string();
    only.then_some(packet)
}

#[tokio::test]
async fn namespaces_are_joined_with_and_without_credentials() {
    let relay = relay().await;
    for (connect, head) in [
        ("40", "40"),
        ("40{\"other\":\"123\"}", "40"),
        ("40/custom,", "40/custom,"),
        ("40/custom", "40/custom,"),
        ("40/custom,{\"other\":\"abc\"}", "40/custom,"),
    ] {
        let (mut socket, _) = Socket::open(&relay).await;
        socket.send(connect).await;
        let answer = socket.packet().await.unwrap();
        assert!(handshake(&answer, head).is_some(), "{connect}: {answer}");
    }
}

#[tokio::test]
async fn an_unknown_namespace_is_refused_in_the_protocol_s_words() {
    let relay = relay().await;
    let (mut socket, _) = Socket::open(&relay).await;
    socket.send("40/random").await;
    let answer = socket.packet().await.unwrap();
    assert_eq!(answer, "44/random,{\"message\":\"Invalid namespace\"}");
    // The connection goes on; another namespace may be joined.
    socket.send("40/custom,").await;
    assert!(handshake(&socket.packet().await.unwrap(), "40/custom,").is_some());
}

#[tokio::test]
async fn what_is_no_packet_ends_the_connection() {
    let relay = relay().await;
    for text in ["4abc", "42[\"message\"]", "44"] {
        let (mut socket, _) = Socket::open(&relay).await;
        socket.send(text).await;
        socket.closed().await;
    }
    for text in [
        "4abc",
        "42{}",
        "42abc[\"message-with-ack\",1]",
        "42[\"connect\"]",
    ] {
        let mut socket = Socket::joined(&relay, "40").await;
        socket.send(text).await;
        socket.closed().await;
    }
}

#[tokio::test]
async fn a_namespace_is_left_and_the_others_stay() {
    let relay = relay().await;
    let mut socket = Socket::joined(&relay, "40").await;
    socket.send("40/custom").await;
    assert!(handshake(&socket.packet().await.unwrap(), "40/custom,").is_some());
    socket.send("41/custom").await;
    socket.send("42[\"message\",\"to main\"]").await;
    assert_eq!(
        socket.packet().await.unwrap(),
        "42[\"message-back\",\"to main\"]"
    );
    // Left, it may be joined again.
    socket.send("40/custom,").await;
    assert!(handshake(&socket.packet().await.unwrap(), "40/custom,").is_some());
}

#[tokio::test]
async fn a_namespace_is_joined_once() {
    let relay = relay().await;
    let mut socket = Socket::joined(&relay, "40").await;
    socket.send("40").await;
    let answer = socket.packet().await.unwrap();
    assert!(
        answer.starts_with("44{\"message\":\"Already joined\""),
        "{answer}"
    );
}

#[tokio::test]
async fn events_come_with_their_arguments_and_answers_with_their_number() {
    let relay = relay().await;
    let mut socket = Socket::joined(&relay, "40").await;
    socket.send("42[\"message\",1,\"2\",{\"3\":[true]}]").await;
    assert_eq!(
        socket.packet().await.unwrap(),
        "42[\"message-back\",1,\"2\",{\"3\":[true]}]"
    );
    socket
        .send("42456[\"message-with-ack\",1,\"2\",{\"3\":[false]}]")
        .await;
    assert_eq!(
        socket.packet().await.unwrap(),
        "43456[1,\"2\",{\"3\":[false]}]"
    );
    let mut socket = Socket::joined(&relay, "40/custom,").await;
    socket.send("42/custom,0[\"message-with-ack\"]").await;
    assert_eq!(socket.packet().await.unwrap(), "43/custom,0[]");
}

#[tokio::test]
async fn binary_attachments_are_refused_and_the_connection_goes_on() {
    let relay = relay().await;
    let mut socket = Socket::joined(&relay, "40").await;
    let placeholders = "{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":1}";
    socket
        .send(&format!("452-789[\"message\",{placeholders}]"))
        .await;
    socket.send_binary(&[1, 2, 3]).await;
    socket.send_binary(&[4, 5, 6]).await;
    assert_eq!(
        socket.packet().await.unwrap(),
        "43789[{\"error\":\"binary_unsupported\"}]"
    );
    socket.send("42[\"message\",1]").await;
    assert_eq!(socket.packet().await.unwrap(), "42[\"message-back\",1]");
    socket.send_binary(&[7]).await;
    socket.closed().await;
}

#[tokio::test]
async fn a_connection_joins_so_many_namespaces_and_speaks_one_dialect() {
    let relay = RelayServer::start(crate::settings()).await.unwrap();
    let mut socket = Socket::joined(&relay, "40/ws/generations/g0,").await;
    // Greeted in the dialect's words, then in the next namespace in the same.
    assert!(
        socket
            .packet()
            .await
            .unwrap()
            .starts_with("42/ws/generations/g0,[\"connected\"")
    );
    socket.send("40/jobs,").await;
    let answer = socket.packet().await.unwrap();
    assert!(answer.starts_with("44/jobs,"), "{answer}");
    assert!(answer.contains("forceNew: true"), "{answer}");
    for n in 1..20 {
        socket.send(&format!("40/ws/generations/g{n},")).await;
        let answer = socket.packet().await.unwrap();
        if n < 16 {
            assert!(answer.starts_with("40/ws/generations/"), "{n}: {answer}");
            socket.packet().await.unwrap();
        } else {
            assert!(answer.starts_with("44/ws/generations/"), "{n}: {answer}");
        }
    }
}

/// What a worker answers is told in the namespace that asked, as the acknowledgement if one was asked for.
#[tokio::test]
async fn a_workers_answer_comes_back_as_a_packet_of_the_namespace_that_asked() {
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = r#"
description = "x"
[[routes]]
path = "/socket.io"
transport = "socketio"
[[routes]]
path = "/socket.io"
transport = "socketio"
namespace = "/work"
[requests.work]
subject = "work"
[messages]
command = '{request: "work", data: .args[0]}'
[frames]
state = 'empty'
answer = '["answered", .data]'
"#;
    std::fs::write(directory.path().join("mine.toml"), file).unwrap();
    let settings = suite(false)
        .set("dialects.enabled", "mine")
        .set("dialects.directory", directory.path().display())
        .set("bus.mode", "nats")
        .set("nats.url", nats.url());
    let relay = RelayServer::start(settings).await.unwrap();
    let mut worker = Raw::connect(nats.url().trim_start_matches("nats://"))
        .await
        .unwrap();
    worker
        .send("CONNECT {\"verbose\":false}\r\nSUB work 1\r\nPING\r\n")
        .await
        .unwrap();
    worker.read_until("PONG", SOON).await;
    let mut socket = Socket::joined(&relay, "40").await;
    socket.send("40/work,").await;
    let joined = socket.packet().await.unwrap();
    assert!(joined.starts_with("40/work,{"), "{joined}");
    for (asks, told) in [
        (r#"42["do",7]"#, r#"42["answered",7]"#),
        (r#"42/work,["do",8]"#, r#"42/work,["answered",8]"#),
    ] {
        socket.send(asks).await;
        let answer = asks.trim_end_matches(']').rsplit(',').next().unwrap();
        let asked = worker.read_until(&format!("\r\n{answer}\r\n"), SOON).await;
        let reply = asked.split(' ').nth(3).unwrap();
        worker
            .send(format!("PUB {reply} {}\r\n{answer}\r\n", answer.len()))
            .await
            .unwrap();
        assert_eq!(socket.packet().await.as_deref(), Some(told));
    }
}
