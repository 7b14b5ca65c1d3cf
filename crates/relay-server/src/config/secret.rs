//! A value that must not be shown.
//!
//! Invariant: no `Debug`, `Serialize` or error message of this file shows a secret.

use std::fmt;
use std::io;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::identity::key::{is_utf16, without_marks};

/// A secret: readable only through [`Redacted::expose`], never by printing.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Redacted(String);

/// What stands in a secret's place wherever a configuration is shown.
pub(super) const REDACTED: &str = "[redacted]";

/// What is wrong with a secret that reads as [`REDACTED`].
pub(super) const NOT_THE_SECRET: &str =
    "is what `relay check --print` shows in place of a secret; write the secret itself";

/// Reads a secret from a file. A byte order mark before it and one line end after it are not part of it.
///
/// # Errors
/// When the file cannot be read, is not text, or holds what is shown in place of a secret.
pub(crate) fn read_secret(file: &Path) -> io::Result<Redacted> {
    let bytes = std::fs::read(file)?;
    let unusable = |reason| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    if is_utf16(&bytes) {
        return unusable("is UTF-16 text; save it as UTF-8");
    }
    match String::from_utf8(without_marks(bytes)) {
        Ok(text) if text == REDACTED => unusable(NOT_THE_SECRET),
        Ok(text) => Ok(Redacted(text)),
        Err(_) => unusable("is not UTF-8 text; save it as UTF-8"),
    }
}

impl Redacted {
    /// Wraps a secret.
    pub(crate) fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself. Whoever calls this must not print what it returns.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Redacted {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Redacted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        /// Serde's own message for a wrong type shows the value, which here is the secret.
        struct Secret;

        impl Visitor<'_> for Secret {
            type Value = Redacted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Redacted, E> {
                // A variable or a text of several lines may end with a line end, as a file does.
                let bytes = without_marks(text.as_bytes().to_vec());
                let text = String::from_utf8(bytes).map_err(|_| E::custom("is not UTF-8"))?;
                match text == REDACTED {
                    true => Err(E::custom(NOT_THE_SECRET)),
                    false => Ok(Redacted(text)),
                }
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Redacted, E> {
                Err(E::custom("expected a text; put the secret in quotes"))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Redacted, E> {
                self.visit_i64(0)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Redacted, E> {
                self.visit_i64(0)
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Redacted, E> {
                self.visit_i64(0)
            }
        }

        // Not `deserialize_str`, where some formats report a number before the visitor sees it.
        from.deserialize_any(Secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Redacted::new("hunter2");
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[redacted]\"");
        let error = serde_json::from_str::<Redacted>("123456").unwrap_err();
        assert!(!error.to_string().contains("123456"), "{error}");
    }
}
