//! What a file can declare, each shown with a dialect made for it.

use relay_testkit::client::raw::Raw;
use relay_testkit::http::Request;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::token::Claims;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::identity::{publish, token, with_tokens};
use crate::settings;
use crate::transcript::{Heard, SOON, Socket};

/// A relay that speaks one dialect, made of this file; the file is gone with what comes beside it.
async fn speaking_as(settings: Settings, file: &str) -> (RelayServer, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = format!("description = \"x\"\n{file}");
    std::fs::write(directory.path().join("mine.toml"), file).unwrap();
    let settings = settings
        .set("dialects.enabled", "mine")
        .set("dialects.directory", directory.path().display());
    (RelayServer::start(settings).await.unwrap(), directory)
}

async fn speaking(file: &str) -> (RelayServer, TempDir) {
    speaking_as(settings(), file).await
}

fn text(text: &str) -> Heard {
    Heard::Text(text.to_owned())
}

fn running(progress: u32) -> Value {
    json!({"status": "running", "progress": progress})
}

async fn body_of(relay: &RelayServer, path: &str) -> String {
    let answer = relay.send(Request::get(path)).await.unwrap();
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    answer.text()
}

#[tokio::test]
async fn text_that_is_not_json_is_heard_and_answered_with_text() {
    let file = "[[routes]]\npath = \"/x\"\ntransport = \"websocket\"\n[messages]\ncommand = '{reply: [.]}'\n\
                text = 'if . == \"ping\" then {text: \"pong\"}, {text: \"\"} else {error: {code: \"what\", message: .}} end'\n\
                [frames]\nerror = '[.code, .message]'\n";
    let (relay, _directory) = speaking(file).await;
    let mut socket = Socket::open(&relay, "/x").await;
    socket.send("ping").await;
    assert_eq!(socket.next().await, text("pong"));
    assert_eq!(socket.next().await, text(""));
    socket.send("{\"a\":").await;
    assert_eq!(socket.next().await, text(r#"["what","{\"a\":"]"#));
    // JSON goes to the other mapping, a JSON text too.
    socket.send("\"ping\"").await;
    assert_eq!(socket.next().await, text(r#"["ping"]"#));
}

#[tokio::test]
async fn a_poll_of_what_nobody_has_spoken_of_is_answered_as_the_file_says() {
    let file = "definitions = 'def nothing: {none: .topic, job_id};'\n\
                [[polls]]\npath = \"/job/{job}\"\ninterval = \"3s\"\nbody = '.job.status'\n\
                unknown = {status = 202, body = 'nothing'}\n\
                [[polls]]\npath = \"/of/{user}\"\ntopic = \"user:{user}\"\nbody = '.total'\nunknown = {body = 'nothing'}\n\
                [[polls]]\npath = \"/list/{user}\"\ntopic = \"user:{user}\"\nlist = 5\nbody = '.total'\n\
                unknown = {status = 404, body = 'nothing'}\n\
                [[polls]]\npath = \"/plain/{job}\"\nbody = '.job.status'\n";
    let (relay, _directory) = speaking(file).await;
    for (path, status, body) in [
        ("/job/j1", 202, r#"{"none":"job:j1","job_id":"j1"}"#),
        ("/of/alice", 200, r#"{"none":"user:alice","job_id":null}"#),
        ("/list/alice", 404, r#"{"none":"user:alice","job_id":null}"#),
    ] {
        let answer = relay.send(Request::get(path)).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (status, body)
        );
        assert_eq!(
            answer.header("etag"),
            "",
            "there is nothing to have already"
        );
    }
    let answer = relay.send(Request::get("/job/j1")).await.unwrap();
    assert_eq!(answer.header("retry-after"), "3");
    let plain = relay.send(Request::get("/plain/j1")).await.unwrap();
    assert_eq!(plain.status.as_u16(), 404);
    relay.publish("j1", "alice", &running(1)).await.unwrap();
    for (path, body) in [
        ("/job/j1", "\"running\""),
        ("/of/alice", "1"),
        ("/list/alice", "1"),
    ] {
        assert_eq!(body_of(&relay, path).await, body);
    }
}

#[tokio::test]
async fn a_job_that_is_not_known_is_nobody_elses_affair() {
    let file = "[[polls]]\npath = \"/of/{user}\"\ntopic = \"user:{user}\"\nbody = '.total'\nunknown = {body = '0'}\n";
    let (relay, _directory) = speaking_as(with_tokens(), file).await;
    let ask = |user: &str| Request::get("/of/alice").bearer(Some(&token(&Claims::of(user))));
    let own = relay.send(ask("alice")).await.unwrap();
    assert_eq!(own.text(), "0");
    let foreign = relay.send(ask("bob")).await.unwrap();
    assert_eq!(foreign.status.as_u16(), 403);
}

#[tokio::test]
async fn a_subscription_to_what_nobody_has_spoken_of_is_told_so() {
    let file = "[[routes]]\npath = \"/x/{job}\"\ntransport = \"websocket\"\ntopics = [\"job:{job}\"]\n\
                [messages]\ncommand = '{subscribe: .}'\n\
                [frames]\nunknown = '[.type, .topic, .job_id]'\nstate = '.job.status'\n";
    let (relay, _directory) = speaking(file).await;
    let mut socket = Socket::open(&relay, "/x/j1").await;
    assert_eq!(socket.next().await, text(r#"["unknown","job:j1","j1"]"#));
    socket.send("\"job:j2\"").await;
    assert_eq!(socket.next().await, text(r#"["unknown","job:j2","j2"]"#));
    relay.publish("j1", "alice", &running(1)).await.unwrap();
    assert_eq!(socket.next().await, text("\"running\""));
    let mut known = Socket::open(&relay, "/x/j1").await;
    assert_eq!(known.next().await, text("\"running\""));
    known.quiet().await;
}

const PAST: &str = "[[routes]]\npath = \"/x/{job}\"\ntransport = \"websocket\"\ntopics = [\"job:{job}\"]\n\
    [[polls]]\npath = \"/poll/{job}\"\nbody = '[.job.progress, [$relay.milestones[] | [.name, .data.n]], $relay.milestones_lost]'\n\
    [frames]\nstate = '[.job.progress, [$relay.milestones[] | .data.n], $relay.milestones_lost]'\nmilestone = '.data.n'\n";

#[tokio::test]
async fn a_poll_has_the_milestones_in_order_and_its_tag_stands_for_them() {
    let (relay, _directory) = speaking(PAST).await;
    relay.publish("j1", "alice", &running(1)).await.unwrap();
    assert_eq!(body_of(&relay, "/poll/j1").await, "[1,[],false]");
    let first = relay.send(Request::get("/poll/j1")).await.unwrap();
    for n in 1..=2 {
        let data = json!({"n": n});
        relay.milestone("j1", "alice", "clip", &data).await.unwrap();
    }
    // The state is the same, and there is news.
    let again = Request::get("/poll/j1").header("if-none-match", first.header("etag"));
    let again = relay.send(again).await.unwrap();
    assert_eq!(again.text(), r#"[1,[["clip",1],["clip",2]],false]"#);
    let same = Request::get("/poll/j1").header("if-none-match", again.header("etag"));
    assert_eq!(relay.send(same).await.unwrap().status.as_u16(), 304);
    relay.publish("j1", "alice", &running(5)).await.unwrap();
    assert_eq!(
        body_of(&relay, "/poll/j1").await,
        r#"[5,[["clip",1],["clip",2]],false]"#
    );
    let end = json!({"status": "failed", "progress": 5});
    relay.publish("j1", "alice", &end).await.unwrap();
    assert_eq!(
        body_of(&relay, "/poll/j1").await,
        r#"[5,[["clip",1],["clip",2]],false]"#
    );
    // A new attempt makes its own.
    let again = json!({"status": "running", "progress": 0, "attempt": 2});
    relay.publish("j1", "alice", &again).await.unwrap();
    assert_eq!(body_of(&relay, "/poll/j1").await, "[0,[],false]");
}

#[tokio::test]
async fn as_many_milestones_are_given_as_the_history_keeps_and_it_says_when_there_were_more() {
    let settings = settings().set("history.per_job", "3");
    let (relay, _directory) = speaking_as(settings, PAST).await;
    relay.publish("j1", "alice", &running(1)).await.unwrap();
    for n in 1..=5 {
        let data = json!({"n": n});
        relay.milestone("j1", "alice", "m", &data).await.unwrap();
    }
    assert_eq!(
        body_of(&relay, "/poll/j1").await,
        r#"[1,[["m",3],["m",4],["m",5]],true]"#
    );
    // Large ones are given as far as there is room for them, the newest first.
    for n in 6..=8 {
        let data = json!({"n": n, "text": "x".repeat(60_000)});
        relay.milestone("j1", "alice", "m", &data).await.unwrap();
    }
    relay.publish("j1", "alice", &running(2)).await.unwrap();
    assert_eq!(
        body_of(&relay, "/poll/j1").await,
        r#"[2,[["m",6],["m",7],["m",8]],true]"#
    );
}

#[tokio::test]
async fn a_snapshot_has_the_milestones_before_it_and_those_after_it_follow() {
    let (relay, _directory) = speaking(PAST).await;
    let milestone = async |n: u32| {
        let data = json!({"n": n});
        relay.milestone("j1", "alice", "m", &data).await.unwrap();
    };
    relay.publish("j1", "alice", &running(1)).await.unwrap();
    milestone(1).await;
    milestone(2).await;
    relay.publish("j1", "alice", &running(2)).await.unwrap();
    milestone(3).await;
    for _ in 0..2 {
        let mut socket = Socket::open(&relay, "/x/j1").await;
        assert_eq!(socket.next().await, text("[2,[1,2],false]"));
        assert_eq!(socket.next().await, text("3"));
        socket.quiet().await;
    }
    let mut socket = Socket::open(&relay, "/x/j1").await;
    assert_eq!(socket.next().await, text("[2,[1,2],false]"));
    assert_eq!(socket.next().await, text("3"));
    // What is news is told as it comes, and has nothing to repeat.
    relay.publish("j1", "alice", &running(3)).await.unwrap();
    assert_eq!(socket.next().await, text("[3,[],false]"));
}

#[tokio::test]
async fn a_list_has_the_jobs_themselves_the_most_recent_first() {
    let file = "[status]\nrunning = \"busy\"\ndetails = [\"encoding\"]\n\
                [[polls]]\npath = \"/v1/jobs\"\ntopic = \"user:{?user}\"\nlist = 2\ninterval = \"5s\"\n\
                body = '[.type, .topic, .total, [.jobs[] | [.job.job_id, .status, .job.n, .ms]]]'\n";
    let (relay, _directory) = speaking(file).await;
    let path = "/v1/jobs?user=alice";
    assert_eq!(body_of(&relay, path).await, r#"["list","user:alice",0,[]]"#);
    for (job, state) in [
        (
            "a",
            json!({"status": "queued", "ts": "2026-11-21T10:00:00Z"}),
        ),
        (
            "b",
            json!({"status": "encoding", "n": 1.50, "ts": "2026-11-21T10:00:00Z"}),
        ),
        (
            "c",
            json!({"status": "running", "ts": "2026-11-21T10:00:00.001Z"}),
        ),
    ] {
        relay.publish(job, "alice", &state).await.unwrap();
    }
    relay.publish("x", "bob", &running(1)).await.unwrap();
    let first = relay.send(Request::get(path)).await.unwrap();
    assert_eq!(
        first.text(),
        r#"["list","user:alice",3,[["c","busy",null,1795255200001],["b","encoding",1.5,1795255200000]]]"#
    );
    assert_eq!(first.header("retry-after"), "5");
    let again = || Request::get(path).header("if-none-match", first.header("etag"));
    assert_eq!(relay.send(again()).await.unwrap().status.as_u16(), 304);
    // Other counts do not come of it, and another list does.
    let state = json!({"status": "encoding", "n": 2, "ts": "2026-11-21T10:00:01Z"});
    relay.publish("b", "alice", &state).await.unwrap();
    let moved = relay.send(again()).await.unwrap();
    assert_eq!(
        moved.text(),
        r#"["list","user:alice",3,[["b","encoding",2,1795255201000],["c","busy",null,1795255200001]]]"#
    );
    // The native path below it is as it was.
    let native = relay.send(Request::get("/v1/jobs/a")).await.unwrap();
    assert_eq!(native.json()["status"], "queued");
}

const STREAM: &str = "[[routes]]\npath = \"/events/{job}\"\ntransport = \"sse\"\ntopics = [\"job:{job}\"]\n\
    [[routes]]\npath = \"/mine\"\ntransport = \"sse\"\ntopics = [\"user:{?user}\"]\n\
    [frames]\nhello = '[\"hello\", {session: (.session != null)}]'\n\
    state = '[\"tick\", {p: .job.progress}], {last: .job.status}'\nmilestone = '[\"m\", .data.n]'\n\
    server_shutdown = '[\"bye\", 1]'\n";

/// An event stream, read as it comes.
struct Stream(Raw);

impl Stream {
    async fn open(relay: &RelayServer, path: &str, headers: &str) -> Self {
        let mut raw = Raw::connect(&relay.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        raw.send(request).await.unwrap();
        Self(raw)
    }

    /// What came up to `wanted`.
    async fn until(&mut self, wanted: &str) -> String {
        let came = self.0.read_until(wanted, SOON).await;
        assert!(came.contains(wanted), "{wanted:?} does not come: {came}");
        came
    }
}

fn last_id(came: &str) -> &str {
    let mut ids = came.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.next_back().unwrap()
}

#[tokio::test]
async fn an_event_stream_speaks_the_dialect_and_goes_on_where_it_was() {
    let (mut relay, _directory) = speaking(STREAM).await;
    relay.publish("j1", "alice", &running(1)).await.unwrap();
    let mut stream = Stream::open(&relay, "/events/j1", "").await;
    let came = stream.until("{\"last\":\"running\"}\n\n").await;
    assert!(came.starts_with("HTTP/1.1 200 OK\r\n"), "{came}");
    assert!(
        came.contains("\r\ncontent-type: text/event-stream"),
        "{came}"
    );
    let (_, came) = came.split_once("\r\n\r\n").unwrap();
    let id = last_id(came).to_owned();
    assert_eq!(
        came,
        format!(
            "event: hello\ndata: {{\"session\":true}}\n\nevent: tick\ndata: {{\"p\":1}}\n\nid: {id}\ndata: {{\"last\":\"running\"}}\n\n"
        )
    );
    relay
        .milestone("j1", "alice", "m", &json!({"n": 1}))
        .await
        .unwrap();
    let came = stream.until("event: m\ndata: 1\n\n").await;
    let told = last_id(&came).to_owned();
    drop(stream);
    for n in 2..=3 {
        relay
            .milestone("j1", "alice", "m", &json!({"n": n}))
            .await
            .unwrap();
    }
    relay.publish("j1", "alice", &running(2)).await.unwrap();
    // As a browser comes back, and as a library that cannot set headers does.
    for (path, headers) in [
        (
            "/events/j1".to_owned(),
            format!("Last-Event-ID: {told}\r\n"),
        ),
        (format!("/events/j1?lastEventId={told}"), String::new()),
    ] {
        let mut stream = Stream::open(&relay, &path, &headers).await;
        let came = stream.until("{\"last\":\"running\"}\n\n").await;
        let names: Vec<_> = came
            .lines()
            .filter(|line| line.starts_with("event: "))
            .collect();
        assert_eq!(
            names,
            ["event: hello", "event: m", "event: m", "event: tick"]
        );
        assert!(
            came.contains("event: m\ndata: 2\n") && came.contains("event: m\ndata: 3\n"),
            "{came}"
        );
    }
    // Another server's id is as good as none.
    let mut stream = Stream::open(&relay, "/events/j1", "Last-Event-ID: 42\r\n").await;
    let came = stream.until("{\"last\":\"running\"}\n\n").await;
    assert!(!came.contains("event: m"), "{came}");
    relay.signal("TERM").unwrap();
    let came = stream.until("event: bye\ndata: 1\n\n").await;
    assert!(came.contains("retry: "), "{came}");
}

#[tokio::test]
async fn an_event_stream_of_nothing_is_refused() {
    let (relay, _directory) = speaking(STREAM).await;
    let nothing = relay.send(Request::get("/mine")).await.unwrap();
    assert_eq!(
        (nothing.status.as_u16(), nothing.error_code().as_str()),
        (400, "no_topic")
    );
    let posted = relay
        .send(Request::post("/events/j1", &json!({})))
        .await
        .unwrap();
    assert_eq!(posted.status.as_u16(), 405);
    let mut some = Stream::open(&relay, "/mine?user=alice", "").await;
    some.until("event: hello").await;
}

#[tokio::test]
async fn the_topic_that_was_asked_for_stands_in_the_error_with_the_pages_own_text() {
    let file = "[[routes]]\npath = \"/x\"\ntransport = \"websocket\"\n\
                [messages]\ncommand = '{(.do): .topic, identifier}'\n\
                [frames]\nerror = '[.code, .topic, $relay.identifier]'\nsubscribed = '[.topic, $relay.identifier]'\n\
                unsubscribed = '[\"left\", .topic, $relay.identifier]'\nstate = '[.job.progress, $relay.identifier]'\n\
                aggregate = '[.total, $relay.identifier]'\n";
    let settings = settings().set("limits.subscriptions_per_connection", "3");
    let (relay, _directory) = speaking_as(settings, file).await;
    let mut socket = Socket::open(&relay, "/x").await;
    let ask = |ask: &str, topic: &str, identifier: Value| {
        json!({"do": ask, "topic": topic, "identifier": identifier}).to_string()
    };
    for (message, answers) in [
        (
            ask("subscribe", "job:a b", json!("1")),
            vec![r#"["bad_topic","job:a b","1"]"#],
        ),
        (
            ask("unsubscribe", "job:a", json!("2")),
            vec![r#"["not_subscribed","job:a","2"]"#],
        ),
        (
            ask("subscribe", "job:a", json!("3")),
            vec![r#"["job:a","3"]"#],
        ),
        (
            ask("subscribe", "job:a", json!("4")),
            vec![r#"["already_subscribed","job:a","4"]"#],
        ),
        (
            ask("subscribe", "job:b", json!(null)),
            vec![r#"["job:b",null]"#],
        ),
        (
            ask("subscribe", "user:u", json!("5")),
            vec![r#"["user:u","5"]"#, r#"[0,"5"]"#],
        ),
        (
            ask("subscribe", "job:d", json!("6")),
            vec![r#"["too_many_subscriptions","job:d","6"]"#],
        ),
        (ask("lunch", "job:a", json!("7")), vec![]),
    ] {
        socket.send(&message).await;
        for answer in answers {
            assert_eq!(socket.next().await, text(answer), "{message}");
        }
    }
    socket.quiet().await;
    relay.publish("a", "alice", &running(1)).await.unwrap();
    assert_eq!(socket.next().await, text(r#"[1,"3"]"#));
    relay.publish("b", "alice", &running(2)).await.unwrap();
    assert_eq!(socket.next().await, text("[2,null]"));
    // Whoever leaves is answered by the text it came with.
    socket.send(&ask("unsubscribe", "job:a", json!(null))).await;
    assert_eq!(socket.next().await, text(r#"["left","job:a","3"]"#));
}

#[tokio::test]
async fn two_pages_are_told_of_one_job_each_by_its_own_text() {
    let file = "[[routes]]\npath = \"/x\"\ntransport = \"websocket\"\n\
                [messages]\ncommand = '{subscribe: .topic, identifier: .as}'\n\
                [frames]\nstate = '[$relay.identifier, .job.progress]'\n";
    let (relay, _directory) = speaking(file).await;
    relay.publish("j", "alice", &running(1)).await.unwrap();
    let mut sockets = Vec::new();
    for name in ["a", "b", "a"] {
        let mut socket = Socket::open(&relay, "/x").await;
        socket
            .send(&json!({"topic": "job:j", "as": name}).to_string())
            .await;
        assert_eq!(socket.next().await, text(&format!("[\"{name}\",1]")));
        sockets.push((name, socket));
    }
    relay.publish("j", "alice", &running(2)).await.unwrap();
    for (name, socket) in &mut sockets {
        assert_eq!(socket.next().await, text(&format!("[\"{name}\",2]")));
    }
}

#[tokio::test]
async fn a_route_speaks_the_subprotocols_it_names() {
    let file = "[[routes]]\npath = \"/x\"\ntransport = \"websocket\"\nsubprotocols = [\"b.v1\", \"c.v1\"]\n";
    let (relay, _directory) = speaking(file).await;
    let agreed = async |offered: &str| {
        let stream = tokio::net::TcpStream::connect(relay.address())
            .await
            .unwrap();
        let mut request = format!("ws://{}/x", relay.address())
            .into_client_request()
            .unwrap();
        let offered = offered.parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", offered);
        let (_, answer) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        let agreed = answer.headers().get("sec-websocket-protocol");
        agreed.map(|name| name.to_str().unwrap().to_owned())
    };
    assert_eq!(agreed("a.v1, c.v1, b.v1").await.as_deref(), Some("c.v1"));
    assert_eq!(agreed("relay.token.x, b.v1").await.as_deref(), Some("b.v1"));
}

const LATE: &str = "[[routes]]\npath = \"/x\"\ntransport = \"websocket\"\ntopics = [\"user:{user}\", \"job:{?job}\"]\n\
    [messages]\ncommand = 'if .token then {auth: .token} elif .work then {request: \"work\", data: .work} else {subscribe: .topic} end'\n\
    [requests.work]\nsubject = \"work\"\n\
    [frames]\nhello = '[\"hello\", .user]'\nauthenticated = '[\"authenticated\", .user]'\nstate = '[.job.job_id]'\n\
    error = '[.code, .topic]'\nanswer = '.'\nsubscribed = '[.topic]'\n";

#[tokio::test]
async fn a_client_may_show_who_it_is_by_its_first_message_and_is_then_told_what_is_its_own() {
    let by_url = LATE.to_owned();
    let by_file = format!("[identity]\nmessage = true\n{LATE}");
    for (file, query) in [(by_url, "?auth=message&job=x"), (by_file, "?job=x")] {
        let settings = with_tokens()
            .set("bus.mode", "embedded")
            .set("delivery.ping_interval", "20s");
        let (relay, _directory) = speaking_as(settings, &file).await;
        publish(&relay, "a", "alice", "running").await;
        publish(&relay, "x", "bob", "running").await;
        let mut socket = Socket::open(&relay, &format!("/x{query}")).await;
        assert_eq!(socket.next().await, text(r#"["hello",null]"#));
        for message in [r#"{"topic":"job:a"}"#, r#"{"work":1}"#] {
            socket.send(message).await;
            let Heard::Text(refused) = socket.next().await else {
                panic!("closed");
            };
            assert!(refused.starts_with(r#"["unauthenticated","#), "{refused}");
        }
        let alice = token(&Claims::of("alice"));
        socket.send(&json!({"token": alice}).to_string()).await;
        assert_eq!(socket.next().await, text(r#"["authenticated","alice"]"#));
        let mut told = Vec::new();
        for _ in 0..3 {
            let Heard::Text(text) = socket.next().await else {
                panic!("closed");
            };
            told.push(text);
        }
        told.sort();
        // The job that the URL names as well is another's.
        assert_eq!(
            told,
            [r#"["a"]"#, r#"["forbidden","job:x"]"#, r#"["user:alice"]"#]
        );
        // A newer token of the same user, and one that is not one.
        socket.send(&json!({"token": alice}).to_string()).await;
        assert_eq!(socket.next().await, text(r#"["authenticated","alice"]"#));
        socket.quiet().await;
        let mut wrong = Socket::open(&relay, &format!("/x{query}")).await;
        wrong.next().await;
        wrong.send(r#"{"token":"nonsense"}"#).await;
        assert_eq!(wrong.next().await, text(r#"["token_malformed",null]"#));
        assert_eq!(wrong.next().await, Heard::Closed(Some(4401)));
    }
}

#[tokio::test]
async fn a_credential_that_is_shown_is_judged_before_the_upgrade_whatever_may_come_later() {
    let file = format!("[identity]\nmessage = true\n{LATE}");
    let (relay, _directory) = speaking_as(with_tokens(), &file).await;
    let (status, _) = Socket::refused(&relay, "/x?token=nonsense", None).await;
    assert_eq!(status, 401);
    let alice = token(&Claims::of("alice"));
    let mut socket = Socket::open(&relay, &format!("/x?token={alice}")).await;
    assert_eq!(socket.next().await, text(r#"["hello","alice"]"#));
    assert_eq!(socket.next().await, text(r#"["user:alice"]"#));
}

#[tokio::test]
async fn a_relay_that_asks_for_no_token_waits_for_none() {
    let file = "[identity]\nmessage = true\n[[routes]]\npath = \"/x/{job}\"\ntransport = \"websocket\"\n\
                topics = [\"job:{job}\"]\n[frames]\nunknown = '\"unknown\"'\n";
    let (relay, _directory) = speaking(file).await;
    for path in ["/x/j", "/x/j?auth=message"] {
        let mut socket = Socket::open(&relay, path).await;
        assert_eq!(socket.next().await, text("\"unknown\""));
    }
}

const RETURNS: &str = "[delivery]\nreturns_within = \"1m\"\ntracks_status = true\n\
    [[routes]]\npath = \"/x/{user}\"\ntransport = \"websocket\"\ntopics = [\"user:{user}\"]\n\
    [[routes]]\npath = \"/asked\"\ntransport = \"websocket\"\n\
    [messages]\ncommand = '{subscribe: .}'\n\
    [frames]\nstate = '[.job.job_id, $relay.status, $relay.from, $relay.snapshot]'\nmilestone = '[.job_id, .name]'\n\
    unsubscribed = '.'\n";

#[tokio::test]
async fn what_came_while_a_client_was_away_is_told_as_it_would_have_been() {
    let (relay, _directory) = speaking(RETURNS).await;
    for (path, user) in [("/x/alice", "alice"), ("/asked", "bea")] {
        let open = async || {
            let mut socket = Socket::open(&relay, path).await;
            if path == "/asked" {
                socket.send(&format!("\"user:{user}\"")).await;
            }
            socket
        };
        let job = |name: &str| format!("{name}-{user}");
        let (first, queued) = (job("first"), json!({"status": "queued"}));
        relay.publish(&first, user, &queued).await.unwrap();
        let begins = || text(&format!(r#"["{first}","queued",null,true]"#));
        let mut socket = open().await;
        assert_eq!(socket.next().await, begins());
        let (known, made, over) = (job("known"), job("made"), job("over"));
        relay.publish(&known, user, &running(1)).await.unwrap();
        let new = text(&format!(r#"["{known}","running",null,false]"#));
        assert_eq!(socket.next().await, new);
        drop(socket);
        // Until the relay has seen that it went.
        let gone = async || {
            let metrics = relay.metrics().await.unwrap();
            metrics.get("relay_dialect_connections{dialect=\"mine\"}") == Some(0.0)
        };
        while !gone().await {
            tokio::task::yield_now().await;
        }
        relay
            .milestone(&known, user, "clip", &json!({}))
            .await
            .unwrap();
        relay.publish(&made, user, &running(1)).await.unwrap();
        relay.publish(&over, user, &running(1)).await.unwrap();
        relay
            .publish(&over, user, &json!({"status": "failed"}))
            .await
            .unwrap();
        let mut socket = open().await;
        let mut told = Vec::new();
        loop {
            let Heard::Text(text) = socket.next().await else {
                panic!("closed: {told:?}");
            };
            told.push(text.clone());
            if text.contains(&over) {
                break;
            }
        }
        for expected in [
            format!(r#"["{first}","queued","queued",false]"#),
            format!(r#"["{known}","running","running",false]"#),
            format!(r#"["{known}","clip"]"#),
            format!(r#"["{made}","running",null,false]"#),
        ] {
            assert!(told.contains(&expected), "{expected} is not in {told:?}");
        }
        socket.quiet().await;
        // It came back, so there is nobody left to come back.
        let mut another = open().await;
        assert_eq!(another.next().await, begins());
        drop((socket, another));
        while !gone().await {
            tokio::task::yield_now().await;
        }
        // Both are forgotten for the next path.
        for _ in 0..2 {
            let mut socket = open().await;
            socket.next().await;
        }
    }
}
