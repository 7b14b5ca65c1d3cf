//! Why a worker's words were not taken, said so that the worker's author can fix them.
//!
//! Knows nothing of HTTP or NATS: [`Refusal::code`] is for metrics and error bodies, [`Refusal::field`]
//! for a form, the display text for a person.
//!
//! Invariant: the text quotes at most [`MAX_QUOTED_CHARS`] of what was sent.

use std::borrow::Cow;
use std::fmt;

use crate::id::{Name, NameError};

use super::MAX_DEPTH;
use super::rule::shown;

/// How much of a refused value a message repeats.
pub(crate) const MAX_QUOTED_CHARS: usize = 40;

/// Why a payload is not a job document, a milestone or a merge patch.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No byte at all where a document was wanted.
    #[error("the payload is empty; send a JSON object")]
    Empty,
    /// Not text.
    #[error("the payload is not UTF-8 from byte {offset} on; send JSON as UTF-8")]
    NotUtf8 {
        /// The first byte that is not part of a character.
        offset: usize,
    },
    /// Text, but not JSON.
    #[error("the payload is not JSON: {reason} at line {line} column {column}")]
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
        /// What the reader stumbled over. Its error type can be neither copied nor compared.
        reason: Box<str>,
    },
    /// JSON, but not an object.
    #[error("{wanted} must be a JSON object, not {found}")]
    NotAnObject {
        /// What was to be read.
        wanted: &'static str,
        /// The kind of value that came instead.
        found: &'static str,
    },
    /// Brackets within brackets.
    #[error("the payload is nested deeper than {MAX_DEPTH} levels; flatten it")]
    TooDeep,
    /// A name twice in one object, so that nobody can say which value counts.
    #[error("{field}: appears twice; keep one")]
    DuplicateField {
        /// The name, such as `progress` or `meta.a`.
        field: Box<str>,
    },
    /// The one field each state must have.
    #[error("status: is missing; use queued, running, completed, failed or cancelled")]
    MissingStatus,
    /// A known field with a value it cannot have.
    #[error("{field}: {problem}")]
    Field {
        /// The field, such as `progress` or `tasks[2].progress`.
        field: Cow<'static, str>,
        /// What is wrong with its value.
        problem: Problem,
    },
    /// The body names another job or owner than the subject or URL does.
    #[error("{field}: {said} in the body contradicts {given} in the subject or URL; leave it out")]
    Contradiction {
        /// `job_id` or `owner`.
        field: &'static str,
        /// What the body says.
        said: Quoted,
        /// What the subject or URL says.
        given: Name,
    },
}

impl Refusal {
    /// The field at fault, if it is one field.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::MissingStatus => Some("status"),
            Self::DuplicateField { field } => Some(field),
            Self::Field { field, .. } => Some(field),
            Self::Contradiction { field, .. } => Some(field),
            Self::Empty
            | Self::NotUtf8 { .. }
            | Self::NotJson { .. }
            | Self::NotAnObject { .. }
            | Self::TooDeep => None,
        }
    }

    /// The reason as one word, for a metric's label and an error body.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Empty | Self::NotUtf8 { .. } | Self::NotJson { .. } => "bad_json",
            Self::NotAnObject { .. } => "not_an_object",
            Self::TooDeep
            | Self::Field {
                problem: Problem::TooDeep,
                ..
            } => "too_deep",
            Self::DuplicateField { .. } => "duplicate_field",
            Self::Field {
                problem: Problem::TooLarge { .. },
                ..
            } => "too_large",
            Self::MissingStatus => "missing_status",
            Self::Field { .. } => "bad_field",
            Self::Contradiction { .. } => "contradiction",
        }
    }

    pub(super) fn not_json(error: serde_json::Error) -> Self {
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or_default();
        Self::NotJson {
            line: error.line(),
            column: error.column(),
            reason: reason.into(),
        }
    }

    /// A name whose escapes make no text.
    pub(super) fn broken_name(key: &str) -> Self {
        let problem = Problem::BrokenText {
            found: Quoted::new(key),
        };
        Self::field_problem(shown(key).to_string(), problem)
    }

    /// Whether it is about the size of one field.
    pub(super) const fn is_too_large(&self) -> bool {
        let Self::Field { problem, .. } = self else {
            return false;
        };
        matches!(problem, Problem::TooLarge { .. })
    }

    pub(super) fn field_problem(field: impl Into<Cow<'static, str>>, problem: Problem) -> Self {
        Self::Field {
            field: field.into(),
            problem,
        }
    }
}

/// What is wrong with one field's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A value of another kind: a string where a number is meant.
    #[error("{found} is {kind} where {meant} is meant")]
    Kind {
        /// The value.
        found: Quoted,
        /// `a string`, `a number`, …
        kind: &'static str,
        /// What the field holds.
        meant: &'static str,
    },
    /// A number out of its range.
    #[error("{found} is outside {range}")]
    Range {
        /// The number.
        found: Quoted,
        /// `0 to 100`, …
        range: &'static str,
    },
    /// `NaN` or `Infinity`, which some encoders write and JSON does not have.
    #[error("{found} is not a JSON number; send a finite number or leave the field out")]
    NotFinite {
        /// The word or number.
        found: Quoted,
    },
    /// Bytes that are not text.
    #[error("is not UTF-8; send JSON as UTF-8")]
    NotUtf8,
    /// A number that no double holds, which some readers reject and others call infinite.
    #[error("{found} is beyond what a double holds; send a smaller number, or a string")]
    BeyondDouble {
        /// The number.
        found: Quoted,
    },
    /// A status word the relay does not know.
    #[error("{found} is not a known status; use queued, running, completed, failed or cancelled")]
    UnknownStatus {
        /// The word.
        found: Quoted,
    },
    /// Not an RFC 3339 time.
    #[error("{found} is not an RFC 3339 time with its offset, such as 2026-11-21T10:00:00.250Z")]
    NotATime {
        /// The text.
        found: Quoted,
    },
    /// Not a name.
    #[error("{found} {source}")]
    NotAName {
        /// The text.
        found: Quoted,
        /// What a name may be.
        source: NameError,
    },
    /// A string with half a surrogate pair, which is not a character.
    #[error("{found} holds an escape that is not a character, such as half a surrogate pair")]
    BrokenText {
        /// The string.
        found: Quoted,
    },
    /// Not JSON, in an object that otherwise is.
    #[error("{found} is not JSON")]
    NotJson {
        /// The value.
        found: Quoted,
    },
    /// Brackets within brackets.
    #[error("is nested deeper than {MAX_DEPTH} levels; flatten it")]
    TooDeep,
    /// More than there is room for.
    #[error("is {bytes} bytes of an update that may have {limit} (limits.update_bytes)")]
    TooLarge {
        /// The value's size in bytes.
        bytes: usize,
        /// The limit of the whole update in bytes.
        limit: usize,
    },
    /// A required part of a sub-object that is not there.
    #[error("is missing; {meant} is meant")]
    Missing {
        /// What the part holds.
        meant: &'static str,
    },
}

impl Problem {
    pub(super) fn kind(raw: &str, meant: &'static str) -> Self {
        Self::Kind {
            found: Quoted::new(raw),
            kind: kind_of(raw),
            meant,
        }
    }
}

/// The beginning of a value that was sent, short enough to repeat in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(Box<str>);

impl Quoted {
    pub(super) fn new(raw: &str) -> Self {
        match raw.char_indices().nth(MAX_QUOTED_CHARS) {
            None => Self(raw.into()),
            Some((cut, _)) => Self(format!("{}…", &raw[..cut]).into()),
        }
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of value `raw` is, for a message.
pub(super) fn kind_of(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}
