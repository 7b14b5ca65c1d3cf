//! Going away politely: everybody is told at once, leaves spread over a window, and is gone by a deadline.
//!
//! The window grows with the number of connections, up to `drain.spread`: ten people need not wait ten
//! seconds, ten thousand must not come back in one.

use std::time::Duration;

use relay_core::watcher::session::CloseReason;

use super::{Shard, State};

/// Room each leaving connection gets in the window, until the window is full.
const ROOM: Duration = Duration::from_millis(5);

impl Shard {
    /// Tells every client, and sets the time at which each is let go.
    pub(super) fn begin_drain(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if std::mem::replace(&mut state.tools.draining, true) {
            return;
        }
        let now = self.clock.now();
        let slots: Vec<usize> = state.connections.iter().map(|(slot, _)| slot).collect();
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let window = self.node.drain.spread.min(ROOM.saturating_mul(count));
        for slot in slots {
            self.work(state, slot, now, |connection, desk| {
                connection.let_go(window, desk);
            });
        }
        self.finish(state, now);
    }

    /// Whether nobody new is let in.
    pub(crate) fn is_draining(&self) -> bool {
        self.state.borrow().tools.draining
    }

    /// Waits until the drain is over and everybody has left.
    pub(crate) async fn drained(&self) {
        self.drained.notified().await;
    }

    /// The bus began a new life: every cursor given out is void, so everybody starts anew. Before the
    /// `first` none was given out, and whoever is there waits for it.
    pub(super) fn on_new_epoch(&self, state: &mut State, first: bool) {
        state.tools.horizon.begin(self.node.hub.epoch());
        if first {
            return;
        }
        for (slot, connection) in &mut state.connections {
            connection.end(CloseReason::Drain);
            state.ending.push(slot);
        }
    }
}
