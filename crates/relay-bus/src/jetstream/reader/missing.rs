//! Which of the stream's numbers have not come by, and fetching those messages.
//!
//! A leader that ends between storing a message and republishing it, or a subscription that overflows,
//! loses messages for good; the next number shows it, or, if none follows, the leader's last number.
//!
//! Invariant: what cannot be fetched one by one ends in a comparison of everything the hub holds.

use std::time::Duration;

use relay_core::position::Seq;
use tokio::time::Instant;

use crate::jetstream::ask::{AskError, Asker};
use crate::jetstream::decode;
use crate::seam::Incoming;
use crate::subject::Subjects;

/// More than this is not fetched message by message.
const FETCHED: u64 = 256;
/// How long a stored message may take to come by.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two comparisons of everything.
const COMPARE_EVERY: Duration = Duration::from_secs(5);

/// Numbers of the stream, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: Seq,
    pub(super) last: Seq,
}

/// What has come by and what has not.
#[derive(Debug)]
pub(super) struct Missing {
    /// Everything up to here has come by, is being fetched, or awaits a comparison.
    seen: Seq,
    /// A number that must come by until then.
    expected: Option<(Seq, Instant)>,
    compare: bool,
    compared: Option<Instant>,
}

impl Missing {
    /// Nothing is missing up to `seq`.
    pub(super) fn after(seq: Seq) -> Self {
        Self {
            seen: seq,
            expected: None,
            compare: false,
            compared: None,
        }
    }

    pub(super) fn seen(&self) -> Seq {
        self.seen
    }

    /// A message came by; what is to be fetched before it.
    pub(super) fn saw(&mut self, seq: Seq) -> Option<Range> {
        let first = self.seen.next();
        self.seen = self.seen.max(seq);
        if seq > first {
            self.missed(first, seq.before())
        } else {
            None
        }
    }

    /// The leader has stored messages up to `seq`.
    pub(super) fn expect(&mut self, seq: Seq, now: Instant) {
        if seq > self.seen && self.expected.is_none() {
            self.expected = Some((seq, now + PATIENCE));
        }
    }

    /// What should have come by and has not.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Range> {
        let (seq, _) = self.expected.filter(|(_, until)| now >= *until)?;
        self.expected = None;
        let first = self.seen.next();
        self.seen = self.seen.max(seq);
        if seq >= first {
            self.missed(first, seq)
        } else {
            None
        }
    }

    fn missed(&mut self, first: Seq, last: Seq) -> Option<Range> {
        if last.since(first) < FETCHED {
            return Some(Range { first, last });
        }
        tracing::warn!(
            first = first.get(),
            last = last.get(),
            "many live messages are missing; everything is compared with the stream"
        );
        self.compare = true;
        None
    }

    /// Everything the hub holds has to be compared with the stream.
    pub(super) fn compare(&mut self) {
        self.compare = true;
    }

    /// Whether to compare now; not too often.
    pub(super) fn wants_compare(&mut self, now: Instant) -> bool {
        let is_time = self.compared.is_none_or(|last| now >= last + COMPARE_EVERY);
        if !(self.compare && is_time) {
            return false;
        }
        self.compare = false;
        self.compared = Some(now);
        true
    }
}

/// Fetches what the stream still has of a range, from the leader: a replica that has not got so far
/// would say that there is nothing.
///
/// Which message was before it on its subject the leader does not say. The nearest possible one is
/// claimed, so that the hub sees a hole and loads the job unless it has just that one.
pub(super) async fn fetch(
    asker: &Asker,
    subjects: &Subjects,
    range: Range,
) -> Result<Vec<Incoming>, AskError> {
    let filter = subjects.all();
    let mut updates = Vec::new();
    let mut next = range.first;
    while let Some(message) = asker.leader_next(&filter, next).await? {
        let seq = Seq::new(message.sequence);
        if seq > range.last {
            break;
        }
        next = seq.next();
        let update = decode::from_leader(subjects, message).update;
        updates.extend(update.map(|update| Incoming {
            previous: Some(update.seq.before()),
            ..update
        }));
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_number_left_out_is_fetched() {
        let mut missing = Missing::after(Seq::new(10));
        // Came between the subscription and the leader's word.
        assert_eq!(missing.saw(Seq::new(9)), None);
        assert_eq!(missing.saw(Seq::new(11)), None);
        assert_eq!(
            missing.saw(Seq::new(15)),
            Some(Range {
                first: Seq::new(12),
                last: Seq::new(14),
            })
        );
        assert_eq!(missing.seen(), Seq::new(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_end_is_fetched_when_its_time_is_over() {
        let mut missing = Missing::after(Seq::new(10));
        let now = Instant::now();
        missing.expect(Seq::new(12), now);
        assert_eq!(missing.saw(Seq::new(11)), None);
        assert_eq!(missing.overdue(now), None);
        assert_eq!(
            missing.overdue(now + PATIENCE),
            Some(Range {
                first: Seq::new(12),
                last: Seq::new(12),
            })
        );
        assert_eq!(missing.overdue(now + PATIENCE), None);
        missing.expect(Seq::new(13), now);
        assert_eq!(missing.saw(Seq::new(13)), None);
        assert_eq!(missing.overdue(now + PATIENCE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_to_fetch_is_compared_and_not_too_often() {
        let mut missing = Missing::after(Seq::new(0));
        let now = Instant::now();
        assert_eq!(missing.saw(Seq::new(1000)), None);
        assert!(missing.wants_compare(now));
        assert_eq!(missing.saw(Seq::new(2000)), None);
        assert!(!missing.wants_compare(now));
        assert!(missing.wants_compare(now + COMPARE_EVERY));
        assert!(!missing.wants_compare(now + 2 * COMPARE_EVERY));
    }
}
