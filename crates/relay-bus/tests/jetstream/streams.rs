//! Finding, making and judging the stream.

use relay_bus::jetstream::{JetStreamSettings, SetupError, Storage, jetstream};
use relay_bus::seam::{Store, StoreError, What};
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, Worker, chain, connection, name, outgoing, settings};

#[tokio::test]
async fn a_missing_stream_is_made_as_the_relay_needs_it() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::start(
        JetStreamSettings {
            storage: Storage::Memory,
            per_job: 7,
            max_age: std::time::Duration::from_secs(90),
            ..settings()
        },
        &connection(&server.url()),
    );
    let epoch = mode.heard.live(1).await.epoch;
    let worker = Worker::at(&server.url()).await;
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    let info = stream.cached_info();
    assert_eq!(
        u128::from(epoch.get()),
        info.created.unix_timestamp_nanos().unsigned_abs()
    );
    let config = &info.config;
    assert_eq!(config.subjects, ["progress.>"]);
    assert_eq!(config.max_messages_per_subject, 7);
    assert_eq!(config.max_age.as_secs(), 90);
    assert_eq!(config.duplicate_window.as_secs(), 90);
    assert_eq!(
        config.storage,
        async_nats::jetstream::stream::StorageType::Memory
    );
    assert!(config.allow_direct && config.allow_rollup && config.allow_message_ttl);
    assert_eq!(config.subject_delete_marker_ttl.unwrap().as_secs(), 60);
    let republish = config.republish.as_ref().unwrap();
    assert_eq!(
        (&*republish.source, &*republish.destination),
        ("progress.>", "live.progress.>")
    );
}

#[tokio::test]
async fn a_missing_stream_that_is_not_to_be_made_is_waited_for() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::start(
        JetStreamSettings {
            create: false,
            ..settings()
        },
        &connection(&server.url()),
    );
    mode.heard.lost_with("there is no stream PROGRESS").await;
    let unreachable = mode
        .store
        .load_job(name("j"), Seq::new(0))
        .await
        .unwrap_err();
    assert!(
        unreachable
            .to_string()
            .contains("there is no stream PROGRESS"),
        "{unreachable}"
    );
    // Another relay, or a person, makes it.
    let other = Mode::at(&server.url());
    other.heard.live(1).await;
    mode.heard.live(1).await;
}

#[tokio::test]
async fn a_stream_that_does_not_fit_is_named_setting_by_setting_until_it_is_mended() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let worker = Worker::at(&server.url()).await;
    let mut config = async_nats::jetstream::stream::Config {
        name: "PROGRESS".into(),
        subjects: vec!["progress.>".into()],
        allow_rollup: true,
        allow_message_ttl: true,
        ..Default::default()
    };
    worker
        .jetstream
        .create_stream(config.clone())
        .await
        .unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.lost_with("stream PROGRESS does not match").await;
    let reason = mode.heard.losses().pop().unwrap();
    assert!(
        reason.contains("republish is unset and must be \"progress.>\" to \"live.progress.>\""),
        "{reason}"
    );
    assert!(
        reason.contains("allow_direct is false and must be true"),
        "{reason}"
    );
    assert!(!reason.contains("allow_msg_ttl"), "{reason}");
    let publish = mode
        .store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await;
    assert!(
        matches!(publish, Err(StoreError::Unreachable(_))),
        "{publish:?}"
    );
    config.allow_direct = true;
    config.republish = Some(async_nats::jetstream::stream::Republish {
        source: "progress.>".into(),
        destination: "live.progress.>".into(),
        headers_only: false,
    });
    worker.jetstream.update_stream(config).await.unwrap();
    mode.heard.live(1).await;
    worker.publish("progress.u.j.state", "{}").await;
    assert_eq!(chain(&mode.heard.updates_until(1).await), [(1, Some(0))]);
}

#[tokio::test]
async fn the_shipped_stream_configuration_fits() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let worker = Worker::at(&server.url()).await;
    let shipped = relay_testkit::tools::workspace().join("deploy/nats/stream.json");
    let shipped = std::fs::read(shipped).unwrap();
    let answer = worker
        .client
        .request("$JS.API.STREAM.CREATE.PROGRESS", shipped.into())
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(!answer.contains("\"error\""), "{answer}");
    let mode = Mode::start(
        JetStreamSettings {
            create: false,
            ..settings()
        },
        &connection(&server.url()),
    );
    mode.heard.live(1).await;
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_as_one() {
    let server = NatsServer::start(Options::core()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.lost_with("is JetStream enabled").await;
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_connected() {
    let refused = |change: fn(&mut JetStreamSettings)| {
        let mut settings = settings();
        change(&mut settings);
        jetstream(settings, &connection("nats://127.0.0.1:1")).unwrap_err()
    };
    assert!(matches!(
        refused(|s| s.prefix = "a..b".into()),
        SetupError::Prefix(_)
    ));
    assert!(matches!(
        refused(|s| s.stream = "A.B".into()),
        SetupError::StreamName { .. }
    ));
}
