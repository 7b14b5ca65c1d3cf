//! Requests to watch: `/v1/ws`, `/v1/sse`, `/v1/poll`, from the request to a connection in the slab.
//!
//! Everything that can be refused is refused here, before the upgrade, with a status, a code and a
//! sentence; identity comes from the credential and nowhere else.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response};
use relay_core::cursor::Cursor;
use relay_core::job::Again;
use relay_core::topic::Topic;
use relay_wire::dialect::{Endpoint, Params};
use relay_wire::native::frame::Notice;
use relay_wire::websocket::{self, Decoder};
use tokio::time::timeout;

use super::accept::Takeover;
use super::connection::Transport;
use super::{Join, Shard, State};
use crate::admission::Admission;
use crate::answer::ApiError;
use crate::identity::{Identity, Sight, credential, credential::SUBPROTOCOL_PREFIX};
use crate::origin::Standing;

/// How long a request waits for the bus to say whose a job is.
pub(super) const LOOKUP_WAIT: Duration = Duration::from_secs(5);

/// What a connection that is about to begin starts with.
pub(super) struct Stream {
    pub(super) transport: Transport,
    pub(super) identity: Arc<Identity>,
    pub(super) admission: Admission,
    pub(super) authenticated: bool,
    pub(super) topics: Vec<Topic>,
    pub(super) cursor: Option<Cursor>,
    /// Which dialect it speaks, and what its path says.
    pub(super) dialect: Option<(Arc<Endpoint>, Params)>,
}

/// How a request to watch ends.
pub(super) enum Watched {
    Answer(Response<Body>),
    Stream(Box<Takeover>),
}

/// What the URL of a watch request says.
#[derive(Debug, Default)]
struct Query {
    topics: Vec<Topic>,
    cursor: Option<Cursor>,
    wait: Option<Duration>,
    /// `auth=message`: the token will come as the first message.
    authenticates_later: bool,
}

/// Whether a path is one of those handled here.
pub(super) fn is_watch_route(path: &str) -> bool {
    matches!(path, "/v1/ws" | "/v1/sse" | "/v1/poll")
}

type Refusal = Box<Response<Body>>;

impl Shard {
    /// Answers a request to watch.
    pub(super) async fn watch(
        self: &Rc<Self>,
        request: Request<()>,
        peer: IpAddr,
    ) -> Result<Watched, Refusal> {
        let headers = request.headers();
        if request.method() == Method::OPTIONS {
            let answer = self.common.origins.preflight(headers);
            return match answer {
                Ok(answer) => Ok(Watched::Answer(answer.map(|()| Body::empty()))),
                Err(refused) => Err(Box::new(ApiError::from(refused).into_answer())),
            };
        }
        let standing = match self.common.origins.check(headers) {
            Ok(standing) => standing,
            Err(refused) => {
                self.common.telemetry.refused(refused.code);
                return Err(Box::new(ApiError::from(refused).into_answer()));
            }
        };
        let mut watched = self.watch_from(&request, peer, standing).await;
        let response = match &mut watched {
            Ok(Watched::Answer(answer)) => Some(answer),
            Ok(Watched::Stream(_)) => None,
            Err(refusal) => Some(&mut **refusal),
        };
        if let Some(response) = response {
            response
                .headers_mut()
                .extend(self.common.origins.response_headers(standing, headers));
            self.common
                .telemetry
                .request(request.uri().path(), response.status().as_u16());
        }
        watched
    }

    async fn watch_from(
        self: &Rc<Self>,
        request: &Request<()>,
        peer: IpAddr,
        standing: Standing,
    ) -> Result<Watched, Refusal> {
        let refuse = |error: ApiError| {
            self.common.telemetry.refused(error.code());
            Box::new(error.into_answer())
        };
        if request.method() != Method::GET {
            return Err(refuse(ApiError::method_not_allowed("GET")));
        }
        if self.state.borrow().draining {
            return Err(refuse(ApiError::draining()));
        }
        let query = Query::parse(request).map_err(&refuse)?;
        let is_websocket = request.uri().path() == "/v1/ws";
        if !is_websocket && query.topics.is_empty() {
            return Err(refuse(ApiError::bad_request(
                "no_topic",
                "name what to watch: ?topic=job:<id>, repeated for several",
            )));
        }
        let identity = self
            .identify(request, standing, &query, is_websocket)
            .map_err(&refuse)?;
        let authenticated = identity.is_some();
        let identity = identity.unwrap_or_else(nobody).shared();
        self.may_name(&query.topics).map_err(&refuse)?;
        if authenticated {
            self.may_watch_all(&identity, &query.topics)
                .await
                .map_err(&refuse)?;
        }
        let handshake = match is_websocket {
            true => Some(handshake(request.headers()).map_err(&refuse)?),
            false => None,
        };
        let admission = self
            .common
            .admissions
            .admit(identity.user.as_ref(), peer)
            .map_err(|refusal| refuse(ApiError::limit(refusal.code(), &refusal.to_string())))?;
        let stream = |transport| Stream {
            transport,
            identity: identity.clone(),
            admission,
            authenticated,
            topics: query.topics.clone(),
            cursor: query.cursor.clone(),
            dialect: None,
        };
        match (request.uri().path(), handshake) {
            ("/v1/poll", _) => {
                let wait = query
                    .wait
                    .unwrap_or(self.common.delivery.poll_wait)
                    .min(self.common.delivery.poll_wait_max);
                let opened = stream(Transport::Poll(None));
                self.poll_once(opened, wait)
                    .await
                    .map(Watched::Answer)
                    .map_err(&refuse)
            }
            ("/v1/ws", Some(head)) => Ok(Watched::Stream(Box::new(Takeover {
                head,
                stream: stream(Transport::WebSocket(Decoder::default())),
                early: Bytes::new(),
            }))),
            _ => {
                let allow = self
                    .common
                    .origins
                    .response_headers(standing, request.headers());
                Ok(Watched::Stream(Box::new(Takeover {
                    head: event_stream_head(allow),
                    stream: stream(Transport::EventStream),
                    early: Bytes::new(),
                })))
            }
        }
    }

    /// Who asks; `None` if that will be said by message.
    fn identify(
        &self,
        request: &Request<()>,
        standing: Standing,
        query: &Query,
        is_websocket: bool,
    ) -> Result<Option<Identity>, ApiError> {
        let cookie = standing
            .may_use_cookie()
            .then_some(self.common.cookie.as_str());
        let found = credential(request.headers(), request.uri(), cookie)?;
        if found.is_none() && is_websocket && query.authenticates_later {
            return Ok(None);
        }
        self.common.identity.identify(found.as_ref(), self.clock.wall()).map(Some).map_err(|mut refused| {
            if found.is_none() && is_websocket {
                refused.message.push_str(
                    " A client that cannot do any of that connects with ?auth=message and sends {\"type\":\"auth\",\"token\":\"…\"} first.",
                );
            }
            ApiError::from(refused)
        })
    }

    fn may_name(&self, topics: &[Topic]) -> Result<(), ApiError> {
        if topics.len() > self.common.session.subscriptions {
            let limit = self.common.session.subscriptions;
            return Err(ApiError::bad_request(
                "too_many_subscriptions",
                &format!(
                    "{} topics; the limit of one connection is {limit} (limits.subscriptions_per_connection)",
                    topics.len()
                ),
            ));
        }
        Ok(())
    }

    pub(super) async fn may_watch_all(
        &self,
        identity: &Identity,
        topics: &[Topic],
    ) -> Result<(), ApiError> {
        for topic in topics {
            let allowed = match (identity.sight(topic), topic) {
                (Sight::Yes, _) | (Sight::WhenKnown, Topic::Group(_) | Topic::User(_)) => true,
                (Sight::No, _) => false,
                (Sight::WhenKnown, Topic::Job(job)) => {
                    let lookup = timeout(LOOKUP_WAIT, self.common.hub.lookup(job)).await;
                    match lookup.map_err(|_| ApiError::bus_unavailable())?.state {
                        Some(state) => {
                            let (owner, parent) = (Some(&state.owner), state.parent.as_ref());
                            identity.may_watch(topic, owner, parent)
                        }
                        None => true,
                    }
                }
            };
            if !allowed {
                return Err(ApiError::forbidden_topic(topic));
            }
        }
        Ok(())
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

/// An identity that may do nothing yet.
pub(super) fn nobody() -> Identity {
    Identity {
        anonymous: false,
        ..Identity::anonymous()
    }
}

impl Query {
    fn parse(request: &Request<()>) -> Result<Self, ApiError> {
        let mut query = Self::default();
        let pairs = serde_urlencoded::from_str::<Vec<(String, String)>>(
            request.uri().query().unwrap_or(""),
        )
        .map_err(|_| ApiError::bad_request("bad_query", "the query string cannot be read"))?;
        let mut cursor = None;
        for (key, value) in pairs {
            match key.as_str() {
                "topic" => query.add_topic(&value)?,
                "cursor" if !value.is_empty() => cursor = Some(value),
                "wait" => query.wait = Some(parse_wait(&value)?),
                "auth" => query.authenticates_later = value == "message",
                _ => {}
            }
        }
        // On a reconnection the browser's own position is newer than the one in the URL.
        let last_event = request
            .headers()
            .get("last-event-id")
            .and_then(|id| id.to_str().ok());
        if let Some(text) = last_event.filter(|id| !id.is_empty()).or(cursor.as_deref()) {
            let parsed = Cursor::parse(text);
            query.cursor = Some(
                parsed.map_err(|error| ApiError::bad_request("bad_cursor", &error.to_string()))?,
            );
        }
        Ok(query)
    }

    fn add_topic(&mut self, text: &str) -> Result<(), ApiError> {
        let topic = Topic::parse(text).map_err(|error| {
            let text: String = text.chars().take(160).collect();
            ApiError::bad_request("bad_topic", &format!("{text:?} is no topic: {error}"))
        })?;
        if !self.topics.contains(&topic) {
            self.topics.push(topic);
        }
        Ok(())
    }
}

fn parse_wait(text: &str) -> Result<Duration, ApiError> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(ApiError::bad_request(
            "bad_wait",
            "wait is a number of seconds, such as wait=25",
        )),
    }
}

/// The head of the answer to a WebSocket handshake (RFC 6455 section 4.2.2).
pub(super) fn handshake(headers: &HeaderMap) -> Result<Bytes, ApiError> {
    let has = |name, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| {
                value
                    .split(',')
                    .any(|each| each.trim().eq_ignore_ascii_case(token))
            })
    };
    if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
        return Err(ApiError::upgrade_required());
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(ApiError::bad_request(
            "bad_handshake",
            "this relay speaks version 13 of the WebSocket protocol",
        ));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key);
    if !decoded.is_ok_and(|key| key.len() == 16) {
        return Err(ApiError::bad_request(
            "bad_handshake",
            "Sec-WebSocket-Key is not 16 bytes in base64",
        ));
    }
    let accept = websocket::accept_key(key);
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    );
    if let Some(protocol) = subprotocol(headers) {
        head.push_str(&format!("Sec-WebSocket-Protocol: {protocol}\r\n"));
    }
    head.push_str("\r\n");
    Ok(head.into())
}

/// The subprotocol to agree on: the client's first that is no token. A browser that offered some and is
/// answered none closes the connection.
fn subprotocol(headers: &HeaderMap) -> Option<&'static str> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut names = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    names
        .any(|name| name.trim() == "relay.v1" && !name.trim().starts_with(SUBPROTOCOL_PREFIX))
        .then_some("relay.v1")
}

fn event_stream_head(extra: impl Iterator<Item = (header::HeaderName, HeaderValue)>) -> Bytes {
    let mut head = Vec::from(
        // `no-transform` and `X-Accel-Buffering` keep proxies from holding events back.
        &b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nConnection: close\r\n"[..],
    );
    for (name, value) in extra {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}
