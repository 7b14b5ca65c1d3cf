//! What is said to a Socket.IO client: a dialect's words in the packets of a namespace.
//!
//! The texts of a publication are made once for all who hear them in the same way; only what a namespace
//! puts around them is the connection's own.

use bytes::Bytes;
use relay_core::outbox::SubscriptionId;
use relay_core::position::{Position, Seq};
use relay_core::publication::Publication;
use relay_wire::Frame;
use relay_wire::dialect::Input;
use relay_wire::engineio::payload;
use relay_wire::native::frame::Notice;
use relay_wire::socketio::packet;
use relay_wire::websocket;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{is_polling, room_of};
use crate::shard::Shard;
use crate::shard::connection::{Connection, Transport};
use crate::shard::deliver::cursor_at;

impl Shard {
    /// A notice in the words of the namespace it is about.
    pub(in crate::shard) fn notice_in(
        &self,
        connection: &Connection,
        notice: &Notice<'_>,
        call: &Call<'_>,
    ) -> Bytes {
        let (Some(frame), Ok(mut input)) = (notice.frame(), serde_json::to_value(notice)) else {
            return Bytes::new();
        };
        if let Some(input) = input.as_object_mut() {
            // Ours, by which the answer finds its way.
            input.remove("id");
        }
        self.say_in(connection, frame, &input, call)
    }

    /// Anything a dialect may have words for, in answer to what came with `id`; in the connection's first
    /// namespace where nothing did.
    pub(in crate::shard) fn say_called(
        &self,
        connection: &Connection,
        frame: Frame,
        input: &impl Serialize,
        id: Option<&Value>,
    ) -> Bytes {
        let (Some(call), Ok(input)) = (Call::of(id, connection), serde_json::to_value(input))
        else {
            return Bytes::new();
        };
        self.say_in(connection, frame, &input, &call)
    }

    /// Anything a dialect may have words for, in one namespace.
    pub(in crate::shard) fn say_in(
        &self,
        connection: &Connection,
        frame: Frame,
        input: &Value,
        call: &Call<'_>,
    ) -> Bytes {
        let Some((_, room)) = room_of(connection, call.namespace) else {
            return Bytes::new();
        };
        let dialect = &room.endpoint.voice.dialect;
        if !dialect.speaks(frame) {
            return Bytes::new();
        }
        let context = self.context(connection, &room.endpoint, &room.params);
        let (Ok(input), Ok(relay)) = (Input::of(input), Input::of(&context)) else {
            return Bytes::new();
        };
        let texts = dialect.map(frame, &input, &relay);
        packets(connection, call, texts)
    }

    /// A publication in the packets of the namespace it is told in. `position` is where its client then
    /// stands.
    pub(in crate::shard) fn tell_in(
        &self,
        connection: &mut Connection,
        publication: &Publication,
        (via, position): (SubscriptionId, Seq),
        replayed: bool,
    ) -> Bytes {
        let (Transport::SocketIo(link), Some(speech)) =
            (&connection.transport, &mut connection.speech)
        else {
            return Bytes::new();
        };
        let Some(at) = link.room_of(via) else {
            return Bytes::new();
        };
        let voice = Some(&link.rooms[at].endpoint.voice);
        let told = (publication, replayed);
        let (texts, is_change) = speech.tell(voice, told, shared_texts);
        let offset = &link.rooms[at].offset;
        let is_wanted = offset.is_wanted(publication, is_change, &texts);
        let status = is_wanted.then(|| speech.told_of(publication.key));
        let cursor =
            is_wanted.then(|| cursor_at(connection, Position::new(publication.epoch, position)));
        let Transport::SocketIo(link) = &mut connection.transport else {
            return Bytes::new();
        };
        let is_polling = link.protocol.is_polling();
        let room = &mut link.rooms[at];
        let offset = cursor.map(|cursor| room.offset.advance(&cursor, status.flatten()));
        told_in(&room.namespace, &texts, offset, is_polling)
    }
}

/// Where an answer belongs: a namespace, and the number of the event it answers.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct Call<'a> {
    pub(in crate::shard) namespace: &'a str,
    pub(in crate::shard) ack: Option<u64>,
}

impl<'a> Call<'a> {
    /// As an id that answers carry through the shard, where other clients have their own.
    pub(in crate::shard) fn id(&self) -> Value {
        json!([self.namespace, self.ack])
    }

    /// What was made with [`Call::id`]; the connection's first namespace where nothing was.
    pub(in crate::shard) fn of(id: Option<&'a Value>, connection: &'a Connection) -> Option<Self> {
        if let Some(id) = id {
            return Some(Self {
                namespace: id.get(0)?.as_str()?,
                ack: id.get(1).and_then(Value::as_u64),
            });
        }
        let Transport::SocketIo(link) = &connection.transport else {
            return None;
        };
        let room = link.rooms.first()?;
        Some(Self {
            namespace: &room.namespace,
            ack: None,
        })
    }
}

/// An answer of several arguments, or of none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledgement<'a> {
    #[serde(borrow)]
    ack: &'a RawValue,
}

/// What a mapping gave, as packets: an array that begins with a text is an event, anything else goes into
/// the acknowledgement, if one is wanted: as its only argument, or as `{ack: [argument…]}` says.
pub(in crate::shard) fn packets(
    connection: &Connection,
    call: &Call<'_>,
    texts: Vec<Vec<u8>>,
) -> Bytes {
    let mut packets = Vec::with_capacity(texts.len());
    let offset = room_of(connection, call.namespace).map(|(_, room)| &room.offset);
    let mut ack = call.ack;
    for text in texts {
        if text.starts_with(b"[\"") {
            let offset = offset.and_then(|offset| offset.after(&text));
            packets.push(packet::event(call.namespace, &text, offset).concat());
        } else if let Some(id) = ack.take() {
            let answer = match serde_json::from_slice::<Acknowledgement<'_>>(&text) {
                Ok(Acknowledgement { ack }) if ack.get().starts_with('[') => ack.get().into(),
                _ => [b"[", text.as_slice(), b"]"].concat(),
            };
            packets.push(packet::ack(call.namespace, id, &answer));
        }
    }
    wrap(is_polling(connection), packets)
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
    let last = texts.len() - 1;
    let packets = texts.iter().enumerate().map(|(at, text)| {
        let offset = offset.filter(|_| at == last);
        packet::event(namespace, text, offset).concat()
    });
    wrap(is_polling, packets.collect())
}

/// Puts the texts of a publication together for [`told_in`]. What is no event cannot be told.
fn shared_texts(mut texts: Vec<Vec<u8>>) -> Bytes {
    texts.retain(|text| text.starts_with(b"[\""));
    payload::join(&texts).into()
}

/// Packets as bytes on their way: in WebSocket frames, or as a payload.
pub(in crate::shard) fn wrap(is_polling: bool, packets: Vec<Vec<u8>>) -> Bytes {
    if is_polling {
        return payload::join(&packets).into();
    }
    match packets.as_slice() {
        [] => Bytes::new(),
        [packet] => websocket::text(packet),
        packets => {
            let frames = packets.iter().map(|packet| websocket::text(packet));
            Bytes::from(frames.collect::<Vec<_>>().concat())
        }
    }
}
