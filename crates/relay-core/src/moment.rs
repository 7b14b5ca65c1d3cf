//! Time as core sees it: a number somebody else read off a clock.
//!
//! Core never asks what time it is. Its callers pass a [`Moment`], so a test can move time by
//! adding to a number.

use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the relay's monotonic clock, in microseconds since an arbitrary start.
///
/// Kept one higher than it is, so that an `Option` of it takes no more room: a connection has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// The moment `micros` microseconds after the clock's start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(micros))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Default for Moment {
    /// The clock's start.
    fn default() -> Self {
        Self::from_micros(0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}

/// A point in wall-clock time, in microseconds since the Unix epoch. Workers' clocks speak this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(i64);

impl WallTime {
    /// The wall time `micros` microseconds after 1970-01-01T00:00:00Z.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub const fn as_unix_micros(self) -> i64 {
        self.0
    }

    /// Reads an RFC 3339 time stamp such as `2026-11-21T10:00:00.250Z`; `None` if it is not one, or could not be
    /// written in UTC.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
            .ok()?;
        let at = i64::try_from(at.unix_timestamp_nanos() / 1000).map(Self);
        at.ok().filter(|at| at.utc().is_some())
    }

    /// Writes the time as RFC 3339 in UTC with milliseconds; `None` where that has no word for it, before the year 0
    /// and after 9999.
    pub fn to_rfc3339(self) -> Option<String> {
        let at = self.utc()?;
        Some(format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond()
        ))
    }

    /// The time as a date of a year that has four digits.
    fn utc(self) -> Option<time::OffsetDateTime> {
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000);
        at.ok().filter(|at| at.year() >= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_may_be_absent_takes_no_more_room() {
        assert_eq!(size_of::<Option<Moment>>(), size_of::<u64>());
        assert_eq!(Moment::default(), Moment::from_micros(0));
        let last = Moment::from_micros(u64::MAX);
        assert_eq!(last + Duration::from_micros(1), last);
    }

    #[test]
    fn wall_time_survives_a_round_trip_through_rfc3339() {
        let at = WallTime::parse_rfc3339("2026-11-21T10:00:00.250+02:00").unwrap();
        let text = at.to_rfc3339().unwrap();
        assert_eq!(text, "2026-11-21T08:00:00.250Z");
        assert_eq!(WallTime::parse_rfc3339(&text), Some(at));
        assert_eq!(WallTime::parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn a_time_that_cannot_be_written_is_no_other_time() {
        for (text, read) in [
            ("9999-12-31T23:59:59.999Z", true),
            ("9999-12-31T23:59:59-00:01", false),
            ("0000-01-01T00:00:00Z", true),
            ("0000-01-01T00:00:00+00:01", false),
            ("1969-12-31T23:59:59.999Z", true),
        ] {
            let at = WallTime::parse_rfc3339(text);
            assert_eq!(at.is_some(), read, "{text}");
            let again = at.and_then(WallTime::to_rfc3339);
            let again = again.and_then(|again| WallTime::parse_rfc3339(&again));
            assert_eq!(again, at, "{text}");
        }
        for micros in [i64::MAX, i64::MIN] {
            assert_eq!(WallTime::from_unix_micros(micros).to_rfc3339(), None);
        }
    }

    #[test]
    fn a_moment_before_another_is_zero_after_it() {
        let early = Moment::from_micros(5);
        let late = early + Duration::from_micros(7);
        assert_eq!(late - early, Duration::from_micros(7));
        assert_eq!(early - late, Duration::ZERO);
    }
}
