//! Requests to watch in the native protocol: `/v1/ws`, `/v1/sse`, `/v1/poll`.
//!
//! From the request to what a connection starts as, or to a refusal: everything that can be refused is refused
//! before the upgrade, with a status, a code and a sentence. What a connection is then sent is not known here.
//!
//! Invariant: a connection that is not authenticated yet watches nothing; its topics wait for the token.

use std::time::{Duration, SystemTime};

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use relay_core::cursor::Cursor;
use relay_core::topic::Topic;
use relay_wire::speaker::Speaker;
use relay_wire::target;
use tokio::time::timeout;

use super::accept::Departure;
use super::gate::{Arrival, Guest, Head, READ, Route, Visit};
use super::peer::Peer;
use super::resume::Resume;
use super::{Door, Outcome, handshake};
use crate::answer::{ApiError, Escort, NO_SNIFF};
use crate::identity::Identity;
use crate::rates::Rate;
use crate::refused::Refused;
use crate::shard::Opening;

/// What the URL of a watch request says.
#[derive(Debug, Default)]
struct Query {
    topics: Vec<Topic>,
    cursor: Option<Cursor>,
    wait: Option<Duration>,
    /// `auth=message`: the token will come as the first message.
    authenticates_later: bool,
}

/// The native routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Native {
    WebSocket,
    EventStream,
    Poll,
}

impl Native {
    /// The route of a path, if it is one of these.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/ws" => Some(Self::WebSocket),
            "/v1/sse" => Some(Self::EventStream),
            "/v1/poll" => Some(Self::Poll),
            _ => None,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::WebSocket => "/v1/ws",
            Self::EventStream => "/v1/sse",
            Self::Poll => "/v1/poll",
        }
    }
}

impl Door {
    /// Answers a request to watch.
    pub(super) async fn watch(&self, native: Native, request: Request<()>, peer: &Peer) -> Outcome {
        let route = Route::watch(native.path());
        let (visit, guest) = match self.gate.receive(Head::of(&request), route) {
            Arrival::Preflight(answer) => return Outcome::Answer(answer),
            Arrival::Visit(visit, guest) => (visit, guest),
        };
        let answered = match guest {
            Ok(guest) => self.watch_as(native, &request, peer, guest, &visit).await,
            Err(refused) => Err(refused),
        };
        self.gate.conclude(visit, answered, ApiError::into_answer)
    }

    async fn watch_as(
        &self,
        native: Native,
        request: &Request<()>,
        peer: &Peer,
        guest: Guest,
        visit: &Visit<'_>,
    ) -> Result<Outcome, ApiError> {
        let only_head = request.method() == Method::HEAD;
        if request.method() != Method::GET && !only_head {
            return Err(ApiError::method_not_allowed(READ));
        }
        if self.shard.is_draining() {
            return Err(ApiError::draining());
        }
        let query = Query::parse(request)?;
        if native != Native::WebSocket && query.topics.is_empty() {
            return Err(ApiError::bad_request(
                "no_topic",
                "name what to watch: ?topic=job:<id>, repeated for several",
            ));
        }
        self.gate.prepare(guest, Head::of(request), None).await?;
        let identity = self.identify(native, request, guest, &query)?;
        let authenticated = identity.is_some();
        let identity = identity.unwrap_or_else(Identity::nobody).shared();
        self.may_name(&query.topics)?;
        if authenticated {
            self.gate.may_watch(&identity, &query.topics).await?;
        }
        let upgrade = match native {
            // A handshake is a GET (RFC 6455, 4.1).
            Native::WebSocket if only_head => return Err(ApiError::upgrade_required()),
            Native::WebSocket => Some(handshake::answer(Head::of(request), &[], None)?),
            Native::EventStream | Native::Poll => None,
        };
        let rate = match native {
            Native::Poll => Rate::Reads,
            Native::WebSocket | Native::EventStream => Rate::Connections,
        };
        let user = identity.user.as_ref();
        self.gate.allow(guest, rate, user)?;
        let admission = self.gate.admit(guest, user)?;
        if only_head && native == Native::EventStream {
            return Ok(Outcome::Answer(event_stream_answer()));
        }
        let speaker = match native {
            Native::WebSocket => Speaker::websocket(),
            Native::EventStream => Speaker::event_stream(),
            Native::Poll => Speaker::long_poll(query.topics.len()),
        };
        let left = identity.left(self.clock.wall());
        let mut escort = Escort::of(&identity);
        escort.admission = (native == Native::Poll).then(|| admission.clone());
        let opening = Opening::new(speaker, identity, admission);
        let opening = match authenticated {
            true => opening,
            false => opening.unauthenticated(),
        };
        let opening = opening.watching(query.topics, query.cursor);
        if native == Native::Poll {
            let delivery = &self.node.delivery;
            let wait = query.wait.unwrap_or(delivery.poll_wait);
            let wait = wait.min(delivery.poll_wait_max);
            let answered = self.poll_once(opening, wait, peer);
            // Past its token's end nobody is told anything.
            let answer = match left {
                Some(left) => timeout(left, answered).await.unwrap_or_else(|_| {
                    let sentence = "The token has expired; get a new one.";
                    Err(Refused::unauthorized("token_expired", sentence).into())
                }),
                None => answered.await,
            };
            let mut answer = answer?;
            // It counts as a connection until it is read.
            answer.extensions_mut().insert(escort);
            return Ok(Outcome::Answer(answer));
        }
        let head = upgrade.unwrap_or_else(|| event_stream_head(visit.cors(), None));
        Ok(Outcome::Leave(Departure::begin(head, opening)))
    }

    /// The client's identity; `None` if a message will show it.
    fn identify(
        &self,
        native: Native,
        request: &Request<()>,
        guest: Guest,
        query: &Query,
    ) -> Result<Option<Identity>, ApiError> {
        let head = Head::of(request);
        if native != Native::WebSocket {
            return Ok(Some(self.gate.identify(guest, head, None)?));
        }
        if query.authenticates_later {
            return Ok(self.gate.identify_if_shown(guest, head, None)?);
        }
        let identified = self.gate.identify(guest, head, None);
        identified.map(Some).map_err(|mut refused| {
            // Nothing else is refused by that word: no credential was found.
            if refused.code == "unauthenticated" {
                refused.message.push_str(
                    " A client that cannot do any of that connects with ?auth=message and sends {\"type\":\"auth\",\"token\":\"…\"} first.",
                );
            }
            ApiError::from(refused)
        })
    }

    fn may_name(&self, topics: &[Topic]) -> Result<(), ApiError> {
        let limit = self.node.bounds.session.subscriptions;
        if topics.len() > limit {
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
}

impl Query {
    fn parse(request: &Request<()>) -> Result<Self, ApiError> {
        let mut query = Self::default();
        let mut resume = Resume::of(request.headers());
        for (key, value) in target::pairs(request.uri().query().unwrap_or_default()) {
            match &*key {
                "topic" => query.add_topic(&value)?,
                "wait" if !value.is_empty() => query.wait = Some(parse_wait(&value)?),
                "auth" => query.authenticates_later = value == "message",
                _ => resume
                    .read(&key, &value)
                    .map_err(|error| ApiError::bad_request("bad_cursor", &error.to_string()))?,
            }
        }
        query.cursor = resume.place();
        Ok(query)
    }

    fn add_topic(&mut self, text: &str) -> Result<(), ApiError> {
        let topic = Topic::parse(text).map_err(|error| {
            let text: String = text.chars().take(160).collect();
            ApiError::bad_request(
                "bad_topic",
                &format!("{text:?} is not a valid topic: {error}"),
            )
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

/// What every event stream's head has, besides what lets a page read it.
const EVENT_STREAM: [(HeaderName, HeaderValue); 3] = [
    (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    ),
    // `no-transform` and `X-Accel-Buffering` keep proxies from holding events back.
    (
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    ),
    (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    ),
];

/// The head of an answer that is an event stream, with the request's id where it has one.
pub(super) fn event_stream_head(
    extra: &[(HeaderName, HeaderValue)],
    request_id: Option<&HeaderValue>,
) -> Bytes {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nDate: {date}\r\n");
    let mut head = head.into_bytes();
    for (name, value) in EVENT_STREAM.iter().chain([&NO_SNIFF]).chain(extra) {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if let Some(id) = request_id {
        head.extend_from_slice(&[b"x-request-id: ", id.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}

/// An event stream's head without the stream.
pub(super) fn event_stream_answer() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    answer.headers_mut().extend(EVENT_STREAM);
    answer
}
