//! How long things take, kept as a mean and a spread that forget slowly.
//!
//! Knows durations, not what they were measured on.
//!
//! Invariant: mean and deviation are finite and not negative, whatever is observed.

use std::time::Duration;

/// A moving mean and mean deviation of durations, as TCP keeps its round trip (RFC 6298): the first
/// observation is the mean and half of it the deviation; later ones weigh an eighth and a quarter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    mean: f64,
    deviation: f64,
    observed: bool,
}

impl Latency {
    /// Takes in one duration.
    pub(crate) fn observe(&mut self, took: Duration) {
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
    pub(crate) fn upper(&self) -> Option<Duration> {
        let upper = self.mean + 4.0 * self.deviation;
        self.observed.then(|| duration(upper))
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
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
        let mut latency = Latency::default();
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
        let mut latency = Latency::default();
        latency.observe(millis(100));
        latency.observe(millis(180));
        assert_eq!(latency.mean(), Some(millis(110)));
        assert_eq!(latency.deviation(), Some(Duration::from_micros(57_500)));
    }

    proptest! {
        #[test]
        fn the_mean_stays_within_what_was_observed(all in proptest::collection::vec(0u64..10_000_000, 1..50)) {
            let mut latency = Latency::default();
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
