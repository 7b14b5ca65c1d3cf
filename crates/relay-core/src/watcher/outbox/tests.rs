//! The outbox on its own, and then with real jobs behind it and a client that is cut, comes back by cursor,
//! and must neither miss anything nor hear anything twice (promises 1 to 7).

use super::*;
use crate::document::Status;
use crate::id::{Name, Owner};
use crate::moment::WallTime;
use crate::position::Epoch;
use crate::publication::{Body, Frames};
use crate::tally::Share;
use bytes::Bytes;
use proptest::prelude::*;

const BOUNDS: OutboxBounds = OutboxBounds {
    milestones: 3,
    bytes: 1000,
    jobs: 4,
    interval: Duration::from_millis(100),
};
const ONE: SubscriptionId = SubscriptionId(1);
const TWO: SubscriptionId = SubscriptionId(2);
const START: Moment = Moment::from_micros(0);

fn after(millis: u64) -> Moment {
    START + Duration::from_millis(millis)
}

fn publication(job: u64, seq: u64, body: Body) -> Arc<Publication> {
    Arc::new(Publication {
        seq: Seq::new(seq),
        epoch: Epoch::new(1),
        key: JobKey(job),
        job: Name::parse(&format!("j{job}")).unwrap(),
        owner: Owner::nobody(),
        parent: None,
        body,
        first_at: WallTime::default(),
        received_at: START,
        worker_at: None,
        stored_at: WallTime::default(),
        frames: Frames::default(),
    })
}

fn share(status: Status) -> Share {
    Share {
        status,
        progress: 0.0,
        weight: 1.0,
    }
}

fn state(job: u64, seq: u64) -> Arc<Publication> {
    let (json, status) = (Bytes::from_static(b"{}"), Status::Running);
    publication(
        job,
        seq,
        Body::State {
            json,
            status,
            attempt: 1,
            share: share(status),
        },
    )
}

fn ending(job: u64, seq: u64) -> Arc<Publication> {
    let (json, status) = (Bytes::from_static(b"{}"), Status::Completed);
    publication(
        job,
        seq,
        Body::State {
            json,
            status,
            attempt: 1,
            share: share(status),
        },
    )
}

fn milestone(job: u64, seq: u64, bytes: usize) -> Arc<Publication> {
    let (name, data) = (Name::parse("m").unwrap(), Bytes::from(vec![b'1'; bytes]));
    publication(job, seq, Body::Milestone { name, data })
}

/// What is taken by `now`: numbers, with `None` for a gap.
fn take_all(outbox: &mut Outbox, now: Moment, ceiling: Seq) -> Vec<(Option<u64>, SubscriptionId)> {
    let mut taken = Vec::new();
    while let Some(each) = outbox.take(now, ceiling, &BOUNDS) {
        let seq = match &each.telling {
            Telling::Publication(publication) => Some(publication.seq.get()),
            Telling::Gap { .. } => None,
        };
        taken.push((seq, each.via));
    }
    taken
}

fn offer(outbox: &mut Outbox, publication: &Arc<Publication>) -> Offered {
    outbox.offer(publication, ONE, START, &BOUNDS)
}

#[test]
fn a_newer_state_takes_the_older_ones_place_and_an_ending_takes_none_away() {
    let mut outbox = Outbox::default();
    assert_eq!(offer(&mut outbox, &state(1, 1)), Offered::Queued);
    assert_eq!(offer(&mut outbox, &state(1, 2)), Offered::Conflated);
    assert_eq!(offer(&mut outbox, &ending(1, 3)), Offered::Conflated);
    assert_eq!(offer(&mut outbox, &state(1, 4)), Offered::Queued);
    let taken = take_all(&mut outbox, START, Seq::MAX);
    assert_eq!(taken, [(Some(3), ONE), (Some(4), ONE)]);
}

#[test]
fn states_of_a_job_are_paced_and_an_ending_waits_for_nothing() {
    let mut outbox = Outbox::default();
    offer(&mut outbox, &state(1, 1)).queued();
    assert_eq!(take_all(&mut outbox, START, Seq::MAX).len(), 1);
    offer(&mut outbox, &state(1, 2)).queued();
    assert_eq!(outbox.next_due(Seq::MAX), Some(after(100)));
    assert!(take_all(&mut outbox, after(99), Seq::MAX).is_empty());
    assert_eq!(take_all(&mut outbox, after(100), Seq::MAX).len(), 1);
    outbox
        .offer(&state(1, 3), ONE, after(100), &BOUNDS)
        .queued();
    outbox
        .offer(&ending(2, 4), ONE, after(101), &BOUNDS)
        .queued();
    let taken = take_all(&mut outbox, after(101), Seq::MAX);
    assert_eq!(taken, [(Some(3), ONE), (Some(4), ONE)]);
}

#[test]
fn a_repair_holds_back_what_is_newer() {
    let mut outbox = Outbox::default();
    offer(&mut outbox, &milestone(1, 1, 1)).queued();
    offer(&mut outbox, &milestone(1, 3, 1)).queued();
    assert_eq!(take_all(&mut outbox, START, Seq::new(2)), [(Some(1), ONE)]);
    assert_eq!(outbox.next_due(Seq::new(2)), None);
    offer(&mut outbox, &milestone(1, 2, 1)).queued();
    let taken = take_all(&mut outbox, START, Seq::MAX);
    assert_eq!(taken, [(Some(2), ONE), (Some(3), ONE)]);
}

#[test]
fn past_the_bound_the_oldest_milestones_become_one_gap_a_job() {
    let mut outbox = Outbox::default();
    for seq in 1..=3 {
        offer(&mut outbox, &milestone(1, seq, 1)).queued();
    }
    for seq in 4..=6 {
        assert_eq!(offer(&mut outbox, &milestone(1, seq, 1)), Offered::Shed(1));
    }
    let taken = take_all(&mut outbox, START, Seq::MAX);
    let expected = [None, Some(4), Some(5), Some(6)].map(|seq| (seq, ONE));
    assert_eq!(taken, expected);
}

#[test]
fn milestones_are_bounded_in_bytes_too() {
    let mut outbox = Outbox::default();
    offer(&mut outbox, &milestone(1, 1, 600)).queued();
    assert_eq!(offer(&mut outbox, &milestone(2, 2, 600)), Offered::Shed(1));
    let taken = take_all(&mut outbox, START, Seq::MAX);
    assert_eq!(taken, [(None, ONE), (Some(2), ONE)]);
}

#[test]
fn more_jobs_than_an_outbox_holds_overflow_it() {
    let mut outbox = Outbox::default();
    for job in 0..7 {
        offer(&mut outbox, &state(job, job + 1)).queued();
    }
    assert_eq!(offer(&mut outbox, &state(7, 8)), Offered::Overflow);
}

#[test]
fn regression_what_a_subscription_starts_with_neither_overflows_nor_sheds() {
    let mut outbox = Outbox::default();
    for seq in 1..=4 {
        outbox.owe(&milestone(1, seq, 600), ONE, START, &BOUNDS);
    }
    for seq in 11..=17 {
        offer(&mut outbox, &state(seq, seq)).queued();
    }
    let taken = take_all(&mut outbox, START, Seq::MAX);
    assert_eq!(taken.len(), 11);
    assert!(taken.iter().all(|(seq, _)| seq.is_some()));
}

#[test]
fn what_subscriptions_start_with_is_bounded_all_the_same() {
    let mut outbox = Outbox::default();
    for seq in 1..=10 {
        outbox.owe(&milestone(1, seq, 1), ONE, START, &BOUNDS);
    }
    let taken = take_all(&mut outbox, START, Seq::MAX);
    let expected = [None, Some(7), Some(8), Some(9), Some(10)].map(|seq| (seq, ONE));
    assert_eq!(taken, expected);
}

#[test]
fn regression_what_two_subscriptions_are_owed_outlives_one_of_them() {
    let mut outbox = Outbox::default();
    offer(&mut outbox, &ending(1, 5)).queued();
    let again = outbox.offer(&ending(1, 5), TWO, START, &BOUNDS);
    assert_eq!(again, Offered::Duplicate);
    outbox.forget(ONE);
    assert_eq!(
        take_all(&mut outbox, START, Seq::MAX),
        [(Some(5), TWO)],
        "promise 4: an ending is never lost"
    );
}

#[test]
fn regression_a_snapshot_leaves_what_another_subscription_is_owed() {
    let mut outbox = Outbox::default();
    outbox.resume(Seq::new(9));
    outbox.owe(&state(1, 5), ONE, START, &BOUNDS);
    outbox.owe(&state(1, 5), TWO, START, &BOUNDS);
    assert_eq!(outbox.behind(ONE), Some(Seq::new(4)));
    assert_eq!(outbox.behind(TWO), Some(Seq::new(4)));
    let taken = take_all(&mut outbox, START, Seq::MAX);
    assert_eq!(taken, [(Some(5), ONE), (Some(5), TWO)]);
}

#[test]
fn a_newer_state_supersedes_every_snapshot_of_its_job() {
    let mut outbox = Outbox::default();
    outbox.owe(&state(1, 5), ONE, START, &BOUNDS);
    outbox.owe(&state(1, 5), TWO, START, &BOUNDS);
    assert_eq!(offer(&mut outbox, &state(1, 6)), Offered::Conflated);
    assert_eq!(take_all(&mut outbox, START, Seq::MAX), [(Some(6), ONE)]);
}

#[test]
fn a_shared_publication_keeps_both_subscriptions_behind() {
    let mut outbox = Outbox::default();
    outbox.resume(Seq::new(9));
    outbox.owe(&milestone(1, 5, 1), ONE, START, &BOUNDS);
    outbox.share(JobKey(1), Seq::new(5), TWO);
    assert_eq!(outbox.behind(TWO), Some(Seq::new(4)));
    assert_eq!(
        outbox
            .take(START, Seq::MAX, &BOUNDS)
            .unwrap()
            .position
            .get(),
        9
    );
    assert_eq!(outbox.behind(TWO), None);
}

#[test]
fn regression_every_job_that_is_gone_is_told_though_all_have_the_number_of_the_last_update() {
    let mut outbox = Outbox::default();
    let last = ending(1, 7);
    assert_eq!(
        outbox.pass(&last, START, Seq::MAX, &BOUNDS),
        Some(Seq::new(7))
    );
    for job in [1, 2, 3] {
        let gone = publication(job, 7, Body::Gone(Gone::Expired { last: None }));
        assert_eq!(offer(&mut outbox, &gone), Offered::Queued, "{job}");
        let again = outbox.offer(&gone, TWO, START, &BOUNDS);
        assert_eq!(again, Offered::Duplicate, "{job}");
    }
    let told = take_all(&mut outbox, START, Seq::MAX);
    assert_eq!(told, [(Some(7), ONE); 3]);
}

#[test]
fn the_age_of_the_oldest_ending_is_known_while_it_waits() {
    let mut outbox = Outbox::default();
    assert_eq!(outbox.oldest_ending(after(5)), None);
    offer(&mut outbox, &ending(1, 1)).queued();
    assert_eq!(
        outbox.oldest_ending(after(5)),
        Some(Duration::from_millis(5))
    );
}

impl Offered {
    /// Asserts that it waits now.
    #[track_caller]
    fn queued(self) {
        assert!(matches!(self, Self::Queued | Self::Conflated), "{self:?}");
    }
}

#[test]
fn nothing_is_passed_on_that_has_to_wait() {
    let mut outbox = Outbox::default();
    let pass = |outbox: &mut Outbox, publication: &Publication, now| {
        outbox.pass(publication, now, Seq::new(10), &BOUNDS)
    };
    assert_eq!(pass(&mut outbox, &state(1, 1), START), Some(Seq::new(1)));
    // Seen through a second topic; before its pace allows; above what a repair allows.
    assert_eq!(pass(&mut outbox, &state(1, 1), after(200)), None);
    assert_eq!(pass(&mut outbox, &state(1, 2), after(99)), None);
    assert_eq!(pass(&mut outbox, &state(1, 11), after(200)), None);
    // Behind what waits already.
    offer(&mut outbox, &state(1, 2)).queued();
    assert_eq!(pass(&mut outbox, &ending(2, 3), START), None);
    assert_eq!(outbox.len(), 1);
}

proptest! {
    #[test]
    fn passing_on_is_the_same_as_offering_and_taking_at_once(
        steps in proptest::collection::vec((1u64..4, 0u8..3, 0u64..150, prop::bool::ANY), 1..40)
    ) {
        let (mut passing, mut offering) = (Outbox::default(), Outbox::default());
        let (mut passed, mut offered) = (Vec::new(), Vec::new());
        let mut now = START;
        for (seq, (job, kind, wait, held)) in (1u64..).zip(steps) {
            now = now + Duration::from_millis(wait);
            let ceiling = if held { Seq::new(seq).before() } else { Seq::MAX };
            let publication = match kind {
                0 => state(job, seq),
                1 => ending(job, seq),
                _ => milestone(job, seq, 1),
            };
            let waits = offering.offer(&publication, ONE, now, &BOUNDS);
            match passing.pass(&publication, now, ceiling, &BOUNDS) {
                Some(position) => passed.push((position, Some(seq))),
                None => prop_assert_eq!(passing.offer(&publication, ONE, now, &BOUNDS), waits),
            }
            for (outbox, told) in [(&mut passing, &mut passed), (&mut offering, &mut offered)] {
                while let Some(taken) = outbox.take(now, ceiling, &BOUNDS) {
                    let seq = match taken.telling {
                        Telling::Publication(publication) => Some(publication.seq.get()),
                        Telling::Gap { .. } => None,
                    };
                    told.push((taken.position, seq));
                }
            }
            prop_assert_eq!(&passed, &offered);
            prop_assert_eq!(passing.position(), offering.position());
            prop_assert_eq!(passing.next_due(Seq::MAX), offering.next_due(Seq::MAX));
        }
    }
}
