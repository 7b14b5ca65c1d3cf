//! Requests on the paths of dialects: connections opened, polls answered, all else refused.
//!
//! The rules are those of `/v1/`: origin, identity, sight and bounds are checked before anything is
//! upgraded, so that a client's own backoff grows. Only the shape of what is said is the dialect's.
//!
//! Invariant: a health path is the only one that answers somebody who was not identified.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use relay_bus::hub::Survey;
use relay_core::cursor::Cursor;
use relay_core::document::Status;
use relay_core::id::Named;
use relay_core::publication::Publication;
use relay_core::topic::Topic;
use relay_core::watcher::sight::{Sight, Viewer as _};
use relay_wire::dialect::{
    Answering, BadTopic, Carrier, Dialect, Endpoint, Found, Health, Input, NoTopic, Past, Poll,
};
use relay_wire::speaker::Speaker;
use relay_wire::target;
use serde_json::json;
use tokio::time::timeout;

use super::accept::Departure;
use super::gate::{Arrival, Guest, Head, LOOKUP_WAIT, READ, Route};
use super::resume::Resume;
use super::watch::{event_stream_answer, event_stream_head};
use super::{Door, Outcome, handshake};
use crate::answer::{self, ApiError, Escort};
use crate::headers::{IfNoneMatch, asks_for_websocket};
use crate::identity::Identity;
use crate::poll_limits::Caller;
use crate::rates::Rate;
use crate::refused::Refused;
use crate::shard::Opening;
use crate::whose::{self, Meant};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// One request, and what its answer is shaped by.
struct Call<'a> {
    request: &'a Request<()>,
    dialect: &'a Arc<Dialect>,
    /// The file's own word for the route.
    view: &'a str,
    request_id: Option<HeaderValue>,
}

/// What a request on a dialect's path is for.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Stream(&'a Arc<Endpoint>),
    Poll(&'a Arc<Poll>),
    Health(&'a Arc<Health>),
}

impl<'a> Target<'a> {
    /// What a request is for, by what its path leads to and whether it asks for a WebSocket.
    pub(super) fn of(headers: &HeaderMap, found: &Found<'a>) -> Option<Self> {
        let upgrades = asks_for_websocket(headers);
        match (found.websocket, found.answer) {
            (Some(endpoint), None) => Some(Self::Stream(endpoint)),
            (Some(endpoint), Some(_)) if upgrades => Some(Self::Stream(endpoint)),
            (_, Some(Answering::Stream(endpoint))) => Some(Self::Stream(endpoint)),
            (_, Some(Answering::Poll(poll))) => Some(Self::Poll(poll)),
            (_, Some(Answering::Health(health))) => Some(Self::Health(health)),
            (None, None) => None,
        }
    }

    fn dialect(self) -> &'a Arc<Dialect> {
        match self {
            Self::Stream(endpoint) => &endpoint.voice.dialect,
            Self::Poll(poll) => &poll.dialect,
            Self::Health(health) => &health.dialect,
        }
    }

    fn path(self) -> &'a str {
        match self {
            Self::Stream(endpoint) => &endpoint.path,
            Self::Poll(poll) => &poll.path,
            Self::Health(health) => &health.path,
        }
    }

    fn view(self) -> &'a str {
        match self {
            Self::Stream(endpoint) => &endpoint.voice.view,
            Self::Poll(poll) => &poll.view,
            Self::Health(_) => "",
        }
    }
}

/// What a poll is told.
struct PollAnswer {
    status: StatusCode,
    /// `None` where the client has it already.
    body: Option<Vec<u8>>,
    /// None where nothing is known that a tag could stand for.
    etag: Option<String>,
    /// Whether there is nothing more to come.
    over: bool,
    stale: bool,
}

impl Door {
    /// Answers a request on a dialect's path.
    pub(super) async fn dialect(
        &self,
        request: &Request<()>,
        asked: Target<'_>,
        found: &Found<'_>,
    ) -> Outcome {
        let dialect = asked.dialect();
        let route = Route::dialect(asked.path(), dialect.request_id);
        let (visit, guest) = match self.gate.receive(Head::of(request), route) {
            Arrival::Preflight(answer) => return Outcome::Answer(answer),
            Arrival::Visit(visit, guest) => (visit, guest),
        };
        let call = Call {
            request,
            dialect,
            view: asked.view(),
            request_id: visit.request_id().cloned(),
        };
        let answered = match (guest, asked) {
            (Ok(guest), Target::Stream(endpoint)) => {
                self.open_dialect(&call, guest, (endpoint, found), visit.cors())
                    .await
            }
            (Ok(guest), Target::Poll(poll)) => {
                self.answer_dialect_poll(&call, guest, poll, found).await
            }
            (Ok(_), Target::Health(health)) => self.answer_health(&call, health),
            (Err(refused), _) => Err(refused),
        };
        self.gate
            .conclude(visit, answered, |error| self.refusal(&call, error))
    }

    /// Opens a connection that speaks a dialect.
    async fn open_dialect(
        &self,
        call: &Call<'_>,
        guest: Guest,
        (endpoint, found): (&Arc<Endpoint>, &Found<'_>),
        cors: &[(HeaderName, HeaderValue)],
    ) -> Result<Outcome, ApiError> {
        let only_head = is_head(call.request)?;
        let headers = call.request.headers();
        let is_socket = endpoint.voice.carrier == Carrier::WebSocket;
        let request_id = call.request_id.as_ref();
        let head = match is_socket {
            true if only_head => return Err(ApiError::upgrade_required()),
            true => handshake::answer(Head::of(call.request), &endpoint.subprotocols, request_id)?,
            false => event_stream_head(cors, request_id),
        };
        if self.shard.is_draining() {
            return Err(ApiError::draining());
        }
        self.prepare(call, guest).await?;
        let query = query_of(call.request);
        let identity = match is_socket && shows_itself_later(call.dialect, &query) {
            true => {
                let cookie = call.dialect.cookie.as_deref();
                let head = Head::of(call.request);
                self.gate.identify_if_shown(guest, head, cookie)?
            }
            false => Some(self.identify_for(call, guest)?),
        };
        let authenticated = identity.is_some();
        let identity = identity.unwrap_or_else(Identity::nobody).shared();
        let (now, params) = (self.clock.now(), found.params.clone());
        let mut speaker = Speaker::dialect(endpoint.clone(), params, now);
        if !authenticated {
            // What is watched without being asked for may depend on who the client is.
            if let Some(speech) = speaker.speech_mut() {
                speech.authenticates_later(query);
            }
            self.gate.allow(guest, Rate::Connections, None)?;
            let admission = self.gate.admit(guest, None)?;
            let opening = Opening::new(speaker, identity, admission).unauthenticated();
            return Ok(Outcome::Leave(Departure::begin(head, opening)));
        }
        let topics = endpoint
            .topics(&found.params, &query, identity.user.as_ref())
            .map_err(|error| bad_topic(&error))?;
        if !is_socket && topics.is_empty() {
            let message = "the request does not say what to watch";
            return Err(ApiError::bad_request("no_topic", message));
        }
        self.gate.may_watch(&identity, &topics).await?;
        let user = identity.user.as_ref();
        self.gate.allow(guest, Rate::Connections, user)?;
        let admission = self.gate.admit(guest, user)?;
        let cursor = match is_socket {
            true => None,
            false => left_off(headers, &query)?,
        };
        if only_head {
            return Ok(Outcome::Answer(event_stream_answer()));
        }
        let opening = Opening::new(speaker, identity, admission).watching(topics, cursor);
        Ok(Outcome::Leave(Departure::begin(head, opening)))
    }

    /// Answers a poll in the dialect's words.
    async fn answer_dialect_poll(
        &self,
        call: &Call<'_>,
        guest: Guest,
        poll: &Arc<Poll>,
        found: &Found<'_>,
    ) -> Result<Outcome, ApiError> {
        is_head(call.request)?;
        self.prepare(call, guest).await?;
        let identity = self.identify_for(call, guest)?;
        let user = identity.user.as_ref();
        self.gate.allow(guest, Rate::Reads, user)?;
        let limits = self.limit_poll(call, poll, &identity)?;
        let query = query_of(call.request);
        let topic = poll.topic(&found.params, &query, identity.user.as_ref());
        let topic = topic.map_err(no_topic)?;
        let told = match &topic {
            Topic::Job(job) => self.poll_state(call, poll, &identity, job).await?,
            Topic::User(_) | Topic::Group(_) => {
                self.poll_many(call, poll, &identity, &topic).await?
            }
        };
        let mut response = match told.body {
            Some(body) => answer::json(told.status, body),
            None => answer::json(StatusCode::NOT_MODIFIED, Vec::new()),
        };
        let headers = response.headers_mut();
        headers.extend(limits.into_iter().flatten());
        // Cursors, topics and numbers are of an alphabet headers take.
        let etag = told.etag.and_then(|etag| HeaderValue::from_str(&etag).ok());
        headers.extend(etag.map(|etag| (header::ETAG, etag)));
        if let Some(interval) = poll.interval.filter(|_| !told.over) {
            headers.insert(header::RETRY_AFTER, seconds(interval));
        }
        if told.stale {
            headers.insert("relay-stale", HeaderValue::from_static("true"));
        }
        response.extensions_mut().insert(Escort::of(&identity));
        Ok(Outcome::Answer(response))
    }

    /// A job's latest state in the dialect's words.
    async fn poll_state(
        &self,
        call: &Call<'_>,
        poll: &Poll,
        identity: &Identity,
        named: &Named,
    ) -> Result<PollAnswer, ApiError> {
        let asked = Topic::Job(named.clone());
        let unknown = || {
            let unknown = self.unknown(poll, identity, &asked)?;
            unknown.ok_or_else(|| ApiError::unknown_job(named.id.as_str()))
        };
        let (job, lookup) = match whose::job(&self.node.hub, named, identity, LOOKUP_WAIT).await? {
            Meant::Job(job, lookup) => (job, lookup),
            Meant::Unknown { stale: true } => return Err(ApiError::bus_unavailable()),
            Meant::Unknown { stale: false } => return unknown(),
        };
        let Some(state) = lookup.state else {
            if lookup.stale || lookup.removed.is_some() {
                return Err(ApiError::no_state(&lookup, &asked, identity));
            }
            return unknown();
        };
        if !identity.may_watch(&asked, Some(&state.owner), state.parent.as_ref()) {
            return Err(ApiError::forbidden_topic(&asked));
        }
        let topic = Topic::job(job.clone());
        let past = poll.reads_milestones().then(|| {
            let (milestones, is_cut) = self.node.hub.milestones(&job);
            Past::new(milestones, is_cut)
        });
        let mut position = state.position();
        // A tag stands for all that the body was made of.
        if let Some(last) = past.as_ref().and_then(Past::last) {
            position.seq = position.seq.max(last);
        }
        let etag = format!("\"{}\"", Cursor::at(position, [&topic]));
        let body = if has(call.request.headers(), &etag) {
            None
        } else {
            let body = poll.body(&state, past.as_ref());
            let body = Some(body).filter(|body| body.tag != 0);
            Some(body.ok_or_else(ApiError::mapping_failed)?.bytes.to_vec())
        };
        Ok(PollAnswer {
            status: StatusCode::OK,
            body,
            etag: Some(etag),
            over: state.is_terminal(),
            stale: lookup.stale,
        })
    }

    /// The answer where nothing is known of a topic, if the dialect has one. Whether there is such a job is nobody
    /// else's affair: a client that could not watch it is refused.
    fn unknown(
        &self,
        poll: &Poll,
        identity: &Identity,
        topic: &Topic,
    ) -> Result<Option<PollAnswer>, ApiError> {
        if identity.sight(topic) == Sight::No {
            return Err(ApiError::forbidden_topic(topic));
        }
        let Some((status, body)) = poll.unknown(topic, self.clock.wall()) else {
            return Ok(None);
        };
        Ok(Some(PollAnswer {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
            body: Some(body.ok_or_else(ApiError::mapping_failed)?),
            etag: None,
            over: false,
            stale: false,
        }))
    }

    /// How the jobs of a user or a group stand, taken together or one by one, in the dialect's words.
    async fn poll_many(
        &self,
        call: &Call<'_>,
        poll: &Poll,
        identity: &Identity,
        topic: &Topic,
    ) -> Result<PollAnswer, ApiError> {
        let meant = whose::group(&self.node.hub, topic, identity, LOOKUP_WAIT).await?;
        if identity.sight(&meant) != Sight::Yes {
            return Err(ApiError::forbidden_topic(topic));
        }
        let survey = timeout(LOOKUP_WAIT, self.node.hub.survey(&meant)).await;
        let survey = survey.ok().flatten();
        let survey = survey.ok_or_else(ApiError::bus_unavailable)?;
        let (tally, now) = (&survey.tally, self.clock.wall());
        if tally.total() == 0
            && !survey.stale
            && let Some(answer) = self.unknown(poll, identity, topic)?
        {
            return Ok(answer);
        }
        let states = poll.list.map(|limit| self.node.hub.states(&meant, limit));
        let etag = tag_of(&meant, &survey, states.as_deref());
        let body = if has(call.request.headers(), &etag) {
            None
        } else {
            let body = match &states {
                Some(states) => poll.listing(topic, states, tally.total(), now),
                None => poll.summary(topic, tally, now),
            };
            Some(body.ok_or_else(ApiError::mapping_failed)?)
        };
        Ok(PollAnswer {
            status: StatusCode::OK,
            body,
            etag: Some(etag),
            over: false,
            stale: survey.stale,
        })
    }

    /// Says how the relay is, to anybody: a page before its login and a load balancer have no credential.
    fn answer_health(&self, call: &Call<'_>, health: &Health) -> Result<Outcome, ApiError> {
        is_head(call.request)?;
        let (hub, now) = (self.node.hub.stats(), self.clock.wall());
        let readiness = &self.node.readiness;
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
            "request_id": call.request_id.as_ref().and_then(|id| id.to_str().ok()),
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
        Ok(Outcome::Answer(answer::json(status, body)))
    }

    /// What the path's rate says of this request, as headers.
    fn limit_poll(
        &self,
        call: &Call<'_>,
        poll: &Poll,
        identity: &Identity,
    ) -> Result<Option<[(HeaderName, HeaderValue); 3]>, ApiError> {
        let Some(per_minute) = poll.per_minute else {
            return Ok(None);
        };
        let address = Head::of(call.request).client().address;
        let caller = Caller::of(identity.user.as_ref(), address);
        let now = self.clock.now();
        let allowance = self.node.polls.count(&poll.path, caller, per_minute, now);
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

    async fn prepare(&self, call: &Call<'_>, guest: Guest) -> Result<(), Refused> {
        let cookie = call.dialect.cookie.as_deref();
        let head = Head::of(call.request);
        self.gate.prepare(guest, head, cookie).await
    }

    fn identify_for(&self, call: &Call<'_>, guest: Guest) -> Result<Identity, Refused> {
        let cookie = call.dialect.cookie.as_deref();
        self.gate.identify(guest, Head::of(call.request), cookie)
    }

    /// The refusal in the dialect's shape, with everybody's status and headers.
    fn refusal(&self, call: &Call<'_>, error: ApiError) -> Response<Body> {
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
            "view": call.view,
            "request_id": call.request_id.as_ref().and_then(|id| id.to_str().ok()),
        }));
        let body = match (input, relay) {
            (Ok(input), Ok(relay)) => call.dialect.refusal(&input, &relay),
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
        response
    }
}

/// Whether a request wants the head of the answer alone.
///
/// # Errors
/// 405 for a request that does not read.
fn is_head(request: &Request<()>) -> Result<bool, ApiError> {
    match *request.method() {
        Method::GET => Ok(false),
        Method::HEAD => Ok(true),
        _ => Err(ApiError::method_not_allowed(READ)),
    }
}

fn query_of(request: &Request<()>) -> Vec<(String, String)> {
    target::pairs(request.uri().query().unwrap_or_default())
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect()
}

fn bad_topic(error: &BadTopic) -> ApiError {
    ApiError::bad_request("bad_topic", &error.to_string())
}

fn no_topic(error: NoTopic) -> ApiError {
    match error {
        NoTopic::User => Refused::unauthorized("unauthenticated", error.to_string()).into(),
        NoTopic::Query(_) => ApiError::bad_request("no_topic", &error.to_string()),
        NoTopic::Bad(error) => bad_topic(&error),
    }
}

/// Whether a client that shows no credential may show it by its first message.
fn shows_itself_later(dialect: &Dialect, query: &[(String, String)]) -> bool {
    let asks = |(name, value): &(String, String)| name == "auth" && value == "message";
    dialect.authenticates_by_message || query.iter().any(asks)
}

/// Where a client of an event stream left off.
fn left_off(headers: &HeaderMap, query: &[(String, String)]) -> Result<Option<Cursor>, ApiError> {
    let mut resume = Resume::of(headers);
    for (key, value) in query {
        resume
            .read(key, value)
            .map_err(|error| ApiError::bad_request("bad_cursor", &error.to_string()))?;
    }
    Ok(resume.place())
}

/// The tag of how a topic's jobs stand: two clients that have it have the same counts of the same jobs, and the same
/// states of those that are listed. A weak one, as the time is not in it.
fn tag_of(topic: &Topic, survey: &Survey, states: Option<&[Arc<Publication>]>) -> String {
    let tally = &survey.tally;
    let counts = Status::ALL.map(|status| tally.count(status).to_string());
    let (counts, progress) = (counts.join("."), tally.progress().unwrap_or_default());
    let listed = states.map(|states| {
        let mut hasher = DefaultHasher::new();
        for state in states {
            (state.job.as_str(), state.seq).hash(&mut hasher);
        }
        format!("-{:x}", hasher.finish())
    });
    let (epoch, listed) = (survey.epoch.get(), listed.unwrap_or_default());
    format!("W/\"{epoch:x}-{topic}-{counts}-{progress}{listed}\"")
}

/// Whether a client shows that it has what a tag stands for.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let bare = etag.trim_start_matches("W/").trim_matches('"');
    IfNoneMatch::of(headers).has(|tag| tag == bare)
}

fn seconds(time: Duration) -> HeaderValue {
    HeaderValue::from(time.as_secs().max(1))
}
