use bytes::Bytes;
use relay_core::document::Status;
use relay_core::id::{Name, Owner};
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{Body, Frames};
use relay_core::tally::Share;
use relay_core::topic::Topic;
use relay_core::watcher::outbox::SubscriptionId;

use super::*;
use futures_util::FutureExt as _;

fn publication(job: u64, seq: u64, body: Body) -> Message {
    Message::Publish(Arc::new(Publication {
        seq: Seq::new(seq),
        epoch: Epoch::new(1),
        key: JobKey(job),
        job: Name::parse(&format!("j{job}")).unwrap(),
        owner: Owner::nobody(),
        parent: None,
        body,
        first_at: WallTime::default(),
        received_at: Moment::default(),
        worker_at: None,
        stored_at: WallTime::default(),
        frames: Frames::default(),
    }))
}

fn state(job: u64, seq: u64, status: Status) -> Message {
    let json = Bytes::from_static(b"{}");
    publication(
        job,
        seq,
        Body::State {
            json,
            status,
            attempt: 1,
            share: Share {
                status,
                progress: 0.0,
                weight: 1.0,
            },
        },
    )
}

fn milestone(job: u64, seq: u64) -> Message {
    let (name, data) = (Name::parse("clip").unwrap(), Bytes::from_static(b"1"));
    publication(job, seq, Body::Milestone { name, data })
}

fn joined(connection: u64) -> Message {
    let topic = Topic::parse("job:j1").unwrap();
    let joined = Joined {
        subscription: SubscriptionId(0),
        topic,
        owner: None,
        key: None,
        parent: None,
        several: None,
        since: None,
        recovered: false,
        publications: Vec::new(),
        left_out: Vec::new(),
        high: Seq::ZERO,
    };
    Message::Joined(ConnectionId(connection), Box::new(joined))
}

/// What comes out: numbers of publications; 0 for anything else.
/// States conflated and milestones shed.
fn lost(inbox: &Inbox) -> (u64, u64) {
    let stats = inbox.stats();
    (stats.conflated, stats.shed)
}

fn drained(inbox: &Inbox) -> Vec<u64> {
    let mut messages = Vec::new();
    inbox.drain(&mut messages);
    let seq = |message: &Message| match message {
        Message::Publish(publication) => publication.seq.get(),
        _ => 0,
    };
    messages.iter().map(seq).collect()
}

fn filled(count: usize) -> Inbox {
    let inbox = Inbox::default();
    (0..count).for_each(|_| inbox.push(Message::Stale(true)));
    inbox
}

#[test]
fn a_shard_that_keeps_up_gets_every_update_in_order() {
    let inbox = Inbox::default();
    for seq in 1..=3 {
        inbox.push(state(1, seq, Status::Running));
    }
    assert_eq!(drained(&inbox), [1, 2, 3]);
    assert_eq!(lost(&inbox), (0, 0));
}

#[test]
fn past_the_first_bound_a_newer_state_takes_the_older_ones_place_but_no_endings() {
    let inbox = filled(SOFT_LIMIT);
    inbox.push(state(1, 1, Status::Running));
    inbox.push(state(1, 2, Status::Failed));
    inbox.push(state(1, 3, Status::Running));
    inbox.push(state(2, 4, Status::Running));
    inbox.push(state(1, 5, Status::Running));
    assert_eq!(inbox.len(), SOFT_LIMIT + 3);
    assert_eq!(drained(&inbox)[SOFT_LIMIT..], [2, 4, 5]);
    assert_eq!(lost(&inbox), (2, 0));
}

#[test]
fn conflation_goes_on_when_the_holes_are_closed() {
    let inbox = Inbox::default();
    let rounds = 5 * u64::try_from(SOFT_LIMIT).unwrap();
    for seq in 1..=rounds {
        inbox.push(state(seq % 3, seq, Status::Running));
    }
    assert!(inbox.len() <= SOFT_LIMIT, "{}", inbox.len());
    let drained = drained(&inbox);
    assert!(drained.is_sorted());
    assert_eq!(
        drained[drained.len() - 3..],
        [rounds - 2, rounds - 1, rounds]
    );
}

#[test]
fn past_the_last_bound_milestones_are_shed_for_one_gap_a_job_and_joins_never() {
    let inbox = filled(HARD_LIMIT);
    for seq in 1..=3 {
        inbox.push(milestone(1, seq));
    }
    inbox.push(milestone(2, 4));
    inbox.push(joined(1));
    inbox.push(state(1, 5, Status::Completed));
    assert_eq!(lost(&inbox), (0, 4));
    let mut messages = Vec::new();
    inbox.drain(&mut messages);
    let rest = &messages[HARD_LIMIT..];
    assert!(
        matches!(
            rest,
            [
                Message::Gap(first),
                Message::Gap(second),
                Message::Joined(..),
                Message::Publish(_)
            ] if first.what.key == JobKey(1) && second.what.key == JobKey(2)
        ),
        "{rest:?}"
    );
}

#[test]
fn a_shard_is_woken_once_for_all_that_was_pushed_before() {
    let inbox = Inbox::default();
    inbox.wake();
    assert_eq!(inbox.arrived().now_or_never(), None, "nothing was pushed");
    inbox.push(state(1, 1, Status::Running));
    inbox.push(state(2, 2, Status::Running));
    assert_eq!(inbox.arrived().now_or_never(), None, "not yet");
    inbox.wake();
    inbox.wake();
    assert_eq!(inbox.arrived().now_or_never(), Some(()));
    assert_eq!(inbox.arrived().now_or_never(), None, "and no second time");
    assert_eq!(drained(&inbox), [1, 2]);
    assert!(inbox.is_empty());
}
