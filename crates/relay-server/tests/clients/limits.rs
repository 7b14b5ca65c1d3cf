//! Limits that fit together: what is shipped has nothing to be said of it, and each difference is named with its cure,
//! by `relay check` and by the start.

use std::process::Command;

use relay_testkit::nats::{NatsHub, NatsServer, Options};
use relay_testkit::relay::RelayServer;
use relay_testkit::tools::workspace;
use relay_testkit::wait;
use serde_json::{Value, json};

use crate::{SOON, settings};

/// What `relay check` says, on standard error, of a relay in JetStream mode at `url`, and whether all is well.
async fn check(url: &str, more: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    command
        .arg("check")
        .env("RELAY__BUS__MODE", "jetstream")
        .env("RELAY__NATS__URL", url)
        .envs(more.iter().copied());
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = ran.await.unwrap().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.success(), said)
}

/// The limit that the shipped server configurations have, as their line says.
fn shipped_max_payload() -> String {
    let file = workspace().join("deploy/nats/nats.conf");
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = text.lines();
    lines
        .find(|line| line.starts_with("max_payload:"))
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn of_what_is_shipped_nothing_is_said() {
    let server = Options::jetstream().config(&shipped_max_payload());
    let nats = NatsServer::start(server).await.unwrap();
    for stream in ["made by the relay", "shipped"] {
        if stream == "shipped" {
            nats.ask("$JS.API.STREAM.DELETE.PROGRESS", "")
                .await
                .unwrap();
            nats.create_stream(|_| {}).await.unwrap();
        }
        let relay = RelayServer::start(settings().jetstream(&nats.url()))
            .await
            .unwrap();
        assert_eq!(
            check(&nats.url(), &[]).await,
            (true, String::new()),
            "{stream}"
        );
        let logs = relay.logs();
        assert!(
            !logs.contains("should be") && !logs.contains("must be"),
            "{logs}"
        );
    }
    // An ending that no relay could use whole is rejected where its worker learns of it.
    let ending = json!({"status": "completed", "result": "x".repeat(70_000)});
    let answer = nats
        .ask("progress.o.j.state", &ending.to_string())
        .await
        .unwrap();
    assert_eq!(answer["error"]["err_code"], 10054, "{answer}");
    let largest = json!({"status": "completed", "result": "x".repeat(65_400)});
    let answer = nats
        .ask("progress.o.j.state", &largest.to_string())
        .await
        .unwrap();
    assert!(answer["seq"].is_u64(), "{answer}");
}

#[tokio::test]
async fn what_loses_something_is_a_warning_with_its_cure() {
    let server = Options::jetstream().config("max_payload: 32768");
    let nats = NatsServer::start(server).await.unwrap();
    let lossy = |stream: &mut Value| {
        stream["max_msg_size"] = json!(-1);
        stream["max_age"] = json!(3_600_000_000_000_u64);
        stream["max_msgs_per_subject"] = json!(8);
    };
    nats.create_stream(lossy).await.unwrap();
    let (good, said) = check(&nats.url(), &[]).await;
    assert!(good, "{said}");
    let mut relay = RelayServer::start(settings().jetstream(&nats.url()))
        .await
        .unwrap();
    relay.ready().await.unwrap();
    let logs = relay.logs();
    for part in [
        "max_msg_size is unlimited and should be 69632",
        "run `nats stream edit PROGRESS --max-msg-size=69632`",
        "max_age is 1h and should be at least 24h (history.terminal_ttl)",
        "max_msgs_per_subject is 8 and should be at least 64 (history.per_job)",
        "the server's max_payload is 32768 and should be at least 69632",
    ] {
        assert!(said.contains(part), "{part}: {said}");
        assert!(logs.contains(part), "{part}: {logs}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(
        said.lines().all(|line| line.starts_with("warning: ")),
        "{said}"
    );
    // With limits that agree, nothing is left of these.
    let agreed = [
        ("RELAY__LIMITS__UPDATE_BYTES", "16KiB"),
        ("RELAY__HISTORY__TERMINAL_TTL", "1h"),
        ("RELAY__HISTORY__PER_JOB", "8"),
    ];
    let (good, said) = check(&nats.url(), &agreed).await;
    assert!(good && said.lines().count() == 1, "{said}");
    assert!(said.contains("max_msg_size"), "{said}");
}

#[tokio::test]
async fn what_prevents_the_relay_is_an_error_and_it_waits() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    nats.create_stream(|stream| stream["no_ack"] = json!(true))
        .await
        .unwrap();
    let (good, said) = check(&nats.url(), &[]).await;
    let told = "no_ack is true and must be false";
    assert!(!good && said.starts_with(told), "{said}");
    assert!(
        said.contains("run `nats stream edit PROGRESS --ack`"),
        "{said}"
    );
    let settings = settings().jetstream(&nats.url()).only_live();
    let mut relay = RelayServer::start(settings).await.unwrap();
    wait::until(SOON, "the log", || relay.logs().contains(told))
        .await
        .unwrap();
    let ready = relay_testkit::http::get(&relay.admin_address(), "/readyz").await;
    assert_eq!(ready.unwrap().status.as_u16(), 503);
    nats.ask("$JS.API.STREAM.DELETE.PROGRESS", "")
        .await
        .unwrap();
    nats.create_stream(|_| {}).await.unwrap();
    relay.ready().await.unwrap();
}

#[tokio::test]
async fn a_nats_that_is_away_says_nothing_against_a_configuration() {
    let nats = NatsServer::absent(&Options::jetstream()).unwrap();
    let (good, said) = check(&nats.url(), &[]).await;
    assert!(good && said.starts_with("not checked: "), "{said}");
}

#[tokio::test]
async fn a_stream_of_another_domain_is_found_by_its_domain_alone() {
    let hub = NatsHub::start().await.unwrap();
    let leaf = hub.leaf("leaf").await.unwrap();
    hub.server.create_stream(|_| {}).await.unwrap();
    let (good, said) = check(&leaf.url(), &[]).await;
    assert!(!good && said.contains("nats.domain"), "{said}");
    let domain = [("RELAY__NATS__DOMAIN", "hub")];
    assert_eq!(check(&leaf.url(), &domain).await, (true, String::new()));
    let there = settings().jetstream(&leaf.url()).set("nats.domain", "hub");
    let relay = RelayServer::start(there).await.unwrap();
    let state = json!({"status": "running"});
    relay.publish("j", "o", &state).await.unwrap();
    let info = hub
        .server
        .ask("$JS.API.STREAM.INFO.PROGRESS", "")
        .await
        .unwrap();
    assert_eq!(info["state"]["messages"], 1, "{info}");
}
