//! Pings, deadlines of sessions, pacing, and leaving in time.

use relay_core::moment::WallTime;
use relay_wire::socketio::client::Visitor;
use relay_wire::socketio::protocol::Protocol;
use relay_wire::websocket::Inbound;

use super::*;
use crate::shard::connection::{Connection, Desk};

#[tokio::test(start_paused = true)]
async fn a_client_is_pinged_and_let_go_when_it_shows_no_sign_of_life() {
    with_shard(defaults, |bench| async move {
        let client = bench.client().await;
        sleep(Duration::from_secs(24)).await;
        assert_eq!(client.frames(), []);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(client.frames(), [(PING, Vec::new())]);
        sleep(Duration::from_secs(34)).await;
        assert!(bench.is_there(&client));
        sleep(Duration::from_secs(1)).await;
        assert!(!bench.is_there(&client));
        assert_eq!(client.closed(), Some(4408));
        assert_eq!(bench.closed("dead"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_stays() {
    with_shard(defaults, |bench| async move {
        let client = bench.client().await;
        for _ in 0..10 {
            sleep(Duration::from_secs(25)).await;
            // A pong, masked.
            let pong = [0x8a, 0x80, 0, 0, 0, 0];
            bench.shard.visit(client.id, |connection, desk| {
                connection.received(&pong, desk)
            });
        }
        assert!(bench.is_there(&client));
    })
    .await;
}

const HURRIED: &str = r#"
description = "Clients that are pinged more often than others"

[heartbeat]
ping_interval = "5s"
dead_after = "20s"

[[routes]]
path = "/hurried"
transport = "socketio"
namespace = "/"
topics = ["job:{?job}"]

[frames]
state = '["state", .job]'
"#;

/// Runs a test beside a shard that speaks that dialect.
async fn with_hurried<F: Future<Output = ()>>(test: impl FnOnce(Bench) -> F) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("hurried.toml"), HURRIED).unwrap();
    let configure = |config: &mut Config| {
        config.dialects.directory = Some(directory.path().to_owned());
        config.dialects.enabled = vec!["hurried".to_owned()];
    };
    with_shard(configure, test).await;
}

/// A session of that dialect, whose query names a job.
fn hurried(bench: &Bench, protocol: Protocol, job: &str) -> Opening {
    let visitor = Visitor {
        path: "/hurried".to_owned(),
        query: vec![("job".to_owned(), job.to_owned())],
    };
    let speaker = Speaker::socket_io(protocol, visitor);
    let who = (None, Ok(Identity::anonymous().shared()));
    let opening = bench.anybody(speaker).unauthenticated();
    opening.identified_by(vec![who])
}

/// With the node's own interval it would be let go before it was ever asked.
#[tokio::test(start_paused = true)]
async fn a_dialects_own_interval_governs_the_first_ping_of_socket_io() {
    with_hurried(|bench| async move {
        let opening = hurried(&bench, Protocol::websocket(), "unknown");
        let client = bench.connect(opening);
        let texts = || {
            let texts = client.frames().into_iter().map(|(_, text)| text);
            texts.map(|text| String::from_utf8(text).unwrap())
        };
        bench.says(&client, "40");
        bench.pause().await;
        let greeted: Vec<_> = texts().collect();
        assert!(greeted[0].contains(r#""pingInterval":5000"#), "{greeted:?}");
        assert!(greeted[1].starts_with("40{"), "{greeted:?}");
        for _ in 0..10 {
            sleep(Duration::from_secs(5)).await;
            assert_eq!(texts().collect::<Vec<_>>(), ["2"]);
            bench.says(&client, "3");
        }
        assert!(bench.is_there(&client));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_lives_as_long_as_its_socket_takes_what_is_sent() {
    with_shard(defaults, |bench| async move {
        let client = bench.event_stream("job:j1").await;
        sleep(Duration::from_secs(300)).await;
        assert!(bench.is_there(&client));
        assert!(client.bytes().starts_with(b":\n\n"), "a comment, as a ping");
        client.pipe.room.set(0);
        sleep(Duration::from_secs(100)).await;
        assert!(!bench.is_there(&client));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn states_of_a_job_are_paced_and_the_latest_arrives() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        for progress in 1..=5 {
            bench.progress("j1", progress).await;
        }
        let progress = |message: &Value| message["job"]["progress"].as_u64();
        let first: Vec<_> = client.messages().iter().filter_map(progress).collect();
        assert_eq!(first, [1], "the first at once, the others wait");
        sleep(Duration::from_millis(100)).await;
        let then: Vec<_> = client.messages().iter().filter_map(progress).collect();
        assert_eq!(then, [5], "promise 3");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_ending_does_not_wait_for_its_pace() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        bench.progress("j1", 1).await;
        bench.progress("j1", 2).await;
        client.bytes();
        bench.end("j1").await;
        let messages = client.messages();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0]["job"]["status"], "completed");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_its_token_does() {
    with_shard(defaults, |bench| async move {
        let now = bench.node.hub.clock().wall().as_unix_micros();
        let mut opening = bench.anybody(Speaker::websocket());
        opening.identity = Arc::new(Identity {
            expires_at: Some(WallTime::from_unix_micros(now + 5_000_000)),
            ..Identity::anonymous()
        });
        let client = bench.connect(opening);
        sleep(Duration::from_millis(4_500)).await;
        assert!(bench.is_there(&client));
        let warned = client.messages();
        let warned: Vec<_> = warned
            .iter()
            .filter(|each| each["type"] == "token_expiring")
            .collect();
        assert_eq!(warned.len(), 1);
        // The clock on the wall is not the one that stands still.
        assert!(warned[0]["expires_in_ms"].as_u64().unwrap() <= 5_000);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(client.closed(), Some(4401));
        assert_eq!(bench.closed("expired"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_say_who_it_is_in_time_is_let_go() {
    with_shard(defaults, |bench| async move {
        let opening = bench.anybody(Speaker::websocket()).unauthenticated();
        let client = bench.connect(opening);
        bench.says(&client, r#"{"type":"subscribe","topic":"job:j1"}"#);
        sleep(Duration::from_millis(9_900)).await;
        assert_eq!(client.kinds(), ["hello", "error"]);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(client.closed(), Some(4401));
        assert_eq!(bench.closed("unauthenticated"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_everybody_at_once_and_lets_them_go_within_its_window() {
    with_shard(defaults, |bench| async move {
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(bench.watcher("job:j1").await);
        }
        bench.drain.send_replace(true);
        bench.pause().await;
        for client in &clients {
            assert_eq!(client.kinds(), ["server_shutdown"], "promise 10");
        }
        // Five milliseconds of room each.
        sleep(Duration::from_millis(101)).await;
        for client in &clients {
            assert_eq!(client.closed(), Some(1012));
        }
        assert_eq!(bench.closed("drain"), 20);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_the_relay_drains_is_let_go_at_once() {
    with_shard(defaults, |bench| async move {
        let _stays = bench.client().await;
        bench.drain.send_replace(true);
        bench.pause().await;
        let late = bench.connect(bench.anybody(Speaker::websocket()));
        assert!(!bench.is_there(&late));
        assert_eq!(late.closed(), Some(1012));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_waits_for_news_and_a_drain_answers_it() {
    use relay_wire::exchange::{Hurry, Unanswered};
    use tokio::sync::oneshot;

    with_shard(defaults, |bench| async move {
        let poll = || {
            let topics = vec![Topic::parse("job:j1").unwrap()];
            let opening = bench.anybody(Speaker::long_poll(1)).watching(topics, None);
            let (request, answered) = oneshot::channel();
            let (id, _) = bench.shard.begin_polling(opening, Some(request));
            (id, answered)
        };
        let (_, mut answered) = poll();
        sleep(Duration::from_secs(20)).await;
        assert!(answered.try_recv().is_err(), "there is no news");
        bench.progress("j1", 1).await;
        let body = answered.await.unwrap().unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["frames"][0]["job"]["progress"], 1);

        bench.end("j1").await;
        let (id, answered) = poll();
        bench.shard.hurry(id, Hurry::Time);
        assert!(
            answered.await.unwrap().is_ok(),
            "in a hurry, with what there is"
        );

        let topics = vec![Topic::parse("job:j2").unwrap()];
        let opening = bench.anybody(Speaker::long_poll(1)).watching(topics, None);
        let (request, answered) = oneshot::channel();
        bench.shard.begin_polling(opening, Some(request));
        bench.pause().await;
        bench.drain.send_replace(true);
        assert_eq!(answered.await.unwrap(), Err(Unanswered::Draining));
    })
    .await;
}

/// Its timer came up at once, for ever: the shard ran without a pause.
#[tokio::test(start_paused = true)]
async fn regression_a_poll_that_may_not_be_answered_yet_sets_no_timer_for_what_is_due() {
    use tokio::sync::oneshot;

    with_shard(defaults, |bench| async move {
        let topics = vec![Topic::parse("job:j1").unwrap()];
        // Two topics, of which one is still waited for.
        let opening = bench.anybody(Speaker::long_poll(2)).watching(topics, None);
        let (request, mut answered) = oneshot::channel();
        bench.shard.begin_polling(opening, Some(request));
        bench.progress("j1", 1).await;
        sleep(Duration::from_secs(5)).await;
        let waits = Err(oneshot::error::TryRecvError::Empty);
        assert_eq!(answered.try_recv(), waits);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn regression_news_for_a_client_that_does_not_poll_sets_no_timer() {
    with_hurried(|bench| async move {
        let opening = hurried(&bench, Protocol::polling(), "j1");
        let (id, _) = bench.shard.begin_polling(opening, None);
        bench.shard.visit(id, |connection, desk| {
            connection.take_messages([Inbound::Text("40".into())], desk);
        });
        bench.progress("j1", 1).await;
        sleep(Duration::from_secs(10)).await;
        let is_owed = |connection: &mut Connection, _: &mut Desk<'_>| connection.watcher.is_owed();
        assert_eq!(bench.shard.visit(id, is_owed), Some(true));
    })
    .await;
}
