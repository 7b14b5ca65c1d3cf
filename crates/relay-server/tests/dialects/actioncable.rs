//! A dialect written with the how-to alone, and the library that its front ends use: `@rails/actioncable`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use relay_testkit::process::Process;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::{tools, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::transcript::{self, SOON};

pub(crate) fn speaking_it(directory: &Path) -> Settings {
    let file = include_str!("actioncable.toml");
    std::fs::write(directory.join("actioncable.toml"), file).unwrap();
    crate::settings()
        .set("dialects.enabled", "actioncable")
        .set("dialects.directory", directory.display())
}

/// Where the library runs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Node,
    Chromium,
}

/// A process with one consumer.
struct Consumer {
    process: Process,
    _directory: TempDir,
}

impl Consumer {
    fn start(place: Place, relay: &RelayServer, channels: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(tools::node().unwrap());
        command.env_remove("CHROMIUM");
        if place == Place::Chromium {
            command.env("CHROMIUM", tools::chromium().unwrap());
        }
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/actioncable.mjs");
        let url = format!("{}/cable", relay.url().replace("http", "ws"));
        command.args([program, &url, &channels.to_string()]);
        Self {
            process: Process::spawn(&mut command, &directory.path().join("log")).unwrap(),
            _directory: directory,
        }
    }

    fn lines(&self) -> Vec<Value> {
        let logs = self.process.logs();
        let lines = logs.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    async fn says(&self, wanted: Value) {
        self.says_within(SOON, wanted).await;
    }

    async fn says_within(&self, within: Duration, wanted: Value) {
        let what = wanted.to_string();
        let said = wait::until(within, &what, || self.lines().contains(&wanted)).await;
        said.unwrap_or_else(|error| panic!("{error:#}\n{}", self.process.logs()));
    }

    async fn is_told(&self, id: &str, message: Value) {
        self.says(json!({"is": "received", "id": id, "message": message}))
            .await;
    }
}

#[tokio::test]
async fn the_real_actioncable_client_subscribes_hears_leaves_and_comes_back() {
    in_place(Place::Node).await;
}

#[tokio::test]
async fn in_a_browser_the_real_actioncable_client_does_the_same() {
    in_place(Place::Chromium).await;
}

async fn in_place(place: Place) {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = RelayServer::start(speaking_it(directory.path()))
        .await
        .unwrap();
    let state = |progress: u32| json!({"status": "running", "progress": progress});
    relay.publish("j1", "alice", &state(1)).await.unwrap();
    let channels = json!([
        {"channel": "JobChannel", "id": "j1"},
        {"channel": "JobChannel", "id": "j2"},
        {"channel": "JobChannel", "id": "not an id"},
        {"channel": "ChatChannel", "id": "nowhere"},
    ]);
    let consumer = Consumer::start(place, &relay, &channels);
    let welcome = json!({"is": "welcome", "protocol": "actioncable-v1-json"});
    // A browser starts slowly.
    consumer.says_within(3 * SOON, welcome).await;
    for id in ["j1", "j2"] {
        consumer
            .says(json!({"is": "connected", "id": id, "reconnected": false}))
            .await;
    }
    for id in ["nowhere", "not an id"] {
        consumer.says(json!({"is": "rejected", "id": id})).await;
    }
    let running =
        |id: &str, progress: u32| json!({"status": "running", "id": id, "progress": progress});
    consumer.is_told("j1", running("j1", 1)).await;
    let unknown = json!({"status": "unknown", "id": "j2"});
    consumer.is_told("j2", unknown).await;
    relay.publish("j2", "alice", &state(2)).await.unwrap();
    consumer.is_told("j2", running("j2", 2)).await;
    consumer
        .says(json!({"is": "ping", "protocol": "actioncable-v1-json"}))
        .await;

    relay
        .milestone("j1", "alice", "leave", &json!({"n": 1}))
        .await
        .unwrap();
    let leave = json!({"event": "leave", "id": "j1", "data": {"n": 1}});
    consumer.is_told("j1", leave).await;

    relay.signal("TERM").unwrap();
    consumer
        .says(json!({"is": "disconnect", "protocol": "actioncable-v1-json"}))
        .await;
    consumer
        .says(json!({"is": "disconnected", "id": "j2", "willAttemptReconnect": true}))
        .await;
    relay.end(SOON).await.unwrap();
    relay.restart().await.unwrap();
    consumer
        .says(json!({"is": "connected", "id": "j2", "reconnected": true}))
        .await;
    relay.publish("j1", "alice", &state(3)).await.unwrap();
    relay.publish("j2", "alice", &state(4)).await.unwrap();
    consumer.is_told("j2", running("j2", 4)).await;
    let lines = consumer.lines();
    let again = json!({"is": "received", "id": "j1", "message": running("j1", 3)});
    assert!(!lines.contains(&again), "told of what it left: {lines:?}");
}

#[tokio::test]
async fn actioncable_is_spoken_as_its_library_expects() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = RelayServer::start(speaking_it(directory.path()))
        .await
        .unwrap();
    transcript::follow(&mut relay, include_str!("actioncable.txt")).await;
}
