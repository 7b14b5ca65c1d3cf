//! What the store answers.

use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::{Held, Store, StoreError, What};
use relay_core::id::Named;
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, Worker, chain, connection, job, name, settings};

async fn server() -> (NatsServer, Mode, Worker) {
    server_for(settings()).await
}

async fn server_for(settings: JetStreamSettings) -> (NatsServer, Mode, Worker) {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::start(settings, &connection(&server.url()));
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    (server, mode, worker)
}

fn named(owner: Option<&str>, job: &str) -> Named {
    Named {
        owner: owner.map(name),
        id: name(job),
    }
}

fn held(owner: Option<&str>, job: &str, seq: u64) -> Held {
    Held {
        job: named(owner, job),
        seq: Seq::new(seq),
    }
}

#[tokio::test]
async fn a_jobs_history_is_whole_and_in_order() {
    let (_server, mode, worker) = server().await;
    for n in 1..=10 {
        worker
            .publish("progress.u.j.state", &format!("{{\"n\":{n}}}"))
            .await;
        worker.publish("progress.u.other.state", "{}").await;
        if n % 5 == 0 {
            worker.publish("progress.u.j.clip", "{}").await;
        }
    }
    let loaded = mode
        .store
        .load_job(job("j"), Seq::new(22))
        .await
        .unwrap()
        .updates;
    let expected: Vec<(u64, Option<u64>)> = vec![
        (1, Some(0)),
        (3, Some(1)),
        (5, Some(3)),
        (7, Some(5)),
        (9, Some(7)),
        (11, Some(0)),
        (12, Some(9)),
        (14, Some(12)),
        (16, Some(14)),
        (18, Some(16)),
        (20, Some(18)),
        (22, Some(11)),
    ];
    assert_eq!(chain(&loaded), expected);
    assert_eq!(loaded[11].what, What::Milestone(name("clip")));
    assert_eq!(loaded[10].payload, r#"{"n":10}"#);
}

#[tokio::test]
async fn a_job_that_was_never_published_is_nothing_and_not_an_error() {
    let (_server, mode, worker) = server().await;
    assert!(
        mode.store
            .load_job(job("j"), Seq::new(0))
            .await
            .unwrap()
            .updates
            .is_empty()
    );
    worker.publish("progress.u.other.state", "{}").await;
    assert!(
        mode.store
            .load_job(job("j"), Seq::new(1))
            .await
            .unwrap()
            .updates
            .is_empty()
    );
    assert!(
        mode.store
            .load_last_states(None, Seq::new(0), 10)
            .await
            .unwrap()
            .len()
            == 1
    );
    assert!(
        mode.store
            .load_last_states(Some(name("nobody")), Seq::new(1), 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn an_ending_stands_alone_in_a_jobs_history() {
    let (_server, mode, worker) = server().await;
    worker.publish("progress.u.j.state", "{}").await;
    worker.publish("progress.u.j.clip", "{}").await;
    worker.publish("progress.u.j.state", "{}").await;
    let ending = [("Nats-Rollup", "sub"), ("Nats-TTL", "24h")];
    worker
        .publish_with("progress.u.j.state", &ending, r#"{"status":"completed"}"#)
        .await;
    let loaded = mode
        .store
        .load_job(job("j"), Seq::new(4))
        .await
        .unwrap()
        .updates;
    assert_eq!(chain(&loaded), [(2, Some(0)), (4, Some(0))]);
    // What is told live is what the chain was before: nothing of this subject is left.
    let live = mode.heard.updates_until(4).await;
    assert!(
        matches!(live[3].previous, Some(previous) if [0, 3].contains(&previous.get())),
        "{:?}",
        live[3].previous
    );
}

#[tokio::test]
async fn a_last_state_says_whether_it_is_all_there_is() {
    let (_server, mode, worker) = server().await;
    worker.publish("progress.u.a.state", "1").await;
    worker.publish("progress.u.b.state", "2").await;
    worker.publish("progress.u.b.state", "3").await;
    worker.publish("progress.u.c.state", "4").await;
    let rolled_up = [("Nats-Rollup", "sub")];
    worker
        .publish_with("progress.u.c.state", &rolled_up, "5")
        .await;
    let states = mode
        .store
        .load_last_states(Some(name("u")), Seq::new(5), 10)
        .await
        .unwrap();
    assert_eq!(chain(&states), [(1, Some(0)), (3, None), (5, Some(0))]);
}

/// Whoever asks for it costs the stream no more than for another job.
#[tokio::test]
async fn regression_a_job_that_holds_more_than_may_be_read_is_told_by_its_last_messages() {
    let large = "x".repeat(900_000);
    let takes_it = JetStreamSettings {
        update_bytes: large.len(),
        ..settings()
    };
    let (_server, mode, worker) = server_for(takes_it).await;
    worker.publish("progress.u.j.state", "first").await;
    for subject in ["clip", "frame"] {
        for _ in 0..8 {
            worker
                .publish(&format!("progress.u.j.{subject}"), &large)
                .await;
        }
        worker
            .publish(&format!("progress.u.j.{subject}"), "small")
            .await;
    }
    worker.publish("progress.u.j.state", "last").await;
    let history = mode.store.load_job(job("j"), Seq::new(20)).await.unwrap();
    assert_eq!(history.up_to, Seq::new(20));
    // The states are whole, whatever there is of milestones.
    let mut numbers: Vec<u64> = history.updates.iter().map(|it| it.seq.get()).collect();
    numbers.retain(|seq| [1, 10, 19, 20].contains(seq));
    assert_eq!(numbers, [1, 10, 19, 20]);
    assert!(history.updates.len() < 20, "{}", history.updates.len());
    assert!(
        history.left_out_to >= Seq::new(9),
        "{}",
        history.left_out_to
    );
    for _ in 0..12 {
        worker.publish("progress.u.j.state", &large).await;
    }
    let ending = worker.publish("progress.u.j.state", "ending").await;
    let history = mode.store.load_job(job("j"), ending).await.unwrap();
    let last = history.updates.last().unwrap();
    assert_eq!((last.seq, &*last.payload), (ending, &b"ending"[..]));
    assert_eq!(history.left_out_to, ending.before());
}

#[tokio::test]
async fn a_job_with_many_milestone_names_is_read_by_its_owner() {
    let (_server, mode, worker) = server().await;
    for n in 0..40 {
        worker
            .publish(&format!("progress.u.j.frame{n}"), "{}")
            .await;
    }
    worker.publish("progress.u.j.state", "{}").await;
    worker.publish("progress.v.j.state", "{}").await;
    let loaded = mode
        .store
        .load_job(job("j"), Seq::new(42))
        .await
        .unwrap()
        .updates;
    // The last is another owner's job of the same id.
    assert!(loaded.iter().map(|update| update.seq.get()).eq(1..=41));
}

#[tokio::test]
async fn more_subjects_than_a_server_answers_for_are_loaded_all_the_same() {
    let (_server, mode, worker) = server().await;
    for n in 0..1_100 {
        worker
            .client
            .publish(format!("progress.u.j.frame{n}"), "{}".into())
            .await
            .unwrap();
        worker
            .client
            .publish(format!("progress.u.job{n}.state"), "{}".into())
            .await
            .unwrap();
    }
    let last = worker.publish("progress.u.j.state", "{}").await;
    assert_eq!(last, Seq::new(2_201));
    let loaded = mode.store.load_job(job("j"), last).await.unwrap().updates;
    assert_eq!(loaded.len(), 1_101);
    assert_eq!(loaded[1_100].what, What::State);
    let states = mode
        .store
        .load_last_states(Some(name("u")), last, 2_000)
        .await
        .unwrap();
    assert_eq!(states.len(), 1_101);
    assert!(states.is_sorted_by_key(|state| state.seq));
    let recent = mode.store.load_last_states(None, last, 3).await.unwrap();
    let recent: Vec<u64> = recent.iter().map(|state| state.seq.get()).collect();
    assert_eq!(recent, [2_198, 2_200, 2_201]);
    // The question about `j` alone has too many subjects, and so has any with it.
    let jobs = (0..400).map(|n| held(None, &format!("job{n}"), 2 * n + 2));
    let jobs = jobs
        .chain([held(None, "j", 2_199), held(Some("u"), "job7", 1)])
        .collect();
    let mut changed = mode.store.changed(jobs).await.unwrap();
    changed.sort();
    assert_eq!(changed, [named(None, "j"), named(Some("u"), "job7")]);
}

#[tokio::test]
async fn changed_names_the_jobs_the_stream_knows_more_of() {
    let (_server, mode, worker) = server().await;
    worker.publish("progress.u.a.state", "{}").await;
    worker.publish("progress.u.b.state", "{}").await;
    worker.publish("progress.u.b.clip", "{}").await;
    mode.heard.updates_until(3).await;
    let jobs = vec![
        held(Some("u"), "a", 1),
        held(Some("u"), "b", 2),
        held(None, "unknown", 0),
        held(None, "a", 0),
    ];
    let changed = mode.store.changed(jobs).await.unwrap();
    assert_eq!(changed, [named(Some("u"), "b"), named(None, "a")]);
    assert!(
        mode.store
            .changed(vec![held(None, "unknown", 0)])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(mode.store.changed(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn last_states_are_of_the_owner_asked_for_and_without_the_gone() {
    let (_server, mode, worker) = server().await;
    worker.publish("progress.u.a.state", "1").await;
    worker.publish("progress.v.b.state", "2").await;
    worker.publish("progress.u.a.state", "3").await;
    worker.publish("progress.u.c.state", "4").await;
    worker.publish("progress.u.c.clip", "5").await;
    worker
        .publish_with(
            "progress.u.a.state",
            &[("Nats-Marker-Reason", "MaxAge")],
            "",
        )
        .await;
    let all = mode
        .store
        .load_last_states(None, Seq::new(6), 10)
        .await
        .unwrap();
    assert_eq!(
        all.iter().map(|state| state.seq.get()).collect::<Vec<_>>(),
        [2, 4]
    );
    let of_u = mode
        .store
        .load_last_states(Some(name("u")), Seq::new(6), 10)
        .await
        .unwrap();
    assert_eq!(
        of_u.iter().map(|state| state.seq.get()).collect::<Vec<_>>(),
        [4]
    );
}

#[tokio::test]
async fn a_stored_status_line_is_not_taken_for_the_end_of_an_answer() {
    let (server, mode, worker) = server().await;
    worker.publish("progress.u.j.state", "1").await;
    raw_publish(
        &server,
        "progress.u.j.state",
        "NATS/1.0 204 EOB\r\nX: y\r\n\r\n",
        "2",
    )
    .await;
    worker.publish("progress.u.j.state", "3").await;
    let loaded = mode
        .store
        .load_job(job("j"), Seq::new(3))
        .await
        .unwrap()
        .updates;
    let bodies: Vec<_> = loaded.iter().map(|update| update.payload.clone()).collect();
    assert_eq!(bodies, ["1", "2", "3"]);
}

/// A publisher that writes its own protocol.
async fn raw_publish(server: &NatsServer, subject: &str, headers: &str, payload: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = server.url().trim_start_matches("nats://").to_owned();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let text = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {subject} {} {}\r\n{headers}{payload}\r\nPING\r\n",
        headers.len(),
        headers.len() + payload.len(),
    );
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut heard = String::new();
    while !heard.contains("PONG") {
        let mut bytes = [0; 4096];
        let count = socket.read(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "{heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(!heard.contains("-ERR"), "{heard}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_fresh_is_not_given() {
    let (_server, mode, worker) = server().await;
    worker.publish("progress.u.j.state", "{}").await;
    // Nobody has message 1000; the leader's word is as good as it gets.
    assert_eq!(
        mode.store
            .load_job(job("j"), Seq::new(1_000))
            .await
            .unwrap()
            .updates
            .len(),
        1
    );
    let stale = mode
        .store
        .load_last_states(None, Seq::new(1_000), 10)
        .await
        .unwrap_err();
    assert!(matches!(stale, StoreError::Unreachable(_)), "{stale}");
    let reason = "no replica of the stream has caught up with message 1000";
    assert!(stale.to_string().ends_with(reason), "{stale}");
}

#[tokio::test]
async fn a_prefix_with_dots_works_throughout() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::start(
        relay_bus::jetstream::JetStreamSettings {
            prefix: "acme.jobs".into(),
            live_prefix: "edge.live".into(),
            stream: "ACME".into(),
            ..settings()
        },
        &crate::support::connection(&server.url()),
    );
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    worker.publish("acme.jobs.u.j.state", "{}").await;
    assert_eq!(chain(&mode.heard.updates_until(1).await), [(1, Some(0))]);
    assert_eq!(
        mode.store
            .load_job(job("j"), Seq::new(1))
            .await
            .unwrap()
            .updates
            .len(),
        1
    );
}
