//! Which path speaks which dialect, and what a path says about topics.

use std::fmt;
use std::sync::Arc;

use matchit::{InsertError, Router};
use relay_core::id::Name;
use relay_core::topic::Topic;

use super::poll::{Health, Poll};
use super::template::{BadTopic, Template};
use super::{Carrier, Dialect, Voice};
use crate::target;

/// A route on which clients stay connected.
#[derive(Debug)]
pub struct Endpoint {
    /// The path as the file has it; a metric's label.
    pub path: String,
    /// What its clients hear.
    pub voice: Arc<Voice>,
    /// The Socket.IO namespace, where the carrier has namespaces; parameters in it are in braces.
    pub namespace: Option<String>,
    /// The WebSocket subprotocols it speaks.
    pub subprotocols: Vec<String>,
    pub(super) topics: Vec<Template>,
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
pub enum Answering {
    /// An event stream.
    Stream(Arc<Endpoint>),
    /// How a job, or jobs taken together, stand.
    Poll(Arc<Poll>),
    /// How the relay is.
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
    /// Another route answers its plain requests.
    #[error("{path} {answers} {dialect} already")]
    AnswerTaken {
        path: String,
        answers: &'static str,
        dialect: String,
    },
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
    pub answer: Option<&'a Answering>,
    /// The path's parameters.
    pub params: Params,
}

/// Parameters of a path (and a namespace): name and value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Params(pub Vec<(String, String)>);

impl Params {
    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(each, _)| each == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Routes {
    /// What `path` leads to; a slash at its end makes no difference. Parameters are decoded.
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
            answer: entry.answer.as_ref(),
            params: Params(
                params
                    .map(|(name, value)| (name.to_owned(), target::segment(value)))
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
            Carrier::EventStream => entry.answer(path, Answering::Stream(endpoint))?,
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
            return Err(RouteError::AnswerTaken {
                path,
                answers: match other {
                    Answering::Stream(_) => "is an event stream of",
                    Answering::Poll(_) => "is polled in",
                    Answering::Health(_) => "says how the relay is in",
                },
                dialect: other.dialect().name.clone(),
            });
        }
        self.answer = Some(answering);
        Ok(())
    }
}

impl Answering {
    fn dialect(&self) -> &Arc<Dialect> {
        match self {
            Self::Stream(endpoint) => &endpoint.voice.dialect,
            Self::Poll(poll) => &poll.dialect,
            Self::Health(health) => &health.dialect,
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
