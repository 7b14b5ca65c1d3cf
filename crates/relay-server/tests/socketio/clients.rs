//! `socket.io-client` 4.7 and 4.8 in Node, over WebSocket, over polling, and from one to the other, as the two
//! Socket.IO front ends set it up.

use std::process::Command;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::process::Process;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::token::Claims;
use relay_testkit::{tools, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{SOON, settings};

const KEY: &str = "a secret that is long enough for HS256 to be content";
const WAYS: [(&str, &str); 6] = [
    ("4.7", "websocket"),
    ("4.7", "polling"),
    ("4.7", "upgrade"),
    ("4.8", "websocket"),
    ("4.8", "polling"),
    ("4.8", "upgrade"),
];

/// A Node process with one client.
struct Client {
    process: Process,
    way: String,
    _directory: TempDir,
}

impl Client {
    fn start((version, transports): (&str, &str), url: &str, script: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(tools::node().unwrap());
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/socketio.mjs");
        command.args([program, version, transports, url, &script.to_string()]);
        Self {
            process: Process::spawn(&mut command, &directory.path().join("log")).unwrap(),
            way: format!("{version} over {transports}"),
            _directory: directory,
        }
    }

    /// What happened to it, one JSON line each.
    fn lines(&self) -> Vec<Value> {
        let logs = self.process.logs();
        let lines = logs.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn events(&self) -> Vec<Value> {
        let events = self
            .lines()
            .into_iter()
            .filter(|line| line["is"] == "event");
        events
            .map(|line| json!([line["name"], line["args"][0]]))
            .collect()
    }

    async fn has(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let found = wait::until_some(SOON, what, async || self.lines().into_iter().find(&is)).await;
        found.unwrap_or_else(|error| panic!("{}: {error}\n{}", self.way, self.process.logs()))
    }

    async fn hears(&self, event: &str, field: &str, value: impl Into<Value>) -> Value {
        let value = value.into();
        self.has(&format!("{event} with {field} {value}"), |line| {
            line["name"] == event && line["args"][0][field] == value
        })
        .await
    }

    async fn is(&self, what: &str) -> Value {
        self.has(what, |line| line["is"] == what).await
    }
}

fn with_tokens() -> Settings {
    settings().set("auth.mode", "jwt").set("auth.key", KEY)
}

fn token(claims: &Claims) -> String {
    let header = Header::new(Algorithm::HS256);
    let key = EncodingKey::from_secret(KEY.as_bytes());
    jsonwebtoken::encode(&header, &claims.json(), &key).unwrap()
}

/// Options of a client that has a cookie, as a browser would.
fn cookie(name: &str, token: &str) -> Value {
    json!({"extraHeaders": {"cookie": format!("{name}={token}")}})
}

async fn publish(relay: &RelayServer, job: &str, owner: &str, state: Value) {
    let token = token(&Claims::of("worker").publish(&["*"]));
    let request =
        relay_testkit::http::Request::post(format!("/v1/jobs/{job}?owner={owner}"), &state)
            .bearer(Some(&token));
    let answer = relay.send(request).await.unwrap();
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
}

async fn milestone(relay: &RelayServer, job: &str, owner: &str, name: &str, data: Value) {
    let token = token(&Claims::of("worker").publish(&["*"]));
    let path = format!("/v1/jobs/{job}/milestones/{name}?owner={owner}");
    let request = relay_testkit::http::Request::post(path, &data).bearer(Some(&token));
    let answer = relay.send(request).await.unwrap();
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
}

fn running(progress: u32) -> Value {
    json!({"status": "running", "progress": progress})
}

#[tokio::test]
async fn the_notes_page_follows_its_user_s_jobs_to_the_end() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "j1", "alice", running(10)).await;
    let url = format!("{}/jobs", relay.url());
    let alice = token(&Claims::of("alice"));
    let script = json!({
        "options": cookie("access_token", &alice),
        "emit": [["subscribe:jobs", {"jobId": "j1"}]],
    });
    let clients = WAYS[..5]
        .iter()
        .map(|way| Client::start(*way, &url, &script));
    let clients: Vec<_> = clients.collect();
    for client in &clients {
        client.hears("job:progress", "progress", 10).await;
        let ack = client.is("ack").await;
        assert_eq!(
            ack["answer"],
            json!({"success": true, "room": "job:j1", "message": "Subscribed to job updates"}),
            "{}",
            client.way
        );
    }
    publish(&relay, "j1", "alice", running(20)).await;
    milestone(
        &relay,
        "j1",
        "alice",
        "notes_chunk",
        json!({"chunk": "a", "accumulated": "a"}),
    )
    .await;
    milestone(
        &relay,
        "j1",
        "alice",
        "notes_chunk",
        json!({"chunk": "b", "accumulated": "ab"}),
    )
    .await;
    // Another of her jobs, which nobody asked for by name: her room has it.
    publish(&relay, "j2", "alice", running(5)).await;
    publish(&relay, "j3", "bob", running(5)).await;
    let result = json!({"noteId": "n1"});
    let ending = json!({"status": "completed", "progress": 100, "result": result});
    publish(&relay, "j1", "alice", ending).await;
    for client in &clients {
        let completed = client.hears("job:completed", "jobId", "j1").await;
        assert_eq!(completed["args"][0]["result"], result);
        client.hears("job:progress", "jobId", "j2").await;
        let events = client.events();
        let chunks = events.iter().filter(|event| event[0] == "job:notes:chunk");
        let chunks: Vec<_> = chunks.map(|event| event[1]["chunk"].clone()).collect();
        assert_eq!(chunks, ["a", "b"], "{}", client.way);
        let endings = events.iter().filter(|event| event[0] == "job:completed");
        assert_eq!(endings.count(), 1, "{}: told twice", client.way);
        assert!(!events.iter().any(|event| event[1]["jobId"] == "j3"));
    }
}

#[tokio::test]
async fn regression_the_notes_page_is_not_told_of_its_user_s_old_endings() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let old = json!({"status": "completed", "result": {"noteId": "old"}});
    publish(&relay, "old", "alice", old).await;
    publish(&relay, "bad", "alice", json!({"status": "failed"})).await;
    publish(&relay, "now", "alice", running(10)).await;
    let url = format!("{}/jobs", relay.url());
    let alice = token(&Claims::of("alice"));
    for subscribe in [json!({"userId": "alice"}), json!({"jobId": "old"})] {
        let script = json!({
            "options": cookie("access_token", &alice),
            "emit": [["subscribe:jobs", subscribe]],
        });
        let client = Client::start(WAYS[3], &url, &script);
        client.hears("job:progress", "jobId", "now").await;
        client.is("ack").await;
        // Who asks for a job by its name is told how it ended.
        if subscribe["jobId"] == "old" {
            client.hears("job:completed", "jobId", "old").await;
        }
        let ended = |event: &Value| event[1]["jobId"] == "old" || event[1]["jobId"] == "bad";
        let endings = client.events().iter().filter(|event| ended(event)).count();
        let wanted = usize::from(subscribe["jobId"] == "old");
        assert_eq!(endings, wanted, "{:?}", client.events());
    }
}

#[tokio::test]
async fn notes_that_grow_come_with_the_state_and_what_was_missed_of_them_too() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let with_notes = |notes: &str| json!({"status": "running", "progress": 10, "stage": "generating_notes", "notes": notes});
    publish(&relay, "j", "alice", with_notes("one")).await;
    let url = format!("{}/jobs", relay.url());
    let script = json!({"options": cookie("access_token", &token(&Claims::of("alice")))});
    let client = Client::start(WAYS[3], &url, &script);
    client.hears("job:notes:chunk", "accumulated", "one").await;
    client
        .hears("job:progress", "stage", "generating_notes")
        .await;
    publish(&relay, "j", "alice", with_notes("one two")).await;
    client
        .hears("job:notes:chunk", "accumulated", "one two")
        .await;
}

#[tokio::test]
async fn regression_a_mistake_of_the_video_page_is_not_taken_for_its_jobs_failure() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let script = json!({
        "options": {"query": {"generation_id": "gen_1"}},
        "emit": [["subscribe", {}]],
    });
    let client = Client::start(WAYS[3], &relay.url(), &script);
    let error = client.hears("error", "code", "BAD_MESSAGE").await;
    assert_eq!(error["args"][0]["recoverable"], true, "{error}");
}

#[tokio::test]
async fn somebody_else_s_user_id_and_job_are_refused_in_the_answer() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "bobs", "bob", running(10)).await;
    let url = format!("{}/jobs", relay.url());
    let alice = token(&Claims::of("alice"));
    let script = json!({
        "options": cookie("access_token", &alice),
        "emit": [
            ["subscribe:jobs", {"userId": "bob"}],
            ["subscribe:jobs", {"jobId": "bobs"}],
            ["subscribe:jobs", {}],
            ["subscribe:jobs", {"userId": "alice"}],
            ["unsubscribe:jobs", {"userId": "alice"}],
        ],
    });
    for way in [("4.7", "websocket"), ("4.8", "polling")] {
        let client = Client::start(way, &url, &script);
        client
            .has("the last answer", |line| line["of"] == "unsubscribe:jobs")
            .await;
        // The second waits for the job's owner to be looked up.
        wait::until(SOON, "all answers", || {
            client
                .lines()
                .iter()
                .filter(|line| line["is"] == "ack")
                .count()
                == 5
        })
        .await
        .unwrap();
        let acks = client
            .lines()
            .into_iter()
            .filter(|line| line["is"] == "ack");
        let acks: Vec<_> = acks.map(|line| line["answer"].clone()).collect();
        let forbidden = json!({"success": false, "message": "Forbidden"});
        assert_eq!(
            acks.iter().filter(|ack| **ack == forbidden).count(),
            2,
            "{acks:?}"
        );
        let failures = acks.iter().filter(|ack| ack["success"] == false);
        assert_eq!(failures.count(), 3, "{acks:?}");
        // The page is told of the job by its name, too: whose it is may show when there is nothing left to answer.
        for event in client.events() {
            assert_eq!(event[0], "job:error");
            assert_eq!(event[1]["jobId"], "bobs");
            assert_eq!(event[1]["error"], "Forbidden");
        }
    }
}

#[tokio::test]
async fn a_token_that_ran_out_and_none_at_all_are_refused_by_connect_error() {
    let relay = RelayServer::start(with_tokens().set("auth.leeway", "0s"))
        .await
        .unwrap();
    let url = format!("{}/jobs", relay.url());
    let expired = token(&Claims::of("alice").expired_since(Duration::from_secs(60)));
    for (options, code) in [
        (cookie("access_token", &expired), "token_expired"),
        (json!({"auth": {"token": expired}}), "token_expired"),
        (json!({}), "unauthenticated"),
    ] {
        for way in [("4.7", "upgrade"), ("4.8", "websocket"), ("4.8", "polling")] {
            let client = Client::start(way, &url, &json!({"options": options}));
            let error = client.is("connect_error").await;
            assert_eq!(error["message"], "Authentication failed", "{error}");
            assert_eq!(error["data"]["code"], code, "{error}");
            // The library gives up by itself: no loop.
            assert_eq!(error["active"], false, "{error}");
        }
    }
    let good = token(&Claims::of("alice"));
    let options = json!({"options": {"auth": {"token": good}}});
    Client::start(WAYS[3], &url, &options).is("connect").await;
}

#[tokio::test]
async fn a_token_that_runs_out_ends_the_connection_and_the_next_is_refused() {
    let relay = RelayServer::start(with_tokens().set("auth.leeway", "0s"))
        .await
        .unwrap();
    let url = format!("{}/jobs", relay.url());
    let short = token(&Claims::of("alice").expires_in(Duration::from_secs(4)));
    let script = json!({"options": cookie("access_token", &short)});
    let clients = [("4.8", "websocket"), ("4.7", "polling")];
    let clients = clients.map(|way| Client::start(way, &url, &script));
    for client in &clients {
        client.is("connect").await;
        let left = client.is("disconnect").await;
        assert_eq!(left["reason"], "transport close", "{}", client.way);
        let error = client.is("connect_error").await;
        assert_eq!(
            error["message"],
            "Authentication failed",
            "{:#?}",
            client.lines()
        );
    }
}

#[tokio::test]
async fn clients_come_back_by_themselves_after_a_drain() {
    let mut relay = RelayServer::start(settings()).await.unwrap();
    let url = format!("{}/jobs", relay.url());
    let script = json!({"emit": [["subscribe:jobs", {"jobId": "j"}]]});
    relay.publish("j", "o", &running(10)).await.unwrap();
    let clients = [WAYS[0], WAYS[1], WAYS[3], WAYS[4], WAYS[5]];
    let clients = clients.map(|way| Client::start(way, &url, &script));
    for client in &clients {
        client.hears("job:progress", "progress", 10).await;
    }
    relay.terminate(SOON).await.unwrap();
    relay.restart().await.unwrap();
    relay.publish("j", "o", &running(60)).await.unwrap();
    for client in &clients {
        let left = client.is("disconnect").await;
        // Any other reason, and the library would not try again.
        assert_eq!(left["reason"], "transport close", "{}", client.way);
        client.is("reconnect").await;
        client.hears("job:progress", "progress", 60).await;
    }
}

#[tokio::test]
async fn clients_come_back_by_themselves_after_a_crash() {
    let mut relay = RelayServer::start(settings()).await.unwrap();
    let url = format!("{}/jobs", relay.url());
    let script = json!({"emit": [["subscribe:jobs", {"jobId": "j"}]]});
    let clients = [WAYS[0], WAYS[4]].map(|way| Client::start(way, &url, &script));
    for client in &clients {
        client.is("ack").await;
    }
    relay.restart().await.unwrap();
    relay
        .publish(
            "j",
            "o",
            &json!({"status": "failed", "error": {"message": "boom"}}),
        )
        .await
        .unwrap();
    for client in &clients {
        client.hears("job:error", "error", "boom").await;
    }
}

#[tokio::test]
async fn what_happens_while_the_relay_is_away_is_told_once() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let settings = || with_tokens().jetstream(&nats.url());
    let mut relay = RelayServer::start(settings()).await.unwrap();
    let other = RelayServer::start(settings()).await.unwrap();
    let alice = token(&Claims::of("alice"));
    let options = json!({"extraHeaders": {"cookie": format!("access_token={alice}")},
                         "auth": {"token": alice}});
    let by_user = json!({"options": options, "emit": [["subscribe:jobs", {"userId": "alice"}]]});
    let by_name = json!({"options": options, "emit": [["subscribe:jobs", {"jobId": "j"}]]});
    let jobs = format!("{}/jobs", relay.url());
    let video = format!("{}/ws/generations/g", relay.url());
    let clients = [
        Client::start(("4.7", "websocket"), &jobs, &by_user),
        Client::start(("4.8", "upgrade"), &jobs, &by_name),
        Client::start(("4.7", "polling"), &video, &json!({"options": options})),
        Client::start(("4.8", "websocket"), &video, &json!({"options": options})),
    ];
    let [by_user, by_name, polling, socket] = &clients;
    for client in &clients[..2] {
        client.is("ack").await;
    }
    publish(&relay, "j", "alice", running(10)).await;
    publish(&relay, "g", "alice", running(10)).await;
    let clip = |id: &str| json!({"clip_id": id, "thumbnail_url": "/t", "duration": 4});
    milestone(&relay, "g", "alice", "clip_completed", clip("c1")).await;
    for client in [by_user, by_name] {
        client.hears("job:progress", "jobId", "j").await;
    }
    for client in [polling, socket] {
        client.hears("clip_completed", "clip_id", "c1").await;
    }
    relay.kill();
    milestone(&other, "g", "alice", "clip_completed", clip("c2")).await;
    for job in ["j", "g"] {
        publish(&other, job, "alice", json!({"status": "completed"})).await;
    }
    relay.restart().await.unwrap();
    for client in [by_user, by_name] {
        client.hears("job:completed", "jobId", "j").await;
    }
    for client in [polling, socket] {
        client
            .has("the ending", |line| line["name"] == "completed")
            .await;
    }
    // Whatever else was to be told has been, once this has.
    publish(&relay, "j2", "alice", running(1)).await;
    for client in [by_user, by_name] {
        client.hears("job:progress", "jobId", "j2").await;
    }
    for client in &clients {
        let ends = |event: &Value| match event[0].as_str() {
            Some("job:completed") => event[1]["jobId"] == "j",
            name => name == Some("completed"),
        };
        let endings = client.events().into_iter().filter(ends).count();
        assert_eq!(endings, 1, "{}", client.way);
    }
    for client in [polling, socket] {
        let events = client.events();
        let clips = events.iter().filter(|event| event[0] == "clip_completed");
        let clips: Vec<_> = clips.map(|event| event[1]["clip_id"].clone()).collect();
        assert_eq!(clips, ["c1", "c2"], "{}", client.way);
    }
}

#[tokio::test]
async fn the_video_page_is_served_on_each_of_its_three_readings() {
    let relay = RelayServer::start(settings()).await.unwrap();
    relay.publish("g1", "o", &running(10)).await.unwrap();
    let emit = json!([["ping"], ["subscribe", {"generation_id": "g1"}]]);
    let path = json!({"options": {"path": "/ws/generations/g1"}, "emit": emit, "acks": false});
    let query = json!({"options": {"query": {"generation_id": "g1"}}, "emit": emit, "acks": false});
    let plain = json!({"emit": emit, "acks": false});
    let namespace = format!("{}/ws/generations/g1", relay.url());
    let clients = [
        Client::start(("4.7", "upgrade"), &relay.url(), &path),
        Client::start(("4.8", "websocket"), &namespace, &plain),
        Client::start(("4.8", "polling"), &relay.url(), &query),
    ];
    for client in &clients {
        client.hears("connected", "generation_id", "g1").await;
        client.hears("subscribed", "generation_id", "g1").await;
        client.hears("progress", "percentage", 10).await;
        client.has("pong", |line| line["name"] == "pong").await;
    }
    for clip in 1..=5 {
        let data = json!({"clip_id": format!("c{clip}"), "thumbnail_url": "/t", "duration": 4});
        relay
            .milestone("g1", "o", "clip_completed", &data)
            .await
            .unwrap();
        relay
            .publish("g1", "o", &running(10 + clip * 10))
            .await
            .unwrap();
    }
    let result = json!({"video_url": "/v", "thumbnail_url": "/t", "duration": 20});
    let ending = json!({"status": "completed", "progress": 100, "result": result});
    relay.publish("g1", "o", &ending).await.unwrap();
    for client in &clients {
        client.hears("completed", "video_url", "/v").await;
        client
            .hears("status_change", "new_status", "completed")
            .await;
        let events = client.events();
        let clips = events.iter().filter(|event| event[0] == "clip_completed");
        let clips: Vec<_> = clips.map(|event| event[1]["clip_id"].clone()).collect();
        assert_eq!(clips, ["c1", "c2", "c3", "c4", "c5"], "{}", client.way);
    }
}

#[tokio::test]
async fn two_generations_share_one_connection_and_are_told_apart() {
    let relay = RelayServer::start(settings()).await.unwrap();
    for job in ["g1", "g2"] {
        relay.publish(job, "o", &running(10)).await.unwrap();
    }
    let mut socket = crate::wire::Socket::joined(&relay, "40/ws/generations/g1,").await;
    socket.send("40/ws/compositions/g2,").await;
    let mut packets = Vec::new();
    while packets.len() < 5 {
        packets.push(socket.packet().await.unwrap());
    }
    let has = |start: &str| packets.iter().any(|packet| packet.starts_with(start));
    assert!(has("42/ws/generations/g1,[\"progress\""), "{packets:?}");
    assert!(
        has("42/ws/compositions/g2,[\"encoding_progress\""),
        "{packets:?}"
    );
}

#[tokio::test]
async fn a_sixth_connection_of_one_user_is_refused_before_it_opens() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let url = format!("{}/jobs", relay.url());
    let script = json!({"options": cookie("access_token", &token(&Claims::of("alice")))});
    let five: Vec<_> = (0..5)
        .map(|at| Client::start(WAYS[at], &url, &script))
        .collect();
    for client in &five {
        client.is("connect").await;
    }
    let sixth = Client::start(("4.8", "polling"), &url, &script);
    let error = sixth.is("connect_error").await;
    assert!(
        error["body"].as_str().unwrap().contains("connections"),
        "{error}"
    );
    // The library goes on trying, ever more slowly.
    assert_eq!(error["active"], true);
}
