//! One connection: who watches, how it is spoken to, and the way its bytes go out.
//!
//! What is done for a connection are methods of its own, given a [`Desk`]: what the shard has for it to work
//! with. What a connection wants of its shard it leaves there as an [`Errand`], and that it ends, or has something
//! to write, it says by a mark; the shard carries both out when the work is done. So it knows nothing of other
//! connections, of the slab it lives in, or of how often it is worked on.
//!
//! Small, and allocating nothing while idle: ten thousand of them stand in memory and wait.
//!
//! Invariant: once `ends` is set it is sent nothing but its goodbye.

mod aggregates;
mod beginning;
mod delivery;
mod inbound;
mod namespaces;
mod quality;
mod questions;
mod upkeep;

use std::sync::Arc;

use bytes::Bytes;
use relay_bus::clock::Clock;
use relay_bus::inbox::ConnectionId;
use relay_core::cursor::Cursor;
use relay_core::moment::{Moment, WallTime};
use relay_core::quality::Quality;
use relay_core::topic::Topic;
use relay_core::watcher::horizon::Horizon;
use relay_core::watcher::outbox::SubscriptionId;
use relay_core::watcher::session::{CloseReason, Join};
use relay_core::watcher::{Watcher, WatcherBounds};
use relay_wire::exchange::{About, ReplyTo};
use relay_wire::speaker::Speaker;
use relay_wire::websocket::DecodeError;

use super::asking::Asking;
use super::metrics::Metrics;
use super::outlet::Outlet;
use crate::admission::Admission;
use crate::identity::Identity;
use crate::node::Node;
use crate::refused::Refused;
pub(super) use delivery::Occasion;
use inbound::{FrameCount, MessageLimiter};

/// A cookie's name, and who the client is by it.
pub(crate) type Identified = (Option<String>, Result<Arc<Identity>, Refused>);

/// What a new connection starts as.
#[derive(Debug)]
pub(crate) struct Opening {
    /// How its client is spoken to.
    pub(crate) speaker: Speaker,
    /// Who its client is, as far as that is known.
    pub(crate) identity: Arc<Identity>,
    /// Counts it against its user and address.
    pub(crate) admission: Admission,
    /// Whether the client has shown who it is; if not, it will by its first message.
    pub(crate) authenticated: bool,
    /// What it watches from the beginning.
    pub(crate) topics: Vec<Topic>,
    /// Where it left off.
    pub(crate) cursor: Option<Cursor>,
    /// Who a Socket.IO client is by each cookie that one of its path's dialects looks for.
    pub(crate) identities: Vec<Identified>,
}

impl Opening {
    /// A connection of a client that has shown who it is.
    pub(crate) fn new(speaker: Speaker, identity: Arc<Identity>, admission: Admission) -> Self {
        Self {
            speaker,
            identity,
            admission,
            authenticated: true,
            topics: Vec::new(),
            cursor: None,
            identities: Vec::new(),
        }
    }

    /// The same before the client has shown who it is.
    pub(crate) fn unauthenticated(mut self) -> Self {
        self.authenticated = false;
        self
    }

    /// The same, watching these topics from where the client left off.
    pub(crate) fn watching(mut self, topics: Vec<Topic>, cursor: Option<Cursor>) -> Self {
        self.topics = topics;
        self.cursor = cursor;
        self
    }

    /// The same for a client of Socket.IO, who it may be by each cookie that its path's dialects look for.
    pub(crate) fn identified_by(mut self, identities: Vec<Identified>) -> Self {
        self.identities = identities;
        self
    }
}

/// What a shard has for the work on any of its connections.
pub(super) struct Tools {
    /// How far the bus was heard, and what of it may not be sent yet.
    pub(super) horizon: Horizon,
    pub(super) metrics: Metrics,
    pub(super) asking: Asking,
    /// Whether the shard lets everybody go.
    pub(super) draining: bool,
    /// What the work under way leaves to the shard.
    pub(super) errands: Vec<Errand>,
    pub(super) buffers: Buffers,
}

/// Where one piece of work on a connection is done.
pub(super) struct Desk<'a> {
    pub(super) node: &'a Node,
    /// The shard's number.
    pub(super) shard: usize,
    pub(super) clock: Clock,
    pub(super) now: Moment,
    pub(super) tools: &'a mut Tools,
}

impl<'a> Desk<'a> {
    pub(super) fn new(
        node: &'a Node,
        shard: usize,
        (clock, now): (Clock, Moment),
        tools: &'a mut Tools,
    ) -> Self {
        Self {
            node,
            shard,
            clock,
            now,
            tools,
        }
    }

    pub(super) fn wall(&self) -> WallTime {
        self.clock.wall()
    }

    /// When a wall-clock time comes, on the monotonic clock.
    pub(super) fn moment_of(&self, at: WallTime) -> Moment {
        let left = at.as_unix_micros() - self.wall().as_unix_micros();
        self.now + std::time::Duration::from_micros(u64::try_from(left).unwrap_or(0))
    }
}

/// Memory that one piece of work after the other uses.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Frames of one connection about to be written.
    pub(super) frames: Vec<Bytes>,
    /// Bytes of several frames put together for one write.
    pub(super) batch: Vec<u8>,
}

/// What a connection wants of its shard.
#[derive(Debug)]
pub(super) enum Errand {
    /// The hub is to be asked for a subscription's first word.
    Join(Join),
    /// A subscription has ended.
    Leave(SubscriptionId, Topic),
}

/// What only some connections have.
#[derive(Debug, Default)]
struct Rare {
    /// Where the answers to joins that are under way go.
    asked: Vec<(SubscriptionId, ReplyTo)>,
    /// Topics whose jobs stand differently since the socket was full.
    owed: Vec<Topic>,
    /// What the URL named, until the client has authenticated.
    awaited: Option<(Vec<Topic>, Option<Cursor>)>,
    /// Who the client may be, until its first namespace says.
    identities: Vec<Identified>,
    /// When the drain lets it go.
    leaves_at: Option<Moment>,
    /// What its client sent last, and could not be decoded.
    undecodable: Option<DecodeError>,
    /// Whether a message waits until the token in it can be looked at.
    preparing: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// What its client is owed.
    pub(super) watcher: Watcher,
    /// How its client is spoken to.
    pub(super) speaker: Speaker,
    /// The way its bytes go out.
    pub(super) outlet: Outlet,
    pub(super) identity: Arc<Identity>,
    /// Counts it against its user and address; dropped, it counts no more.
    admission: Admission,
    rare: Option<Box<Rare>>,
    /// The limiter of what the client sends, from its first message on.
    messages: Option<Box<MessageLimiter>>,
    /// Frames it sends of whatever kind.
    frames: FrameCount,
    /// When the shard looks at it next without being asked; `None`: no timer.
    pub(super) timer: Option<Moment>,
    /// Whether it has something to write, or its timer is to be set anew.
    pub(super) due: bool,
    /// Whether it is in the shard's list of connections to flush.
    pub(super) listed: bool,
    pub(super) opened: Moment,
    /// Why it ends. Set, nothing more is done for it, and the shard removes it before it goes on to wait.
    pub(super) ends: Option<CloseReason>,
    /// The ping whose pong is awaited.
    pinged: Option<Moment>,
    /// How good it is, by its answers.
    pub(super) quality: Quality,
}

/// The bounds of a connection's watcher: its dialect's, or the node's.
fn bounds<'a>(speaker: &'a Speaker, node: &'a Node) -> &'a WatcherBounds {
    speaker.bounds().unwrap_or(&node.bounds)
}

/// The bounds a connection's watcher begins with. A Socket.IO client speaks no dialect yet, and may come to speak
/// any of its path's: it is pinged when the soonest of them would, because it is told no other time before.
fn first_bounds(speaker: &Speaker, node: &Node) -> WatcherBounds {
    let mut first = *bounds(speaker, node);
    let path = speaker.socketio().map(|client| &client.visitor.path);
    let found = path.and_then(|path| node.dialects.routes.find(path));
    let dialects = found.iter().flat_map(|found| found.socketio);
    let intervals = dialects.map(|each| each.voice.dialect.bounds.session.ping_interval);
    if let Some(soonest) = intervals.min() {
        first.session.ping_interval = soonest;
    }
    first
}

impl Connection {
    /// One that begins. What it watches from the beginning is asked for with [`Connection::start`].
    pub(super) fn new(id: ConnectionId, opening: Opening, outlet: Outlet, desk: &Desk<'_>) -> Self {
        let Opening {
            speaker,
            identity,
            admission,
            authenticated,
            topics,
            cursor,
            identities,
        } = opening;
        let expires_at = identity.expires_at.map(|at| desk.moment_of(at));
        let limits = first_bounds(&speaker, desk.node);
        let watcher = match authenticated {
            true => Watcher::new(expires_at, desk.now, &limits),
            false => Watcher::unauthenticated(desk.now, &limits),
        };
        let awaited = (!topics.is_empty()).then_some((topics, cursor));
        let rare = (awaited.is_some() || !identities.is_empty()).then(|| {
            Box::new(Rare {
                awaited,
                identities,
                ..Rare::default()
            })
        });
        Self {
            id,
            watcher,
            speaker,
            outlet,
            identity,
            admission,
            rare,
            messages: None,
            frames: FrameCount::default(),
            timer: None,
            due: true,
            listed: false,
            opened: desk.now,
            ends: None,
            pinged: None,
            quality: Quality::default(),
        }
    }

    /// Marks it as ending. It stays where it is, so that whoever works on it may finish.
    pub(super) fn end(&mut self, reason: CloseReason) {
        self.ends.get_or_insert(reason);
    }

    /// Whether more is to be done for it.
    pub(super) fn goes_on(&self) -> bool {
        self.ends.is_none()
    }

    /// When the drain lets it go.
    fn leaves_at(&self) -> Option<Moment> {
        self.rare.as_ref().and_then(|rare| rare.leaves_at)
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn about<'a>(identity: &'a Identity, desk: &Desk<'_>) -> About<'a> {
        About {
            user: identity.user.as_ref(),
            now: desk.wall(),
        }
    }

    /// Where the answer to a join goes.
    fn take_asked(&mut self, via: SubscriptionId) -> ReplyTo {
        let Some(rare) = &mut self.rare else {
            return ReplyTo::Nobody;
        };
        let at = rare.asked.iter().position(|(each, _)| *each == via);
        let asked = at.map(|at| rare.asked.swap_remove(at).1);
        self.tidy();
        asked.unwrap_or_default()
    }

    fn tidy(&mut self) {
        let is_empty = |rare: &Rare| {
            rare.asked.is_empty()
                && rare.owed.is_empty()
                && rare.awaited.is_none()
                && rare.identities.is_empty()
                && rare.leaves_at.is_none()
                && rare.undecodable.is_none()
                && !rare.preparing
        };
        if self.rare.as_deref().is_some_and(is_empty) {
            self.rare = None;
        }
    }

    /// Whether what waits for it is not due yet, and its timer will see to it.
    pub(super) fn is_paced(&self, now: Moment) -> bool {
        let due = self.watcher.next_due(relay_core::position::Seq::MAX);
        due.zip(self.timer)
            .is_some_and(|(due, timer)| now < due && timer <= due)
    }
}
