//! Publishing over HTTP: what a key promises, and what is final and what passes when the bus rejects an update.

use relay_testkit::http::{Answer, Method, Request};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{RelayServer, Settings};
use serde_json::{Value, json};

use crate::settings;

pub(crate) async fn send(
    relay: &RelayServer,
    method: &str,
    path: &str,
    body: &str,
    key: &str,
) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = Request::new(method, path)
        .header("idempotency-key", key)
        .body(body.to_owned());
    relay.send(request).await.unwrap()
}

/// Status, and the code of the error if it is one.
pub(crate) fn verdict(answer: &Answer) -> (u16, String) {
    let code = &answer.json()["error"]["code"];
    let code = code.as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), code)
}

/// How often a milestone was told: all of a job's milestones come to a client without a cursor from zero.
async fn told(relay: &RelayServer, topic: &str, since: &str) -> Vec<String> {
    let poll = format!("/v1/poll?topic={topic}&cursor={since}&wait=0");
    let answer = relay.send(Request::get(poll)).await.unwrap().json();
    let frames = answer["frames"].as_array().unwrap().clone();
    let name = |frame: &Value| frame["name"].as_str().map(str::to_owned);
    frames.iter().filter_map(name).collect()
}

pub(crate) async fn begin(relay: &RelayServer, job: &str) -> String {
    let state = json!({"status": "running", "progress": 1});
    relay.publish(job, "o", &state).await.unwrap();
    let poll = format!("/v1/poll?topic=job:{job}&wait=0");
    let answer = relay.send(Request::get(poll)).await.unwrap().json();
    answer["cursor"].as_str().unwrap().to_owned()
}

/// What a key promises, in every mode.
async fn a_key_keeps_its_promise(settings: Settings) {
    let relay = RelayServer::start(settings).await.unwrap();
    let since = begin(&relay, "j").await;
    let batch = "{\"job_id\":\"j\",\"milestone\":\"third\",\"data\":{}}\n\
                 {\"job_id\":\"j\",\"milestone\":\"third\",\"data\":{}}\n\
                 {\"job_id\":\"j\"}\n";
    for _ in 0..2 {
        let path = "/v1/jobs/j/milestones/first";
        let milestone = send(&relay, "POST", path, "{\"n\":1}", "1").await;
        assert_eq!(verdict(&milestone), (202, String::new()));
        let state = r#"{"status":"running","progress":20}"#;
        let state = send(&relay, "POST", "/v1/jobs/j", state, "1").await;
        assert_eq!(verdict(&state), (202, String::new()));
        let patch = send(&relay, "PATCH", "/v1/jobs/j", "{\"progress\":30}", "1").await;
        assert_eq!(verdict(&patch), (202, String::new()));
        let lines = send(&relay, "POST", "/v1/publish", batch, "1").await;
        assert_eq!(lines.status.as_u16(), 202);
        assert_eq!(lines.json()["accepted"], 2);
        assert_eq!(lines.json()["refused"][0]["line"], 3);
    }
    let names = told(&relay, "job:j", &since).await;
    assert_eq!(names, ["first", "third", "third"]);

    for (method, path, body) in [
        ("POST", "/v1/jobs/j/milestones/first", "{\"n\":2}"),
        ("POST", "/v1/jobs/j", r#"{"status":"completed"}"#),
        ("PATCH", "/v1/jobs/j", "{\"progress\":40}"),
        (
            "POST",
            "/v1/publish",
            "{\"job_id\":\"k\",\"status\":\"running\"}",
        ),
    ] {
        let other = send(&relay, method, path, body, "1").await;
        assert_eq!(verdict(&other), (422, "key_reused".to_owned()), "{path}");
    }
    let unknown = relay.send(Request::get("/v1/jobs/k")).await.unwrap();
    assert_eq!(unknown.status.as_u16(), 404);
    // Another job, another owner: another key.
    let ending = r#"{"status":"completed"}"#;
    let other = send(&relay, "POST", "/v1/jobs/b?owner=bob", ending, "1").await;
    assert_eq!(verdict(&other), (202, String::new()));
    let told = relay.send(Request::get("/v1/jobs/b")).await.unwrap();
    assert_eq!(told.json()["status"], "completed");
}

#[tokio::test]
async fn a_key_keeps_its_promise_without_a_bus() {
    a_key_keeps_its_promise(settings()).await;
}

#[tokio::test]
async fn a_key_keeps_its_promise_over_core_nats() {
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let settings = settings()
        .set("bus.mode", "nats")
        .set("nats.url", nats.url());
    a_key_keeps_its_promise(settings).await;
}

#[tokio::test]
async fn a_key_keeps_its_promise_over_jetstream() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    a_key_keeps_its_promise(settings().jetstream(&nats.url())).await;
}

/// The second attempt comes to another node, or to one that was restarted.
#[tokio::test]
async fn over_jetstream_a_key_is_good_on_every_node() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut first = RelayServer::start(settings().jetstream(&nats.url()))
        .await
        .unwrap();
    let second = RelayServer::start(settings().jetstream(&nats.url()))
        .await
        .unwrap();
    let since = begin(&first, "j").await;
    begin(&second, "j").await;
    let batch = "{\"job_id\":\"j\",\"milestone\":\"third\",\"data\":{}}\n";
    let publish = async |relay: &RelayServer| {
        let path = "/v1/jobs/j/milestones/first";
        let milestone = send(relay, "POST", path, "{\"n\":1}", "1").await;
        let patch = send(relay, "PATCH", "/v1/jobs/j", "{\"progress\":30}", "1").await;
        let lines = send(relay, "POST", "/v1/publish", batch, "1").await;
        [milestone, patch, lines].map(|answer| answer.json()["cursor"].clone())
    };
    let once = publish(&first).await;
    assert_eq!(publish(&second).await, once);
    first.restart().await.unwrap();
    assert_eq!(publish(&first).await, once);
    assert_eq!(told(&first, "job:j", &since).await, ["first", "third"]);
    let path = "/v1/jobs/j/milestones/first";
    let other = send(&second, "POST", path, "{\"n\":2}", "1").await;
    assert_eq!(verdict(&other), (422, "key_reused".to_owned()));
}

#[tokio::test]
async fn a_key_that_cannot_be_one_is_rejected_and_not_ignored() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let state = r#"{"status":"running"}"#;
    for path in ["/v1/jobs/j", "/v1/publish"] {
        for key in ["", "\u{e9}", "a\tb", &"x".repeat(256)] {
            let answer = send(&relay, "POST", path, state, key).await;
            let bad = (400, "bad_idempotency_key".to_owned());
            assert_eq!(verdict(&answer), bad, "{key:?}");
        }
    }
    let twice = Request::new(Method::POST, "/v1/jobs/j")
        .header("idempotency-key", "1")
        .header("idempotency-key", "2")
        .body(state.to_owned());
    assert_eq!(relay.send(twice).await.unwrap().status.as_u16(), 400);
    let longest = send(&relay, "POST", "/v1/jobs/j", state, &"x".repeat(255)).await;
    assert_eq!(longest.status.as_u16(), 202);
    let missing = relay.send(Request::get("/v1/jobs/k")).await.unwrap();
    assert_eq!(missing.status.as_u16(), 404);
}

/// A relay whose NATS rejects some updates, and what it answers to one that is rejected.
async fn rejected(nats: &NatsServer, job: &str, body: &str) -> (RelayServer, Answer) {
    let relay = RelayServer::start(settings().jetstream(&nats.url()))
        .await
        .unwrap();
    let path = format!("/v1/jobs/{job}");
    let answer = relay
        .send(Request::new(Method::POST, path).body(body.to_owned()))
        .await
        .unwrap();
    assert_eq!(
        answer.header("retry-after"),
        "",
        "asking again does not help"
    );
    let logs = relay.logs();
    assert!(logs.contains("NATS rejected an update"), "{logs}");
    (relay, answer)
}

#[tokio::test]
async fn what_nats_finds_too_large_is_a_413() {
    let large = json!({"status": "running", "message": "x".repeat(30_000)}).to_string();
    let small_server = Options::jetstream().config("max_payload: 16384");
    let nats = NatsServer::start(small_server).await.unwrap();
    let (_relay, answer) = rejected(&nats, "j", &large).await;
    assert_eq!(verdict(&answer), (413, "too_large".to_owned()));
    assert!(
        answer.text().contains("max_payload, 16384 bytes"),
        "{}",
        answer.text()
    );

    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    nats.create_stream(|stream| stream["max_msg_size"] = json!(20_000))
        .await
        .unwrap();
    let (_relay, answer) = rejected(&nats, "j", &large).await;
    assert_eq!(verdict(&answer), (413, "too_large".to_owned()));
    let text = answer.text();
    assert!(
        text.contains("message size exceeds maximum allowed"),
        "{text}"
    );
}

#[tokio::test]
async fn what_a_full_stream_rejects_is_a_409_in_its_own_words() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let full = |stream: &mut Value| {
        stream["discard"] = json!("new");
        stream["discard_new_per_subject"] = json!(true);
        stream["max_msgs_per_subject"] = json!(1);
    };
    nats.create_stream(full).await.unwrap();
    let state = r#"{"status":"running"}"#;
    nats.ask("progress.-.j.state", state).await.unwrap();
    let (_relay, answer) = rejected(&nats, "j", r#"{"status":"running","progress":2}"#).await;
    assert_eq!(verdict(&answer), (409, "stream_full".to_owned()));
    let text = answer.text();
    assert!(
        text.contains("maximum messages per subject exceeded"),
        "{text}"
    );
}
