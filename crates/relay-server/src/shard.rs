//! A shard: one thread's connections, and everything about them.
//!
//! A shard owns its sockets, their outboxes, its timers and its part of the registry, on a
//! single-threaded runtime, so none of these needs a lock. Publications and answers to joins come in
//! through its inbox; a turn offers all that came to the outboxes and then writes to each connection
//! once. Each connection has a small task that does nothing but wait for its socket.
//!
//! Invariants: the state is never borrowed across an await; a connection in the slab has exactly one task
//! (a poll has none) and one admission.

mod asking;
mod begin;
mod connection;
mod deliver;
mod drain;
pub(crate) mod engineio;
mod fanout;
mod inbound;
pub(crate) mod mail;
mod metrics;
pub(crate) mod poll;
mod registry;
pub(crate) mod socket;
mod socketio;
mod speech;
mod timers;
mod welcome;

pub(crate) use begin::Opening;
pub(crate) use engineio::Upgrade;
pub use mail::{Mailbox, Mailboxes};

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use relay_bus::clock::Clock;
use relay_bus::hub::JoinRequest;
use relay_bus::inbox::{ConnectionId, Inbox, Message};
use relay_core::job::Again;
use relay_core::moment::Moment;
use relay_core::position::{Epoch, Seq};
use relay_core::quality::{Quality, Verdict};
use relay_core::session::{CloseReason, Session};
use relay_core::watcher::holds::Holds;
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch as channel};
use tokio::time::sleep_until;

use crate::node::Node;
use connection::{Connection, Transport, Writer, Written};
use metrics::Metrics;
use registry::Registry;
use timers::Timers;

/// Messages taken from the inbox before what they led to is written.
const MESSAGES_PER_WRITE: usize = 64;
/// One read takes at most this much; a client that sends more is read again after the others.
const READ_BYTES: usize = 16 * 1024;
/// How often gauges that need a walk over connections are renewed.
const GAUGE_INTERVAL: Duration = Duration::from_secs(1);

/// One shard. Lives on one thread; everything on it is reached through the cell.
pub struct Shard {
    number: usize,
    common: Arc<Node>,
    /// How a request reaches the shard of its session.
    mailboxes: Mailboxes,
    clock: Clock,
    inbox: Arc<Inbox>,
    /// Answers of workers to clients' questions, until the shard runs and takes them.
    answers: RefCell<Option<mpsc::Receiver<asking::Answer>>>,
    /// Told when a timer was set that is due before the shard would look at its timers again.
    hurried: Notify,
    /// Told when the drain is over, so that letters are read no more.
    drained: Notify,
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
    /// Slots of connections that are marked as ending; [`Shard::sweep`] empties them, and nobody else.
    ending: Vec<usize>,
    holds: Holds,
    /// The highest number everything up to which this shard has handled.
    frontier: Seq,
    epoch: Epoch,
    stale: bool,
    draining: bool,
    generation: u32,
    next_gauges: Moment,
    /// Until when the shard sleeps; the beginning of time while it is awake.
    sleeps_until: Moment,
    /// Bytes of several frames put together for one write.
    batch: Vec<u8>,
    /// Frames of one connection about to be written.
    frames: Vec<Bytes>,
    /// Where sockets are read into.
    read: Box<[u8]>,
    asking: asking::Asking,
    metrics: Metrics,
}

impl Shard {
    /// A shard without connections.
    pub fn new(number: usize, common: Arc<Node>, mailboxes: Mailboxes) -> Rc<Self> {
        let clock = common.hub.clock();
        let (asking, answers) = asking::Asking::new();
        Rc::new(Self {
            number,
            mailboxes,
            answers: RefCell::new(Some(answers)),
            clock,
            inbox: common.hub.inbox(number),
            hurried: Notify::new(),
            drained: Notify::new(),
            state: RefCell::new(State {
                connections: Slab::new(),
                registry: Registry::default(),
                timers: Timers::default(),
                dirty: Vec::new(),
                ending: Vec::new(),
                holds: Holds::default(),
                frontier: Seq::ZERO,
                epoch: common.hub.epoch(),
                stale: common.hub.is_stale(),
                draining: false,
                generation: 0,
                next_gauges: clock.now(),
                sleeps_until: Moment::default(),
                batch: Vec::with_capacity(64 * 1024),
                frames: Vec::new(),
                read: vec![0; READ_BYTES].into_boxed_slice(),
                asking,
                metrics: Metrics::new(&common.telemetry),
            }),
            common,
        })
    }

    /// Does the shard's work until it is told to drain and the last connection has left.
    pub async fn run(self: Rc<Self>, mut drain: channel::Receiver<bool>) {
        let mut messages = Vec::new();
        // The shard runs once.
        let Some(mut answers) = self.answers.take() else {
            return;
        };
        loop {
            let wake = self.clock.instant(self.next_wake());
            tokio::select! {
                () = self.inbox.arrived() => {}
                () = sleep_until(wake) => {}
                Some(answer) = answers.recv() => self.on_answer(&answer),
                () = self.hurried.notified() => {}
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
            if self.is_drained() {
                self.drained.notify_one();
                return;
            }
        }
    }

    /// What all threads share.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.common
    }

    /// Whether nobody new is taken in.
    pub(crate) fn is_draining(&self) -> bool {
        self.state.borrow().draining
    }

    /// Connections on this shard.
    pub fn len(&self) -> usize {
        self.state.borrow().connections.len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn next_wake(&self) -> Moment {
        let mut state = self.state.borrow_mut();
        let timer = state.timers.next().unwrap_or(state.next_gauges);
        state.sleeps_until = timer.min(state.next_gauges);
        state.sleeps_until
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
                self.flush_dirty(&mut state, now);
            }
            if left.peek().is_some() {
                // Sockets and requests get their turn between two batches.
                tokio::task::yield_now().await;
            }
        }
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        self.run_timers(&mut state, now);
        self.flush_dirty(&mut state, now);
        if now >= state.next_gauges {
            self.renew_gauges(&mut state, now);
        }
    }

    /// `alone` if no other message came after this one.
    fn take(&self, state: &mut State, message: Message, alone: bool, now: Moment) {
        match message {
            Message::Publish(publication) => self.offer(state, &publication, alone, now),
            Message::Joined(connection, joined) => match Self::find(state, connection) {
                Some(slot) => self.guarded(state, slot, |shard, state| {
                    shard.on_joined(state, connection, *joined, now);
                }),
                None => self.on_joined(state, connection, *joined, now),
            },
            Message::Aggregate(aggregate) => self.on_aggregate(state, &aggregate),
            Message::Gap(lost) => self.on_lost(state, &lost, now),
            Message::Repair(repairing) => self.on_repair(state, repairing),
            Message::Stale(stale) => state.stale = stale,
            Message::NewEpoch { first } => self.on_new_epoch(state, first),
        }
    }

    /// Adds a connection; it is in the slab from now on and has to be given a task if it has a socket.
    fn open(
        &self,
        state: &mut State,
        opening: Opening,
        socket: Option<Rc<TcpStream>>,
        now: Moment,
    ) -> (usize, ConnectionId) {
        let speech = opening
            .dialect
            .map(|(endpoint, params)| Box::new(speech::Speech::new(endpoint, params, now)));
        let bounds = speech::session_bounds(&speech, &self.common);
        let expires_at = opening
            .identity
            .expires_at
            .map(|at| self.moment_of(at, now));
        let session = if opening.authenticated {
            Session::open(expires_at, now, bounds)
        } else {
            Session::unauthenticated(now, bounds)
        };
        state.generation = state.generation.wrapping_add(1);
        let generation = u64::from(state.generation);
        let entry = state.connections.vacant_entry();
        let slot = entry.key();
        let id = ConnectionId(generation << 32 | slot as u64);
        entry.insert(Connection {
            id,
            transport: opening.transport,
            session,
            outbox: relay_core::outbox::Outbox::default(),
            writer: Writer::new(socket),
            identity: opening.identity,
            admission: opening.admission,
            extras: None,
            messages: None,
            timer: None,
            dirty: false,
            opened: now,
            leaves_at: None,
            ends: None,
            pinged: None,
            quality: Quality::default(),
            speech,
        });
        let metrics = state.metrics.of(&state.connections[slot].transport);
        metrics.open.inc();
        metrics.opened.inc();
        if matches!(state.connections[slot].transport, Transport::WebSocket(_)) {
            self.common.telemetry.quality(Verdict::Good).inc();
        }
        if let Some(speech) = &state.connections[slot].speech {
            let dialect = &speech.dialect().name;
            self.common.telemetry.dialect_connections(dialect).inc();
        }
        self.reschedule(state, slot);
        (slot, id)
    }

    /// The slot of a connection, if it is still there and does not end.
    fn find(state: &State, id: ConnectionId) -> Option<usize> {
        let slot = usize::try_from(id.0 & 0xffff_ffff).ok()?;
        let connection = state.connections.get(slot)?;
        (connection.id == id && connection.ends.is_none()).then_some(slot)
    }

    /// Whether there is a connection in a slot that does not end.
    fn is_open(state: &State, slot: usize) -> bool {
        let connection = state.connections.get(slot);
        connection.is_some_and(|connection| connection.ends.is_none())
    }

    /// Does one connection's work. A panic in it ends that connection, and nothing else.
    ///
    /// What work changes besides its connection (registry, timers, buffers) it changes by calls that either
    /// happen or do not; a buffer that was taken out is put back by whoever took it.
    fn guarded(&self, state: &mut State, slot: usize, work: impl FnOnce(&Self, &mut State)) {
        let done = catch_unwind(AssertUnwindSafe(|| work(self, state)));
        if done.is_err() {
            self.on_panic(state, slot);
        }
    }

    fn on_panic(&self, state: &mut State, slot: usize) {
        let connection = state.connections.get(slot);
        tracing::error!(
            connection.id = connection.map(|each| each.id.0),
            "work for a connection panicked, and the connection is closed; this is a bug in the relay, please report it with the panic above"
        );
        self.end(state, slot, CloseReason::InternalError);
    }

    /// Asks the hub for a subscription's first word.
    fn join(&self, state: &mut State, slot: usize, join: Join) {
        state.registry.expect(&join.topic);
        let connection = &state.connections[slot];
        self.common.hub.join(JoinRequest {
            shard: self.number,
            connection: connection.id,
            subscription: join.subscription,
            topic: join.topic,
            cursor: join.cursor,
            again: join.again,
        });
    }

    /// Marks a connection as ending. It stays in its slot, so that whoever works on it may finish.
    fn end(&self, state: &mut State, slot: usize, reason: CloseReason) {
        if let Some(connection) = state.connections.get_mut(slot)
            && connection.ends.is_none()
        {
            connection.ends = Some(reason);
            state.ending.push(slot);
        }
    }

    /// Removes the connections that are marked as ending. The one place that empties a slot.
    fn sweep(&self, state: &mut State) {
        while let Some(slot) = state.ending.pop() {
            let ends = state.connections.get(slot).and_then(|each| each.ends);
            if let Some(reason) = ends {
                self.guarded(state, slot, |shard, state| {
                    shard.say_goodbye(state, slot, reason);
                });
                self.remove(state, slot, reason);
            }
        }
    }

    /// Removes a connection: its subscriptions, its place among the counted.
    fn remove(&self, state: &mut State, slot: usize, reason: CloseReason) {
        let mut connection = state.connections.remove(slot);
        for subscription in connection.session.subscriptions() {
            let topic = &subscription.topic;
            if !subscription.live
                && self
                    .common
                    .hub
                    .withdraw(topic, self.number, connection.id, subscription.id)
            {
                state.registry.answered(topic);
            }
            let watcher = registry::Watcher {
                slot,
                subscription: subscription.id,
            };
            self.unwatch(&mut state.registry, &subscription.topic, watcher);
        }
        state.metrics.of(&connection.transport).open.dec();
        if let Some(speech) = &connection.speech {
            let dialect = &speech.dialect().name;
            self.common.telemetry.dialect_connections(dialect).dec();
        }
        if matches!(connection.transport, Transport::WebSocket(_)) {
            let verdict = connection.quality.verdict();
            self.common.telemetry.quality(verdict).dec();
        }
        let transport = connection.transport.name();
        self.common.telemetry.closed(transport, reason.as_str());
        tracing::debug!(
            connection.id = connection.id.0,
            transport,
            user = connection.user().map(relay_core::id::Name::as_str),
            reason = reason.as_str(),
            open_ms = u64::try_from((self.clock.now() - connection.opened).as_millis())
                .unwrap_or(u64::MAX),
            "connection closed"
        );
        connection.writer.wake();
        state.metrics.publish();
    }

    /// A watcher leaves a topic; the hub is told when it was the shard's last.
    fn unwatch(
        &self,
        registry: &mut Registry,
        topic: &relay_core::topic::Topic,
        watcher: registry::Watcher,
    ) {
        registry.remove(topic, watcher);
        if !registry.is_wanted(topic) {
            self.common.hub.leave(topic, self.number);
        }
    }

    /// Sets the connection's timer to the earliest moment anything of it is due.
    fn reschedule(&self, state: &mut State, slot: usize) {
        let connection = &mut state.connections[slot];
        let mut next = match connection.transport {
            // Whoever waits for the answer keeps the time.
            Transport::Poll(_) => None,
            Transport::WebSocket(_) | Transport::EventStream | Transport::SocketIo(_) => {
                let bounds = speech::session_bounds(&connection.speech, &self.common);
                Some(connection.session.next_tick(bounds))
            }
        };
        let mut want = |at: Option<Moment>| next = next.into_iter().chain(at).min();
        match connection
            .writer
            .deadline(self.common.delivery.write_timeout)
        {
            Some(deadline) => want(Some(deadline)),
            None => want(
                connection
                    .outbox
                    .next_due(deliver::ceiling(&state.holds, connection)),
            ),
        }
        want(connection.leaves_at);
        want(connection.speech.as_ref().and_then(|speech| speech.next()));
        let extras = connection.extras.iter();
        want(
            extras
                .flat_map(|extras| &extras.unacknowledged)
                .map(|each| each.next)
                .min(),
        );
        let (Some(next), current) = (next, connection.timer) else {
            return;
        };
        if current.is_none_or(|current| next < current) {
            connection.timer = Some(next);
            state.timers.set(next, connection.id);
            if next < state.sleeps_until {
                // Set by a connection's own task, while the shard's sleeps.
                state.sleeps_until = next;
                self.hurried.notify_one();
            }
        }
    }

    fn run_timers(&self, state: &mut State, now: Moment) {
        while let Some((at, id)) = state.timers.take(now) {
            let Some(slot) = Self::find(state, id) else {
                continue;
            };
            if state.connections[slot].timer != Some(at) {
                continue;
            }
            state.connections[slot].timer = None;
            self.guarded(state, slot, |shard, state| {
                if shard.tick(state, slot, now) {
                    shard.mark(state, slot);
                }
            });
        }
    }

    /// Puts a connection on the list of those to be written to.
    fn mark(&self, state: &mut State, slot: usize) {
        if let Some(connection) = state.connections.get_mut(slot)
            && !connection.dirty
        {
            connection.dirty = true;
            state.dirty.push(slot);
        }
    }

    /// What a connection's task does: looks whether its socket has bytes, or room if that is waited for.
    pub(crate) fn attend(
        &self,
        id: ConnectionId,
        stream: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        loop {
            let Some(slot) = Self::find(state, id) else {
                return Poll::Ready(());
            };
            let writer = &mut state.connections[slot].writer;
            if !writer
                .task
                .as_ref()
                .is_some_and(|task| task.will_wake(cx.waker()))
            {
                writer.task = Some(cx.waker().clone());
            }
            let blocked = writer.is_blocked();
            let now = self.clock.now();
            let mut pending = true;
            if stream.poll_read_ready(cx).is_ready() {
                pending = false;
                self.read(state, slot, stream, now);
            }
            if let Some(slot) = Self::find(state, id)
                && blocked
                && stream.poll_write_ready(cx).is_ready()
            {
                pending = false;
                match state.connections[slot].writer.resume(now) {
                    Written::All => self.guarded(state, slot, |shard, state| {
                        shard.mark(state, slot);
                        shard.tell_owed(state, slot);
                    }),
                    Written::Blocked => {}
                    Written::Gone => self.end(state, slot, CloseReason::Client),
                }
            }
            if pending {
                return Poll::Pending;
            }
            self.flush_dirty(state, now);
        }
    }

    fn renew_gauges(&self, state: &mut State, now: Moment) {
        state.next_gauges = now + GAUGE_INTERVAL;
        let (mut pending, mut oldest) = (0, Duration::ZERO);
        for (_, connection) in &state.connections {
            let unacknowledged = connection
                .extras
                .as_ref()
                .map_or(0, |e| e.unacknowledged.len());
            pending += unacknowledged;
            if let Some(age) = connection.outbox.oldest_ending(now) {
                pending += 1;
                oldest = oldest.max(age);
            }
        }
        self.common.telemetry.endings(self.number, pending, oldest);
    }
}

/// A join about to be asked for.
#[derive(Debug)]
struct Join {
    subscription: relay_core::outbox::SubscriptionId,
    topic: relay_core::topic::Topic,
    cursor: Option<relay_core::cursor::Cursor>,
    /// What the client is told of the time before that.
    again: Again,
}

impl Join {
    /// For a client that has been told nothing of the topic.
    fn anew(
        subscription: relay_core::outbox::SubscriptionId,
        topic: relay_core::topic::Topic,
    ) -> Self {
        Self {
            subscription,
            topic,
            cursor: None,
            again: Again::Nothing,
        }
    }
}
