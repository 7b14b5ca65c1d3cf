//! What a worker that publishes over NATS is told of: each kind of refusal, by the hub's own judgement.

use super::*;

fn hub() -> (Arc<Stream>, Arc<Hub>) {
    let stream = Arc::new(Stream::default());
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, Seq::ZERO);
    (stream, hub)
}

fn listed(hub: &Hub) -> Vec<(&'static str, String)> {
    let all = hub.refusals().refused;
    all.into_iter()
        .map(|it| (it.last.reason, it.last.subject))
        .collect()
}

#[tokio::test]
async fn each_refusal_is_listed_with_its_reason_and_subject() {
    let (stream, hub) = hub();
    let large = format!(
        r#"{{"status":"running","message":"{}"}}"#,
        "x".repeat(1 << 16)
    );
    let states = [
        ("a", r#"{"status":"runing"}"#, "bad_field"),
        ("b", r#"{"progress":NaN}"#, "bad_field"),
        ("c", "hello", "bad_json"),
        ("d", r#"{"progress":1}"#, "missing_status"),
        ("e", "[]", "not_an_object"),
        ("f", &large, "too_large"),
        (
            "g",
            r#"{"status":"running","job_id":"other"}"#,
            "contradiction",
        ),
    ];
    for (job, state, reason) in states {
        let update = stream.append(job, What::State, state.to_owned(), false);
        hub.ingest(&mut vec![update]);
        let (why, subject) = listed(&hub).swap_remove(0);
        assert_eq!(
            (why, subject),
            (reason, format!("progress.alice.{job}.state"))
        );
    }
    assert_eq!(hub.stats().refused, 7);
}

#[tokio::test]
async fn what_comes_too_late_is_listed_and_what_is_said_twice_is_not() {
    let (stream, hub) = hub();
    let tell = |what: What, payload: &str| {
        let update = stream.append("j", what, payload.to_owned(), false);
        hub.ingest(&mut vec![update]);
    };
    tell(What::State, r#"{"status":"running","progress":50}"#);
    tell(What::State, r#"{"status":"running","progress":40}"#);
    tell(What::State, r#"{"status":"completed"}"#);
    tell(What::State, r#"{"status":"completed"}"#);
    tell(What::Milestone(name("clip")), "1");
    tell(What::State, r#"{"status":"running"}"#);
    let reasons: Vec<_> = listed(&hub);
    assert_eq!(
        reasons,
        [
            ("after_ending", "progress.alice.j.state".to_owned()),
            ("after_ending", "progress.alice.j.clip".to_owned()),
            ("progress_fell", "progress.alice.j.state".to_owned()),
        ]
    );
}

#[tokio::test]
async fn a_mistake_is_told_though_nobody_watches_and_what_was_before_is_not_known() {
    let (stream, hub) = hub();
    // The node has not seen these.
    stream.append("j", What::State, r#"{"status":"queued"}"#.to_owned(), false);
    hub.live(EPOCH, Seq::new(1));
    let update = stream.append("j", What::State, r#"{"status":"runing"}"#.to_owned(), false);
    let good = stream.append(
        "j",
        What::State,
        r#"{"status":"running"}"#.to_owned(),
        false,
    );
    hub.ingest(&mut vec![update, good]);
    assert_eq!(
        listed(&hub),
        [("bad_field", "progress.alice.j.state".to_owned())]
    );
    let counts: BTreeMap<_, _> = hub.stats().counts.into_iter().collect();
    assert_eq!((counts["bad_field"], counts["unwatched"]), (1, 1));
}

#[tokio::test]
async fn the_sentence_is_the_one_that_http_gives() {
    let (stream, hub) = hub();
    let state = r#"{"status":"runing"}"#;
    let update = stream.append("j", What::State, state.to_owned(), false);
    hub.ingest(&mut vec![update]);
    let alone = Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH);
    let request = PublishRequest {
        job: name("j"),
        caller: None,
        owner: Some(owner()),
        verb: Verb::Put(What::State),
        payload: Bytes::from_static(state.as_bytes()),
        key: None,
    };
    let answered = alone.publish(request, |_| true).await.unwrap_err();
    let listed = hub.refusals().refused.swap_remove(0).last;
    assert_eq!(listed.sentence, answered.to_string());
    assert_eq!(listed.field.as_deref(), Some("status"));
    // Whoever was answered is not listed.
    assert_eq!(alone.refusals(), crate::refused::Refusals::default());
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_while_no_node_was_there_is_listed_when_the_job_is_asked_for() {
    let (stream, hub) = hub();
    let state = |status: &str| format!(r#"{{"status":"{status}"}}"#);
    stream.append("j", What::State, state("running"), false);
    stream.append("j", What::State, state("runing"), false);
    hub.live(EPOCH, Seq::new(2));
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    for _ in 0..2 {
        hub.lookup(&job("j")).await;
        let listed = hub.refusals();
        assert_eq!(listed.refused[0].last.seq, Some(Seq::new(2)));
        assert_eq!(
            (listed.refused[0].count, listed.refused[0].last.size),
            (1, 19)
        );
        assert_eq!(listed.total, 0, "it may have been counted when it came");
        hub.live(EPOCH, Seq::new(2));
    }
}

#[tokio::test]
async fn what_an_ending_loses_is_listed_and_counted_once() {
    let (stream, hub) = hub();
    let ending = r#"{"status":"completed","meta":[],"eta_seconds":-1}"#;
    let update = stream.append("j", What::State, ending.to_owned(), true);
    hub.ingest(&mut vec![update]);
    let listed = hub.refusals();
    let mut fields: Vec<_> = listed
        .refused
        .iter()
        .map(|it| {
            (
                it.last.outcome,
                it.last.field.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    fields.sort_by_key(|(_, field)| *field);
    let shortened = crate::seam::Outcome::Shortened;
    assert_eq!(fields, [(shortened, "eta_seconds"), (shortened, "meta")]);
    assert_eq!(listed.total, 1);
    let counts: BTreeMap<_, _> = hub.stats().counts.into_iter().collect();
    assert_eq!(
        (counts.get("shortened"), counts.get("accepted")),
        (Some(&1), None)
    );
}
