//! Publishing through the relay.

use std::time::Duration;

use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::{Outgoing, Store, StoreError, What};
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, Worker, chain, connection, name, outgoing, settings};

#[tokio::test]
async fn what_is_published_is_numbered_stored_and_comes_by() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let milestone = outgoing("u", "j", What::Milestone(name("clip")), "m");
    assert_eq!(
        mode.store
            .publish(outgoing("u", "j", What::State, "s"))
            .await
            .unwrap(),
        Seq::new(1)
    );
    assert_eq!(mode.store.publish(milestone).await.unwrap(), Seq::new(2));
    let updates = mode.heard.updates_until(2).await;
    assert_eq!(chain(&updates), [(1, Some(0)), (2, Some(0))]);
    assert_eq!(updates[1].what, What::Milestone(name("clip")));
}

#[tokio::test]
async fn the_same_message_id_is_stored_once_and_none_is_never_a_duplicate() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let publish = async |message_id: Option<&str>| {
        let outgoing = Outgoing {
            message_id: message_id.map(str::to_owned),
            ..outgoing("u", "j", What::State, "{}")
        };
        mode.store.publish(outgoing).await.unwrap()
    };
    assert_eq!(publish(Some("j-1")).await, Seq::new(1));
    assert_eq!(publish(Some("j-1")).await, Seq::new(1));
    assert_eq!(publish(None).await, Seq::new(2));
    assert_eq!(publish(None).await, Seq::new(3));
}

#[tokio::test]
async fn an_expected_last_number_that_is_not_the_last_is_a_conflict() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let publish = |expected_last| {
        mode.store.publish(Outgoing {
            expected_last: Some(Seq::new(expected_last)),
            ..outgoing("u", "j", What::State, "{}")
        })
    };
    assert_eq!(publish(0).await.unwrap(), Seq::new(1));
    assert!(matches!(publish(0).await, Err(StoreError::Conflict)));
    assert_eq!(publish(1).await.unwrap(), Seq::new(2));
}

#[tokio::test]
async fn an_ending_is_kept_alone_and_for_its_time() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::start(
        JetStreamSettings {
            terminal_ttl: Duration::from_secs(3600),
            ..settings()
        },
        &connection(&server.url()),
    );
    mode.heard.live(1).await;
    mode.store
        .publish(outgoing("u", "j", What::State, "1"))
        .await
        .unwrap();
    let ending = Outgoing {
        terminal: true,
        ..outgoing("u", "j", What::State, "2")
    };
    assert_eq!(mode.store.publish(ending).await.unwrap(), Seq::new(2));
    let worker = Worker::at(&server.url()).await;
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 1);
    let stored = stream.get_raw_message(2).await.unwrap();
    let ttl = stored.headers.get("Nats-TTL").unwrap().as_str();
    assert!(matches!(ttl, "3600" | "3600s"), "{ttl}");
}

#[tokio::test]
async fn a_refusal_is_told_as_one() {
    let server = NatsServer::start(Options::jetstream().config("max_payload: 4096"))
        .await
        .unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let large = "x".repeat(5_000);
    let refused = mode
        .store
        .publish(outgoing("u", "j", What::State, &large))
        .await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    let injected = Outgoing {
        message_id: Some("x\r\nNats-Rollup: all".into()),
        ..outgoing("u", "j", What::State, "{}")
    };
    let injected = mode.store.publish(injected).await;
    assert!(
        matches!(injected, Err(StoreError::Refused(_))),
        "{injected:?}"
    );
    let gone = mode.store.publish(outgoing("u", "j", What::Gone, "")).await;
    assert!(matches!(gone, Err(StoreError::Refused(_))), "{gone:?}");
}
