//! Long-poll: a connection without a socket, answered once there is news.

use std::rc::Rc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use relay_core::moment::Moment;
use relay_core::session::CloseReason;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::connection::Transport;
use super::deliver::{Place, ceiling, cursor_of, frame_of};
use super::watch::{LOOKUP_WAIT, Stream};
use super::{Opening, Shard, State};
use crate::answer::{self, ApiError};

/// Frames in one answer to a poll; what is left comes with the next.
pub(super) const MAX_POLL_FRAMES: usize = 1000;

/// A poll's other end.
#[derive(Debug)]
pub(super) struct Poll {
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
pub(super) struct PollAnswer {
    /// Frames as JSON.
    pub(super) frames: Vec<Bytes>,
    /// Where the client stands then.
    pub(super) cursor: String,
    /// Whether everything missed since the client's cursor is in `frames`.
    pub(super) recovered: bool,
    /// Whether every topic was joined; if not, the bus did not answer.
    pub(super) joined: bool,
    /// Whether a topic is somebody else's.
    pub(super) forbidden: bool,
    /// Whether the bus is away.
    pub(super) stale: bool,
    /// The relay is going away.
    pub(super) shutdown: bool,
}

impl Shard {
    pub(super) async fn poll_once(
        self: &Rc<Self>,
        stream: Stream,
        wait: Duration,
    ) -> Result<Response<Body>, ApiError> {
        let (answer, mut answered) = oneshot::channel();
        let id = {
            let mut state = self.state.borrow_mut();
            let now = self.clock.now();
            let poll = Poll {
                answer,
                waiting: stream.topics.len(),
                recovered: true,
                hurried: false,
                forbidden: false,
            };
            let opening = Opening {
                transport: Transport::Poll(Some(poll)),
                stream: None,
                identity: stream.identity,
                admission: stream.admission,
                authenticated: true,
                speech: None,
            };
            let (slot, id) = self.open(&mut state, opening, now);
            self.guarded(&mut state, slot, |shard, state| {
                shard.watch_topics(state, slot, stream.topics, stream.cursor);
            });
            self.flush_dirty(&mut state, now);
            id
        };
        // Dropped when the client goes away, it takes the poll with it.
        let _cleanup = EndPoll { shard: self, id };
        let answer = match timeout(wait, &mut answered).await {
            Ok(answer) => answer,
            Err(_) => {
                self.hurry_poll(id);
                match timeout(LOOKUP_WAIT, &mut answered).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.stop_poll(id);
                        answered.await
                    }
                }
            }
        };
        answer.map_or_else(|_| Err(ApiError::draining()), poll_response)
    }

    /// The wait for news is over: the poll is answered as soon as every topic has had its first word.
    fn hurry_poll(&self, id: relay_bus::inbox::ConnectionId) {
        let mut state = self.state.borrow_mut();
        let Some(slot) = Self::find(&state, id) else {
            return;
        };
        if let Transport::Poll(Some(poll)) = &mut state.connections[slot].transport {
            poll.hurried = true;
        }
        self.mark(&mut state, slot);
        self.flush_dirty(&mut state, self.clock.now());
    }

    /// The bus does not answer: the poll is answered with what there is.
    fn stop_poll(&self, id: relay_bus::inbox::ConnectionId) {
        let mut state = self.state.borrow_mut();
        if let Some(slot) = Self::find(&state, id) {
            let now = self.clock.now();
            self.guarded(&mut state, slot, |shard, state| {
                shard.finish_poll(state, slot, now, false);
            });
            self.flush_dirty(&mut state, now);
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

/// Ends a poll whose client went away.
struct EndPoll<'a> {
    shard: &'a Rc<Shard>,
    id: relay_bus::inbox::ConnectionId,
}

impl Drop for EndPoll<'_> {
    fn drop(&mut self) {
        // Answered polls are gone already; a request dropped inside a borrow cannot be, it is polled outside.
        if let Ok(mut state) = self.shard.state.try_borrow_mut()
            && let Some(slot) = Shard::find(&state, self.id)
        {
            let reason = relay_core::session::CloseReason::Client;
            self.shard.end(&mut state, slot, reason);
            self.shard.sweep(&mut state);
        }
    }
}

fn poll_response(answer: PollAnswer) -> Result<Response<Body>, ApiError> {
    if answer.forbidden {
        return Err(ApiError::forbidden());
    }
    if answer.shutdown && answer.frames.is_empty() {
        return Err(ApiError::draining());
    }
    if !answer.joined {
        return Err(ApiError::bus_unavailable());
    }
    let mut body = Vec::with_capacity(128 + answer.frames.iter().map(Bytes::len).sum::<usize>());
    body.extend_from_slice(
        format!(
            r#"{{"cursor":"{}","recovered":{}"#,
            answer.cursor, answer.recovered
        )
        .as_bytes(),
    );
    if answer.stale {
        body.extend_from_slice(br#","stale":true"#);
    }
    body.extend_from_slice(br#","frames":["#);
    for (at, frame) in answer.frames.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(frame);
    }
    body.extend_from_slice(b"]}");
    Ok(answer::json(StatusCode::OK, body))
}
