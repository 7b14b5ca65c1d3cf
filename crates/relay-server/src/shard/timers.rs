//! When which connection wants to be looked at. One heap a shard, not a timer a connection.
//!
//! A connection's own `timer` field says which of its entries counts; others are passed over when they
//! come up, so moving a timer is one push.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use relay_bus::inbox::ConnectionId;
use relay_core::moment::Moment;

/// A shard's timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Moment, u64)>>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Moment, connection: ConnectionId) {
        self.heap.push(Reverse((at, connection.0)));
    }

    /// The next moment anything comes up.
    pub(super) fn next(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one entry that has come up.
    pub(super) fn take(&mut self, now: Moment) -> Option<(Moment, ConnectionId)> {
        if self.next()? > now {
            return None;
        }
        self.heap
            .pop()
            .map(|Reverse((at, id))| (at, ConnectionId(id)))
    }
}
