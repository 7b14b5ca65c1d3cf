//! What transcripts cannot show: headers, counts, times, and who is refused.

use std::time::Duration;

use relay_testkit::http::Request;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{RelayServer, Settings};
use serde_json::json;
use tempfile::TempDir;

use crate::settings;
use crate::transcript::{Heard, Socket};

/// Reads a metric until it has a value; what is counted on another thread is a moment late.
async fn until(relay: &RelayServer, series: &str, value: f64) {
    let reads = async {
        while relay.metrics().await.unwrap().get(series) != Some(value) {
            tokio::task::yield_now().await;
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(10), reads).await;
    came.unwrap_or_else(|_| panic!("{series} does not become {value}"));
}

/// A relay that speaks one dialect, made of this file; the file is gone with what comes beside it.
async fn speaking(file: &str) -> (RelayServer, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("mine.toml"), file).unwrap();
    let settings = settings()
        .set("dialects.enabled", "mine")
        .set("dialects.directory", directory.path().display());
    (RelayServer::start(settings).await.unwrap(), directory)
}

#[tokio::test]
async fn a_mapping_runs_once_for_a_publication_however_many_watch() {
    let relay = RelayServer::start(settings()).await.unwrap();
    relay
        .publish("j1", "alice", &json!({"status": "running", "progress": 1}))
        .await
        .unwrap();
    let mut sockets = Vec::new();
    for path in ["/api/v1/conversions/j1/ws", "/ws/v1/convert/j1/progress"].repeat(10) {
        let mut socket = Socket::open(&relay, path).await;
        socket.next().await;
        sockets.push(socket);
    }
    relay
        .publish("j1", "alice", &json!({"status": "running", "progress": 2}))
        .await
        .unwrap();
    for socket in &mut sockets {
        let Heard::Text(text) = socket.next().await else {
            panic!("closed");
        };
        assert!(text.contains("\"progress\":2"), "{text}");
    }
    let runs = "relay_dialect_runs_total{dialect=\"file-conversion\",mapping=\"frames.state\"}";
    assert_eq!(relay.metrics().await.unwrap().get(runs), Some(2.0));
}

#[tokio::test]
async fn a_poll_is_answered_304_while_nothing_changed_and_says_when_to_ask_again() {
    let relay = RelayServer::start(settings()).await.unwrap();
    relay
        .publish("j1", "alice", &json!({"status": "running"}))
        .await
        .unwrap();
    let path = "/api/v1/conversions/j1";
    let first = relay.send(Request::get(path)).await.unwrap();
    assert_eq!(first.header("retry-after"), "3");
    let etag = first.header("etag").to_owned();
    let again = Request::get(path).header("if-none-match", etag.as_str());
    let again = relay.send(again).await.unwrap();
    assert_eq!((again.status.as_u16(), again.text().as_str()), (304, ""));
    relay
        .publish("j1", "alice", &json!({"status": "completed"}))
        .await
        .unwrap();
    let changed = Request::get(path).header("if-none-match", etag);
    let changed = relay.send(changed).await.unwrap();
    assert_eq!(changed.status.as_u16(), 200);
    assert_eq!(
        changed.header("retry-after"),
        "",
        "an ended job is not asked for again"
    );
}

#[tokio::test]
async fn video_generation_echoes_request_ids_and_limits_polls() {
    let relay = RelayServer::start(settings()).await.unwrap();
    relay
        .publish("gen_1", "alice", &json!({"status": "running"}))
        .await
        .unwrap();
    let path = "/api/v1/generations/gen_1";
    let named = Request::get(path).header("x-request-id", "req-1.a_b");
    let named = relay.send(named).await.unwrap();
    assert_eq!(named.header("x-request-id"), "req-1.a_b");
    assert_eq!(named.header("x-ratelimit-limit"), "60");
    assert_eq!(named.header("x-ratelimit-remaining"), "59");
    let reset: u64 = named.header("x-ratelimit-reset").parse().unwrap();
    assert!(reset > 1_700_000_000, "seconds since 1970");
    let forged = Request::get(path).header("x-request-id", "<script>");
    let made = relay.send(forged).await.unwrap();
    assert_eq!(made.header("x-request-id").len(), 32);
    for _ in 0..58 {
        relay.send(Request::get(path)).await.unwrap();
    }
    let refused = relay.send(Request::get(path)).await.unwrap();
    assert_eq!(refused.status.as_u16(), 429);
    // The code its page has a sentence for.
    assert_eq!(refused.error_code(), "RATE_LIMIT_EXCEEDED");
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
    assert!(!refused.header("retry-after").is_empty());
}

#[tokio::test]
async fn regression_video_generation_names_what_it_does_not_find_in_its_pages_words() {
    let relay = RelayServer::start(settings()).await.unwrap();
    for (path, code) in [
        ("/api/v1/generations/nowhere", "GENERATION_NOT_FOUND"),
        ("/api/v1/compositions/nowhere", "COMPOSITION_NOT_FOUND"),
    ] {
        let answer = relay.send(Request::get(path)).await.unwrap();
        assert_eq!(answer.status.as_u16(), 404);
        assert_eq!(answer.error_code(), code);
    }
}

#[tokio::test]
async fn a_health_path_says_how_the_relay_is_to_anybody_in_the_dialects_words() {
    let key = "a secret that is long enough for HS256 to be content";
    let settings = settings().set("auth.mode", "jwt").set("auth.key", key);
    let relay = RelayServer::start(settings).await.unwrap();
    for base in ["/api", "", "/api/v1"] {
        let path = format!("{base}/health");
        let answer = relay.send(Request::get(path.clone())).await.unwrap();
        assert_eq!(answer.status.as_u16(), 200, "{path}");
        assert_eq!(answer.json()["status"], "healthy");
        let asked = Request::get(format!("{path}/detailed")).header("x-request-id", "req-1");
        let detailed = relay.send(asked).await.unwrap();
        assert_eq!(detailed.json()["checks"]["bus"], "ok");
        assert_eq!(detailed.json()["request_id"], "req-1");
        assert_eq!(detailed.header("x-request-id"), "req-1");
    }
    let told = Request::post("/api/health", &json!({}));
    let told = relay.send(told).await.unwrap();
    assert_eq!(told.status.as_u16(), 405);
    let foreign = Request::get("/health").header("origin", "https://evil.example");
    assert_eq!(relay.send(foreign).await.unwrap().status.as_u16(), 403);
}

#[tokio::test]
async fn a_health_path_answers_503_until_the_bus_was_there() {
    let settings = settings()
        .set("bus.mode", "nats")
        // Nobody listens on the discard port.
        .set("nats.url", "nats://127.0.0.1:9");
    let relay = RelayServer::start(settings.only_live()).await.unwrap();
    let answer = relay.send(Request::get("/health")).await.unwrap();
    assert_eq!(answer.status.as_u16(), 503);
    assert_eq!(answer.json()["status"], "unhealthy");
}

#[tokio::test]
async fn endings_of_a_user_are_told_as_long_as_the_dialect_wants_and_to_who_asks_for_the_job() {
    let directory = tempfile::tempdir().unwrap();
    for (name, within) in [("none", "0s"), ("all", "1h")] {
        let file = format!(
            "description = \"x\"\n[delivery]\nendings_within = \"{within}\"\n\
             [[routes]]\npath = \"/{name}/{{user}}\"\ntransport = \"websocket\"\ntopics = [\"user:{{user}}\"]\n\
             [messages]\ncommand = '{{subscribe: .}}'\n\
             [frames]\nstate = '[.job.job_id, .job.status]'\nsubscribed = '[.topic, .jobs]'\n"
        );
        std::fs::write(directory.path().join(format!("{name}.toml")), file).unwrap();
    }
    let settings = settings()
        .set("dialects.enabled", "none,all")
        .set("dialects.directory", directory.path().display());
    let relay = RelayServer::start(settings).await.unwrap();
    for (job, status) in [("old", "completed"), ("now", "running"), ("bad", "failed")] {
        let state = json!({"status": status});
        relay.publish(job, "alice", &state).await.unwrap();
    }
    let text = |text: &str| Heard::Text(text.to_owned());
    let mut all = Socket::open(&relay, "/all/alice").await;
    for told in [
        r#"["user:alice",3]"#,
        r#"["old","completed"]"#,
        r#"["now","running"]"#,
        r#"["bad","failed"]"#,
    ] {
        assert_eq!(all.next().await, text(told));
    }
    let mut socket = Socket::open(&relay, "/none/alice").await;
    assert_eq!(socket.next().await, text(r#"["user:alice",1]"#));
    assert_eq!(socket.next().await, text(r#"["now","running"]"#));
    socket.send("\"job:old\"").await;
    assert_eq!(socket.next().await, text(r#"["job:old",1]"#));
    assert_eq!(socket.next().await, text(r#"["old","completed"]"#));
    relay
        .publish("now", "alice", &json!({"status": "completed"}))
        .await
        .unwrap();
    assert_eq!(socket.next().await, text(r#"["now","completed"]"#));
    socket.quiet().await;
}

#[tokio::test]
async fn a_foreign_page_is_refused_in_the_dialects_own_shape() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let foreign = Request::get("/api/ws").header("origin", "https://evil.example");
    let refused = relay.send(foreign).await.unwrap();
    assert_eq!(refused.status.as_u16(), 403);
    assert_eq!(refused.text(), r#"{"error":"Origin not allowed"}"#);
}

#[tokio::test]
async fn a_connection_ends_some_time_after_its_job_and_is_counted_till_then() {
    let file = "description = \"x\"\n[close]\nafter_ending = \"200ms\"\n[close.codes]\nended = 4000\n\
                [[routes]]\npath = \"/x/{job}\"\ntransport = \"websocket\"\ntopics = [\"job:{job}\"]\n\
                [frames]\nstate = '.job.status'\n";
    let (relay, _directory) = speaking(file).await;
    let mut socket = Socket::open(&relay, "/x/j1").await;
    let open = "relay_dialect_connections{dialect=\"mine\"}";
    until(&relay, open, 1.0).await;
    relay
        .publish("j1", "a", &json!({"status": "completed"}))
        .await
        .unwrap();
    assert_eq!(socket.next().await, Heard::Text("\"completed\"".to_owned()));
    assert_eq!(socket.next().await, Heard::Closed(Some(4000)));
    until(&relay, open, 0.0).await;
}

#[tokio::test]
async fn a_mapping_that_fails_on_one_job_is_counted_logged_once_and_hurts_nobody_else() {
    let file = "description = \"x\"\n[[routes]]\npath = \"/x/{job}\"\ntransport = \"websocket\"\ntopics = [\"job:{job}\"]\n\
                [frames]\nstate = '.job.meta.a.b'\n";
    let (relay, _directory) = speaking(file).await;
    let mut bad = Socket::open(&relay, "/x/bad").await;
    let mut good = Socket::open(&relay, "/x/good").await;
    for progress in [1, 2] {
        let state = json!({"status": "running", "progress": progress, "meta": {"a": "text"}});
        relay.publish("bad", "a", &state).await.unwrap();
        bad.quiet().await;
    }
    let state = json!({"status": "running", "meta": {"a": {"b": 7}}});
    relay.publish("good", "a", &state).await.unwrap();
    assert_eq!(good.next().await, Heard::Text("7".to_owned()));
    let failures =
        "relay_dialect_failures_total{dialect=\"mine\",mapping=\"frames.state\",reason=\"error\"}";
    // The second one of the bad job may have been held back by its pace.
    until(&relay, failures, 2.0).await;
    assert_eq!(relay.logs().matches("a mapping failed").count(), 1);
}

#[tokio::test]
async fn metrics_are_counted_over_all_jobs_of_the_user_and_told_once_a_second() {
    let relay = RelayServer::start(settings()).await.unwrap();
    for n in 0..5 {
        let state = json!({"status": "queued"});
        relay
            .publish(&format!("e{n}"), "alice", &state)
            .await
            .unwrap();
    }
    relay
        .publish("other", "bob", &json!({"status": "queued"}))
        .await
        .unwrap();
    let mut socket = Socket::open(&relay, "/production").await;
    // Of the jobs that are nobody's.
    assert_eq!(metrics(&mut socket).await, [0, 0, 0, 0]);
    socket
        .send(r#"{"type":"subscribe","data":{"channel":"user:alice"}}"#)
        .await;
    assert_eq!(metrics(&mut socket).await, [5, 5, 0, 0]);
    for (n, status) in ["completed", "failed", "cancelled", "running"]
        .iter()
        .enumerate()
    {
        let state = json!({"status": status});
        relay
            .publish(&format!("e{n}"), "alice", &state)
            .await
            .unwrap();
    }
    // However the four fell about the second's end, two tellings have them all.
    let mut last = metrics(&mut socket).await;
    if last != [5, 2, 1, 2] {
        last = metrics(&mut socket).await;
    }
    assert_eq!(last, [5, 2, 1, 2]);
}

/// The next `metrics_update`: total, pending, delivered, failed.
async fn metrics(socket: &mut Socket) -> [u64; 4] {
    loop {
        let Heard::Text(text) = socket.next().await else {
            panic!("closed");
        };
        let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
        if frame["type"] == "metrics_update" {
            let names = ["total", "pending", "delivered", "failed"];
            return names.map(|name| frame["data"][format!("{name}_events")].as_u64().unwrap());
        }
    }
}

#[tokio::test]
async fn a_group_has_its_childrens_weighted_progress_and_worst_status() {
    let file = "description = \"x\"\n[[routes]]\npath = \"/x/{group}\"\ntransport = \"websocket\"\n\
                topics = [\"group:{group}\"]\n\
                [frames]\naggregate = '{total, progress, status, failed: .counts.failed}'\n";
    let (relay, _directory) = speaking(file).await;
    let child = |status: &str, progress: u32, weight: u32| json!({"status": status, "progress": progress, "weight": weight, "parent_id": "batch"});
    relay
        .publish("a", "alice", &child("completed", 100, 3))
        .await
        .unwrap();
    relay
        .publish("b", "alice", &child("running", 20, 1))
        .await
        .unwrap();
    let mut socket = Socket::open(&relay, "/x/batch").await;
    let expected = r#"{"total":2,"progress":80.0,"status":"running","failed":0}"#;
    assert_eq!(socket.next().await, Heard::Text(expected.to_owned()));
    relay
        .publish("b", "alice", &child("failed", 60, 1))
        .await
        .unwrap();
    let expected = r#"{"total":2,"progress":90.0,"status":"failed","failed":1}"#;
    assert_eq!(socket.next().await, Heard::Text(expected.to_owned()));
}

#[tokio::test]
async fn a_connection_whose_pongs_stay_away_is_called_bad_in_the_dialects_words() {
    let file = "description = \"x\"\n[heartbeat]\nping_interval = \"50ms\"\ndead_after = \"30s\"\n\
                [[routes]]\npath = \"/x/{job}\"\ntransport = \"websocket\"\ntopics = [\"job:{job}\"]\n\
                [frames]\nquality = '[.before, .verdict, .job_id]'\n";
    let (relay, _directory) = speaking(file).await;
    let mut socket = Socket::open(&relay, "/x/j1").await;
    // A client that does not read does not answer pings either.
    until(&relay, "relay_connection_quality{verdict=\"bad\"}", 1.0).await;
    let text = |text: &str| Heard::Text(text.to_owned());
    assert_eq!(socket.next().await, text(r#"["good","degraded","j1"]"#));
    assert_eq!(socket.next().await, text(r#"["degraded","bad","j1"]"#));
    // Now it reads, and so answers: it is better soon.
    assert_eq!(socket.next().await, text(r#"["bad","good","j1"]"#));
}

#[tokio::test]
async fn check_frames_are_sent_and_their_answers_measured() {
    let file = "description = \"x\"\n[heartbeat]\ncheck_interval = \"100ms\"\n\
                [[routes]]\npath = \"/x\"\ntransport = \"websocket\"\n\
                [messages]\ncommand = '{round_trip: true}'\n\
                [frames]\ncheck = '\"still there?\"'\n";
    let (relay, _directory) = speaking(file).await;
    let mut socket = Socket::open(&relay, "/x").await;
    assert_eq!(
        socket.next().await,
        Heard::Text("\"still there?\"".to_owned())
    );
    socket.send("\"yes\"").await;
    until(
        &relay,
        "relay_connection_checks_total{result=\"answered\"}",
        1.0,
    )
    .await;
    let metrics = relay.metrics().await.unwrap();
    assert!(metrics.get("relay_round_trip_seconds_count") >= Some(1.0));
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_that_speaks_is_not() {
    let file = "description = \"x\"\n[heartbeat]\nidle_after = \"400ms\"\n\
                [[routes]]\npath = \"/x\"\ntransport = \"websocket\"\n\
                [messages]\ncommand = '{reply: .}'\n";
    let (relay, _directory) = speaking(file).await;
    let opened = std::time::SystemTime::now();
    let mut socket = Socket::open(&relay, "/x").await;
    for n in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        socket.send(&n.to_string()).await;
        assert_eq!(socket.next().await, Heard::Text(n.to_string()));
    }
    assert_eq!(socket.next().await, Heard::Closed(Some(1001)));
    assert!(opened.elapsed().unwrap() > Duration::from_millis(1300));
}

#[tokio::test]
async fn a_start_without_the_key_says_that_no_dialect_is_served_and_what_to_set() {
    let plain = || Settings::new(env!("CARGO_BIN_EXE_relay"));
    let relay = RelayServer::start(plain()).await.unwrap();
    let path = "/api/v1/conversions/c1";
    let answer = relay.send(Request::get(path)).await.unwrap();
    assert_eq!(answer.error_code(), "not_found");
    let notice = "no dialects are served, because dialects.enabled is not set; until now the built-in ones were: \
                  set it to [\"event-dashboard\", \"file-conversion\", \"media-conversion\", \"upload-notes\", \
                  \"video-generation\"] for those, or to [] for none";
    assert!(relay.logs().contains(notice), "{}", relay.logs());
    let none = plain().set("dialects.enabled", "");
    let relay = RelayServer::start(none).await.unwrap();
    assert!(!relay.logs().contains("no dialects"), "{}", relay.logs());
}

#[tokio::test]
async fn check_says_file_and_line_of_a_broken_mapping() {
    let directory = tempfile::tempdir().unwrap();
    let file = "description = \"x\"\n[frames]\nstate = '''\n.job | {a: }\n'''\n";
    std::fs::write(directory.path().join("mine.toml"), file).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_relay"))
        .arg("check")
        .env("RELAY__DIALECTS__ENABLED", "mine")
        .env("RELAY__DIALECTS__DIRECTORY", directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("mine.toml:4:"), "{said}");
    assert!(said.contains("frames.state: jq: expected"), "{said}");
}

#[tokio::test]
async fn counts_are_the_streams_for_a_relay_that_has_just_begun() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let settings = || {
        settings()
            .set("bus.mode", "jetstream")
            .set("nats.url", nats.url())
    };
    let first = RelayServer::start(settings()).await.unwrap();
    for (job, status) in [("e1", "running"), ("e1", "completed"), ("e2", "failed")] {
        let state = json!({"status": status});
        first.publish(job, "-", &state).await.unwrap();
    }
    // Nobody watches anything on the second one, and it has heard of no job.
    let second = RelayServer::start(settings()).await.unwrap();
    let expected = r#"{"total":2,"pending":0,"delivered":1,"failed":1,"success_rate":50.0}"#;
    for relay in [&second, &first, &second] {
        let answer = relay.send(Request::get("/metrics/summary")).await.unwrap();
        assert_eq!(answer.text(), expected);
        assert_eq!(answer.header("relay-stale"), "");
    }
    let state = json!({"status": "running", "attempt": 2});
    first.publish("e2", "-", &state).await.unwrap();
    let counted = async {
        loop {
            let answer = second.send(Request::get("/metrics/summary")).await.unwrap();
            if answer
                .text()
                .contains(r#""pending":1,"delivered":1,"failed":0"#)
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(10), counted).await;
    counted.expect("a survey is kept up by what comes after it");
}
