//! The embedded bus's file: what a restart keeps, and what a crash costs.

use std::time::Duration;

use relay_testkit::client::{Transport, Watch, Watcher};
use relay_testkit::http::Request;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::wait;
use serde_json::json;
use tempfile::TempDir;

use crate::SOON;

fn settings(folder: &TempDir) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_relay"))
        .set("history.file", folder.path().join("history").display())
        .set("drain.spread", "100ms")
        .set("drain.deadline", "1s")
}

fn watch() -> Watch {
    Watch::topics(["job:j1", "user:o"])
}

/// A job that has ended once and runs again, and a client that has heard of its beginning.
async fn begin(relay: &RelayServer) -> Option<String> {
    let state = |status: &str, attempt: u32| json!({"status": status, "attempt": attempt});
    relay
        .publish("j1", "o", &state("running", 1))
        .await
        .unwrap();
    let mut watcher = Watcher::connect(Transport::WebSocket, &relay.address(), watch())
        .await
        .unwrap();
    watcher
        .until(SOON, "the snapshot", |frame| frame.kind() == "state")
        .await
        .unwrap();
    let cursor = watcher.cursor();
    watcher.close().await;
    relay
        .milestone("j1", "o", "clip", &json!({"clip": 1}))
        .await
        .unwrap();
    relay.publish("j1", "o", &state("failed", 1)).await.unwrap();
    relay
        .publish("j1", "o", &state("running", 2))
        .await
        .unwrap();
    cursor
}

/// What comes first on a connection that resumes, up to the state of the second attempt.
async fn resume(relay: &RelayServer, cursor: Option<String>) -> Vec<String> {
    let mut watcher = Watcher::connect(Transport::Sse, &relay.address(), watch().from(cursor))
        .await
        .unwrap();
    let mut heard = Vec::new();
    watcher
        .until(SOON, "the second attempt", |frame| {
            heard.push(match frame.kind() {
                // When it comes is up to the clock.
                "aggregate" => return false,
                "subscribed" => format!("recovered {}", frame.0["recovered"]),
                "state" => format!("{} {}", frame.job()["status"], frame.job()["attempt"]),
                other => other.to_owned(),
            });
            frame.job()["attempt"] == 2
        })
        .await
        .unwrap();
    heard
}

#[tokio::test]
async fn a_cursor_survives_a_restart_and_is_owed_what_its_client_missed() {
    let folder = TempDir::new().unwrap();
    let mut relay = RelayServer::start(settings(&folder)).await.unwrap();
    let cursor = begin(&relay).await;
    relay.terminate(SOON).await.unwrap();
    relay.restart().await.unwrap();
    let heard = resume(&relay, cursor).await;
    assert_eq!(
        heard,
        [
            "recovered true",
            "recovered true",
            "milestone",
            "\"failed\" 1",
            "\"running\" 2"
        ]
    );
}

#[tokio::test]
async fn a_crash_costs_what_was_not_written_yet_and_cursors_mean_a_snapshot() {
    let folder = TempDir::new().unwrap();
    let mut relay = RelayServer::start(settings(&folder)).await.unwrap();
    let cursor = begin(&relay).await;
    let file = folder.path().join("history");
    let is_written = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.contains("\"attempt\":2")
    };
    wait::until(Duration::from_secs(20), "the file is written", is_written)
        .await
        .unwrap();
    relay.kill();
    relay.restart().await.unwrap();
    let heard = resume(&relay, cursor).await;
    assert_eq!(
        heard,
        ["recovered false", "recovered false", "\"running\" 2"]
    );
    let answer = relay.send(Request::get("/v1/jobs/j1")).await.unwrap();
    assert_eq!(answer.json()["attempt"], 2);
}
