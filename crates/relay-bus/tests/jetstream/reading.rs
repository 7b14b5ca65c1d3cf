//! What comes in live.

use relay_bus::seam::{Store, What};
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, Worker, chain, job, name};

#[tokio::test]
async fn live_updates_carry_the_streams_numbers_and_the_one_before_on_their_subject() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    let from_seq = mode.heard.live(1).await.seq;
    assert_eq!(from_seq, Seq::new(0));
    let worker = Worker::at(&server.url()).await;
    worker.publish("progress.u1.j1.state", r#"{"n":1}"#).await;
    worker.publish("progress.u2.j2.state", r#"{"n":2}"#).await;
    worker
        .publish("progress.u1.j1.clip_completed", r#"{"n":3}"#)
        .await;
    worker.publish("progress.u1.j1.state", r#"{"n":4}"#).await;
    // Without an acknowledgement, as a simple worker does it.
    worker
        .client
        .publish("progress.u1.j1.state", r#"{"n":5}"#.into())
        .await
        .unwrap();
    let updates = mode.heard.updates_until(5).await;
    assert_eq!(
        chain(&updates),
        [
            (1, Some(0)),
            (2, Some(0)),
            (3, Some(0)),
            (4, Some(1)),
            (5, Some(4))
        ]
    );
    assert_eq!(updates[1].job.to_string(), "u2/j2");
    assert_eq!(updates[2].what, What::Milestone(name("clip_completed")));
    assert_eq!(updates[3].payload, r#"{"n":4}"#);
    assert!(
        updates
            .windows(2)
            .all(|pair| pair[0].stored_at <= pair[1].stored_at)
    );
}

#[tokio::test]
async fn what_was_there_before_is_below_from_seq() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    {
        let first = Mode::at(&server.url());
        first.heard.live(1).await;
    }
    let worker = Worker::at(&server.url()).await;
    for _ in 0..3 {
        worker.publish("progress.u.j.state", "{}").await;
    }
    let mode = Mode::at(&server.url());
    let from_seq = mode.heard.live(1).await.seq;
    assert_eq!(from_seq, Seq::new(3));
    worker.publish("progress.u.j.state", "{}").await;
    assert_eq!(chain(&mode.heard.updates_until(1).await), [(4, Some(3))]);
}

#[tokio::test]
async fn everything_above_from_seq_comes_by_while_a_worker_never_stops() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    Mode::at(&server.url()).heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    let mut flood = tokio::task::JoinSet::new();
    let client = worker.client.clone();
    flood.spawn(async move {
        for n in 0..3_000_u32 {
            let subject = format!("progress.u.j{}.state", n % 50);
            client.publish(subject, "{}".into()).await.unwrap();
            if n % 20 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    });
    let modes: Vec<Mode> = (0..4).map(|_| Mode::at(&server.url())).collect();
    for mode in &modes {
        let from_seq = mode.heard.live(1).await.seq;
        mode.heard
            .until("the last", |heard| {
                heard
                    .updates()
                    .last()
                    .is_some_and(|last| last.seq.get() == 3_000)
            })
            .await;
        let numbers: Vec<u64> = mode
            .heard
            .updates()
            .iter()
            .map(|update| update.seq.get())
            .collect();
        let first = numbers[0];
        assert!(first <= from_seq.next().get(), "{first} after {from_seq}");
        assert!(numbers.iter().copied().eq(first..=3_000));
    }
}

#[tokio::test]
async fn forged_headers_are_ignored() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    let forged = [
        ("Nats-Stream", "OTHER"),
        ("Nats-Sequence", "99999"),
        ("Nats-Last-Sequence", "99998"),
        ("Nats-Subject", "progress.evil.evil.state"),
        ("Nats-Time-Stamp", "1999-01-01T00:00:00Z"),
        ("Nats-Num-Pending", "7"),
        ("Nats-UpTo-Sequence", "99999"),
    ];
    worker
        .publish_with("progress.u.j.state", &forged, "{}")
        .await;
    worker
        .publish_with("progress.u.j.state", &forged, "{}")
        .await;
    let updates = mode.heard.updates_until(2).await;
    assert_eq!(chain(&updates), [(1, Some(0)), (2, Some(1))]);
    assert_eq!(updates[0].job.owner, name("u"));
    assert!(updates[0].stored_at.as_unix_micros() > 1_700_000_000_000_000);
    let loaded = mode
        .store
        .load_job(job("j"), Seq::new(2))
        .await
        .unwrap()
        .updates;
    assert_eq!(chain(&loaded), [(1, Some(0)), (2, Some(1))]);
    assert_eq!(loaded[0].job.owner, name("u"));
}

#[tokio::test]
async fn what_does_not_come_from_the_stream_is_dropped() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    worker
        .client
        .publish("live.progress.u.j.state", "{}".into())
        .await
        .unwrap();
    worker
        .publish("progress.u.too.many.tokens.state", "{}")
        .await;
    worker.publish("progress.u.bad!name.state", "{}").await;
    worker.publish("progress.u.j.state", "{}").await;
    let updates = mode.heard.updates_until(1).await;
    assert_eq!(chain(&updates), [(3, Some(0))]);
    assert_eq!(
        mode.heard.drops(),
        ["not_from_stream", "bad_subject", "bad_name"]
    );
    let refused = mode.heard.refused();
    assert_eq!(refused[0].subject, "live.progress.u.j.state");
    assert_eq!(refused[1].subject, "progress.u.too.many.tokens.state");
    assert_eq!(refused[1].seq, Some(Seq::new(1)));
    assert_eq!(refused[1].owner.as_deref(), Some("u"));
    assert_eq!(refused[2].field.as_deref(), Some("job_id"));
}

#[tokio::test]
async fn an_ending_that_expires_is_gone_and_nothing_comes_back() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    // The stream as the relay makes it, but with markers that let an ending expire within a test: a
    // lifetime shorter than the marker's is raised to the marker's.
    let worker = Worker::at(&server.url()).await;
    let stream = async_nats::jetstream::stream::Config {
        name: "PROGRESS".into(),
        subjects: vec!["progress.>".into()],
        allow_direct: true,
        allow_rollup: true,
        allow_message_ttl: true,
        subject_delete_marker_ttl: Some(std::time::Duration::from_secs(1)),
        republish: Some(async_nats::jetstream::stream::Republish {
            source: "progress.>".into(),
            destination: "live.progress.>".into(),
            headers_only: false,
        }),
        ..Default::default()
    };
    worker.jetstream.create_stream(stream).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    worker
        .publish("progress.u.j.state", r#"{"status":"running"}"#)
        .await;
    let ending = [("Nats-Rollup", "sub"), ("Nats-TTL", "1s")];
    worker
        .publish_with("progress.u.j.state", &ending, r#"{"status":"completed"}"#)
        .await;
    worker
        .publish_with("progress.u.j.clip", &[("Nats-TTL", "1s")], "{}")
        .await;
    let updates = mode.heard.updates_until(4).await;
    let gone = updates.last().unwrap();
    assert_eq!((&gone.what, gone.job.id.as_str()), (&What::Gone, "j"));
    // The milestone's marker is not the job's end.
    assert_eq!(updates.len(), 4);
    let loaded = mode
        .store
        .load_job(job("j"), gone.seq)
        .await
        .unwrap()
        .updates;
    assert!(
        loaded.iter().all(|update| update.what != What::State),
        "{loaded:?}"
    );
}

#[tokio::test]
async fn a_number_that_comes_twice_is_checked_and_reading_goes_on() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    worker.publish("progress.u.j.state", "2").await;
    // As a new leader may, when the old one was quicker to republish than to say so.
    let again = crate::support::headers(&[
        ("Nats-Stream", "PROGRESS"),
        ("Nats-Sequence", "2"),
        ("Nats-Last-Sequence", "1"),
        ("Nats-Time-Stamp", "2026-11-21T10:00:00Z"),
    ]);
    let live = "live.progress.u.j.state";
    let sent = worker.client.publish_with_headers(live, again, "2".into());
    sent.await.unwrap();
    worker.publish("progress.u.j.state", "3").await;
    let updates = mode.heard.updates_until(4).await;
    let expected = [(1, Some(0)), (2, Some(1)), (2, Some(1)), (3, Some(2))];
    assert_eq!(chain(&updates), expected);
    assert_eq!(mode.heard.lives().len(), 1);
}
