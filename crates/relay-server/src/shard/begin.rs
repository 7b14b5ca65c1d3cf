//! A connection's beginning: what it starts as, its place in the slab, the topics its URL names.
//!
//! Who may begin one was decided before, and how its request looked is not known here.
//!
//! Invariant: what answers the request leaves before anything else that the connection is sent.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use relay_bus::inbox::ConnectionId;
use relay_core::cursor::Cursor;
use relay_core::job::Again;
use relay_core::session::CloseReason;
use relay_core::topic::Topic;
use relay_wire::dialect::{Endpoint, Params};
use relay_wire::engineio::session::Session as Protocol;
use relay_wire::native::frame::Notice;
use relay_wire::websocket::{self, Decoder};
use tokio::net::TcpStream;

use super::connection::Transport;
use super::engineio::{Link, Visitor};
use super::{Join, Shard, State};
use crate::admission::Admission;
use crate::identity::{Identity, Sight};

/// What a new connection starts as.
pub(crate) struct Opening {
    pub(super) transport: Transport,
    pub(super) identity: Arc<Identity>,
    pub(super) admission: Admission,
    /// Whether it is known who the client is; if not, a message of it will say so.
    pub(super) authenticated: bool,
    /// What its URL names.
    pub(super) topics: Vec<Topic>,
    pub(super) cursor: Option<Cursor>,
    /// Which dialect it speaks, and what its path says.
    pub(super) dialect: Option<(Arc<Endpoint>, Params)>,
}

impl Opening {
    /// A WebSocket that speaks the native protocol.
    pub(crate) fn websocket(identity: Arc<Identity>, admission: Admission) -> Self {
        Self::new(
            Transport::WebSocket(Decoder::default()),
            identity,
            admission,
        )
    }

    /// An event stream.
    pub(crate) fn event_stream(identity: Arc<Identity>, admission: Admission) -> Self {
        Self::new(Transport::EventStream, identity, admission)
    }

    /// A poll, which has no socket.
    pub(crate) fn poll(identity: Arc<Identity>, admission: Admission) -> Self {
        Self::new(Transport::Poll(None), identity, admission)
    }

    /// A session of Engine.IO. Whoever the client is, it is heard once it has joined a namespace.
    pub(crate) fn engine_io(protocol: Protocol, visitor: Visitor, admission: Admission) -> Self {
        let transport = Transport::SocketIo(Link::new(protocol, visitor));
        let nobody = Arc::new(Identity::nobody());
        Self::new(transport, nobody, admission).unauthenticated()
    }

    fn new(transport: Transport, identity: Arc<Identity>, admission: Admission) -> Self {
        Self {
            transport,
            identity,
            admission,
            authenticated: true,
            topics: Vec::new(),
            cursor: None,
            dialect: None,
        }
    }

    /// The same before the client has said who it is.
    pub(crate) fn unauthenticated(mut self) -> Self {
        self.authenticated = false;
        self
    }

    /// The same, watching what its URL names.
    pub(crate) fn watching(mut self, topics: Vec<Topic>, cursor: Option<Cursor>) -> Self {
        self.topics = topics;
        self.cursor = cursor;
        self
    }

    /// The same, speaking a dialect.
    pub(crate) fn speaking(mut self, endpoint: Arc<Endpoint>, params: Params) -> Self {
        self.dialect = Some((endpoint, params));
        self
    }
}

impl Shard {
    /// Makes a connection of a socket: `head` answers its request, `early` came behind it.
    pub(crate) fn begin(
        &self,
        socket: &Rc<TcpStream>,
        head: Bytes,
        mut opening: Opening,
        early: &[u8],
    ) -> ConnectionId {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let greets = matches!(opening.transport, Transport::WebSocket(_));
        let authenticated = opening.authenticated;
        let topics = std::mem::take(&mut opening.topics);
        let cursor = opening.cursor.take();
        let (slot, id) = self.open(&mut state, opening, Some(socket.clone()), now);
        self.guarded(&mut state, slot, |shard, state| {
            shard.reply(state, slot, head);
            if let Some(packet) = shard.open_packet(state, slot) {
                shard.reply(state, slot, websocket::text(packet.as_bytes()));
            }
            if greets {
                shard.greet(state, slot);
            }
            if authenticated {
                shard.watch_topics(state, slot, topics, cursor);
            } else if !topics.is_empty() {
                let awaited = Box::new((topics, cursor));
                state.connections[slot].extras().awaited = Some(awaited);
            }
            if !early.is_empty() {
                shard.received(state, slot, early, now);
            }
        });
        // What the hub could answer at once is in the inbox, and the turn that takes it is due: head, greeting
        // and first word then leave in one write. A write costs more than all the rest of a connection.
        if self.inbox.is_empty() || state.draining || !Self::is_open(&state, slot) {
            self.flush_dirty(&mut state, now);
        }
        // Draining began while the request was under way.
        if state.draining {
            self.end(&mut state, slot, CloseReason::Drain);
            self.flush_dirty(&mut state, now);
        }
        id
    }

    /// Subscribes a connection that was authenticated by message to what its URL names.
    pub(super) fn watch_awaited(&self, state: &mut State, slot: usize) {
        let connection = &mut state.connections[slot];
        let awaited = connection.extras.as_mut().and_then(|it| it.awaited.take());
        let Some(awaited) = awaited else {
            return;
        };
        let (topics, cursor) = *awaited;
        let identity = connection.identity.clone();
        let (may, may_not): (Vec<_>, Vec<_>) = topics
            .into_iter()
            .partition(|topic| identity.sight(topic) != Sight::No);
        for topic in may_not {
            self.refuse_topic(state, slot, None, &topic);
        }
        self.watch_topics(state, slot, may, cursor);
    }

    /// Subscribes a connection to what its URL names.
    pub(super) fn watch_topics(
        &self,
        state: &mut State,
        slot: usize,
        topics: Vec<Topic>,
        cursor: Option<Cursor>,
    ) {
        let several = topics.len() > 1;
        for topic in topics {
            let session = &mut state.connections[slot].session;
            // Counted and told apart when the URL was read.
            // A dialect's bound on subscriptions is everybody's.
            let Ok(subscription) = session.subscribe(topic.clone(), &self.common.session) else {
                continue;
            };
            if several {
                let extras = state.connections[slot].extras();
                extras.together.push(subscription);
            }
            if let Some(cursor) = &cursor {
                let connection = &mut state.connections[slot];
                connection.extras().resuming.push(subscription);
                connection.carry(cursor, state.epoch);
            }
            let cursor = cursor.clone();
            let join = Join {
                subscription,
                topic,
                cursor,
                again: Again::Nothing,
            };
            self.join(state, slot, join);
        }
    }

    /// Greets the client of a WebSocket.
    pub(super) fn greet(&self, state: &mut State, slot: usize) {
        let connection = &state.connections[slot];
        let notice = Notice::Hello {
            version: env!("CARGO_PKG_VERSION"),
            session: &format!("{}-{:x}", self.number, connection.id.0),
            user: connection.user().map(relay_core::id::Name::as_str),
            ping_interval_ms: u64::try_from(self.common.session.ping_interval.as_millis())
                .unwrap_or(u64::MAX),
        };
        let frame = self.frame_of(connection, &notice, None);
        self.reply(state, slot, frame);
    }
}
