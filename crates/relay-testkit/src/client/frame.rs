//! One frame as a client got it, and what else a client can hear.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::time::Instant;

/// A frame of the native protocol; the same JSON on each transport.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame(pub Value);

impl Frame {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// `type`.
    pub fn kind(&self) -> &str {
        self.text("type")
    }

    /// `topic`, or the empty text.
    pub fn topic(&self) -> &str {
        self.text("topic")
    }

    /// `code` of an error, or the empty text.
    pub fn code(&self) -> &str {
        self.text("code")
    }

    /// `name` of a milestone, or the empty text.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// The cursor, where the frame has one.
    pub fn cursor(&self) -> Option<&str> {
        self.0["cursor"].as_str()
    }

    /// The job document of a state; `null` otherwise.
    pub fn job(&self) -> &Value {
        &self.0["job"]
    }

    /// The job the frame is about: of the document, of the frame, or of a `job:` topic.
    pub fn job_id(&self) -> &str {
        let own = self.0["job"]["job_id"]
            .as_str()
            .or(self.0["job_id"].as_str());
        own.or(self.topic().strip_prefix("job:"))
            .unwrap_or_default()
    }

    /// The status of a state's document, or the empty text.
    pub fn status(&self) -> &str {
        self.0["job"]["status"].as_str().unwrap_or_default()
    }

    /// Whether this is a state that ends its job.
    pub fn is_ending(&self) -> bool {
        self.kind() == "state" && matches!(self.status(), "completed" | "failed" | "cancelled")
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a client hears when it listens for a while.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A frame.
    Frame(Frame),
    /// Nothing within the time.
    Quiet,
    /// The relay, or the network, has ended the connection.
    Closed {
        /// The WebSocket close code, where there was one.
        code: Option<u16>,
        /// The reason given, or the error.
        reason: String,
    },
}

impl Heard {
    pub(super) fn lost(error: impl fmt::Display) -> Self {
        Self::Closed {
            code: None,
            reason: error.to_string(),
        }
    }
}

/// The relay answered a connection attempt with something else than yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// The answer's body.
    pub body: String,
}

impl Refused {
    /// `error.code` of the body, or the empty text.
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        body["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// What the relay said, if `error` is a refusal.
    pub fn of(error: &anyhow::Error) -> Option<&Self> {
        error.downcast_ref()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused with {}: {}", self.status, self.body)
    }
}

impl std::error::Error for Refused {}

pub(super) async fn until(
    within: Duration,
    what: &str,
    mut wanted: impl FnMut(&Frame) -> bool,
    mut next: impl AsyncFnMut(Duration) -> Heard,
) -> Result<Frame> {
    let deadline = Instant::now() + within;
    let mut last = String::from("nothing");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match next(left).await {
            Heard::Frame(frame) if wanted(&frame) => return Ok(frame),
            Heard::Frame(frame) => last = frame.to_string(),
            Heard::Quiet => bail!("waited {within:?} for {what}; the last frame was {last}"),
            Heard::Closed { code, reason } => {
                bail!("closed ({code:?} {reason}) before {what}; the last frame was {last}")
            }
        }
    }
}
