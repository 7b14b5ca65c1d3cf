//! The shipped server configuration and permissions.

use std::process::Command;

use async_nats::ConnectOptions;
use futures_util::StreamExt;
use relay_bus::connection::ConnectionSettings;
use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::{Held, Store, StoreError, What};
use relay_core::id::Named;
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::ports::Port;
use relay_testkit::tools;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::core::Core;
use crate::support::{Mode, connection, job, name, outgoing, settings};

fn shipped(file: &str) -> std::path::PathBuf {
    tools::workspace().join("deploy/nats").join(file)
}

async fn server() -> NatsServer {
    let permissions = std::fs::read_to_string(shipped("permissions.conf")).unwrap();
    NatsServer::start(Options::jetstream().config(&permissions))
        .await
        .unwrap()
}

fn relay(server: &NatsServer) -> ConnectionSettings {
    ConnectionSettings {
        user: Some("relay".into()),
        password: Some("change-me-relay".into()),
        ..connection(&server.url())
    }
}

async fn worker(server: &NatsServer) -> async_nats::Client {
    let options =
        ConnectOptions::with_user_and_password("worker".into(), "change-me-worker".into());
    options.connect(server.url()).await.unwrap()
}

#[test]
fn the_shipped_configurations_are_taken_by_the_server() {
    for file in ["nats.conf", "cluster.conf"] {
        let checked = Command::new(tools::nats_server().unwrap())
            .arg("-t")
            .arg("-c")
            .arg(shipped(file))
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{file}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }
}

#[tokio::test]
async fn a_server_without_the_password_of_the_routes_is_not_let_into_the_cluster() {
    let conf = std::fs::read_to_string(shipped("cluster.conf")).unwrap();
    let port = Port::reserve().unwrap();
    let (_, cluster) = conf.split_once("cluster {").unwrap();
    let (cluster, _) = cluster.split_once("routes:").unwrap();
    let cluster = cluster.replace("0.0.0.0:6222", &port.address());
    let config = format!("cluster {{{cluster}}}");
    let _server = NatsServer::start(Options::core().config(&config))
        .await
        .unwrap();
    for (said, is_in) in [
        (r#"{"cluster":"relay"}"#, false),
        (r#"{"cluster":"relay","user":"route","pass":"x"}"#, false),
        (
            r#"{"cluster":"relay","user":"route","pass":"change-me-route"}"#,
            true,
        ),
    ] {
        let mut socket = TcpStream::connect(port.address()).await.unwrap();
        let connect = format!("CONNECT {said}\r\nPING\r\n");
        socket.write_all(connect.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(socket).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            answer += &line;
            if line.starts_with("PONG") || line.starts_with("-ERR") {
                break;
            }
        }
        assert_eq!(answer.contains("PONG"), is_in, "{said}: {answer}");
    }
}

#[tokio::test]
async fn the_relay_may_do_all_it_does() {
    let server = server().await;
    let mode = Mode::start(settings(), &relay(&server));
    mode.heard.live(1).await;
    let worker = async_nats::jetstream::new(worker(&server).await);
    worker
        .publish("progress.u.j.state", "{}".into())
        .await
        .unwrap()
        .await
        .unwrap();
    mode.heard.updates_until(1).await;
    assert_eq!(
        mode.store
            .load_job(job("j"), Seq::new(1))
            .await
            .unwrap()
            .updates
            .len(),
        1
    );
    assert!(
        mode.store
            .load_job(job("unknown"), Seq::new(1))
            .await
            .unwrap()
            .updates
            .is_empty()
    );
    assert_eq!(
        mode.store
            .load_last_states(None, Seq::new(1), 10)
            .await
            .unwrap()
            .len(),
        1
    );
    let held = Held {
        job: Named::bare(name("j")),
        seq: Seq::ZERO,
    };
    let changed = mode.store.changed(vec![held]).await.unwrap();
    assert_eq!(changed, [Named::bare(name("j"))]);
    assert_eq!(
        mode.store
            .publish(outgoing("u", "j", What::State, "{}"))
            .await
            .unwrap(),
        Seq::new(2)
    );
    let core = Core::start(&relay(&server));
    core.heard.live(1).await;
    core.store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_worker_may_neither_forge_live_messages_nor_read_others_nor_touch_the_stream() {
    let server = server().await;
    let mode = Mode::start(settings(), &relay(&server));
    mode.heard.live(1).await;
    let worker = worker(&server).await;
    worker
        .publish("live.progress.u.j.state", "forged".into())
        .await
        .unwrap();
    let mut others = worker.subscribe("progress.>").await.unwrap();
    let mut answers = worker.subscribe("_INBOX_relay.>").await.unwrap();
    worker
        .publish("$JS.API.STREAM.DELETE.PROGRESS", "".into())
        .await
        .unwrap();
    let jetstream = async_nats::jetstream::new(worker.clone());
    jetstream
        .publish("progress.u.j.state", "true".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let updates = mode.heard.updates_until(1).await;
    assert_eq!(updates[0].payload, "true");
    assert!(mode.heard.drops().is_empty());
    mode.store.load_job(job("j"), Seq::new(1)).await.unwrap();
    // Everything before is through when the stream has answered once more.
    jetstream
        .publish("progress.u.j.state", "again".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let heard = |subscription: &mut async_nats::Subscriber| {
        futures_util::FutureExt::now_or_never(subscription.next()).flatten()
    };
    assert!(heard(&mut others).is_none());
    assert!(heard(&mut answers).is_none());
    assert_eq!(mode.heard.lives().len(), 1);
}

#[tokio::test]
async fn a_relay_that_may_not_subscribe_is_told_so_in_the_servers_words() {
    let denied = "authorization { users: [ { user: relay, password: p, permissions: {
        publish: \">\", subscribe: [\"_INBOX_relay.>\"] } } ] }";
    let server = NatsServer::start(Options::jetstream().config(denied))
        .await
        .unwrap();
    let settings_of_relay = ConnectionSettings {
        user: Some("relay".into()),
        password: Some("p".into()),
        ..connection(&server.url())
    };
    let mode = Mode::start(settings(), &settings_of_relay);
    mode.heard
        .lost_with("Permissions Violation for Subscription to \"live.progress.>\"")
        .await;
    let core = Core::start(&settings_of_relay);
    core.heard
        .lost_with("Permissions Violation for Subscription to \"progress.>\"")
        .await;
    assert!(mode.heard.lives().is_empty() && core.heard.lives().is_empty());
}

#[tokio::test]
async fn what_a_relay_may_not_ask_or_publish_is_a_refusal_and_not_an_outage() {
    let narrow = "authorization { users: [ { user: relay, password: p, permissions: {
        publish: [\"_INBOX_relay.>\", \"$JS.API.STREAM.>\"],
        subscribe: [\"_INBOX_relay.>\", \"live.progress.>\"] } } ] }";
    let server = NatsServer::start(Options::jetstream().config(narrow))
        .await
        .unwrap();
    let settings_of_relay = ConnectionSettings {
        user: Some("relay".into()),
        password: Some("p".into()),
        ..connection(&server.url())
    };
    let mode = Mode::start(
        JetStreamSettings {
            check_interval: std::time::Duration::from_secs(60),
            ..settings()
        },
        &settings_of_relay,
    );
    mode.heard.live(1).await;
    let refused = mode
        .store
        .load_job(job("j"), Seq::new(0))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, StoreError::Refused(rejection) if rejection.to_string().contains("$JS.API.DIRECT.GET")),
        "{refused}"
    );
}
