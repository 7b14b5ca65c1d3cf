//! What is ahead of this node: cursors that another one gave out, and answers of the store that are newer than
//! what has been read from the bus.
//!
//! Both wait for the reader. Told at once, an answer would stand before other jobs' updates that are still on
//! their way, and a client that left with the cursor of then would not be told those.
//!
//! Invariant: while nothing has waited for [`AHEAD_WAIT`], nobody is told a number above the table's highest.

use std::time::Duration;

use relay_core::position::Seq;

use super::{Hub, JoinRequest};
use crate::table::{Answer, Table};

/// How long anything waits. Nodes are apart by the time a message travels, or by that of a reconnect; what is
/// further ahead is no place this bus has been, or no message that will come by itself.
pub(super) const AHEAD_WAIT: Duration = Duration::from_secs(3);

impl Hub {
    /// Takes what the store answered, as soon as the bus has been read that far.
    pub(super) fn answered(&self, table: &mut Table, answer: Answer) {
        let newest = answer.newest();
        if newest > table.high {
            let until = self.clock.now() + AHEAD_WAIT;
            table.early.push((until, answer));
            table.ahead_from = table.ahead_from.min(newest);
        } else {
            self.take_answer(table, answer);
        }
    }

    /// Goes on with what this node has caught up with, and with what has waited long enough: a join then
    /// starts anew.
    pub(super) fn admit_ahead(&self, table: &mut Table) {
        let now = self.clock.now();
        table.ahead_from = Seq::MAX;
        for (until, answer) in std::mem::take(&mut table.early) {
            let newest = answer.newest();
            if answer.life != table.life {
                table.to_load.push_back(answer.key);
            } else if newest <= table.high || now >= until {
                self.take_answer(table, answer);
            } else {
                table.ahead_from = table.ahead_from.min(newest);
                table.early.push((until, answer));
                continue;
            }
            // There is room for another.
            self.work.notify_one();
        }
        for (until, mut request) in std::mem::take(&mut table.ahead) {
            match ahead(table, &request) {
                None => self.join_now(table, request),
                Some(_) if now >= until => {
                    request.cursor = None;
                    self.join_now(table, request);
                }
                Some(since) => {
                    table.ahead_from = table.ahead_from.min(since);
                    table.ahead.push_back((until, request));
                }
            }
        }
    }
}

/// What another node has told this client up to, if that has not come to this one yet.
pub(super) fn ahead(table: &Table, request: &JoinRequest) -> Option<Seq> {
    let cursor = request.cursor.as_ref()?;
    let since = cursor.since(&request.topic)?;
    (cursor.position.epoch == table.epoch && since > table.high).then_some(since)
}
