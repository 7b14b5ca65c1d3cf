//! A dialect's file: what may be written in it, read and nothing more.
//!
//! Knows TOML and where in the file a text stands; whether the parts fit together is for [`super::Dialect`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use crate::duration;

/// One file, with what it extends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DialectFile {
    /// The dialect that it adds to: done when the files are put together.
    #[serde(rename = "extends")]
    pub(super) _extends: Option<String>,
    /// What speaks it, in one line.
    #[serde(rename = "description")]
    pub(super) _description: String,
    /// jq definitions every mapping of the file may use: those of all files that are put together are read beside.
    #[serde(rename = "definitions")]
    pub(super) _definitions: Option<String>,
    #[serde(default)]
    pub(super) status: StatusFile,
    #[serde(default)]
    pub(super) identity: IdentityFile,
    #[serde(default)]
    pub(super) delivery: DeliveryFile,
    #[serde(default)]
    pub(super) heartbeat: HeartbeatFile,
    #[serde(default)]
    pub(super) close: CloseFile,
    #[serde(default)]
    pub(super) http: HttpFile,
    #[serde(default)]
    pub(super) routes: Vec<RouteFile>,
    #[serde(default)]
    pub(super) polls: Vec<PollFile>,
    #[serde(default)]
    pub(super) health: Vec<HealthFile>,
    #[serde(default)]
    pub(super) messages: MessagesFile,
    #[serde(default)]
    pub(super) frames: FramesFile,
    #[serde(default)]
    pub(super) requests: BTreeMap<String, RequestFile>,
    /// What kinds of jobs declare, as in the configuration's `[kinds.<name>]`.
    #[serde(default)]
    pub(super) kinds: BTreeMap<String, KindFile>,
}

/// What the back end of the front end means by its milestones, for jobs of one kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KindFile {
    /// Those that may follow a job's ending.
    pub(super) milestones_after_ending: Vec<Spanned<String>>,
    /// Those that remove their job.
    pub(super) removed_by: Vec<Spanned<String>>,
}

/// The front end's words for the five statuses.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StatusFile {
    pub(super) queued: String,
    pub(super) running: String,
    pub(super) completed: String,
    pub(super) failed: String,
    pub(super) cancelled: String,
    /// Finer words of workers (`status_detail`) the front end knows too.
    pub(super) details: Vec<String>,
}

impl Default for StatusFile {
    fn default() -> Self {
        Self {
            queued: "queued".to_owned(),
            running: "running".to_owned(),
            completed: "completed".to_owned(),
            failed: "failed".to_owned(),
            cancelled: "cancelled".to_owned(),
            details: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct IdentityFile {
    /// The cookie the token comes in, where it is not the one `auth.cookie` names.
    pub(super) cookie: Option<String>,
    /// Whether a client without a token may connect, and show it by its first message.
    pub(super) message: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DeliveryFile {
    pub(super) updates_per_second: Option<u32>,
    pub(super) milestones: Option<usize>,
    /// Whether mappings are told what a client was told before: `$relay.from`, `$relay.snapshot`.
    pub(super) tracks_status: bool,
    /// How long ago a job may have ended, to be sent to a client that begins to watch its user or group.
    pub(super) endings_within: Option<Time>,
    /// For how long it is kept how far a WebSocket's client was told, for when it returns.
    pub(super) returns_within: Option<Time>,
    /// Socket.IO's connection state recovery: a client that returns is sent what it missed.
    pub(super) recovery: Option<Spanned<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HeartbeatFile {
    pub(super) ping_interval: Option<Time>,
    pub(super) dead_after: Option<Time>,
    /// Close when nothing was said in either direction for this long.
    pub(super) idle_after: Option<Time>,
    /// How often `frames.check` is sent.
    pub(super) check_interval: Option<Time>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CloseFile {
    /// How long after the ending of the job in the URL the relay closes.
    pub(super) after_ending: Option<Time>,
    /// A drain lets these clients go within this time, if that is sooner than `drain.spread`.
    pub(super) drain_within: Option<Time>,
    /// Close codes by reason, where they are not the native protocol's.
    pub(super) codes: BTreeMap<String, Spanned<u16>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HttpFile {
    /// Take, make and echo `X-Request-ID`.
    pub(super) request_id: bool,
    /// The body of an answer that refuses.
    pub(super) refusal: Option<Spanned<String>>,
}

/// How clients of a route speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// JSON text frames on a WebSocket.
    WebSocket,
    /// Socket.IO events.
    SocketIo,
    /// An event stream: one way, over plain HTTP.
    #[serde(rename = "sse")]
    EventStream,
}

impl Carrier {
    /// The word in files and for mappings.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::SocketIo => "socketio",
            Self::EventStream => "sse",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteFile {
    pub(super) path: Spanned<String>,
    pub(super) transport: Carrier,
    /// The Socket.IO namespace; may have parameters as a path has.
    pub(super) namespace: Option<Spanned<String>>,
    /// The WebSocket subprotocols the page may ask for.
    #[serde(default)]
    pub(super) subprotocols: Vec<Spanned<String>>,
    /// A word of the file's own by which mappings tell routes apart: `$relay.view`.
    #[serde(default)]
    pub(super) view: String,
    /// What is subscribed without being asked for.
    #[serde(default)]
    pub(super) topics: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PollFile {
    pub(super) path: Spanned<String>,
    /// What is asked about: a job's state, or how the jobs of a user or a group stand.
    pub(super) topic: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) view: String,
    pub(super) body: Spanned<String>,
    /// How many jobs to list, the most recent first, instead of what they come to.
    pub(super) list: Option<Spanned<usize>>,
    /// The answer where nothing is known yet.
    pub(super) unknown: Option<UnknownFile>,
    /// Requests a user may make in a minute; said in `X-RateLimit-*`.
    pub(super) per_minute: Option<u32>,
    /// What `Retry-After` says while the job runs.
    pub(super) interval: Option<Time>,
}

/// The answer where nothing is known yet of what is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnknownFile {
    pub(super) status: Option<Spanned<u16>>,
    pub(super) body: Spanned<String>,
}

/// A path that says whether the relay is well.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthFile {
    pub(super) path: Spanned<String>,
    pub(super) body: Spanned<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MessagesFile {
    pub(super) command: Option<Spanned<String>>,
    /// What a message that is not JSON asks for.
    pub(super) text: Option<Spanned<String>>,
    /// What else a worker's answer asks for.
    pub(super) answer: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FramesFile {
    pub(super) state: Option<Spanned<String>>,
    pub(super) milestone: Option<Spanned<String>>,
    pub(super) gone: Option<Spanned<String>>,
    pub(super) gap: Option<Spanned<String>>,
    pub(super) hello: Option<Spanned<String>>,
    pub(super) authenticated: Option<Spanned<String>>,
    pub(super) subscribed: Option<Spanned<String>>,
    pub(super) unknown: Option<Spanned<String>>,
    pub(super) unsubscribed: Option<Spanned<String>>,
    pub(super) error: Option<Spanned<String>>,
    pub(super) server_shutdown: Option<Spanned<String>>,
    pub(super) aggregate: Option<Spanned<String>>,
    pub(super) quality: Option<Spanned<String>>,
    pub(super) check: Option<Spanned<String>>,
    pub(super) answer: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestFile {
    /// The NATS subject.
    pub(super) subject: Spanned<String>,
    pub(super) timeout: Option<Time>,
}

/// A duration as text: `"25s"`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        duration::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

/// Line and column of an offset, both from 1.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let column = before.len() - start.map_or(0, |at| at + 1) + 1;
    (line, column)
}

/// Where in `file` the text that stands at `span` begins, behind its quotes.
pub(super) fn content_start(file: &str, span: &std::ops::Range<usize>) -> usize {
    let raw = file.get(span.clone()).unwrap_or_default();
    let multi_line = ["'''", "\"\"\""]
        .iter()
        .any(|quotes| raw.starts_with(quotes));
    if !multi_line {
        return span.start + 1;
    }
    let skipped = match &raw.as_bytes()[3..] {
        [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        _ => 0,
    };
    span.start + 3 + skipped
}
