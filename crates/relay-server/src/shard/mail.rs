//! Mail between shards: requests for Engine.IO sessions that live on another shard.
//!
//! A polling client's requests come in on whichever shard the kernel chose for their socket; the session
//! lives on the one where it began, which its id names. Everything else stays where it came in.
//!
//! Invariant: a full mailbox refuses; nobody waits for room in one.

use bytes::Bytes;
use relay_wire::engineio::Refusal;
use relay_wire::engineio::sid::Sid;
use tokio::sync::{mpsc, oneshot};

/// Letters a mailbox holds.
const MAILBOX: usize = 1024;

/// Why a session's shard turns a request away: for programs, and for people.
pub(crate) type Turned = (Refusal, &'static str);

/// What a poll is answered with.
pub(crate) type Payload = Result<Vec<u8>, Turned>;

/// A letter to the shard of a session. Dropped answers mean that the shard is gone.
#[derive(Debug)]
pub enum Mail {
    /// A poll waits for its answer.
    Poll {
        /// The session.
        sid: Sid,
        /// Whoever polls holds the other end; dropping it means that the client went away.
        #[doc(hidden)]
        answer: PollAnswer,
    },
    /// A poll's client went away before the answer.
    PollGone(Sid),
    /// A post begins.
    Post(Sid, #[doc(hidden)] Taken),
    /// A post is read whole, or (`None`) broke off.
    Posted(Sid, Option<Bytes>, #[doc(hidden)] Taken),
    /// A WebSocket wants to take over.
    Probe(Sid, #[doc(hidden)] Taken),
    /// The WebSocket that may take over, the head of the answer it still has to be sent, and what its client
    /// sent already.
    Socket(Sid, std::net::TcpStream, Bytes, Bytes),
}

/// The way back of a poll's answer.
#[derive(Debug)]
pub struct PollAnswer(pub(crate) oneshot::Sender<Payload>);

/// The way back of a yes, or of why not.
#[derive(Debug)]
pub struct Taken(pub(crate) oneshot::Sender<Result<(), Turned>>);

impl Taken {
    /// A way back that nobody waits at.
    pub(crate) fn nobody() -> Self {
        Self(oneshot::channel().0)
    }

    pub(super) fn send(self, answer: Result<(), Turned>) {
        // Whoever asked may have gone.
        self.0.send(answer).ok();
    }
}

/// The mailboxes of all shards.
#[derive(Debug, Clone)]
pub struct Mailboxes(Vec<mpsc::Sender<Mail>>);

/// The other end of one mailbox; its shard holds it.
pub type Mailbox = mpsc::Receiver<Mail>;

impl Mailboxes {
    /// One mailbox for each of so many shards.
    pub fn new(shards: usize) -> (Self, Vec<Mailbox>) {
        let (senders, receivers) = (0..shards).map(|_| mpsc::channel(MAILBOX)).unzip();
        (Self(senders), receivers)
    }

    /// Whether there is such a shard.
    pub(super) fn has(&self, shard: usize) -> bool {
        shard < self.0.len()
    }

    /// Puts a letter into a mailbox. False if it is full, or its shard gone.
    pub(super) fn send(&self, shard: usize, mail: Mail) -> bool {
        self.0
            .get(shard)
            .is_some_and(|to| to.try_send(mail).is_ok())
    }
}
