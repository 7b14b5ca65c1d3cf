//! Where an update stands: its number, the epoch of the number, and the two together.
//!
//! The bus numbers updates: one ascending order over all jobs. A number is a [`Seq`]. When the numbers begin
//! anew, another [`Epoch`] begins with them: a stream was made again, or a node without a store restarted.
//! A *position* is a place in history: a number together with its epoch. Everything up to a position has
//! happened before it, and everything above it after it.
//!
//! It does not know topics. What a client has received of which topic is a [`cursor`](crate::cursor).
//!
//! Invariant: a number of one epoch means nothing in another. So a [`Seq`] is compared only with a number of
//! the same epoch, and what leaves this process (a cursor, a file) is a [`Position`], which has no order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The bus's number of an update. The first update has 1; in one epoch no two updates have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(u64);

impl Seq {
    /// Before the first update.
    pub const ZERO: Self = Self(0);
    /// Above every update. As a ceiling it means that there is none.
    pub const MAX: Self = Self(u64::MAX);

    /// The number as the bus has it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number as the bus has it.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number after this one. [`Seq::MAX`] is its own.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number before this one. [`Seq::ZERO`] is its own.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many numbers `earlier` is behind this one; 0 if it is not behind.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The number that is `lag` behind this one; `None` if there are not so many.
    pub(crate) fn behind_by(self, lag: u64) -> Option<Self> {
        self.0.checked_sub(lag).map(Self)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which life of the bus a number belongs to. Epochs are told apart and have no order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch as it is written in cursors and files.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The epoch as it is written in cursors and files.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A place in history. Two positions can only be compared if their epochs are the same, so they have no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// Which life of the bus the number belongs to.
    pub epoch: Epoch,
    /// The bus's number. Everything up to it has happened.
    pub seq: Seq,
}

impl Position {
    /// The place of `seq` in `epoch`.
    pub const fn new(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_neither_falls_below_the_first_nor_rises_past_the_last() {
        assert_eq!(Seq::ZERO.before(), Seq::ZERO);
        assert_eq!(Seq::MAX.next(), Seq::MAX);
        assert_eq!(Seq::new(7).next().before(), Seq::new(7));
    }

    #[test]
    fn what_is_not_behind_is_behind_by_nothing() {
        assert_eq!(Seq::new(9).since(Seq::new(4)), 5);
        assert_eq!(Seq::new(4).since(Seq::new(9)), 0);
        assert_eq!(Seq::MAX.since(Seq::ZERO), u64::MAX);
    }

    #[test]
    fn a_lag_that_reaches_past_the_first_number_leads_nowhere() {
        assert_eq!(Seq::new(9).behind_by(9), Some(Seq::ZERO));
        assert_eq!(Seq::new(9).behind_by(10), None);
    }

    #[test]
    fn the_same_number_in_another_epoch_is_another_position() {
        let in_epoch = |epoch| Position::new(Epoch::new(epoch), Seq::new(9));
        assert_eq!(in_epoch(1), in_epoch(1));
        assert_ne!(in_epoch(1), in_epoch(2));
    }

    #[test]
    fn no_ceiling_is_above_every_number() {
        assert!(Seq::new(u64::MAX - 1) < Seq::MAX && Seq::ZERO < Seq::new(1));
    }

    #[test]
    fn a_number_is_shown_and_written_bare() {
        let (seq, epoch) = (Seq::new(12), Epoch::new(34));
        assert_eq!(format!("{seq} {seq:?} {epoch} {epoch:?}"), "12 12 34 34");
        assert_eq!(serde_json::to_string(&(seq, epoch)).unwrap(), "[12,34]");
        let read: (Seq, Epoch) = serde_json::from_str("[12,34]").unwrap();
        assert_eq!(read, (seq, epoch));
    }

    #[test]
    fn a_number_costs_what_a_bare_one_does() {
        assert_eq!(size_of::<Seq>(), size_of::<u64>());
        assert_eq!(size_of::<Position>(), 2 * size_of::<u64>());
    }
}
