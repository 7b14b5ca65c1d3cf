//! Socket.IO namespaces: joined, returned to, and left.
//!
//! A namespace is joined when it is known who the client is, whether it may watch what the namespace brings
//! with it, and that it is within its bounds; until then nothing has changed.

use std::sync::Arc;
use std::time::Duration;

use relay_core::cursor::Cursor;
use relay_core::job::Again;
use relay_core::topic::Topic;
use relay_core::watcher::sight::{Sight, Viewer as _};
use relay_wire::dialect::{Endpoint, Params};
use relay_wire::engineio::Open;
use relay_wire::engineio::sid::{self, Sid};
use relay_wire::exchange::ReplyTo;
use relay_wire::socketio::client::{Client, Entrance};
use relay_wire::socketio::namespace;
use relay_wire::socketio::offset::{Return, pid};
use relay_wire::socketio::protocol::MAX_NAMESPACES;
use serde_json::{Value, json};

use super::inbound::verified;
use super::{Connection, Desk, Errand, bounds};
use crate::identity::Identity;
use crate::node::Node;
use crate::refused::Refused;
use crate::shard::asking::Shown;

/// How long a client that comes back to a user or a group has for asking by name for jobs it watched. What is
/// told by name is not told again; the other way round, a client that asks by name always gets the snapshot.
const ASKS_AGAIN_WITHIN: Duration = Duration::from_secs(1);

/// Why a namespace is not joined: Socket.IO's `message`, and our word and sentence.
pub(super) struct NotJoined {
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

/// What is known of a namespace before it is joined.
struct Found {
    endpoint: Arc<Endpoint>,
    params: Params,
    identity: Arc<Identity>,
    topics: Vec<Topic>,
}

/// The token in a CONNECT packet, if there is one.
fn token_of(auth: Option<&Value>) -> Option<&str> {
    let token = auth?.get("token")?.as_str()?;
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    (!token.is_empty()).then_some(token)
}

impl Connection {
    /// The first packet of a Socket.IO session; `None` for any other connection.
    pub(crate) fn open_packet(&self, desk: &Desk<'_>) -> Option<String> {
        let client = self.speaker.socketio()?;
        let sid = Sid {
            shard: u8::try_from(desk.shard).ok()?,
            slot: u32::try_from(self.id.0 & 0xffff_ffff).ok()?,
            secret: client.secret(),
        };
        // Which dialect it will speak is not known yet; the longest times suit all of them.
        let found = desk.node.dialects.routes.find(&client.visitor.path)?;
        let endpoints = found.socketio.iter();
        let times = endpoints.map(|each| each.voice.dialect.bounds.session);
        let interval = times.clone().map(|each| each.ping_interval).max()?;
        let dead_after = times.map(|each| each.dead_after).max()?;
        let limit = desk.node.limits.message_bytes;
        let (sid, polling) = (sid.to_string(), self.speaker.is_polling());
        Some(Open::new(&sid, polling, interval, dead_after, limit).encode())
    }

    pub(super) fn on_connect(
        &mut self,
        namespace: &str,
        auth: Option<&Value>,
        desk: &mut Desk<'_>,
    ) {
        let shown = Shown::Connect(namespace.to_owned(), auth.cloned());
        let waits = match token_of(auth) {
            Some(token) => self.prepare(token, shown, desk),
            None => Err(shown),
        };
        if waits.is_err() {
            self.join_namespace(namespace, auth, desk);
        }
    }

    /// Joins a namespace, or says why not.
    pub(super) fn join_namespace(
        &mut self,
        namespace: &str,
        auth: Option<&Value>,
        desk: &mut Desk<'_>,
    ) {
        let joined = self
            .find_namespace(namespace, auth, desk)
            .and_then(|found| self.enter(namespace, auth, found, desk));
        if let Err(not_joined) = joined {
            self.say_not_joined(namespace, &not_joined, desk);
        }
    }

    pub(super) fn say_not_joined(
        &mut self,
        namespace: &str,
        not_joined: &NotJoined,
        desk: &mut Desk<'_>,
    ) {
        desk.node.telemetry.client_error(not_joined.code);
        let data = json!({"code": not_joined.code, "message": not_joined.sentence});
        // The words for a namespace that does not exist are the protocol's own, and all it says.
        let data = (not_joined.code != "invalid_namespace").then_some(&data);
        if let Some(client) = self.speaker.socketio() {
            let frame = client.not_joined(namespace, not_joined.message, data);
            self.reply(frame, desk);
        }
    }

    /// Whether the client may join a namespace, and what comes with it.
    fn find_namespace(
        &self,
        namespace: &str,
        auth: Option<&Value>,
        desk: &Desk<'_>,
    ) -> Result<Found, NotJoined> {
        let nothing = || NotJoined::new("Invalid namespace", "invalid_namespace", "");
        let client = self.speaker.socketio().ok_or_else(nothing)?;
        let (endpoint, params) = endpoint_of(client, namespace, desk.node).ok_or_else(nothing)?;
        if client.is_in(namespace) || client.namespaces() >= MAX_NAMESPACES {
            let sentence = format!(
                "a connection joins a namespace once, and at most {MAX_NAMESPACES} of them"
            );
            return Err(NotJoined::new("Already joined", "already_joined", sentence));
        }
        let dialect = &endpoint.voice.dialect;
        let identity = match self.speaker.speech() {
            Some(speech) if !Arc::ptr_eq(speech.dialect(), dialect) => {
                let sentence = "this connection is in a namespace of another kind; open one of its own with forceNew: true";
                return Err(NotJoined::new("Another dialect", "other_dialect", sentence));
            }
            Some(_) => self.identity.clone(),
            None => self.identity_of(auth, dialect.cookie.as_deref(), desk)?,
        };
        if identity.is_expired(desk.wall()) {
            // It was good when the session was opened.
            let sentence = "The token has expired; get a new one.";
            return Err(Refused::unauthorized("token_expired", sentence).into());
        }
        let topics = endpoint
            .topics(&params, &client.visitor.query, identity.user.as_ref())
            .map_err(|error| NotJoined::new("Invalid namespace", "bad_topic", error.to_string()))?;
        for topic in &topics {
            if self.watcher.subscription_to(topic).is_some() {
                let sentence =
                    format!("{topic} is watched in another namespace of this connection");
                return Err(NotJoined::new(
                    "Already joined",
                    "already_subscribed",
                    sentence,
                ));
            }
            if identity.sight(topic) == Sight::No {
                let sentence = format!("{topic} belongs to another user");
                return Err(NotJoined::new("Forbidden", "forbidden", sentence));
            }
        }
        Ok(Found {
            endpoint,
            params,
            identity,
            topics,
        })
    }

    /// Who the client is: by the token in its CONNECT packet, else by what its first request carried.
    fn identity_of(
        &self,
        auth: Option<&Value>,
        cookie: Option<&str>,
        desk: &Desk<'_>,
    ) -> Result<Arc<Identity>, Refused> {
        if let Some(token) = token_of(auth) {
            return verified(token, desk).map(Arc::new);
        }
        let known = self.rare.iter().flat_map(|rare| &rare.identities);
        let mut known = known.filter(|(name, _)| name.as_deref() == cookie);
        match known.next() {
            Some((_, identity)) => identity.clone(),
            None => Err(Refused::no_credential()),
        }
    }

    /// Joins a namespace, and what it brings with it.
    fn enter(
        &mut self,
        namespace: &str,
        auth: Option<&Value>,
        found: Found,
        desk: &mut Desk<'_>,
    ) -> Result<(), NotJoined> {
        let Found {
            endpoint,
            params,
            identity,
            topics,
        } = found;
        let admitted = self.admission.identify(identity.user.as_ref());
        admitted.map_err(|refusal| {
            NotJoined::new("Too many connections", refusal.code(), refusal.to_string())
        })?;
        let recovers = endpoint.voice.dialect.recovery;
        let returns = Return::of(auth).filter(|_| recovers);
        let socket_id = sid::socket_id();
        let pid = recovers.then(|| pid(&socket_id, &returned_to(&topics, returns.as_ref(), desk)));
        let until = identity.expires_at.map(|at| desk.moment_of(at));
        self.identity = identity;
        let is_first = self.speaker.speech().is_none();
        if is_first {
            let dialect = &endpoint.voice.dialect.name;
            desk.node.telemetry.dialect_connections(dialect).inc();
        }
        let Some(client) = self.speaker.socketio_mut() else {
            return Ok(());
        };
        let entrance = Entrance {
            namespace: namespace.to_owned(),
            endpoint,
            params,
            socket_id,
            pid,
        };
        let connected = client.enter(entrance, desk.now);
        // One dialect a connection, and with it one identity.
        if let Some(rare) = &mut self.rare {
            rare.identities = Vec::new();
        }
        self.tidy();
        let limits = bounds(&self.speaker, desk.node);
        self.watcher.authenticated(until, desk.now, limits);
        self.reply(connected, desk);
        let place = ReplyTo::Event {
            namespace: namespace.into(),
            ack: None,
            name: None,
        };
        self.say_hello(&place, desk);
        if let Some(told) = returns.as_ref().and_then(Return::told) {
            self.watcher.carry(told, desk.tools.horizon.epoch());
        }
        self.watch_in(&place, topics, returns.as_ref(), desk);
        Ok(())
    }

    /// Subscribes to what a namespace brings with it.
    fn watch_in(
        &mut self,
        place: &ReplyTo,
        topics: Vec<Topic>,
        returns: Option<&Return>,
        desk: &mut Desk<'_>,
    ) {
        for topic in topics {
            let from = returns.and_then(|returns| returns.to(&topic));
            let limits = bounds(&self.speaker, desk.node);
            let join = match self.watcher.subscribe(topic, from, limits) {
                Ok(join) => join,
                Err(error) => {
                    return self.reject(error.code(), &error.to_string(), place, desk);
                }
            };
            self.note_asked(join.subscription, place);
            match (&join.topic, from, returns) {
                (Topic::Job(job), Some((_, again)), Some(returns)) => {
                    if let Some(client) = self.speaker.socketio_mut() {
                        client.returns_to(
                            &job.id,
                            returns.status().filter(|_| again == Again::Nothing),
                        );
                    }
                    desk.tools.errands.push(Errand::Join(join));
                }
                // It may ask for jobs of theirs by name first.
                (Topic::User(_) | Topic::Group(_), Some(_), _) => {
                    if let Some(speech) = self.speaker.speech_mut() {
                        speech.postpone(join, desk.now + ASKS_AGAIN_WITHIN);
                    }
                }
                _ => desk.tools.errands.push(Errand::Join(join)),
            }
        }
    }

    /// The client leaves a namespace; the connection stays.
    pub(super) fn on_disconnect(&mut self, namespace: &str, desk: &mut Desk<'_>) {
        let Some(client) = self.speaker.socketio_mut() else {
            return;
        };
        let ended = client.exit(namespace);
        if let Some(speech) = self.speaker.speech_mut() {
            speech.left();
        }
        for via in ended {
            self.take_asked(via);
            self.forget_name(via);
            if let Some(topic) = self.watcher.leave(via) {
                desk.tools.errands.push(Errand::Leave(via, topic));
            }
        }
    }
}

/// What serves a namespace, with what the path, the namespace and the query say.
fn endpoint_of(client: &Client, namespace: &str, node: &Node) -> Option<(Arc<Endpoint>, Params)> {
    let found = node.dialects.routes.find(&client.visitor.path)?;
    found.socketio.iter().find_map(|endpoint| {
        let pattern = endpoint.namespace.as_deref().unwrap_or("/");
        let of_namespace = namespace::params(pattern, namespace)?;
        let mut params = found.params.clone();
        params.0.extend(of_namespace);
        // A path or a namespace is not overruled by what the handshake's query says.
        let query = client.visitor.query.iter();
        let more = query.filter(|(name, _)| params.get(name).is_none());
        let more: Vec<_> = more.cloned().collect();
        params.0.extend(more);
        Some((endpoint.clone(), params))
    })
}

/// The cursor a client that joins a namespace with these topics returns with, until it is told another: where it
/// was before, if that still means something, else where the bus is now.
fn returned_to(topics: &[Topic], returns: Option<&Return>, desk: &Desk<'_>) -> Cursor {
    // While a client is told nothing, where it was before stays all that is known of it.
    let mut known = returns.into_iter().flat_map(Return::cursors);
    let known = known.find(|cursor| {
        let means_something =
            desk.tools.horizon.is_stale() || cursor.position.epoch == desk.tools.horizon.epoch();
        means_something && topics.iter().all(|topic| cursor.may_speak_for(topic))
    });
    known
        .cloned()
        .unwrap_or_else(|| Cursor::at(desk.node.hub.place(), topics))
}
