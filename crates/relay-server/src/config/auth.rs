//! From `[auth]` to what identifies clients.
//!
//! Knows which keys are meant; what a key or a token must be is for `identity`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderName;
use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::{Auth, AuthMode, Config, read_secret};
use crate::fetch::Url;
use crate::identity::key::KeyMaterial;
use crate::identity::keyring::Keyring;
use crate::identity::own_key::{OwnKey, Purpose};
use crate::identity::published::{Place, Published};
use crate::identity::revoked::Revoked;
use crate::identity::share::{Seats, Shares};
use crate::identity::ticket::{Tickets, random_id};
use crate::identity::verifier::Expected;
use crate::identity::webhook::Webhook;
use crate::identity::{Algorithm, Basis, KeyError, Mode, Own, Verifier, jwks};

/// A file of `auth.keys`: `"<path>"`, or `"<kid>=<path>"` where it holds the key that tokens call by that id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// What tokens call the key.
    pub id: Option<String>,
    /// The file.
    pub path: PathBuf,
}

impl KeyFile {
    fn parse(text: &str) -> Result<Self, &'static str> {
        // A path may have a `=` too, but hardly before its first slash.
        let (id, path) = match text.split_once('=') {
            Some((id, path)) if !id.contains('/') => (Some(id.trim()), path.trim()),
            _ => (None, text.trim()),
        };
        if path.is_empty() || id == Some("") {
            return Err(
                "write a path, or the id of the key (kid), =, and the path, such as \"2026-a=/etc/relay/a.pem\"",
            );
        }
        Ok(Self {
            id: id.map(str::to_owned),
            path: path.into(),
        })
    }
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.id {
            write!(f, "{id}=")?;
        }
        write!(f, "{}", self.path.display())
    }
}

impl Serialize for KeyFile {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyFile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl Config {
    /// How clients are identified. Reads the files that keys are in; again each time it is called.
    ///
    /// # Errors
    /// When a key cannot be used; [`Config::load`] has found that already.
    pub(crate) fn identity(&self) -> Result<Basis, KeyError> {
        if self.auth_mode() == AuthMode::Anonymous {
            return Basis::new(Vec::new(), Arc::new(|| Ok(Mode::Anonymous)));
        }
        let auth = self.auth.clone();
        let (most, seats) = (self.limits.connections_per_share, Arc::<Seats>::default());
        if self.auth_mode() == AuthMode::Url {
            let application = Arc::new(auth.application()?);
            let made = move || Ok(Mode::Url(application.clone(), auth.own(most, &seats)?));
            return Basis::new(self.auth.files(), Arc::new(made));
        }
        let published = auth.published()?;
        let file = published.as_ref().and_then(|published| published.file());
        let files = auth.files().into_iter().chain(file.map(Path::to_owned));
        let files = files.collect();
        // What was fetched, and who watches, stays when files are read again.
        let made = move || {
            let own = auth.own(most, &seats)?;
            Ok(Mode::Jwt(auth.verifier(published.clone())?, own))
        };
        Basis::new(files, Arc::new(made))
    }
}

impl Auth {
    /// Whether any key is given or named.
    pub(crate) fn has_keys(&self) -> bool {
        self.key.is_some() || self.key_file.is_some() || !self.keys.is_empty()
    }

    /// The files that keys are in.
    fn files(&self) -> Vec<PathBuf> {
        let keys = self.keys.iter().map(|file| &file.path);
        let own = self.share_key_file.iter().chain(&self.revoked_file);
        self.key_file
            .iter()
            .chain(keys)
            .chain(own)
            .cloned()
            .collect()
    }

    /// The keys that are given or in the files that are named.
    ///
    /// # Errors
    /// When one is both given and in a file, or cannot be read or used.
    pub(crate) fn key_material(&self) -> Result<Vec<KeyMaterial>, KeyError> {
        let given = self.key.as_ref().map(|key| key.expose());
        let mut all = KeyMaterial::read(given, self.key_file.as_deref())?;
        for file in &self.keys {
            all.extend(KeyMaterial::read_named(file.id.as_deref(), &file.path)?);
        }
        Ok(all)
    }

    /// The relay's own key for a purpose, if there is something to derive it from.
    ///
    /// # Errors
    /// When it is both given and in a file, or cannot be read.
    pub(crate) fn own_key(&self, purpose: Purpose) -> Result<Option<OwnKey>, KeyError> {
        let derive = |secret: &[u8]| OwnKey::derive(secret, purpose);
        match (&self.share_key, &self.share_key_file) {
            (Some(_), Some(_)) => return Err(KeyError::TwoShareKeys),
            (Some(key), None) => return Ok(derive(key.expose().as_bytes())),
            (None, Some(path)) => {
                let read = read_secret(path).map_err(|source| KeyError::Own {
                    at: "auth.share_key_file",
                    path: path.clone(),
                    source,
                })?;
                return match read.expose().trim().is_empty() {
                    true => Err(KeyError::Empty {
                        at: "auth.share_key_file",
                    }),
                    false => Ok(derive(read.expose().as_bytes())),
                };
            }
            (None, None) => {}
        }
        let given = self.key.as_ref().map(|key| key.expose());
        let given = KeyMaterial::read(given, self.key_file.as_deref())?;
        Ok(given.first().and_then(KeyMaterial::secret).and_then(derive))
    }

    /// What tickets are made with. Without a key of its own a node makes one up.
    ///
    /// # Errors
    /// As [`Auth::own_key`].
    pub(crate) fn tickets(&self) -> Result<Tickets, KeyError> {
        let own = self.own_key(Purpose::Ticket)?;
        let made_up = || OwnKey::derive(random_id().as_bytes(), Purpose::Ticket);
        let key = own.or_else(made_up).ok_or(KeyError::Missing)?;
        Ok(Tickets::new(key))
    }

    /// The application that says who clients are.
    ///
    /// # Errors
    /// When there is none, or it cannot be asked so.
    pub(crate) fn application(&self) -> Result<Webhook, KeyError> {
        let url = self.url.as_deref().ok_or(KeyError::NoApplication)?;
        let url = Url::parse(url).map_err(KeyError::BadApplication)?;
        let forward = self.forward.iter().map(|name| header_name(name));
        Ok(Webhook::new(url, forward.collect::<Result<_, _>>()?))
    }

    fn own(&self, most: usize, seats: &Arc<Seats>) -> Result<Own, KeyError> {
        Ok(Own {
            shares: self.shares(most, seats)?,
            revoked: self.revoked()?,
        })
    }

    /// What shares are checked with, and made.
    ///
    /// # Errors
    /// As [`Auth::own_key`].
    pub(crate) fn shares(
        &self,
        most: usize,
        seats: &Arc<Seats>,
    ) -> Result<Option<Shares>, KeyError> {
        let key = self.own_key(Purpose::Share)?;
        Ok(key.map(|key| Shares::new(key, most, seats.clone())))
    }

    /// The credentials that were taken back.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn revoked(&self) -> Result<Revoked, KeyError> {
        let file = self.revoked_file.as_deref();
        Revoked::read(&self.revoked, file).map_err(|source| KeyError::Own {
            at: "auth.revoked_file",
            path: self.revoked_file.clone().unwrap_or_default(),
            source,
        })
    }

    /// Where keys are published: as `auth.jwks` says, or by the issuer where there is no other key.
    fn place(&self) -> Result<Option<Place>, KeyError> {
        match (&self.jwks, &self.issuer) {
            (Some(at), _) if at.starts_with("https:") || at.starts_with("http:") => {
                let url = Url::parse(at).map_err(KeyError::BadAddress)?;
                Ok(Some(Place::Set(url)))
            }
            (Some(path), _) => Ok(Some(Place::File(path.into()))),
            (None, Some(issuer)) if !self.has_keys() => {
                Url::parse(issuer).map_err(KeyError::BadIssuer)?;
                Ok(Some(Place::Issuer(issuer.clone())))
            }
            (None, _) => Ok(None),
        }
    }

    /// The keys that others publish, none of which have been fetched yet.
    ///
    /// # Errors
    /// When they cannot be fetched from there at all.
    fn published(&self) -> Result<Option<Arc<Published>>, KeyError> {
        let Some(place) = self.place()? else {
            return Ok(None);
        };
        if let Place::File(path) = &place {
            check_set(path, &self.algorithms)?;
        }
        let published = Published::new(place, self.algorithms.clone());
        let is_of_use = published.algorithms().next().is_some();
        match is_of_use || self.has_keys() {
            true => Ok(Some(Arc::new(published))),
            false => Err(KeyError::NonePublic),
        }
    }

    /// What checks tokens, as far as keys are here.
    ///
    /// # Errors
    /// When there is no usable key, or the algorithms do not belong to the keys.
    pub(crate) fn verifier(&self, published: Option<Arc<Published>>) -> Result<Verifier, KeyError> {
        let expected = Expected {
            audience: self.audience.clone(),
            issuer: self.issuer.clone(),
            leeway: self.leeway,
            user_claim: self.user_claim.clone(),
        };
        let given = self.key_material()?;
        if given.is_empty() && published.is_none() {
            return Err(KeyError::Missing);
        }
        let keys = Keyring::new(&given, &self.algorithms)?;
        if published.is_none() {
            keys.check_serves(&given, &self.algorithms)?;
        }
        Ok(Verifier::new(keys, published, expected))
    }

    /// Checks that tokens can be checked.
    ///
    /// # Errors
    /// Says why not.
    pub(crate) fn check_keys(&self) -> Result<(), KeyError> {
        self.verifier(self.published()?)?;
        self.own_key(Purpose::Share)?;
        self.revoked().map(|_| ())
    }
}

/// A header that can be passed on.
fn header_name(text: &str) -> Result<HeaderName, KeyError> {
    const NOT: [&str; 9] = [
        "accept",
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    ];
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    let name = name.filter(|name| !NOT.contains(&name.as_str()));
    name.ok_or_else(|| KeyError::BadHeader(text.chars().take(64).collect()))
}

/// Checks that a file with a set has keys of use.
fn check_set(path: &Path, listed: &[Algorithm]) -> Result<(), KeyError> {
    let bytes = std::fs::read(path).map_err(|source| KeyError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let read = jwks::read(&bytes, listed).map(|_| ());
    read.map_err(|source| KeyError::Set {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_may_say_what_tokens_call_its_key() {
        for (text, id, path) in [
            ("/a.pem", None, "/a.pem"),
            ("2026=/a.pem", Some("2026"), "/a.pem"),
            ("a.b = rel/a=b.pem", Some("a.b"), "rel/a=b.pem"),
            ("/x=y.pem", None, "/x=y.pem"),
        ] {
            let file = KeyFile::parse(text).unwrap();
            assert_eq!((file.id.as_deref(), file.path.to_str()), (id, Some(path)));
            assert_eq!(KeyFile::parse(&file.to_string()), Ok(file));
        }
        for bad in ["", " ", "=x", "a=", " = "] {
            assert!(KeyFile::parse(bad).is_err(), "{bad:?}");
        }
    }
}
