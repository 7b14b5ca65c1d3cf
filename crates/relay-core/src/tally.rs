//! How the jobs of a user or a group stand, taken together.
//!
//! A sum is kept up to date job by job: what a job counted for is taken out, what it counts for now is put in. No
//! digit is lost on the way (`exact`), so a weight beside which all others are nothing leaves no trace when it goes.
//! It does not know which jobs those are; its owner hands in each one's [`Share`].
//!
//! Invariant: what was put in can be taken out, in any order; an empty sum is all zeros.

mod exact;

use crate::document::{JobDocument, Status};
use crate::frames::Frames;
use crate::topic::Topic;
use exact::Exact;

/// What one job counts for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Where it stands.
    pub status: Status,
    /// How far it is, 0 to 100.
    pub progress: f32,
    /// What it weighs beside others.
    pub weight: f64,
}

/// The sum of shares, while they come and go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sum {
    counts: [u32; Status::ALL.len()],
    weight: Exact,
    /// Each job's progress times its weight.
    done: Exact,
}

/// A sum of shares at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    counts: [u32; Status::ALL.len()],
    progress: Option<f64>,
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
        reason = "a percentage needs no more digits"
    )]
    pub(crate) fn of_document(document: &JobDocument) -> Self {
        let status = document.status();
        let done = (status == Status::Completed).then_some(100.0);
        Self {
            status,
            progress: done.or(document.progress()).unwrap_or(0.0) as f32,
            weight: document.weight().unwrap_or(1.0),
        }
    }
}

impl Sum {
    /// One job more.
    pub fn add(&mut self, share: Share) {
        self.counts[share.status as usize] += 1;
        self.weight.add(share.weight, 1.0);
        self.done.add(share.weight, share.progress);
    }

    /// One job less, with the share it was added with.
    pub fn remove(&mut self, share: Share) {
        let count = &mut self.counts[share.status as usize];
        debug_assert!(*count > 0, "taken out, yet never put in");
        *count = count.saturating_sub(1);
        self.weight.remove(share.weight, 1.0);
        self.done.remove(share.weight, share.progress);
    }

    /// How they stand now.
    pub fn tally(&self) -> Tally {
        // Further digits would be the noise of shares kept in single precision.
        let rounded = |percent: f64| (percent * 1000.0).round() / 1000.0;
        let progress = self.done.over(&self.weight);
        Tally {
            counts: self.counts,
            progress: progress.map(|percent| rounded(percent.clamp(0.0, 100.0))),
        }
    }
}

impl Tally {
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
        self.progress
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

    fn share(status: Status, progress: f32, weight: f64) -> Share {
        Share {
            status,
            progress,
            weight,
        }
    }

    fn running(progress: f32, weight: f64) -> Share {
        share(Status::Running, progress, weight)
    }

    #[test]
    fn progress_is_weighted_and_the_worst_status_counts() {
        let mut sum = Sum::default();
        let empty = sum.tally();
        assert_eq!((empty.progress(), empty.worst()), (None, None));
        sum.add(share(Status::Completed, 100.0, 3.0));
        sum.add(running(20.0, 1.0));
        assert_eq!(sum.tally().progress(), Some(80.0));
        assert_eq!(sum.tally().worst(), Some(Status::Running));
        sum.add(share(Status::Failed, 0.0, 0.0));
        let tally = sum.tally();
        assert_eq!(tally.progress(), Some(80.0));
        assert_eq!(tally.worst(), Some(Status::Failed));
        assert_eq!((tally.total(), tally.count(Status::Completed)), (3, 1));
    }

    #[test]
    fn regression_progress_is_told_without_the_noise_of_single_precision() {
        let mut sum = Sum::default();
        sum.add(running(49.8, 3.0));
        sum.add(share(Status::Completed, 100.0, 1.0));
        sum.add(share(Status::Failed, 0.0, 1.0));
        assert_eq!(sum.tally().progress(), Some(49.88));
    }

    #[test]
    fn regression_a_very_large_weight_leaves_no_trace_when_it_goes() {
        let mut sum = Sum::default();
        sum.add(running(10.0, 1.0));
        sum.add(running(30.0, 3.0));
        for large in [1e18, 1e300, f64::MAX, f64::MIN_POSITIVE, 5e-324] {
            sum.add(running(50.0, large));
            sum.remove(running(50.0, large));
            assert_eq!(sum.tally().progress(), Some(25.0), "{large}");
        }
        // Beside each other they count as much as they weigh.
        let mut sum = Sum::default();
        sum.add(running(100.0, f64::MAX));
        sum.add(running(0.0, f64::MAX));
        assert_eq!(sum.tally().progress(), Some(50.0));
        sum.add(running(0.0, 1e300));
        assert_eq!(sum.tally().progress(), Some(50.0));
    }

    #[test]
    fn what_weighs_next_to_nothing_still_counts_alone() {
        let mut sum = Sum::default();
        sum.add(running(100.0, 5e-324));
        sum.add(running(50.0, 5e-324));
        sum.add(running(0.0, 0.0));
        assert_eq!(sum.tally().progress(), Some(75.0));
    }

    /// Any weight, of any magnitude.
    fn weight() -> impl Strategy<Value = f64> {
        let magnitude = (-300i32..=300).prop_map(|exponent| 10f64.powi(exponent));
        prop_oneof![
            Just(0.0),
            Just(1.0),
            0.0..1000.0f64,
            (magnitude, 1.0..10.0f64).prop_map(|(size, digits)| size * digits),
        ]
    }

    proptest! {
        #[test]
        fn what_is_taken_out_leaves_no_trace(
            shares in proptest::collection::vec((0usize..5, 0f32..=100.0, weight()), 0..50),
            order in any::<u64>(),
        ) {
            let mut sum = Sum::default();
            let mut shares: Vec<_> = shares.iter().map(|it| share(Status::ALL[it.0], it.1, it.2)).collect();
            for each in &shares {
                sum.add(*each);
                prop_assert!(sum.tally().progress().is_none_or(|it| (0.0..=100.0).contains(&it)));
            }
            prop_assert_eq!(sum.tally().total() as usize, shares.len());
            let mut at = order;
            while !shares.is_empty() {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                sum.remove(shares.swap_remove((at >> 33) as usize % shares.len()));
                prop_assert!(sum.tally().progress().is_none_or(|it| (0.0..=100.0).contains(&it)));
            }
            prop_assert_eq!(sum, Sum::default());
        }

        #[test]
        fn whatever_came_and_went_the_rest_is_told_as_if_it_had_been_alone(
            stays in proptest::collection::vec((0f32..=100.0, 0.001..1000.0f64), 1..20),
            goes in proptest::collection::vec((0f32..=100.0, weight()), 0..20),
        ) {
            let mut sum = Sum::default();
            goes.iter().for_each(|it| sum.add(running(it.0, it.1)));
            stays.iter().for_each(|it| sum.add(running(it.0, it.1)));
            goes.iter().for_each(|it| sum.remove(running(it.0, it.1)));
            let weight: f64 = stays.iter().map(|it| it.1).sum();
            let done: f64 = stays.iter().map(|it| f64::from(it.0) * it.1).sum();
            let told = sum.tally().progress().unwrap();
            // Three decimals are told.
            prop_assert!((told - done / weight).abs() <= 0.0005 + 1e-9, "{} and not {}", told, done / weight);
        }
    }
}
