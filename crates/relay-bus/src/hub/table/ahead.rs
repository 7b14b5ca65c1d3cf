//! What waits for the reader: joins with cursors that another node gave out, and answers of the store that are
//! newer than what has been read from the bus.
//!
//! Knows until when each waits, and nothing of what becomes of it then.
//!
//! Invariant: nothing waits for a number below [`Ahead::from`].

use std::collections::BTreeMap;

use relay_core::moment::Moment;
use relay_core::position::Seq;

use super::loads::Answer;
use crate::hub::request::{JoinRequest, Whose};

/// Something that waits for a number.
#[derive(Debug)]
pub(in crate::hub) struct Early<T> {
    /// The number.
    pub(in crate::hub) seq: Seq,
    /// After this it does not wait any longer.
    pub(in crate::hub) until: Moment,
    pub(in crate::hub) what: T,
}

/// All that waits.
#[derive(Debug)]
pub(in crate::hub) struct Ahead {
    joins: BTreeMap<Whose, Early<JoinRequest>>,
    answers: Vec<Early<Answer>>,
    /// The lowest number anything waits for; [`Seq::MAX`] if nothing does.
    from: Seq,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            joins: BTreeMap::new(),
            answers: Vec::new(),
            from: Seq::MAX,
        }
    }
}

impl Ahead {
    pub(in crate::hub) fn keep_join(&mut self, join: Early<JoinRequest>) {
        self.from = self.from.min(join.seq);
        self.joins.insert(join.what.whose(), join);
    }

    pub(in crate::hub) fn keep_answer(&mut self, answer: Early<Answer>) {
        self.from = self.from.min(answer.seq);
        self.answers.push(answer);
    }

    /// Whether the reader, being at `high`, has come as far as something waits for.
    pub(in crate::hub) fn is_reached(&self, high: Seq) -> bool {
        high >= self.from
    }

    /// How many answers wait.
    pub(in crate::hub) fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Takes out all that waits, to be looked at.
    pub(in crate::hub) fn take(&mut self) -> (Vec<Early<Answer>>, Vec<Early<JoinRequest>>) {
        let all = std::mem::take(self);
        (all.answers, all.joins.into_values().collect())
    }

    /// Gives up a join. False if it does not wait here.
    pub(in crate::hub) fn withdraw(&mut self, whose: Whose) -> bool {
        self.joins.remove(&whose).is_some()
    }

    /// Asserts the invariant.
    pub(super) fn check(&self) {
        let joins = self.joins.values().map(|join| join.seq);
        let mut seqs = joins.chain(self.answers.iter().map(|answer| answer.seq));
        debug_assert!(
            seqs.all(|seq| seq >= self.from),
            "it would never be looked at"
        );
    }
}
