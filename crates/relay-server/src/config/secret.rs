//! A value that must not be shown.
//!
//! Invariant: no `Debug`, `Serialize` or error message of this file shows a secret.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A secret: readable only through [`Redacted::expose`], never by printing.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Redacted(String);

/// What stands in a secret's place wherever a configuration is shown.
pub(super) const REDACTED: &str = "[redacted]";

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
                Ok(Redacted::new(text))
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
