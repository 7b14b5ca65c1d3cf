//! Jobs that are taken away: everybody who watches hears it, over every transport, in every mode and on every node.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use relay_testkit::client::{Frame, Transport, Watch, Watcher};
use relay_testkit::http::{Answer, Method, Request};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::RelayServer;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::publishing::{begin, send, verdict};
use crate::{SOON, settings};

async fn remove(relay: &RelayServer, path: &str) -> Answer {
    let request = Request::new(Method::DELETE, path);
    relay.send(request).await.unwrap()
}

async fn poll(relay: &RelayServer, topic: &str, since: Option<&str>) -> Vec<Value> {
    let since = since.map_or(String::new(), |since| format!("&cursor={since}"));
    let path = format!("/v1/poll?topic={topic}&wait=5{since}");
    let answer = relay.send(Request::get(path)).await.unwrap().json();
    answer["frames"].as_array().unwrap().clone()
}

/// What is removed through `here` is gone on `there`, too.
async fn a_removed_job_is_gone(here: &RelayServer, there: &RelayServer) {
    assert_eq!(
        verdict(&remove(here, "/v1/jobs/none").await),
        (404, "unknown_job".to_owned())
    );
    begin(here, "ev").await;
    let both = "/v1/poll?topic=job:ev&topic=user:o&wait=0";
    let since = here.send(Request::get(both)).await.unwrap().json();
    let since = since["cursor"].as_str().unwrap().to_owned();
    let milestone = "/v1/jobs/ev/milestones/half?owner=o";
    send(here, "POST", milestone, "1", "a").await;
    let foreign = remove(here, "/v1/jobs/ev?owner=other").await;
    assert_eq!(verdict(&foreign), (404, "unknown_job".to_owned()));
    let removed = remove(here, "/v1/jobs/ev?owner=o").await;
    assert_eq!(removed.status, 202);
    let cursor = removed.json()["cursor"].clone();
    for relay in [here, there] {
        for topic in ["job:ev", "user:o"] {
            let told = poll(relay, topic, Some(&since)).await;
            let last = told.last().unwrap();
            assert_eq!(last["type"], "gone", "{told:?}");
            assert_eq!(last["reason"], "removed");
        }
        let state = relay.send(Request::get("/v1/jobs/ev")).await.unwrap();
        assert_eq!(verdict(&state), (404, "removed".to_owned()));
        let again = remove(relay, "/v1/jobs/ev").await;
        assert_eq!(
            (again.status.as_u16(), &again.json()["cursor"]),
            (202, &cursor)
        );
        let late = send(
            relay,
            "POST",
            "/v1/jobs/ev",
            r#"{"status":"completed"}"#,
            "b",
        )
        .await;
        assert_eq!(verdict(&late), (409, "removed".to_owned()));
    }
}

#[tokio::test]
async fn a_removed_job_is_gone_on_every_node_and_stays_so_over_a_restart() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let start = async || {
        let settings = settings().jetstream(&nats.url());
        RelayServer::start(settings).await.unwrap()
    };
    let (here, there) = (start().await, start().await);
    a_removed_job_is_gone(&here, &there).await;
    let later = start().await;
    let state = later.send(Request::get("/v1/jobs/ev")).await.unwrap();
    assert_eq!(verdict(&state), (404, "removed".to_owned()));
    let anew = json!({"status": "running", "attempt": 2});
    later.publish("ev", "o", &anew).await.unwrap();
    let state = later.send(Request::get("/v1/jobs/ev")).await.unwrap();
    assert_eq!(state.status, 200);
}

#[tokio::test]
async fn without_a_bus_a_removed_job_is_gone_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history");
    let settings = settings().set("history.file", file.display());
    let mut relay = RelayServer::start(settings).await.unwrap();
    a_removed_job_is_gone(&relay, &relay).await;
    relay.terminate(Duration::from_secs(20)).await.unwrap();
    relay.restart().await.unwrap();
    let state = relay.send(Request::get("/v1/jobs/ev")).await.unwrap();
    assert_eq!(verdict(&state), (404, "removed".to_owned()));
}

/// A kind of jobs that is removed by a milestone, and words for Socket.IO.
const MINE: &str = r#"
description = "mine"
[kinds.mail]
removed_by = ["recalled"]
[[routes]]
path = "/socket.io"
transport = "socketio"
topics = ["job:{?job}"]
[frames]
state = '["state", .job.status]'
gone = '["gone", .reason, .last_status]'
"#;

/// A client over Socket.IO.
struct Packets(WebSocketStream<TcpStream>);

impl Packets {
    async fn open(relay: &RelayServer, job: &str) -> Self {
        let stream = TcpStream::connect(relay.address()).await.unwrap();
        let url = format!(
            "ws://{}/socket.io/?EIO=4&transport=websocket&job={job}",
            relay.address()
        );
        let (mut socket, _) = client_async(url, stream).await.unwrap();
        socket.send(Message::text("40")).await.unwrap();
        Self(socket)
    }

    async fn until(&mut self, part: &str) {
        let heard = async {
            while let Some(message) = self.0.next().await {
                let message = message.unwrap();
                if message.to_text().is_ok_and(|text| text.contains(part)) {
                    return;
                }
            }
            panic!("closed before {part}");
        };
        let heard = timeout(SOON, heard).await;
        heard.unwrap_or_else(|_| panic!("nobody says {part}"));
    }
}

/// Watches a job in every way that has words for what is gone.
async fn watch(relay: &RelayServer, job: &str) -> Vec<(String, Watcher)> {
    let mut watchers = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::LongPoll] {
        for topic in [
            format!("job:{job}"),
            "user:o".to_owned(),
            "group:g".to_owned(),
        ] {
            let watch = Watch::topics([topic.clone()]);
            let mut watcher = Watcher::connect(transport, &relay.address(), watch)
                .await
                .unwrap();
            let state = |frame: &Frame| frame.kind() == "state" && frame.job_id() == job;
            watcher.until(SOON, "the state", state).await.unwrap();
            watchers.push((topic, watcher));
        }
    }
    watchers
}

async fn are_told(watchers: &mut [(String, Watcher)], job: &str, case: &str) {
    for (topic, watcher) in watchers {
        let is_about = |frame: &Frame| frame.job_id() == job;
        let frame = watcher.until(SOON, "what is gone", is_about).await.unwrap();
        assert_eq!(frame.kind(), "gone", "{case}, {topic}: {frame}");
        assert_eq!(frame.0["reason"], "removed", "{case}: {frame}");
        assert_eq!(frame.0["last_status"], "running", "{case}: {frame}");
    }
}

async fn begin_in_group(relay: &RelayServer, job: &str) {
    let state = json!({"status": "running", "progress": 1, "parent_id": "g", "kind": "mail"});
    relay.publish(job, "o", &state).await.unwrap();
}

#[tokio::test]
async fn everybody_who_watches_a_job_hears_that_it_was_removed_in_every_mode() {
    for mode in ["embedded", "nats", "jetstream"] {
        let nats = match mode {
            "nats" => Some(NatsServer::start(Options::core()).await.unwrap()),
            "jetstream" => Some(NatsServer::start(Options::jetstream()).await.unwrap()),
            _ => None,
        };
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mine.toml"), MINE).unwrap();
        let start = async || {
            let mut settings = settings()
                .set("bus.mode", mode)
                .set("dialects.enabled", "mine")
                .set("dialects.directory", directory.path().display())
                .set("limits.connections_per_address", 1000);
            if let Some(nats) = &nats {
                settings = settings.set("nats.url", nats.url());
            }
            RelayServer::start(settings).await.unwrap()
        };
        let mut nodes = vec![start().await];
        if nats.is_some() {
            nodes.push(start().await);
        }
        for job in ["deleted", "recalled"] {
            begin_in_group(&nodes[0], job).await;
            let (mut watchers, mut packets) = (Vec::new(), Vec::new());
            for node in &nodes {
                watchers.extend(watch(node, job).await);
                let mut client = Packets::open(node, job).await;
                client.until("running").await;
                packets.push(client);
            }
            let last = nodes.last().unwrap();
            let recall = "/v1/jobs/recalled/milestones/recalled?owner=o";
            let removed = match job {
                "deleted" => remove(last, "/v1/jobs/deleted?owner=o").await,
                _ => send(last, "POST", recall, "1", "a").await,
            };
            assert_eq!(removed.status, 202, "{mode}: {}", removed.text());
            are_told(&mut watchers, job, mode).await;
            for client in &mut packets {
                client.until(r#"["gone","removed","running"]"#).await;
            }
            for node in &nodes {
                let state = node.send(Request::get(format!("/v1/jobs/{job}"))).await;
                let gone = (404, "removed".to_owned());
                assert_eq!(verdict(&state.unwrap()), gone, "{mode}");
                // The answer was lost: the same once more, and nothing comes of it.
                let again = match job {
                    "deleted" => remove(node, "/v1/jobs/deleted?owner=o").await,
                    _ => send(node, "POST", recall, "1", "b").await,
                };
                assert_eq!(again.status, 202, "{mode}: {}", again.text());
            }
            // It is not told twice.
            let next = format!("after-{job}");
            begin_in_group(&nodes[0], &next).await;
            for (topic, watcher) in &mut watchers {
                if topic.starts_with("job:") {
                    continue;
                }
                let frame = watcher.until(SOON, "the next", |frame| {
                    assert_ne!(frame.kind(), "gone", "{mode}, {topic}: {frame}");
                    frame.job_id() == next
                });
                frame.await.unwrap();
            }
        }
    }
}

/// It could not read while the job was removed, and it was not there.
#[tokio::test]
async fn a_node_that_missed_a_removal_tells_it_when_it_comes_back() {
    let mut nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let start = async || {
        let settings = settings()
            .jetstream(&nats.url())
            .set("limits.connections_per_address", 1000);
        RelayServer::start(settings).await.unwrap()
    };
    let (here, mut there) = (start().await, start().await);
    begin_in_group(&here, "ev").await;
    let mut watchers = watch(&there, "ev").await;
    let cursor = watchers[0].1.cursor();
    there.signal("STOP").unwrap();
    let removed = remove(&here, "/v1/jobs/ev?owner=o").await;
    assert_eq!(removed.status, 202);
    there.signal("CONT").unwrap();
    are_told(&mut watchers, "ev", "stopped").await;

    begin_in_group(&here, "ev2").await;
    drop(watchers);
    let watchers = watch(&there, "ev2").await;
    let before = watchers[0].1.cursor();
    drop(watchers);
    there.kill();
    let removed = remove(&here, "/v1/jobs/ev2?owner=o").await;
    assert_eq!(removed.status, 202);
    nats.restart().await.unwrap();
    there.restart().await.unwrap();
    for (job, since) in [("ev", cursor), ("ev2", before)] {
        let told = poll(&there, &format!("job:{job}"), since.as_deref()).await;
        assert_eq!(told.last().unwrap()["type"], "gone", "{told:?}");
    }
}

/// They would push out what says that it is gone.
#[tokio::test]
async fn a_removed_job_does_not_come_back_though_its_worker_goes_on() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    nats.create_stream(|stream| stream["max_msgs_per_subject"] = json!(8))
        .await
        .unwrap();
    let start = async || {
        let settings = settings().jetstream(&nats.url());
        RelayServer::start(settings).await.unwrap()
    };
    let relay = start().await;
    begin_in_group(&relay, "ev").await;
    assert_eq!(remove(&relay, "/v1/jobs/ev?owner=o").await.status, 202);
    let stored_again = "relay_endings_stored_again_total{result=\"stored\"}";
    for round in 1..=3 {
        for n in 0..8 {
            let late = json!({"status": "running", "progress": 10 * round + n}).to_string();
            nats.ask("progress.o.ev.state", &late).await.unwrap();
        }
        // Otherwise they would be gone before it could be read.
        let stored = async {
            while relay.metrics().await.unwrap().get(stored_again) < Some(f64::from(round)) {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, stored).await.unwrap();
    }
    let later = start().await;
    for node in [&relay, &later] {
        let state = node.send(Request::get("/v1/jobs/ev")).await.unwrap();
        assert_eq!(verdict(&state), (404, "removed".to_owned()));
        let told = poll(node, "user:o", None).await;
        assert_eq!(told, Vec::<Value>::new());
    }
}
