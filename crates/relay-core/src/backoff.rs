//! How long to wait before trying again.
//!
//! Pure: the randomness is passed in. What waits, and for what, is not known here.
//!
//! Invariant: a delay never exceeds `max`, and its ceiling never shrinks as attempts go on.

use std::time::Duration;

/// Exponential backoff with full jitter: each delay is anything from nothing to a ceiling that doubles.
///
/// Full jitter spreads a herd better than a jitter around the ceiling, for the same total wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling of the first delay.
    initial: Duration,
    /// The ceiling no delay passes.
    max: Duration,
}

impl Backoff {
    /// A backoff that doubles from `initial` to `max`, however many attempts there are.
    pub const fn doubling(initial: Duration, max: Duration) -> Self {
        Self { initial, max }
    }

    /// The longest delay before the attempt counted from 0.
    pub(crate) fn ceiling(&self, attempt: u32) -> Duration {
        // Past a thousand doublings nothing finite is left; `max` holds from long before.
        let exponent = attempt.min(1_000) as i32;
        let grown = self.initial.as_secs_f64() * 2.0_f64.powi(exponent);
        match Duration::try_from_secs_f64(grown) {
            Ok(grown) => grown.min(self.max),
            Err(_) if self.initial.is_zero() => Duration::ZERO,
            Err(_) => self.max,
        }
    }

    /// The delay before the attempt counted from 0, where `random` is any number from a good source.
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        // The upper 53 bits make a fraction from 0 to just below 1 without rounding.
        let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
        self.ceiling(attempt).mul_f64(fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_ceiling_doubles_up_to_its_bound() {
        let backoff = Backoff::doubling(SECOND, 10 * SECOND);
        let ceilings: Vec<_> = (0..6).map(|n| backoff.ceiling(n).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.ceiling(u32::MAX), 10 * SECOND);
    }

    #[test]
    fn a_delay_spans_nothing_to_the_ceiling() {
        let backoff = Backoff::doubling(SECOND, 60 * SECOND);
        assert_eq!(backoff.delay(3, 0), Duration::ZERO);
        assert!(backoff.delay(3, u64::MAX) > Duration::from_millis(7_999));
        assert_eq!(backoff.delay(3, 1 << 63), 4 * SECOND);
    }

    proptest! {
        #[test]
        fn a_delay_is_bounded_and_its_ceiling_grows(
            initial in 0u64..100_000_000,
            max in 0u64..100_000_000_000,
            attempt in 0u32..5_000,
            random in any::<u64>(),
        ) {
            let (initial, max) = (Duration::from_micros(initial), Duration::from_micros(max));
            let backoff = Backoff::doubling(initial, max);
            prop_assert!(backoff.ceiling(attempt) <= max);
            prop_assert!(backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1));
            prop_assert!(backoff.ceiling(0) == initial.min(max));
            prop_assert!(backoff.delay(attempt, random) <= backoff.ceiling(attempt));
            prop_assert!(backoff.delay(attempt, random) <= backoff.delay(attempt, random | (1 << 63)));
        }
    }
}
