//! How the jobs of a user or a group stand, taken together.
//!
//! A tally is kept up to date job by job: what a job counted for is taken out, what it counts for now is
//! put in. It does not know which jobs those are; its owner hands in each one's [`Share`].
//!
//! Invariant: what was put in can be taken out; an empty tally is all zeros.

use crate::document::{JobDocument, Status};
use crate::frames::Frames;
use crate::topic::Topic;

/// What one job counts for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Where it stands.
    pub status: Status,
    /// How far it is, 0 to 100.
    pub progress: f32,
    /// What it weighs beside others.
    pub weight: f32,
}

/// The sum of shares.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    counts: [u32; Status::ALL.len()],
    weight: f64,
    /// Each job's progress times its weight.
    done: f64,
}

/// A tally at one moment, as watchers of its topic are told.
#[derive(Debug)]
pub struct Aggregate {
    /// Whose jobs, or which group's.
    pub topic: Topic,
    /// How they stand.
    pub tally: Tally,
    /// What others have encoded from it.
    pub frames: Frames,
}

impl Share {
    /// What a job in this state counts for.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a percentage and a weight need no more digits"
    )]
    pub(crate) fn of_document(document: &JobDocument) -> Self {
        let status = document.status();
        let done = (status == Status::Completed).then_some(100.0);
        Self {
            status,
            progress: done.or(document.progress()).unwrap_or(0.0) as f32,
            weight: document.weight().unwrap_or(1.0).min(f64::from(f32::MAX)) as f32,
        }
    }
}

impl Tally {
    /// One job more.
    pub fn add(&mut self, share: Share) {
        self.counts[share.status as usize] += 1;
        self.weight += f64::from(share.weight);
        self.done += f64::from(share.weight) * f64::from(share.progress);
    }

    /// One job less, with the share it was added with.
    pub fn remove(&mut self, share: Share) {
        let count = &mut self.counts[share.status as usize];
        debug_assert!(*count > 0, "taken out, yet never put in");
        *count = count.saturating_sub(1);
        self.weight -= f64::from(share.weight);
        self.done -= f64::from(share.weight) * f64::from(share.progress);
        if self.total() == 0 {
            // Nothing is left but what rounding left.
            *self = Self::default();
        }
    }

    /// How many jobs have a status.
    pub fn count(&self, status: Status) -> u32 {
        self.counts[status as usize]
    }

    /// How many jobs there are.
    pub fn total(&self) -> u32 {
        self.counts.iter().sum()
    }

    /// The progress of all, each by its weight, in percent with three decimals; `None` where nothing weighs
    /// anything.
    pub fn progress(&self) -> Option<f64> {
        // Further digits would be the noise of shares kept in single precision.
        let rounded = |percent: f64| (percent * 1000.0).round() / 1000.0;
        (self.weight > 0.0).then(|| rounded((self.done / self.weight).clamp(0.0, 100.0)))
    }

    /// The worst status any of them has: failed, then cancelled, then the least advanced of the others.
    pub fn worst(&self) -> Option<Status> {
        const FROM_WORST: [Status; 5] = [
            Status::Failed,
            Status::Cancelled,
            Status::Queued,
            Status::Running,
            Status::Completed,
        ];
        let mut present = FROM_WORST.into_iter().filter(|each| self.count(*each) > 0);
        present.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(status: Status, progress: f32, weight: f32) -> Share {
        Share {
            status,
            progress,
            weight,
        }
    }

    #[test]
    fn progress_is_weighted_and_the_worst_status_counts() {
        let mut tally = Tally::default();
        assert_eq!((tally.progress(), tally.worst()), (None, None));
        tally.add(share(Status::Completed, 100.0, 3.0));
        tally.add(share(Status::Running, 20.0, 1.0));
        assert_eq!(tally.progress(), Some(80.0));
        assert_eq!(tally.worst(), Some(Status::Running));
        tally.add(share(Status::Failed, 0.0, 0.0));
        assert_eq!(tally.progress(), Some(80.0));
        assert_eq!(tally.worst(), Some(Status::Failed));
        assert_eq!((tally.total(), tally.count(Status::Completed)), (3, 1));
    }

    #[test]
    fn regression_progress_is_told_without_the_noise_of_single_precision() {
        let mut tally = Tally::default();
        tally.add(share(Status::Running, 49.8, 3.0));
        tally.add(share(Status::Completed, 100.0, 1.0));
        tally.add(share(Status::Failed, 0.0, 1.0));
        assert_eq!(tally.progress(), Some(49.88));
    }

    proptest! {
        #[test]
        fn what_is_taken_out_leaves_no_trace(shares in proptest::collection::vec((0usize..5, 0f32..=100.0, 0f32..1000.0), 0..50)) {
            let mut tally = Tally::default();
            for (status, progress, weight) in &shares {
                tally.add(share(Status::ALL[*status], *progress, *weight));
                prop_assert!(tally.progress().is_none_or(|it| (0.0..=100.0).contains(&it)));
            }
            prop_assert_eq!(tally.total() as usize, shares.len());
            for (status, progress, weight) in &shares {
                tally.remove(share(Status::ALL[*status], *progress, *weight));
                prop_assert!(tally.progress().is_none_or(|it| (0.0..=100.0).contains(&it)));
            }
            prop_assert_eq!(tally, Tally::default());
        }
    }
}
