//! The names of things: jobs, owners, parents, milestones.
//!
//! Every name that comes from outside passes through here once, so the rest of the relay can put one
//! into a subject, a log line or a URL without looking at it again.
//!
//! An id belongs to its owner: two owners may each have a job with the same id. [`JobName`] is what tells
//! them apart, wherever a job is kept; [`Named`] is what a client says, who may leave the owner out.
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

/// The exact name of a job, or of the group of its children: whose it is, and its id.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobName {
    /// Whose it is.
    pub owner: Owner,
    /// Its id, which another owner may use as well.
    pub id: JobId,
}

/// A [`JobName`] to look one up by, of names that stand apart.
#[derive(Debug, Clone, Copy, Hash)]
pub struct JobNameRef<'a> {
    /// Whose it is.
    pub owner: &'a Owner,
    /// Its id.
    pub id: &'a JobId,
}

impl JobName {
    /// The job `id` of `owner`.
    pub fn new(owner: Owner, id: JobId) -> Self {
        Self { owner, id }
    }

    /// To look it up by.
    pub fn as_ref(&self) -> JobNameRef<'_> {
        JobNameRef {
            owner: &self.owner,
            id: &self.id,
        }
    }
}

impl hashbrown::Equivalent<JobName> for JobNameRef<'_> {
    fn equivalent(&self, name: &JobName) -> bool {
        *self.owner == name.owner && *self.id == name.id
    }
}

impl fmt::Display for JobName {
    /// As topics have it: `alice/clip-42`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.id)
    }
}

impl fmt::Debug for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A job or a group as somebody names it: with its owner, or bare.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    /// Whose it is, where that was said.
    pub owner: Option<Owner>,
    /// Its id.
    pub id: Name,
}

impl Named {
    /// Any owner's `id`.
    pub fn bare(id: Name) -> Self {
        Self { owner: None, id }
    }

    /// Reads `<id>` or `<owner>/<id>`.
    ///
    /// # Errors
    /// When one of them is not a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            None => Ok(Self::bare(Name::parse(text)?)),
            Some((owner, id)) => Ok(Self {
                owner: Some(Name::parse(owner)?),
                id: Name::parse(id)?,
            }),
        }
    }

    /// The exact name, where the owner was said.
    pub fn exact(&self) -> Option<JobName> {
        let owner = self.owner.clone()?;
        Some(JobName::new(owner, self.id.clone()))
    }
}

impl From<JobName> for Named {
    fn from(JobName { owner, id }: JobName) -> Self {
        let owner = Some(owner);
        Self { owner, id }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(owner) = &self.owner {
            write!(f, "{owner}/")?;
        }
        self.id.fmt(f)
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
    fn a_name_that_stands_apart_finds_the_exact_one() {
        let (alice, bob, id) = ["alice", "bob", "clip-42"]
            .map(|it| Name::parse(it).unwrap())
            .into();
        let mut jobs: hashbrown::HashMap<JobName, u8> = hashbrown::HashMap::new();
        jobs.insert(JobName::new(alice.clone(), id.clone()), 1);
        let find = |owner| jobs.get(&JobNameRef { owner, id: &id });
        assert_eq!((find(&alice), find(&bob)), (Some(&1), None));
    }

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
