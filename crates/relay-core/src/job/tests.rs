use super::*;
use crate::kind::Kind;

static BOUNDS: LazyLock<JobBounds> = LazyLock::new(|| JobBounds {
    history: 4,
    update_bytes: 200,
    kinds: Arc::new(Kinds::new([(
        "mail".to_owned(),
        Kind {
            after_ending: vec![Name::parse("opened").unwrap()],
            removed_by: vec![Name::parse("deleted").unwrap()],
        },
    )])),
});

fn job() -> Job {
    let owner = Name::parse("alice").unwrap();
    Job::new(JobKey(1), Name::parse("j1").unwrap(), owner, Seq::ZERO)
}

fn place(seq: u64) -> Place {
    Place {
        epoch: Epoch::new(1),
        seq: Seq::new(seq),
        received_at: Moment::from_micros(seq),
        stored_at: WallTime::default(),
    }
}

fn state(job: &mut Job, seq: u64, text: &str) -> Result<(), Declined> {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    let applied = job.apply(Subject::State, &payload, place(seq), &BOUNDS);
    applied.map(drop)
}

fn milestone(job: &mut Job, seq: u64) -> Result<(), Declined> {
    let name = Name::parse("clip").unwrap();
    let payload = Bytes::from(seq.to_string());
    let applied = job.apply(Subject::Milestone(&name), &payload, place(seq), &BOUNDS);
    applied.map(drop)
}

fn seqs(publications: &[Arc<Publication>]) -> Vec<u64> {
    publications.iter().map(|each| each.seq.get()).collect()
}

const RUNNING: &str = r#"{"status":"running"}"#;
const FAILED: &str = r#"{"status":"failed"}"#;
const AGAIN: &str = r#"{"status":"running","attempt":2}"#;
const DONE: &str = r#"{"status":"completed","attempt":2}"#;

#[test]
fn a_newcomer_gets_the_state_and_the_milestones_after_it() {
    let mut job = job();
    milestone(&mut job, 1).unwrap();
    state(&mut job, 2, RUNNING).unwrap();
    milestone(&mut job, 3).unwrap();
    let replay = job.replay(None);
    assert!(!replay.recovered);
    assert_eq!(seqs(&replay.publications), [2, 3]);
}

#[test]
fn who_returns_gets_what_it_missed_endings_of_earlier_attempts_included() {
    let mut job = job();
    state(&mut job, 1, RUNNING).unwrap();
    milestone(&mut job, 2).unwrap();
    state(&mut job, 3, FAILED).unwrap();
    state(&mut job, 4, AGAIN).unwrap();
    let replay = job.replay(Some(Seq::new(1)));
    assert!(replay.recovered);
    assert_eq!(seqs(&replay.publications), [2, 3, 4]);
    assert!(job.replay(Some(Seq::new(4))).publications.is_empty());
}

#[test]
fn who_may_not_have_got_or_kept_what_it_began_with_gets_it_again_with_all_since() {
    let mut job = job();
    milestone(&mut job, 1).unwrap();
    state(&mut job, 2, RUNNING).unwrap();
    milestone(&mut job, 3).unwrap();
    milestone(&mut job, 4).unwrap();
    let told = |job: &Job, since, again| seqs(&job.replay_with(since, again).publications);
    assert!(
        job.replay_with(Some(Seq::new(3)), Again::Snapshot)
            .recovered
    );
    assert_eq!(told(&job, Some(Seq::new(3)), Again::Snapshot), [2, 3, 4]);
    assert_eq!(told(&job, Some(Seq::new(3)), Again::State), [2, 4]);
    assert_eq!(told(&job, Some(Seq::new(3)), Again::Nothing), [4]);
    state(&mut job, 5, FAILED).unwrap();
    for again in [Again::State, Again::Snapshot] {
        assert_eq!(told(&job, Some(Seq::new(3)), again), [4, 5]);
        assert_eq!(told(&job, Some(Seq::new(9)), again), [5]);
        assert_eq!(told(&job, None, again), [5]);
    }
}

#[test]
fn a_cursor_older_than_the_history_gets_a_snapshot_and_is_known_to_miss_something() {
    let mut job = job();
    state(&mut job, 1, RUNNING).unwrap();
    for seq in 2..=6 {
        milestone(&mut job, seq).unwrap();
    }
    state(&mut job, 7, r#"{"status":"running","stage":"b"}"#).unwrap();
    assert_eq!(
        job.known_from(),
        Seq::new(2),
        "the oldest of five was forgotten"
    );
    assert!(!job.replay(Some(Seq::new(1))).recovered);
    assert_eq!(job.left_out_since(Seq::new(1)), Some(Seq::new(6)));
    assert_eq!(job.left_out_since(Seq::new(6)), None);
    let replay = job.replay(Some(Seq::new(2)));
    assert!(replay.recovered);
    assert_eq!(seqs(&replay.publications), [3, 4, 5, 6, 7]);
}

#[test]
fn a_state_that_says_what_the_last_one_said_is_a_repetition() {
    let mut job = job();
    state(&mut job, 1, RUNNING).unwrap();
    let again = state(&mut job, 2, RUNNING).unwrap_err();
    assert_eq!(again.code(), "repeated");
    assert_eq!(job.state().unwrap().seq, Seq::new(1));
}

#[test]
fn what_is_declined_leaves_the_job_as_it_was() {
    let mut job = job();
    state(&mut job, 1, FAILED).unwrap();
    for (seq, text, code) in [
        (2, RUNNING, "after_ending"),
        (3, "{", "bad_json"),
        (
            4,
            &format!("{{\"status\":\"{}\"}}", "x".repeat(200)),
            "too_large",
        ),
    ] {
        assert_eq!(state(&mut job, seq, text).unwrap_err().code(), code);
    }
    assert_eq!(milestone(&mut job, 5).unwrap_err().code(), "after_ending");
    assert_eq!(seqs(&job.publications()), [1]);
}

#[test]
fn regression_a_rebuilt_job_keeps_the_ending_that_a_rollup_erased() {
    let mut known = job();
    state(&mut known, 1, RUNNING).unwrap();
    milestone(&mut known, 2).unwrap();
    state(&mut known, 3, FAILED).unwrap();
    state(&mut known, 4, AGAIN).unwrap();
    // The second ending rolled up the state's subject; this copy missed it and asked the store.
    let mut rebuilt = job();
    milestone(&mut rebuilt, 2).unwrap();
    state(&mut rebuilt, 5, DONE).unwrap();
    known.merge(rebuilt, &BOUNDS);
    let replay = known.replay(Some(Seq::new(1)));
    assert!(replay.recovered);
    assert_eq!(seqs(&replay.publications), [2, 3, 5]);
    assert_eq!(
        state(&mut known, 6, AGAIN).unwrap_err().code(),
        "after_ending"
    );
}

#[test]
fn a_merge_keeps_the_bound_of_the_history_and_says_what_it_lost() {
    let mut known = job();
    state(&mut known, 1, FAILED).unwrap();
    state(&mut known, 2, AGAIN).unwrap();
    let mut rebuilt = job();
    for seq in 3..=6 {
        milestone(&mut rebuilt, seq).unwrap();
    }
    state(&mut rebuilt, 7, DONE).unwrap();
    known.merge(rebuilt, &BOUNDS);
    assert_eq!(seqs(&known.publications()), [3, 4, 5, 6, 7]);
    assert_eq!(known.known_from(), Seq::new(1));
    assert!(!known.replay(Some(Seq::new(0))).recovered);
}

#[test]
fn doubt_means_that_milestones_may_be_lost_but_not_after_an_ending() {
    let mut running = job();
    state(&mut running, 1, RUNNING).unwrap();
    running.doubt(Seq::new(9));
    assert!(!running.replay(Some(Seq::new(8))).recovered);
    assert_eq!(running.left_out_since(Seq::new(8)), Some(Seq::new(9)));
    let mut ended = job();
    state(&mut ended, 1, FAILED).unwrap();
    ended.doubt(Seq::new(9));
    assert_eq!(ended.left_out_since(Seq::new(1)), None);
}

/// A worker that was not told that its ending arrived says it again.
#[test]
fn an_ending_said_twice_is_a_repetition_and_another_one_is_late() {
    let mut job = job();
    state(&mut job, 1, FAILED).unwrap();
    let again = state(&mut job, 2, FAILED);
    assert!(matches!(again, Err(Declined::Repeated)));
    assert!(matches!(
        job.check(Subject::State, FAILED.as_bytes(), &BOUNDS),
        Ok(Finality::Ending)
    ));
    let other = r#"{"status":"failed","message":"no, really"}"#;
    let late = state(&mut job, 3, other);
    assert!(matches!(late, Err(Declined::Stale(Stale::AfterEnding))));
}

/// What the job's state is now, behind `job_id` and `owner`.
fn told(job: &Job) -> String {
    let Some(Body::State { json, .. }) = job.state().map(|state| &state.body) else {
        return String::new();
    };
    let text = std::str::from_utf8(json).unwrap();
    let rest = text
        .strip_prefix(r#"{"job_id":"j1","owner":"alice","#)
        .unwrap();
    // What is taken over is a document that any reader takes.
    JobDocument::parse(json, &job.id, &job.owner).unwrap();
    format!("{{{rest}")
}

#[test]
fn a_state_without_progress_has_what_the_attempt_had_come_to() {
    let mut job = job();
    for (seq, said, is) in [
        (1, r#"{"status":"queued"}"#, r#"{"status":"queued"}"#),
        (
            2,
            r#"{"status":"running","current":8,"total":10}"#,
            r#"{"status":"running","progress":80,"current":8,"total":10}"#,
        ),
        (
            3,
            r#"{"status":"running","stage":"s","x":1}"#,
            r#"{"status":"running","progress":80,"stage":"s","x":1}"#,
        ),
        (
            4,
            r#"{"status":"failed","attempt":1,"x":1}"#,
            r#"{"status":"failed","attempt":1,"progress":80,"x":1}"#,
        ),
        (
            5,
            r#"{"status":"queued","attempt":2}"#,
            r#"{"status":"queued","attempt":2}"#,
        ),
        (
            6,
            r#"{"status":"running","attempt":2,"progress":12.50}"#,
            r#"{"status":"running","attempt":2,"progress":12.50}"#,
        ),
        (
            7,
            r#"{"status":"cancelled","attempt":2}"#,
            r#"{"status":"cancelled","attempt":2,"progress":12.5}"#,
        ),
        (
            8,
            r#"{"status":"failed","attempt":3,"progress":7}"#,
            r#"{"status":"failed","attempt":3,"progress":7}"#,
        ),
        (
            9,
            r#"{"status":"running","attempt":4,"progress":40}"#,
            r#"{"status":"running","attempt":4,"progress":40}"#,
        ),
        (
            10,
            r#"{"status":"failed","attempt":4,"progress":5}"#,
            r#"{"status":"failed","attempt":4,"progress":5}"#,
        ),
        (
            11,
            r#"{"status":"running","attempt":5,"progress":40}"#,
            r#"{"status":"running","attempt":5,"progress":40}"#,
        ),
        (
            12,
            r#"{"status":"completed","attempt":5}"#,
            r#"{"status":"completed","attempt":5,"progress":100}"#,
        ),
    ] {
        state(&mut job, seq, said).unwrap();
        assert_eq!(told(&job), is, "{said}");
    }
    assert_eq!(
        job.state()
            .and_then(|state| state.share())
            .unwrap()
            .progress,
        100.0
    );
}

#[test]
fn the_first_created_at_of_an_attempt_stays() {
    let mut job = job();
    let (first, other) = ("2026-11-21T10:00:00Z", "2026-11-21T12:00:00.5+02:00");
    for (seq, said, is) in [
        (
            1,
            r#"{"status":"queued"}"#.to_owned(),
            r#"{"status":"queued"}"#.to_owned(),
        ),
        (
            2,
            format!(r#"{{"status":"running","created_at":"{first}","x":1}}"#),
            format!(r#"{{"status":"running","created_at":"{first}","x":1}}"#),
        ),
        (
            3,
            r#"{"status":"running","progress":5,"meta":{}}"#.to_owned(),
            format!(r#"{{"status":"running","progress":5,"created_at":"{first}","meta":{{}}}}"#),
        ),
        (
            4,
            format!(r#"{{"status":"running","created_at":"{other}","x":1}}"#),
            format!(r#"{{"status":"running","progress":5,"created_at":"{first}","x":1}}"#),
        ),
        (
            5,
            format!(r#"{{"status":"failed","created_at":null,"ts":"{other}"}}"#),
            format!(r#"{{"status":"failed","progress":5,"created_at":"{first}","ts":"{other}"}}"#),
        ),
        (
            6,
            r#"{"status":"running","attempt":2}"#.to_owned(),
            format!(r#"{{"status":"running","attempt":2,"created_at":"{first}"}}"#),
        ),
        (
            7,
            format!(r#"{{"status":"running","attempt":3,"created_at":"{other}"}}"#),
            format!(r#"{{"status":"running","attempt":3,"created_at":"{other}"}}"#),
        ),
        (
            8,
            r#"{"status":"completed","attempt":3}"#.to_owned(),
            format!(
                r#"{{"status":"completed","attempt":3,"progress":100,"created_at":"{other}"}}"#
            ),
        ),
    ] {
        state(&mut job, seq, &said).unwrap();
        assert_eq!(told(&job), is, "{said}");
    }
}

#[test]
fn an_estimate_and_what_is_taken_over_stand_beside_each_other() {
    let mut job = job();
    let created = r#""created_at":"2026-11-21T10:00:00Z""#;
    let mut at = |seq: u64, text: &str| {
        let place = Place {
            received_at: Moment::from_micros(seq * 10_000_000),
            ..place(seq)
        };
        let payload = Bytes::copy_from_slice(text.as_bytes());
        job.apply(Subject::State, &payload, place, &BOUNDS).unwrap();
        told(&job)
    };
    at(
        1,
        &format!(r#"{{"status":"running","progress":10,{created}}}"#),
    );
    for seq in 2..6 {
        at(
            seq,
            &format!(r#"{{"status":"running","progress":{}}}"#, seq * 10),
        );
    }
    let told = at(6, r#"{"status":"running","message":"m","x":1}"#);
    let estimate = told.split_once(r#","eta_seconds":"#).unwrap();
    assert_eq!(
        estimate.0,
        r#"{"status":"running","progress":50,"message":"m""#
    );
    assert!(
        estimate
            .1
            .ends_with(&format!(r#","eta_estimated":true,{created},"x":1}}"#))
    );
}

#[test]
fn a_job_that_is_rebuilt_from_its_ending_alone_keeps_what_was_known() {
    let mut known = job();
    let created = r#""created_at":"2026-11-21T10:00:00Z""#;
    state(
        &mut known,
        1,
        &format!(r#"{{"status":"running","progress":80,{created}}}"#),
    )
    .unwrap();
    let mut rebuilt = job();
    rebuilt.inherit(known.legacy());
    state(&mut rebuilt, 5, FAILED).unwrap();
    known.merge(rebuilt, &BOUNDS);
    assert_eq!(
        told(&known),
        format!(r#"{{"status":"failed","progress":80,{created}}}"#)
    );
    state(&mut known, 6, AGAIN).unwrap();
    assert_eq!(
        told(&known),
        format!(r#"{{"status":"running","attempt":2,{created}}}"#)
    );
    // Who has never known it cannot say more than the store.
    let mut stranger = job();
    state(&mut stranger, 5, FAILED).unwrap();
    assert_eq!(told(&stranger), FAILED);
}

#[test]
fn the_time_of_the_first_update_stays() {
    let mut job = job();
    let at = |job: &Job| job.state().unwrap().first_at.to_rfc3339().unwrap();
    state(
        &mut job,
        1,
        r#"{"status":"queued","ts":"2026-11-21T10:00:00Z"}"#,
    )
    .unwrap();
    state(
        &mut job,
        2,
        r#"{"status":"running","ts":"2026-11-21T10:00:05Z"}"#,
    )
    .unwrap();
    assert_eq!(at(&job), "2026-11-21T10:00:00.000Z");
    let memory = job.memory();
    let restored = Job::restore(JobKey(2), job.id.clone(), job.owner.clone(), memory);
    let mut restored = restored.unwrap();
    state(&mut restored, 3, FAILED).unwrap();
    assert_eq!(at(&restored), "2026-11-21T10:00:00.000Z");
}

#[test]
fn an_ending_that_is_said_again_in_other_bytes_is_a_repetition_and_another_one_comes_too_late() {
    let mut job = job();
    let sent = r#"{ "status": "succeeded", "x": {"b": 1.50, "a": "\u00fc"}, "progress": 100.0, "current": 3, "total": 3 }"#;
    state(&mut job, 1, RUNNING).unwrap();
    state(&mut job, 2, sent).unwrap();
    let Body::State { json, .. } = &job.state().unwrap().body else {
        panic!("not a state");
    };
    // As a relay would store it again.
    let again = String::from_utf8(json.to_vec()).unwrap();
    assert_ne!(again, sent);
    for same in [sent, &again] {
        let told = state(&mut job, 3, same);
        assert!(matches!(told, Err(Declined::Repeated)), "{told:?}");
        let payload = same.as_bytes();
        let check = job.check(Subject::State, payload, &BOUNDS);
        assert_eq!(check.unwrap(), Finality::Ending);
    }
    for other in [RUNNING, FAILED, r#"{"status":"succeeded","x":{"b":1.5}}"#] {
        let told = state(&mut job, 4, other);
        assert!(
            matches!(told, Err(Declined::Stale(Stale::AfterEnding))),
            "{told:?}"
        );
    }
    assert_eq!(job.state().unwrap().seq, Seq::new(2));
}

#[test]
fn an_ending_that_lost_something_is_a_repetition_when_what_is_left_is_said_again() {
    for sent in [
        r#"{"status":"completed","meta":[],"progress":101,"result":{"a":1}}"#.to_owned(),
        format!(r#"{{"status":"failed","result":"{}"}}"#, "x".repeat(300)),
    ] {
        let mut job = job();
        let mut away = |seq, payload: &[u8]| {
            let judged = job.judge(Subject::State, payload, place(seq), Sender::Away, &BOUNDS)?;
            let publication = job.enter(judged, &BOUNDS);
            let Body::State { json, .. } = &publication.body else {
                panic!("not a state");
            };
            Ok::<_, Declined>(json.clone())
        };
        let left = away(1, sent.as_bytes()).unwrap();
        assert_ne!(left, sent.as_bytes());
        let again = away(2, &left);
        assert!(matches!(again, Err(Declined::Repeated)), "{again:?}");
    }
}

const REMOVED: &str = r#"{"status":"removed"}"#;

#[test]
fn a_removed_job_has_nothing_and_whoever_was_away_is_told() {
    let mut job = job();
    state(&mut job, 1, r#"{"status":"running","parent_id":"g"}"#).unwrap();
    milestone(&mut job, 2).unwrap();
    state(&mut job, 3, FAILED).unwrap();
    state(&mut job, 4, REMOVED).unwrap();
    assert!(job.state().is_none() && job.snapshot().is_empty());
    assert!(job.removed().unwrap().is_removal());
    assert_eq!(seqs(&job.replay(None).publications), [0; 0]);
    let replay = job.replay(Some(Seq::new(1)));
    assert!(replay.recovered);
    assert_eq!(seqs(&replay.publications), [4], "what is gone is not told");
    assert!(job.replay(Some(Seq::new(4))).publications.is_empty());
    assert!(job.holds(Seq::new(4)));
    for (late, code) in [
        (RUNNING, "removed"),
        (FAILED, "removed"),
        (REMOVED, "repeated"),
    ] {
        assert_eq!(state(&mut job, 5, late).unwrap_err().code(), code);
    }
    assert_eq!(milestone(&mut job, 5).unwrap_err().code(), "removed");
    let check = |text: &str| job.check(Subject::State, text.as_bytes(), &BOUNDS);
    assert_eq!(check(REMOVED).unwrap(), Finality::Removal);
    assert_eq!(check(AGAIN).unwrap(), Finality::Open);
    state(&mut job, 6, AGAIN).unwrap();
    let told = job.replay(Some(Seq::new(3)));
    assert_eq!(seqs(&told.publications), [4, 6]);
    assert_eq!(seqs(&job.snapshot()), [6]);
    let old = state(&mut job, 7, REMOVED).unwrap_err();
    assert_eq!(
        old.code(),
        "older_attempt",
        "it names the attempt it removes"
    );
    let removal = job.removal();
    state(&mut job, 8, &removal).unwrap();
    assert!(job.state().is_none());
}

#[test]
fn a_removal_keeps_the_group_in_which_the_job_was_shown() {
    let mut job = job();
    state(&mut job, 1, r#"{"status":"running","parent_id":"g"}"#).unwrap();
    assert_eq!(
        job.removal(),
        r#"{"status":"removed","attempt":1,"parent_id":"g","last_status":"running"}"#
    );
    state(&mut job, 2, REMOVED).unwrap();
    assert_eq!(job.group().map(Name::as_str), Some("g"));
    let mut rebuilt = Job::new(JobKey(1), job.id.clone(), job.owner.clone(), Seq::ZERO);
    let removal = r#"{"status":"removed","parent_id":"g"}"#;
    state(&mut rebuilt, 2, removal).unwrap();
    assert_eq!(rebuilt.group().map(Name::as_str), Some("g"));
}

#[test]
fn a_removed_job_is_removed_after_a_restart() {
    let mut job = job();
    state(&mut job, 1, DONE).unwrap();
    let removal = job.removal();
    state(&mut job, 2, &removal).unwrap();
    let restore = |job: &Job| {
        let (id, owner) = (job.id.clone(), job.owner.clone());
        Job::restore(JobKey(1), id, owner, job.memory()).unwrap()
    };
    let mut again = restore(&job);
    assert!(again.removed().is_some() && again.state().is_none());
    assert_eq!(state(&mut again, 3, DONE).unwrap_err().code(), "removed");
    state(&mut again, 4, r#"{"status":"running","attempt":3}"#).unwrap();
    let reopened = restore(&again);
    assert!(reopened.removed().is_none());
    assert_eq!(seqs(&reopened.publications()), [2, 4]);
}

#[test]
fn what_only_a_copy_knew_from_before_a_removal_is_owed_to_nobody() {
    let mut known = job();
    milestone(&mut known, 1).unwrap();
    state(&mut known, 2, FAILED).unwrap();
    let mut rebuilt = job();
    state(&mut rebuilt, 3, REMOVED).unwrap();
    state(&mut rebuilt, 4, AGAIN).unwrap();
    known.merge(rebuilt, &BOUNDS);
    assert_eq!(seqs(&known.publications()), [3, 4]);
}

fn named(job: &mut Job, seq: u64, name: &str) -> Result<(), Declined> {
    let name = Name::parse(name).unwrap();
    let applied = job.apply(
        Subject::Milestone(&name),
        &Bytes::new(),
        place(seq),
        &BOUNDS,
    );
    applied.map(drop)
}

#[test]
fn milestones_that_a_kind_declares_follow_an_ending_or_take_the_job_away() {
    let mail = r#"{"kind":"mail","status":"completed"}"#;
    let mut job = job();
    state(&mut job, 1, mail).unwrap();
    assert_eq!(
        named(&mut job, 2, "clip").unwrap_err().code(),
        "after_ending"
    );
    named(&mut job, 2, "opened").unwrap();
    assert_eq!(seqs(&job.snapshot()), [1, 2]);
    let name = Name::parse("deleted").unwrap();
    let check = job.check(Subject::Milestone(&name), b"", &BOUNDS);
    assert_eq!(check.unwrap(), Finality::Open);
    named(&mut job, 3, "deleted").unwrap();
    assert!(job.removed().is_some());
    for after in ["opened", "clip"] {
        assert_eq!(named(&mut job, 4, after).unwrap_err().code(), "removed");
    }
    // The answer to it was lost: it is said again, and nothing comes of it.
    let check = job.check(Subject::Milestone(&name), b"", &BOUNDS);
    assert_eq!(check.unwrap(), Finality::Open);
    assert_eq!(
        named(&mut job, 4, "deleted").unwrap_err().code(),
        "repeated"
    );

    let mut other = super::tests::job();
    state(&mut other, 1, RUNNING).unwrap();
    named(&mut other, 2, "deleted").unwrap();
    assert!(other.removed().is_none(), "another kind's word");
}
