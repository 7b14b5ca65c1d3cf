//! Where NATS is and as whom to connect: the settings, their secrets, and what is wrong with them.
//!
//! Knows files and URLs, and nothing of a connection that is there.
//!
//! Invariant: no secret is ever printed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};

use super::signals::Signals;

/// A half-open link is noticed after three of these at most; the library's default is a minute.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Only a bound, nothing is set aside for it. When it is reached the newest messages are dropped.
const SUBSCRIPTION_CAPACITY: usize = 262_144;

/// Where NATS is and as whom to connect. At most one way of authentication is given.
#[derive(Clone)]
pub struct ConnectionSettings {
    /// Servers of one cluster, `nats://host:port` or `tls://host:port`; tried in random order. Credentials
    /// in them are used if no others are given.
    pub urls: Vec<String>,
    /// The name the server shows for this connection.
    pub name: String,
    /// User name, with [`ConnectionSettings::password`].
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// A token.
    pub token: Option<String>,
    /// The seed of an nkey, `SU…`.
    pub nkey_seed: Option<String>,
    /// A credentials file: a user's JWT and the seed of its nkey.
    pub creds_file: Option<PathBuf>,
    /// Refuse a connection without TLS.
    pub tls_required: bool,
    /// Certificates of the authorities to trust (PEM) in place of the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// A client certificate (PEM), with [`ConnectionSettings::tls_key_file`].
    pub tls_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub tls_key_file: Option<PathBuf>,
    /// What answers are sent to. Not the libraries' `_INBOX`: workers may listen there.
    pub inbox_prefix: String,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".to_owned()],
            name: "relay".to_owned(),
            user: None,
            password: None,
            token: None,
            nkey_seed: None,
            creds_file: None,
            tls_required: false,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            inbox_prefix: "_INBOX_relay".to_owned(),
        }
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "…");
        f.debug_struct("ConnectionSettings")
            .field("urls", &self.shown_urls())
            .field("name", &self.name)
            .field("user", &self.user)
            .field("password", &hidden(&self.password))
            .field("token", &hidden(&self.token))
            .field("nkey_seed", &hidden(&self.nkey_seed))
            .field("creds_file", &self.creds_file)
            .field("tls_required", &self.tls_required)
            .field("tls_ca_file", &self.tls_ca_file)
            .field("tls_cert_file", &self.tls_cert_file)
            .field("tls_key_file", &self.tls_key_file)
            .field("inbox_prefix", &self.inbox_prefix)
            .finish()
    }
}

/// What is wrong with [`ConnectionSettings`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// No server.
    #[error("no NATS server is given: set nats.url")]
    NoUrl,
    /// Not a URL of a NATS server.
    #[error("{url:?} is not a NATS server: write nats://host:port or tls://host:port")]
    BadUrl {
        /// The URL without its credentials.
        url: String,
    },
    /// More than one way of authentication.
    #[error("{first} and {second} are both given: use one way to authenticate")]
    TwoCredentials {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// One half of a pair.
    #[error("{given} is given without {missing}")]
    Half {
        /// The half that is there.
        given: &'static str,
        /// The half that is not.
        missing: &'static str,
    },
    /// The client does not start.
    #[error("the NATS client cannot start")]
    Client(#[source] async_nats::ConnectError),
    /// The client's own task ended, which only a panic in it can do.
    #[error("the NATS client has stopped and does not come back")]
    Stopped(#[source] async_nats::SubscribeError),
    /// A file that cannot be used.
    #[error("{key} {path:?} cannot be used: {source}")]
    File {
        /// The setting that names it.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ConnectionSettings {
    /// The servers without credentials, for people to read.
    fn shown_urls(&self) -> Vec<String> {
        self.urls
            .iter()
            .map(|url| without_credentials(url))
            .collect()
    }

    /// Checks everything that can be checked without a server.
    pub(crate) fn prepare(&self) -> Result<Prepared, ConnectionError> {
        let servers = self
            .urls
            .iter()
            .map(|url| self.server(url))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(first) = servers.first() else {
            return Err(ConnectionError::NoUrl);
        };
        let signals = Arc::new(Signals::new(self.shown_urls().join(", ")));
        let events = signals.clone();
        let options = ConnectOptions::new()
            .name(&self.name)
            .custom_inbox_prefix(&self.inbox_prefix)
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .event_callback(move |event| {
                events.take(&event);
                std::future::ready(())
            });
        let options = self.authenticate(options, first)?;
        Ok(Prepared {
            options: self.secure(options)?,
            servers,
            signals,
        })
    }

    fn server(&self, url: &str) -> Result<ServerAddr, ConnectionError> {
        url.trim().parse().map_err(|_| ConnectionError::BadUrl {
            url: without_credentials(url),
        })
    }

    fn authenticate(
        &self,
        options: ConnectOptions,
        server: &ServerAddr,
    ) -> Result<ConnectOptions, ConnectionError> {
        let given: Vec<&'static str> = [
            ("nats.user", self.user.is_some()),
            ("nats.token", self.token.is_some()),
            ("nats.nkey_file", self.nkey_seed.is_some()),
            ("nats.creds_file", self.creds_file.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, is_given)| is_given.then_some(key))
        .collect();
        if let [first, second, ..] = given[..] {
            return Err(ConnectionError::TwoCredentials { first, second });
        }
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                return Ok(options.user_and_password(user.clone(), password.clone()));
            }
            (Some(_), None) => return Err(half("nats.user", "nats.password")),
            (None, Some(_)) => return Err(half("nats.password", "nats.user")),
            (None, None) => {}
        }
        if let Some(token) = &self.token {
            return Ok(options.token(token.trim().to_owned()));
        }
        if let Some(seed) = &self.nkey_seed {
            return Ok(options.nkey(seed.trim().to_owned()));
        }
        if let Some(path) = &self.creds_file {
            let unusable = |source| file("nats.creds_file", path, source);
            let creds = std::fs::read_to_string(path).map_err(unusable)?;
            return options.credentials(&creds).map_err(unusable);
        }
        let decoded = |text: Option<&str>| text.map(percent_decoded);
        Ok(
            match (decoded(server.username()), decoded(server.password())) {
                (Some(user), Some(password)) => options.user_and_password(user, password),
                (Some(token), None) => options.token(token),
                (None, _) => options,
            },
        )
    }

    fn secure(&self, mut options: ConnectOptions) -> Result<ConnectOptions, ConnectionError> {
        let readable = |key, path: &Path| match std::fs::File::open(path) {
            Ok(_) => Ok(path.to_owned()),
            Err(source) => Err(file(key, path, source)),
        };
        if let Some(path) = &self.tls_ca_file {
            options = options.add_root_certificates(readable("nats.tls_ca_file", path)?);
        }
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(cert), Some(key)) => {
                let cert = readable("nats.tls_cert_file", cert)?;
                let key = readable("nats.tls_key_file", key)?;
                options = options.add_client_certificate(cert, key);
            }
            (Some(_), None) => return Err(half("nats.tls_cert_file", "nats.tls_key_file")),
            (None, Some(_)) => return Err(half("nats.tls_key_file", "nats.tls_cert_file")),
            (None, None) => {}
        }
        Ok(options.require_tls(self.tls_required))
    }
}

fn half(given: &'static str, missing: &'static str) -> ConnectionError {
    ConnectionError::Half { given, missing }
}

fn file(key: &'static str, path: &Path, source: std::io::Error) -> ConnectionError {
    ConnectionError::File {
        key,
        path: path.to_owned(),
        source,
    }
}

fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}")
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| byte == b'%');
        let escaped = escaped
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Checked settings, not connected yet.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) options: ConnectOptions,
    pub(super) servers: Vec<ServerAddr>,
    pub(super) signals: Arc<Signals>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_print_no_secret() {
        let settings = ConnectionSettings {
            urls: vec!["nats://u:canary1@host:4222".into(), "canary2@host".into()],
            password: Some("canary3".into()),
            token: Some("canary4".into()),
            nkey_seed: Some("canary5".into()),
            ..ConnectionSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("nats://host:4222"), "{shown}");
    }

    fn error(change: impl FnOnce(&mut ConnectionSettings)) -> String {
        let mut settings = ConnectionSettings::default();
        change(&mut settings);
        settings.prepare().unwrap_err().to_string()
    }

    #[test]
    fn settings_that_cannot_work_say_what_to_change() {
        assert_eq!(
            error(|s| s.urls.clear()),
            "no NATS server is given: set nats.url"
        );
        let bad = error(|s| s.urls = vec!["http://u:canary@host".into()]);
        assert_eq!(
            bad,
            "\"http://host\" is not a NATS server: write nats://host:port or tls://host:port"
        );
        assert_eq!(
            error(|s| s.user = Some("u".into())),
            "nats.user is given without nats.password"
        );
        let two = error(|s| {
            s.token = Some("t".into());
            s.creds_file = Some("c".into());
        });
        assert_eq!(
            two,
            "nats.token and nats.creds_file are both given: use one way to authenticate"
        );
        assert!(
            error(|s| s.creds_file = Some("/nowhere".into()))
                .starts_with("nats.creds_file \"/nowhere\"")
        );
        assert!(error(|s| s.tls_ca_file = Some("/nowhere".into())).starts_with("nats.tls_ca_file"));
        assert!(
            error(|s| s.tls_cert_file = Some("/x".into())).ends_with("without nats.tls_key_file")
        );
    }

    #[test]
    fn credentials_in_a_url_may_be_escaped() {
        assert_eq!(percent_decoded("a%40b%3A%2"), "a@b:%2");
        assert_eq!(percent_decoded("plain"), "plain");
    }
}
