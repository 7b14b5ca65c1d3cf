//! The address of a NATS server, as a text that can be printed.
//!
//! Checks the spelling only; nothing is looked up or connected.
//!
//! Invariant: what stands before an `@` is shown by [`NatsUrl::expose`] alone.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::secret::REDACTED;

/// `nats://host:4222`, `tls://host:4222` or `host:4222`, perhaps with `user:password@` in front.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct NatsUrl(String);

/// Why a text is not the address of a NATS server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlError {
    /// Nothing there.
    #[error("is empty; write the address of a NATS server, such as \"nats://127.0.0.1:4222\"")]
    Empty,
    /// A scheme NATS clients of this relay do not speak.
    #[error(
        "{0:?} is not a way to reach NATS here; write nats://host:4222, or tls://host:4222 for TLS"
    )]
    Scheme(String),
    /// Not a host and a port.
    #[error("is not a host and port; write for example \"nats://nats.example.com:4222\"")]
    Host,
    /// What is shown in place of a password.
    #[error(
        "has \"[redacted]\" where its user and password were; write them, or use nats.user and nats.password_file"
    )]
    Redacted,
    /// Something after the port.
    #[error("has something after the host and port; leave off everything from the slash on")]
    Path,
}

impl NatsUrl {
    /// Checks `text` and takes it as the address of a server.
    ///
    /// # Errors
    /// Says what is wrong, without repeating a password that may be in it.
    pub(crate) fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("nats", text));
        if rest.starts_with(&format!("{REDACTED}@")) {
            return Err(UrlError::Redacted);
        }
        if !matches!(scheme, "nats" | "tls") {
            let letters = scheme.bytes().all(|b| b.is_ascii_alphanumeric());
            // Before a `://` that is not a scheme's may stand half a password; do not repeat that.
            return Err(if letters {
                UrlError::Scheme(scheme.to_owned())
            } else {
                UrlError::Host
            });
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(UrlError::Path);
        }
        let authority: http::uri::Authority = rest.parse().map_err(|_| UrlError::Host)?;
        let port = authority
            .as_str()
            .rsplit('@')
            .next()
            .and_then(|at| at.strip_prefix(authority.host()));
        if authority.host().is_empty() || (port != Some("") && authority.port_u16().is_none()) {
            return Err(UrlError::Host);
        }
        Ok(Self(text.to_owned()))
    }

    /// The address with the user and password that may be in it. Not to be printed.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a user, password or token is written into the address.
    pub(crate) fn has_credentials(&self) -> bool {
        self.0.contains('@')
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.rsplit_once('@') {
            None => f.write_str(&self.0),
            Some((before, host)) => {
                let scheme = before
                    .split_once("://")
                    .map_or("nats", |(scheme, _)| scheme);
                write!(f, "{scheme}://{REDACTED}@{host}")
            }
        }
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for NatsUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NatsUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_with_or_without_scheme_port_and_credentials() {
        for good in [
            "nats://127.0.0.1:4222",
            "tls://nats.example.com",
            "nats:4222",
            "nats://[::1]:4222",
            "nats://alice:s3cret@nats:4222",
            "nats://nats:4222/",
        ] {
            assert_eq!(NatsUrl::parse(good).map(|_| ()), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_no_server_is_told_why() {
        assert_eq!(NatsUrl::parse(" "), Err(UrlError::Empty));
        assert_eq!(
            NatsUrl::parse("http://nats:4222"),
            Err(UrlError::Scheme("http".to_owned()))
        );
        assert_eq!(NatsUrl::parse("nats://nats:4222/x"), Err(UrlError::Path));
        for bad in [
            "nats://",
            "nats://a b",
            "nats://h:notaport",
            "nats://h:99999",
        ] {
            assert_eq!(NatsUrl::parse(bad), Err(UrlError::Host), "{bad}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_never_printed() {
        let url = NatsUrl::parse("tls://alice:s3cr@t@nats:4222").unwrap();
        for shown in [
            url.to_string(),
            format!("{url:?}"),
            serde_json::to_string(&url).unwrap(),
        ] {
            assert!(!shown.contains("s3cr"), "{shown}");
            assert!(shown.contains("tls://[redacted]@nats:4222"), "{shown}");
        }
        assert!(url.has_credentials());
    }
}
