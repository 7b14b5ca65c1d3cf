//! Going away politely: everybody is told at once, leaves spread over a window, and is gone by a deadline.
//!
//! The window grows with the number of connections, up to `drain.spread`: ten people need not wait ten
//! seconds, ten thousand must not come back in one.

use std::time::Duration;

use bytes::Bytes;
use relay_core::moment::Moment;
use relay_core::position::Seq;
use relay_core::session::CloseReason;
use relay_wire::native::frame::{Notice, Wire};

use super::connection::Transport;
use super::{Shard, State};

/// Room each leaving connection gets in the window, until the window is full.
const ROOM: Duration = Duration::from_millis(5);
/// A client comes back at a random time within this after it was let go.
const RETRY_MS: std::ops::Range<u64> = 200..2_000;

impl Shard {
    /// Tells every client, and sets the time at which each is let go.
    pub(super) fn begin_drain(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if std::mem::replace(&mut state.draining, true) {
            return;
        }
        let now = self.clock.now();
        let slots: Vec<usize> = state.connections.iter().map(|(slot, _)| slot).collect();
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let window = self.common.drain.spread.min(ROOM.saturating_mul(count));
        for slot in slots {
            self.guarded(state, slot, |shard, state| {
                shard.let_go(state, slot, now, window);
            });
        }
        self.flush_dirty(state, now);
    }

    fn let_go(&self, state: &mut State, slot: usize, now: Moment, window: Duration) {
        if !Self::is_open(state, slot) {
            return;
        }
        if let Transport::Poll(_) = state.connections[slot].transport {
            self.finish_poll(state, slot, now, true);
            return;
        }
        let retry_ms = fastrand::u64(RETRY_MS);
        let connection = &state.connections[slot];
        let wire = connection.transport.wire();
        let mut frame = self.frame_of(connection, &Notice::ServerShutdown { retry_ms }, None);
        let speech = connection.speech.as_ref();
        let within = speech.and_then(|speech| speech.dialect().drain_within);
        let window = within.map_or(window, |within| within.min(window));
        if wire == Wire::EventStream {
            // The browser's own reconnection takes its delay from here.
            frame = Bytes::from([format!("retry: {retry_ms}\n").as_bytes(), &frame].concat());
        }
        state.connections[slot].leaves_at = Some(now + window.mul_f64(fastrand::f64()));
        self.reply(state, slot, frame);
        // Also where there is nothing to say: its timer has to be set to the moment it leaves.
        self.mark(state, slot);
    }

    /// Whether the shard was told to drain and everybody has left.
    pub(super) fn is_drained(&self) -> bool {
        let state = self.state.borrow();
        state.draining && state.connections.is_empty()
    }

    /// Lets everybody go who is still there.
    pub(super) fn end_all(&self, state: &mut State, reason: CloseReason) {
        let slots: Vec<usize> = state.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.end(state, slot, reason);
        }
    }

    /// The bus began a new life: every cursor handed out is void, so everybody starts anew. Before the
    /// `first` none was handed out, and whoever is there waits for it.
    pub(super) fn on_new_epoch(&self, state: &mut State, first: bool) {
        state.epoch = self.common.hub.epoch();
        state.frontier = Seq::ZERO;
        if !first {
            self.end_all(state, CloseReason::Drain);
        }
    }
}
