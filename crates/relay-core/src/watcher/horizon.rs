//! How far one thread of a node has heard of the bus, and what of that may not be sent on yet.
//!
//! One horizon serves all watchers of the thread. It knows numbers and holds, and nothing of who watches.
//!
//! Invariant: within an epoch the frontier does not fall.

use crate::position::{Epoch, Position, Seq};
use crate::topic::Topic;

use super::holds::{Holds, Released, Repairing};

/// What all watchers of one thread have in common.
#[derive(Debug, Default)]
pub struct Horizon {
    epoch: Epoch,
    /// The highest number everything up to which was handed to the watchers.
    frontier: Seq,
    /// Whether the bus is away, so that what is known may be out of date.
    stale: bool,
    holds: Holds,
}

impl Horizon {
    /// One that has heard nothing of this epoch yet.
    pub fn new(epoch: Epoch, stale: bool) -> Self {
        Self {
            epoch,
            stale,
            ..Self::default()
        }
    }

    /// Everything up to `seq` has come. False if that is old: it was missed before, and a repair brings it.
    pub fn hear(&mut self, seq: Seq) -> bool {
        let is_news = seq > self.frontier;
        self.frontier = self.frontier.max(seq);
        is_news
    }

    /// A repair began or ended; answers who may go on.
    pub fn repair(&mut self, repairing: Repairing) -> Released {
        self.holds.take(repairing)
    }

    /// The bus went away, or came back.
    pub fn set_stale(&mut self, stale: bool) {
        self.stale = stale;
    }

    /// The bus began a new life: numbers start again. What was held in the one before is released by whoever
    /// held it.
    pub fn begin(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.frontier = Seq::ZERO;
    }

    /// The life of the bus that numbers are of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether what is known may be out of date.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// How far a watcher of `topics` may be sent anything; [`Seq::MAX`] where nothing holds it back.
    pub fn ceiling<'a>(&self, topics: impl IntoIterator<Item = &'a Topic>) -> Seq {
        self.holds.ceiling(topics)
    }

    /// How far everything has been handed on that is not above `ceiling`.
    pub fn reached(&self, ceiling: Seq) -> Seq {
        self.frontier.min(ceiling)
    }

    /// A place of this epoch.
    pub fn at(&self, seq: Seq) -> Position {
        Position::new(self.epoch, seq)
    }
}
