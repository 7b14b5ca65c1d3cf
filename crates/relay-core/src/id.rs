//! The names of things: jobs, owners, parents, milestones.
//!
//! Every name that comes from outside passes through here once, so the rest of the relay can put one
//! into a subject, a log line or a URL without looking at it again.
//!
//! Invariant: a [`Name`] matches `[A-Za-z0-9_-]{1,128}`.

pub mod user;

use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A job id, an owner's user id, a parent's id or a milestone's name: `[A-Za-z0-9_-]{1,128}`.
///
/// Cheap to clone. The owner of a job that nobody owns is [`Name::nobody`], written `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// A job's id.
pub type JobId = Name;
/// A user's id, or `-`.
pub type Owner = Name;

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("is empty; use 1 to 128 of A-Z a-z 0-9 _ -")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("is longer than 128 characters")]
    TooLong,
    /// A character outside the set.
    #[error("contains {0:?}; use only A-Z a-z 0-9 _ -")]
    BadCharacter(char),
}

impl Name {
    /// Checks `text` and takes it as a name.
    ///
    /// # Errors
    /// Says what is wrong when `text` does not match `[A-Za-z0-9_-]{1,128}`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(Arc::from(text)))
    }

    /// The owner of a job that belongs to nobody: `-`.
    pub fn nobody() -> Self {
        Self(Arc::from("-"))
    }

    /// Whether this is the owner `-`.
    pub fn is_nobody(&self) -> bool {
        &*self.0 == "-"
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks that `text` is a name, without taking it.
///
/// # Errors
/// As [`Name::parse`].
pub fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong);
    }
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || *c == '_' || *c == '-'))
    {
        Some(c) => Err(NameError::BadCharacter(c)),
        None => Ok(()),
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_takes_only_its_alphabet_and_length() {
        assert!(Name::parse("Job_1-b").is_ok());
        assert_eq!(Name::parse(""), Err(NameError::Empty));
        assert_eq!(Name::parse("a.b"), Err(NameError::BadCharacter('.')));
        assert_eq!(Name::parse("a*"), Err(NameError::BadCharacter('*')));
        assert!(Name::parse(&"x".repeat(128)).is_ok());
        assert_eq!(Name::parse(&"x".repeat(129)), Err(NameError::TooLong));
    }
}
