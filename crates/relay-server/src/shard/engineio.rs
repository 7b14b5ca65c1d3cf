//! Engine.IO connections: sessions opened, polls and posts, and the change from polling to WebSocket.
//!
//! A session is a connection like any other. While it polls it has no socket: a poll that hangs is its room,
//! and while none does, nothing is taken from its outbox, so what waits stays fresh. Taking over, a
//! WebSocket becomes the connection's socket; outbox and subscriptions never notice. Requests come as mail, and
//! nothing of HTTP is known here.
//!
//! Invariant: a session is reached by its secret alone.

mod upgrade;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use relay_core::moment::Moment;
use relay_core::outbox::SubscriptionId;
use relay_core::session::{CloseReason, Event};
use relay_wire::engineio::payload;
use relay_wire::engineio::session::{Fault, Session};
use relay_wire::engineio::sid::{Secret, Sid};
use relay_wire::engineio::{self, Refusal};
use relay_wire::websocket::Decoder;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::connection::Transport;
use super::mail::{Mail, Mailbox, Payload, Turned};
use super::socketio::Room;
use super::speech::session_bounds;
use super::{Opening, Shard, State};
use crate::identity::Identity;
use crate::refused::Refused;
pub(crate) use upgrade::Upgrade;

const ENDED: Turned = (
    Refusal::SessionUnknown,
    "the session has ended: the client was silent for too long, broke the protocol or left; it opens a new one",
);
/// The session takes no such request now.
pub(crate) const MISMATCH: Turned = (
    Refusal::BadRequest,
    "the session is on a WebSocket, or one is about to take it over",
);
const OVERLAP: Turned = (
    Refusal::BadRequest,
    "two requests of one kind at a time on one session; it has ended",
);

/// What an Engine.IO connection needs beside what every connection has.
#[derive(Debug)]
pub(crate) struct Link {
    /// What the client proves by that the session is its own.
    secret: Secret,
    pub(super) protocol: Session,
    /// What came over its WebSocket and is not yet whole.
    pub(super) decoder: Decoder,
    /// The poll that waits. Whoever polls holds the other end; dropping this one ends that request.
    poll: Option<oneshot::Sender<Payload>>,
    /// The namespaces it is in.
    pub(super) rooms: Vec<Room>,
    pub(super) visitor: Visitor,
}

/// A cookie's name, and who the client is by it.
pub(crate) type Identified = (Option<String>, Result<Arc<Identity>, Refused>);

/// What the request said that opened the session; namespaces are joined later.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(crate) path: String,
    /// The query, without what is Engine.IO's own and without tokens.
    pub(crate) query: Vec<(String, String)>,
    /// Who the client is by each cookie that one of the path's dialects looks for; none once it is known.
    pub(crate) identities: Vec<Identified>,
}

impl Link {
    /// Which of its namespaces a subscription is told in.
    pub(super) fn room_of(&self, subscription: SubscriptionId) -> Option<usize> {
        let mut rooms = self.rooms.iter();
        rooms.position(|room| room.subscriptions.contains(&subscription))
    }

    pub(super) fn new(protocol: Session, visitor: Visitor) -> Box<Self> {
        Box::new(Self {
            secret: Secret::new(),
            protocol,
            decoder: Decoder::default(),
            poll: None,
            rooms: Vec::new(),
            visitor,
        })
    }
}

impl Shard {
    /// Opens a session that polls, and says what its client is answered.
    pub(crate) fn open_session(&self, opening: Opening) -> String {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let (slot, _) = self.open(&mut state, opening, None, now);
        self.open_packet(&state, slot).unwrap_or_default()
    }

    /// The first packet of a session; `None` for a connection that is no session of Engine.IO.
    pub(super) fn open_packet(&self, state: &State, slot: usize) -> Option<String> {
        let Transport::SocketIo(link) = &state.connections[slot].transport else {
            return None;
        };
        let sid = Sid {
            shard: u8::try_from(self.number).ok()?,
            slot: u32::try_from(slot).ok()?,
            secret: link.secret,
        };
        // Which dialect it will speak is not known yet; the longest times suit all of them.
        let found = self.common.dialects.routes.find(&link.visitor.path)?;
        let bounds = || {
            found
                .socketio
                .iter()
                .map(|each| &each.voice.dialect.session)
        };
        let interval = bounds().map(|each| each.ping_interval).max()?;
        let dead_after = bounds().map(|each| each.dead_after).max()?;
        let limit = self.common.limits.message_bytes;
        let sid = sid.to_string();
        let polling = link.protocol.is_polling();
        Some(engineio::Open::new(&sid, polling, interval, dead_after, limit).encode())
    }

    /// Whether a number is that of a shard.
    pub(crate) fn is_shard(&self, number: u8) -> bool {
        self.mailboxes.has(usize::from(number))
    }

    /// Gives a session's shard a letter. False if its mailbox is full, or the shard gone.
    pub(crate) fn post_mail(&self, shard: u8, mail: Mail) -> bool {
        let shard = usize::from(shard);
        if shard == self.number {
            self.deliver_mail(mail);
            return true;
        }
        self.mailboxes.send(shard, mail)
    }

    /// Gives a session's shard a letter once the result is dropped.
    pub(crate) fn send_on_drop(&self, shard: u8, mail: Mail) -> SendOnDrop<'_> {
        SendOnDrop {
            shard: self,
            mail: Some((shard, mail)),
        }
    }

    /// Reads this shard's letters until it has drained.
    pub async fn read_mail(self: Rc<Self>, mut mailbox: Mailbox) {
        let mut sockets = JoinSet::new();
        loop {
            tokio::select! {
                Some(mail) = mailbox.recv() => match mail {
                    Mail::Socket(sid, socket, head, early) => {
                        let upgrade = Upgrade { sid, head, early };
                        match TcpStream::from_std(socket) {
                            Ok(socket) => {
                                sockets.spawn_local(self.clone().serve_upgrade(socket, upgrade));
                            }
                            Err(error) => tracing::warn!(%error, "a socket cannot be moved"),
                        }
                    }
                    mail => self.deliver_mail(mail),
                },
                Some(_) = sockets.join_next() => {}
                () = self.drained.notified() => break,
            }
        }
        while sockets.join_next().await.is_some() {}
    }

    fn deliver_mail(&self, mail: Mail) {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        self.on_mail(&mut state, mail, now);
        self.flush_dirty(&mut state, now);
    }

    fn on_mail(&self, state: &mut State, mail: Mail, now: Moment) {
        match mail {
            Mail::Poll { sid, answer } => self.on_poll(state, sid, answer.0),
            Mail::PollGone(sid) => {
                if let Some(slot) = Self::locate(state, sid) {
                    self.end(state, slot, CloseReason::Client);
                }
            }
            Mail::Post(sid, taken) => {
                let answer = self.requested(state, sid, Session::post);
                taken.send(answer);
            }
            Mail::Posted(sid, body, taken) => {
                let mut answer = Err(ENDED);
                if let Some(slot) = Self::locate(state, sid) {
                    self.guarded(state, slot, |shard, state| {
                        answer = shard.on_posted(state, slot, body, now);
                    });
                }
                taken.send(answer);
            }
            Mail::Probe(sid, taken) => {
                let answer = self.requested(state, sid, |protocol| protocol.probe(now));
                taken.send(answer);
            }
            // Read where tasks can be started.
            Mail::Socket(..) => {}
        }
    }

    /// The slot of a session whose client knows its secret.
    fn locate(state: &State, sid: Sid) -> Option<usize> {
        let slot = usize::try_from(sid.slot).ok()?;
        let connection = state.connections.get(slot)?;
        match &connection.transport {
            Transport::SocketIo(link) if link.secret == sid.secret && connection.ends.is_none() => {
                Some(slot)
            }
            _ => None,
        }
    }

    /// Asks a session whether it takes a request; ends it where the request broke the rules.
    fn requested(
        &self,
        state: &mut State,
        sid: Sid,
        ask: impl FnOnce(&mut Session) -> Result<(), Fault>,
    ) -> Result<(), Turned> {
        let slot = Self::locate(state, sid).ok_or(ENDED)?;
        let Transport::SocketIo(link) = &mut state.connections[slot].transport else {
            return Err(ENDED);
        };
        match ask(&mut link.protocol) {
            Ok(()) => Ok(()),
            Err(Fault::Mismatch) => Err(MISMATCH),
            Err(Fault::Overlap) => {
                self.end(state, slot, CloseReason::Protocol);
                Err(OVERLAP)
            }
        }
    }

    fn on_poll(&self, state: &mut State, sid: Sid, answer: oneshot::Sender<Payload>) {
        if let Err(turned) = self.requested(state, sid, Session::poll) {
            // Whoever asked may have gone.
            drop(answer.send(Err(turned)));
            return;
        }
        if let Some(slot) = Self::locate(state, sid) {
            if let Transport::SocketIo(link) = &mut state.connections[slot].transport {
                link.poll = Some(answer);
            }
            self.mark(state, slot);
        }
    }

    fn on_posted(
        &self,
        state: &mut State,
        slot: usize,
        body: Option<Bytes>,
        now: Moment,
    ) -> Result<(), Turned> {
        let connection = &mut state.connections[slot];
        let id = connection.id;
        if let Transport::SocketIo(link) = &mut connection.transport {
            link.protocol.posted();
        }
        let Some(body) = body else {
            self.end(state, slot, CloseReason::Client);
            return Err(ENDED);
        };
        let bounds = *session_bounds(&connection.speech, &self.common);
        connection.session.handle(Event::SignOfLife, now, &bounds);
        let packets = match payload::split(&body) {
            Ok(packets) => packets,
            Err(_) => {
                self.end(state, slot, CloseReason::Protocol);
                return Err((Refusal::BadRequest, "the body is no payload"));
            }
        };
        for packet in packets {
            let Some(slot) = Self::find(state, id) else {
                return Ok(());
            };
            if self.admit_message(state, slot, None)
                && self.on_packet(state, slot, packet, now).is_err()
            {
                let reason =
                    "the body has a packet that breaks the protocol; the session has ended";
                return Err((Refusal::BadRequest, reason));
            }
        }
        Ok(())
    }

    /// The client leaves by a packet; a poll that waits is let go first.
    pub(super) fn on_engine_leave(&self, state: &mut State, slot: usize) {
        if let Transport::SocketIo(link) = &mut state.connections[slot].transport {
            answer_poll(link, engineio::NOOP.into());
        }
        self.end(state, slot, CloseReason::Client);
    }

    /// Says goodbye to a session that polls.
    pub(super) fn say_engine_goodbye(state: &mut State, slot: usize) {
        let connection = &mut state.connections[slot];
        let Transport::SocketIo(link) = &mut connection.transport else {
            return;
        };
        if link.poll.is_some() {
            state.frames.clear();
            connection.writer.take_replies(&mut state.frames);
            state
                .frames
                .push(Bytes::from_static(engineio::CLOSE.as_bytes()));
            answer_poll(link, payload::join(&state.frames));
        }
    }

    /// Answers the poll that waits with what there is, if there is anything.
    pub(super) fn flush_polling(&self, state: &mut State, slot: usize, now: Moment) {
        if let Transport::SocketIo(link) = &state.connections[slot].transport {
            let Some(answer) = &link.poll else {
                return self.reschedule(state, slot);
            };
            if answer.is_closed() {
                // Its client went away; what would be taken for it would be lost.
                return self.end(state, slot, CloseReason::Client);
            }
        }
        self.gather(state, slot, now);
        let Transport::SocketIo(link) = &mut state.connections[slot].transport else {
            return;
        };
        if state.frames.is_empty() && link.protocol.owes_noop(now) {
            state
                .frames
                .push(Bytes::from_static(engineio::NOOP.as_bytes()));
        }
        if !state.frames.is_empty() {
            let body = payload::join(&state.frames);
            state.metrics.written_bytes.inc_by(body.len() as u64);
            if !answer_poll(link, body) {
                return self.end(state, slot, CloseReason::Client);
            }
        }
        self.reschedule(state, slot);
    }
}

/// Answers the poll that waits. False if nobody waits for the answer any more.
fn answer_poll(link: &mut Link, payload: Vec<u8>) -> bool {
    link.protocol.answered();
    link.poll
        .take()
        .is_none_or(|poll| poll.send(Ok(payload)).is_ok())
}

/// Sends a letter when it is dropped, unless that was called off.
#[derive(Debug)]
#[must_use = "dropped at once, it sends its letter at once"]
pub(crate) struct SendOnDrop<'a> {
    shard: &'a Shard,
    mail: Option<(u8, Mail)>,
}

impl SendOnDrop<'_> {
    /// The letter is not sent.
    pub(crate) fn call_off(mut self) {
        self.mail = None;
    }
}

impl Drop for SendOnDrop<'_> {
    fn drop(&mut self) {
        let Some((shard, mail)) = self.mail.take() else {
            return;
        };
        let here = usize::from(shard) == self.shard.number;
        if here && let Ok(mut state) = self.shard.state.try_borrow_mut() {
            let now = self.shard.clock.now();
            self.shard.on_mail(&mut state, mail, now);
            self.shard.flush_dirty(&mut state, now);
            return;
        }
        // A full mailbox keeps the session until it has been silent for too long.
        self.shard.mailboxes.send(usize::from(shard), mail);
    }
}
