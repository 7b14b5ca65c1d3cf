//! How good a connection is, judged by how long its answers take and whether they come.
//!
//! Knows durations, not what was measured. A verdict changes only after several observations in a row say
//! so, and getting better takes more than getting worse: a page that is told of every hiccup learns nothing.
//!
//! Invariant: between two changes of the verdict there are at least `WORSE_AFTER` observations.

use std::time::Duration;

use crate::latency::Latency;

/// Observations in a row that make a verdict worse.
pub(crate) const WORSE_AFTER: u8 = 2;
/// Observations in a row that make it better.
pub(crate) const BETTER_AFTER: u8 = 3;
/// Answers missed in a row that make a connection bad at once.
pub(crate) const MISSED: u8 = 3;
/// From this mean on a connection is degraded.
const SLOW: Duration = Duration::from_millis(500);
/// From this mean on it is bad.
const VERY_SLOW: Duration = Duration::from_secs(2);
/// What is only rarely exceeded may be this much before a connection is degraded for its spread.
const UNSTEADY: Duration = Duration::from_secs(3);

/// A judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Grade {
    /// Nothing to complain of.
    #[default]
    Good,
    /// Slow, unsteady, or an answer did not come.
    Degraded,
    /// Hardly usable.
    Bad,
}

impl Grade {
    /// All, from the best.
    pub const ALL: [Self; 3] = [Self::Good, Self::Degraded, Self::Bad];

    /// The word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Degraded => "degraded",
            Self::Bad => "bad",
        }
    }
}

/// What is known of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quality {
    latency: Latency,
    verdict: Grade,
    /// Observations in a row that say something other than `verdict`.
    against: u8,
    missed: u8,
}

impl Quality {
    /// An answer came. The verdict, if it changes.
    pub fn observe(&mut self, took: Duration) -> Option<Grade> {
        self.latency.observe(took);
        self.missed = 0;
        self.consider(self.reading())
    }

    /// An answer did not come in time. The verdict, if it changes.
    pub fn miss(&mut self) -> Option<Grade> {
        self.missed = self.missed.saturating_add(1);
        if self.missed >= MISSED {
            self.against = 0;
            let changed = self.verdict != Grade::Bad;
            self.verdict = Grade::Bad;
            return changed.then_some(Grade::Bad);
        }
        self.consider(self.reading().max(Grade::Degraded))
    }

    /// The verdict that holds.
    pub fn verdict(&self) -> Grade {
        self.verdict
    }

    /// The times behind it.
    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    /// What the times alone say now.
    fn reading(&self) -> Grade {
        let mean = self.latency.mean().unwrap_or_default();
        let upper = self.latency.upper().unwrap_or_default();
        if mean >= VERY_SLOW {
            Grade::Bad
        } else if mean >= SLOW || upper >= UNSTEADY {
            Grade::Degraded
        } else {
            Grade::Good
        }
    }

    fn consider(&mut self, reading: Grade) -> Option<Grade> {
        if reading == self.verdict {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let enough = if reading > self.verdict {
            WORSE_AFTER
        } else {
            BETTER_AFTER
        };
        if self.against < enough {
            return None;
        }
        self.against = 0;
        self.verdict = reading;
        Some(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FAST: Duration = Duration::from_millis(40);

    #[test]
    fn one_slow_answer_changes_nothing_and_several_do() {
        let mut quality = Quality::default();
        assert_eq!(quality.observe(FAST), None);
        assert_eq!(quality.observe(Duration::from_secs(9)), None);
        assert_eq!(quality.verdict(), Grade::Good);
        assert_eq!(quality.observe(Duration::from_secs(9)), Some(Grade::Bad));
        assert_eq!(
            quality.observe(FAST),
            None,
            "better takes longer than worse"
        );
    }

    #[test]
    fn three_answers_missed_in_a_row_are_bad() {
        let mut quality = Quality::default();
        quality.observe(FAST);
        assert_eq!(quality.miss(), None);
        assert_eq!(quality.miss(), Some(Grade::Degraded));
        assert_eq!(quality.miss(), Some(Grade::Bad));
        assert_eq!(quality.miss(), None);
        for _ in 0..BETTER_AFTER - 1 {
            assert_eq!(quality.observe(FAST), None);
        }
        assert_eq!(quality.observe(FAST), Some(Grade::Good));
    }

    proptest! {
        #[test]
        fn a_verdict_stands_for_some_observations_unless_answers_stay_away(
            all in proptest::collection::vec(0u64..10_000, 1..200)
        ) {
            let mut quality = Quality::default();
            let mut since = WORSE_AFTER;
            for millis in all {
                since = since.saturating_add(1);
                if quality.observe(Duration::from_millis(millis)).is_some() {
                    prop_assert!(since >= WORSE_AFTER);
                    since = 0;
                }
            }
        }
    }
}
