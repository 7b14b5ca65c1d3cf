//! What happened in a job before: its milestones, for mappings that tell of it at once.
//!
//! Polls and snapshots say how a job stands; a page that missed what led there finds it here. It does not know who
//! asks, or how many milestones the history keeps.
//!
//! Invariant: at most [`MAX_BYTES`] of them are kept, the newest.

use std::sync::Arc;

use relay_core::position::Seq;
use relay_core::publication::{Body, Publication};
use serde::Serialize;
use serde_json::value::RawValue;

/// Bytes of milestones that one mapping is given.
const MAX_BYTES: usize = 256 * 1024;

/// A job's milestones, in order.
#[derive(Debug, Clone)]
pub struct Past {
    milestones: Vec<Arc<Publication>>,
    is_cut: bool,
}

/// One of them, as mappings get it.
#[derive(Debug, Serialize)]
pub(super) struct Milestone<'a> {
    name: &'a str,
    data: &'a RawValue,
    at: Option<String>,
    ms: i64,
}

impl Past {
    /// These milestones, in order; `is_cut` says that there were earlier ones.
    pub fn new(mut milestones: Vec<Arc<Publication>>, mut is_cut: bool) -> Self {
        let mut left = MAX_BYTES;
        let newest = milestones.iter().rev().take_while(|each| {
            let fits = each.payload_bytes() <= left;
            left = left.saturating_sub(each.payload_bytes());
            fits
        });
        let dropped = milestones.len() - newest.count();
        if dropped > 0 {
            milestones.drain(..dropped);
            is_cut = true;
        }
        Self { milestones, is_cut }
    }

    /// The number of the last one.
    pub fn last(&self) -> Option<Seq> {
        self.milestones.last().map(|each| each.seq)
    }

    /// Whether there were earlier ones that are not here.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(super) fn milestones(&self) -> Vec<Milestone<'_>> {
        let milestones = self.milestones.iter().filter_map(|each| {
            let Body::Milestone { name, data } = &each.body else {
                return None;
            };
            let at = each.worker_at.unwrap_or(each.stored_at);
            Some(Milestone {
                name: name.as_str(),
                // What the relay accepted is JSON.
                data: serde_json::from_slice(data).ok()?,
                at: at.to_rfc3339(),
                ms: at.as_unix_micros() / 1000,
            })
        });
        milestones.collect()
    }
}
