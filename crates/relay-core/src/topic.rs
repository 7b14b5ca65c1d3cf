//! What a client watches: `job:<owner>/<id>`, `user:<id>`, `group:<owner>/<id>`.
//!
//! A job or a group may be named bare, without its owner; which one that is, is said when it is known who asks.
//! A topic knows its spelling and nothing of who may watch it.

use std::fmt;

use crate::id::{JobName, Name, NameError, Named, Owner};

/// One of the three things a client can watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// One job.
    Job(Named),
    /// All jobs of one user.
    User(Name),
    /// All jobs of one owner whose `parent_id` is this.
    Group(Named),
}

/// Why a text is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// No `job:`, `user:` or `group:` in front.
    #[error(
        "a topic is job:<id>, user:<id> or group:<id>, and with its owner job:<owner>/<id> or group:<owner>/<id>"
    )]
    UnknownKind,
    /// What follows the colon is not a name.
    #[error("the id after the colon {0}")]
    BadName(#[from] NameError),
}

impl Topic {
    /// Reads `job:<owner>/<id>`, `user:<id>` or `group:<owner>/<id>`; a job or a group may be bare, `job:<id>`.
    ///
    /// # Errors
    /// When the kind is none of the three or what follows is not a name.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let (kind, id) = text.split_once(':').ok_or(TopicError::UnknownKind)?;
        match kind {
            "job" => Ok(Self::Job(Named::parse(id)?)),
            "user" => Ok(Self::User(Name::parse(id)?)),
            "group" => Ok(Self::Group(Named::parse(id)?)),
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

    /// The id after the colon, and behind the owner.
    pub fn id(&self) -> &Name {
        match self {
            Self::Job(named) | Self::Group(named) => &named.id,
            Self::User(id) => id,
        }
    }

    /// The job, or the group, if it is one.
    pub fn named(&self) -> Option<&Named> {
        match self {
            Self::Job(named) | Self::Group(named) => Some(named),
            Self::User(_) => None,
        }
    }

    /// One job exactly.
    pub fn job(name: JobName) -> Self {
        Self::Job(name.into())
    }

    /// One group exactly.
    pub fn group(name: JobName) -> Self {
        Self::Group(name.into())
    }

    /// Whether it is a job or a group, and does not say whose.
    pub fn is_bare(&self) -> bool {
        self.named().is_some_and(|named| named.owner.is_none())
    }

    /// The same without saying whose.
    #[must_use]
    pub fn bare(&self) -> Self {
        match self {
            Self::Job(named) => Self::Job(Named::bare(named.id.clone())),
            Self::Group(named) => Self::Group(Named::bare(named.id.clone())),
            Self::User(_) => self.clone(),
        }
    }

    /// The same of this owner.
    #[must_use]
    pub fn of(&self, owner: &Owner) -> Self {
        let named = |id: &Name| Named {
            owner: Some(owner.clone()),
            id: id.clone(),
        };
        match self {
            Self::Job(it) => Self::Job(named(&it.id)),
            Self::Group(it) => Self::Group(named(&it.id)),
            Self::User(_) => self.clone(),
        }
    }
}

/// A topic as its client wrote it: who named it bare reads it bare, whosever it turned out to be.
#[derive(Debug, Clone, Copy)]
pub struct Spelling<'a> {
    /// What it means.
    pub topic: &'a Topic,
    /// Whether the owner is left out.
    pub is_bare: bool,
}

impl<'a> From<&'a Topic> for Spelling<'a> {
    fn from(topic: &'a Topic) -> Self {
        let is_bare = topic.is_bare();
        Self { topic, is_bare }
    }
}

impl fmt::Display for Spelling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_bare {
            true => write!(f, "{}:{}", self.topic.kind(), self.topic.id()),
            false => self.topic.fmt(f),
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(named) | Self::Group(named) => write!(f, "{}:{named}", self.kind()),
            Self::User(id) => write!(f, "{}:{id}", self.kind()),
        }
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

    #[test]
    fn a_job_and_a_group_may_say_whose_they_are_and_a_user_may_not() {
        let owner = Name::parse("alice").unwrap();
        for bare in ["job:a", "group:a"] {
            let topic = Topic::parse(bare).unwrap();
            let exact = topic.of(&owner);
            assert!(topic.is_bare() && !exact.is_bare());
            assert_eq!(Topic::parse(&exact.to_string()), Ok(exact.clone()));
            assert_eq!(exact.bare(), topic);
        }
        for bad in ["user:a/b", "job:a/", "job:/b", "job:a/b/c", "group:a//b"] {
            assert!(
                matches!(Topic::parse(bad), Err(TopicError::BadName(_))),
                "{bad}"
            );
        }
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
