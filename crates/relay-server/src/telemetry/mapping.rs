//! The meter of one mapping of a dialect: how often it ran, how often it failed, and one line in the log.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntCounter;
use relay_wire::dialect::{Failure, Meter};

/// Counts one mapping's runs.
#[derive(Debug)]
pub(super) struct MappingMeter {
    dialect: String,
    mapping: String,
    runs: IntCounter,
    failures: IntCounter,
    /// Whether a failure was logged; one line a mapping is enough.
    reported: AtomicBool,
}

impl MappingMeter {
    pub(super) fn new(
        [dialect, mapping]: [&str; 2],
        runs: IntCounter,
        failures: IntCounter,
    ) -> Self {
        Self {
            dialect: dialect.to_owned(),
            mapping: mapping.to_owned(),
            runs,
            failures,
            reported: AtomicBool::new(false),
        }
    }
}

impl Meter for MappingMeter {
    fn ran(&self) {
        self.runs.inc();
    }

    fn failed(&self, failure: &Failure) {
        self.failures.inc();
        if !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                // The name by which filters and log searches know this line.
                target: "relay_server::dialect::jq",
                dialect = self.dialect,
                mapping = self.mapping,
                %failure,
                "a mapping failed; further failures of it are only counted (relay_dialect_failures_total)"
            );
        }
    }
}
