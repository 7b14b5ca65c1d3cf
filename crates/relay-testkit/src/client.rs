//! Scripted watchers: what a browser, a terminal or a phone does, on each transport, and what it should not.
//!
//! A [`Watcher`] is one of four transports behind one face: it connects with topics and a cursor, hears
//! frames one by one, and knows the cursor it would come back with. [`raw::Raw`] behaves badly on purpose.
//! Nothing here checks anything: see [`crate::journey`].

pub mod frame;
pub mod long_poll;
pub mod raw;
pub mod sse;
pub mod state_poll;
pub mod websocket;

use std::fmt;
use std::time::Duration;

use anyhow::Result;

pub use frame::{Frame, Heard, Refused};
pub use long_poll::PollClient;
pub use sse::SseClient;
pub use state_poll::StateClient;
pub use websocket::WebSocketClient;

/// The four ways to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// `GET /v1/ws`.
    WebSocket,
    /// `GET /v1/sse`.
    Sse,
    /// `GET /v1/poll`, again and again.
    LongPoll,
    /// `GET /v1/jobs/{id}` of each job, again and again: states only, no milestones.
    State,
}

impl Transport {
    /// All four.
    pub const ALL: [Self; 4] = [Self::WebSocket, Self::Sse, Self::LongPoll, Self::State];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::LongPoll => "long-poll",
            Self::State => "state",
        })
    }
}

/// What to watch and from where.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// `job:<id>`, `user:<id>`, `group:<id>`; state polling takes jobs only.
    pub topics: Vec<String>,
    /// Where an earlier watcher of the same topics had come to.
    pub cursor: Option<String>,
    /// A bearer token.
    pub token: Option<String>,
}

impl Watch {
    /// Watches the topics from their snapshots on.
    pub fn topics<S: Into<String>>(topics: impl IntoIterator<Item = S>) -> Self {
        Self {
            topics: topics.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Resumes at a cursor, if there is one.
    #[must_use]
    pub fn from(mut self, cursor: Option<String>) -> Self {
        self.cursor = cursor;
        self
    }

    /// Shows a token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// `?topic=…&topic=…&cursor=…`
    fn query(&self) -> String {
        let topics = self.topics.iter().map(|topic| format!("topic={topic}"));
        let cursor = self.cursor.iter().map(|cursor| format!("cursor={cursor}"));
        let pairs: Vec<String> = topics.chain(cursor).collect();
        format!("?{}", pairs.join("&"))
    }
}

/// One client on one of the four transports.
#[derive(Debug)]
pub enum Watcher {
    /// Over a WebSocket.
    WebSocket(Box<WebSocketClient>),
    /// Over Server-Sent Events.
    Sse(Box<SseClient>),
    /// Over long-poll.
    LongPoll(Box<PollClient>),
    /// Over plain polling.
    State(Box<StateClient>),
}

impl Watcher {
    /// Connects to `host:port` and begins to watch.
    ///
    /// # Errors
    /// When the relay refuses or is not there; see [`Refused`] for what it said.
    pub async fn connect(transport: Transport, address: &str, watch: Watch) -> Result<Self> {
        Ok(match transport {
            Transport::WebSocket => {
                Self::WebSocket(Box::new(WebSocketClient::watch(address, watch).await?))
            }
            Transport::Sse => Self::Sse(Box::new(SseClient::connect(address, watch).await?)),
            Transport::LongPoll => Self::LongPoll(Box::new(PollClient::new(address, watch))),
            Transport::State => Self::State(Box::new(StateClient::new(address, watch))),
        })
    }

    /// The next frame, or that there was none within the time, or that the relay has closed.
    pub async fn next(&mut self, within: Duration) -> Heard {
        match self {
            Self::WebSocket(client) => client.next(within).await,
            Self::Sse(client) => client.next(within).await,
            Self::LongPoll(client) => client.next(within).await,
            Self::State(client) => client.next(within).await,
        }
    }

    /// Reads on until a frame is `wanted`; what came before it is dropped.
    ///
    /// # Errors
    /// When it does not come within the time, or the relay closes.
    pub async fn until(
        &mut self,
        within: Duration,
        what: &str,
        wanted: impl FnMut(&Frame) -> bool,
    ) -> Result<Frame> {
        frame::until(within, what, wanted, async |left| self.next(left).await).await
    }

    /// The cursor to come back with.
    pub fn cursor(&self) -> Option<String> {
        match self {
            Self::WebSocket(client) => client.cursor(),
            Self::Sse(client) => client.cursor(),
            Self::LongPoll(client) => client.cursor(),
            Self::State(client) => client.cursor(),
        }
    }

    /// Whether nothing that has been received is still to be taken with [`Watcher::next`]; until then
    /// [`Watcher::cursor`] stands before what was taken already.
    pub fn is_settled(&self) -> bool {
        match self {
            Self::LongPoll(client) => client.is_between_answers(),
            Self::WebSocket(_) | Self::Sse(_) | Self::State(_) => true,
        }
    }

    /// Leaves politely.
    pub async fn close(self) {
        // the other transports have no goodbye
        if let Self::WebSocket(client) = self {
            client.close().await;
        }
    }

    /// Leaves as a phone in a tunnel does not, but a killed process does: with a reset.
    pub fn vanish(self) {
        if let Self::WebSocket(client) = self {
            client.vanish();
        }
    }
}
