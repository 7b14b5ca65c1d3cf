//! A client that stops reading: what waits for it is conflated and bounded, nobody else notices, and when it reads
//! again it has the milestones, the latest state and the ending, each once.

use relay_testkit::relay::RelayServer;
use serde_json::{Value, json};

use crate::settings;
use crate::wire::Socket;

/// More than the kernel's buffers between two sockets hold, several times over.
const ROUNDS: u64 = 300;
const STATE_BYTES: usize = 60_000;
const MILESTONES: u64 = 30;

const DIALECT: &str = r#"
description = "One job a connection, told whole"

[delivery]
updates_per_second = 1000

[[routes]]
path = "/socket.io"
transport = "socketio"
topics = ["job:{?job}"]

[frames]
state = '["state", .job.current, .job.status, .job.message]'
milestone = '["milestone", .data.n]'
gap = '["gap", .reason]'
"#;

/// The event of a packet; pings and what else is no event gives nothing.
fn event(packet: &str) -> Option<Value> {
    let json = packet.strip_prefix("42")?;
    Some(serde_json::from_str(json).unwrap())
}

/// Reads up to the state with this number, and gives the numbers of all states on the way.
async fn read_to(socket: &mut Socket, number: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&number) {
        let packet = socket.packet().await.expect("the relay closed");
        let event = event(&packet).filter(|event| event[0] == "state");
        numbers.extend(event.and_then(|event| event[1].as_u64()));
    }
    numbers
}

#[tokio::test]
async fn a_client_that_stops_reading_costs_itself_freshness_and_nobody_else_anything() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("whole.toml"), DIALECT).unwrap();
    let settings = settings()
        .set("dialects.enabled", "whole")
        .set("dialects.directory", directory.path().display());
    let relay = RelayServer::start(settings).await.unwrap();
    let state = |number: u64, status: &str| json!({"status": status, "current": number, "total": ROUNDS, "message": "x".repeat(STATE_BYTES)});
    relay.publish("j", "a", &state(0, "running")).await.unwrap();

    let mut deaf = Socket::narrow(&relay, "&job=j").await;
    let mut lively = Socket::connect(&relay, "&job=j").await.unwrap();
    for socket in [&mut deaf, &mut lively] {
        socket.send("40").await;
        read_to(socket, 0).await;
    }
    // From here on one of the two reads nothing.
    for round in 1..=ROUNDS {
        relay
            .publish("j", "a", &state(round, "running"))
            .await
            .unwrap();
        if round % (ROUNDS / MILESTONES) == 0 {
            relay
                .milestone("j", "a", "clip", &json!({"n": round}))
                .await
                .unwrap();
        }
        let heard = read_to(&mut lively, round).await;
        assert_eq!(heard, [round], "the one that reads is told everything");
    }
    relay
        .publish("j", "a", &state(ROUNDS + 1, "completed"))
        .await
        .unwrap();
    read_to(&mut lively, ROUNDS + 1).await;

    let (mut states, mut milestones) = (Vec::new(), Vec::new());
    loop {
        let packet = deaf.packet().await.expect("the relay closed");
        let Some(event) = event(&packet) else {
            continue;
        };
        match event[0].as_str().unwrap() {
            "state" => states.push(event[1].as_u64().unwrap()),
            "milestone" => milestones.push(event[1].as_u64().unwrap()),
            other => panic!("{other}: {event}"),
        }
        if event[2] == "completed" {
            break;
        }
    }
    let told: Vec<_> = (1..=MILESTONES)
        .map(|n| n * (ROUNDS / MILESTONES))
        .collect();
    assert_eq!(milestones, told, "every milestone, in order, once");
    assert!(states.is_sorted_by(|a, b| a < b), "{states:?}");
    assert_eq!(states.last(), Some(&(ROUNDS + 1)));
    assert!(
        states.len() < ROUNDS as usize / 2,
        "what waited was not conflated: {} states",
        states.len()
    );
    // And it is as good a client as before: the ending came once, and the next attempt comes at once.
    let again = json!({"status": "running", "current": ROUNDS + 2, "attempt": 2});
    relay.publish("j", "a", &again).await.unwrap();
    for socket in [&mut deaf, &mut lively] {
        assert_eq!(read_to(socket, ROUNDS + 2).await, [ROUNDS + 2]);
    }
}
