//! One connection as its shard keeps it: session, outbox, and the bytes on their way out.
//!
//! Small, and allocating nothing while idle: ten thousand of them stand in memory and wait.
//!
//! Invariant: while `writer` is blocked nothing is taken from the outbox, so what is behind it stays
//! fresh.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use relay_core::cursor::{Cursor, Told};
use relay_core::id::Name;
use relay_core::moment::Moment;
use relay_core::outbox::{Outbox, SubscriptionId};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::Publication;
use relay_core::quality::Quality;
use relay_core::recovery::Known;
use relay_core::session::{CloseReason, Session};
use relay_core::topic::Topic;
use serde_json::Value;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::admission::Admission;
use crate::identity::Identity;

use super::engineio::Link;
use super::inbound::MessageLimiter;
use super::poll::Poll;
use super::speech::Speech;

use relay_bus::inbox::ConnectionId;
use relay_wire::native::frame::Wire;
use relay_wire::websocket::Decoder;

/// Replies that may wait for a client that does not read; past it the client is ended.
const MAX_REPLIES: usize = 64;

/// What a connection speaks, with what only that transport needs.
#[derive(Debug)]
pub(crate) enum Transport {
    /// A WebSocket, with what it has sent and is not yet whole.
    WebSocket(Decoder),
    /// An event stream.
    EventStream,
    /// A poll that waits for its first news.
    Poll(Option<Poll>),
    /// A Socket.IO session, over polling or a WebSocket.
    SocketIo(Box<Link>),
}

impl Transport {
    pub(super) fn wire(&self) -> Wire {
        match self {
            Self::WebSocket(_) => Wire::WebSocket,
            Self::EventStream => Wire::EventStream,
            // Its frames are a dialect's; nothing of it is written in the native protocol.
            Self::Poll(_) | Self::SocketIo(_) => Wire::Json,
        }
    }

    /// The word in metrics and logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::WebSocket(_) => "websocket",
            Self::EventStream => "sse",
            Self::Poll(_) => "poll",
            Self::SocketIo(link) if link.protocol.is_polling() => "socketio_polling",
            Self::SocketIo(_) => "socketio_websocket",
        }
    }
}

/// An ending offered until the client acknowledges it.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    pub(super) subscription: SubscriptionId,
    pub(super) publication: Arc<Publication>,
    pub(super) next: Moment,
    pub(super) tries: u32,
}

/// What the client asked for beyond the subscription itself; most ask for nothing.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// Ids to echo in answers to joins that are under way.
    pub(super) ids: Vec<(SubscriptionId, Value)>,
    /// Subscriptions whose endings want an acknowledgement.
    pub(super) acks: Vec<SubscriptionId>,
    /// Endings sent and not acknowledged.
    pub(super) unacknowledged: Vec<Unacknowledged>,
    /// Jobs subscribed before their owner was known, to be checked when it is.
    pub(super) unproven: Vec<SubscriptionId>,
    /// Subscriptions that came with a cursor, until their join is answered.
    pub(super) resuming: Vec<SubscriptionId>,
    /// Subscriptions named together, until their join is answered.
    pub(super) together: Vec<SubscriptionId>,
    /// What the client's cursor spoke for; until that is live here, cursors handed out go on speaking for
    /// it as that one did.
    pub(super) carried: Carried,
    /// Topics whose tally changed while the socket was full.
    pub(super) owed: Vec<Topic>,
    /// What the URL named, until the client has authenticated.
    pub(super) awaited: Option<Box<(Vec<Topic>, Option<Cursor>)>>,
}

/// What a client brought a cursor for.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// The life of the bus it is of. Which one this is may not be known yet, so any is kept.
    pub(super) epoch: Epoch,
    pub(super) told: Vec<Told>,
}

/// How a subscription was asked for.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Whether it came with a cursor.
    pub(super) resumes: bool,
    /// Whether it was named together with others.
    pub(super) together: bool,
    /// The id to echo.
    pub(super) id: Option<Value>,
}

impl Extras {
    /// A join was answered: what was noted for that moment.
    pub(super) fn answered(&mut self, subscription: SubscriptionId) -> Answered {
        let take = |list: &mut Vec<SubscriptionId>| {
            let at = list.iter().position(|each| *each == subscription);
            at.map(|at| list.swap_remove(at)).is_some()
        };
        Answered {
            resumes: take(&mut self.resuming),
            together: take(&mut self.together),
            id: self.take_id(subscription),
        }
    }

    pub(super) fn take_id(&mut self, subscription: SubscriptionId) -> Option<Value> {
        let at = self.ids.iter().position(|(id, _)| *id == subscription)?;
        Some(self.ids.swap_remove(at).1)
    }

    /// Forgets what belongs to a subscription that ended.
    pub(super) fn forget(&mut self, subscription: SubscriptionId) {
        self.ids.retain(|(id, _)| *id != subscription);
        self.acks.retain(|id| *id != subscription);
        self.unacknowledged
            .retain(|each| each.subscription != subscription);
        self.unproven.retain(|id| *id != subscription);
        self.resuming.retain(|id| *id != subscription);
        self.together.retain(|id| *id != subscription);
    }

    /// Whether nothing is in it, so that it need not be kept.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            ids,
            acks,
            unacknowledged,
            unproven,
            resuming,
            together,
            carried,
            owed,
            awaited,
        } = self;
        ids.is_empty()
            && acks.is_empty()
            && unacknowledged.is_empty()
            && unproven.is_empty()
            && resuming.is_empty()
            && together.is_empty()
            && carried.told.is_empty()
            && owed.is_empty()
            && awaited.is_none()
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) transport: Transport,
    pub(super) session: Session,
    pub(super) outbox: Outbox,
    pub(super) writer: Writer,
    pub(super) identity: Arc<Identity>,
    /// Counts this connection against its user and address; dropped, it counts no more.
    pub(super) admission: Admission,
    pub(super) extras: Option<Box<Extras>>,
    /// The limiter of what the client sends, from its first message on.
    pub(super) messages: Option<Box<MessageLimiter>>,
    /// When the shard looks at it next without being asked; `None`: no timer.
    pub(super) timer: Option<Moment>,
    /// Whether it is in the shard's list of connections to flush.
    pub(super) dirty: bool,
    pub(super) opened: Moment,
    /// When the drain lets it go.
    pub(super) leaves_at: Option<Moment>,
    /// Why it ends. Set, nothing more is done for it, and the shard removes it before it goes on to wait.
    pub(super) ends: Option<CloseReason>,
    /// The ping whose pong is awaited.
    pub(super) pinged: Option<Moment>,
    /// How good it is, by its answers.
    pub(super) quality: Quality,
    /// What it needs to speak a dialect; native clients need nothing.
    pub(super) speech: Option<Box<Speech>>,
}

impl Connection {
    pub(super) fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// What cursors handed out in this epoch still say of topics that are not (yet) live on this
    /// connection.
    pub(super) fn carried(&self, epoch: Epoch) -> &[Told] {
        let carried = self.extras.as_ref().map(|extras| &extras.carried);
        carried
            .filter(|carried| carried.epoch == epoch)
            .map_or(&[], |carried| &carried.told)
    }

    /// What its numbers say that the client was told.
    pub(super) fn known(&self, epoch: Epoch) -> Known<'_> {
        Known {
            session: &self.session,
            carried: self.carried(epoch),
        }
    }

    /// The client brought a cursor: what it speaks for stays told, whenever that is asked for.
    pub(super) fn carry(&mut self, cursor: &Cursor, epoch: Epoch) {
        if self.carried(epoch).is_empty() {
            self.extras().carried = Carried {
                epoch: cursor.position.epoch,
                told: cursor.told().to_vec(),
            };
        }
    }

    /// Whether what waits for it is not due yet, and its timer will see to it.
    pub(super) fn is_paced(&self, now: Moment) -> bool {
        let due = self.outbox.next_due(Seq::MAX);
        due.zip(self.timer)
            .is_some_and(|(due, timer)| now < due && timer <= due)
    }

    /// Whether it has a socket of its own that frames may be written to now.
    pub(super) fn is_writable(&self) -> bool {
        let polls = match &self.transport {
            Transport::WebSocket(_) | Transport::EventStream => false,
            Transport::Poll(_) => true,
            Transport::SocketIo(link) => link.protocol.is_polling(),
        };
        !polls && !self.writer.is_blocked()
    }

    pub(super) fn user(&self) -> Option<&Name> {
        self.identity.user.as_ref()
    }
}

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The kernel has it all.
    All,
    /// The rest waits in the writer.
    Blocked,
    /// The peer is gone.
    Gone,
}

/// The way out of one connection.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// `None` where answers go through a oneshot: for a poll, and for Socket.IO while it polls.
    stream: Option<Rc<TcpStream>>,
    /// Bytes the kernel had no room for.
    unsent: Vec<u8>,
    /// Replies to the client and pings; they go before everything else.
    replies: Vec<Bytes>,
    /// Since when the kernel takes nothing.
    blocked_since: Option<Moment>,
    /// Write deadlines passed in a row.
    pub(super) failures: u32,
    /// The connection's task, which watches for room; woken when it has to look.
    pub(super) task: Option<Waker>,
}

impl Writer {
    pub(super) fn new(stream: Option<Rc<TcpStream>>) -> Self {
        Self {
            stream,
            ..Self::default()
        }
    }

    /// Gives a writer without a socket one; `rewrap` puts what waits into the new socket's frames.
    pub(super) fn attach(&mut self, stream: Rc<TcpStream>, rewrap: impl Fn(&[u8]) -> Bytes) {
        debug_assert!(self.stream.is_none(), "a socket is never replaced");
        self.stream = Some(stream);
        for reply in &mut self.replies {
            *reply = rewrap(reply);
        }
    }

    /// Whether there is a socket to write to.
    pub(super) fn has_socket(&self) -> bool {
        self.stream.is_some()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Whether as many replies wait as may.
    pub(super) fn replies_full(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Adds a reply.
    pub(super) fn reply(&mut self, frame: Bytes) {
        self.replies.push(frame);
    }

    /// Moves the waiting replies behind what is in `batch`.
    pub(super) fn take_replies(&mut self, batch: &mut Vec<Bytes>) {
        // Replies are rare: no room is kept for the next.
        batch.append(&mut std::mem::take(&mut self.replies));
    }

    /// Writes bytes that follow all that was written before.
    pub(super) fn write(&mut self, bytes: &[u8], now: Moment) -> Written {
        let Some(stream) = &self.stream else {
            return Written::Gone;
        };
        debug_assert!(self.unsent.is_empty(), "blocked, yet asked to write more");
        match write_some(stream, bytes) {
            Ok(sent) if sent == bytes.len() => {
                self.failures = 0;
                Written::All
            }
            Ok(sent) => {
                self.unsent.extend_from_slice(&bytes[sent..]);
                self.block(now);
                Written::Blocked
            }
            Err(_) => Written::Gone,
        }
    }

    /// The socket may have room again.
    pub(super) fn resume(&mut self, now: Moment) -> Written {
        let Some(stream) = &self.stream else {
            return Written::Gone;
        };
        match write_some(stream, &self.unsent) {
            Ok(sent) if sent == self.unsent.len() => {
                self.unsent = Vec::new();
                self.blocked_since = None;
                self.failures = 0;
                Written::All
            }
            Ok(sent) => {
                if sent > 0 {
                    self.unsent.drain(..sent);
                    self.blocked_since = Some(now);
                    self.failures = 0;
                }
                Written::Blocked
            }
            Err(_) => Written::Gone,
        }
    }

    /// When the write under way counts as failed.
    pub(super) fn deadline(&self, timeout: Duration) -> Option<Moment> {
        self.blocked_since.map(|since| since + timeout)
    }

    /// The deadline passed; it starts again.
    pub(super) fn fail(&mut self, now: Moment) {
        self.failures += 1;
        self.blocked_since = Some(now);
    }

    pub(super) fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    fn block(&mut self, now: Moment) {
        self.blocked_since = Some(now);
        // Its task was watching for bytes to read; it has to watch for room as well.
        self.wake();
    }
}

/// Writes as much as the kernel takes.
///
/// The socket is written to directly: asking tokio's readiness first costs a twentieth of a delivery, and the
/// kernel says the same. Only when it has no room is tokio told, so that it watches for it.
fn write_some(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let socket = SockRef::from(stream);
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.send(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(some) => sent += some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Room may have come in between; then all goes on.
                match stream.try_write(&bytes[sent..]) {
                    Ok(some) => sent += some,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
