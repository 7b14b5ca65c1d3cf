//! The five statuses of a job, and the many words workers have for them.
//!
//! Knows words only; what may follow what is the guard's business.
//!
//! Invariant: each status is its own word, and no word means two statuses.

use std::fmt;

use serde::Serialize;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted, not begun.
    Queued,
    /// Being worked on.
    Running,
    /// Ended well. Terminal.
    Completed,
    /// Ended badly. Terminal.
    Failed,
    /// Ended because somebody wanted it to. Terminal.
    Cancelled,
}

/// What people write when they mean one of the five: lower case, `_` between words.
pub(super) const SYNONYMS: [(&str, Status); 80] = [
    ("accepted", Status::Queued),
    ("blocked", Status::Queued),
    ("created", Status::Queued),
    ("delayed", Status::Queued),
    ("enqueued", Status::Queued),
    ("idle", Status::Queued),
    ("new", Status::Queued),
    ("not_started", Status::Queued),
    ("pending", Status::Queued),
    ("received", Status::Queued),
    ("scheduled", Status::Queued),
    ("submitted", Status::Queued),
    ("todo", Status::Queued),
    ("waiting", Status::Queued),
    ("active", Status::Running),
    ("analysing", Status::Running),
    ("analyzing", Status::Running),
    ("busy", Status::Running),
    ("canceling", Status::Running),
    ("cancelling", Status::Running),
    ("composing", Status::Running),
    ("converting", Status::Running),
    ("decoding", Status::Running),
    ("downloading", Status::Running),
    ("encoding", Status::Running),
    ("executing", Status::Running),
    ("exporting", Status::Running),
    ("finalizing", Status::Running),
    ("generating", Status::Running),
    ("importing", Status::Running),
    ("in_progress", Status::Running),
    ("inprogress", Status::Running),
    ("ongoing", Status::Running),
    ("paused", Status::Running),
    ("postprocessing", Status::Running),
    ("preparing", Status::Running),
    ("preprocessing", Status::Running),
    ("processing", Status::Running),
    ("progress", Status::Running),
    ("rendering", Status::Running),
    ("resumed", Status::Running),
    ("retry", Status::Running),
    ("retrying", Status::Running),
    ("started", Status::Running),
    ("starting", Status::Running),
    ("stopping", Status::Running),
    ("transcoding", Status::Running),
    ("uploading", Status::Running),
    ("working", Status::Running),
    ("complete", Status::Completed),
    ("done", Status::Completed),
    ("finish", Status::Completed),
    ("finished", Status::Completed),
    ("ok", Status::Completed),
    ("passed", Status::Completed),
    ("ready", Status::Completed),
    ("resolved", Status::Completed),
    ("success", Status::Completed),
    ("successful", Status::Completed),
    ("succeeded", Status::Completed),
    ("crashed", Status::Failed),
    ("dead", Status::Failed),
    ("error", Status::Failed),
    ("errored", Status::Failed),
    ("expired", Status::Failed),
    ("fail", Status::Failed),
    ("failure", Status::Failed),
    ("rejected", Status::Failed),
    ("timed_out", Status::Failed),
    ("timeout", Status::Failed),
    ("abort", Status::Cancelled),
    ("aborted", Status::Cancelled),
    ("cancel", Status::Cancelled),
    ("canceled", Status::Cancelled),
    ("interrupted", Status::Cancelled),
    ("killed", Status::Cancelled),
    ("revoked", Status::Cancelled),
    ("skipped", Status::Cancelled),
    ("stopped", Status::Cancelled),
    ("terminated", Status::Cancelled),
];

/// Longer than any word in [`SYNONYMS`].
const MAX_WORD_BYTES: usize = 16;

impl Status {
    /// All five, in the order a job goes through them.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The one word for it on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing may follow it within the same attempt.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The status a worker means by `word`: one of the five or a common synonym, whatever its case,
    /// with `-`, `_` or a space between words. `None` if the word is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        if let Some(exact) = Self::from_canonical(word) {
            return Some(exact);
        }
        let mut buffer = [0; MAX_WORD_BYTES];
        let plain = buffer.get_mut(..word.len())?;
        for (to, from) in plain.iter_mut().zip(word.bytes()) {
            *to = match from {
                b'-' | b' ' => b'_',
                other => other.to_ascii_lowercase(),
            };
        }
        let plain = std::str::from_utf8(plain).ok()?;
        Self::from_canonical(plain).or_else(|| {
            let (_, status) = SYNONYMS.iter().find(|(synonym, _)| *synonym == plain)?;
            Some(*status)
        })
    }

    fn from_canonical(word: &str) -> Option<Self> {
        match word {
            "queued" => Some(Self::Queued),
            "running" => Some(Self::Running),
            "completed" => Some(Self::Completed),
            "failed" => Some(Self::Failed),
            "cancelled" => Some(Self::Cancelled),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_is_its_own_word() {
        for status in Status::ALL {
            assert_eq!(Status::from_word(status.as_str()), Some(status));
            assert_eq!(
                serde_json::to_string(&status).unwrap(),
                format!("\"{status}\"")
            );
        }
    }

    #[test]
    fn each_synonym_means_one_status_however_it_is_spelled() {
        for (at, (word, status)) in SYNONYMS.iter().enumerate() {
            assert!(word.len() <= MAX_WORD_BYTES);
            assert_eq!(Status::from_word(word), Some(*status));
            assert_eq!(Status::from_word(&word.to_uppercase()), Some(*status));
            assert_eq!(Status::from_word(&word.replace('_', "-")), Some(*status));
            assert_eq!(Status::from_word(&word.replace('_', " ")), Some(*status));
            assert!(
                SYNONYMS[at + 1..].iter().all(|(other, _)| other != word),
                "{word} is listed twice"
            );
        }
    }

    #[test]
    fn a_word_nobody_uses_is_no_status() {
        for word in [
            "",
            "frobnicated",
            "läuft",
            "a word much longer than any",
            "queued\0",
        ] {
            assert_eq!(Status::from_word(word), None, "{word}");
        }
    }

    #[test]
    fn three_statuses_end_a_job() {
        let endings: Vec<_> = Status::ALL
            .into_iter()
            .filter(|s| s.is_terminal())
            .collect();
        assert_eq!(
            endings,
            [Status::Completed, Status::Failed, Status::Cancelled]
        );
    }
}
