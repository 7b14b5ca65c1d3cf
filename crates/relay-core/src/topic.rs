//! What a client watches: `job:<id>`, `user:<id>`, `group:<id>`.
//!
//! A topic knows its spelling and nothing of who may watch it.

use std::fmt;

use crate::id::{Name, NameError};

/// One of the three things a client can watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// One job.
    Job(Name),
    /// All jobs of one user.
    User(Name),
    /// All jobs whose `parent_id` is this.
    Group(Name),
}

/// Why a text is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// No `job:`, `user:` or `group:` in front.
    #[error("a topic is job:<id>, user:<id> or group:<id>")]
    UnknownKind,
    /// What follows the colon is not a name.
    #[error("the id after the colon {0}")]
    BadName(#[from] NameError),
}

impl Topic {
    /// Reads `job:<id>`, `user:<id>` or `group:<id>`.
    ///
    /// # Errors
    /// When the kind is none of the three or the id is not a name.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let (kind, id) = text.split_once(':').ok_or(TopicError::UnknownKind)?;
        match kind {
            "job" => Ok(Self::Job(Name::parse(id)?)),
            "user" => Ok(Self::User(Name::parse(id)?)),
            "group" => Ok(Self::Group(Name::parse(id)?)),
            _ => Err(TopicError::UnknownKind),
        }
    }

    /// `job`, `user` or `group`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Job(_) => "job",
            Self::User(_) => "user",
            Self::Group(_) => "group",
        }
    }

    /// The id after the colon.
    pub fn id(&self) -> &Name {
        match self {
            Self::Job(id) | Self::User(id) | Self::Group(id) => id,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_topic_without_a_known_kind_is_refused() {
        assert_eq!(Topic::parse("jobs:1"), Err(TopicError::UnknownKind));
        assert_eq!(Topic::parse("job"), Err(TopicError::UnknownKind));
        assert_eq!(
            Topic::parse("job:"),
            Err(TopicError::BadName(NameError::Empty))
        );
    }

    proptest! {
        #[test]
        fn a_topic_reads_back_what_it_writes(kind in "job|user|group", id in "[A-Za-z0-9_-]{1,128}") {
            let text = format!("{kind}:{id}");
            let topic = Topic::parse(&text).unwrap();
            prop_assert_eq!(topic.to_string(), text);
        }

        #[test]
        fn any_text_is_a_topic_or_an_error_but_never_a_panic(text in ".{0,200}") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert_eq!(topic.to_string(), text);
            }
        }
    }
}
