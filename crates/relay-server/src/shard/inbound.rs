//! What clients send: bytes to messages, messages to the session, and the session's wishes carried out.

use governor::clock::{Clock as _, QuantaClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use relay_core::job::Again;
use relay_core::moment::{Moment, WallTime};
use relay_core::outbox::SubscriptionId;
use relay_core::session::{Action, CloseReason, Command, CommandError, Event, Join as Joining};
use relay_core::topic::Topic;
use relay_wire::engineio;
use relay_wire::native::command;
use relay_wire::native::frame::Notice;
use relay_wire::websocket::{self, DecodeError, Inbound};
use serde_json::Value;
use std::num::NonZeroU32;
use std::sync::Arc;
use tokio::net::TcpStream;

use super::connection::{Carried, Transport};
use super::registry::Watcher;
use super::{Join, READ_BYTES, Shard, State, socketio, speech};
use crate::identity::{Credential, Sight, Source};

/// Messages refused in a row for coming too fast, after which the connection ends.
const MAX_TOO_FREQUENT: u32 = 100;

/// The bucket a client's messages are taken from.
#[derive(Debug)]
pub(super) struct MessageLimiter {
    bucket: DefaultDirectRateLimiter,
    refused: u32,
}

impl MessageLimiter {
    fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        Self {
            bucket: RateLimiter::direct_with_clock(quota, QuantaClock::default()),
            refused: 0,
        }
    }

    /// `Err` with the milliseconds until the next message would be heard.
    fn admit(&mut self) -> Result<(), u128> {
        match self.bucket.check() {
            Ok(()) => {
                self.refused = 0;
                Ok(())
            }
            Err(not_until) => {
                self.refused += 1;
                Err(not_until
                    .wait_time_from(QuantaClock::default().now())
                    .as_millis())
            }
        }
    }
}

impl Shard {
    /// The socket has bytes, or has ended.
    pub(super) fn read(&self, state: &mut State, slot: usize, stream: &TcpStream, now: Moment) {
        // A read into an empty buffer gives nothing, which is what a client that left gives too.
        debug_assert!(!state.read.is_empty(), "the buffer was not put back");
        if state.read.is_empty() {
            tracing::error!(
                "the read buffer of a shard was lost; this is a bug in the relay, please report it"
            );
            state.read = vec![0; READ_BYTES].into_boxed_slice();
        }
        let read = match stream.try_read(&mut state.read) {
            Ok(0) => return self.end(state, slot, CloseReason::Client),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => return self.end(state, slot, CloseReason::Client),
        };
        let buffer = std::mem::take(&mut state.read);
        self.guarded(state, slot, |shard, state| {
            if let Some(bytes) = buffer.get(..read) {
                shard.received(state, slot, bytes, now);
            }
        });
        // Nothing above can unwind past here: whatever the bytes led to, others are read into it again.
        state.read = buffer;
    }

    /// Takes bytes a client sent.
    pub(super) fn received(&self, state: &mut State, slot: usize, bytes: &[u8], now: Moment) {
        let connection = &mut state.connections[slot];
        let id = connection.id;
        let decoder = match &mut connection.transport {
            Transport::WebSocket(decoder) => decoder,
            Transport::SocketIo(link) => &mut link.decoder,
            // An event stream's client has nothing to say after its request.
            Transport::EventStream | Transport::Poll(_) => return,
        };
        let mut inbound = Vec::new();
        let fed = decoder.feed(bytes, self.common.limits.message_bytes, |each| {
            inbound.push(each)
        });
        connection
            .session
            .handle(Event::SignOfLife, now, &self.common.session);
        for each in inbound {
            let Some(slot) = Self::find(state, id) else {
                return;
            };
            self.on_inbound(state, slot, each, now);
        }
        if let (Err(error), Some(slot)) = (fed, Self::find(state, id)) {
            self.on_broken(state, slot, error);
        }
    }

    pub(super) fn on_inbound(&self, state: &mut State, slot: usize, inbound: Inbound, now: Moment) {
        match inbound {
            Inbound::Pong => self.on_pong(state, slot, now),
            Inbound::Close(code) => self.on_close(state, slot, code),
            Inbound::Ping(payload) => {
                if self.admit_message(state, slot, None) {
                    self.reply(state, slot, websocket::pong(&payload));
                }
            }
            Inbound::Binary => {
                if self.admit_message(state, slot, None) {
                    if let Transport::SocketIo(_) = state.connections[slot].transport {
                        return self.on_binary_packet(state, slot);
                    }
                    let message = "this protocol speaks text frames with JSON";
                    self.refuse(state, slot, None, "binary_unsupported", message);
                }
            }
            Inbound::Text(text) => {
                if self.admit_message(state, slot, Some(&text)) {
                    if let Transport::SocketIo(_) = state.connections[slot].transport {
                        // What is wrong with it is said by the close that follows.
                        drop(self.on_packet(state, slot, &text, now));
                        return;
                    }
                    match state.connections[slot].speech {
                        None => self.on_text(state, slot, &text, now),
                        Some(_) => self.on_foreign_text(state, slot, &text, now),
                    }
                }
            }
        }
    }

    fn on_text(&self, state: &mut State, slot: usize, text: &str, now: Moment) {
        let request = match command::parse(text) {
            Ok(request) => request,
            Err(bad) => {
                return self.refuse(state, slot, bad.id.as_ref(), bad.code, &bad.message);
            }
        };
        let session = &mut state.connections[slot].session;
        let ack = matches!(request.command, Command::Subscribe { ack: true, .. });
        let actions = session.handle(Event::Command(request.command), now, &self.common.session);
        for action in actions {
            self.perform(state, slot, action, request.id.as_ref(), ack, now);
        }
    }

    /// A connection's time has come. True if it may have something to write.
    pub(super) fn tick(&self, state: &mut State, slot: usize, now: Moment) -> bool {
        let id = state.connections[slot].id;
        let connection = &mut state.connections[slot];
        if connection.leaves_at.is_some_and(|at| now >= at) {
            self.end(state, slot, CloseReason::Drain);
            return false;
        }
        let deadline = connection
            .writer
            .deadline(self.common.delivery.write_timeout);
        if deadline.is_some_and(|deadline| now >= deadline) {
            connection.writer.fail(now);
            self.common.telemetry.write_failures.inc();
            if connection.writer.failures >= self.common.delivery.max_failures {
                self.end(state, slot, CloseReason::Slow);
                return false;
            }
        }
        if let Some(over) = connection
            .speech
            .as_ref()
            .and_then(|each| each.is_over(now))
        {
            self.end(state, slot, over);
            return false;
        }
        let bounds = *speech::session_bounds(&connection.speech, &self.common);
        let actions = connection.session.handle(Event::Tick, now, &bounds);
        for action in actions {
            self.perform(state, slot, action, None, false, now);
        }
        self.join_postponed(state, slot, now);
        self.check(state, slot, now);
        self.reoffer(state, slot, now);
        Self::find(state, id).is_some()
    }

    pub(super) fn perform(
        &self,
        state: &mut State,
        slot: usize,
        action: Action,
        id: Option<&Value>,
        ack: bool,
        now: Moment,
    ) {
        match action {
            Action::Join(Joining {
                subscription,
                topic,
                cursor,
                again: _,
            }) => {
                if let Some(id) = id {
                    let extras = state.connections[slot].extras();
                    extras.ids.push((subscription, id.clone()));
                }
                if ack {
                    state.connections[slot].extras().acks.push(subscription);
                }
                self.on_join(state, slot, subscription, topic, cursor);
            }
            Action::Leave {
                subscription,
                topic,
            } => {
                self.on_leave(state, slot, subscription, &topic, id);
            }
            Action::Acknowledge { subscription, seq } => {
                if let Some(extras) = &mut state.connections[slot].extras {
                    extras.unacknowledged.retain(|each| {
                        each.subscription != subscription || each.publication.seq > seq
                    });
                }
            }
            Action::Verify(token) => self.on_auth(state, slot, &token, id, now),
            Action::Pong => {
                let ts = self.clock.wall().as_unix_micros() / 1000;
                let frame = self.frame_of(&state.connections[slot], &Notice::Pong { id, ts }, None);
                self.reply(state, slot, frame);
            }
            Action::Ping => self.ping(state, slot, now),
            Action::Refuse(error) => {
                self.common.telemetry.client_error(error.code());
                let connection = &state.connections[slot];
                let message = error.to_string();
                let notice = Notice::Error {
                    id,
                    code: error.code(),
                    message: &message,
                    // A native client has its id to know what it asked for.
                    topic: match (&error, &connection.speech) {
                        (CommandError::AlreadySubscribed { topic }, Some(_)) => {
                            Some(topic.to_string())
                        }
                        _ => None,
                    },
                };
                let frame = self.frame_of(connection, &notice, None);
                self.reply(state, slot, frame);
            }
            Action::Close(reason) => self.end(state, slot, reason),
        }
    }

    fn on_join(
        &self,
        state: &mut State,
        slot: usize,
        subscription: SubscriptionId,
        topic: Topic,
        cursor: Option<relay_core::cursor::Cursor>,
    ) {
        let connection = &state.connections[slot];
        if connection.identity.sight(&topic) == Sight::No {
            self.refuse_subscription(state, Watcher { slot, subscription });
            return;
        }
        let connection = &mut state.connections[slot];
        // A dialect's client brings no cursor itself, and may not show any more what it had of the topic.
        let again = match connection.speech {
            Some(_) => Again::State,
            None => Again::Nothing,
        };
        if let Some(cursor) = cursor.as_ref().filter(|_| again == Again::Nothing) {
            connection.extras().resuming.push(subscription);
            connection.carry(cursor, state.epoch);
        }
        let join = Join {
            subscription,
            topic,
            cursor,
            again,
        };
        self.join(state, slot, join);
    }

    fn on_leave(
        &self,
        state: &mut State,
        slot: usize,
        subscription: SubscriptionId,
        topic: &Topic,
        id: Option<&Value>,
    ) {
        let connection = &mut state.connections[slot];
        connection.outbox.forget(subscription);
        if let Some(extras) = &mut connection.extras {
            extras.forget(subscription);
        }
        let notice = Notice::Unsubscribed {
            id,
            topic: topic.to_string(),
        };
        let frame = self.frame_of(&state.connections[slot], &notice, None);
        self.unwatch(&mut state.registry, topic, Watcher { slot, subscription });
        self.reply(state, slot, frame);
    }

    fn on_auth(
        &self,
        state: &mut State,
        slot: usize,
        token: &str,
        id: Option<&Value>,
        now: Moment,
    ) {
        let identity = Credential::new(token, Source::Message).and_then(|credential| {
            self.common
                .identity
                .identify(Some(&credential), self.clock.wall())
        });
        let identity = match identity {
            Ok(identity) => identity,
            Err(refused) => {
                self.refuse(state, slot, id, refused.code, &refused.message);
                return self.end(state, slot, CloseReason::Unauthenticated);
            }
        };
        let connection = &mut state.connections[slot];
        if let Some(user) = connection.user()
            && identity.user.as_ref() != Some(user)
        {
            let message = "this connection is another user's; open a new one";
            self.refuse(state, slot, id, "other_user", message);
            return;
        }
        if let Err(refusal) = connection.admission.identify(identity.user.as_ref()) {
            self.refuse(state, slot, id, refusal.code(), &refusal.to_string());
            return self.end(state, slot, CloseReason::Unauthenticated);
        }
        let expires_at = identity.expires_at;
        connection.identity = Arc::new(identity);
        let event = Event::Authenticated {
            expires_at: expires_at.map(|at| self.moment_of(at, now)),
        };
        connection.session.handle(event, now, &self.common.session);
        let notice = Notice::Authenticated {
            user: connection.user().map(relay_core::id::Name::as_str),
            expires_at: expires_at.map(WallTime::to_rfc3339),
        };
        let frame = self.frame_of(connection, &notice, None);
        self.reply(state, slot, frame);
        self.watch_awaited(state, slot);
    }

    /// When a wall-clock time comes, on the monotonic clock.
    pub(super) fn moment_of(&self, at: WallTime, now: Moment) -> Moment {
        let left = at.as_unix_micros() - self.clock.wall().as_unix_micros();
        now + std::time::Duration::from_micros(u64::try_from(left).unwrap_or(0))
    }

    fn ping(&self, state: &mut State, slot: usize, now: Moment) {
        let connection = &mut state.connections[slot];
        if let Some(extras) = &mut connection.extras
            && extras.resuming.is_empty()
        {
            // What was not asked for again by now is no longer wanted; if it is, it starts anew.
            extras.carried = Carried::default();
        }
        if connection.writer.is_blocked() {
            return;
        }
        let frame = match &connection.transport {
            Transport::WebSocket(_) => {
                if connection.pinged.replace(now).is_some() {
                    self.miss_answer(state, slot);
                }
                websocket::ping()
            }
            // A comment, by which proxies and clients know that the stream lives.
            Transport::EventStream => bytes::Bytes::from_static(b":\n\n"),
            Transport::SocketIo(link) => {
                connection.pinged = Some(now);
                socketio::wrap(link.protocol.is_polling(), vec![engineio::PING.into()])
            }
            Transport::Poll(_) => return,
        };
        self.reply(state, slot, frame);
    }

    pub(super) fn on_pong(&self, state: &mut State, slot: usize, now: Moment) {
        if let Some(pinged) = state.connections[slot].pinged.take() {
            self.observe_round_trip(state, slot, now - pinged);
        }
    }

    /// The client says goodbye; it is answered in kind (RFC 6455 section 5.5.1).
    fn on_close(&self, state: &mut State, slot: usize, code: Option<u16>) {
        let answer = websocket::close_frame(code.unwrap_or(websocket::close::NORMAL), "");
        self.reply(state, slot, answer);
        self.flush(state, slot, self.clock.now());
        self.end(state, slot, CloseReason::Client);
    }

    fn on_broken(&self, state: &mut State, slot: usize, error: DecodeError) {
        self.common.telemetry.client_error(match error {
            DecodeError::TooLarge(_) => "too_large",
            DecodeError::Protocol(_) | DecodeError::NotUtf8 => "protocol",
        });
        if let DecodeError::TooLarge(_) = error {
            let message = error.to_string();
            let notice = Notice::Error {
                id: None,
                code: "too_large",
                message: &message,
                topic: None,
            };
            let frame = self.frame_of(&state.connections[slot], &notice, None);
            self.reply(state, slot, frame);
            return self.end(state, slot, CloseReason::TooLarge);
        }
        let answer = websocket::close_frame(error.close_code(), &error.to_string());
        self.reply(state, slot, answer);
        self.flush(state, slot, self.clock.now());
        self.end(state, slot, CloseReason::Protocol);
    }

    /// Whether the client's allowance covers one more message. If not, that message is answered with an
    /// error, so the client knows which one was not heard; who goes on regardless is ended.
    pub(super) fn admit_message(&self, state: &mut State, slot: usize, text: Option<&str>) -> bool {
        let (per_second, burst) = (
            self.common.limits.messages_per_second,
            self.common.limits.messages_burst,
        );
        let limiter = state.connections[slot]
            .messages
            .get_or_insert_with(|| Box::new(MessageLimiter::new(per_second, burst)));
        let Err(wait_ms) = limiter.admit() else {
            return true;
        };
        if limiter.refused > MAX_TOO_FREQUENT {
            self.end(state, slot, CloseReason::TooFrequent);
            return false;
        }
        let id = text.and_then(command::id_of);
        let message = format!(
            "not heard: more than {per_second} messages a second, bursts of {burst} (limits.messages_per_second, limits.messages_burst); send it again in {wait_ms} ms"
        );
        self.refuse(state, slot, id.as_ref(), "rate_limited", &message);
        false
    }

    /// Answers with an error; the connection goes on.
    pub(super) fn refuse(
        &self,
        state: &mut State,
        slot: usize,
        id: Option<&Value>,
        code: &str,
        message: &str,
    ) {
        self.common.telemetry.client_error(code);
        let notice = Notice::Error {
            id,
            code,
            message,
            topic: None,
        };
        let frame = self.frame_of(&state.connections[slot], &notice, None);
        self.reply(state, slot, frame);
    }
}
