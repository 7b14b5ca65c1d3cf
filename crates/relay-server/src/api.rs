//! Everything on the public listener that is not a stream: a job's state, and publishing over HTTP.
//!
//! Handlers know the hub and the client's identity; they know no sockets and no NATS.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, FromRequestParts, MatchedPath, Path, Request, State};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use relay_bus::hub::{PublishRequest, Published, RequestKey, Verb};
use relay_bus::seam::{StoreError, What};
use relay_core::cursor::Cursor;
use relay_core::id::{Name, Named};
use relay_core::limits::Resource;
use relay_core::position::Position;
use relay_core::publication::Body as Content;
use relay_core::topic::Topic;
use relay_core::watcher::sight::Viewer as _;
use relay_wire::target;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::admission::Share;
use crate::answer::{self, ApiError, Escort};
use crate::bodies::{self, Unread};
use crate::door::gate::{Arrival, Gate, Guest, Head, Outcome, Route};
use crate::headers::{IfNoneMatch, content_encoding};
use crate::identity::Identity;
use crate::identity::ticket::LIFETIME;
use crate::node::Node;
use crate::rates::Rate;
use crate::whose::{self, Meant};

/// How long a request waits for the bus.
const BUS_WAIT: Duration = Duration::from_secs(5);
/// Lines in a batch.
const BATCH_LINES: usize = 10_000;
/// The longest `Idempotency-Key`.
const KEY_LENGTH: usize = 255;
/// Seconds a poller should wait before it asks for a running job again.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("2");

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// The node.
    pub node: Arc<Node>,
}

type Answer = Result<Response<Body>, ApiError>;

/// The routes.
pub(crate) fn router(api: Api) -> Router {
    let gate = Gate::new(api.node.clone());
    Router::new()
        .route(
            "/v1/jobs/{id}",
            get(state).post(put).patch(patch).delete(remove),
        )
        .route("/v1/jobs/{id}/milestones/{name}", post(milestone))
        .route("/v1/publish", post(batch))
        .route("/v1/tickets", post(ticket))
        .method_not_allowed_fallback(async |path: Option<MatchedPath>| {
            ApiError::method_not_allowed(methods(path.as_ref().map(MatchedPath::as_str)))
        })
        .fallback(async || ApiError::no_route())
        .layer(middleware::from_fn_with_state(gate, admit))
        .with_state(api)
}

/// The methods that a route takes; none where there is no such route.
fn methods(route: Option<&str>) -> &'static str {
    match route {
        Some("/v1/jobs/{id}") => "GET, HEAD, POST, PATCH, DELETE, OPTIONS",
        Some(_) => "POST, OPTIONS",
        None => "",
    }
}

/// Leads every request through the gate, and on to its handler, with the client's identity.
async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response<Body> {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let label = route.as_ref().map_or("other", MatchedPath::as_str);
    let allow = methods(route.as_ref().map(MatchedPath::as_str));
    let (visit, guest) = match gate.receive(Head::of(&request), Route::api(label, allow)) {
        Arrival::Preflight(answer) => return answer,
        Arrival::Visit(visit, guest) => (visit, guest),
    };
    let rate = match *request.method() {
        Method::GET | Method::HEAD => Rate::Reads,
        _ => Rate::Publishes,
    };
    let identified = match guest {
        Ok(guest) => {
            let identified = identify(&gate, guest, Head::of(&request)).await;
            identified.and_then(|identity| {
                gate.allow(guest, rate, identity.user.as_ref())?;
                Ok(identity)
            })
        }
        Err(refused) => Err(refused),
    };
    let answered: Result<Outcome, ApiError> = match identified {
        Ok(identity) => {
            let escort = Escort::of(&identity);
            request.extensions_mut().insert(Arc::new(identity));
            let mut answer = next.run(request).await;
            answer.extensions_mut().insert(escort);
            Ok(Outcome::Answer(answer))
        }
        Err(refused) => Err(refused),
    };
    let Outcome::Answer(answer) = gate.conclude(visit, answered, ApiError::into_answer);
    answer
}

/// `POST /v1/tickets`: a word that opens one connection, for a URL.
async fn ticket(State(api): State<Api>, Extension(identity): Extension<Arc<Identity>>) -> Answer {
    let now = api.node.hub.clock().wall();
    let ticket = api.node.identity.ticket(&identity, now)?;
    let answer = serde_json::json!({ "ticket": ticket, "expires_in": LIFETIME.as_secs() });
    let mut answer = answer::json(StatusCode::CREATED, answer.to_string().into_bytes());
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

async fn identify(gate: &Gate, guest: Guest, head: Head<'_>) -> Result<Identity, ApiError> {
    gate.prepare(guest, head, None).await?;
    Ok(gate.identify(guest, head, None)?)
}

/// `GET /v1/jobs/{id}`: the latest state.
async fn state(
    State(api): State<Api>,
    Extension(identity): Extension<Arc<Identity>>,
    InPath(id): InPath<String>,
    whose: Whose,
    headers: HeaderMap,
) -> Answer {
    let id = name("job id", &id)?;
    let owner = whose.name()?;
    let named = Named { owner, id };
    let asked = Topic::Job(named.clone());
    let meant = whose::job(&api.node.hub, &named, &identity, BUS_WAIT).await?;
    let (job, lookup) = match meant {
        Meant::Job(job, lookup) => (job, lookup),
        Meant::Unknown { stale: true } => return Err(ApiError::bus_unavailable()),
        Meant::Unknown { stale: false } => return Err(ApiError::unknown_job(named.id.as_str())),
    };
    let Some(state) = &lookup.state else {
        return Err(ApiError::no_state(&lookup, &asked, &identity));
    };
    if !identity.may_watch(&asked, Some(&state.owner), state.parent.as_ref()) {
        return Err(ApiError::forbidden_topic(&asked));
    }
    let topic = Topic::job(job);
    let cursor = Cursor::at(state.position(), [&topic]);
    let has = held(&headers, &topic, &cursor);
    let mut response = match (&state.body, &has) {
        (Content::State { json, .. }, None) => answer::json(StatusCode::OK, json.to_vec()),
        _ => answer::json(StatusCode::NOT_MODIFIED, Vec::new()),
    };
    let etag = format!("\"{}\"", has.unwrap_or_else(|| cursor.to_string()));
    let headers = response.headers_mut();
    // Cursors are of an alphabet headers take.
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if !state.is_terminal() {
        headers.insert(header::RETRY_AFTER, ASK_AGAIN);
    }
    if lookup.stale {
        headers.insert("relay-stale", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The tag by which a client shows that it has this state, or a newer one of a node that is ahead of this.
fn held(headers: &HeaderMap, topic: &Topic, now: &Cursor) -> Option<String> {
    let tags = match IfNoneMatch::of(headers) {
        IfNoneMatch::Anything => return Some(now.to_string()),
        IfNoneMatch::Tags(tags) => tags,
    };
    tags.into_iter().find(|tag| {
        Cursor::parse(tag).is_ok_and(|cursor| {
            cursor.position.epoch == now.position.epoch
                && cursor
                    .since(topic)
                    .is_some_and(|since| since >= now.position.seq)
        })
    })
}

/// What the path names, decoded.
struct InPath<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Path::from_request_parts(parts, state).await;
        // The routes have as many parameters as their handlers ask for.
        let Path(named) = read.map_err(|_| {
            let message = "what the path names is not UTF-8 once it is decoded";
            ApiError::bad_request("bad_name", message)
        })?;
        Ok(Self(named))
    }
}

/// Whose job it is, as far as the query says.
struct Whose {
    owner: Option<String>,
}

impl Whose {
    fn name(&self) -> Result<Option<Name>, ApiError> {
        let owner = self.owner.as_deref();
        owner.map(|owner| name("owner", owner)).transpose()
    }
}

impl<S: Sync> FromRequestParts<S> for Whose {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let mut owners = target::pairs(query).filter(|(key, _)| key == "owner");
        let owner = owners.next().map(|(_, owner)| owner.into_owned());
        if owners.next().is_some() {
            let message = "owner is in the query more than once; a job has one owner";
            return Err(ApiError::bad_request("bad_query", message));
        }
        Ok(Self { owner })
    }
}

#[derive(Debug, Serialize)]
struct Accepted {
    cursor: String,
}

/// `POST /v1/jobs/{id}`: a complete state.
async fn put(
    state: State<Api>,
    identity: Extension<Arc<Identity>>,
    InPath(id): InPath<String>,
    whose: Whose,
    request: Request,
) -> Answer {
    let verb = Verb::Put(What::State);
    publish_one(state, identity, &id, whose, verb, request).await
}

/// `PATCH /v1/jobs/{id}`: a merge patch onto the last state.
async fn patch(
    state: State<Api>,
    identity: Extension<Arc<Identity>>,
    InPath(id): InPath<String>,
    whose: Whose,
    request: Request,
) -> Answer {
    publish_one(state, identity, &id, whose, Verb::Patch, request).await
}

/// `DELETE /v1/jobs/{id}`: takes the job away.
async fn remove(
    state: State<Api>,
    identity: Extension<Arc<Identity>>,
    InPath(id): InPath<String>,
    whose: Whose,
    request: Request,
) -> Answer {
    publish_one(state, identity, &id, whose, Verb::Remove, request).await
}

/// `POST /v1/jobs/{id}/milestones/{name}`: a named event.
async fn milestone(
    state: State<Api>,
    identity: Extension<Arc<Identity>>,
    InPath((id, milestone)): InPath<(String, String)>,
    whose: Whose,
    request: Request,
) -> Answer {
    let milestone = milestone_name(&milestone)?;
    let verb = Verb::Put(What::Milestone(milestone));
    publish_one(state, identity, &id, whose, verb, request).await
}

async fn publish_one(
    State(api): State<Api>,
    Extension(identity): Extension<Arc<Identity>>,
    id: &str,
    whose: Whose,
    verb: Verb,
    request: Request,
) -> Answer {
    let job = name("job id", id)?;
    let key = key(request.headers(), &identity)?;
    let (payload, _share) = body(&api, &identity, request, api.node.limits.update_bytes).await?;
    let wanted = PublishRequest {
        job,
        owner: whose.name()?,
        caller: identity.own().cloned(),
        verb,
        payload,
        key,
    };
    let published = publish(&api, &identity, wanted).await?;
    let cursor = cursor_after(published.at, [&Topic::job(published.name)]);
    Ok(answer::json(
        StatusCode::ACCEPTED,
        to_json(&Accepted { cursor }),
    ))
}

/// One line of a batch, as far as it says where the rest goes.
#[derive(Debug, Deserialize)]
struct Line {
    job_id: Option<String>,
    owner: Option<String>,
    milestone: Option<String>,
    data: Option<Box<serde_json::value::RawValue>>,
}

#[derive(Debug, Serialize)]
struct RefusedLine {
    /// From 1.
    line: usize,
    #[serde(flatten)]
    error: ApiError,
}

#[derive(Debug, Default, Serialize)]
struct BatchAnswer {
    accepted: usize,
    refused: Vec<RefusedLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// `POST /v1/publish`: updates of many jobs, one JSON object a line. A bad line harms no other.
async fn batch(
    State(api): State<Api>,
    Extension(identity): Extension<Arc<Identity>>,
    request: Request,
) -> Answer {
    let key = key(request.headers(), &identity)?;
    let (lines, _share) = body(&api, &identity, request, api.node.limits.batch_bytes()).await?;
    // Another batch under the same key is rejected as a whole; the same one goes through, line by line.
    let _underway = match &key {
        Some(key) => {
            let claimed = timeout(BUS_WAIT, api.node.hub.claim_batch(key, &lines)).await;
            let claimed = claimed.map_err(|_| ApiError::bus_unavailable())?;
            Some(claimed.map_err(StoreError::from)?)
        }
        None => None,
    };
    let mut answer = BatchAnswer::default();
    let mut last = None;
    let lines = lines
        .split(|byte| *byte == b'\n')
        .map(|line| lines.slice_ref(line));
    let lines = lines
        .enumerate()
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace));
    for (at, line) in lines {
        let published = match at {
            0..BATCH_LINES => {
                let key = key.clone().map(|key| key.part(at));
                publish_line(&api, &identity, line, key).await
            }
            _ => Err(ApiError::bad_request(
                "too_many_lines",
                "a batch has at most 10000 lines",
            )),
        };
        match published {
            Ok(published) => {
                answer.accepted += 1;
                let is_newest = last.is_none_or(|last: Position| last.seq <= published.seq);
                if is_newest {
                    last = Some(published);
                }
            }
            Err(error) => {
                answer.refused.push(RefusedLine {
                    line: at + 1,
                    error,
                });
                if at >= BATCH_LINES {
                    break;
                }
            }
        }
    }
    answer.cursor = last.map(|position| cursor_after(position, []));
    let status = match (answer.accepted, answer.refused.is_empty()) {
        (0, false) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::ACCEPTED,
    };
    Ok(answer::json(status, to_json(&answer)))
}

async fn publish_line(
    api: &Api,
    identity: &Identity,
    line: Bytes,
    key: Option<RequestKey>,
) -> Result<Position, ApiError> {
    let head: Line = serde_json::from_slice(&line).map_err(|error| {
        ApiError::bad_request(
            "bad_json",
            &format!("the line is not a JSON object of this kind: {error}"),
        )
    })?;
    let Some(job) = head.job_id else {
        return Err(ApiError::bad_request("no_job_id", "the line has no job_id"));
    };
    let job = name("job_id", &job)?;
    let owner = head
        .owner
        .as_deref()
        .map(|owner| name("owner", owner))
        .transpose()?;
    let (verb, payload) = match head.milestone {
        None => (Verb::Put(What::State), line),
        Some(milestone) => {
            let data = head
                .data
                .map_or(Bytes::new(), |data| Bytes::from(data.get().to_owned()));
            (
                Verb::Put(What::Milestone(milestone_name(&milestone)?)),
                data,
            )
        }
    };
    publish(
        api,
        identity,
        PublishRequest {
            job,
            owner,
            caller: identity.own().cloned(),
            verb,
            payload,
            key,
        },
    )
    .await
    .map(|published| published.at)
}

async fn publish(
    api: &Api,
    identity: &Identity,
    request: PublishRequest,
) -> Result<Published, ApiError> {
    let hub = &api.node.hub;
    let published = hub.publish(request, |owner| identity.may_publish(owner));
    match timeout(BUS_WAIT, published).await {
        Ok(published) => Ok(published?),
        Err(_) => Err(ApiError::bus_unavailable()),
    }
}

/// The caller's key for this request, where it gave one.
fn key(headers: &HeaderMap, identity: &Identity) -> Result<Option<RequestKey>, ApiError> {
    let bad = |what: &str| {
        let message = format!(
            "the Idempotency-Key {what}; send one of 1 to {KEY_LENGTH} printable ASCII characters"
        );
        Err(ApiError::bad_request("bad_idempotency_key", &message))
    };
    let mut lines = headers.get_all("idempotency-key").iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    let is_printable = |byte: &u8| matches!(byte, b' '..=b'~');
    match std::str::from_utf8(line.as_bytes()) {
        _ if lines.next().is_some() => bad("is there twice"),
        Ok("") => bad("is empty"),
        Ok(text) if text.len() > KEY_LENGTH => bad(&format!("has {} characters", text.len())),
        Ok(text) if text.as_bytes().iter().all(is_printable) => {
            let caller = identity.user.clone();
            Ok(Some(RequestKey::new(caller, text)))
        }
        Ok(_) | Err(_) => bad("has a character that is not printable ASCII"),
    }
}

/// Reads the body of a request that publishes, of a client that may publish; it counts until its share is dropped.
async fn body(
    api: &Api,
    identity: &Identity,
    request: Request,
    limit: usize,
) -> Result<(Bytes, Share), ApiError> {
    if !identity.may_publish_some() {
        return Err(ApiError::may_publish_nothing());
    }
    if let Some(encoding) = content_encoding(request.headers()) {
        return Err(ApiError::unsupported_encoding(&encoding));
    }
    let client = Head::of(&request).client();
    let gate = Gate::new(api.node.clone());
    let (what, user) = (Resource::BodyBytes, identity.user.as_ref());
    let share = api.node.admissions.take(what, 0, user, client);
    let mut share = share.map_err(|refusal| gate.over_limit(refusal, client))?;
    match bodies::read(request.into_body(), limit, &mut share).await {
        Ok(body) => Ok((body, share)),
        Err(Unread::TooLarge) => Err(ApiError::too_large(limit)),
        Err(Unread::BrokeOff) => Err(ApiError::bad_request(
            "bad_body",
            "the body ended before it was complete",
        )),
        Err(Unread::Slow) => Err(ApiError::bad_request(
            "slow_body",
            "the body took longer than 30 s",
        )),
        Err(Unread::Over(refusal)) => Err(gate.over_limit(refusal, client)),
    }
}

fn name(what: &str, text: &str) -> Result<Name, ApiError> {
    Name::parse(text)
        .map_err(|error| ApiError::bad_request("bad_name", &format!("the {what} {error}")))
}

/// A milestone's name; `state` is the subject of states.
fn milestone_name(text: &str) -> Result<Name, ApiError> {
    let milestone = name("milestone's name", text)?;
    if milestone.as_str() == "state" {
        let message = "a milestone cannot be called \"state\"; POST /v1/jobs/{id} publishes states";
        return Err(ApiError::bad_request("bad_name", message));
    }
    Ok(milestone)
}

fn cursor_after<'a>(position: Position, topics: impl IntoIterator<Item = &'a Topic>) -> String {
    Cursor::at(position, topics).to_string()
}

fn to_json(answer: &impl Serialize) -> Vec<u8> {
    // Structs of strings and numbers cannot fail to serialize.
    serde_json::to_vec(answer).unwrap_or_default()
}
