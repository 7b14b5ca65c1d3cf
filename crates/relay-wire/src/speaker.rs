//! How one client is spoken to: what its bytes mean, and what is said as bytes.
//!
//! One face for all front ends, so that the owner of the sockets does not know which it has: the native protocol
//! over a WebSocket, an event stream or a long poll; a dialect over a WebSocket; Socket.IO. A further transport
//! is a further variant here and nothing elsewhere.
//!
//! It does not know sockets, who else watches, the bus or metrics. When something is sent, and whether the
//! client may see it, is decided before it comes here.
//!
//! Invariant: what is empty is not sent; a front end that has no word for something says so by empty bytes.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use relay_core::cursor::Cursor;
use relay_core::moment::{Moment, WallTime};
use relay_core::position::Seq;
use relay_core::publication::Publication;
use relay_core::tally::Aggregate;
use relay_core::topic::Topic;
use relay_core::watcher::horizon::Horizon;
use relay_core::watcher::outbox::SubscriptionId;
use relay_core::watcher::session::CloseReason;
use relay_core::watcher::{Watcher, WatcherBounds};
use serde::Serialize;

use crate::Frame;
use crate::dialect::speech::{Speech, asks};
use crate::dialect::{Carrier, Endpoint, Params, Past, events};
use crate::exchange::{About, Ask, Body, Delivery, Heard, Hurry, Rejected, ReplyTo};
use crate::native::command;
use crate::native::frame::{self, Notice, Wire};
use crate::native::long_poll::{self, LongPoll};
use crate::socketio::client::{Client, Visitor};
use crate::socketio::protocol::Protocol;
use crate::websocket::{self, DecodeError, Decoder, Inbound, close};

/// How bytes reach a client. A metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket, native or with a dialect.
    WebSocket,
    /// Server-Sent Events.
    EventStream,
    /// A long poll.
    Poll,
    /// Socket.IO whose packets travel in HTTP bodies.
    SocketIoPolling,
    /// Socket.IO over a WebSocket.
    SocketIoWebSocket,
}

impl Transport {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::WebSocket,
        Self::EventStream,
        Self::Poll,
        Self::SocketIoPolling,
        Self::SocketIoWebSocket,
    ];

    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::EventStream => "sse",
            Self::Poll => "poll",
            Self::SocketIoPolling => "socketio_polling",
            Self::SocketIoWebSocket => "socketio_websocket",
        }
    }
}

/// How one client is spoken to.
#[derive(Debug)]
pub enum Speaker {
    /// The native protocol over a WebSocket, with what came and is not yet whole.
    WebSocket(Decoder),
    /// The native protocol as an event stream.
    EventStream,
    /// The native protocol as a list, in the answer to a request that waits for news.
    LongPoll(Box<LongPoll>),
    /// A dialect over a WebSocket.
    Dialect(Box<Speech>, Decoder),
    /// A dialect as an event stream.
    DialectStream(Box<Speech>),
    /// Socket.IO.
    SocketIo(Box<Client>),
}

impl Speaker {
    /// The native protocol over a WebSocket.
    pub fn websocket() -> Self {
        Self::WebSocket(Decoder::default())
    }

    /// The native protocol as an event stream.
    pub fn event_stream() -> Self {
        Self::EventStream
    }

    /// The native protocol in the answer to a request that waits for news of so many topics.
    pub fn long_poll(topics: usize) -> Self {
        Self::LongPoll(Box::new(LongPoll::new(topics)))
    }

    /// A Socket.IO session that begins.
    pub fn socket_io(protocol: Protocol, visitor: Visitor) -> Self {
        Self::SocketIo(Client::new(protocol, visitor))
    }

    /// A dialect over a WebSocket, or as an event stream where its endpoint is one.
    pub fn dialect(endpoint: Arc<Endpoint>, params: Params, now: Moment) -> Self {
        let carrier = endpoint.voice.carrier;
        let speech = Box::new(Speech::new(endpoint, params, now));
        match carrier {
            Carrier::EventStream => Self::DialectStream(speech),
            Carrier::WebSocket | Carrier::SocketIo => Self::Dialect(speech, Decoder::default()),
        }
    }

    /// How bytes reach the client.
    pub fn transport(&self) -> Transport {
        match self {
            Self::WebSocket(_) | Self::Dialect(..) => Transport::WebSocket,
            Self::EventStream | Self::DialectStream(_) => Transport::EventStream,
            Self::LongPoll(_) => Transport::Poll,
            Self::SocketIo(client) if client.is_polling() => Transport::SocketIoPolling,
            Self::SocketIo(_) => Transport::SocketIoWebSocket,
        }
    }

    /// Whether it answers requests, and has no socket of its own.
    pub fn is_polling(&self) -> bool {
        match self {
            Self::LongPoll(_) => true,
            Self::SocketIo(client) => client.is_polling(),
            Self::WebSocket(_) | Self::EventStream | Self::Dialect(..) | Self::DialectStream(_) => {
                false
            }
        }
    }

    /// Whether the client gives signs of life of its own; an event stream's and a long poll's are that they
    /// take what is sent.
    pub fn can_answer(&self) -> bool {
        match self {
            Self::WebSocket(_) | Self::Dialect(..) | Self::SocketIo(_) => true,
            Self::EventStream | Self::DialectStream(_) | Self::LongPoll(_) => false,
        }
    }

    /// Whether a client that is silent is let go. A client that waits for the answer to a long poll keeps its time.
    pub fn has_heartbeat(&self) -> bool {
        !matches!(self, Self::LongPoll(_))
    }

    /// Whether the connection is judged by how soon the client answers pings.
    pub fn is_judged(&self) -> bool {
        matches!(self, Self::WebSocket(_) | Self::Dialect(..))
    }

    /// What it needs to speak a dialect, if it does.
    pub fn speech(&self) -> Option<&Speech> {
        match self {
            Self::Dialect(speech, _) | Self::DialectStream(speech) => Some(speech),
            Self::SocketIo(client) => client.speech.as_deref(),
            Self::WebSocket(_) | Self::EventStream | Self::LongPoll(_) => None,
        }
    }

    /// What it needs to speak a dialect, if it does.
    pub fn speech_mut(&mut self) -> Option<&mut Speech> {
        match self {
            Self::Dialect(speech, _) | Self::DialectStream(speech) => Some(speech),
            Self::SocketIo(client) => client.speech.as_deref_mut(),
            Self::WebSocket(_) | Self::EventStream | Self::LongPoll(_) => None,
        }
    }

    /// The Socket.IO session, if it is one.
    pub fn socketio(&self) -> Option<&Client> {
        match self {
            Self::SocketIo(client) => Some(client),
            _ => None,
        }
    }

    /// The Socket.IO session, if it is one.
    pub fn socketio_mut(&mut self) -> Option<&mut Client> {
        match self {
            Self::SocketIo(client) => Some(client),
            _ => None,
        }
    }

    /// The bounds of its watcher, where they are the dialect's own.
    pub fn bounds(&self) -> Option<&WatcherBounds> {
        self.speech().map(|speech| &speech.dialect().bounds)
    }

    // --- what the client sends

    /// Takes bytes from the client's socket; the messages in them, and what is wrong behind these.
    pub fn decode(&mut self, bytes: &[u8], limit: usize) -> (Vec<Inbound>, Option<DecodeError>) {
        let decoder = match self {
            Self::WebSocket(decoder) | Self::Dialect(_, decoder) => decoder,
            Self::SocketIo(client) => &mut client.decoder,
            // Such a client has nothing to say after its request.
            Self::EventStream | Self::DialectStream(_) | Self::LongPoll(_) => {
                return (Vec::new(), None);
            }
        };
        let mut inbound = Vec::new();
        let fed = decoder.feed(bytes, limit, |each| inbound.push(each));
        (inbound, fed.err())
    }

    /// How many frames of any kind the client sent since this was last asked.
    pub fn take_frames(&mut self) -> u32 {
        match self {
            Self::WebSocket(decoder) | Self::Dialect(_, decoder) => decoder.take_frames(),
            Self::SocketIo(client) => client.decoder.take_frames(),
            Self::EventStream | Self::DialectStream(_) | Self::LongPoll(_) => 0,
        }
    }

    /// The id of a message that is not read further.
    pub fn id_of(&self, inbound: &Inbound) -> ReplyTo {
        match (self, inbound) {
            (Self::SocketIo(_), _) => ReplyTo::Nobody,
            (_, Inbound::Text(text)) => ReplyTo::of_id(command::id_of(text)),
            _ => ReplyTo::Nobody,
        }
    }

    /// What a message means.
    pub fn hear(&mut self, inbound: Inbound, about: &About<'_>, now: Moment) -> Heard {
        match inbound {
            Inbound::Pong => Heard::Pong,
            // Answered in kind (RFC 6455 section 5.5.1).
            Inbound::Close(code) => {
                Heard::Leave(websocket::close_frame(code.unwrap_or(close::NORMAL), ""))
            }
            Inbound::Ping(payload) => Heard::Answer(websocket::pong(&payload)),
            Inbound::Binary => match self {
                Self::SocketIo(client) => client.hear_binary(),
                _ => Heard::Rejected(
                    Rejected {
                        code: "binary_unsupported",
                        message: "this protocol uses text frames with JSON".to_owned(),
                    },
                    ReplyTo::Nobody,
                ),
            },
            Inbound::Text(text) => match self {
                Self::SocketIo(client) => client.hear(&text, about, now),
                Self::Dialect(speech, _) => {
                    speech.hear(&text, about, now, |text| websocket::texts(vec![text]))
                }
                Self::WebSocket(_)
                | Self::EventStream
                | Self::DialectStream(_)
                | Self::LongPoll(_) => hear_native(&text),
            },
        }
    }

    /// What is sent to a client whose bytes cannot be decoded, before its goodbye.
    pub fn reject_bytes(&mut self, error: DecodeError, about: &About<'_>) -> Bytes {
        let DecodeError::TooLarge(_) = error else {
            return Bytes::new();
        };
        let message = error.to_string();
        let notice = Notice::Error {
            id: None,
            code: "too_large",
            message: &message,
            topic: None,
        };
        self.say(&notice, &ReplyTo::Nobody, about)
    }

    // --- what the client is sent

    /// A publication, for a client whose cursor then stands as `told` says: shared with all who are in step, if it
    /// is. `past` is what happened in the job before, where [`Speaker::wants_past`] says so.
    pub fn tell<'a>(
        &mut self,
        publication: &'a Publication,
        (told, past): (Delivery, Option<&Past>),
        watcher: &Watcher,
        horizon: &Horizon,
    ) -> Cow<'a, Bytes> {
        let framing = match self {
            Self::WebSocket(_) => Wire::WebSocket,
            Self::EventStream => Wire::EventStream,
            Self::LongPoll(_) => Wire::Json,
            Self::Dialect(speech, _) => {
                let known = watcher.subscription(told.via);
                let since = known.map_or(Seq::ZERO, |subscription| subscription.since);
                let told = speech.as_known(told, publication, since);
                let (texts, _) = speech.tell(None, publication, (told, past), websocket::texts);
                return Cow::Owned(texts);
            }
            Self::DialectStream(speech) => {
                let (texts, _) = speech.tell(None, publication, (told, past), events::events);
                let cursor = watcher.cursor_at(horizon.at(told.at));
                return Cow::Owned(events::at(&texts, &cursor.to_string()));
            }
            Self::SocketIo(client) => {
                return Cow::Owned(client.tell(publication, (told, past), watcher));
            }
        };
        let Some(subscription) = watcher.subscription(told.via) else {
            return Cow::Owned(Bytes::new());
        };
        let topic = subscription.spelled();
        if !horizon.is_stale()
            && watcher.is_in_step(publication, told.via, told.at)
            && let Some(frame) = frame::in_step(publication, topic, framing)
        {
            return Cow::Borrowed(frame);
        }
        let cursor = watcher.cursor_at(horizon.at(told.at));
        let frame = frame::at_cursor(publication, topic, &cursor, framing, horizon.is_stale());
        Cow::Owned(frame)
    }

    /// Whether a client that begins with this state is told what happened in the job before.
    pub fn wants_past(&self, publication: &Publication, told: Delivery) -> bool {
        let speech = self
            .speech()
            .filter(|_| told.replayed && publication.is_state());
        speech.is_some_and(|speech| speech.dialect().tells_of_the_past())
    }

    /// Where something is said about one subscription.
    pub fn place_of(&self, via: SubscriptionId) -> ReplyTo {
        match self {
            Self::SocketIo(client) => client.place_of(via),
            _ => {
                let name = self.speech().and_then(|speech| speech.name_of(via));
                name.map_or(ReplyTo::Nobody, |name| ReplyTo::Named(name.into()))
            }
        }
    }

    /// A notice in the client's words; empty where it has none for it.
    pub fn say(&mut self, notice: &Notice<'_>, reply_to: &ReplyTo, about: &About<'_>) -> Bytes {
        match self {
            Self::WebSocket(_) => notice.encode(Wire::WebSocket),
            Self::EventStream => notice.encode(Wire::EventStream),
            Self::LongPoll(poll) => match notice {
                Notice::Gap { .. } => notice.encode(Wire::Json),
                _ => {
                    poll.note(notice);
                    Bytes::new()
                }
            },
            Self::DialectStream(_) | Self::Dialect(..) | Self::SocketIo(_) => {
                let Some(kind) = notice.frame() else {
                    return Bytes::new();
                };
                let said = self.say_as(kind, notice, reply_to, about);
                match (self, notice) {
                    // The browser comes back by itself, after as long as it is told.
                    (Self::DialectStream(_), Notice::ServerShutdown { retry_ms }) => {
                        [format!("retry: {retry_ms}\n\n").as_bytes(), &said]
                            .concat()
                            .into()
                    }
                    _ => said,
                }
            }
        }
    }

    /// Anything a dialect may have words for; natively there are none.
    pub fn say_as(
        &self,
        kind: Frame,
        input: &impl Serialize,
        reply_to: &ReplyTo,
        about: &About<'_>,
    ) -> Bytes {
        match self {
            Self::Dialect(speech, _) => {
                websocket::texts(speech.words(kind, input, reply_to.name(), about))
            }
            Self::DialectStream(speech) => {
                events::events(speech.words(kind, input, reply_to.name(), about))
            }
            Self::SocketIo(client) => client.say(kind, input, reply_to, about),
            Self::WebSocket(_) | Self::EventStream | Self::LongPoll(_) => Bytes::new(),
        }
    }

    /// What a worker's answer to the client's question asks for besides being told.
    pub fn asks_of_answer(
        &self,
        report: &impl Serialize,
        reply_to: &ReplyTo,
        about: &About<'_>,
    ) -> Vec<Ask> {
        match self {
            Self::Dialect(speech, _) => asks(speech.instructed(report, about), |text| {
                websocket::texts(vec![text])
            }),
            Self::SocketIo(client) => client.asks_of_answer(report, reply_to, about),
            Self::WebSocket(_) | Self::EventStream | Self::DialectStream(_) | Self::LongPoll(_) => {
                Vec::new()
            }
        }
    }

    /// Whether the client is sent how the jobs of a topic stand: where its dialect has words for it, and
    /// natively for a user and a group. A long poll is not: it waits for news of jobs.
    pub fn hears_aggregates(&self, topic: &Topic) -> bool {
        match self {
            Self::WebSocket(_) | Self::EventStream => !matches!(topic, Topic::Job(_)),
            Self::LongPoll(_) => false,
            Self::Dialect(..) | Self::DialectStream(_) | Self::SocketIo(_) => {
                let speech = self.speech();
                speech.is_some_and(|speech| speech.dialect().speaks(Frame::Aggregate))
            }
        }
    }

    /// How the jobs of a topic stand, for a client that names it bare or not.
    pub fn aggregate(
        &self,
        aggregate: &Aggregate,
        (via, is_bare): (SubscriptionId, bool),
        now: WallTime,
    ) -> Bytes {
        match self {
            Self::WebSocket(_) => frame::aggregate(aggregate, is_bare, Wire::WebSocket),
            Self::EventStream => frame::aggregate(aggregate, is_bare, Wire::EventStream),
            Self::LongPoll(_) => Bytes::new(),
            Self::Dialect(speech, _) => {
                let (voice, name) = (&speech.endpoint.voice, speech.name_of(via));
                voice.encode_aggregate(aggregate, name, now, websocket::texts)
            }
            Self::DialectStream(speech) => {
                let (voice, name) = (&speech.endpoint.voice, speech.name_of(via));
                voice.encode_aggregate(aggregate, name, now, events::events)
            }
            Self::SocketIo(client) => client.aggregate(aggregate, via, now),
        }
    }

    /// A question whether the client is there.
    pub fn ping(&self) -> Bytes {
        match self {
            Self::WebSocket(_) | Self::Dialect(..) => websocket::ping(),
            // A comment, by which proxies and clients know that the stream lives.
            Self::EventStream | Self::DialectStream(_) => Bytes::from_static(b":\n\n"),
            Self::LongPoll(_) => Bytes::new(),
            Self::SocketIo(client) => client.ping(),
        }
    }

    /// The last bytes before the connection ends, by what could not be decoded where that is why; empty where
    /// nothing is said.
    pub fn goodbye(&self, reason: CloseReason, undecodable: Option<DecodeError>) -> Bytes {
        if let Self::SocketIo(client) = self
            && client.is_polling()
        {
            return client.goodbye();
        }
        if !self.can_answer() {
            return Bytes::new();
        }
        let Some((code, words)) = close_words(reason) else {
            return Bytes::new();
        };
        let own = self
            .speech()
            .and_then(|speech| speech.dialect().close_code(reason));
        match undecodable {
            Some(error) => {
                let code = own.unwrap_or(error.close_code());
                websocket::close_frame(code, &error.to_string())
            }
            None => websocket::close_frame(own.unwrap_or(code), words),
        }
    }

    // --- requests that wait

    /// Whether the request that waits may be answered; `has_news` says that something is due.
    pub fn may_answer(&self, has_news: bool) -> bool {
        match self {
            Self::LongPoll(poll) => poll.may_answer(has_news),
            _ => true,
        }
    }

    /// How many frames go into one answer.
    pub fn answer_frames(&self) -> usize {
        match self {
            Self::LongPoll(_) => long_poll::MAX_FRAMES,
            _ => usize::MAX,
        }
    }

    /// Whether the connection ends when its request was answered.
    pub fn ends_with_answer(&self) -> bool {
        matches!(self, Self::LongPoll(_))
    }

    /// The request that waits is to be answered soon.
    pub fn hurry(&mut self, why: Hurry) {
        if let Self::LongPoll(poll) = self {
            poll.hurry(why);
        }
    }

    /// The body that answers the request that waits; `None` where it is to wait on. `at` is where the client
    /// stands once it has the frames.
    pub fn answer(
        &mut self,
        frames: &[Bytes],
        at: &Cursor,
        horizon: &Horizon,
        now: Moment,
    ) -> Option<Body> {
        match self {
            Self::LongPoll(poll) => Some(poll.answer(frames, at, horizon.is_stale())),
            Self::SocketIo(client) => client.answer(frames, now).map(Ok),
            Self::WebSocket(_) | Self::EventStream | Self::Dialect(..) | Self::DialectStream(_) => {
                None
            }
        }
    }
}

fn hear_native(text: &str) -> Heard {
    match command::parse(text) {
        Ok(request) => Heard::Asked(
            vec![Ask::Command(request.command)],
            ReplyTo::of_id(request.id),
        ),
        Err(bad) => Heard::Rejected(
            Rejected {
                code: bad.code,
                message: bad.message,
            },
            ReplyTo::of_id(bad.id),
        ),
    }
}

/// The close code and sentence for a reason; `None` where the client is past hearing.
fn close_words(reason: CloseReason) -> Option<(u16, &'static str)> {
    Some(match reason {
        CloseReason::Client => return None,
        CloseReason::Dead => (close::DEAD, "no sign of life, not even a pong"),
        CloseReason::Slow | CloseReason::Overflow => {
            (close::TRY_AGAIN, "too slow; reconnect with the last cursor")
        }
        CloseReason::Expired => (
            close::UNAUTHENTICATED,
            "the token has expired; reconnect with a new one",
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
        CloseReason::Idle => (close::GOING_AWAY, "nothing was sent for too long"),
        CloseReason::InternalError => (
            close::INTERNAL_ERROR,
            "an error in the relay; reconnect with the last cursor",
        ),
    })
}
