//! What a token grants: topics to watch and owners to publish for.
//!
//! Knows patterns, not users; a job's owner is `Identity`'s to weigh.
//!
//! Invariant: bounded by [`MAX_GRANTS`] entries a list and a name's length an entry.

use std::sync::Arc;

use relay_core::id::{MAX_NAME_BYTES, Name, NameError, Named, check_name};
use relay_core::topic::Topic;
use serde_json::Value;

/// The most entries in `topics` and in `publish`.
pub(crate) const MAX_GRANTS: usize = 256;

/// The claims `topics` and `publish`, understood. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Grants(Arc<Lists>);

#[derive(Debug, PartialEq, Eq, Default)]
struct Lists {
    all_topics: bool,
    jobs: Box<[Owned]>,
    users: Box<[Pattern]>,
    groups: Box<[Owned]>,
    publish: Box<[Pattern]>,
}

/// A name, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exactly(Name),
    StartsWith(Box<str>),
}

/// Jobs or groups of one owner, or, where none is named, of any.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned {
    owner: Option<Name>,
    id: Pattern,
}

/// Why a list of grants is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GrantError {
    /// Not a list of texts.
    #[error("the claim {claim} must be a list of texts")]
    NotAList {
        /// `topics` or `publish`.
        claim: &'static str,
    },
    /// More than [`MAX_GRANTS`].
    #[error(
        "the claim {claim} has {count} entries; at most 256 are allowed, use a pattern such as \"job:import-*\""
    )]
    TooMany {
        /// `topics` or `publish`.
        claim: &'static str,
        /// How many there are.
        count: usize,
    },
    /// An entry of `topics` that is not about jobs, users or groups.
    #[error(
        "the claim topics has {entry:?}; write job:<id>, user:<id>, group:<id>, with its owner job:<owner>/<id> or group:<owner>/<id>, or \"*\""
    )]
    UnknownKind {
        /// The entry, cut short.
        entry: String,
    },
    /// An entry whose name is none.
    #[error("the claim {claim} has {entry:?}, whose name {source}; a * may stand only at the end")]
    BadName {
        /// `topics` or `publish`.
        claim: &'static str,
        /// The entry, cut short.
        entry: String,
        /// What is wrong with the name.
        source: NameError,
    },
}

impl Pattern {
    /// A name, or the beginning of one and a `*`; `*` alone is every name.
    fn parse(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix('*') {
            None => Name::parse(text).map(Self::Exactly),
            Some("") => Ok(Self::StartsWith(Box::default())),
            Some(start) => {
                check_name(start)?;
                Ok(Self::StartsWith(start.into()))
            }
        }
    }

    fn matches(&self, name: &Name) -> bool {
        match self {
            Self::Exactly(exactly) => exactly == name,
            Self::StartsWith(start) => name.as_str().starts_with(&**start),
        }
    }
}

impl Owned {
    /// `<id>` or `<owner>/<id>`, where only the id may be the beginning of one.
    fn parse(text: &str) -> Result<Self, NameError> {
        let (owner, id) = match text.split_once('/') {
            Some((owner, id)) => (Some(Name::parse(owner)?), id),
            None => (None, text),
        };
        let id = Pattern::parse(id)?;
        Ok(Self { owner, id })
    }

    /// Whether it grants this; what does not say whose it is, is granted only if everybody's is.
    fn matches(&self, owner: Option<&Name>, id: &Name) -> bool {
        let is_owner = self
            .owner
            .as_ref()
            .is_none_or(|granted| Some(granted) == owner);
        is_owner && self.id.matches(id)
    }
}

fn any(patterns: &[Pattern], name: &Name) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

impl Grants {
    /// Reads the claims; one that is absent grants nothing.
    ///
    /// # Errors
    /// The first entry that cannot be understood. A grant that is misread must not be a grant of less or
    /// more, so the whole token is refused.
    pub(crate) fn from_claims(
        topics: Option<&Value>,
        publish: Option<&Value>,
    ) -> Result<Self, GrantError> {
        let topics = entries("topics", topics)?;
        let publish = entries("publish", publish)?;
        Self::new(topics.iter().copied(), publish.iter().copied())
    }

    /// Reads single entries.
    ///
    /// # Errors
    /// As [`Grants::from_claims`].
    pub(crate) fn new<'a>(
        topics: impl IntoIterator<Item = &'a str>,
        publish: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, GrantError> {
        let (mut jobs, mut users, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        let mut all_topics = false;
        let topics: Vec<&str> = topics.into_iter().collect();
        bounded("topics", topics.len())?;
        for entry in topics {
            if entry == "*" {
                all_topics = true;
                continue;
            }
            match entry.split_once(':') {
                Some(("job", name)) => jobs.push(named("topics", entry, Owned::parse(name))?),
                Some(("user", name)) => users.push(named("topics", entry, Pattern::parse(name))?),
                Some(("group", name)) => groups.push(named("topics", entry, Owned::parse(name))?),
                _ => {
                    return Err(GrantError::UnknownKind {
                        entry: shortened(entry),
                    });
                }
            }
        }
        let publish: Vec<&str> = publish.into_iter().collect();
        bounded("publish", publish.len())?;
        let publish: Vec<Pattern> = publish
            .into_iter()
            .map(|entry| named("publish", entry, Pattern::parse(entry)))
            .collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Lists {
            all_topics,
            jobs: jobs.into(),
            users: users.into(),
            groups: groups.into(),
            publish: publish.into(),
        })))
    }

    pub(super) fn watches(&self, topic: &Topic) -> bool {
        match topic {
            Topic::Job(Named { owner, id }) => self.watches_job(owner.as_ref(), id),
            Topic::User(user) => self.watches_user(user),
            Topic::Group(Named { owner, id }) => self.watches_group(owner.as_ref(), id),
        }
    }

    /// Whether a job is granted by its name; where it is not said whose, whether anybody's is.
    pub(super) fn watches_job(&self, owner: Option<&Name>, id: &Name) -> bool {
        self.0.all_topics || self.0.jobs.iter().any(|it| it.matches(owner, id))
    }

    pub(super) fn watches_user(&self, user: &Name) -> bool {
        self.0.all_topics || any(&self.0.users, user)
    }

    /// As [`Grants::watches_job`], for a group.
    pub(super) fn watches_group(&self, owner: Option<&Name>, parent: &Name) -> bool {
        self.0.all_topics || self.0.groups.iter().any(|it| it.matches(owner, parent))
    }

    /// Whether any group is granted, so that a job may be seen for the group it is in.
    pub(super) fn has_groups(&self) -> bool {
        self.0.all_topics || !self.0.groups.is_empty()
    }

    pub(super) fn publishes(&self, owner: &Name) -> bool {
        any(&self.0.publish, owner)
    }

    pub(super) fn publishes_some(&self) -> bool {
        !self.0.publish.is_empty()
    }
}

fn entries<'a>(claim: &'static str, value: Option<&'a Value>) -> Result<Vec<&'a str>, GrantError> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value.as_array().ok_or(GrantError::NotAList { claim })?,
    };
    bounded(claim, list.len())?;
    list.iter()
        .map(|entry| entry.as_str().ok_or(GrantError::NotAList { claim }))
        .collect()
}

fn bounded(claim: &'static str, count: usize) -> Result<(), GrantError> {
    if count > MAX_GRANTS {
        return Err(GrantError::TooMany { claim, count });
    }
    Ok(())
}

fn named<T>(
    claim: &'static str,
    entry: &str,
    parsed: Result<T, NameError>,
) -> Result<T, GrantError> {
    parsed.map_err(|source| GrantError::BadName {
        claim,
        entry: shortened(entry),
        source,
    })
}

/// An entry may be as long as the token; a message need not.
fn shortened(entry: &str) -> String {
    if entry.chars().count() <= MAX_NAME_BYTES {
        return entry.to_owned();
    }
    let mut short: String = entry.chars().take(40).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn a_star_at_the_end_grants_all_that_begins_so() {
        let grants = Grants::new(["job:a-*", "user:bob", "group:*"], ["team-*"]).unwrap();
        assert!(grants.watches_job(None, &name("a-1")));
        assert!(grants.watches_job(None, &name("a-")));
        assert!(!grants.watches_job(None, &name("a")));
        assert!(!grants.watches_job(None, &name("b-1")));
        assert!(grants.watches_user(&name("bob")));
        assert!(!grants.watches_user(&name("bobby")));
        assert!(grants.watches_group(None, &name("any")));
        assert!(grants.publishes(&name("team-7")));
        assert!(!grants.publishes(&name("alice")));
    }

    #[test]
    fn a_grant_that_names_an_owner_grants_nothing_of_others() {
        let grants = Grants::new(["job:alice/clip-*", "group:alice/g1"], []).unwrap();
        let (alice, bob) = (name("alice"), name("bob"));
        assert!(grants.watches_job(Some(&alice), &name("clip-42")));
        assert!(!grants.watches_job(Some(&bob), &name("clip-42")));
        assert!(!grants.watches_job(Some(&alice), &name("other")));
        assert!(
            !grants.watches_job(None, &name("clip-42")),
            "it may be bob's"
        );
        assert!(grants.watches_group(Some(&alice), &name("g1")));
        assert!(!grants.watches_group(Some(&bob), &name("g1")));
        // As it was before owners were named: of anybody.
        let grants = Grants::new(["job:clip-42"], []).unwrap();
        assert!(grants.watches_job(Some(&bob), &name("clip-42")));
        for bad in ["job:*/clip", "job:a/", "job:/b", "group:a/b/c", "user:a/b"] {
            assert!(Grants::new([bad], []).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lone_star_in_topics_grants_every_topic_but_no_publishing() {
        let grants = Grants::new(["*"], []).unwrap();
        for topic in ["job:x", "user:-", "group:g"] {
            assert!(grants.watches(&Topic::parse(topic).unwrap()), "{topic}");
        }
        assert!(!grants.publishes(&name("x")));
    }

    #[test]
    fn a_grant_that_cannot_be_understood_refuses_all() {
        for (topics, publish, why) in [
            (json!(["jobs:x"]), json!(null), "write job:<id>"),
            (json!(["job"]), json!(null), "write job:<id>"),
            (json!(["job:"]), json!(null), "is empty"),
            (json!(["job:a*b"]), json!(null), "contains '*'"),
            (json!(["job:**"]), json!(null), "contains '*'"),
            (json!(["user:a.b"]), json!(null), "contains '.'"),
            (json!("job:x"), json!(null), "topics must be a list"),
            (json!([7]), json!(null), "topics must be a list"),
            (json!(null), json!(true), "publish must be a list"),
            (json!(null), json!(["a b"]), "contains ' '"),
            (json!(null), json!([""]), "is empty"),
        ] {
            let error = Grants::from_claims(Some(&topics), Some(&publish)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn grants_are_bounded() {
        let list = |n: usize| json!(vec!["job:x"; n]);
        assert!(Grants::from_claims(Some(&list(256)), None).is_ok());
        let error = Grants::from_claims(Some(&list(257)), None).unwrap_err();
        assert!(error.to_string().contains("257 entries"), "{error}");
        let long = format!("job:{}", "x".repeat(5_000));
        let error = Grants::new([long.as_str()], []).unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
    }
}
