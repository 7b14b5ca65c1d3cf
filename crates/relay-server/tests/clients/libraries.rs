//! Clients that nobody here wrote: the `ws` and `eventsource` packages of npm, used as their pages say.

use std::process::Command;

use relay_testkit::process::Process;
use relay_testkit::relay::RelayServer;
use relay_testkit::{tools, wait};
use serde_json::json;
use tempfile::TempDir;

use crate::{SOON, settings};

struct Follower {
    process: Process,
    _directory: TempDir,
}

impl Follower {
    fn start(library: &str, relay: &RelayServer) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(tools::node().unwrap());
        command
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/node/follow.mjs"
            ))
            .args([library, &relay.url(), "job:j"]);
        Self {
            process: Process::spawn(&mut command, &directory.path().join("log")).unwrap(),
            _directory: directory,
        }
    }

    async fn has_said(&self, what: &str) {
        wait::until(SOON, what, || self.process.logs().contains(what))
            .await
            .unwrap_or_else(|error| panic!("{error:#}:\n{}", self.process.logs()));
    }
}

async fn follows_a_job_to_its_end(library: &str) {
    let relay = RelayServer::start(settings()).await.unwrap();
    let state = |step| json!({"status": "running", "current": step, "total": 3});
    relay.publish("j", "o", &state(1)).await.unwrap();
    let mut follower = Follower::start(library, &relay);
    follower.has_said("\"current\":1").await;
    relay.publish("j", "o", &state(2)).await.unwrap();
    follower.has_said("\"current\":2").await;
    relay
        .milestone("j", "o", "page_ready", &json!({"page": 2}))
        .await
        .unwrap();
    follower.has_said("\"page_ready\"").await;
    relay
        .publish("j", "o", &json!({"status": "completed"}))
        .await
        .unwrap();
    let status = follower.process.end(SOON).await.unwrap();
    assert!(status.success(), "{status}\n{}", follower.process.logs());
}

#[tokio::test]
async fn the_ws_package_follows_a_job_to_its_end() {
    follows_a_job_to_its_end("ws").await;
}

#[tokio::test]
async fn the_eventsource_package_follows_a_job_to_its_end() {
    follows_a_job_to_its_end("eventsource").await;
}

#[tokio::test]
async fn an_eventsource_comes_back_by_itself_after_a_restart() {
    let mut relay = RelayServer::start(settings()).await.unwrap();
    relay
        .publish("j", "o", &json!({"status": "running", "message": "before"}))
        .await
        .unwrap();
    let mut follower = Follower::start("eventsource", &relay);
    follower.has_said("\"before\"").await;
    relay.kill();
    relay.restart().await.unwrap();
    relay
        .publish("j", "o", &json!({"status": "running", "message": "after"}))
        .await
        .unwrap();
    follower.has_said("\"after\"").await;
    relay
        .publish("j", "o", &json!({"status": "completed"}))
        .await
        .unwrap();
    let status = follower.process.end(SOON).await.unwrap();
    assert!(status.success(), "{status}\n{}", follower.process.logs());
}
