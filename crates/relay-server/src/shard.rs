//! A shard: one thread's connections, driven.
//!
//! A shard owns its sockets, its timers and its part of the registry, on a single-threaded runtime, so none of
//! these needs a lock. Publications and answers to joins come in through its inbox; a turn hands each to the
//! connections it is for and then writes to each of these once. What is done for a connection, the connection
//! does ([`connection`]); the shard decides whose turn it is, and carries out what they leave to it. It does not
//! know what front ends there are, nor HTTP.
//!
//! Work for one connection that panics ends that connection and nothing else ([`Shard::work`]).
//!
//! Invariants: the state is never borrowed across an await; a connection in the slab has one admission, and one
//! task if it has a socket; a slot is emptied by [`Shard::sweep`] alone, so it is good for as long as the state is
//! borrowed.

mod asking;
mod connection;
mod drain;
mod fanout;
mod mail;
mod metrics;
mod outlet;
mod registry;
#[cfg(test)]
mod tests;
mod timers;

pub(crate) use connection::{Identified, Opening};
pub(crate) use mail::{MISMATCH, Mail, Mailbox, Mailboxes, Taken};

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use relay_bus::clock::Clock;
use relay_bus::inbox::{ConnectionId, Inbox, Message};
use relay_core::id::Name;
use relay_core::moment::Moment;
use relay_core::watcher::horizon::Horizon;
use relay_core::watcher::session::CloseReason;
use relay_wire::exchange::{Body, Hurry};
use slab::Slab;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep_until;

use crate::link::Link;
use crate::node::Node;
use asking::{Asking, Outcome};
use connection::{Buffers, Connection, Desk, Errand, Tools};
use metrics::Metrics;
use outlet::Outlet;
use registry::{Interest, Registry};
use timers::Timers;

/// Messages taken from the inbox before what they led to is written.
const MESSAGES_PER_WRITE: usize = 64;
/// One read takes at most this much; a client that sends more is read again after the others.
const READ_BYTES: usize = 16 * 1024;
/// How often gauges that need a walk over connections are renewed.
const GAUGE_INTERVAL: Duration = Duration::from_secs(1);

/// One shard. Lives on one thread; everything on it is reached through the cell.
pub(crate) struct Shard {
    number: usize,
    node: Arc<Node>,
    clock: Clock,
    inbox: Arc<Inbox>,
    /// How a request reaches the shard of its session.
    mailboxes: Mailboxes,
    /// What came of what clients wait for, until the shard runs and takes it.
    outcomes: RefCell<Option<mpsc::Receiver<Outcome>>>,
    /// Told when a timer was set that is due before the shard would look at its timers again.
    hurried: Notify,
    /// Told when the drain is over, so that letters are read no more.
    drained: Notify,
    /// Where sockets are read into. Apart from the state, so that what was read can be worked on in place.
    read: RefCell<Box<[u8]>>,
    /// Borrowed within one synchronous call, never across an await.
    state: RefCell<State>,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

struct State {
    connections: Slab<Connection>,
    registry: Registry,
    timers: Timers,
    /// Slots of connections with something to write.
    dirty: Vec<usize>,
    /// Slots of connections that are marked as ending.
    ending: Vec<usize>,
    tools: Tools,
    generation: u32,
    next_gauges: Moment,
    /// Until when the shard sleeps; the beginning of time while it is awake.
    sleeps_until: Moment,
}

impl State {
    /// The slot of a connection, if it is still there and does not end.
    fn find(&self, id: ConnectionId) -> Option<usize> {
        let slot = usize::try_from(id.0 & 0xffff_ffff).ok()?;
        let connection = self.connections.get(slot)?;
        (connection.id == id && connection.goes_on()).then_some(slot)
    }

    /// When the shard has something to do by itself.
    fn next_wake(&mut self) -> Moment {
        let timer = self.timers.next().unwrap_or(self.next_gauges);
        self.sleeps_until = timer.min(self.next_gauges);
        self.sleeps_until
    }

    /// Whether the shard was told to drain and everybody has left.
    fn is_drained(&self) -> bool {
        self.tools.draining && self.connections.is_empty()
    }
}

impl Shard {
    /// A shard without connections.
    pub(crate) fn new(number: usize, node: Arc<Node>, mailboxes: Mailboxes) -> Rc<Self> {
        let clock = node.hub.clock();
        let (asking, outcomes) = Asking::new();
        Rc::new(Self {
            number,
            outcomes: RefCell::new(Some(outcomes)),
            clock,
            inbox: node.hub.inbox(number),
            mailboxes,
            read: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            hurried: Notify::new(),
            drained: Notify::new(),
            state: RefCell::new(State {
                connections: Slab::new(),
                registry: Registry::new(number, node.hub.clone()),
                timers: Timers::default(),
                dirty: Vec::new(),
                ending: Vec::new(),
                tools: Tools {
                    horizon: Horizon::new(node.hub.epoch(), node.hub.is_stale()),
                    metrics: Metrics::new(&node.telemetry),
                    asking,
                    draining: false,
                    errands: Vec::new(),
                    buffers: Buffers::default(),
                },
                generation: 0,
                next_gauges: clock.now(),
                sleeps_until: Moment::default(),
            }),
            node,
        })
    }

    /// What it shares with the other threads.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its number.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Does the shard's work until it is told to drain and the last connection has left.
    pub(crate) async fn run(self: Rc<Self>, mut drain: watch::Receiver<bool>) {
        let mut messages = Vec::new();
        let mut changes = self.node.identity.changes();
        // The shard runs once.
        let Some(mut outcomes) = self.outcomes.take() else {
            return;
        };
        loop {
            let wake = self.clock.instant(self.state.borrow_mut().next_wake());
            tokio::select! {
                () = self.inbox.arrived() => {}
                () = sleep_until(wake) => {}
                Some(outcome) = outcomes.recv() => {
                    self.visit(outcome.connection, |connection, desk| {
                        connection.on_outcome(outcome.came, desk);
                    });
                }
                () = self.hurried.notified() => {}
                Ok(()) = changes.changed() => {
                    end_revoked(&mut self.state.borrow_mut(), &self.node);
                }
                changed = drain.changed() => {
                    // A dropped sender means the same: nobody is left to serve for.
                    if changed.is_err() || *drain.borrow() {
                        self.begin_drain();
                    }
                }
            }
            self.state.borrow_mut().sleeps_until = Moment::default();
            self.inbox.drain(&mut messages);
            self.turn(&mut messages).await;
            if self.state.borrow().is_drained() {
                self.drained.notify_one();
                return;
            }
        }
    }

    async fn turn(&self, messages: &mut Vec<Message>) {
        let mut left = messages.drain(..).peekable();
        while left.peek().is_some() {
            {
                let mut state = self.state.borrow_mut();
                let now = self.clock.now();
                for _ in 0..MESSAGES_PER_WRITE {
                    let Some(message) = left.next() else {
                        break;
                    };
                    let alone = left.peek().is_none();
                    self.take(&mut state, message, alone, now);
                }
                self.finish(&mut state, now);
            }
            if left.peek().is_some() {
                // Sockets and requests get their turn between two batches.
                tokio::task::yield_now().await;
            }
        }
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        self.run_timers(&mut state, now);
        self.finish(&mut state, now);
        if now >= state.next_gauges {
            self.renew_gauges(&mut state, now);
        }
    }

    /// `alone` if no other message came after this one.
    fn take(&self, state: &mut State, message: Message, alone: bool, now: Moment) {
        match message {
            Message::Publish(publication) => self.fan_out(state, &publication, alone, now),
            Message::Joined(connection, joined) => self.on_joined(state, connection, *joined, now),
            Message::Aggregate(aggregate) => self.on_aggregate(state, &aggregate, now),
            Message::Gap(lost) => self.on_lost(state, &lost, now),
            Message::Repair(repairing) => self.on_repair(state, repairing),
            Message::Stale(stale) => state.tools.horizon.set_stale(stale),
            Message::NewEpoch { first } => self.on_new_epoch(state, first),
        }
    }

    // --- connections

    /// A connection begins on a link: its answer's `head` goes first, and `early` came behind its request.
    pub(crate) fn begin(
        &self,
        link: &Rc<dyn Link>,
        head: Bytes,
        opening: Opening,
        early: &[u8],
    ) -> ConnectionId {
        self.begin_on(Outlet::socket(link.clone()), head, opening, early)
    }

    /// A connection begins whose answers go to requests; the first may wait already. Its first packet, where it
    /// is a session of Socket.IO.
    pub(crate) fn begin_polling(
        &self,
        opening: Opening,
        request: Option<oneshot::Sender<Body>>,
    ) -> (ConnectionId, Option<String>) {
        let outlet = Outlet::requests(request);
        let id = self.begin_on(outlet, Bytes::new(), opening, &[]);
        let packet = self.visit(id, |connection, desk| connection.open_packet(desk));
        (id, packet.flatten())
    }

    fn begin_on(
        &self,
        outlet: Outlet,
        head: Bytes,
        opening: Opening,
        early: &[u8],
    ) -> ConnectionId {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let authenticated = opening.authenticated;
        let (slot, id) = self.open(&mut state, outlet, opening, now);
        self.work(&mut state, slot, now, |connection, desk| {
            connection.open(head, authenticated, desk);
            if !early.is_empty() {
                connection.received(early, desk);
            }
            if desk.tools.draining {
                // Draining began while the request was under way.
                connection.drain_at_once(desk);
            }
        });
        // What the hub could answer at once is in the inbox, and the turn that takes it is due: head, greeting
        // and first word then leave in one write. A write costs more than all the rest of a connection.
        if self.inbox.is_empty() || !state.ending.is_empty() {
            self.finish(&mut state, now);
        }
        id
    }

    /// Adds a connection.
    fn open(
        &self,
        state: &mut State,
        outlet: Outlet,
        opening: Opening,
        now: Moment,
    ) -> (usize, ConnectionId) {
        state.generation = state.generation.wrapping_add(1);
        let generation = u64::from(state.generation);
        let slot = state.connections.vacant_key();
        let id = ConnectionId(generation << 32 | slot as u64);
        let connection = {
            let desk = self.desk(&mut state.tools, now);
            Connection::new(id, opening, outlet, &desk)
        };
        state
            .tools
            .metrics
            .opened(&connection, &self.node.telemetry);
        state.connections.insert(connection);
        (slot, id)
    }

    /// Does something for a connection from outside of a turn, if it is still there.
    fn visit<R>(
        &self,
        id: ConnectionId,
        work: impl FnOnce(&mut Connection, &mut Desk<'_>) -> R,
    ) -> Option<R> {
        // A request that is dropped within a borrow has nothing to say any more.
        let mut state = self.state.try_borrow_mut().ok()?;
        let now = self.clock.now();
        let slot = state.find(id)?;
        let done = self.work(&mut state, slot, now, work);
        self.finish(&mut state, now);
        done
    }

    /// Does one connection's work, and carries out what it leaves to the shard. `None` if the connection is not
    /// there or ends already, or if the work panicked: that ends the connection, and nothing else.
    ///
    /// What work can reach is its connection and its desk. Of these only the connection may be half changed when
    /// a panic unwinds, and it is not worked on again.
    fn work<R>(
        &self,
        state: &mut State,
        slot: usize,
        now: Moment,
        work: impl FnOnce(&mut Connection, &mut Desk<'_>) -> R,
    ) -> Option<R> {
        let connection = state.connections.get_mut(slot)?;
        if !connection.goes_on() {
            return None;
        }
        let mut desk = self.desk(&mut state.tools, now);
        let done = catch_unwind(AssertUnwindSafe(|| work(connection, &mut desk)));
        if done.is_err() {
            on_panic(connection);
        }
        self.settle(state, slot);
        done.ok()
    }

    /// Carries out what work on a connection left to the shard.
    fn settle(&self, state: &mut State, slot: usize) {
        let Some(connection) = state.connections.get_mut(slot) else {
            return;
        };
        let id = connection.id;
        if !connection.goes_on() {
            state.ending.push(slot);
        }
        if connection.due && !connection.listed {
            connection.listed = true;
            state.dirty.push(slot);
        }
        if state.tools.errands.is_empty() {
            return;
        }
        let own = connection.identity.own().cloned();
        for errand in state.tools.errands.drain(..) {
            match errand {
                Errand::Join(join) => state.registry.join(id, own.as_ref(), join),
                Errand::Leave(via, topic) => {
                    state.registry.leave(&topic, id, Interest { slot, via });
                }
            }
        }
    }

    /// Ends what was done for connections: writes to those that have something to write, and removes those that
    /// end.
    fn finish(&self, state: &mut State, now: Moment) {
        // Before anything is written: a client that has the newer state may look at once for what it replaced.
        state.tools.metrics.conflated.flush();
        while let Some(slot) = state.dirty.pop() {
            // A slot may have been emptied, or filled anew, since it was listed.
            let Some(connection) = state.connections.get_mut(slot) else {
                continue;
            };
            if !std::mem::take(&mut connection.listed) {
                continue;
            }
            let timer = self.work(state, slot, now, |connection, desk| {
                connection.due = false;
                connection.flush(desk);
                connection.set_timer(desk)
            });
            if let Some(at) = timer.flatten() {
                self.set_timer(state, at);
            }
        }
        self.sweep(state, now);
        state.tools.metrics.publish();
    }

    /// Removes the connections that are marked as ending. The one place that empties a slot.
    fn sweep(&self, state: &mut State, now: Moment) {
        while let Some(slot) = state.ending.pop() {
            let ends = state.connections.get(slot).and_then(|each| each.ends);
            let Some(reason) = ends else {
                continue;
            };
            let mut connection = state.connections.remove(slot);
            let mut desk = self.desk(&mut state.tools, now);
            let goodbye = AssertUnwindSafe(|| connection.say_goodbye(reason, &mut desk));
            if catch_unwind(goodbye).is_err() {
                on_panic(&mut connection);
            }
            for subscription in connection.watcher.subscriptions() {
                let (topic, via) = (&subscription.topic, subscription.id);
                let interest = Interest { slot, via };
                state.registry.leave(topic, connection.id, interest);
            }
            state
                .tools
                .metrics
                .closed(&connection, &self.node.telemetry);
            self.node
                .telemetry
                .closed(connection.speaker.transport().as_str(), reason.as_str());
            log_end(&connection, reason, now);
            connection.outlet.wake();
        }
    }

    fn desk<'a>(&'a self, tools: &'a mut Tools, now: Moment) -> Desk<'a> {
        Desk::new(&self.node, self.number, (self.clock, now), tools)
    }

    // --- time

    /// A connection is to be looked at when its time comes.
    fn set_timer(&self, state: &mut State, (at, id): (Moment, ConnectionId)) {
        state.timers.set(at, id);
        if at < state.sleeps_until {
            // Set by a connection's own task, while the shard's sleeps.
            state.sleeps_until = at;
            self.hurried.notify_one();
        }
    }

    fn run_timers(&self, state: &mut State, now: Moment) {
        while let Some((at, id)) = state.timers.take(now) {
            if let Some(slot) = state.find(id) {
                self.work(state, slot, now, |connection, desk| {
                    if connection.timer == Some(at) {
                        connection.timer = None;
                        connection.tick(desk);
                    }
                });
            }
        }
    }

    fn renew_gauges(&self, state: &mut State, now: Moment) {
        state.next_gauges = now + GAUGE_INTERVAL;
        let (mut pending, mut oldest) = (0, Duration::ZERO);
        for (_, connection) in &state.connections {
            pending += connection.watcher.unacknowledged();
            if let Some(age) = connection.watcher.oldest_ending(now) {
                pending += 1;
                oldest = oldest.max(age);
            }
        }
        self.node.telemetry.endings(self.number, pending, oldest);
    }

    // --- sockets

    /// What a connection's task does: looks whether its socket has bytes, or room if that is waited for.
    pub(crate) fn attend(
        &self,
        id: ConnectionId,
        link: &dyn Link,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let (mut state, mut buffer) = (self.state.borrow_mut(), self.read.borrow_mut());
        loop {
            let now = self.clock.now();
            let Some(slot) = state.find(id) else {
                return Poll::Ready(());
            };
            let attended = self.work(&mut state, slot, now, |connection, desk| {
                connection.outlet.watch(cx.waker());
                let blocked = connection.outlet.is_blocked();
                let readable = link.poll_read_ready(cx).is_ready();
                if readable {
                    read(connection, link, &mut buffer, desk);
                }
                let writable = blocked && link.poll_write_ready(cx).is_ready();
                if writable && connection.goes_on() {
                    connection.resume(desk);
                }
                readable || writable
            });
            if attended == Some(false) {
                return Poll::Pending;
            }
            self.finish(&mut state, now);
        }
    }

    // --- requests that wait

    /// The request of a long poll has waited for so long.
    pub(crate) fn hurry(&self, id: ConnectionId, why: Hurry) {
        self.visit(id, |connection, _| {
            connection.speaker.hurry(why);
            connection.due = true;
        });
    }

    /// The client went away.
    pub(crate) fn forget(&self, id: ConnectionId) {
        self.visit(id, |connection, _| connection.end(CloseReason::Client));
    }
}

/// Ends the connections whose credential was taken back.
fn end_revoked(state: &mut State, node: &Node) {
    for (slot, connection) in &mut state.connections {
        if node.identity.revokes(&connection.identity) {
            connection.end(CloseReason::Expired);
            state.ending.push(slot);
        }
    }
}

/// A connection whose work panicked: it is not worked on again.
fn on_panic(connection: &mut Connection) {
    tracing::error!(
        connection.id = connection.id.0,
        "work for a connection panicked, and the connection is closed; this is a bug in the relay, please report it with the panic above"
    );
    connection.end(CloseReason::InternalError);
}

/// The socket has bytes, or has ended.
fn read(connection: &mut Connection, link: &dyn Link, buffer: &mut [u8], desk: &mut Desk<'_>) {
    // A read into an empty buffer gives nothing, which is what a client that left gives too.
    debug_assert!(!buffer.is_empty(), "nowhere to read into");
    match link.try_read(buffer) {
        Ok(0) => connection.end(CloseReason::Client),
        Ok(read) => {
            let bytes = buffer.get(..read).unwrap_or_default();
            connection.received(bytes, desk);
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(_) => connection.end(CloseReason::Client),
    }
}

fn log_end(connection: &Connection, reason: CloseReason, now: Moment) {
    let open = now - connection.opened;
    tracing::debug!(
        connection.id = connection.id.0,
        transport = connection.speaker.transport().as_str(),
        user = connection.identity.user.as_ref().map(Name::as_str),
        reason = reason.as_str(),
        open_ms = u64::try_from(open.as_millis()).unwrap_or(u64::MAX),
        "connection closed"
    );
}
