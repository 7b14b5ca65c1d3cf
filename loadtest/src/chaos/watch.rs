//! What a user can see of the relay's health while it is played to: its process, its log, its counters, and what
//! the kernel says of its memory and descriptors.
//!
//! Invariant: memory is compared between two parts of the same game, in which the same number of clients play.

use std::fs;

use anyhow::{Context, Result, bail};

use super::Subject;

/// Descriptors that may be left when all have gone: those of idle listeners, and of connections not yet reaped.
const SPARE_DESCRIPTORS: usize = 32;
/// How much more may be resident in the last quarter of a game than in its second: what allocators keep.
const GROWTH: f64 = 1.5;
const GROWTH_KIB: u64 = 64 * 1024;
/// Looks below which nothing is said of memory: a game that short has no quarters to compare.
const FEW_LOOKS: usize = 120;

/// What was seen from look to look.
#[derive(Debug)]
pub(super) struct Watch {
    /// Before anybody came.
    descriptors: Option<usize>,
    resident_kib: Vec<u64>,
    most_descriptors: usize,
    /// Bytes of the log that were read.
    read: usize,
}

impl Watch {
    pub(super) fn new(subject: &Subject) -> Result<Self> {
        Ok(Self {
            descriptors: descriptors(subject)?,
            resident_kib: Vec::new(),
            most_descriptors: 0,
            read: 0,
        })
    }

    /// Looks once.
    pub(super) async fn look(&mut self, subject: &Subject) -> Result<()> {
        if let Some(meter) = &subject.meter {
            let resident = meter
                .resident_kib()
                .context("the relay's process is gone")?;
            self.resident_kib.push(resident);
        }
        if let Some(now) = descriptors(subject)? {
            self.most_descriptors = self.most_descriptors.max(now);
        }
        if let Some(relay) = &subject.relay {
            let logs = relay.logs();
            if let Some(new) = logs.get(self.read..) {
                if let Some(line) = new.lines().find(|line| line.contains("panicked")) {
                    bail!("the relay panicked: {line}");
                }
                self.read = logs.len();
            }
        }
        let Some(metrics) = subject.metrics().await? else {
            return Ok(());
        };
        let bugs = metrics.sum(
            "relay_connections_closed_total",
            r#"reason="internal_error""#,
        );
        if bugs > 0.0 {
            bail!("{bugs} connections were closed for a fault of the relay (internal_error)");
        }
        Ok(())
    }

    /// What was seen in all, in a line.
    pub(super) fn conclude(&self, subject: &Subject) -> Result<String> {
        let mut lines = Vec::new();
        if let (Some(before), Some(now)) = (self.descriptors, descriptors(subject)?) {
            if now > before + SPARE_DESCRIPTORS {
                bail!(
                    "{now} descriptors are open when all have gone; before they came it was {before}"
                );
            }
            lines.push(format!(
                "descriptors: {before} before, {} at most, {now} after",
                self.most_descriptors
            ));
        }
        let all = &self.resident_kib;
        let quarter = all.len() / 4;
        if all.len() >= FEW_LOOKS {
            let (early, late) = (
                median(&all[quarter..2 * quarter]),
                median(&all[3 * quarter..]),
            );
            if late as f64 > early as f64 * GROWTH && late > early + GROWTH_KIB {
                bail!(
                    "memory grew from {} MiB in the second quarter of the game to {} MiB in the last",
                    early / 1024,
                    late / 1024
                );
            }
        }
        if let (Some(first), Some(most), Some(last)) = (all.first(), all.iter().max(), all.last()) {
            lines.push(format!(
                "resident: {} MiB before, {} MiB at most, {} MiB after",
                first / 1024,
                most / 1024,
                last / 1024
            ));
        }
        Ok(lines.join("\n"))
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn descriptors(subject: &Subject) -> Result<Option<usize>> {
    let Some(meter) = &subject.meter else {
        return Ok(None);
    };
    let mut open = 0;
    for pid in meter.pids() {
        let listed = fs::read_dir(format!("/proc/{pid}/fd"));
        open += listed.context("the relay's process is gone")?.count();
    }
    Ok(Some(open))
}
