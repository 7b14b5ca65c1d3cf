//! Finding, making and judging the stream.

use relay_bus::inspect;
use relay_bus::jetstream::{JetStreamSettings, SetupError, Storage, jetstream};
use relay_bus::seam::{Store, StoreError, What};
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};
use serde_json::{Value, json};

use crate::support::{Mode, Worker, chain, connection, job, outgoing, settings};

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
        .load_job(job("j"), Seq::new(0))
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
async fn the_shipped_stream_on_the_shipped_limits_has_no_difference_at_all() {
    let shipped = ["nats.conf", "cluster.conf"].map(|file| {
        let path = relay_testkit::tools::workspace()
            .join("deploy/nats")
            .join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let line = |line: &&str| line.starts_with("max_payload:");
        text.lines().find(line).unwrap().to_owned()
    });
    assert_eq!(shipped[0], shipped[1]);
    let options = Options::jetstream().config(&shipped[0]);
    let server = NatsServer::start(options).await.unwrap();
    server.create_stream(|_| {}).await.unwrap();
    let differences = inspect::jetstream(&settings(), &connection(&server.url())).await;
    assert_eq!(differences.unwrap(), []);
    let without = JetStreamSettings {
        create: false,
        ..settings()
    };
    let mode = Mode::start(without, &connection(&server.url()));
    mode.heard.live(1).await;
}

#[tokio::test]
async fn what_the_relay_makes_has_no_difference_at_all() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let connection = connection(&server.url());
    // Before it is there, nothing is made and nothing is wrong.
    let before = inspect::jetstream(&settings(), &connection).await.unwrap();
    assert_eq!(before, []);
    let forbidden = JetStreamSettings {
        create: false,
        ..settings()
    };
    let missing = inspect::jetstream(&forbidden, &connection)
        .await
        .unwrap_err();
    assert!(
        missing.to_string().contains("there is no stream PROGRESS"),
        "{missing}"
    );
    Mode::at(&server.url()).heard.live(1).await;
    let after = inspect::jetstream(&settings(), &connection).await.unwrap();
    assert_eq!(after, []);
}

#[tokio::test]
async fn each_setting_of_a_real_stream_that_is_wrong_is_named() {
    let server = NatsServer::start(Options::jetstream().config("max_payload: 16384"))
        .await
        .unwrap();
    let wrong: [(Value, &[&str]); 9] = [
        (json!({"max_msg_size": -1}), &["max_msg_size"]),
        (json!({"max_msg_size": 20_000}), &["max_msg_size"]),
        (json!({"max_age": 3_600_000_000_000_u64}), &["max_age"]),
        (
            json!({"discard": "new", "discard_new_per_subject": true}),
            &["discard_new_per_subject"],
        ),
        (json!({"no_ack": true}), &["no_ack"]),
        (
            json!({"max_msgs_per_subject": 4, "max_msgs": 10, "max_bytes": 1_000_000}),
            &["max_msgs_per_subject", "max_msgs", "max_bytes"],
        ),
        (
            json!({"duplicate_window": 1_000_000_000, "subject_delete_marker_ttl": 0}),
            &["duplicate_window", "subject_delete_marker_ttl"],
        ),
        (json!({"storage": "memory"}), &["storage"]),
        (
            json!({"subject_transform": {"src": "progress.>", "dest": "moved.>"}}),
            &["subject_transform"],
        ),
    ];
    for (change, settings_named) in wrong {
        let create = |stream: &mut Value| {
            let changes = change.as_object().unwrap().clone();
            stream.as_object_mut().unwrap().extend(changes);
        };
        server.create_stream(create).await.unwrap();
        let differences = inspect::jetstream(&settings(), &connection(&server.url())).await;
        let differences = differences.unwrap();
        let named: Vec<&str> = differences.iter().map(|each| each.setting).collect();
        let wanted = [settings_named, &["the server's max_payload"]].concat();
        assert_eq!(named, wanted, "{change}: {differences:#?}");
        let deleted = server.ask("$JS.API.STREAM.DELETE.PROGRESS", "").await;
        assert_eq!(deleted.unwrap()["success"], true);
    }
}

#[tokio::test]
async fn a_stream_that_is_changed_so_that_it_does_not_fit_any_more_is_waited_for() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.no_ack = true;
    worker
        .jetstream
        .update_stream(config.clone())
        .await
        .unwrap();
    mode.heard
        .lost_with("no_ack is true and must be false")
        .await;
    config.no_ack = false;
    worker.jetstream.update_stream(config).await.unwrap();
    mode.heard.live(2).await;
}

#[tokio::test]
async fn a_stream_that_gathers_from_others_can_be_read() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    server
        .create_stream(|stream| stream["name"] = json!("WORKERS"))
        .await
        .unwrap();
    let gather = |stream: &mut Value| {
        stream["sources"] = json!([{"name": "WORKERS"}]);
        stream["duplicate_window"] = json!(0);
        stream["max_msg_size"] = json!(73_728);
        stream.as_object_mut().unwrap().remove("subjects");
    };
    server.create_stream(gather).await.unwrap();
    let differences = inspect::jetstream(&settings(), &connection(&server.url())).await;
    let differences = differences.unwrap();
    assert_eq!(differences.len(), 1, "{differences:#?}");
    let told = differences[0].to_string();
    assert!(told.contains("nats.stream = \"WORKERS\""), "{told}");
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    worker.publish("progress.u.j.state", "{}").await;
    assert_eq!(mode.heard.updates_until(1).await[0].job, job("j"));
}

#[tokio::test]
async fn no_second_stream_is_made_beside_one_that_captures_the_same() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    server
        .create_stream(|stream| stream["name"] = json!("EVENTS"))
        .await
        .unwrap();
    let mode = Mode::at(&server.url());
    mode.heard
        .lost_with("stream EVENTS captures progress.> already")
        .await;
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
