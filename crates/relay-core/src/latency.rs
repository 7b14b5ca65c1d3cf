//! How long things take, kept as a mean and a spread that forget slowly.
//!
//! Knows durations and clocks' readings, not what they were measured on.
//!
//! Invariant: mean and deviation are finite and not negative, whatever is observed.

use std::time::Duration;

use crate::moment::WallTime;

/// A moving mean and mean deviation of durations, as TCP keeps its round trip (RFC 6298): the first
/// observation is the mean and half of it the deviation; later ones weigh an eighth and a quarter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    mean: f64,
    deviation: f64,
    observed: bool,
}

impl Latency {
    /// Nothing observed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one duration.
    pub fn observe(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if self.observed {
            self.deviation += ((self.mean - took).abs() - self.deviation) / 4.0;
            self.mean += (took - self.mean) / 8.0;
        } else {
            (self.mean, self.deviation, self.observed) = (took, took / 2.0, true);
        }
    }

    /// The moving mean; `None` before the first observation.
    pub fn mean(&self) -> Option<Duration> {
        self.observed.then(|| duration(self.mean))
    }

    /// The moving mean deviation; `None` before the first observation.
    pub fn deviation(&self) -> Option<Duration> {
        self.observed.then(|| duration(self.deviation))
    }

    /// What is only rarely exceeded: the mean and four deviations; `None` before the first observation.
    pub fn upper(&self) -> Option<Duration> {
        let upper = self.mean + 4.0 * self.deviation;
        self.observed.then(|| duration(upper))
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The way of an update from its worker's clock to the relay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// How long it took; zero if the clocks say it arrived before it was sent.
    pub took: Duration,
    /// The worker's clock is ahead of the relay's, so `took` says little.
    pub skewed: bool,
}

/// How old what a worker published at `ts` was when it came in at `ingested`.
pub fn age(ts: WallTime, ingested: WallTime) -> Age {
    let (sent, came) = (ts.as_unix_micros(), ingested.as_unix_micros());
    Age {
        took: if came > sent {
            Duration::from_micros(came.abs_diff(sent))
        } else {
            Duration::ZERO
        },
        skewed: came < sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_first_observation_sets_both() {
        let mut latency = Latency::new();
        assert_eq!(latency.mean(), None);
        assert_eq!(latency.deviation(), None);
        assert_eq!(latency.upper(), None);
        latency.observe(millis(100));
        assert_eq!(latency.mean(), Some(millis(100)));
        assert_eq!(latency.deviation(), Some(millis(50)));
        assert_eq!(latency.upper(), Some(millis(300)));
    }

    #[test]
    fn later_ones_weigh_as_in_rfc_6298() {
        let mut latency = Latency::new();
        latency.observe(millis(100));
        latency.observe(millis(180));
        assert_eq!(latency.mean(), Some(millis(110)));
        assert_eq!(latency.deviation(), Some(Duration::from_micros(57_500)));
    }

    #[test]
    fn a_clock_ahead_of_ours_is_called_skewed() {
        let at = WallTime::from_unix_micros;
        let took = |took, skewed| Age { took, skewed };
        assert_eq!(
            age(at(1_000), at(3_500)),
            took(Duration::from_micros(2_500), false)
        );
        assert_eq!(age(at(1_000), at(1_000)), took(Duration::ZERO, false));
        assert_eq!(age(at(1_001), at(1_000)), took(Duration::ZERO, true));
        assert!(!age(at(i64::MIN), at(i64::MAX)).skewed);
    }

    proptest! {
        #[test]
        fn the_mean_stays_within_what_was_observed(all in proptest::collection::vec(0u64..10_000_000, 1..50)) {
            let mut latency = Latency::new();
            for micros in &all {
                latency.observe(Duration::from_micros(*micros));
            }
            let slack = Duration::from_micros(1);
            let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
            prop_assert!(latency.mean().unwrap() + slack >= Duration::from_micros(*least));
            prop_assert!(latency.mean().unwrap() <= Duration::from_micros(*most) + slack);
            prop_assert!(latency.deviation().unwrap() <= Duration::from_micros(*most) + slack);
        }
    }
}
