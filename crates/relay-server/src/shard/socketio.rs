//! Socket.IO connections: namespaces joined and left, events heard.
//!
//! A connection speaks one dialect, that of the first namespace it joined; every namespace of it is a
//! [`Room`] with its own endpoint and subscriptions. How packets travel is the affair of
//! [`super::engineio`].

mod recovery;
mod said;

use std::sync::Arc;

use relay_core::moment::Moment;
use relay_core::outbox::SubscriptionId;
use relay_core::session::{CloseReason, Event};
use relay_core::topic::Topic;
use relay_wire::dialect::{Endpoint, Input, Params};
use relay_wire::engineio::session::{MAX_NAMESPACES, Step};
use relay_wire::engineio::sid;
use relay_wire::native::frame::Notice;
use relay_wire::socketio::{namespace, packet};
use serde_json::{Value, json};

use super::connection::{Connection, Transport};
use super::engineio::Link;
use super::registry::Watcher;
use super::speech::{Speech, session_bounds};
use super::{Join, Shard, State};
use crate::identity::{Credential, Identity, Sight, Source};
use crate::refused::Refused;
use recovery::Return;
pub(super) use recovery::{Offset, cursor_for};
pub(super) use said::{Call, packets, wrap};

/// One namespace a connection is in.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) namespace: String,
    pub(super) endpoint: Arc<Endpoint>,
    /// What the path and the namespace say.
    pub(super) params: Params,
    /// What is told in it.
    pub(super) subscriptions: Vec<SubscriptionId>,
    pub(super) offset: Offset,
}

/// A namespace about to be joined, all questions being answered.
struct Entrance<'a> {
    namespace: &'a str,
    endpoint: Arc<Endpoint>,
    params: Params,
    socket_id: String,
    pid: Option<String>,
}

/// Why a namespace is not joined: Socket.IO's `message`, and our word and sentence.
struct NotJoined {
    message: &'static str,
    code: &'static str,
    sentence: String,
}

impl NotJoined {
    fn new(message: &'static str, code: &'static str, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into();
        Self {
            message,
            code,
            sentence,
        }
    }
}

impl From<Refused> for NotJoined {
    fn from(refused: Refused) -> Self {
        Self::new("Authentication failed", refused.code, refused.message)
    }
}

impl Shard {
    /// A text packet came. `Err` says why the connection ended for it.
    pub(super) fn on_packet(
        &self,
        state: &mut State,
        slot: usize,
        text: &str,
        now: Moment,
    ) -> Result<(), String> {
        let Transport::SocketIo(link) = &mut state.connections[slot].transport else {
            return Ok(());
        };
        match link.protocol.text(text) {
            Step::Nothing => {}
            Step::Pong => self.on_pong(state, slot, now),
            Step::Leave => self.on_engine_leave(state, slot),
            Step::Broken(rule) => {
                self.common.telemetry.client_error("protocol");
                self.end(state, slot, CloseReason::Protocol);
                return Err(rule.to_string());
            }
            Step::Connect(namespace, auth) => {
                self.on_connect(state, slot, namespace, auth.as_ref(), now);
            }
            Step::Disconnect(namespace) => self.on_disconnect(state, slot, namespace),
            Step::Event {
                namespace,
                ack,
                name,
                json,
            } => self.on_event(state, slot, &Call { namespace, ack }, &name, json, now),
            Step::Binary { namespace, ack } => {
                let sentence = "binary attachments are not understood here; send JSON";
                let id = Call { namespace, ack }.id();
                self.refuse(state, slot, Some(&id), "binary_unsupported", sentence);
            }
        }
        Ok(())
    }

    /// A binary frame came.
    pub(super) fn on_binary_packet(&self, state: &mut State, slot: usize) {
        let Transport::SocketIo(link) = &mut state.connections[slot].transport else {
            return;
        };
        if let Step::Broken(_) = link.protocol.binary() {
            self.common.telemetry.client_error("protocol");
            self.end(state, slot, CloseReason::Protocol);
        }
    }

    fn on_connect(
        &self,
        state: &mut State,
        slot: usize,
        namespace: &str,
        auth: Option<&Value>,
        now: Moment,
    ) {
        if let Err(not_joined) = self.join_namespace(state, slot, namespace, auth, now) {
            self.common.telemetry.client_error(not_joined.code);
            let data = json!({"code": not_joined.code, "message": not_joined.sentence});
            // The words for a namespace that does not exist are the protocol's own, and all it says.
            let data = (not_joined.code != "invalid_namespace").then_some(&data);
            let packet = packet::connect_error(namespace, not_joined.message, data);
            let frame = wrap(is_polling(&state.connections[slot]), vec![packet]);
            self.reply(state, slot, frame);
        }
    }

    fn join_namespace(
        &self,
        state: &mut State,
        slot: usize,
        namespace: &str,
        auth: Option<&Value>,
        now: Moment,
    ) -> Result<(), NotJoined> {
        let connection = &state.connections[slot];
        let Transport::SocketIo(link) = &connection.transport else {
            return Ok(());
        };
        let (endpoint, params) = self.endpoint_of(link, namespace)?;
        let joined = link.protocol.namespaces();
        if link.protocol.is_in(namespace) || joined.len() >= MAX_NAMESPACES {
            let sentence = format!(
                "a connection joins a namespace once, and at most {MAX_NAMESPACES} of them"
            );
            return Err(NotJoined::new("Already joined", "already_joined", sentence));
        }
        let dialect = &endpoint.voice.dialect;
        let identity = match &connection.speech {
            Some(speech) if !Arc::ptr_eq(speech.dialect(), dialect) => {
                let sentence = "this connection is in a namespace of another kind; open one of its own with forceNew: true";
                return Err(NotJoined::new("Another dialect", "other_dialect", sentence));
            }
            Some(_) => connection.identity.clone(),
            None => self.identity_of(link, auth, dialect.cookie.as_deref())?,
        };
        if identity.is_expired(self.clock.wall()) {
            // It was good when the session was opened.
            let sentence = "The token has expired; get a new one.";
            return Err(Refused::unauthorized("token_expired", sentence).into());
        }
        let topics = endpoint
            .topics(&params, &link.visitor.query, identity.user.as_ref())
            .map_err(|(text, error)| {
                let text: String = text.chars().take(160).collect();
                let sentence = format!("{text:?} is no topic: {error}");
                NotJoined::new("Invalid namespace", "bad_topic", sentence)
            })?;
        for topic in &topics {
            let watched = connection.session.subscription_to(topic).is_some();
            if watched || identity.sight(topic) == Sight::No {
                let (message, code) = match watched {
                    true => ("Already joined", "already_subscribed"),
                    false => ("Forbidden", "forbidden"),
                };
                let sentence = match watched {
                    true => format!("{topic} is watched in another namespace of this connection"),
                    false => format!("{topic} belongs to another user"),
                };
                return Err(NotJoined::new(message, code, sentence));
            }
        }
        let connection = &mut state.connections[slot];
        let admitted = connection.admission.identify(identity.user.as_ref());
        admitted.map_err(|refusal| {
            NotJoined::new("Too many connections", refusal.code(), refusal.to_string())
        })?;
        let returns = Return::of(auth).filter(|_| endpoint.voice.dialect.recovery);
        let socket_id = sid::socket_id();
        let pid = self.pid(state, &endpoint, &socket_id, &topics, returns.as_ref());
        let entrance = Entrance {
            namespace,
            endpoint,
            params,
            socket_id,
            pid,
        };
        self.enter(state, slot, entrance, identity, now);
        if let Some(told) = returns.as_ref().and_then(Return::told)
            && let Some(connection) = state.connections.get_mut(slot)
        {
            connection.carry(told, state.epoch);
        }
        self.watch_in(state, slot, namespace, topics, returns, now);
        Ok(())
    }

    fn endpoint_of(
        &self,
        link: &Link,
        namespace: &str,
    ) -> Result<(Arc<Endpoint>, Params), NotJoined> {
        let found = self.common.dialects.routes.find(&link.visitor.path);
        let found = found.and_then(|found| {
            found.socketio.iter().find_map(|endpoint| {
                let pattern = endpoint.namespace.as_deref().unwrap_or("/");
                let of_namespace = namespace::params(pattern, namespace)?;
                let mut params = found.params.clone();
                params.0.extend(of_namespace);
                // A path or a namespace is not talked over by what the handshake's query says.
                let query = link.visitor.query.iter();
                let more = query.filter(|(name, _)| params.get(name).is_none());
                let more: Vec<_> = more.cloned().collect();
                params.0.extend(more);
                Some((endpoint.clone(), params))
            })
        });
        found.ok_or_else(|| NotJoined::new("Invalid namespace", "invalid_namespace", ""))
    }

    /// Who the client is: by the token in its CONNECT packet, else by what its first request carried.
    fn identity_of(
        &self,
        link: &Link,
        auth: Option<&Value>,
        cookie: Option<&str>,
    ) -> Result<Arc<Identity>, Refused> {
        let token = auth.and_then(|auth| auth.get("token"));
        if let Some(token) = token.and_then(Value::as_str) {
            let token = token.strip_prefix("Bearer ").unwrap_or(token);
            let credential = Credential::new(token, Source::Message)?;
            return self
                .common
                .identity
                .identify(Some(&credential), self.clock.wall())
                .map(Arc::new);
        }
        let known = link.visitor.identities.iter();
        let mut known = known.filter(|(name, _)| name.as_deref() == cookie);
        match known.next() {
            Some((_, identity)) => identity.clone(),
            None => Err(Refused::no_credential()),
        }
    }

    /// Joins a namespace.
    fn enter(
        &self,
        state: &mut State,
        slot: usize,
        entrance: Entrance<'_>,
        identity: Arc<Identity>,
        now: Moment,
    ) {
        let Entrance {
            namespace,
            endpoint,
            params,
            socket_id,
            pid,
        } = entrance;
        let expires_at = identity.expires_at.map(|at| self.moment_of(at, now));
        let connection = &mut state.connections[slot];
        connection.identity = identity;
        if connection.speech.is_none() {
            let speech = Speech::new(endpoint.clone(), params.clone(), now);
            let dialect = &speech.dialect().name;
            self.common.telemetry.dialect_connections(dialect).inc();
            connection.speech = Some(Box::new(speech));
        }
        let bounds = *session_bounds(&connection.speech, &self.common);
        let authenticated = Event::Authenticated { expires_at };
        connection.session.handle(authenticated, now, &bounds);
        let Transport::SocketIo(link) = &mut connection.transport else {
            return;
        };
        // One dialect a connection, and with it one identity.
        link.visitor.identities = Vec::new();
        link.protocol.join(namespace);
        // Most join one: room for four would be a tenth of what an idle connection takes.
        link.rooms.reserve_exact(1);
        link.rooms.push(Room {
            namespace: namespace.to_owned(),
            endpoint,
            params,
            subscriptions: Vec::new(),
            offset: Offset::at_first(pid.as_deref()),
        });
        let connected = packet::connected(namespace, &socket_id, pid.as_deref());
        let frame = wrap(link.protocol.is_polling(), vec![connected]);
        self.reply(state, slot, frame);
        let Some(connection) = state.connections.get(slot) else {
            return;
        };
        let notice = Notice::Hello {
            version: env!("CARGO_PKG_VERSION"),
            session: &format!("{}-{:x}", self.number, connection.id.0),
            user: connection.user().map(relay_core::id::Name::as_str),
            ping_interval_ms: u64::try_from(bounds.ping_interval.as_millis()).unwrap_or(u64::MAX),
        };
        let call = Call {
            namespace,
            ack: None,
        };
        let frame = self.notice_in(connection, &notice, &call);
        self.reply(state, slot, frame);
    }

    /// Subscribes to what a namespace brings with it.
    fn watch_in(
        &self,
        state: &mut State,
        slot: usize,
        namespace: &str,
        topics: Vec<Topic>,
        returns: Option<Return>,
        now: Moment,
    ) {
        let id = Call {
            namespace,
            ack: None,
        }
        .id();
        for topic in topics {
            let Some(connection) = state.connections.get_mut(slot) else {
                return;
            };
            let bounds = session_bounds(&connection.speech, &self.common);
            let subscribed = connection.session.subscribe(topic.clone(), bounds);
            let subscription = match subscribed {
                Ok(subscription) => subscription,
                Err(error) => {
                    self.refuse(state, slot, Some(&id), error.code(), &error.to_string());
                    return;
                }
            };
            note_subscription(connection, Some(&id), subscription);
            connection.extras().ids.push((subscription, id.clone()));
            match &returns {
                Some(returns) => self.rejoin(state, slot, (subscription, topic), returns, now),
                None => self.join(state, slot, Join::anew(subscription, topic)),
            }
        }
    }

    /// The client leaves a namespace; the connection stays.
    fn on_disconnect(&self, state: &mut State, slot: usize, namespace: &str) {
        let connection = &mut state.connections[slot];
        let Transport::SocketIo(link) = &mut connection.transport else {
            return;
        };
        link.protocol.leave(namespace);
        let at = link
            .rooms
            .iter()
            .position(|each| each.namespace == namespace);
        let Some(room) = at.map(|at| link.rooms.remove(at)) else {
            return;
        };
        for subscription in room.subscriptions {
            let connection = &mut state.connections[slot];
            let Some(topic) = connection.session.leave(subscription) else {
                continue;
            };
            connection.outbox.forget(subscription);
            if let Some(extras) = &mut connection.extras {
                extras.forget(subscription);
            }
            let watcher = Watcher { slot, subscription };
            self.unwatch(&mut state.registry, &topic, watcher);
        }
    }

    fn on_event(
        &self,
        state: &mut State,
        slot: usize,
        call: &Call<'_>,
        name: &str,
        json: &str,
        now: Moment,
    ) {
        let connection = &mut state.connections[slot];
        if let Some(speech) = &mut connection.speech {
            speech.last_traffic = now;
        }
        // Read whole when the packet was; an event without arguments is no mistake.
        let arguments = serde_json::from_str::<Vec<Value>>(json).unwrap_or_default();
        let input = json!({"event": name, "args": arguments.get(1..).unwrap_or_default()});
        let id = call.id();
        let Ok(input) = Input::of(&input) else {
            let sentence = "the event is nested too deep";
            return self.refuse(state, slot, Some(&id), "bad_message", sentence);
        };
        let connection = &state.connections[slot];
        let Some((_, room)) = room_of(connection, call.namespace) else {
            return;
        };
        let context = self.context(connection, &room.endpoint, &room.params);
        let dialect = room.endpoint.voice.dialect.clone();
        self.on_message(state, slot, &dialect, (&input, &context), Some(&id), now);
    }
}

/// Notes in which namespace a subscription is told: the one it was `asked` for in.
pub(super) fn note_subscription(
    connection: &mut Connection,
    asked: Option<&Value>,
    subscription: SubscriptionId,
) {
    let namespace = asked.and_then(|id| id.get(0)).and_then(Value::as_str);
    if let Transport::SocketIo(link) = &mut connection.transport
        && let Some(namespace) = namespace
        && let Some(room) = link
            .rooms
            .iter_mut()
            .find(|each| each.namespace == namespace)
    {
        room.subscriptions.push(subscription);
    }
}

fn room_of<'a>(connection: &'a Connection, namespace: &str) -> Option<(&'a Link, &'a Room)> {
    let Transport::SocketIo(link) = &connection.transport else {
        return None;
    };
    let mut rooms = link.rooms.iter();
    let room = rooms.find(|each| each.namespace == namespace)?;
    Some((link, room))
}

fn is_polling(connection: &Connection) -> bool {
    matches!(&connection.transport, Transport::SocketIo(link) if link.protocol.is_polling())
}
