//! The meter of one mapping of a dialect: how often it ran, how often and why it failed, and a line in the log
//! now and then.
//!
//! What a mapping is for it does not know.
//!
//! Invariant: a failure is counted, and the log says of each mapping at least once a minute that there were any which
//! no client has caused.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec};
use relay_wire::dialect::{Failure, Meter};
use tokio::time::Instant;

/// How long a mapping's failures are counted before the next line in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Counts one mapping's runs.
#[derive(Debug)]
pub(super) struct MappingMeter {
    dialect: String,
    mapping: String,
    runs: IntCounter,
    /// By dialect, mapping and reason.
    failures: IntCounterVec,
    /// When a failure was logged last, and how many there were since. Held for no longer than it takes to look.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl MappingMeter {
    pub(super) fn new(
        [dialect, mapping]: [&str; 2],
        runs: IntCounter,
        failures: IntCounterVec,
    ) -> Self {
        Self {
            dialect: dialect.to_owned(),
            mapping: mapping.to_owned(),
            runs,
            failures,
            logged: Mutex::new((None, 0)),
        }
    }

    /// How many failures a line in the log is to tell of now, if there is to be one.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut logged = self.logged.lock();
        let (at, count) = &mut *logged;
        *count += 1;
        if at.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return None;
        }
        *at = Some(now);
        Some(std::mem::take(count))
    }
}

impl Meter for MappingMeter {
    fn ran(&self) {
        self.runs.inc();
    }

    fn failed(&self, failure: &Failure) {
        let labels = [&*self.dialect, &*self.mapping, failure.reason()];
        self.failures.with_label_values(&labels).inc();
        if failure.is_clients() {
            // Anybody can send anything, and was told.
            return;
        }
        if let Some(count) = self.due(Instant::now()) {
            tracing::warn!(
                // The name by which filters and log searches know this line.
                target: "relay_server::dialect::jq",
                dialect = self.dialect,
                mapping = self.mapping,
                count,
                reason = failure.reason(),
                %failure,
                "a mapping failed, so nothing was sent; further failures of it are counted (relay_dialect_failures_total) and logged once a minute"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_mapping_that_fails_is_logged_once_a_minute_with_how_often() {
        let labels = ["dialect", "mapping", "reason"];
        let failures = IntCounterVec::new(prometheus::Opts::new("f", "f"), &labels).unwrap();
        let runs = IntCounter::new("r", "r").unwrap();
        let meter = MappingMeter::new(["d", "m"], runs, failures.clone());
        assert_eq!(meter.due(Instant::now()), Some(1));
        for _ in 0..3 {
            assert_eq!(meter.due(Instant::now()), None);
        }
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!(meter.due(Instant::now()), Some(4));
        meter.failed(&Failure::Halt);
        assert_eq!(failures.with_label_values(&["d", "m", "halt"]).get(), 1);
    }
}
