//! What is ahead of this node: cursors that another one gave out, and answers of the store that are newer than
//! what has been read from the bus.
//!
//! Both wait for the reader. Told at once, an answer would stand before other jobs' updates that are still on
//! their way, and a client that left with the cursor of then would not be told those.
//!
//! Invariant: while nothing has waited for [`AHEAD_WAIT`], nobody is told a number above the table's highest.

use std::time::Duration;

use relay_core::position::Seq;

use super::table::{Answer, Early, Table};
use super::{Hub, JoinRequest};

/// How long anything waits. Nodes are apart by the time a message travels, or by that of a reconnect; what is
/// further ahead is no place this bus has been, or no message that will come by itself.
pub(super) const AHEAD_WAIT: Duration = Duration::from_secs(3);

impl Hub {
    /// Takes what the store answered, as soon as the bus has been read that far.
    pub(super) fn answered(&self, table: &mut Table, answer: Answer) {
        let newest = answer.newest();
        if newest > table.high() {
            table.ahead.keep_answer(Early {
                seq: newest,
                until: self.clock.now() + AHEAD_WAIT,
                what: answer,
            });
        } else {
            self.take_answer(table, answer);
        }
    }

    /// Goes on with what this node has caught up with, and with what has waited long enough: a join then
    /// starts anew.
    pub(super) fn admit_ahead(&self, table: &mut Table) {
        let now = self.clock.now();
        let (answers, joins) = table.ahead.take();
        for early in answers {
            if early.what.life != table.life() {
                table.loads.ask(early.what.key);
            } else if early.seq <= table.high() || now >= early.until {
                self.take_answer(table, early.what);
            } else {
                table.ahead.keep_answer(early);
                continue;
            }
            // There is room for another.
            self.work.notify_one();
        }
        for early in joins {
            match ahead(table, &early.what) {
                None => self.join_now(table, early.what),
                Some(_) if now >= early.until => {
                    let mut request = early.what;
                    request.cursor = None;
                    self.join_now(table, request);
                }
                Some(seq) => table.ahead.keep_join(Early { seq, ..early }),
            }
        }
    }
}

/// What another node has told this client up to, if that has not come to this one yet.
pub(super) fn ahead(table: &Table, request: &JoinRequest) -> Option<Seq> {
    let cursor = request.cursor.as_ref()?;
    let since = match cursor.since(&request.topic) {
        // It speaks for an owner's, of which it is not known yet that it is meant.
        None if cursor.may_speak_for(&request.topic) => cursor.position.seq,
        since => since?,
    };
    (cursor.position.epoch == table.epoch() && since > table.high()).then_some(since)
}
