//! Connection state recovery: what a client is told that comes back with the `pid` and the `offset` that
//! it was given.

use std::path::Path;

use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{RelayServer, Settings};
use serde_json::{Value, json};

use crate::wire::{Polling, Socket};
use crate::{SOON, settings};

fn rooms() -> Settings {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/socketio");
    settings()
        .set("dialects.enabled", "rooms")
        .set("dialects.directory", here.display())
}

/// A client of one namespace, and what its library would keep of what it hears.
struct Page<'a> {
    relay: &'a RelayServer,
    namespace: &'static str,
    socket: Socket,
    pid: String,
    offset: Option<String>,
}

impl<'a> Page<'a> {
    async fn open(relay: &'a RelayServer, namespace: &'static str) -> Self {
        Self::connect(relay, namespace, &json!({})).await
    }

    async fn connect(relay: &'a RelayServer, namespace: &'static str, auth: &Value) -> Self {
        Self::connect_and_watch(relay, namespace, auth, &[]).await
    }

    /// Connects, and asks for jobs without waiting for the answer.
    async fn connect_and_watch(
        relay: &'a RelayServer,
        namespace: &'static str,
        auth: &Value,
        jobs: &[&str],
    ) -> Self {
        let (mut socket, _) = Socket::open(relay).await;
        socket.send(&format!("40{namespace},{auth}")).await;
        for job in jobs {
            let event = json!(["watch", job]);
            socket.send(&format!("42{namespace},{event}")).await;
        }
        let answer = socket.packet().await.unwrap();
        let answer = answer.strip_prefix(&format!("40{namespace},")).unwrap();
        let answer: Value = serde_json::from_str(answer).unwrap();
        Self {
            relay,
            namespace,
            socket,
            pid: answer["pid"].as_str().unwrap().to_owned(),
            offset: None,
        }
    }

    /// Loses the connection and comes back.
    async fn come_back(self) -> Self {
        let mut auth = json!({"pid": self.pid});
        if let Some(offset) = &self.offset {
            auth["offset"] = offset.as_str().into();
        }
        let (relay, namespace, offset) = (self.relay, self.namespace, self.offset);
        drop(self.socket);
        Self {
            offset,
            ..Self::connect(relay, namespace, &auth).await
        }
    }

    /// The next event as it came.
    async fn packet(&mut self) -> String {
        let packet = self.socket.packet().await.unwrap();
        let event: Vec<Value> = match packet.find('[') {
            Some(at) => serde_json::from_str(&packet[at..]).unwrap(),
            None => panic!("{packet}"),
        };
        if let Some(Value::String(offset)) = event.last() {
            self.offset = Some(offset.clone());
        }
        packet
    }

    /// The next events: a job with its status, or a milestone's number.
    async fn hears(&mut self, count: usize) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let packet = self.packet().await;
            let event: Vec<Value> =
                serde_json::from_str(&packet[packet.find('[').unwrap()..]).unwrap();
            heard.push(match event[0].as_str() {
                Some("state") => {
                    format!("{} {}", event[1]["job"], event[1]["status"]).replace('"', "")
                }
                Some("mark") => event[1]["n"].to_string(),
                _ => panic!("{packet}"),
            });
        }
        heard
    }

    async fn watch(&mut self, job: &str) {
        let event = json!(["watch", job]);
        let packet = format!("42{},{event}", self.namespace);
        self.socket.send(&packet).await;
    }

    /// As a page does whenever its library has connected, where its namespace does not bring the job.
    async fn watch_unless_there(&mut self, job: &str) {
        if self.namespace == "/empty" {
            self.watch(job).await;
        }
    }

    /// Nothing else has come: the next is what is published now.
    async fn heard_all(&mut self) {
        self.relay
            .publish("last", "bob", &status("queued"))
            .await
            .unwrap();
        self.watch("last").await;
        assert_eq!(self.hears(1).await, ["last queued"]);
    }
}

fn status(status: &str) -> Value {
    json!({"status": status})
}

async fn mark(relay: &RelayServer, job: &str, n: u32) {
    relay
        .milestone(job, "alice", "mark", &json!({"n": n}))
        .await
        .unwrap();
}

#[tokio::test]
async fn who_comes_back_is_told_what_it_missed_and_nothing_twice() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    let mut page = Page::open(&relay, "/job/j1").await;
    relay
        .publish("j1", "alice", &status("running"))
        .await
        .unwrap();
    mark(&relay, "j1", 1).await;
    assert_eq!(page.hears(2).await, ["j1 running", "1"]);
    let mut page = {
        let (pid, offset) = (page.pid.clone(), page.offset.clone());
        drop(page.socket);
        mark(&relay, "j1", 2).await;
        mark(&relay, "j1", 3).await;
        relay
            .publish("j1", "alice", &status("completed"))
            .await
            .unwrap();
        let auth = json!({"pid": pid, "offset": offset});
        let back = Page::connect(&relay, "/job/j1", &auth).await;
        assert_ne!(
            back.pid, pid,
            "the library would take the same for a word of its rooms"
        );
        back
    };
    assert_eq!(page.hears(3).await, ["2", "3", "j1 completed"]);
    let mut page = page.come_back().await;
    page.heard_all().await;
}

#[tokio::test]
async fn what_may_be_told_twice_carries_no_offset_but_the_first_time() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    let mut page = Page::open(&relay, "/job/j1").await;
    let told = async |page: &mut Page<'_>, job: &str, progress: u32| {
        let state = json!({"status": "running", "progress": progress});
        relay.publish(job, "alice", &state).await.unwrap();
        page.packet().await
    };
    let of = |job: &str, end: &str| {
        format!(r#"42/job/j1,["state",{{"job":"{job}","status":"running"}}{end}"#)
    };
    assert!(told(&mut page, "j1", 1).await.starts_with(&of("j1", ",\"")));
    assert_eq!(told(&mut page, "j1", 2).await, of("j1", "]"));
    page.watch("j2").await;
    // Whether it comes as what the topic begins with, or after.
    assert!(told(&mut page, "j2", 3).await.starts_with(&of("j2", ",\"")));
    assert_eq!(told(&mut page, "j1", 4).await, of("j1", "]"));
    mark(&relay, "j1", 1).await;
    let mark = r#"42/job/j1,["mark",{"n":1},""#;
    assert!(page.packet().await.starts_with(mark));
}

#[tokio::test]
async fn who_heard_nothing_comes_back_to_where_it_began() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    relay
        .publish("j1", "alice", &status("running"))
        .await
        .unwrap();
    mark(&relay, "j1", 1).await;
    let page = Page::open(&relay, "/job/j1").await;
    mark(&relay, "j1", 2).await;
    // Whatever has come, its library had no offset of it.
    let mut page = page.come_back().await;
    assert_eq!(page.hears(3).await, ["j1 running", "1", "2"]);
}

#[tokio::test]
async fn an_ending_that_was_not_heard_is_told_again() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    relay
        .publish("j1", "alice", &status("failed"))
        .await
        .unwrap();
    let page = Page::open(&relay, "/job/j1").await;
    let mut page = page.come_back().await;
    assert_eq!(page.hears(1).await, ["j1 failed"]);
    let mut page = page.come_back().await;
    page.heard_all().await;
}

#[tokio::test]
async fn a_user_s_jobs_that_ended_meanwhile_are_told_and_older_ones_are_not() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    relay
        .publish("old", "alice", &status("completed"))
        .await
        .unwrap();
    let page = Page::open(&relay, "/user").await;
    relay
        .publish("new", "alice", &status("completed"))
        .await
        .unwrap();
    let mut page = Page {
        offset: None,
        ..page
    }
    .come_back()
    .await;
    assert_eq!(page.hears(1).await, ["new completed"]);
    page.heard_all().await;
}

#[tokio::test]
async fn regression_an_ending_is_told_where_the_history_no_longer_has_all_milestones() {
    let relay = RelayServer::start(rooms().set("history.per_job", "2"))
        .await
        .unwrap();
    let page = Page::open(&relay, "/user").await;
    let auth = json!({"pid": page.pid});
    drop(page);
    for n in 1..=5 {
        mark(&relay, "j1", n).await;
    }
    relay
        .publish("j2", "alice", &status("completed"))
        .await
        .unwrap();
    let mut page = Page::connect(&relay, "/user", &auth).await;
    while page.hears(1).await != ["j2 completed"] {}
}

#[tokio::test]
async fn a_job_asked_for_by_name_is_not_told_again_with_its_user_s_others() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    let page = Page::open(&relay, "/user").await;
    let pid = page.pid.clone();
    drop(page);
    relay
        .publish("j1", "alice", &status("completed"))
        .await
        .unwrap();
    relay
        .publish("j2", "alice", &status("failed"))
        .await
        .unwrap();
    let auth = json!({"pid": pid});
    let mut page = Page::connect_and_watch(&relay, "/user", &auth, &["j1"]).await;
    assert_eq!(page.hears(2).await, ["j1 completed", "j2 failed"]);
    // Whoever asks again wants to be shown it, however it was heard of.
    page.watch("j2").await;
    assert_eq!(page.hears(1).await, ["j2 failed"]);
}

#[tokio::test]
async fn what_was_asked_for_by_name_is_told_when_it_is_asked_for_again() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    for (namespace, job) in [("/job/j1", "j2"), ("/empty", "j3")] {
        relay
            .publish(job, "alice", &status("running"))
            .await
            .unwrap();
        let mut page = Page::open(&relay, namespace).await;
        page.watch(job).await;
        mark(&relay, job, 1).await;
        let running = format!("{job} running");
        assert_eq!(page.hears(2).await, [running.as_str(), "1"]);
        let auth = json!({"pid": page.pid, "offset": page.offset});
        drop(page);
        mark(&relay, job, 2).await;
        relay
            .publish(job, "alice", &status("completed"))
            .await
            .unwrap();
        let mut page = Page::connect(&relay, namespace, &auth).await;
        page.watch(job).await;
        let completed = format!("{job} completed");
        assert_eq!(page.hears(2).await, ["2", completed.as_str()]);
        // It may be another part of the page that asks: how the job stands is told anew.
        let mut page = page.come_back().await;
        page.watch(job).await;
        assert_eq!(page.hears(1).await, [completed.as_str()]);
    }
}

#[tokio::test]
async fn text_at_an_event_s_end_is_followed_by_an_offset() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    let mut page = Page::open(&relay, "/job/j1").await;
    for (event, ends) in [
        (json!(["echo", "pong"]), r#"42/job/j1,["pong",""#),
        (json!(["echo", "said", "so"]), r#"42/job/j1,["said","so",""#),
    ] {
        page.socket.send(&format!("42/job/j1,{event}")).await;
        let packet = page.packet().await;
        assert!(packet.starts_with(ends), "{packet}");
    }
    let at_first = page.offset.clone();
    assert_eq!(at_first.as_ref(), Some(&page.pid), "nothing was told yet");
    page.socket
        .send(r#"42/job/j1,["echo","said",{"so":1}]"#)
        .await;
    assert_eq!(page.packet().await, r#"42/job/j1,["said",{"so":1}]"#);
    // With that, it comes back to where it began.
    mark(&relay, "j1", 1).await;
    let mut page = page.come_back().await;
    assert_eq!(page.hears(1).await, ["1"]);
    let told = page.offset.clone();
    page.socket.send(r#"42/job/j1,["echo","pong"]"#).await;
    page.packet().await;
    assert_eq!(page.offset, told, "the same place");
}

#[tokio::test]
async fn what_is_no_pid_of_a_relay_s_begins_anew() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    relay
        .publish("j1", "alice", &status("running"))
        .await
        .unwrap();
    for auth in [
        json!({"pid": "x", "offset": "y"}),
        json!({"pid": "", "offset": ""}),
        json!({"pid": "a.b"}),
        json!({"pid": 7, "offset": [1]}),
        json!({"offset": "AQ"}),
        json!({"pid": format!("x.{}", "A".repeat(4000)), "offset": "A".repeat(4000)}),
    ] {
        let mut page = Page::connect(&relay, "/job/j1", &auth).await;
        assert_eq!(page.hears(1).await, ["j1 running"], "{auth}");
    }
}

#[tokio::test]
async fn the_place_is_kept_over_a_restart_and_on_another_relay() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let settings = || rooms().jetstream(&nats.url());
    let mut first = RelayServer::start(settings()).await.unwrap();
    let second = RelayServer::start(settings()).await.unwrap();
    first
        .publish("j1", "alice", &status("running"))
        .await
        .unwrap();
    let mut page = Page::open(&first, "/job/j1").await;
    mark(&first, "j1", 1).await;
    assert_eq!(page.hears(2).await, ["j1 running", "1"]);
    let auth = json!({"pid": page.pid, "offset": page.offset});
    drop(page);
    first.terminate(SOON).await.unwrap();
    mark(&second, "j1", 2).await;
    second
        .publish("j1", "alice", &status("completed"))
        .await
        .unwrap();
    first.restart().await.unwrap();
    for relay in [&first, &second] {
        let mut page = Page::connect(relay, "/job/j1", &auth).await;
        assert_eq!(page.hears(2).await, ["2", "j1 completed"]);
    }
}

#[tokio::test]
async fn however_often_it_is_cut_it_hears_each_milestone_once() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    for (namespace, job) in [("/job/j1", "j1"), ("/empty", "j2")] {
        let state = async |status: &str, progress: u32| {
            let state = json!({"status": status, "progress": progress});
            relay.publish(job, "alice", &state).await.unwrap();
        };
        state("running", 0).await;
        let mut page = Page::open(&relay, namespace).await;
        page.watch_unless_there(job).await;
        let (mut marks, mut heard) = (0, Vec::new());
        for round in 0..30 {
            for _ in 0..round % 4 {
                marks += 1;
                mark(&relay, job, marks).await;
            }
            if round % 3 == 0 {
                state("running", round).await;
            }
            // Cut with more or less of it unread.
            let left = usize::try_from(marks).unwrap() - heard.len();
            let until = heard.len() + left.min(round as usize % 5);
            while heard.len() < until {
                let next = page.hears(1).await.remove(0);
                heard.extend(next.parse::<u32>());
            }
            page = page.come_back().await;
            page.watch_unless_there(job).await;
        }
        state("completed", 100).await;
        let completed = format!("{job} completed");
        loop {
            let next = page.hears(1).await.remove(0);
            match next.parse::<u32>() {
                Ok(mark) => heard.push(mark),
                Err(_) if next == completed => break,
                Err(_) => {}
            }
        }
        assert_eq!(heard, (1..=marks).collect::<Vec<_>>(), "{namespace}");
    }
}

#[tokio::test]
async fn a_change_of_status_that_was_missed_is_told_from_the_one_that_was_not() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let composing = json!({"status": "composing", "progress": 90});
    let running = json!({"status": "running", "progress": 10});
    relay.publish("g1", "alice", &running).await.unwrap();
    let mut page = Page::open(&relay, "/ws/generations/g1").await;
    while page.offset.is_none() {
        page.packet().await;
    }
    let auth = json!({"pid": page.pid, "offset": page.offset});
    drop(page);
    relay.publish("g1", "alice", &composing).await.unwrap();
    let changes = async |auth: &Value| {
        let mut page = Page::connect(&relay, "/ws/generations/g1", auth).await;
        let mut changes = Vec::new();
        loop {
            let packet = page.packet().await;
            match packet.contains(r#"["progress""#) {
                true => return (changes, page),
                false if packet.contains(r#"["status_change""#) => changes.push(packet),
                false => {}
            }
        }
    };
    let (told, page) = changes(&auth).await;
    let [change] = told.as_slice() else {
        panic!("{told:?}")
    };
    let from_to = r#""old_status":"processing","new_status":"composing""#;
    assert!(change.contains(from_to), "{change}");
    drop(page);
    // What is no status of the dialect's is none.
    let beyond = format!(
        "{}.200",
        auth["offset"].as_str().unwrap().split('.').next().unwrap()
    );
    let (told, _) = changes(&json!({"pid": auth["pid"], "offset": beyond})).await;
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn polling_carries_it_as_well() {
    let relay = RelayServer::start(rooms()).await.unwrap();
    let session = Polling::open(&relay).await;
    session.say("40/job/j1,").await;
    let connected = session.packets(1).await;
    assert!(connected[0].contains("\"pid\":"), "{connected:?}");
    mark(&relay, "j1", 1).await;
    let told = session.packets(1).await;
    assert!(
        told[0].starts_with(r#"42/job/j1,["mark",{"n":1},""#),
        "{told:?}"
    );
}
