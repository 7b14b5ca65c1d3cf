//! Workers that do not trust each other, on the layout that is shipped for them.

use std::process::Command;

use async_nats::ConnectOptions;
use relay_bus::connection::ConnectionSettings;
use relay_bus::inspect;
use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::{Store, What};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::tools;
use serde_json::Value;

use relay_core::id::JobName;

use crate::support::{Mode, connection, name, outgoing, settings};

fn shipped(file: &str) -> String {
    let path = tools::workspace().join("deploy/nats").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// A server with the shipped accounts and streams; who asks it without a name is the operator.
async fn server() -> NatsServer {
    // A server for tests has less room.
    let accounts = shipped("tenants/accounts.conf").replace("1100MB", "64MB");
    let options = Options::jetstream()
        .config(&accounts)
        .config("no_auth_user: operator");
    let server = NatsServer::start(options).await.unwrap();
    let alices = shipped("tenants/owner.json").replace("1073741824", "33554432");
    for (api, config) in [
        ("JS.alice.API", alices.clone()),
        ("JS.bob.API", alices.replace("alice", "bob")),
        ("$JS.API", shipped("tenants/stream.json")),
    ] {
        let read: Value = serde_json::from_str(&config).unwrap();
        let subject = format!("{api}.STREAM.CREATE.{}", read["name"].as_str().unwrap());
        let made = server.ask(&subject, &config).await.unwrap();
        assert!(made["error"].is_null(), "{subject}: {made}");
    }
    server
}

fn relay(server: &NatsServer) -> ConnectionSettings {
    ConnectionSettings {
        user: Some("relay".into()),
        password: Some("change-me-relay".into()),
        ..connection(&server.url())
    }
}

fn without_making() -> JetStreamSettings {
    JetStreamSettings {
        create: false,
        ..settings()
    }
}

async fn worker(server: &NatsServer, owner: &str) -> async_nats::jetstream::Context {
    let options =
        ConnectOptions::with_user_and_password(owner.into(), format!("change-me-{owner}"));
    async_nats::jetstream::new(options.connect(server.url()).await.unwrap())
}

#[tokio::test]
async fn what_owners_publish_each_into_a_stream_of_its_own_is_read_as_from_one() {
    let server = server().await;
    let settings = without_making();
    let differences = inspect::jetstream(&settings, &relay(&server)).await;
    assert_eq!(differences.unwrap(), []);
    let mode = Mode::start(settings, &relay(&server));
    mode.heard.live(1).await;
    for owner in ["alice", "bob"] {
        let worker = worker(&server, owner).await;
        let subject = format!("progress.{owner}.{owner}s.state");
        let stored = worker.publish(subject, "{}".into()).await.unwrap();
        stored.await.unwrap();
    }
    let mut owners: Vec<String> = mode.heard.updates_until(2).await[..2]
        .iter()
        .map(|update| update.job.owner.to_string())
        .collect();
    owners.sort();
    assert_eq!(owners, ["alice", "bob"]);
    // What comes over HTTP goes into the relay's stream itself, endings with their roll-up.
    let stored = mode.store.publish(outgoing("bob", "h", What::State, "{}"));
    let stored = stored.await.unwrap();
    let history = mode
        .store
        .load_job(JobName::new(name("bob"), name("h")), stored)
        .await
        .unwrap();
    assert_eq!(history.updates.len(), 1);
}

/// `deploy/nats/attack`, which anybody can run.
#[test]
fn every_attack_of_one_owners_worker_on_another_is_held_on_the_layout_for_tenants() {
    let played = Command::new(tools::python().unwrap())
        .arg(tools::workspace().join("deploy/nats/attack"))
        .arg("--nats-server")
        .arg(tools::nats_server().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&played.stdout);
    let why = String::from_utf8_lossy(&played.stderr);
    assert!(played.status.success(), "{said}\n{why}");
    assert!(
        said.contains("attacks held on the layout 'tenants'"),
        "{said}"
    );
}
