//! An update that was refused, or not taken whole, put into words for somebody who sees no more of it.
//!
//! No payload is kept: of what a worker wrote there is the sentence alone, which quotes the beginning of a value. It
//! does not know who is told.
//!
//! Invariant: whatever was sent, the words are short, and nothing in them is obeyed by a terminal or breaks a line.

use relay_core::document::Refusal;
use relay_core::job::Declined;
use relay_core::moment::WallTime;
use relay_core::position::Seq;
use serde::{Serialize, Serializer};

use super::Incoming;

/// Characters of a subject that are shown.
const SUBJECT_CHARS: usize = 300;
/// Characters of a field's name that are shown.
const FIELD_CHARS: usize = 100;
/// Characters of a sentence that are shown.
const SENTENCE_CHARS: usize = 400;

/// What became of an update that somebody should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It went no further.
    Refused,
    /// It is an ending, and was accepted without what was wrong in it.
    Shortened,
}

/// One update that was not taken as it is, in words that are short and safe to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedUpdate {
    /// What became of it.
    pub outcome: Outcome,
    /// A word for metrics and programs: the code that the same update gets over HTTP.
    pub reason: &'static str,
    /// What was wrong, in the words of an HTTP answer.
    pub sentence: String,
    /// The field at fault, if it is one.
    pub field: Option<String>,
    /// As it was published.
    pub subject: String,
    /// The bus's number for it, if it has one.
    pub seq: Option<Seq>,
    /// The job, if the subject says.
    pub job: Option<String>,
    /// The owner, as the subject has it.
    pub owner: Option<String>,
    /// Bytes of its payload.
    pub size: usize,
    /// When the bus took it in, or this node read it.
    #[serde(serialize_with = "as_text")]
    pub time: WallTime,
}

impl RefusedUpdate {
    /// An update that was read as far as its subject, which begins with `stem`, and declined.
    pub(crate) fn declined(stem: &str, incoming: &Incoming, declined: &Declined) -> Self {
        let field = match declined {
            Declined::Refused(refusal) => refusal.field(),
            _ => None,
        };
        Self {
            outcome: Outcome::Refused,
            reason: declined.code(),
            sentence: shown(&declined.to_string(), SENTENCE_CHARS),
            field: field.map(|field| shown(field, FIELD_CHARS)),
            subject: format!("{stem}{incoming}"),
            seq: Some(incoming.seq),
            job: Some(incoming.job.id.to_string()),
            owner: Some(incoming.job.owner.to_string()),
            size: incoming.payload.len(),
            time: incoming.stored_at,
        }
    }

    /// An ending that was accepted without this.
    pub(crate) fn shortened(stem: &str, incoming: &Incoming, dropped: &Refusal) -> Self {
        Self {
            outcome: Outcome::Shortened,
            ..Self::declined(stem, incoming, &Declined::Refused(dropped.clone()))
        }
    }

    /// A message that is not read any further.
    pub(crate) fn unread(
        subject: &str,
        reason: &'static str,
        sentence: &str,
        about: About,
    ) -> Self {
        Self {
            outcome: Outcome::Refused,
            reason,
            sentence: shown(sentence, SENTENCE_CHARS),
            field: None,
            subject: shown(subject, SUBJECT_CHARS),
            seq: about.seq,
            job: None,
            owner: None,
            size: about.size,
            time: about.time,
        }
    }

    /// The same, of whom it is and which part is at fault.
    #[must_use]
    pub(crate) fn of(self, owner: Option<&str>, field: Option<&'static str>) -> Self {
        Self {
            owner: owner.map(|owner| shown(owner, FIELD_CHARS)),
            field: field.map(str::to_owned),
            ..self
        }
    }

    /// Whether `other` is the same mistake of the same author: it is counted, not listed again.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let what = |it: &Self| (it.outcome, it.reason);
        what(self) == what(other) && self.subject == other.subject && self.field == other.field
    }
}

/// What is known of a message beside its subject.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub(crate) seq: Option<Seq>,
    pub(crate) size: usize,
    pub(crate) time: WallTime,
}

/// `text` on one line, with nothing in it that a terminal or a log would obey, and not longer than `limit`.
fn shown(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    let mut left = limit;
    for character in text.chars() {
        let is_plain = matches!(character, '"' | '\'' | '\\');
        let escaped = character.escape_debug();
        let length = if is_plain { 1 } else { escaped.len() };
        if length > left {
            out.push('…');
            break;
        }
        left -= length;
        if is_plain {
            out.push(character);
        } else {
            out.extend(escaped);
        }
    }
    out
}

pub(crate) fn as_text<S: Serializer>(time: &WallTime, serializer: S) -> Result<S::Ok, S::Error> {
    time.to_rfc3339().serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_wrote_is_shown_short_and_on_one_line() {
        assert_eq!(shown("a \"b\" c:\\d é", 40), "a \"b\" c:\\d é");
        let control = "a\u{1b}[2J\nb\u{202e}c";
        assert_eq!(shown(control, 40), "a\\u{1b}[2J\\nb\\u{202e}c");
        assert_eq!(shown(&"x".repeat(50), 10), format!("{}…", "x".repeat(10)));
    }
}
