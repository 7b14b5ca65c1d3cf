//! How long a job has still to run, guessed from how its progress has risen.
//!
//! One small estimator a job. Knows progress and moments; what a person is told is the document's affair.
//!
//! Invariant: an estimate is finite and not negative, and there is none before there is reason for one.

use std::time::Duration;

use crate::moment::Moment;

/// Progress that arrives closer together than this is one observation: a burst says nothing of pace.
const BURST: Duration = Duration::from_millis(250);
/// No estimate before a job has been watched so long.
const MIN_WATCHED: Duration = Duration::from_secs(2);
/// No estimate before progress has risen so far while it was watched.
const MIN_RISEN: f32 = 1.0;
/// No estimate before the pace was measured so often.
const MIN_MEASURED: u8 = 2;
/// How much of the time watched so far weighs in the pace: the last quarter, more or less.
const MEMORY: f64 = 0.25;
/// Longer than this is not worth saying.
const MAX_LEFT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Estimates the time a job has left from its progress.
///
/// The pace is an average that forgets: what is long ago, measured against the time the job has been
/// watched, weighs less. Between observations an estimate counts down; when it runs out there is none
/// until the job moves again.
///
/// Progress that falls means another attempt, which begins afresh.
#[derive(Debug, Clone, Copy, Default)]
pub struct EtaEstimator {
    /// When this attempt was first seen.
    started: Moment,
    /// When the pace was last measured.
    measured_at: Moment,
    /// When progress last came.
    seen_at: Moment,
    started_progress: f32,
    measured_progress: f32,
    seen_progress: f32,
    /// Points of progress a second.
    pace: f32,
    /// How often the pace was measured; as high as it needs to count.
    measured: u8,
    /// Whether there was any progress yet.
    begun: bool,
}

impl EtaEstimator {
    /// Takes in that the job was at `progress` at the moment `at`.
    pub(crate) fn observe(&mut self, progress: f64, at: Moment) {
        if !(0.0..=100.0).contains(&progress) {
            return;
        }
        let progress = progress as f32;
        if !self.begun || progress < self.seen_progress {
            *self = Self {
                started: at,
                measured_at: at,
                seen_at: at,
                started_progress: progress,
                measured_progress: progress,
                seen_progress: progress,
                begun: true,
                ..Self::default()
            };
            return;
        }
        self.seen_progress = progress;
        self.seen_at = at.max(self.seen_at);
        let since = at.since(self.measured_at);
        if since >= BURST {
            self.measure(since.as_secs_f64());
        }
    }

    /// Mixes the pace of the last `seconds` into the average.
    fn measure(&mut self, seconds: f64) {
        let risen = f64::from(self.seen_progress - self.measured_progress);
        let watched = self.seen_at.since(self.started).as_secs_f64();
        let memory = (watched * MEMORY).max(1.0);
        let weight = match self.measured {
            0 => 1.0,
            _ => 1.0 - (-seconds / memory).exp(),
        };
        let pace = f64::from(self.pace);
        self.pace = (pace + weight * (risen / seconds - pace)) as f32;
        self.measured = self.measured.saturating_add(1);
        self.measured_at = self.seen_at;
        self.measured_progress = self.seen_progress;
    }

    /// The time left as seen from `now`; `None` while there is too little to go by, when the job
    /// should have been done by now, or when it is at 100.
    pub(crate) fn estimate(&self, now: Moment) -> Option<Duration> {
        let known = self.measured >= MIN_MEASURED
            && self.seen_at.since(self.started) >= MIN_WATCHED
            && self.seen_progress - self.started_progress >= MIN_RISEN
            && self.pace > f32::EPSILON;
        if !known || self.seen_progress >= 100.0 {
            return None;
        }
        let seconds = f64::from(100.0 - self.seen_progress) / f64::from(self.pace);
        let left = Duration::try_from_secs_f64(seconds).ok()?;
        (left <= MAX_LEFT)
            .then_some(left)?
            .checked_sub(now.since(self.seen_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(n: f64) -> Moment {
        Moment::from_micros((n * 1e6) as u64)
    }

    fn seconds_left(eta: &EtaEstimator, now: f64) -> Option<f64> {
        eta.estimate(second(now)).map(|left| left.as_secs_f64())
    }

    #[test]
    fn an_estimator_is_small() {
        assert!(size_of::<EtaEstimator>() <= 48);
    }

    #[test]
    fn a_steady_job_is_told_its_time() {
        let mut eta = EtaEstimator::default();
        for n in 0..=20 {
            eta.observe(f64::from(n) * 2.0, second(f64::from(n)));
        }
        let left = seconds_left(&eta, 20.0).unwrap();
        assert!((left - 30.0).abs() < 0.1, "{left}");
        let later = seconds_left(&eta, 25.0).unwrap();
        assert!((later - 25.0).abs() < 0.1, "it counts down: {later}");
        assert_eq!(seconds_left(&eta, 60.0), None, "overdue is unknown");
    }

    #[test]
    fn there_is_no_estimate_without_reason() {
        let mut eta = EtaEstimator::default();
        assert_eq!(seconds_left(&eta, 5.0), None);
        eta.observe(10.0, second(0.0));
        assert_eq!(seconds_left(&eta, 0.0), None, "one observation is no pace");
        eta.observe(11.0, second(0.5));
        eta.observe(12.0, second(1.0));
        assert_eq!(seconds_left(&eta, 1.0), None, "watched too short");
        let mut still = EtaEstimator::default();
        for n in 0..100 {
            still.observe(50.0, second(f64::from(n)));
        }
        assert_eq!(seconds_left(&still, 100.0), None, "nothing has moved");
    }

    #[test]
    fn a_burst_is_not_a_pace() {
        let mut steady = EtaEstimator::default();
        let mut bursty = EtaEstimator::default();
        for n in 0..10 {
            let (progress, at) = (f64::from(n) * 5.0, f64::from(n) * 5.0);
            steady.observe(progress, second(at));
            for tick in 0..50 {
                let tick = f64::from(tick);
                bursty.observe(
                    progress - 2.0 * (1.0 - tick / 50.0).min(progress),
                    second(at + tick * 0.001),
                );
            }
            bursty.observe(progress, second(at + 0.05));
        }
        let steady = seconds_left(&steady, 46.0).unwrap();
        let bursty = seconds_left(&bursty, 46.0).unwrap();
        assert!((steady - bursty).abs() < 5.0, "{steady} and {bursty}");
    }

    #[test]
    fn a_job_that_slows_down_is_believed() {
        let mut eta = EtaEstimator::default();
        let mut progress = 0.0;
        for n in 0..120 {
            eta.observe(progress, second(f64::from(n)));
            progress += if n < 40 { 1.0 } else { 0.1 };
        }
        let left = seconds_left(&eta, 119.0).unwrap();
        let truth = (100.0 - progress) / 0.1;
        assert!((0.6..1.4).contains(&(left / truth)), "{left} for {truth}");
    }

    #[test]
    fn another_attempt_begins_afresh() {
        let mut eta = EtaEstimator::default();
        for n in 0..10 {
            eta.observe(f64::from(n) * 5.0, second(f64::from(n)));
        }
        assert!(seconds_left(&eta, 9.0).is_some());
        eta.observe(0.0, second(10.0));
        assert_eq!(seconds_left(&eta, 10.0), None);
    }

    #[test]
    fn at_a_hundred_there_is_nothing_to_estimate() {
        let mut eta = EtaEstimator::default();
        for n in 0..=10 {
            eta.observe(f64::from(n) * 10.0, second(f64::from(n)));
        }
        assert_eq!(seconds_left(&eta, 10.0), None);
    }

    proptest! {
        #[test]
        fn whatever_is_observed_an_estimate_is_sane(
            seen in proptest::collection::vec((prop_oneof![0.0f64..=100.0, any::<f64>()], any::<u32>()), 0..60),
            now in any::<u64>(),
        ) {
            let mut eta = EtaEstimator::default();
            for (progress, at) in seen {
                eta.observe(progress, Moment::from_micros(u64::from(at) * 100));
                for now in [now, u64::from(at) * 100] {
                    let left = eta.estimate(Moment::from_micros(now));
                    prop_assert!(left.is_none_or(|left| left <= MAX_LEFT));
                }
            }
        }
    }
}
