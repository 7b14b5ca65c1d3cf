//! The way out of one connection: bytes on their way, and what happens while there is no room for more.
//!
//! A connection has a socket of its own, or answers requests: then the one that waits is its way out, and while
//! none does it has none. What is in the bytes is not known here.
//!
//! Invariant: while it is blocked nothing is written, so what is behind it stays fresh.

use std::fmt;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use relay_core::moment::Moment;
use relay_wire::exchange::Body;
use tokio::sync::oneshot;

use crate::link::Sink;

/// Replies that may wait for a client that does not read, however short; past it the connection is ended.
const MAX_REPLIES: usize = 64;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// The kernel has it all.
    All,
    /// The rest waits in the outlet.
    Blocked,
    /// The peer is gone.
    Gone,
}

/// Where bytes go.
enum Way {
    Socket(Rc<dyn Sink>),
    /// The request that waits for an answer, if one does. Its other end is with whoever answers it over HTTP,
    /// and is closed when the client went away.
    Request(Option<oneshot::Sender<Body>>),
}

/// The way out of one connection.
pub(super) struct Outlet {
    way: Way,
    /// Bytes the kernel had no room for.
    unsent: Vec<u8>,
    /// Replies to the client and pings; they go before everything else.
    replies: Vec<Bytes>,
    /// Since when the kernel takes nothing.
    blocked_since: Option<Moment>,
    /// Write deadlines passed in a row.
    failures: u32,
    /// The connection's task, which watches for room; woken when it has to look.
    task: Option<Waker>,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet")
            .field("unsent", &self.unsent.len())
            .field("replies", &self.replies.len())
            .finish_non_exhaustive()
    }
}

impl Outlet {
    /// Out over a socket.
    pub(super) fn socket(socket: Rc<dyn Sink>) -> Self {
        Self::new(Way::Socket(socket))
    }

    /// Out in the answers to requests; the first may wait already.
    pub(super) fn requests(first: Option<oneshot::Sender<Body>>) -> Self {
        Self::new(Way::Request(first))
    }

    fn new(way: Way) -> Self {
        Self {
            way,
            unsent: Vec::new(),
            replies: Vec::new(),
            blocked_since: None,
            failures: 0,
            task: None,
        }
    }

    // --- requests

    /// A request waits for an answer. The one that waited before, if one did, is let go unanswered.
    pub(super) fn wait(&mut self, request: oneshot::Sender<Body>) {
        if let Way::Request(waiting) = &mut self.way {
            *waiting = Some(request);
        }
    }

    /// Whether a request waits.
    pub(super) fn has_request(&self) -> bool {
        matches!(&self.way, Way::Request(Some(_)))
    }

    /// Whether the client of the request that waits went away: what would be taken for it would be lost.
    pub(super) fn is_abandoned(&self) -> bool {
        matches!(&self.way, Way::Request(Some(request)) if request.is_closed())
    }

    /// Answers the request that waits. False if nobody waits for the answer any more.
    pub(super) fn answer(&mut self, body: Body) -> bool {
        match &mut self.way {
            Way::Request(request) => request
                .take()
                .is_none_or(|request| request.send(body).is_ok()),
            Way::Socket(_) => true,
        }
    }

    /// Goes on over a socket; the request that waited, if one did. `rewrap` puts the replies that wait into the
    /// new socket's frames.
    pub(super) fn attach(
        &mut self,
        socket: Rc<dyn Sink>,
        rewrap: impl Fn(&[u8]) -> Bytes,
    ) -> Option<oneshot::Sender<Body>> {
        for reply in &mut self.replies {
            *reply = rewrap(reply);
        }
        match std::mem::replace(&mut self.way, Way::Socket(socket)) {
            Way::Request(request) => request,
            Way::Socket(_) => {
                debug_assert!(false, "a socket is never replaced");
                None
            }
        }
    }

    // --- replies

    /// Whether as many replies wait as may, or as many bytes of them.
    pub(super) fn is_full(&self, most: usize) -> bool {
        let bytes = || self.replies.iter().map(Bytes::len).sum::<usize>();
        self.replies.len() >= MAX_REPLIES || bytes() >= most
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

    // --- a socket

    /// Whether there is a socket that may be written to now.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.way, Way::Socket(_)) && !self.is_blocked()
    }

    /// Whether the kernel takes nothing more.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Writes bytes that follow all that was written before.
    pub(super) fn write(&mut self, bytes: &[u8], now: Moment) -> Written {
        let Way::Socket(socket) = &self.way else {
            return Written::Gone;
        };
        debug_assert!(self.unsent.is_empty(), "blocked, yet asked to write more");
        match socket.send(bytes) {
            Ok(sent) if sent >= bytes.len() => {
                self.failures = 0;
                Written::All
            }
            Ok(sent) => {
                self.unsent.extend(bytes.iter().skip(sent));
                self.blocked_since = Some(now);
                // Its task was watching for bytes to read; it has to watch for room as well.
                self.wake();
                Written::Blocked
            }
            Err(_) => Written::Gone,
        }
    }

    /// The socket may have room again.
    pub(super) fn resume(&mut self, now: Moment) -> Written {
        let Way::Socket(socket) = &self.way else {
            return Written::Gone;
        };
        match socket.send(&self.unsent) {
            Ok(sent) if sent >= self.unsent.len() => {
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

    /// The deadline passed; it starts again. How many passed in a row.
    pub(super) fn fail(&mut self, now: Moment) -> u32 {
        self.failures += 1;
        self.blocked_since = Some(now);
        self.failures
    }

    // --- its task

    /// This task is woken when the outlet is blocked, and when the connection ends.
    pub(super) fn watch(&mut self, task: &Waker) {
        if !self
            .task
            .as_ref()
            .is_some_and(|known| known.will_wake(task))
        {
            self.task = Some(task.clone());
        }
    }

    /// Wakes the connection's task.
    pub(super) fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}
