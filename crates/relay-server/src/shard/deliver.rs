//! From what is due to bytes on sockets.
//!
//! Each connection that has something due gets one write, of as many frames as are due. A frame is encoded
//! once for all who are in step. A connection whose socket is full takes nothing from its outbox until there
//! is room, so what it gets then is fresh.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_core::cursor::Cursor;
use relay_core::moment::Moment;
use relay_core::outbox::{SubscriptionId, Taken, Telling};
use relay_core::position::{Epoch, Position, Seq};
use relay_core::publication::Publication;
use relay_core::session::{CloseReason, Event};
use relay_core::watcher::holds::Holds;
use relay_wire::native::frame;
use relay_wire::websocket;

use super::connection::{Connection, Transport, Unacknowledged, Written};
use super::metrics::Metrics;
use super::{Shard, State, speech};

/// Bytes gathered for one write. More would only copy what the kernel will not take.
const WRITE_BYTES: usize = 64 * 1024;
/// How often an ending is offered that nobody acknowledges.
const MAX_OFFERS: u32 = 6;

/// What of a shard's state a frame depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    epoch: Epoch,
    stale: bool,
}

impl Place {
    pub(super) fn of(state: &State) -> Self {
        Self {
            epoch: state.epoch,
            stale: state.stale,
        }
    }
}

impl Shard {
    /// Queues a reply; ends a client that does not read its replies.
    pub(super) fn reply(&self, state: &mut State, slot: usize, frame: Bytes) {
        if frame.is_empty() {
            // A dialect that has no word for it.
            return;
        }
        let Some(connection) = state.connections.get_mut(slot) else {
            return;
        };
        if connection.ends.is_some() {
            return;
        }
        if connection.writer.replies_full()
            && connection.writer.has_socket()
            && !connection.writer.is_blocked()
        {
            // Many replies in one turn say nothing of the reader; replies the kernel does not take do.
            state.frames.clear();
            connection.writer.take_replies(&mut state.frames);
            if self.write_frames(state, slot, self.clock.now()) == Written::Gone {
                return self.end(state, slot, CloseReason::Client);
            }
        }
        let writer = &mut state.connections[slot].writer;
        if writer.replies_full() {
            return self.end(state, slot, CloseReason::Slow);
        }
        writer.reply(frame);
        self.mark(state, slot);
    }

    /// Writes to every connection that has something to write, and removes those that end. What is done for
    /// connections ends with this.
    pub(super) fn flush_dirty(&self, state: &mut State, now: Moment) {
        while let Some(slot) = state.dirty.pop() {
            // A slot may have been emptied, or filled anew, since it was marked.
            let Some(connection) = state.connections.get_mut(slot) else {
                continue;
            };
            if std::mem::take(&mut connection.dirty) && connection.ends.is_none() {
                self.guarded(state, slot, |shard, state| shard.flush(state, slot, now));
            }
        }
        self.sweep(state);
        state.metrics.publish();
    }

    /// Writes all that is due on one connection, as far as its socket takes it.
    pub(super) fn flush(&self, state: &mut State, slot: usize, now: Moment) {
        match &state.connections[slot].transport {
            Transport::Poll(_) => return self.answer_poll(state, slot, now),
            Transport::SocketIo(link) if link.protocol.is_polling() => {
                return self.flush_polling(state, slot, now);
            }
            Transport::WebSocket(_) | Transport::EventStream | Transport::SocketIo(_) => {}
        }
        loop {
            if state.connections[slot].writer.is_blocked() {
                break;
            }
            self.gather(state, slot, now);
            if state.frames.is_empty() {
                break;
            }
            match self.write_frames(state, slot, now) {
                Written::All => {}
                Written::Blocked => {
                    self.common.telemetry.writes_blocked.inc();
                    break;
                }
                Written::Gone => {
                    self.end(state, slot, CloseReason::Client);
                    return;
                }
            }
        }
        self.reschedule(state, slot);
    }

    /// Takes what is due on one connection, replies first, as much as one write should have.
    pub(super) fn gather(&self, state: &mut State, slot: usize, now: Moment) {
        let place = Place::of(state);
        let connection = &mut state.connections[slot];
        state.frames.clear();
        connection.writer.take_replies(&mut state.frames);
        let ceiling = ceiling(&state.holds, connection);
        let mut bytes: usize = state.frames.iter().map(Bytes::len).sum();
        while bytes < WRITE_BYTES
            && let Some(taken) = connection.outbox.take(
                now,
                ceiling,
                speech::outbox_bounds(&connection.speech, &self.common),
            )
        {
            let frame = match connection.speech {
                None => frame_of(connection, &taken, place),
                Some(_) => self.render_foreign(connection, &taken),
            };
            bytes += frame.len();
            if !frame.is_empty() {
                state.frames.push(frame);
            }
            self.account_taken(connection, &state.metrics, &taken, now);
        }
        if state.frames.is_empty() {
            let seen = state.frontier.min(ceiling);
            connection.outbox.advance(seen);
        }
    }

    fn write_frames(&self, state: &mut State, slot: usize, now: Moment) -> Written {
        let connection = &mut state.connections[slot];
        let bytes: &[u8] = match state.frames.as_slice() {
            [frame] => frame,
            frames => {
                // Copying a few hundred bytes is cheaper than a second system call, or a vectored one.
                state.batch.clear();
                frames
                    .iter()
                    .for_each(|frame| state.batch.extend_from_slice(frame));
                &state.batch
            }
        };
        self.write(connection, &state.metrics, bytes, now)
    }

    /// Writes bytes that follow all that was written to the connection before.
    pub(super) fn write(
        &self,
        connection: &mut Connection,
        metrics: &Metrics,
        bytes: &[u8],
        now: Moment,
    ) -> Written {
        metrics.written_bytes.inc_by(bytes.len() as u64);
        let written = connection.writer.write(bytes, now);
        if written == Written::All && matches!(connection.transport, Transport::EventStream) {
            // A stream's reader says nothing; that the kernel takes bytes is the only sign there is.
            let sign = Event::SignOfLife;
            connection.session.handle(sign, now, &self.common.session);
        }
        written
    }

    /// Counts what was taken from an outbox, if it is a delivery.
    pub(super) fn account_taken(
        &self,
        connection: &mut Connection,
        metrics: &Metrics,
        taken: &Taken,
        now: Moment,
    ) {
        if let Telling::Publication(publication) = &taken.telling {
            let how = (taken.via, taken.replayed);
            self.account(connection, metrics, publication, how, now);
        }
    }

    /// Counts a delivery, and remembers an ending whose client wants to acknowledge it.
    pub(super) fn account(
        &self,
        connection: &mut Connection,
        metrics: &Metrics,
        publication: &Arc<Publication>,
        (via, replayed): (SubscriptionId, bool),
        now: Moment,
    ) {
        if let Some(speech) = &mut connection.speech {
            let jobs = connection.session.subscriptions().len();
            speech.note(publication, jobs, now);
        }
        metrics.of(&connection.transport).deliveries.inc();
        let class = match (publication.is_terminal(), publication.is_state()) {
            (true, _) => &metrics.ending,
            (false, true) => &metrics.state,
            (false, false) => &metrics.milestone,
        };
        if !replayed {
            class
                .delivery
                .observe((now - publication.received_at).as_secs_f64());
        }
        if let Some(worker_at) = publication.worker_at.filter(|_| !replayed) {
            // The worker's clock at publishing, ours at taking in, and how long it took from there.
            let travelled = publication.stored_at.as_unix_micros() - worker_at.as_unix_micros();
            let travelled = Duration::from_micros(u64::try_from(travelled).unwrap_or(0));
            class
                .end_to_end
                .observe((travelled + (now - publication.received_at)).as_secs_f64());
        }
        let Some(extras) = &mut connection.extras else {
            return;
        };
        let known = extras
            .unacknowledged
            .iter()
            .any(|each| each.publication.seq == publication.seq);
        if publication.is_terminal() && extras.acks.contains(&via) && !known {
            extras.unacknowledged.push(Unacknowledged {
                subscription: via,
                publication: publication.clone(),
                next: now + self.common.delivery.ack_timeout,
                tries: 1,
            });
        }
    }

    /// Offers again the endings that were not acknowledged in time.
    pub(super) fn reoffer(&self, state: &mut State, slot: usize, now: Moment) {
        let place = Place::of(state);
        let connection = &mut state.connections[slot];
        let Some(mut extras) = connection.extras.take() else {
            return;
        };
        let mut frames = Vec::new();
        extras.unacknowledged.retain_mut(|each| {
            if each.next > now {
                return true;
            }
            each.tries += 1;
            each.next = now + self.common.delivery.ack_timeout * (1 << each.tries.min(MAX_OFFERS));
            let again = Taken {
                telling: Telling::Publication(each.publication.clone()),
                via: each.subscription,
                position: connection.outbox.position(),
                replayed: true,
            };
            frames.push(frame_of(connection, &again, place));
            self.common.telemetry.endings_reoffered.inc();
            each.tries < MAX_OFFERS
        });
        connection.extras = Some(extras);
        for frame in frames {
            self.reply(state, slot, frame);
        }
    }

    /// Says what there is to say before a connection ends.
    pub(super) fn say_goodbye(&self, state: &mut State, slot: usize, reason: CloseReason) {
        let now = self.clock.now();
        let connection = &mut state.connections[slot];
        match &connection.transport {
            Transport::WebSocket(_) if !connection.writer.is_blocked() => {}
            Transport::SocketIo(link) if link.protocol.is_polling() => {
                return Self::say_engine_goodbye(state, slot);
            }
            Transport::SocketIo(_) if !connection.writer.is_blocked() => {}
            _ => return,
        }
        let Some((code, words)) = close_words(reason) else {
            return;
        };
        let speech = connection.speech.as_ref();
        let code = speech
            .and_then(|speech| speech.dialect().close_code(reason))
            .unwrap_or(code);
        state.frames.clear();
        connection.writer.take_replies(&mut state.frames);
        state.frames.push(websocket::close_frame(code, words));
        // It is leaving either way; whether the goodbye arrives changes nothing.
        self.write_frames(state, slot, now);
    }
}

/// What a connection may be told up to while jobs it watches are being repaired.
pub(super) fn ceiling(holds: &Holds, connection: &Connection) -> Seq {
    let subscriptions = connection.session.subscriptions().iter();
    holds.ceiling(subscriptions.map(|each| &each.topic))
}

/// The frame for what was taken from a connection's outbox.
pub(super) fn frame_of(connection: &Connection, taken: &Taken, place: Place) -> Bytes {
    match &taken.telling {
        Telling::Publication(publication) => {
            let where_to = (taken.via, taken.position);
            render(connection, publication, where_to, place).into_owned()
        }
        Telling::Gap { job, reason } => {
            let subscription = connection.session.subscription(taken.via);
            let wire = connection.transport.wire();
            subscription.map_or_else(Bytes::new, |subscription| {
                frame::gap(job, &subscription.topic, *reason, wire)
            })
        }
    }
}

/// A publication's frame for a connection whose cursor comes to stand at `position`: shared with all who are
/// in step, if it is.
pub(super) fn render<'a>(
    connection: &Connection,
    publication: &'a Publication,
    (via, position): (SubscriptionId, Seq),
    place: Place,
) -> Cow<'a, Bytes> {
    let Some(subscription) = connection.session.subscription(via) else {
        return Cow::Owned(Bytes::new());
    };
    let (topic, wire) = (&subscription.topic, connection.transport.wire());
    let in_step = connection.session.subscriptions().len() == 1
        && position == publication.seq
        && !place.stale
        && connection.carried(place.epoch).is_empty()
        && connection.outbox.behind(via).is_none();
    let shared = in_step.then(|| frame::in_step(publication, topic, wire));
    if let Some(frame) = shared.flatten() {
        return Cow::Borrowed(frame);
    }
    let cursor = cursor_at(connection, Position::new(place.epoch, position));
    let frame = frame::at_cursor(publication, topic, &cursor, wire, place.stale);
    Cow::Owned(frame)
}

pub(super) fn cursor_at(connection: &Connection, place: Position) -> Cursor {
    let behind = |id| connection.outbox.behind(id);
    connection
        .session
        .cursor(place, behind, connection.carried(place.epoch))
}

/// Where a connection stands now.
pub(super) fn cursor_of(connection: &Connection, epoch: Epoch) -> String {
    cursor_at(
        connection,
        Position::new(epoch, connection.outbox.position()),
    )
    .to_string()
}

/// The close code and sentence for a reason; `None` where the client is past hearing.
fn close_words(reason: CloseReason) -> Option<(u16, &'static str)> {
    use websocket::close;
    Some(match reason {
        CloseReason::Client => return None,
        CloseReason::Dead => (close::DEAD, "no sign of life, not even a pong"),
        CloseReason::Slow | CloseReason::Overflow => {
            (close::TRY_AGAIN, "too slow; reconnect with the last cursor")
        }
        CloseReason::Expired => (
            close::UNAUTHENTICATED,
            "the token ran out; reconnect with a new one",
        ),
        CloseReason::Unauthenticated => (close::UNAUTHENTICATED, "no valid token came in time"),
        CloseReason::TooLarge => (
            close::TOO_LARGE,
            "the message is above limits.message_bytes",
        ),
        CloseReason::TooFrequent => (
            close::TOO_FREQUENT,
            "far more messages than limits.messages_per_second",
        ),
        CloseReason::Protocol => (close::PROTOCOL, "broken WebSocket framing"),
        CloseReason::Drain => (
            close::RESTART,
            "the relay restarts; reconnect with the last cursor",
        ),
        CloseReason::Ended => (close::NORMAL, "the job has ended"),
        CloseReason::Idle => (close::GOING_AWAY, "nothing was said for too long"),
        CloseReason::InternalError => (
            close::INTERNAL_ERROR,
            "an error in the relay; reconnect with the last cursor",
        ),
    })
}
