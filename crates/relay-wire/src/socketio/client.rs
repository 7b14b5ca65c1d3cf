//! A Socket.IO client: its Engine.IO session, the namespaces it is in, and what is said in each.
//!
//! It speaks one dialect, that of the first namespace it joined; every namespace is a [`Room`] with its own
//! endpoint and subscriptions. The texts of a publication are made once for all who hear them in the same way;
//! only what a namespace puts around them is the client's own.
//!
//! It does not know sockets, who the client is, or what the bus has.
//!
//! Invariant: a subscription belongs to one room.

use std::sync::Arc;

use bytes::Bytes;
use relay_core::id::JobId;
use relay_core::moment::{Moment, WallTime};
use relay_core::position::Position;
use relay_core::publication::Publication;
use relay_core::tally::Aggregate;
use relay_core::watcher::Watcher;
use relay_core::watcher::outbox::SubscriptionId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::offset::Offset;
use super::packet;
use super::protocol::{Protocol, Step};
use crate::Frame;
use crate::dialect::speech::{self, Speech, asks, context, understood};
use crate::dialect::{Endpoint, Input, Params, Past};
use crate::engineio as engine;
use crate::engineio::payload;
use crate::engineio::sid::Secret;
use crate::exchange::{About, Ask, Delivery, Heard, Rejected, ReplyTo};
use crate::websocket::{self, Decoder};

/// One namespace a client is in.
#[derive(Debug)]
pub struct Room {
    namespace: String,
    endpoint: Arc<Endpoint>,
    /// What the path and the namespace say.
    params: Params,
    /// What is told in it.
    subscriptions: Vec<SubscriptionId>,
    offset: Offset,
}

/// What the request said that opened the session; namespaces are joined later.
#[derive(Debug)]
pub struct Visitor {
    /// The path.
    pub path: String,
    /// The query, without what is Engine.IO's own and without tokens.
    pub query: Vec<(String, String)>,
}

/// A namespace about to be joined, all questions being answered.
#[derive(Debug)]
pub struct Entrance {
    /// The namespace.
    pub namespace: String,
    /// What it is.
    pub endpoint: Arc<Endpoint>,
    /// What the path and the namespace say.
    pub params: Params,
    /// The name the client is known by in it.
    pub socket_id: String,
    /// What it returns with, where the dialect recovers.
    pub pid: Option<String>,
}

/// A Socket.IO client.
#[derive(Debug)]
pub struct Client {
    /// What the client proves by that the session is its own.
    secret: Secret,
    /// What may happen when.
    pub protocol: Protocol,
    /// What came over its WebSocket and is not yet whole.
    pub(crate) decoder: Decoder,
    /// The namespaces it is in.
    rooms: Vec<Room>,
    /// What it speaks, from its first namespace on.
    pub(crate) speech: Option<Box<Speech>>,
    /// Where it came in.
    pub visitor: Visitor,
}

impl Client {
    /// A session that begins.
    pub(crate) fn new(protocol: Protocol, visitor: Visitor) -> Box<Self> {
        Box::new(Self {
            secret: Secret::new(),
            protocol,
            decoder: Decoder::default(),
            rooms: Vec::new(),
            speech: None,
            visitor,
        })
    }

    /// What the client proves by that the session is its own.
    pub fn secret(&self) -> Secret {
        self.secret
    }

    pub(crate) fn is_polling(&self) -> bool {
        self.protocol.is_polling()
    }

    /// A WebSocket takes over from polling, with what came on it and is not yet whole. False if it may not.
    #[must_use]
    pub fn upgrade(&mut self, decoder: Decoder, now: Moment) -> bool {
        let taken = self.protocol.upgrade(now);
        if taken {
            self.decoder = decoder;
        }
        taken
    }

    /// What waits as the payload of a poll, in frames of the WebSocket that took over.
    pub fn rewrap(payload: &[u8]) -> Bytes {
        let packets = payload.split(|byte| *byte == payload::SEPARATOR as u8);
        wrap(false, packets.map(<[u8]>::to_vec).collect())
    }

    // --- what the client sends

    /// A text packet came.
    pub(crate) fn hear(&mut self, text: &str, about: &About<'_>, now: Moment) -> Heard {
        match self.protocol.text(text) {
            Step::Nothing => Heard::Nothing,
            Step::Pong => Heard::Pong,
            // A poll that waits is let go first.
            Step::Leave => Heard::Leave(match self.is_polling() {
                true => engine::NOOP.into(),
                false => Bytes::new(),
            }),
            Step::Broken(rule) => Heard::Broken(rule.to_string()),
            Step::Connect(namespace, auth) => Heard::Connect(namespace.to_owned(), auth),
            Step::Disconnect(namespace) => Heard::Disconnect(namespace.to_owned()),
            Step::Event {
                namespace,
                ack,
                name,
                json,
            } => {
                let reply_to = ReplyTo::Event {
                    namespace: namespace.into(),
                    ack,
                    name: None,
                };
                if let Some(speech) = &mut self.speech {
                    speech.heard(now);
                }
                self.event(reply_to, &name, json, about)
            }
            Step::Binary { namespace, ack } => Heard::Rejected(
                Rejected {
                    code: "binary_unsupported",
                    message: "binary attachments are not supported here; send JSON".to_owned(),
                },
                ReplyTo::Event {
                    namespace: namespace.into(),
                    ack,
                    name: None,
                },
            ),
        }
    }

    /// A binary frame came.
    pub(crate) fn hear_binary(&mut self) -> Heard {
        match self.protocol.binary() {
            Step::Broken(rule) => Heard::Broken(rule.to_string()),
            _ => Heard::Nothing,
        }
    }

    fn event(&self, reply_to: ReplyTo, name: &str, json: &str, about: &About<'_>) -> Heard {
        let rejected =
            |code, message| Heard::Rejected(Rejected { code, message }, reply_to.clone());
        // The packet was a list, and its first value a name; of the others nothing was looked at. An event without
        // arguments is correct.
        let read = serde_json::from_str::<Vec<Value>>(json).and_then(|_| arguments(name, json));
        let input = match read {
            Ok(input) => input,
            Err(error) => {
                return rejected("bad_json", format!("the event cannot be read: {error}"));
            }
        };
        let Ok(input) = Input::parse(&input) else {
            let message = "the event is nested too deep".to_owned();
            return rejected("bad_message", message);
        };
        let Some(room) = self.room(&reply_to) else {
            return Heard::Nothing;
        };
        let context = context(&room.endpoint, &room.params, about, None);
        let voice = &room.endpoint.voice;
        let instructions = match &context {
            Some(context) => voice.dialect.instructions(voice.carrier, &input, context),
            None => Some(Vec::new()),
        };
        let call = reply_to.clone();
        understood(instructions, reply_to, |text| {
            self.packets(&call, vec![text])
        })
    }

    // --- namespaces

    /// Whether a namespace was joined.
    pub fn is_in(&self, namespace: &str) -> bool {
        self.protocol.is_in(namespace)
    }

    /// How many namespaces were joined.
    pub fn namespaces(&self) -> usize {
        self.protocol.namespaces().len()
    }

    /// Joins a namespace; what the client is told.
    pub fn enter(&mut self, entrance: Entrance, now: Moment) -> Bytes {
        let Entrance {
            namespace,
            endpoint,
            params,
            socket_id,
            pid,
        } = entrance;
        if self.speech.is_none() {
            let speech = Speech::new(endpoint.clone(), params.clone(), now);
            self.speech = Some(Box::new(speech));
        }
        self.protocol.join(&namespace);
        let connected = packet::connected(&namespace, &socket_id, pid.as_deref());
        // Most join one: room for four would be a tenth of what an idle connection takes.
        self.rooms.reserve_exact(1);
        self.rooms.push(Room {
            namespace,
            endpoint,
            params,
            subscriptions: Vec::new(),
            offset: Offset::at_first(pid.as_deref()),
        });
        wrap(self.is_polling(), vec![connected])
    }

    /// What a client is told whose namespace is not joined.
    pub fn not_joined(&self, namespace: &str, message: &str, data: Option<&Value>) -> Bytes {
        let packet = packet::connect_error(namespace, message, data);
        wrap(self.is_polling(), vec![packet])
    }

    /// Leaves a namespace; the subscriptions that were told in it.
    pub fn exit(&mut self, namespace: &str) -> Vec<SubscriptionId> {
        self.protocol.leave(namespace);
        let mut rooms = self.rooms.iter();
        let at = rooms.position(|each| each.namespace == namespace);
        at.map(|at| self.rooms.remove(at).subscriptions)
            .unwrap_or_default()
    }

    /// A subscription is told in the namespace it was asked for in.
    pub fn note_subscription(&mut self, asked: &ReplyTo, via: SubscriptionId) {
        if let ReplyTo::Event { namespace, .. } = asked
            && let Some(room) = self
                .rooms
                .iter_mut()
                .find(|each| *each.namespace == **namespace)
        {
            room.subscriptions.push(via);
        }
    }

    /// A subscription has begun: what tells of it says where the client stands.
    pub fn begun(&mut self, via: SubscriptionId) {
        let at = self.room_of(via);
        if let Some(room) = at.and_then(|at| self.rooms.get_mut(at)) {
            room.offset.add_topic();
        }
    }

    /// A client that returns to a job knows it by the status it was told last, if it says which.
    pub fn returns_to(&mut self, job: &JobId, status: Option<u8>) {
        if let Some(speech) = &mut self.speech {
            let words = speech.dialect().words.len();
            let known = status.filter(|it| usize::from(*it) < words);
            speech.returned = known.map(|status| (job.clone(), status));
        }
    }

    /// Which of its rooms a subscription is told in.
    fn room_of(&self, via: SubscriptionId) -> Option<usize> {
        let mut rooms = self.rooms.iter();
        rooms.position(|room| room.subscriptions.contains(&via))
    }

    /// The namespace a subscription is told in, as where to say something.
    pub(crate) fn place_of(&self, via: SubscriptionId) -> ReplyTo {
        let at = self.room_of(via);
        match at.and_then(|at| self.rooms.get(at)) {
            Some(room) => ReplyTo::Event {
                namespace: room.namespace.as_str().into(),
                ack: None,
                name: self.name_of(via).map(Into::into),
            },
            None => ReplyTo::Nobody,
        }
    }

    fn name_of(&self, via: SubscriptionId) -> Option<&str> {
        self.speech.as_ref()?.name_of(via)
    }

    /// The room an answer belongs in: the first one where the client gave nothing to know it by.
    fn room(&self, reply_to: &ReplyTo) -> Option<&Room> {
        match reply_to {
            ReplyTo::Event { namespace, .. } => {
                let mut rooms = self.rooms.iter();
                rooms.find(|each| *each.namespace == **namespace)
            }
            ReplyTo::Nobody | ReplyTo::Id(_) | ReplyTo::Named(_) => self.rooms.first(),
        }
    }

    // --- what the client is sent

    /// Anything the dialect may have words for, in the namespace it belongs in.
    pub(crate) fn say(
        &self,
        kind: Frame,
        input: &impl Serialize,
        reply_to: &ReplyTo,
        about: &About<'_>,
    ) -> Bytes {
        let Some(room) = self.room(reply_to) else {
            return Bytes::new();
        };
        let (said, name) = ((kind, input), reply_to.name());
        let texts = speech::words(&room.endpoint, &room.params, said, name, about);
        self.packets(reply_to, texts)
    }

    /// What a worker's answer to the client's question asks for besides being told.
    pub(crate) fn asks_of_answer(
        &self,
        report: &impl Serialize,
        reply_to: &ReplyTo,
        about: &About<'_>,
    ) -> Vec<Ask> {
        let speech = self.speech.as_ref();
        let instructions = speech.map(|speech| speech.instructed(report, about));
        let say = |text| self.packets(reply_to, vec![text]);
        asks(instructions.unwrap_or_default(), say)
    }

    /// A publication in the packets of the namespace it is told in.
    pub(crate) fn tell(
        &mut self,
        publication: &Publication,
        (told, past): (Delivery, Option<&Past>),
        watcher: &Watcher,
    ) -> Bytes {
        let (Some(at), is_polling) = (self.room_of(told.via), self.is_polling()) else {
            return Bytes::new();
        };
        let (Some(speech), Some(room)) = (&mut self.speech, self.rooms.get_mut(at)) else {
            return Bytes::new();
        };
        let voice = Some(&room.endpoint.voice);
        let (texts, is_change) = speech.tell(voice, publication, (told, past), shared_texts);
        let offset = room
            .offset
            .is_wanted(publication, is_change, &texts)
            .then(|| {
                let position = Position::new(publication.epoch, told.at);
                let status = speech.told_of(publication.key);
                room.offset.advance(&watcher.cursor_at(position), status)
            });
        told_in(&room.namespace, &texts, offset, is_polling)
    }

    /// How the jobs of a topic stand, in the namespace it is told in.
    pub(crate) fn aggregate(
        &self,
        aggregate: &Aggregate,
        via: SubscriptionId,
        now: WallTime,
    ) -> Bytes {
        let Some(room) = self.room_of(via).and_then(|at| self.rooms.get(at)) else {
            return Bytes::new();
        };
        let voice = &room.endpoint.voice;
        let name = self.name_of(via);
        let texts = voice.encode_aggregate(aggregate, name, now, shared_texts);
        let offset = room.offset.after(&texts);
        told_in(&room.namespace, &texts, offset, self.is_polling())
    }

    pub(crate) fn ping(&self) -> Bytes {
        wrap(self.is_polling(), vec![engine::PING.into()])
    }

    /// The end of a session that polls; its client opens a new one.
    pub(crate) fn goodbye(&self) -> Bytes {
        Bytes::from_static(engine::CLOSE.as_bytes())
    }

    /// The payload that answers the poll that waits; `None` while there is nothing to say.
    pub(crate) fn answer(&mut self, frames: &[Bytes], now: Moment) -> Option<Vec<u8>> {
        let body = match frames {
            [] if self.protocol.owes_noop(now) => engine::NOOP.into(),
            [] => return None,
            frames => payload::join(frames),
        };
        self.protocol.answered();
        Some(body)
    }

    /// What a mapping gave, as packets: an array that begins with a text is an event, anything else goes into
    /// the acknowledgement, if one is wanted: as its only argument, or as `{ack: [argument…]}` says.
    fn packets(&self, reply_to: &ReplyTo, texts: Vec<Vec<u8>>) -> Bytes {
        let Some(room) = self.room(reply_to) else {
            return Bytes::new();
        };
        let mut ack = match reply_to {
            ReplyTo::Event { ack, .. } => *ack,
            ReplyTo::Nobody | ReplyTo::Id(_) | ReplyTo::Named(_) => None,
        };
        let namespace = &room.namespace;
        let mut packets = Vec::with_capacity(texts.len());
        for text in texts {
            if text.starts_with(b"[\"") {
                let offset = room.offset.after(&text);
                packets.push(packet::event(namespace, &text, offset).concat());
            } else if let Some(id) = ack.take() {
                let answer = match serde_json::from_slice::<Acknowledgement<'_>>(&text) {
                    Ok(Acknowledgement { ack }) if ack.get().starts_with('[') => ack.get().into(),
                    _ => [b"[", text.as_slice(), b"]"].concat(),
                };
                packets.push(packet::ack(namespace, id, &answer));
            }
        }
        wrap(self.is_polling(), packets)
    }
}

/// An event as mappings read it: its arguments as they came, with their digits.
fn arguments(name: &str, json: &str) -> serde_json::Result<Vec<u8>> {
    let arguments: Vec<&RawValue> = serde_json::from_str(json)?;
    serde_json::to_vec(&Event {
        event: name,
        args: arguments.get(1..).unwrap_or_default(),
    })
}

/// An event that a client sent.
#[derive(Serialize)]
struct Event<'a> {
    event: &'a str,
    args: &'a [&'a RawValue],
}

/// An answer of several arguments, or of none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledgement<'a> {
    #[serde(borrow)]
    ack: &'a RawValue,
}

/// The texts of a publication, shared by all namespaces, in the packets of one of them; the last one carries
/// the offset.
fn told_in(namespace: &str, texts: &[u8], offset: Option<&str>, is_polling: bool) -> Bytes {
    if texts.is_empty() {
        return Bytes::new();
    }
    let separator = payload::SEPARATOR as u8;
    if !is_polling && !texts.contains(&separator) {
        // What nearly everything is: put together where it stays.
        return websocket::text_of(&packet::event(namespace, texts, offset));
    }
    let texts: Vec<&[u8]> = texts.split(|byte| *byte == separator).collect();
    let last = texts.len().saturating_sub(1);
    let packets = texts.iter().enumerate().map(|(at, text)| {
        let offset = offset.filter(|_| at == last);
        packet::event(namespace, text, offset).concat()
    });
    wrap(is_polling, packets.collect())
}

/// Puts the texts of a publication together for [`told_in`]. What is not an event cannot be told.
fn shared_texts(mut texts: Vec<Vec<u8>>) -> Bytes {
    texts.retain(|text| text.starts_with(b"[\""));
    payload::join(&texts).into()
}

/// Packets as bytes on their way: in WebSocket frames, or as a payload.
fn wrap(is_polling: bool, packets: Vec<Vec<u8>>) -> Bytes {
    if is_polling {
        return payload::join(&packets).into();
    }
    websocket::texts(packets)
}
