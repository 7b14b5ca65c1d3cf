//! Mail between shards: what requests want of Engine.IO sessions that live on another shard.
//!
//! A polling client's requests come in on whichever shard the kernel chose for their socket; the session
//! lives on the one where it began, which its id names. Everything else stays where it came in. How requests are
//! read and answered over HTTP is not known here.
//!
//! Invariant: a full mailbox refuses; nobody waits for room in one.

use std::rc::Rc;

use bytes::Bytes;
use relay_bus::inbox::ConnectionId;
use relay_core::moment::Moment;
use relay_core::watcher::session::CloseReason;
use relay_wire::engineio::payload;
use relay_wire::engineio::sid::Sid;
use relay_wire::engineio::{ErrorCode, NOOP, RequestError};
use relay_wire::exchange::Body;
use relay_wire::socketio::client::Client;
use relay_wire::socketio::protocol::{Fault, Protocol};
use relay_wire::websocket::{Decoder, Inbound};
use tokio::sync::{mpsc, oneshot};

use super::Shard;
use super::connection::{Connection, Desk};
use crate::link::{Link, Moved};
use crate::sockets::Seat;

/// Letters a mailbox holds.
const MAILBOX: usize = 1024;

const ENDED: RequestError = RequestError::new(
    ErrorCode::SessionUnknown,
    "the session has ended: the client was silent for too long, broke the protocol or left; it opens a new one",
);
/// Why a request is not for the session as it is.
pub(crate) const MISMATCH: RequestError = RequestError::new(
    ErrorCode::BadRequest,
    "the session is on a WebSocket, or one is about to take it over",
);
const OVERLAP: RequestError = RequestError::new(
    ErrorCode::BadRequest,
    "two requests of one kind at a time on one session; it has ended",
);
const BAD_PAYLOAD: RequestError =
    RequestError::new(ErrorCode::BadRequest, "the body is not a valid payload");
const BAD_PACKET: RequestError = RequestError::new(
    ErrorCode::BadRequest,
    "the body has a packet that breaks the protocol; the session has ended",
);

/// A letter to the shard of a session. Dropped answers mean that the shard is gone.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A poll waits for its answer, once it is taken.
    Poll(Sid, Taken, oneshot::Sender<Body>),
    /// A poll's client went away before the answer.
    PollGone(Sid),
    /// A post begins.
    Post(Sid, Taken),
    /// A post is read whole, or (`None`) broke off.
    Posted(Sid, Option<Bytes>, Taken),
    /// A WebSocket wants to take over.
    Probe(Sid, Taken),
    /// The WebSocket that may take over with its place, the head of the answer it still has to be sent, and what
    /// its client sent already.
    Socket(Sid, (Moved, Seat), Bytes, Bytes),
}

/// The way back of a yes, or of why not.
#[derive(Debug)]
pub(crate) struct Taken(oneshot::Sender<Result<(), RequestError>>);

impl Taken {
    /// A way back, and where it leads to.
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<(), RequestError>>) {
        let (answer, answered) = oneshot::channel();
        (Self(answer), answered)
    }

    /// A way back that nobody waits at.
    pub(crate) fn nobody() -> Self {
        Self::new().0
    }

    fn send(self, answer: Result<(), RequestError>) {
        // Whoever asked may have gone.
        self.0.send(answer).ok();
    }
}

/// The mailboxes of all shards.
#[derive(Debug, Clone)]
pub(crate) struct Mailboxes(Vec<mpsc::Sender<Mail>>);

/// The other end of one mailbox; its shard holds it.
pub(crate) type Mailbox = mpsc::Receiver<Mail>;

impl Mailboxes {
    /// One mailbox for each of so many shards.
    pub(crate) fn new(shards: usize) -> (Self, Vec<Mailbox>) {
        let (senders, receivers) = (0..shards).map(|_| mpsc::channel(MAILBOX)).unzip();
        (Self(senders), receivers)
    }

    /// Whether there is such a shard.
    pub(crate) fn has(&self, shard: u8) -> bool {
        usize::from(shard) < self.0.len()
    }

    /// Puts a letter into a mailbox. False if it is full, or its shard gone.
    fn send(&self, shard: u8, mail: Mail) -> bool {
        let to = self.0.get(usize::from(shard));
        to.is_some_and(|to| to.try_send(mail).is_ok())
    }
}

impl Shard {
    /// The mailboxes of all shards.
    pub(crate) fn mailboxes(&self) -> &Mailboxes {
        &self.mailboxes
    }

    /// Gives the shard of a session a letter. False if it has no room for it.
    pub(crate) fn post(&self, shard: u8, mail: Mail) -> bool {
        if usize::from(shard) == self.number {
            self.deliver(mail);
            return true;
        }
        self.mailboxes.send(shard, mail)
    }

    /// A letter came, for a session of this shard.
    pub(crate) fn deliver(&self, mail: Mail) {
        match mail {
            Mail::Poll(sid, taken, request) => {
                taken.send(self.request(sid, Protocol::poll, |connection, _| {
                    connection.outlet.wait(request);
                    connection.due = true;
                }));
            }
            Mail::PollGone(sid) => {
                if let Some(id) = session(self, sid) {
                    self.forget(id);
                }
            }
            Mail::Post(sid, taken) => taken.send(self.request(sid, Protocol::post, |_, _| {})),
            Mail::Posted(sid, body, taken) => {
                let posted = session(self, sid).and_then(|id| {
                    self.visit(id, |connection, desk| on_posted(connection, body, desk))
                });
                taken.send(posted.unwrap_or(Err(ENDED)));
            }
            Mail::Probe(sid, taken) => {
                let now = self.clock.now();
                let probe = |protocol: &mut Protocol| protocol.probe(now);
                taken.send(self.request(sid, probe, |_, _| {}));
            }
            // Read where tasks can be started.
            Mail::Socket(..) => {}
        }
    }

    /// Asks a session whether it takes a request, and does what follows if so; ends it where the request broke
    /// the rules.
    fn request(
        &self,
        sid: Sid,
        ask: impl FnOnce(&mut Protocol) -> Result<(), Fault>,
        then: impl FnOnce(&mut Connection, &mut Desk<'_>),
    ) -> Result<(), RequestError> {
        let taken = session(self, sid).and_then(|id| {
            self.visit(id, |connection, desk| {
                let client = connection.speaker.socketio_mut().ok_or(ENDED)?;
                match ask(&mut client.protocol) {
                    Ok(()) => {
                        then(connection, desk);
                        Ok(())
                    }
                    Err(Fault::Mismatch) => Err(MISMATCH),
                    Err(Fault::Overlap) => {
                        connection.end(CloseReason::Protocol);
                        Err(OVERLAP)
                    }
                }
            })
        });
        taken.unwrap_or(Err(ENDED))
    }

    /// The poll that waits is let go, so that its client can go on over WebSocket. `None` if there is no such
    /// session.
    pub(crate) fn let_poll_go(&self, sid: Sid) -> Option<()> {
        let id = session(self, sid)?;
        self.visit(id, |connection, _| connection.due = true)
    }

    /// The WebSocket that wanted to take a session over did not.
    pub(crate) fn unprobe(&self, sid: Sid) {
        if let Some(id) = session(self, sid) {
            self.visit(id, |connection, _| {
                if let Some(client) = connection.speaker.socketio_mut() {
                    client.protocol.unprobe();
                }
            });
        }
    }

    /// A WebSocket has the session from here on, if it still may. `inbound` came behind the word for it.
    pub(crate) fn upgrade(
        &self,
        sid: Sid,
        link: &Rc<dyn Link>,
        decoder: Decoder,
        inbound: impl Iterator<Item = Inbound>,
    ) -> Option<ConnectionId> {
        let id = session(self, sid)?;
        let link = link.clone();
        let upgraded = self.visit(id, |connection, desk| {
            let now: Moment = desk.now;
            let client = connection.speaker.socketio_mut()?;
            client.upgrade(decoder, now).then_some(())?;
            let waiting = connection.outlet.attach(link, Client::rewrap);
            if let Some(poll) = waiting {
                // A client that polls on though it said it would not is let go; it may have gone.
                drop(poll.send(Ok(NOOP.into())));
            }
            desk.tools.metrics.upgraded();
            connection.due = true;
            connection.take_messages(inbound, desk);
            Some(id)
        });
        upgraded.flatten()
    }
}

/// The session of a client that knows its secret.
fn session(shard: &Shard, sid: Sid) -> Option<ConnectionId> {
    // A request that is dropped within a borrow has nothing to say any more.
    let state = shard.state.try_borrow().ok()?;
    let connection = state.connections.get(usize::try_from(sid.slot).ok()?)?;
    let client = connection.speaker.socketio()?;
    (client.secret() == sid.secret && connection.goes_on()).then_some(connection.id)
}

fn on_posted(
    connection: &mut Connection,
    body: Option<Bytes>,
    desk: &mut Desk<'_>,
) -> Result<(), RequestError> {
    if let Some(client) = connection.speaker.socketio_mut() {
        client.protocol.posted();
    }
    let Some(body) = body else {
        connection.end(CloseReason::Client);
        return Err(ENDED);
    };
    connection.sign_of_life(desk);
    let Ok(packets) = payload::split(&body) else {
        connection.end(CloseReason::Protocol);
        return Err(BAD_PAYLOAD);
    };
    let packets = packets.map(|packet| Inbound::Text(packet.into()));
    connection.take_messages(packets, desk);
    match connection.ends {
        Some(CloseReason::Protocol) => Err(BAD_PACKET),
        _ => Ok(()),
    }
}
