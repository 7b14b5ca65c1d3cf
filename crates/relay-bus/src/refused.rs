//! Updates that were refused, and endings that lost something: logged, counted and listed, because whoever publishes
//! over NATS gets no answer.
//!
//! Every way in ends here: what cannot be read by its subject, what the hub declines, and what it leaves out. What was answered
//! over HTTP is not here, because somebody has been told. Nothing here knows a client.
//!
//! Invariant: whatever comes, there are at most [`LISTED`] entries of bounded size, and at most one log line a
//! reason and minute.

use std::collections::VecDeque;

use hashbrown::HashMap;
use parking_lot::Mutex;
use relay_core::moment::WallTime;
use relay_core::position::Seq;
use serde::Serialize;

use crate::connection::Seldom;
use crate::seam::refusal::as_text;
use crate::seam::{Outcome, RefusedUpdate};

/// How many different refusals are listed.
pub const LISTED: usize = 100;

/// Refusals of one subject for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repeated {
    /// The last of them.
    #[serde(flatten)]
    pub last: RefusedUpdate,
    /// When the first of them came.
    #[serde(serialize_with = "as_text")]
    pub first_time: WallTime,
    /// How many there were.
    pub count: u64,
}

/// The last refusals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refusals {
    /// Every update that was refused or shortened since the start.
    pub total: u64,
    /// Entries that had to leave the list.
    pub left_out: u64,
    /// The newest first.
    pub refused: Vec<Repeated>,
}

/// Where refusals are told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Held for a look at a hundred entries.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    total: u64,
    left_out: u64,
    /// The newest last.
    entries: VecDeque<Repeated>,
    /// When each reason was logged last. Reasons are words of this code, so there are few.
    paces: HashMap<(Outcome, &'static str), Seldom>,
}

impl Ledger {
    /// Tells of a refusal whoever can be told.
    pub(crate) fn note(&self, update: RefusedUpdate) {
        self.note_all(vec![update]);
    }

    /// Tells of everything that was wrong in one update.
    pub(crate) fn note_all(&self, wrong: Vec<RefusedUpdate>) {
        if wrong.is_empty() {
            return;
        }
        let mut told = Vec::new();
        let mut inner = self.inner.lock();
        inner.total += 1;
        for each in wrong {
            let pace = inner.paces.entry((each.outcome, each.reason));
            if let Some(held_back) = pace.or_default().allow() {
                told.push((each.clone(), held_back));
            }
            inner.list(each);
        }
        drop(inner);
        for (update, held_back) in &told {
            tell(update, *held_back);
        }
    }

    /// Lists a refusal that is not new, unless it is listed.
    pub(crate) fn recall(&self, update: RefusedUpdate) {
        let mut inner = self.inner.lock();
        let is_listed = inner
            .entries
            .iter()
            .any(|it| it.last.is_like(&update) && it.last.seq >= update.seq);
        if !is_listed {
            inner.list(update);
        }
    }

    /// Refusals since the start.
    pub(crate) fn total(&self) -> u64 {
        self.inner.lock().total
    }

    /// The last refusals.
    pub(crate) fn list(&self) -> Refusals {
        let inner = self.inner.lock();
        Refusals {
            total: inner.total,
            left_out: inner.left_out,
            refused: inner.entries.iter().rev().cloned().collect(),
        }
    }
}

impl Inner {
    fn list(&mut self, update: RefusedUpdate) {
        let known = self.entries.iter().rposition(|it| it.last.is_like(&update));
        let entry = match known.and_then(|at| self.entries.remove(at)) {
            Some(known) => Repeated {
                last: update,
                count: known.count + 1,
                ..known
            },
            None => Repeated {
                first_time: update.time,
                count: 1,
                last: update,
            },
        };
        if self.entries.len() >= LISTED {
            self.make_room();
        }
        self.entries.push_back(entry);
    }

    /// Lets go of the oldest entry of the owner that has most of them: nobody pushes out what others should read.
    fn make_room(&mut self) {
        let mut owners: Vec<(Option<&str>, usize, usize)> = Vec::new();
        for (at, entry) in self.entries.iter().enumerate() {
            let owner = entry.last.owner.as_deref();
            match owners.iter_mut().find(|(known, ..)| *known == owner) {
                Some((_, _, count)) => *count += 1,
                None => owners.push((owner, at, 1)),
            }
        }
        // Of owners that have as many, the first found has the oldest.
        let most = owners.iter().rev().max_by_key(|(_, _, count)| *count);
        if let Some((_, oldest, _)) = most.copied() {
            self.entries.remove(oldest);
            self.left_out += 1;
        }
    }
}

fn tell(update: &RefusedUpdate, held_back: u64) {
    let RefusedUpdate {
        reason,
        sentence,
        subject,
        size,
        ..
    } = update;
    let (seq, field) = (update.seq.map(Seq::get), update.field.as_deref());
    match update.outcome {
        Outcome::Refused => tracing::warn!(
            reason,
            subject,
            seq,
            field,
            sentence,
            size,
            held_back,
            "an update is refused, and its worker gets no answer; GET /refused on the admin listener lists the last ones"
        ),
        Outcome::Shortened => tracing::warn!(
            reason,
            subject,
            seq,
            field,
            sentence,
            size,
            held_back,
            "an ending is accepted without what is wrong in it, and its worker gets no answer; GET /refused on the admin listener lists the last ones"
        ),
    }
}

#[cfg(test)]
mod tests;
