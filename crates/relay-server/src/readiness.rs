//! Whether this node should be sent clients, for the operators' listener and for dialects' health paths.
//!
//! Invariant: once ready, only a drain ends that.

use std::sync::atomic::{AtomicBool, Ordering};

use relay_bus::hub::HubStats;

/// What is remembered of a node's fitness.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    draining: AtomicBool,
    /// Set once the bus was there for the first time. A bus that blips afterwards takes no node out of
    /// rotation: every node would go at once, and clients lose connections that still serve them.
    was_fresh: AtomicBool,
}

impl Readiness {
    /// The drain begins.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the node drains.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether the node is fit for clients, the bus being as the hub says.
    pub(crate) fn is_ready(&self, hub: &HubStats) -> bool {
        if !hub.stale {
            self.was_fresh.store(true, Ordering::Relaxed);
        }
        self.was_fresh.load(Ordering::Relaxed) && !self.is_draining()
    }
}
