//! What the native protocol's frames look like, as JSON and as bytes on a WebSocket or an event stream.
//!
//! A frame is encoded once for a publication, a topic kind and a wire, and shared by all whose cursor
//! stands exactly there; a client that is held back gets the same frame around its own cursor.
//! PROTOCOL.md shows each of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;

use bytes::Bytes;
use relay_core::cursor::Cursor;
use relay_core::document::Status;
use relay_core::publication::{Body, Publication, Slot, Wrapping};
use relay_core::tally::{Aggregate, Tally};
use relay_core::topic::{Spelling, Topic};
use serde::Serialize;
use serde_json::Value;

use crate::Frame;
use crate::websocket;

/// How a frame's JSON is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// A WebSocket text frame (RFC 6455).
    WebSocket,
    /// An event of an event stream (WHATWG HTML, server-sent events).
    EventStream,
    /// Bare JSON, to be put in a list.
    Json,
}

/// What the wrapped frames of a wire are kept as, so that all who watch over it share them.
fn wrapping(wire: Wire) -> Option<Wrapping> {
    match wire {
        Wire::WebSocket => Some(Wrapping::Message),
        Wire::EventStream => Some(Wrapping::Event),
        // A list has one reader, and each one another list.
        Wire::Json => None,
    }
}

/// The frame every client gets that watches nothing but `topic` and is up to date with it. Encoded once; `None`
/// on a wire whose frames are not shared.
pub(crate) fn in_step<'a>(
    publication: &'a Publication,
    topic: Spelling<'_>,
    wire: Wire,
) -> Option<&'a Bytes> {
    let slot = Slot::new(topic, wrapping(wire)?);
    Some(publication.frame(slot, |publication| {
        let cursor = Cursor::at(publication.position(), [topic.topic]);
        at_cursor(publication, topic, &cursor, wire, false)
    }))
}

/// The frame of a publication for a client whose cursor becomes `cursor`.
pub(crate) fn at_cursor(
    publication: &Publication,
    topic: Spelling<'_>,
    cursor: &Cursor,
    wire: Wire,
    stale: bool,
) -> Bytes {
    let cursor = &cursor.to_string();
    let place = Place {
        topic,
        cursor,
        stale,
    };
    let json = json(publication, Some(&place));
    wrap(kind_of(publication).as_str(), &json, Some(cursor), wire)
}

/// How the jobs of a topic stand. Encoded once for all who share a wire and a spelling.
pub(crate) fn aggregate(aggregate: &Aggregate, is_bare: bool, wire: Wire) -> Bytes {
    let topic = Spelling {
        topic: &aggregate.topic,
        is_bare,
    };
    let encode = || Notice::aggregate(topic, &aggregate.tally).encode(wire);
    match wrapping(wire) {
        Some(wrapping) => {
            let slot = Slot::new(topic, wrapping);
            aggregate.frames.native(slot, encode).clone()
        }
        None => encode(),
    }
}

/// How the jobs of a topic stand, as mappings get it: they find each member, null where there is nothing to say.
pub(crate) fn standing(topic: &Topic, tally: &Tally) -> Value {
    // A map with texts for keys cannot fail to be one of JSON.
    // In the words of dialects a group is named by its id.
    let is_bare = topic.named().is_some();
    let topic = Spelling { topic, is_bare };
    let mut value = serde_json::to_value(Notice::aggregate(topic, tally)).unwrap_or_default();
    if let Value::Object(members) = &mut value {
        for name in ["progress", "status"] {
            members.entry(name).or_insert(Value::Null);
        }
    }
    value
}

/// What the frame of a publication is about.
pub(crate) fn kind_of(publication: &Publication) -> Frame {
    match &publication.body {
        Body::State { .. } => Frame::State,
        Body::Milestone { .. } => Frame::Milestone,
        Body::Gone(_) => Frame::Gone,
    }
}

/// A publication as mappings get it: as a native client would, but without topic and cursor, which are each
/// client's own, and with the owner where no document says it.
pub(crate) fn without_place(publication: &Publication) -> Vec<u8> {
    json(publication, None)
}

/// Where a client stands with a frame.
struct Place<'a> {
    topic: Spelling<'a>,
    cursor: &'a str,
    /// The bus is away.
    stale: bool,
}

/// The native shape of a publication.
fn json(publication: &Publication, place: Option<&Place<'_>>) -> Vec<u8> {
    let mut json = Vec::with_capacity(publication.payload_bytes() + 192);
    // Topics, cursors, ids and names are of an alphabet that needs no escaping.
    let mut put = |text: fmt::Arguments<'_>| {
        // A vector takes all it is given.
        json.write_fmt(text).ok();
    };
    let kind = kind_of(publication).as_str();
    put(format_args!(r#"{{"type":"{kind}""#));
    if let Some(place) = place {
        let Place { topic, cursor, .. } = place;
        put(format_args!(r#","topic":"{topic}","cursor":"{cursor}""#));
        if place.stale {
            put(format_args!(r#","stale":true"#));
        }
    }
    if !publication.is_state() {
        put(format_args!(r#","job_id":"{}""#, publication.job));
        if place.is_none() {
            put(format_args!(r#","owner":"{}""#, publication.owner));
        }
    }
    let carried: &[u8] = match &publication.body {
        Body::State { json, .. } => {
            put(format_args!(r#","job":"#));
            json
        }
        Body::Milestone { name, data } => {
            put(format_args!(r#","name":"{name}","data":"#));
            data
        }
        Body::Gone(gone) => {
            put(format_args!(r#","reason":"{}""#, gone.as_str()));
            if let Some(last) = gone.last() {
                put(format_args!(r#","last_status":"{last}""#));
            }
            b""
        }
    };
    json.extend_from_slice(carried);
    json.push(b'}');
    json
}

/// Wraps a frame's JSON for its wire. On an event stream `id` becomes the client's `Last-Event-ID`.
fn wrap(kind: &str, json: &[u8], id: Option<&str>, wire: Wire) -> Bytes {
    match wire {
        Wire::WebSocket => websocket::text(json),
        Wire::Json => Bytes::copy_from_slice(json),
        Wire::EventStream => {
            let mut event = Vec::with_capacity(json.len() + kind.len() + 96);
            event.extend_from_slice(b"event: ");
            event.extend_from_slice(kind.as_bytes());
            if let Some(id) = id {
                event.extend_from_slice(b"\nid: ");
                event.extend_from_slice(id.as_bytes());
            }
            event.extend_from_slice(b"\ndata: ");
            event.extend_from_slice(json);
            event.extend_from_slice(b"\n\n");
            event.into()
        }
    }
}

/// Frames that are about the connection, not about a publication.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Notice<'a> {
    /// First on every WebSocket.
    Hello {
        /// The relay's version.
        version: &'a str,
        /// This connection's name in the relay's logs.
        session: &'a str,
        /// The user the relay takes the client for.
        user: Option<&'a str>,
        /// How often the relay pings.
        ping_interval_ms: u64,
    },
    /// A token was accepted.
    Authenticated {
        /// The user the relay takes the client for.
        user: Option<&'a str>,
        /// When the token ends, RFC 3339.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
    },
    /// The token ends soon.
    TokenExpiring {
        /// When, RFC 3339.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
        /// In how many milliseconds.
        expires_in_ms: u64,
    },
    /// A join was answered; `jobs` states follow.
    Subscribed {
        /// As the client gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a Value>,
        /// The topic.
        topic: String,
        /// Whether everything missed since the cursor follows.
        recovered: bool,
        /// How many jobs' states follow at once.
        jobs: usize,
        /// Where the client stands before what follows.
        cursor: String,
        /// The bus is away: what follows may be out of date.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        stale: bool,
    },
    /// A subscription ended as asked.
    Unsubscribed {
        /// As the client gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a Value>,
        /// The topic.
        topic: String,
    },
    /// How the jobs of a group stand, taken together.
    Aggregate {
        /// The group.
        topic: String,
        /// Jobs by status.
        counts: BTreeMap<&'static str, u32>,
        /// All of them.
        total: u32,
        /// Their progress, 0 to 100, each by its weight.
        #[serde(skip_serializing_if = "Option::is_none")]
        progress: Option<f64>,
        /// The worst status any of them has.
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<&'static str>,
    },
    /// Milestones are lost to this client.
    Gap {
        /// The topic.
        topic: String,
        /// The job.
        job_id: &'a str,
        /// Why.
        reason: &'static str,
    },
    /// Answer to `ping`.
    Pong {
        /// As the client gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a Value>,
        /// The relay's clock, Unix milliseconds.
        ts: i64,
    },
    /// Something was not done.
    Error {
        /// As the client gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a Value>,
        /// For programs.
        code: &'a str,
        /// For people.
        message: &'a str,
        /// The topic it is about.
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<String>,
    },
    /// The relay is going away; come back after `retry_ms`.
    ServerShutdown {
        /// Milliseconds.
        retry_ms: u64,
    },
}

impl Notice<'_> {
    /// How the jobs of a topic stand.
    fn aggregate(topic: Spelling<'_>, tally: &Tally) -> Self {
        let counts = Status::ALL.map(|status| (status.as_str(), tally.count(status)));
        Self::Aggregate {
            topic: topic.to_string(),
            counts: BTreeMap::from(counts),
            total: tally.total(),
            progress: tally.progress(),
            status: tally.worst().map(Status::as_str),
        }
    }

    /// The frame's bytes. On an event stream, where the client stands becomes the event's id, and how long to wait
    /// becomes the browser's own delay.
    pub(crate) fn encode(&self, wire: Wire) -> Bytes {
        let kind = match self {
            Notice::Pong { .. } => "pong",
            Notice::TokenExpiring { .. } => "token_expiring",
            _ => self.frame().map_or("", Frame::as_str),
        };
        let cursor = match self {
            Notice::Subscribed { cursor, .. } => Some(cursor.as_str()),
            _ => None,
        };
        // Serializing a struct of strings and numbers into memory cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let frame = wrap(kind, &json, cursor, wire);
        match (self, wire) {
            (Notice::ServerShutdown { retry_ms }, Wire::EventStream) => {
                Bytes::from([format!("retry: {retry_ms}\n").as_bytes(), &frame].concat())
            }
            _ => frame,
        }
    }

    /// What a dialect may have its own words for. A pong is answered by its message mapping, and that a token ends is
    /// for native clients, who know what to do.
    pub(crate) fn frame(&self) -> Option<Frame> {
        Some(match self {
            Notice::Hello { .. } => Frame::Hello,
            Notice::Authenticated { .. } => Frame::Authenticated,
            Notice::Subscribed { .. } => Frame::Subscribed,
            Notice::Unsubscribed { .. } => Frame::Unsubscribed,
            Notice::Aggregate { .. } => Frame::Aggregate,
            Notice::Gap { .. } => Frame::Gap,
            Notice::Pong { .. } | Notice::TokenExpiring { .. } => return None,
            Notice::Error { .. } => Frame::Error,
            Notice::ServerShutdown { .. } => Frame::ServerShutdown,
        })
    }
}
#[cfg(test)]
mod tests;
