//! What the server says, as far as a terminal needs it.
//!
//! Reads leniently: an unknown frame or field is not an error, so an older `relay watch` follows a newer
//! server. It knows nothing of connections.
//!
//! Invariant: text that a job gives for a terminal has passed through [`printable`].

use relay_core::document::readable;
use relay_core::moment::WallTime;
use serde::Deserialize;
use serde_json::Value;

use super::text::printable;

/// One frame from the server.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Frame {
    /// First on every connection.
    Hello {},
    /// A topic is being watched.
    Subscribed {
        topic: String,
        #[serde(default)]
        recovered: bool,
        #[serde(default)]
        jobs: u64,
        #[serde(default)]
        cursor: Option<String>,
    },
    /// A job's complete state.
    State {
        job: Job,
        #[serde(default)]
        stale: bool,
        #[serde(default)]
        cursor: Option<String>,
    },
    /// A named event of a job.
    Milestone {
        job_id: String,
        name: String,
        #[serde(default)]
        data: Value,
        #[serde(default)]
        cursor: Option<String>,
    },
    /// Milestones were lost.
    Gap {
        #[serde(default)]
        job_id: Option<String>,
        #[serde(default)]
        reason: String,
    },
    /// The job was removed, or expired.
    Gone {
        job_id: String,
        #[serde(default)]
        reason: String,
        /// How it stood, where the server knows.
        #[serde(default)]
        last_status: Option<String>,
        #[serde(default)]
        cursor: Option<String>,
    },
    /// Something was refused.
    Error { code: String, message: String },
    /// The server leaves; come back after this long.
    ServerShutdown {
        #[serde(default)]
        retry_ms: u64,
    },
    /// Anything a terminal has no use for.
    #[serde(other)]
    Other,
}

/// A frame that is not one, or not one of this protocol.
#[derive(Debug, thiserror::Error)]
#[error("a frame of the server cannot be read: {0}")]
pub(crate) struct Unreadable(#[from] serde_json::Error);

impl Frame {
    /// Reads a frame, also one whose document not every reader can read: some older servers sent such.
    ///
    /// # Errors
    /// When it is not a frame all the same.
    pub(crate) fn read(text: &str) -> Result<Self, Unreadable> {
        serde_json::from_str(text).or_else(|error| match readable(text) {
            Some(text) => Ok(serde_json::from_str(&text)?),
            None => Err(error.into()),
        })
    }

    /// The cursor the frame carries, good for all topics of the connection.
    pub(crate) fn cursor(&self) -> Option<&str> {
        match self {
            Self::Subscribed { cursor, .. }
            | Self::State { cursor, .. }
            | Self::Milestone { cursor, .. }
            | Self::Gone { cursor, .. } => cursor.as_deref(),
            Self::Hello {}
            | Self::Gap { .. }
            | Self::Error { .. }
            | Self::ServerShutdown { .. }
            | Self::Other => None,
        }
    }
}

/// The part of a job document that is shown.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Job {
    pub(crate) job_id: String,
    pub(crate) status: Status,
    pub(crate) progress: Option<f64>,
    pub(crate) stage: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) eta_seconds: Option<f64>,
    pub(crate) eta_estimated: bool,
    pub(crate) error: Option<JobError>,
    pub(crate) result_url: Option<String>,
    pub(crate) created_at: Option<String>,
    pub(crate) updated_at: Option<String>,
}

/// Why a job failed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct JobError {
    pub(crate) code: Option<Value>,
    pub(crate) message: Option<String>,
}

/// The five words of a job's status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Queued,
    Completed,
    Failed,
    Cancelled,
    /// Also any word of a later version: whatever it is, the job is not over.
    #[default]
    #[serde(other)]
    Running,
}

impl Status {
    /// The word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Job {
    /// Whole percent, 0 to 100.
    pub(crate) fn percent(&self) -> Option<u64> {
        self.progress
            .filter(|p| p.is_finite())
            .map(|p| p.clamp(0.0, 100.0) as u64)
    }

    /// `stage: message`, or whichever of the two there is.
    pub(crate) fn doing(&self) -> String {
        let parts = [self.stage.as_deref(), self.message.as_deref()];
        let parts: Vec<_> = parts
            .into_iter()
            .flatten()
            .filter(|text| !text.is_empty())
            .map(printable)
            .collect();
        parts.join(": ")
    }

    /// What is worth knowing at the end: the error or the result's place, or the last message.
    pub(crate) fn ending(&self) -> String {
        match (self.status, &self.error, &self.result_url) {
            (Status::Completed, _, Some(url)) => printable(url),
            (Status::Failed | Status::Cancelled, Some(error), _)
                if *error != JobError::default() =>
            {
                let message = error.message.as_deref().map(printable).unwrap_or_default();
                match error.code.as_ref().map(bare) {
                    Some(code) if message.is_empty() => code,
                    Some(code) => format!("{message} ({code})"),
                    None => message,
                }
            }
            _ => self.message.as_deref().map(printable).unwrap_or_default(),
        }
    }

    /// From the job's creation to its last update, in seconds, when the document says both.
    pub(crate) fn took(&self) -> Option<f64> {
        let at = |text: &Option<String>| {
            WallTime::parse_rfc3339(text.as_deref()?).map(WallTime::as_unix_micros)
        };
        let micros = at(&self.updated_at)?.checked_sub(at(&self.created_at)?)?;
        (micros > 0).then(|| micros as f64 / 1e6)
    }
}

/// A JSON value as one word for people.
fn bare(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| printable(&value.to_string()), printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_frame_of_a_later_version_is_not_an_error() {
        let frame: Frame = serde_json::from_str(r#"{"type":"confetti","amount":3}"#).unwrap();
        assert!(matches!(frame, Frame::Other));
        let frame: Frame =
            serde_json::from_str(r#"{"type":"hello","version":"9","new":{}}"#).unwrap();
        assert!(matches!(frame, Frame::Hello {}));
        assert_eq!(job(r#"{"status":"paused"}"#).status, Status::Running);
    }

    #[test]
    fn a_document_that_not_every_reader_can_read_is_read() {
        for fields in [
            r#""meta":{"n":1e400}"#,
            r#""message":"a","message":"b""#,
            r#""error":{"message":"x","message":"y"}"#,
            r#""progress":1e999,"stage":"\ud83d""#,
            r#""\ud83d":1,"tasks":[{"name":"\udc00"}]"#,
        ] {
            let text = format!(
                "{{\"type\":\"state\",\"cursor\":\"c\",\"job\":{{\"job_id\":\"a\",\"status\":\"failed\",{fields}}}}}"
            );
            let frame = Frame::read(&text).unwrap();
            let Frame::State { job, .. } = frame else {
                panic!("{text}");
            };
            assert_eq!(job.status, Status::Failed, "{text}");
        }
        assert!(Frame::read(r#"{"type":"state","job":{"job_id":7}}"#).is_err());
        assert!(Frame::read("{").is_err());
    }

    #[test]
    fn every_frame_that_moves_the_client_on_yields_its_cursor() {
        for text in [
            r#"{"type":"subscribed","topic":"job:a","recovered":false,"jobs":1,"cursor":"c1"}"#,
            r#"{"type":"state","topic":"job:a","cursor":"c1","job":{"job_id":"a","status":"queued"}}"#,
            r#"{"type":"milestone","topic":"job:a","cursor":"c1","job_id":"a","name":"n","data":{}}"#,
            r#"{"type":"gone","topic":"job:a","cursor":"c1","job_id":"a"}"#,
        ] {
            let frame: Frame = serde_json::from_str(text).unwrap();
            assert_eq!(frame.cursor(), Some("c1"), "{text}");
        }
    }

    #[test]
    fn an_ending_says_what_is_worth_knowing() {
        let failed =
            r#"{"status":"failed","message":"m","error":{"code":"E5","message":"disk full"}}"#;
        assert_eq!(job(failed).ending(), "disk full (E5)");
        assert_eq!(job(r#"{"status":"failed","message":"m"}"#).ending(), "m");
        assert_eq!(
            job(r#"{"status":"completed","result_url":"/r","message":"m"}"#).ending(),
            "/r"
        );
    }

    #[test]
    fn a_jobs_own_words_cannot_steer_the_terminal() {
        assert_eq!(job(r#"{"stage":"a\nb","message":""}"#).doing(), "a b");
    }

    #[test]
    fn progress_out_of_range_is_shown_within_it() {
        assert_eq!(job(r#"{"progress":140.0}"#).percent(), Some(100));
        assert_eq!(job(r#"{"progress":99.9}"#).percent(), Some(99));
        assert_eq!(job(r#"{"progress":null}"#).percent(), None);
    }
}
