//! What may happen when, on one session: polls, posts, the change to WebSocket, and namespaces.
//!
//! A pure state machine: it is told what came and says what that means. Heartbeats and credentials are the
//! affair of [`relay_core::watcher`], answers and sockets that of their owner.
//!
//! Invariants: at most one poll and one post are under way; after the change to WebSocket no poll, post or
//! second WebSocket is taken; events are heard only in namespaces that were joined.

use std::time::Duration;

use relay_core::moment::Moment;
use serde_json::Value;

use super::packet::{self, BadPacket};
use crate::engineio::Packet;

/// Namespaces one session may be in at a time.
pub const MAX_NAMESPACES: usize = 16;
/// How long a WebSocket may take to finish taking over.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How packets travel now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Polling {
        polled: bool,
        posting: bool,
        /// Until when a WebSocket may take over, if one is about to.
        probing: Option<Moment>,
    },
    WebSocket,
}

/// Why a request on a session is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The session goes on; this request is not for it.
    Mismatch,
    /// Two at a time: the session has to end, because neither side knows any more what the other has.
    Overlap,
}

/// What a packet from the client means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing to do.
    Nothing,
    /// The client answered a ping.
    Pong,
    /// The client leaves.
    Leave,
    /// The client broke the rules; the session has to end.
    Broken(BrokenRule),
    /// A namespace is to be joined.
    Connect(&'a str, Option<Value>),
    /// A namespace is left.
    Disconnect(&'a str),
    /// An event came: the whole array is the last.
    Event {
        /// In which namespace.
        namespace: &'a str,
        /// The number of the answer it wants.
        ack: Option<u64>,
        /// Its name.
        name: String,
        /// The whole JSON array `[name, argument…]`.
        json: &'a str,
    },
    /// An event with binary attachments, which nobody here reads.
    Binary {
        /// In which namespace.
        namespace: &'a str,
        /// The number of the answer it wants.
        ack: Option<u64>,
    },
}

/// A rule a client broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRule {
    /// Not an Engine.IO packet.
    #[error("the message is not an Engine.IO packet")]
    NoPacket,
    /// In protocol 4 it is the server that pings.
    #[error("invalid heartbeat direction")]
    Heartbeat,
    /// Not a Socket.IO packet.
    #[error("the message is not a Socket.IO packet: {0}")]
    BadPacket(#[from] BadPacket),
    /// A packet for a namespace that was not joined.
    #[error("a packet for a namespace that is not joined")]
    NotJoined,
    /// Binary without an event that announced it.
    #[error("a binary packet that no event announced")]
    StrayBinary,
}

/// One session.
#[derive(Debug)]
pub struct Protocol {
    mode: Mode,
    namespaces: Vec<String>,
    /// Binary frames an event announced, still to come; they are dropped.
    attachments: u32,
}

impl Protocol {
    /// A session that begins with polling.
    pub fn polling() -> Self {
        Self::new(Mode::Polling {
            polled: false,
            posting: false,
            probing: None,
        })
    }

    /// A session that is a WebSocket from the start.
    pub fn websocket() -> Self {
        Self::new(Mode::WebSocket)
    }

    fn new(mode: Mode) -> Self {
        Self {
            mode,
            namespaces: Vec::new(),
            attachments: 0,
        }
    }

    /// Whether packets travel in HTTP bodies.
    pub(crate) fn is_polling(&self) -> bool {
        matches!(self.mode, Mode::Polling { .. })
    }

    /// Whether a poll is to be answered though there is nothing to say, so that its client can go on over
    /// WebSocket.
    pub(crate) fn owes_noop(&self, now: Moment) -> bool {
        matches!(
            self.mode,
            Mode::Polling { polled: true, probing: Some(until), .. } if now < until
        )
    }

    /// A poll came.
    ///
    /// # Errors
    /// When it is not taken.
    pub fn poll(&mut self) -> Result<(), Fault> {
        match &mut self.mode {
            Mode::WebSocket => Err(Fault::Mismatch),
            Mode::Polling { polled: true, .. } => Err(Fault::Overlap),
            Mode::Polling { polled, .. } => {
                *polled = true;
                Ok(())
            }
        }
    }

    /// The poll was answered.
    pub(crate) fn answered(&mut self) {
        if let Mode::Polling { polled, .. } = &mut self.mode {
            *polled = false;
        }
    }

    /// A post began.
    ///
    /// # Errors
    /// When it is not taken.
    pub fn post(&mut self) -> Result<(), Fault> {
        match &mut self.mode {
            Mode::WebSocket => Err(Fault::Mismatch),
            Mode::Polling { posting: true, .. } => Err(Fault::Overlap),
            Mode::Polling { posting, .. } => {
                *posting = true;
                Ok(())
            }
        }
    }

    /// The post was read whole.
    pub fn posted(&mut self) {
        if let Mode::Polling { posting, .. } = &mut self.mode {
            *posting = false;
        }
    }

    /// A WebSocket wants to take over.
    ///
    /// # Errors
    /// When it may not: one has, or one is about to.
    pub fn probe(&mut self, now: Moment) -> Result<(), Fault> {
        match &mut self.mode {
            Mode::WebSocket => Err(Fault::Mismatch),
            Mode::Polling {
                probing: Some(until),
                ..
            } if now < *until => Err(Fault::Mismatch),
            Mode::Polling { probing, .. } => {
                *probing = Some(now + UPGRADE_TIMEOUT);
                Ok(())
            }
        }
    }

    /// The WebSocket that wanted to take over did not; polling goes on.
    pub fn unprobe(&mut self) {
        if let Mode::Polling { probing, .. } = &mut self.mode {
            *probing = None;
        }
    }

    /// The WebSocket takes over. False if it may not (any more).
    #[must_use]
    pub(crate) fn upgrade(&mut self, now: Moment) -> bool {
        let may = matches!(
            self.mode,
            Mode::Polling { probing: Some(until), .. } if now < until
        );
        if may {
            self.mode = Mode::WebSocket;
        }
        may
    }

    /// Namespaces that were joined.
    pub(crate) fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    /// Whether a namespace was joined.
    pub(crate) fn is_in(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|joined| joined == namespace)
    }

    /// A namespace is joined.
    pub(crate) fn join(&mut self, namespace: &str) {
        debug_assert!(!self.is_in(namespace), "joined twice");
        self.namespaces.push(namespace.to_owned());
    }

    /// A namespace is left.
    pub(crate) fn leave(&mut self, namespace: &str) {
        self.namespaces.retain(|joined| joined != namespace);
    }

    /// A packet came as text.
    pub(crate) fn text<'a>(&mut self, text: &'a str) -> Step<'a> {
        let Ok(packet) = Packet::parse(text) else {
            return Step::Broken(BrokenRule::NoPacket);
        };
        match packet {
            Packet::Close => Step::Leave,
            Packet::Ping(_) => Step::Broken(BrokenRule::Heartbeat),
            Packet::Pong => Step::Pong,
            Packet::Upgrade | Packet::Noop => Step::Nothing,
            Packet::Binary => self.binary(),
            Packet::Message(text) => self.message(text).unwrap_or_else(Step::Broken),
        }
    }

    /// A binary frame came.
    pub(crate) fn binary(&mut self) -> Step<'static> {
        match self.attachments.checked_sub(1) {
            Some(left) => {
                self.attachments = left;
                Step::Nothing
            }
            None => Step::Broken(BrokenRule::StrayBinary),
        }
    }

    fn message<'a>(&mut self, text: &'a str) -> Result<Step<'a>, BrokenRule> {
        let packet = packet::Packet::parse(text)?;
        let namespace = packet.namespace;
        if let packet::Body::Connect(auth) = packet.body {
            return Ok(Step::Connect(namespace, auth));
        }
        if !self.is_in(namespace) {
            return Err(BrokenRule::NotJoined);
        }
        Ok(match packet.body {
            packet::Body::Connect(_) | packet::Body::Ack => Step::Nothing,
            packet::Body::Disconnect => Step::Disconnect(namespace),
            packet::Body::Event(name, json) => Step::Event {
                namespace,
                ack: packet.ack,
                name,
                json,
            },
            packet::Body::Binary(attachments) => {
                self.attachments = attachments;
                Step::Binary {
                    namespace,
                    ack: packet.ack,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
