//! Small real runs: the real relay, the real floor, a handful of watchers. What is counted has to add up;
//! nothing is timed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The relay, built with the rest of the workspace.
fn relay() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_relay-loadtest")).with_file_name("relay");
    assert!(
        path.is_file(),
        "{} is missing: cargo build -p relay-server",
        path.display()
    );
    path
}

/// Plays a scenario once and gives the runs, the relay's first.
fn played(scenario: &str, arguments: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("scenario.toml");
    std::fs::write(&file, scenario).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_relay-loadtest"))
        .args(["run", "--quiet", "--json", "--runs", "1", "--start"])
        .arg(relay())
        .arg("--out")
        .arg(directory.path())
        .args(arguments)
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let written = std::fs::read(directory.path().join("scenario.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), report);
    report["runs"].as_array().unwrap().clone()
}

fn number(run: &Value, figure: &str) -> u64 {
    run[figure]
        .as_u64()
        .unwrap_or_else(|| panic!("{figure} in {run}"))
}

/// Everything published got to everybody, or something newer did.
fn assert_whole(run: &Value) {
    for odd in [
        "missing",
        "out_of_order",
        "lost_connections",
        "refused_updates",
    ] {
        assert_eq!(number(run, odd), 0, "{odd} in {run}");
    }
    assert_eq!(
        number(run, "deliveries") + number(run, "superseded"),
        number(run, "deliveries_expected")
    );
    assert!(number(&run["cpu"], "system_micros") + number(&run["cpu"], "user_micros") > 0);
}

#[test]
fn relay_and_floor_deliver_the_same_number_of_equally_long_messages() {
    let runs = played(
        "title = 't'\n[watch]\nwatchers = 40\n[publish]\nupdates = 30",
        &[],
    );
    let servers: Vec<&str> = runs
        .iter()
        .filter_map(|run| run["server"].as_str())
        .collect();
    assert_eq!(servers, ["relay", "floor"]);
    for run in &runs {
        assert_whole(run);
        assert_eq!(number(run, "deliveries"), 40 * 30);
        assert_eq!(number(&run["connect"], "connections"), 40);
    }
    let bytes = |run: &Value| run["bytes_per_delivery"].as_f64().unwrap();
    assert!((bytes(&runs[0]) - bytes(&runs[1])).abs() < 1.0);
}

#[test]
fn milestones_over_nats_reach_every_event_stream() {
    let runs = played(
        "title = 't'\n[watch]\nwatchers = 20\ntransport = 'sse'\n\
         [publish]\nover = 'nats'\nupdates = 50\nwindow = 8\nmilestones = 1.0",
        &[],
    );
    for run in &runs {
        assert_whole(run);
        assert_eq!(number(run, "superseded"), 0);
    }
}

#[test]
fn what_the_watchers_did_not_get_is_what_the_relay_says_it_conflated() {
    let runs = played(
        "title = 't'\n[watch]\nwatchers = 20\n[publish]\nrate = 200\nupdates = 100\nend = true\n\
         [relay]\n'delivery.updates_per_second' = 10",
        &["--no-floor"],
    );
    let run = &runs[0];
    assert_whole(run);
    assert!(number(run, "superseded") > 0, "{run}");
    let conflated = run["conflated_by_relay"].as_f64().unwrap();
    assert!(
        (conflated - number(run, "superseded") as f64).abs() < 0.5,
        "{run}"
    );
    assert!(run["ending_latency"]["max_ms"].as_f64().is_some());
}

#[test]
fn slow_readers_and_those_who_come_and_go_do_not_disturb_the_count() {
    let runs = played(
        "title = 't'\n[watch]\nwatchers = 40\nslow = 0.1\nchurn = 20\n\
         [publish]\njobs = 4\nrate = 200\nupdates = 200\nmilestones = 0.2\nendings = 0.05",
        &["--no-floor"],
    );
    assert_whole(&runs[0]);
    // 4 never read and 18, which is half of the rest, come and go.
    assert_eq!(number(&runs[0], "deliveries_expected"), 18 * 200 / 4);
}

#[test]
fn each_dialect_is_told_everything_in_its_own_words() {
    let runs = played(
        r#"
        title = "t"
        watch.watchers = 20
        publish.updates = 10
        relay."dialects.enabled" = ["upload-notes", "event-dashboard", "media-conversion"]
        [[dialects]]
        name = "socket.io"
        path = "/socket.io/?EIO=4&transport=websocket"
        say = ["40/jobs,", '42/jobs,0["subscribe:jobs",{"jobId":"{job}"}]']
        ready = "43/jobs,0"
        answer = { "2" = "3" }
        [[dialects]]
        name = "plain"
        path = "/production"
        say = ['{"type":"subscribe","data":{"channel":"job:{job}"}}']
        carries = "source"
        [[dialects]]
        name = "twice"
        path = "/api/ws"
        say = ['{"type":"subscribe_job","payload":{"jobId":"{job}"}}']
        carries = "stage"
        "#,
        &["--no-floor"],
    );
    let servers: Vec<&str> = runs
        .iter()
        .filter_map(|run| run["server"].as_str())
        .collect();
    assert_eq!(servers, ["relay", "socket.io", "plain", "twice"]);
    for run in &runs {
        assert_whole(run);
        assert_eq!(number(run, "deliveries"), 20 * 10);
    }
}

#[test]
fn idle_connections_and_a_ramp_lose_nobody() {
    let idle = played("title = 't'\nkind = 'idle'\n[watch]\nwatchers = 60", &[]);
    let ramp = played(
        "title = 't'\nkind = 'ramp'\n[watch]\nwatchers = 60\nat_once = 60",
        &[],
    );
    for run in idle.iter().chain(&ramp) {
        assert_eq!(number(&run["connect"], "connections"), 60);
        assert_eq!(number(&run["connect"], "refused"), 0);
        assert!(number(&run["memory"], "pss_kib") > 0);
    }
}

#[test]
fn updates_through_jetstream_are_all_taken_in() {
    let runs = played(
        "title = 't'\nkind = 'intake'\n[watch]\nwatchers = 0\n\
         [publish]\nover = 'jetstream'\njobs = 20\nupdates = 100\nwindow = 20",
        &[],
    );
    assert_eq!(
        (
            number(&runs[0], "published"),
            number(&runs[0], "refused_updates")
        ),
        (100, 0)
    );
}

#[test]
fn a_bystander_notices_nothing_of_clients_that_do_anything() {
    let output = Command::new(env!("CARGO_BIN_EXE_relay-loadtest"))
        .args(["chaos", "--minutes", "0.05", "--clients", "20", "--start"])
        .arg(relay())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}{printed}");
    assert!(printed.starts_with("seed "), "{printed}");
    assert!(printed.contains("bystander: 20 updates"), "{printed}");
}

#[test]
fn what_a_bystander_notices_is_told_in_a_sentence() {
    let output = Command::new(env!("CARGO_BIN_EXE_relay-loadtest"))
        .args([
            "chaos",
            "--minutes",
            "0.05",
            "--seed",
            "7",
            "--start",
            "/bin/false",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("relay ended"), "{said}");
}
