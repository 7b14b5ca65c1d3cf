//! Long-poll: a connection without a socket, answered once there is news.
//!
//! How long the client waits is the door's affair, and so is the shape of the answer.
//!
//! Invariant: a poll is answered at most once, and its connection ends with that.

use bytes::Bytes;
use relay_bus::inbox::ConnectionId;
use relay_core::moment::Moment;
use relay_core::session::CloseReason;
use tokio::sync::oneshot;

use super::connection::Transport;
use super::deliver::{Place, ceiling, cursor_of, frame_of};
use super::{Opening, Shard, State};

/// Frames in one answer to a poll; what is left comes with the next.
pub(super) const MAX_POLL_FRAMES: usize = 1000;

/// A poll's other end.
#[derive(Debug)]
pub(crate) struct Poll {
    /// Where the answer goes; whoever asked may have stopped waiting.
    pub(super) answer: oneshot::Sender<PollAnswer>,
    /// Topics whose join is not answered yet.
    pub(super) waiting: usize,
    /// Whether every join so far recovered.
    pub(super) recovered: bool,
    /// Whether it shall be answered though there is no news.
    pub(super) hurried: bool,
    /// Whether a topic turned out to be somebody else's.
    pub(super) forbidden: bool,
}

/// What a poll is answered with.
#[derive(Debug)]
pub(crate) struct PollAnswer {
    /// Frames as JSON.
    pub(crate) frames: Vec<Bytes>,
    /// Where the client stands then.
    pub(crate) cursor: String,
    /// Whether everything missed since the client's cursor is in `frames`.
    pub(crate) recovered: bool,
    /// Whether every topic was joined; if not, the bus did not answer.
    pub(crate) joined: bool,
    /// Whether a topic is somebody else's.
    pub(crate) forbidden: bool,
    /// Whether the bus is away.
    pub(crate) stale: bool,
    /// The relay is going away.
    pub(crate) shutdown: bool,
}

impl Shard {
    /// Opens a connection that has no socket, and is gone once it is answered.
    pub(crate) fn open_poll(&self, mut opening: Opening) -> Polling<'_> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let topics = std::mem::take(&mut opening.topics);
        let cursor = opening.cursor.take();
        opening.transport = Transport::Poll(Some(Poll {
            answer,
            waiting: topics.len(),
            recovered: true,
            hurried: false,
            forbidden: false,
        }));
        let (slot, id) = self.open(&mut state, opening, None, now);
        self.guarded(&mut state, slot, |shard, state| {
            shard.watch_topics(state, slot, topics, cursor);
        });
        self.flush_dirty(&mut state, now);
        Polling {
            shard: self,
            id,
            answered,
        }
    }

    /// Answers a poll once every topic has joined and there is news.
    pub(super) fn answer_poll(&self, state: &mut State, slot: usize, now: Moment) {
        let connection = &mut state.connections[slot];
        let Transport::Poll(Some(poll)) = &connection.transport else {
            return;
        };
        let ceiling = ceiling(&state.holds, connection);
        let news = poll.forbidden || poll.hurried || connection.outbox.has_due(now, ceiling);
        if poll.waiting > 0 || !news {
            self.reschedule(state, slot);
            return;
        }
        self.finish_poll(state, slot, now, false);
    }

    /// Answers a poll with what there is, and ends it.
    pub(super) fn finish_poll(&self, state: &mut State, slot: usize, now: Moment, shutdown: bool) {
        let place = Place::of(state);
        let connection = &mut state.connections[slot];
        let ceiling = ceiling(&state.holds, connection);
        let seen = state.frontier.min(ceiling);
        let mut frames = Vec::new();
        while frames.len() < MAX_POLL_FRAMES
            && let Some(taken) = connection.outbox.take(now, ceiling, &self.common.outbox)
        {
            frames.push(frame_of(connection, &taken, place));
            self.account_taken(connection, &state.metrics, &taken, now);
        }
        connection.outbox.advance(seen);
        let cursor = cursor_of(connection, state.epoch);
        if let Transport::Poll(poll) = &mut connection.transport
            && let Some(poll) = poll.take()
        {
            let answer = PollAnswer {
                frames,
                cursor,
                recovered: poll.recovered,
                joined: poll.waiting == 0,
                forbidden: poll.forbidden,
                stale: state.stale,
                shutdown,
            };
            // Whoever polled may have gone.
            drop(poll.answer.send(answer));
        }
        self.end(state, slot, CloseReason::Client);
    }
}

/// A poll, as the one who waits for its answer holds it. Dropping it ends the poll.
#[derive(Debug)]
pub(crate) struct Polling<'a> {
    shard: &'a Shard,
    id: ConnectionId,
    /// The poll holds the other end; it drops that unanswered when the shard goes away.
    answered: oneshot::Receiver<PollAnswer>,
}

impl Polling<'_> {
    /// Waits for the answer. `None`: there will be none, the relay is going away.
    pub(crate) async fn answered(&mut self) -> Option<PollAnswer> {
        (&mut self.answered).await.ok()
    }

    /// The wait for news is over: the poll is answered as soon as every topic has had its first word.
    pub(crate) fn hurry(&self) {
        let shard = self.shard;
        let mut state = shard.state.borrow_mut();
        let Some(slot) = Shard::find(&state, self.id) else {
            return;
        };
        if let Transport::Poll(Some(poll)) = &mut state.connections[slot].transport {
            poll.hurried = true;
        }
        shard.mark(&mut state, slot);
        shard.flush_dirty(&mut state, shard.clock.now());
    }

    /// The bus does not answer: the poll is answered with what there is.
    pub(crate) fn stop(&self) {
        let shard = self.shard;
        let mut state = shard.state.borrow_mut();
        if let Some(slot) = Shard::find(&state, self.id) {
            let now = shard.clock.now();
            shard.guarded(&mut state, slot, |shard, state| {
                shard.finish_poll(state, slot, now, false);
            });
            shard.flush_dirty(&mut state, now);
        }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        // Answered polls are gone already; a request dropped inside a borrow cannot be, it is polled outside.
        if let Ok(mut state) = self.shard.state.try_borrow_mut()
            && let Some(slot) = Shard::find(&state, self.id)
        {
            self.shard.end(&mut state, slot, CloseReason::Client);
            self.shard.sweep(&mut state);
        }
    }
}
