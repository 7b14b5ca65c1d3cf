//! Requests on the paths of dialects: connections opened, polls answered, all else refused.
//!
//! The rules are those of `/v1/`: origin, identity, sight and bounds are checked before anything is
//! upgraded, so that a client's own backoff grows. Only the shape of what is said is the dialect's.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use relay_bus::hub::Survey;
use relay_core::cursor::Cursor;
use relay_core::document::Status;
use relay_core::id::JobId;
use relay_core::topic::{Topic, TopicError};
use relay_wire::dialect::{Caller, Dialect, Endpoint, Found, Health, Input, Poll, Unsaid};
use relay_wire::websocket::Decoder;
use serde_json::json;
use tokio::time::timeout;

use super::Shard;
use super::accept::Takeover;
use super::connection::Transport;
use super::watch::{LOOKUP_WAIT, Stream, Watched, handshake};
use crate::answer::{self, ApiError};
use crate::identity::{Identity, Sight, credential};
use crate::origin::Standing;
use crate::refused::Refused;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// The longest request id that is taken over.
const MAX_REQUEST_ID: usize = 128;

/// One request, and what is said in every answer to it.
struct Visit<'a> {
    request: &'a Request<()>,
    peer: IpAddr,
    /// `None` where the origin is refused, or not checked yet.
    standing: Option<Standing>,
    dialect: &'a Arc<Dialect>,
    /// The file's own word for the route.
    view: &'a str,
    request_id: Option<HeaderValue>,
}

/// What a request on a dialect's path is for.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Stream(&'a Arc<Endpoint>),
    Poll(&'a Arc<Poll>),
    Health(&'a Arc<Health>),
}

/// What a poll is told.
struct Told {
    /// `None` where the client has it already.
    body: Option<Vec<u8>>,
    etag: String,
    /// Whether there is nothing more to come.
    over: bool,
    stale: bool,
}

impl Shard {
    /// Answers a request on a dialect's path.
    pub(super) async fn watch_foreign(
        self: &Rc<Self>,
        request: &Request<()>,
        peer: IpAddr,
        found: &Found<'_>,
    ) -> Watched {
        let headers = request.headers();
        if request.method() == Method::OPTIONS {
            let answer = match self.common.origins.preflight(headers) {
                Ok(answer) => answer.map(|()| Body::empty()),
                Err(refused) => ApiError::from(refused).into_answer(),
            };
            return Watched::Answer(answer);
        }
        let upgrades = headers.contains_key(header::UPGRADE);
        let asked = match (found.websocket, found.poll, found.health) {
            (Some(endpoint), None, None) => Asked::Stream(endpoint),
            (Some(endpoint), ..) if upgrades => Asked::Stream(endpoint),
            (_, Some(poll), _) => Asked::Poll(poll),
            (_, None, Some(health)) => Asked::Health(health),
            (None, None, None) => return Watched::Answer(ApiError::no_route().into_answer()),
        };
        let (dialect, route, view) = match asked {
            Asked::Stream(endpoint) => {
                let voice = &endpoint.voice;
                (&voice.dialect, &endpoint.path, voice.view.as_str())
            }
            Asked::Poll(poll) => (&poll.dialect, &poll.path, poll.view.as_str()),
            Asked::Health(health) => (&health.dialect, &health.path, ""),
        };
        let mut visit = Visit {
            request,
            peer,
            standing: None,
            dialect,
            view,
            request_id: dialect.request_id.then(|| request_id(headers)),
        };
        let mut watched = match self.common.origins.check(headers) {
            Ok(standing) => {
                visit.standing = Some(standing);
                let answered = match asked {
                    Asked::Stream(endpoint) => self.open_foreign(&visit, endpoint, found).await,
                    Asked::Poll(poll) => self.answer_foreign_poll(&visit, poll, found).await,
                    Asked::Health(health) => self.answer_health(&visit, health),
                };
                answered.unwrap_or_else(|error| self.refuse_foreign(&visit, error))
            }
            Err(refused) => self.refuse_foreign(&visit, refused.into()),
        };
        if let Watched::Answer(answer) = &mut watched {
            let status = answer.status().as_u16();
            let headers = answer.headers_mut();
            if let Some(standing) = visit.standing {
                let origins = &self.common.origins;
                headers.extend(origins.response_headers(standing, request.headers()));
            }
            headers.extend(visit.request_id.clone().map(|id| (REQUEST_ID, id)));
            self.common.telemetry.request(route, status);
        }
        watched
    }

    /// Opens a connection that speaks a dialect.
    async fn open_foreign(
        self: &Rc<Self>,
        visit: &Visit<'_>,
        endpoint: &Arc<Endpoint>,
        found: &Found<'_>,
    ) -> Result<Watched, ApiError> {
        let head = handshake(visit.request.headers())?;
        if visit.request.method() != Method::GET {
            return Err(ApiError::method_not_allowed("GET"));
        }
        if self.state.borrow().draining {
            return Err(ApiError::draining());
        }
        let identity = self.identify_foreign(visit)?.shared();
        let query = query_of(visit.request)?;
        let topics = endpoint
            .topics(&found.params, &query, identity.user.as_ref())
            .map_err(|(text, error)| bad_topic(&text, &error))?;
        self.may_watch_all(&identity, &topics).await?;
        let admitted = self
            .common
            .admissions
            .admit(identity.user.as_ref(), visit.peer);
        let admission =
            admitted.map_err(|refusal| ApiError::limit(refusal.code(), &refusal.to_string()))?;
        Ok(Watched::Stream(Box::new(Takeover {
            head: with_header(&head, visit.request_id.as_ref()),
            stream: Stream {
                transport: Transport::WebSocket(Decoder::default()),
                identity,
                admission,
                authenticated: true,
                topics,
                cursor: None,
                dialect: Some((endpoint.clone(), found.params.clone())),
            },
            early: Bytes::new(),
        })))
    }

    /// Answers a poll in the dialect's words.
    async fn answer_foreign_poll(
        &self,
        visit: &Visit<'_>,
        poll: &Arc<Poll>,
        found: &Found<'_>,
    ) -> Result<Watched, ApiError> {
        if !matches!(*visit.request.method(), Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed("GET, HEAD"));
        }
        let identity = self.identify_foreign(visit)?;
        let limits = self.limit_poll(visit, poll, &identity)?;
        let query = query_of(visit.request)?;
        let topic = poll.topic(&found.params, &query, identity.user.as_ref());
        let topic = topic.map_err(unsaid)?;
        let told = match &topic {
            Topic::Job(job) => self.poll_state(visit, poll, &identity, job).await?,
            Topic::User(_) | Topic::Group(_) => {
                self.poll_tally(visit, poll, &identity, &topic).await?
            }
        };
        let mut response = match told.body {
            Some(body) => answer::json(StatusCode::OK, body),
            None => answer::json(StatusCode::NOT_MODIFIED, Vec::new()),
        };
        let headers = response.headers_mut();
        headers.extend(limits.into_iter().flatten());
        // Cursors, topics and numbers are of an alphabet headers take.
        headers.extend(
            HeaderValue::from_str(&told.etag)
                .ok()
                .map(|etag| (header::ETAG, etag)),
        );
        if let Some(interval) = poll.interval.filter(|_| !told.over) {
            headers.insert(header::RETRY_AFTER, seconds(interval));
        }
        if told.stale {
            headers.insert("relay-stale", HeaderValue::from_static("true"));
        }
        Ok(Watched::Answer(response))
    }

    /// A job's latest state in the dialect's words.
    async fn poll_state(
        &self,
        visit: &Visit<'_>,
        poll: &Poll,
        identity: &Identity,
        job: &JobId,
    ) -> Result<Told, ApiError> {
        let lookup = timeout(LOOKUP_WAIT, self.common.hub.lookup(job)).await;
        let lookup = lookup.map_err(|_| ApiError::bus_unavailable())?;
        let Some(state) = lookup.state else {
            return Err(match lookup.stale {
                true => ApiError::bus_unavailable(),
                false => ApiError::unknown_job(job.as_str()),
            });
        };
        let topic = Topic::Job(job.clone());
        if !identity.may_watch(&topic, Some(&state.owner), state.parent.as_ref()) {
            return Err(ApiError::forbidden_topic(&topic));
        }
        let etag = format!("\"{}\"", Cursor::at(state.position(), [&topic]));
        let body = if has(visit.request.headers(), &etag) {
            None
        } else {
            let body = poll.body(&state);
            let body = Some(body).filter(|body| body.tag != 0);
            Some(body.ok_or_else(ApiError::mapping_failed)?.bytes.to_vec())
        };
        Ok(Told {
            body,
            etag,
            over: state.is_terminal(),
            stale: lookup.stale,
        })
    }

    /// How the jobs of a user or a group stand, in the dialect's words.
    async fn poll_tally(
        &self,
        visit: &Visit<'_>,
        poll: &Poll,
        identity: &Identity,
        topic: &Topic,
    ) -> Result<Told, ApiError> {
        // A count over all would tell of those that may not be seen, so each of them would have to be looked at.
        if identity.sight(topic) != Sight::Yes {
            return Err(ApiError::forbidden_topic(topic));
        }
        let survey = timeout(LOOKUP_WAIT, self.common.hub.survey(topic)).await;
        let survey = survey.ok().flatten();
        let survey = survey.ok_or_else(ApiError::bus_unavailable)?;
        let etag = tag_of(topic, &survey);
        let body = if has(visit.request.headers(), &etag) {
            None
        } else {
            let (tally, now) = (&survey.tally, self.clock.wall());
            let body = poll.summary(topic, tally, now);
            Some(body.ok_or_else(ApiError::mapping_failed)?)
        };
        Ok(Told {
            body,
            etag,
            over: false,
            stale: survey.stale,
        })
    }

    /// Says how the relay is, to anybody: who asks before logging in, and balancers, have no credential.
    fn answer_health(&self, visit: &Visit<'_>, health: &Health) -> Result<Watched, ApiError> {
        if !matches!(*visit.request.method(), Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed("GET, HEAD"));
        }
        let (hub, now) = (self.common.hub.stats(), self.clock.wall());
        let readiness = &self.common.readiness;
        let ready = readiness.is_ready(&hub);
        let input = Input::of(&json!({
            "ready": ready,
            "draining": readiness.is_draining(),
            "bus_up": !hub.stale,
            "version": env!("CARGO_PKG_VERSION"),
        }));
        let relay = Input::of(&json!({
            "at": now.to_rfc3339(),
            "ms": now.as_unix_micros() / 1000,
            "request_id": visit.request_id.as_ref().and_then(|id| id.to_str().ok()),
        }));
        let (Ok(input), Ok(relay)) = (input, relay) else {
            return Err(ApiError::mapping_failed());
        };
        let body = health.body(&input, &relay);
        let body = body.ok_or_else(ApiError::mapping_failed)?;
        let status = match ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        Ok(Watched::Answer(answer::json(status, body)))
    }

    /// What the path's rate says of this request, as headers.
    fn limit_poll(
        &self,
        visit: &Visit<'_>,
        poll: &Poll,
        identity: &Identity,
    ) -> Result<Option<[(HeaderName, HeaderValue); 3]>, ApiError> {
        let Some(per_minute) = poll.per_minute else {
            return Ok(None);
        };
        let caller = match &identity.user {
            Some(user) => Caller::User(user.clone()),
            None => Caller::Address(visit.peer),
        };
        let now = self.clock.now();
        let allowance = self.common.polls.count(&poll.path, caller, per_minute, now);
        let reset = allowance.reset.as_secs_f64().ceil() as u64;
        if !allowance.granted {
            let seconds = u32::try_from(reset).unwrap_or(60);
            return Err(ApiError::rate_limited(per_minute, seconds));
        }
        let at = self.clock.wall().as_unix_micros() / 1_000_000;
        let at = u64::try_from(at).unwrap_or(0) + reset;
        Ok(Some([
            (LIMIT, HeaderValue::from(per_minute)),
            (REMAINING, HeaderValue::from(allowance.remaining)),
            (RESET, HeaderValue::from(at)),
        ]))
    }

    fn identify_foreign(&self, visit: &Visit<'_>) -> Result<Identity, ApiError> {
        let name = visit.dialect.cookie.as_ref().unwrap_or(&self.common.cookie);
        let cookie = visit
            .standing
            .is_some_and(Standing::may_use_cookie)
            .then_some(name.as_str());
        let found = credential(visit.request.headers(), visit.request.uri(), cookie)?;
        Ok(self
            .common
            .identity
            .identify(found.as_ref(), self.clock.wall())?)
    }

    /// The refusal in the dialect's shape, with everybody's status and headers.
    fn refuse_foreign(&self, visit: &Visit<'_>, error: ApiError) -> Watched {
        if visit.request.headers().contains_key(header::UPGRADE) {
            self.common.telemetry.refused(error.code());
        }
        let now = self.clock.wall();
        let input = Input::of(&json!({
            "status": error.status().as_u16(),
            "code": error.code(),
            "message": error.message(),
            "retry_after": error.retry_after(),
        }));
        let relay = Input::of(&json!({
            "at": now.to_rfc3339(),
            "ms": now.as_unix_micros() / 1000,
            "view": visit.view,
            "request_id": visit.request_id.as_ref().and_then(|id| id.to_str().ok()),
        }));
        let body = match (input, relay) {
            (Ok(input), Ok(relay)) => visit.dialect.refusal(&input, &relay),
            _ => None,
        };
        let limit = (error.code() == "rate_limited").then(|| error.retry_after());
        let mut response = error.into_answer();
        if let Some(seconds) = limit.flatten() {
            let headers = response.headers_mut();
            headers.insert(REMAINING, HeaderValue::from(0));
            let at = now.as_unix_micros() / 1_000_000 + i64::from(seconds);
            headers.insert(RESET, HeaderValue::from(at));
        }
        if let Some(body) = body {
            *response.body_mut() = Body::from(body);
        }
        Watched::Answer(response)
    }
}

fn query_of(request: &Request<()>) -> Result<Vec<(String, String)>, ApiError> {
    let query = request.uri().query().unwrap_or("");
    serde_urlencoded::from_str(query)
        .map_err(|_| ApiError::bad_request("bad_query", "the query string cannot be read"))
}

fn bad_topic(text: &str, error: &TopicError) -> ApiError {
    let text: String = text.chars().take(160).collect();
    ApiError::bad_request("bad_topic", &format!("{text:?} is no topic: {error}"))
}

fn unsaid(why: Unsaid) -> ApiError {
    match why {
        Unsaid::User => {
            let message = "this path answers for whoever asks, and nobody here knows who that is: the relay runs without tokens (auth.mode)";
            Refused::unauthorized("unauthenticated", message).into()
        }
        Unsaid::Query(name) => {
            let message = format!("the query has no {name}, which says what is asked about");
            ApiError::bad_request("no_topic", &message)
        }
        Unsaid::Bad(text, error) => bad_topic(&text, &error),
    }
}

/// The tag of how a topic's jobs stand: whoever has it has the same counts of the same jobs. A weak one, as
/// the time is not in it.
fn tag_of(topic: &Topic, survey: &Survey) -> String {
    let tally = &survey.tally;
    let counts = Status::ALL.map(|status| tally.count(status).to_string());
    let (counts, progress) = (counts.join("."), tally.progress().unwrap_or_default());
    format!("W/\"{:x}-{topic}-{counts}-{progress}\"", survey.epoch.get())
}

/// Whether a client shows that it has what a tag stands for.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let seen = headers.get(header::IF_NONE_MATCH);
    let seen = seen.and_then(|value| value.to_str().ok());
    seen.is_some_and(|seen| seen.split(',').any(|each| bare(each) == bare(etag)))
}

/// The client's request id, if it is one, or a new one.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_id = |id: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.chars().all(known)
    };
    let given = headers.get(REQUEST_ID);
    let given = given.filter(|value| value.to_str().is_ok_and(is_id));
    given.cloned().unwrap_or_else(|| {
        let made = format!("{:032x}", fastrand::u128(..));
        // Hexadecimal digits are of an alphabet headers take.
        HeaderValue::from_str(&made).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

/// The head of a handshake's answer with one header more.
pub(super) fn with_header(head: &Bytes, request_id: Option<&HeaderValue>) -> Bytes {
    let Some(id) = request_id else {
        return head.clone();
    };
    let end = head.len() - b"\r\n".len();
    let line = [b"x-request-id: ", id.as_bytes(), b"\r\n\r\n"].concat();
    Bytes::from([&head[..end], &line].concat())
}

fn seconds(time: Duration) -> HeaderValue {
    HeaderValue::from(time.as_secs().max(1))
}
