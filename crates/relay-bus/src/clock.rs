//! The two clocks, read in one place: monotonic for durations, wall for what people and workers see.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use relay_core::moment::{Moment, WallTime};
use tokio::time::Instant;

/// Reads both clocks. Copies share one start, so their moments compare.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Time since the start.
    pub fn now(&self) -> Moment {
        Moment::default() + self.start.elapsed()
    }

    /// The instant at which [`Clock::now`] will be `at`.
    pub fn instant(&self, at: Moment) -> Instant {
        self.start + (at - Moment::default())
    }

    /// How long ago that was, by the wall clock; nothing if it is yet to come.
    pub(crate) fn age_of(&self, at: WallTime) -> Duration {
        let micros = self
            .wall()
            .as_unix_micros()
            .saturating_sub(at.as_unix_micros());
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    }

    /// The wall clock.
    pub fn wall(&self) -> WallTime {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        WallTime::from_unix_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
