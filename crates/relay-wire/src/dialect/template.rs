//! Topics with places to be filled from a request: its path, its query, its credential.
//!
//! It knows texts alone: no routes, no requests, no mappings.
//!
//! Invariant: whatever a place is filled with, what comes of it is parsed as a topic before anybody is asked about it.

use relay_core::id::Name;
use relay_core::topic::{Topic, TopicError};

use super::Params;

/// How much of a text that is not a topic is shown.
const MAX_SHOWN: usize = 160;

/// A text, filled in from a request, that is not a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid topic: {source}")]
pub struct BadTopic {
    text: String,
    source: TopicError,
}

impl BadTopic {
    /// The topic that a text is.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn unless(text: String) -> Result<Topic, Self> {
        Topic::parse(&text).map_err(|source| Self {
            // Bounded: the text comes from the client and goes into answers.
            text: text.chars().take(MAX_SHOWN).collect(),
            source,
        })
    }
}

/// Why a poll does not say what it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTopic {
    /// It is about the client's own user, and there is none.
    #[error("this path needs to know the user, and the relay runs without tokens (auth.mode)")]
    User,
    /// It is about what this parameter of the query names, and the query has none.
    #[error("the query parameter {0} is missing; it names what to watch")]
    Query(String),
    /// It is about something that is not a topic.
    #[error(transparent)]
    Bad(#[from] BadTopic),
}

/// A topic with places to be filled: `job:{job}`, `user:{user}`, `user:{user|-}`, `job:{?generation_id}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

/// Why a text is not a template of a topic.
#[derive(Debug, thiserror::Error)]
pub(super) enum TemplateError {
    /// A place that does not end.
    #[error("a {{ has no }} behind it")]
    Unclosed,
    /// A place for what the path does not have.
    #[error("{{{0}}} is not a parameter of the path")]
    UnknownParameter(String),
    /// Whatever is filled in, it is not a topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Param(String),
    Query(String),
    /// The client's user, or this one where there is none.
    User(Option<String>),
}

impl Template {
    /// The job the path names.
    pub(super) fn of_job() -> Self {
        Self(vec![
            Part::Text("job:".to_owned()),
            Part::Param("job".to_owned()),
        ])
    }

    /// Whether it is of one job, whatever it is filled with.
    pub(super) fn is_of_job(&self) -> bool {
        matches!(self.0.first(), Some(Part::Text(text)) if text.starts_with("job:"))
    }

    /// What kept the template from being filled. Path parameters are there, or the path would not be.
    pub(super) fn missing(&self, query: &[(String, String)]) -> NoTopic {
        let mut wanted = self.0.iter().filter_map(|part| match part {
            Part::Query(name) if !query.iter().any(|(each, _)| each == name) => Some(name.clone()),
            _ => None,
        });
        wanted.next().map_or(NoTopic::User, NoTopic::Query)
    }

    /// Reads a template whose parameters are among `params`.
    pub(super) fn parse(text: &str, params: &[&str]) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(match name.strip_prefix('?') {
                Some(query) => Part::Query(query.to_owned()),
                None if params.contains(&name) => Part::Param(name.to_owned()),
                None if name == "user" => Part::User(None),
                None if name.starts_with("user|") => {
                    Part::User(name.strip_prefix("user|").map(str::to_owned))
                }
                None => return Err(TemplateError::UnknownParameter(name.to_owned())),
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        let template = Self(parts);
        let sample = template.with(|part| match part {
            Part::User(Some(other)) => Some(other.clone()),
            _ => Some("x".to_owned()),
        });
        let sample = sample.unwrap_or_default();
        Topic::parse(&sample)?;
        Ok(template)
    }

    pub(super) fn fill(
        &self,
        params: &Params,
        query: &[(String, String)],
        user: Option<&Name>,
    ) -> Option<String> {
        self.with(|part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Param(name) => params.get(name).map(str::to_owned),
            Part::Query(name) => {
                let found = query.iter().find(|(each, _)| each == name);
                found.map(|(_, value)| value.clone())
            }
            Part::User(other) => {
                let user = user.map(|user| user.as_str().to_owned());
                user.or_else(|| other.clone())
            }
        })
    }

    fn with(&self, mut value: impl FnMut(&Part) -> Option<String>) -> Option<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                other => text.push_str(&value(other)?),
            }
        }
        Some(text)
    }
}

/// The names of a path's parameters.
pub(super) fn params_of(path: &str) -> Vec<&str> {
    let segments = path.split('/');
    segments
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .collect()
}
