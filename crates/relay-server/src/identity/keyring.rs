//! The keys of one place, and which of them a token may be signed with.
//!
//! A token says by its `kid` which key it means, if it says so at all. That is a hint, not a credential: what a key
//! may be used for was decided when it came in. Where keys come from is not known here.
//!
//! Invariant: a key is tried with algorithms of its own kind alone, whatever a token's header says.

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::key::{Algorithm, KeyError, KeyMaterial, MAX_KEYS};

/// A key that tokens are checked with.
#[derive(Clone)]
pub(crate) struct Key {
    /// What tokens call it. `None`: any token may mean it.
    pub(super) id: Option<Box<str>>,
    /// What it may be used for, all of its kind.
    pub(super) algorithms: Box<[Algorithm]>,
    pub(super) key: DecodingKey,
}

/// The keys of one place.
#[derive(Clone, Default)]
pub(crate) struct Keyring(Box<[Key]>);

impl Keyring {
    /// The keys that are given, for `listed` algorithms; for those usual for each kind of key where none are listed.
    ///
    /// # Errors
    /// When a key can be used with none of the algorithms, or is damaged.
    pub(crate) fn new(given: &[KeyMaterial], listed: &[Algorithm]) -> Result<Self, KeyError> {
        if given.len() > MAX_KEYS {
            return Err(KeyError::TooMany { count: given.len() });
        }
        let mut keys = Vec::new();
        for material in given {
            let algorithms = material.algorithms(listed)?;
            let mut key = None;
            for algorithm in &algorithms {
                key = Some(material.decoding_key(*algorithm)?);
            }
            keys.extend(key.map(|key| Key {
                id: material.id().map(Box::from),
                algorithms: algorithms.into(),
                key,
            }));
        }
        Ok(Self(keys.into()))
    }

    /// Checks that each of the `listed` algorithms has a key here, made of what was `given`.
    ///
    /// # Errors
    /// Names the one that has none.
    pub(crate) fn check_serves(
        &self,
        given: &[KeyMaterial],
        listed: &[Algorithm],
    ) -> Result<(), KeyError> {
        let served = self.algorithms();
        let unserved = listed.iter().find(|each| !served.contains(each));
        match (given.first(), unserved) {
            (Some(one), Some(algorithm)) => Err(one.mismatch(*algorithm)),
            _ => Ok(()),
        }
    }

    /// Keys that came from elsewhere, each with what it may be used for.
    pub(crate) fn of(keys: Vec<Key>) -> Self {
        Self(keys.into())
    }

    /// The keys that a token of this `algorithm` may be signed with: those that its `kid` names, else those that
    /// have no name. A token without `kid` may mean any.
    pub(crate) fn candidates(&self, algorithm: Algorithm, kid: Option<&str>) -> Vec<&DecodingKey> {
        let fit = |key: &&Key| key.algorithms.contains(&algorithm);
        let keys = |named: Option<&str>| {
            let same = self.0.iter().filter(|key| key.id.as_deref() == named);
            same.filter(fit).map(|key| &key.key).collect::<Vec<_>>()
        };
        let Some(kid) = kid else {
            return self.0.iter().filter(fit).map(|key| &key.key).collect();
        };
        match self.has(kid) {
            true => keys(Some(kid)),
            false => keys(None),
        }
    }

    /// Whether a key is called so.
    pub(crate) fn has(&self, kid: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(kid))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What its keys may be used for, each once.
    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        let mut all = Vec::new();
        for algorithm in self.0.iter().flat_map(|key| &key.algorithms) {
            if !all.contains(algorithm) {
                all.push(*algorithm);
            }
        }
        all
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.0.iter().map(|key| (&key.id, &key.algorithms));
        f.debug_list().entries(ids).finish()
    }
}
