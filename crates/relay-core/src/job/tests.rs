use super::*;

const BOUNDS: JobBounds = JobBounds {
    history: 4,
    update_bytes: 200,
};

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
        Ok(true)
    ));
    let other = r#"{"status":"failed","message":"no, really"}"#;
    let late = state(&mut job, 3, other);
    assert!(matches!(late, Err(Declined::Stale(Stale::AfterEnding))));
}
