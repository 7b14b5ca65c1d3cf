//! Several JetStream domains: a hub, and leaf nodes with JetStream of their own or without.

use std::time::Duration;

use relay_bus::inspect;
use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::{Store, What};
use relay_core::position::Seq;
use relay_testkit::nats::{NatsHub, NatsServer};

use crate::support::{Mode, Worker, chain, connection, job, name, outgoing, settings};

fn in_domain(domain: &str) -> JetStreamSettings {
    JetStreamSettings {
        domain: Some(domain.to_owned()),
        ..settings()
    }
}

/// Everything there is to a stream, through a leaf: read, loaded, published.
async fn works_through(leaf: &NatsServer, hub: &NatsServer, settings: JetStreamSettings) {
    let mode = Mode::start(settings, &connection(&leaf.url()));
    let live = mode.heard.live(1).await;
    let worker = Worker::at(&hub.url()).await;
    let from_hub = worker.publish("progress.u.a.state", "1").await;
    let milestone = outgoing("u", "a", What::Milestone(name("clip")), "{}");
    let published = mode.store.publish(milestone).await.unwrap();
    assert!(live.seq < from_hub && from_hub < published);
    let updates = mode.heard.updates_until(2).await;
    assert_eq!(
        chain(&updates),
        [(from_hub.get(), Some(0)), (published.get(), Some(0))]
    );
    let loaded = mode.store.load_job(job("a"), published).await.unwrap();
    assert_eq!(loaded.updates.len(), 2);
    assert_eq!(mode.heard.updates().len(), 2, "each is told once");
}

#[tokio::test]
async fn a_relay_at_a_leaf_uses_the_streams_domain() {
    let hub = NatsHub::start().await.unwrap();
    let (leaf, bare) = (
        hub.leaf("leaf").await.unwrap(),
        hub.bare_leaf().await.unwrap(),
    );
    hub.server.create_stream(|_| {}).await.unwrap();
    works_through(&leaf, &hub.server, in_domain("hub")).await;
    let other = JetStreamSettings {
        check_interval: Duration::from_secs(10),
        ..in_domain("hub")
    };
    let mode = Mode::start(other, &connection(&bare.url()));
    mode.heard.live(1).await;
    let published = mode
        .store
        .publish(outgoing("u", "b", What::State, "{}"))
        .await;
    assert!(published.unwrap() > Seq::new(2));
    let differences = inspect::jetstream(&in_domain("hub"), &connection(&bare.url())).await;
    assert_eq!(differences.unwrap(), []);
}

#[tokio::test]
async fn without_the_domain_the_start_says_what_is_wrong_and_makes_no_second_stream() {
    let hub = NatsHub::start().await.unwrap();
    let (leaf, bare) = (
        hub.leaf("leaf").await.unwrap(),
        hub.bare_leaf().await.unwrap(),
    );
    hub.server.create_stream(|_| {}).await.unwrap();
    for server in [&leaf, &bare] {
        let mode = Mode::at(&server.url());
        mode.heard
            .lost_with("there is no stream PROGRESS here, but stream PROGRESS captures")
            .await;
        let reason = mode.heard.losses().pop().unwrap();
        assert!(reason.contains("nats.domain"), "{reason}");
        let inspected = inspect::jetstream(&settings(), &connection(&server.url())).await;
        assert_eq!(inspected.unwrap_err().to_string(), reason);
    }
    let streams = leaf.ask("$JS.API.STREAM.NAMES", "").await.unwrap();
    assert_eq!(streams["total"], 0, "{streams}");
}

#[tokio::test]
async fn two_streams_of_one_name_are_not_read() {
    let hub = NatsHub::start().await.unwrap();
    let leaf = hub.leaf("leaf").await.unwrap();
    hub.server.create_stream(|_| {}).await.unwrap();
    leaf.create_stream(|_| {}).await.unwrap();
    let mode = Mode::at(&leaf.url());
    mode.heard
        .lost_with("2 streams called PROGRESS capture progress.>")
        .await;
    let deleted = leaf
        .ask("$JS.API.STREAM.DELETE.PROGRESS", "")
        .await
        .unwrap();
    assert_eq!(deleted["success"], true);
    let mode = Mode::start(in_domain("hub"), &connection(&leaf.url()));
    mode.heard.live(1).await;
}
