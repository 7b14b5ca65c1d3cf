//! Which path speaks which dialect, and what a path says about topics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use matchit::{InsertError, Router};
use relay_core::id::Name;
use relay_core::moment::WallTime;
use relay_core::publication::{Encoded, Publication};
use relay_core::tally::Tally;
use relay_core::topic::{Topic, TopicError};
use serde_json::json;

use super::jq::{Input, Mapping};
use super::{Carrier, Dialect, Voice};
use crate::native::frame;

/// How much of a text that is not a topic is shown.
const MAX_SHOWN: usize = 160;

/// A route on which clients stay connected.
#[derive(Debug)]
pub struct Endpoint {
    /// The path as the file has it; a metric's label.
    pub path: String,
    /// What its clients hear.
    pub voice: Arc<Voice>,
    /// The Socket.IO namespace, where the carrier has namespaces; parameters in it are in braces.
    pub namespace: Option<String>,
    pub(super) topics: Vec<Template>,
}

/// A route that is asked again and again: for one job, or how the jobs of a user or a group stand.
pub struct Poll {
    /// The path as the file has it; a metric's label.
    pub path: String,
    /// The dialect.
    pub dialect: Arc<Dialect>,
    /// Requests a user may make in a minute.
    pub per_minute: Option<u32>,
    /// What `Retry-After` says until a job has ended.
    pub interval: Option<Duration>,
    pub(super) topic: Template,
    /// The file's own word for this kind of route.
    pub view: String,
    pub(super) body: Mapping,
    pub(super) slot: usize,
    pub(super) slots: Arc<AtomicUsize>,
}

/// A route that says whether the relay is well.
pub struct Health {
    /// The path as the file has it; a metric's label.
    pub path: String,
    /// The dialect.
    pub dialect: Arc<Dialect>,
    pub(super) body: Mapping,
}

/// What one path leads to.
#[derive(Debug, Default)]
pub(super) struct Entry {
    websocket: Option<Arc<Endpoint>>,
    socketio: Vec<Arc<Endpoint>>,
    /// What answers plain requests: one thing, or the file could not say which is meant.
    answer: Option<Answering>,
}

/// What answers the plain requests of a path.
#[derive(Debug)]
enum Answering {
    Poll(Arc<Poll>),
    Health(Arc<Health>),
}

/// Why a path cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum RouteError {
    /// It cannot stand beside another path, or is not one.
    #[error(transparent)]
    Path(#[from] InsertError),
    /// Another route has its WebSockets.
    #[error("{path} is a WebSocket of {dialect} already")]
    WebSocketTaken { path: String, dialect: String },
    /// Another route has its namespace.
    #[error("{path} has that namespace of {dialect} already")]
    NamespaceTaken { path: String, dialect: String },
    /// Another route answers its plain requests, with the state of jobs.
    #[error("{path} is polled in {dialect} already")]
    PollTaken { path: String, dialect: String },
    /// Another route answers its plain requests, with how the relay is.
    #[error("{path} says how the relay is in {dialect} already")]
    HealthTaken { path: String, dialect: String },
}

/// All routes of all dialects.
#[derive(Default)]
pub struct Routes {
    router: Router<usize>,
    entries: Vec<Entry>,
}

/// What a request's path leads to.
#[derive(Debug)]
pub struct Found<'a> {
    /// Where a WebSocket with plain JSON frames may be opened.
    pub websocket: Option<&'a Arc<Endpoint>>,
    /// The Socket.IO namespaces that can be connected to over this path.
    pub socketio: &'a [Arc<Endpoint>],
    /// What answers plain requests.
    pub poll: Option<&'a Arc<Poll>>,
    /// What says how the relay is.
    pub health: Option<&'a Arc<Health>>,
    /// The path's parameters.
    pub params: Params,
}

/// Parameters of a path (and a namespace): name and value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(pub Vec<(String, String)>);

impl Params {
    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(each, _)| each == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Routes {
    /// What `path` leads to; a slash at its end makes no difference.
    pub fn find(&self, path: &str) -> Option<Found<'_>> {
        let path = match path.strip_suffix('/') {
            Some("") | None => path,
            Some(path) => path,
        };
        let matched = self.router.at(path).ok()?;
        let entry = &self.entries[*matched.value];
        let params = matched.params.iter();
        Some(Found {
            websocket: entry.websocket.as_ref(),
            socketio: &entry.socketio,
            poll: entry.answer.as_ref().and_then(Answering::poll),
            health: entry.answer.as_ref().and_then(Answering::health),
            params: Params(
                params
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            ),
        })
    }

    /// The entry for a path, made if there is none.
    fn entry(&mut self, path: &str) -> Result<&mut Entry, InsertError> {
        let path = match path.strip_suffix('/') {
            Some("") | None => path,
            Some(path) => path,
        };
        let next = self.entries.len();
        let at = match self.router.insert(path, next) {
            Ok(()) => {
                self.entries.push(Entry::default());
                next
            }
            Err(InsertError::Conflict { with }) if with == path => {
                self.router.at(path).map_or(next, |found| *found.value)
            }
            Err(error) => return Err(error),
        };
        Ok(&mut self.entries[at])
    }

    /// Adds an endpoint.
    ///
    /// # Errors
    /// Says why the path cannot be served.
    pub(super) fn add_endpoint(&mut self, endpoint: Endpoint) -> Result<(), RouteError> {
        let path = endpoint.path.clone();
        let entry = self.entry(&path)?;
        let endpoint = Arc::new(endpoint);
        match endpoint.voice.carrier {
            Carrier::WebSocket => {
                if let Some(other) = &entry.websocket {
                    let dialect = other.voice.dialect.name.clone();
                    return Err(RouteError::WebSocketTaken { path, dialect });
                }
                entry.websocket = Some(endpoint);
            }
            Carrier::SocketIo => {
                let taken = |each: &&Arc<Endpoint>| each.namespace == endpoint.namespace;
                if let Some(other) = entry.socketio.iter().find(taken) {
                    let dialect = other.voice.dialect.name.clone();
                    return Err(RouteError::NamespaceTaken { path, dialect });
                }
                entry.socketio.push(endpoint);
            }
        }
        Ok(())
    }

    /// Adds a route for polls.
    ///
    /// # Errors
    /// Says why the path cannot be served.
    pub(super) fn add_poll(&mut self, poll: Poll) -> Result<(), RouteError> {
        let path = poll.path.clone();
        self.entry(&path)?
            .answer(path, Answering::Poll(Arc::new(poll)))
    }

    /// Adds a route that says how the relay is.
    ///
    /// # Errors
    /// Says why the path cannot be served.
    pub(super) fn add_health(&mut self, health: Health) -> Result<(), RouteError> {
        let path = health.path.clone();
        self.entry(&path)?
            .answer(path, Answering::Health(Arc::new(health)))
    }
}

impl Entry {
    fn answer(&mut self, path: String, answering: Answering) -> Result<(), RouteError> {
        if let Some(other) = &self.answer {
            return Err(match other {
                Answering::Poll(poll) => RouteError::PollTaken {
                    path,
                    dialect: poll.dialect.name.clone(),
                },
                Answering::Health(health) => RouteError::HealthTaken {
                    path,
                    dialect: health.dialect.name.clone(),
                },
            });
        }
        self.answer = Some(answering);
        Ok(())
    }
}

impl Answering {
    fn poll(&self) -> Option<&Arc<Poll>> {
        match self {
            Self::Poll(poll) => Some(poll),
            Self::Health(_) => None,
        }
    }

    fn health(&self) -> Option<&Arc<Health>> {
        match self {
            Self::Health(health) => Some(health),
            Self::Poll(_) => None,
        }
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// What a client is subscribed to without asking: the route's topics, as far as path, query and
    /// credential say what belongs into them.
    ///
    /// # Errors
    /// When what was filled in is not a topic.
    pub fn topics(
        &self,
        params: &Params,
        query: &[(String, String)],
        user: Option<&Name>,
    ) -> Result<Vec<Topic>, BadTopic> {
        let mut topics = Vec::new();
        for template in &self.topics {
            let Some(text) = template.fill(params, query, user) else {
                continue;
            };
            let topic = BadTopic::unless(text)?;
            if !topics.contains(&topic) {
                topics.push(topic);
            }
        }
        Ok(topics)
    }
}

/// A text, filled in from a request, that is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid topic: {source}")]
pub struct BadTopic {
    text: String,
    source: TopicError,
}

impl BadTopic {
    /// The topic that a text is.
    ///
    /// # Errors
    /// When it is none.
    fn unless(text: String) -> Result<Topic, Self> {
        Topic::parse(&text).map_err(|source| Self {
            // Bounded: the text comes from the client and goes into answers.
            text: text.chars().take(MAX_SHOWN).collect(),
            source,
        })
    }
}

/// Why a poll does not say what it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTopic {
    /// It is about the client's own user, and there is none.
    #[error("this path needs to know the user, and the relay runs without tokens (auth.mode)")]
    User,
    /// It is about what this parameter of the query names, and the query has none.
    #[error("the query parameter {0} is missing; it names what to watch")]
    Query(String),
    /// It is about something that is not a topic.
    #[error(transparent)]
    Bad(#[from] BadTopic),
}

impl Poll {
    /// What a request is about.
    ///
    /// # Errors
    /// When path, query and credential do not say it.
    pub fn topic(
        &self,
        params: &Params,
        query: &[(String, String)],
        user: Option<&Name>,
    ) -> Result<Topic, NoTopic> {
        let text = self.topic.fill(params, query, user);
        let text = text.ok_or_else(|| self.topic.missing(query))?;
        Ok(BadTopic::unless(text)?)
    }

    /// The body for how the jobs of a topic stand. `None`: the mapping failed on it.
    pub fn summary(&self, topic: &Topic, tally: &Tally, at: WallTime) -> Option<Vec<u8>> {
        let input = Input::of(&frame::standing(topic, tally)).ok()?;
        let relay = Input::of(&json!({
            "view": self.view,
            "at": at.to_rfc3339(),
            "ms": at.as_unix_micros() / 1000,
        }));
        let texts = self.dialect.run(&self.body, &input, &relay.ok()?)?;
        texts.into_iter().next()
    }

    /// The body for a job's state, run once for each state.
    pub fn body(&self, state: &Publication) -> Encoded {
        state.encoded(self.slots.load(Ordering::Relaxed), self.slot, |state| {
            let json = frame::without_place(state);
            let texts = Input::parse(&json).ok().and_then(|input| {
                let relay = self.relay(state, &input)?;
                self.dialect.run(&self.body, &input, &relay)
            });
            let first = texts.into_iter().flatten().next();
            Encoded {
                tag: u8::from(first.is_some()),
                bytes: first.unwrap_or_default().into(),
            }
        })
    }

    fn relay(&self, state: &Publication, input: &Input) -> Option<Input> {
        let relay_core::publication::Body::State { status, .. } = &state.body else {
            return None;
        };
        let detail = input
            .member("job")
            .and_then(|job| job.text("status_detail"));
        let words = &self.dialect.words;
        let at = state.worker_at.unwrap_or(state.stored_at);
        Input::of(&json!({
            "status": words.get(words.index(*status, detail.as_deref())),
            "view": self.view,
            "at": at.to_rfc3339(),
            "ms": at.as_unix_micros() / 1000,
        }))
        .ok()
    }
}

impl Health {
    /// The body for how the relay is; `None` where the mapping fails.
    pub fn body(&self, input: &Input, relay: &Input) -> Option<Vec<u8>> {
        let texts = self.dialect.run(&self.body, input, relay)?;
        texts.into_iter().next()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poll")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A topic with places to be filled: `job:{job}`, `user:{user}`, `user:{user|-}`, `job:{?generation_id}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

/// Why a text is not a template of a topic.
#[derive(Debug, thiserror::Error)]
pub(super) enum TemplateError {
    /// A place that does not end.
    #[error("a {{ has no }} behind it")]
    Unclosed,
    /// A place for what the path does not have.
    #[error("{{{0}}} is not a parameter of the path")]
    UnknownParameter(String),
    /// Whatever is filled in, it is not a topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Param(String),
    Query(String),
    /// The client's user, or this one where there is none.
    User(Option<String>),
}

impl Template {
    /// The job the path names.
    pub(super) fn of_job() -> Self {
        Self(vec![
            Part::Text("job:".to_owned()),
            Part::Param("job".to_owned()),
        ])
    }

    /// What kept the template from being filled. Path parameters are there, or the path would not be.
    fn missing(&self, query: &[(String, String)]) -> NoTopic {
        let mut wanted = self.0.iter().filter_map(|part| match part {
            Part::Query(name) if !query.iter().any(|(each, _)| each == name) => Some(name.clone()),
            _ => None,
        });
        wanted.next().map_or(NoTopic::User, NoTopic::Query)
    }

    /// Reads a template whose parameters are among `params`.
    pub(super) fn parse(text: &str, params: &[&str]) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(match name.strip_prefix('?') {
                Some(query) => Part::Query(query.to_owned()),
                None if params.contains(&name) => Part::Param(name.to_owned()),
                None if name == "user" => Part::User(None),
                None if name.starts_with("user|") => {
                    Part::User(name.strip_prefix("user|").map(str::to_owned))
                }
                None => return Err(TemplateError::UnknownParameter(name.to_owned())),
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        let template = Self(parts);
        let sample = template.with(|part| match part {
            Part::User(Some(other)) => Some(other.clone()),
            _ => Some("x".to_owned()),
        });
        let sample = sample.unwrap_or_default();
        Topic::parse(&sample)?;
        Ok(template)
    }

    fn fill(
        &self,
        params: &Params,
        query: &[(String, String)],
        user: Option<&Name>,
    ) -> Option<String> {
        self.with(|part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Param(name) => params.get(name).map(str::to_owned),
            Part::Query(name) => {
                let found = query.iter().find(|(each, _)| each == name);
                found.map(|(_, value)| value.clone())
            }
            Part::User(other) => {
                let user = user.map(|user| user.as_str().to_owned());
                user.or_else(|| other.clone())
            }
        })
    }

    fn with(&self, mut value: impl FnMut(&Part) -> Option<String>) -> Option<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                other => text.push_str(&value(other)?),
            }
        }
        Some(text)
    }
}

/// The names of a path's parameters.
pub(super) fn params_of(path: &str) -> Vec<&str> {
    let segments = path.split('/');
    segments
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .collect()
}
