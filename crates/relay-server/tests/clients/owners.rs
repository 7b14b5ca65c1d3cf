//! Two owners with jobs of one id, their workers against each other: over a real NATS, on two nodes, with a restart
//! between; and over HTTP alone.

use relay_testkit::client::WebSocketClient;
use relay_testkit::http::{Answer, Method, Request};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::RelayServer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::SOON;
use crate::identity::{of, token, with_tokens};

/// What a worker publishes who knows how to write headers.
async fn publish(nats: &NatsServer, subject: &str, headers: &[(&str, &str)], payload: &str) {
    let url = nats.url();
    let socket = TcpStream::connect(url.trim_start_matches("nats://"))
        .await
        .unwrap();
    let mut socket = BufReader::new(socket);
    let mut head = "NATS/1.0\r\n".to_owned();
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let (bytes, all) = (head.len(), head.len() + payload.len());
    let text = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {subject} {bytes} {all}\r\n{head}{payload}\r\nPING\r\n"
    );
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut line = String::new();
    while !line.starts_with("PONG") {
        line.clear();
        assert_ne!(socket.read_line(&mut line).await.unwrap(), 0);
        assert!(!line.starts_with("-ERR"), "{line}");
    }
}

async fn get(relay: &RelayServer, path: &str, user: &str) -> Answer {
    let bearer = token(&of(user));
    relay
        .send(Request::get(path).bearer(Some(&bearer)))
        .await
        .unwrap()
}

/// The states that a user is told of a job, until one has this status.
async fn until(client: &mut WebSocketClient, status: &str) -> Vec<Value> {
    let mut told = Vec::new();
    loop {
        let frame = client
            .until(SOON, status, |frame| frame.kind() == "state")
            .await
            .unwrap();
        told.push(frame.0["job"].clone());
        if frame.0["job"]["status"] == status {
            return told;
        }
    }
}

async fn watch(relay: &RelayServer, topic: &str, user: &str) -> WebSocketClient {
    let bearer = token(&of(user));
    let mut client = WebSocketClient::connect(&relay.address(), Some(&bearer))
        .await
        .unwrap();
    client.subscribe(topic, None).await.unwrap();
    client
        .until(SOON, "subscribed", |it| it.kind() == "subscribed")
        .await
        .unwrap();
    client
}

async fn owner_of(relay: &RelayServer, path: &str, user: &str) -> (u16, String) {
    let answer = get(relay, path, user).await;
    let owner = answer.json()["owner"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status.as_u16(), owner)
}

/// An ending rolls up what its owner said before, and leaves another's message as the first that is stored.
#[tokio::test]
async fn another_tenants_worker_neither_takes_a_job_over_nor_writes_into_it() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let start = async || {
        RelayServer::start(with_tokens().jetstream(&nats.url()))
            .await
            .unwrap()
    };
    let here = start().await;
    let running = r#"{"status":"running"}"#;
    publish(&nats, "progress.alice.Z.state", &[], running).await;
    publish(&nats, "progress.mallory.Z.state", &[], running).await;
    let mut open = watch(&here, "job:Z", "alice").await;
    until(&mut open, "running").await;
    let ending = r#"{"status":"completed","result_url":"https://good.example/"}"#;
    let rollup = [("Nats-Rollup", "sub")];
    publish(&nats, "progress.alice.Z.state", &rollup, ending).await;
    until(&mut open, "completed").await;
    // A node that was not there reads what is left.
    let there = start().await;
    let evil = r#"{"status":"failed","attempt":2,"result_url":"https://evil.example/"}"#;
    publish(&nats, "progress.mallory.Z.state", &[], evil).await;
    for marker in ["MaxAge", "Purge"] {
        let headers = [("Nats-Marker-Reason", marker), ("Nats-Rollup", "sub")];
        publish(&nats, "progress.mallory.Z.state", &headers, "").await;
    }
    publish(
        &nats,
        "progress.alice.Z.state",
        &rollup,
        r#"{"status":"cancelled","attempt":3}"#,
    )
    .await;
    let told = until(&mut open, "cancelled").await;
    assert!(told.iter().all(|job| job["owner"] == "alice"), "{told:?}");
    for relay in [&here, &there, &start().await] {
        assert_eq!(
            owner_of(relay, "/v1/jobs/Z", "alice").await,
            (200, "alice".to_owned())
        );
        let foreign = get(relay, "/v1/jobs/Z?owner=alice", "mallory").await;
        assert_eq!(foreign.status.as_u16(), 403);
        let mut fresh = watch(relay, "job:alice/Z", "alice").await;
        until(&mut fresh, "cancelled").await;
    }
}

/// Ids that can be guessed are taken by somebody else first.
#[tokio::test]
async fn who_comes_first_with_an_id_keeps_it_from_nobody() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let put = async |owner: &str, state: Value| {
        let bearer = token(&of(owner).publish(&[owner]));
        let request = Request::post(format!("/v1/jobs/e1?owner={owner}"), &state);
        let answer = relay.send(request.bearer(Some(&bearer))).await.unwrap();
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    };
    let mut waits = watch(&relay, "job:e1", "alice").await;
    put(
        "mallory",
        json!({"status": "running", "message": "MALLORY"}),
    )
    .await;
    let mut mallorys = watch(&relay, "job:e1", "mallory").await;
    until(&mut mallorys, "running").await;
    put(
        "alice",
        json!({"status": "running", "message": "alice private"}),
    )
    .await;
    let told = until(&mut waits, "running").await;
    assert_eq!(told[0]["message"], "alice private", "{told:?}");
    put("mallory", json!({"status": "cancelled"})).await;
    put("alice", json!({"status": "completed"})).await;
    let told = until(&mut mallorys, "cancelled").await;
    assert!(told.iter().all(|job| job["owner"] == "mallory"), "{told:?}");
    let told = until(&mut waits, "completed").await;
    assert!(told.iter().all(|job| job["owner"] == "alice"), "{told:?}");
    for user in ["alice", "mallory"] {
        assert_eq!(
            owner_of(&relay, "/v1/jobs/e1", user).await,
            (200, user.to_owned())
        );
    }
}

#[tokio::test]
async fn whoever_may_see_several_is_asked_whose_and_told_which_by_its_name() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let worker = token(&of("worker").publish(&["alice", "bob"]));
    for owner in ["alice", "bob"] {
        let request = Request::post(
            format!("/v1/jobs/c?owner={owner}"),
            &json!({"status": "running", "parent_id": "g"}),
        );
        relay.send(request.bearer(Some(&worker))).await.unwrap();
    }
    let bearer = token(&of("carol").topics(&["job:c", "group:g"]));
    let ask = async |path: &str| {
        let answer = relay
            .send(Request::get(path).bearer(Some(&bearer)))
            .await
            .unwrap();
        (answer.status.as_u16(), answer.json())
    };
    for path in [
        "/v1/jobs/c",
        "/v1/poll?topic=job:c&wait=0",
        "/v1/poll?topic=group:g&wait=0",
    ] {
        let (status, said) = ask(path).await;
        assert_eq!(
            (status, said["error"]["code"].as_str()),
            (409, Some("ambiguous_owner")),
            "{path}"
        );
    }
    let (status, job) = ask("/v1/jobs/c?owner=bob").await;
    assert_eq!((status, job["owner"].as_str()), (200, Some("bob")));
    for topic in ["job:bob/c", "group:bob/g"] {
        let (_, told) = ask(&format!("/v1/poll?topic={topic}&wait=0")).await;
        assert_eq!(told["frames"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(told["frames"][0]["topic"], topic);
        assert_eq!(told["frames"][0]["job"]["owner"], "bob");
    }
    let mut client = WebSocketClient::connect(&relay.address(), Some(&bearer))
        .await
        .unwrap();
    client.subscribe("job:c", None).await.unwrap();
    let error = client
        .until(SOON, "the error", |it| it.kind() == "error")
        .await
        .unwrap();
    assert_eq!(error.code(), "ambiguous_owner", "{error}");
    let patch = Method::from_bytes(b"PATCH").unwrap();
    let patch = Request::new(patch, "/v1/jobs/c").body("{\"progress\":5}".to_owned());
    let patched = relay.send(patch.bearer(Some(&worker))).await.unwrap();
    assert_eq!(patched.error_code(), "ambiguous_owner");
}

/// A publisher learns nothing of jobs for whose owners it may not publish, not even that they are there.
#[tokio::test]
async fn publishing_without_an_owner_does_not_tell_whose_a_job_is() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let bobs = token(&of("worker").publish(&["bob"]));
    let request = Request::post("/v1/jobs/bj?owner=bob", &json!({"status": "running"}));
    relay.send(request.bearer(Some(&bobs))).await.unwrap();
    let mallory = token(&of("mallory").publish(&["mallory"]));
    let mut answers = Vec::new();
    for job in ["bj", "none"] {
        let request = Request::post(format!("/v1/jobs/{job}"), &json!({"status": "running"}));
        let answer = relay.send(request.bearer(Some(&mallory))).await.unwrap();
        assert!(!answer.text().contains("bob"), "{}", answer.text());
        answers.push((answer.status.as_u16(), answer.text().replace(job, "JOB")));
    }
    assert_eq!(answers[0], answers[1]);
}

/// A page that renews its token for weeks does not keep what was granted in the first hour.
#[tokio::test]
async fn a_renewed_token_takes_away_what_it_does_not_grant() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let worker = token(&of("worker").publish(&["alice", "bob"]));
    let state = json!({"status": "running"});
    let put = async |job: &str, owner: &str| {
        let request = Request::post(format!("/v1/jobs/{job}?owner={owner}"), &state);
        relay.send(request.bearer(Some(&worker))).await.unwrap();
    };
    put("bj", "bob").await;
    put("aj", "alice").await;
    let first = token(&of("alice").topics(&["user:bob", "job:bob/bj"]));
    let mut client = WebSocketClient::connect(&relay.address(), Some(&first))
        .await
        .unwrap();
    for topic in ["user:bob", "job:bj", "job:aj", "user:alice"] {
        client.subscribe(topic, None).await.unwrap();
        client
            .until(SOON, topic, |it| it.kind() == "subscribed")
            .await
            .unwrap();
    }
    let less = token(&of("alice"));
    client
        .send(&json!({"type": "auth", "token": less}))
        .await
        .unwrap();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let error = client
            .until(SOON, "forbidden", |it| it.kind() == "error")
            .await
            .unwrap();
        assert_eq!(error.code(), "forbidden", "{error}");
        ended.push(error.0["topic"].as_str().unwrap().to_owned());
    }
    ended.sort_unstable();
    assert_eq!(ended, ["job:bj", "user:bob"]);
    put("bj2", "bob").await;
    put("aj2", "alice").await;
    let next = client
        .until(SOON, "her own", |it| {
            it.kind() == "state" && it.0["job"]["job_id"] != "aj"
        })
        .await;
    assert_eq!(next.unwrap().0["job"]["job_id"], "aj2");
}
