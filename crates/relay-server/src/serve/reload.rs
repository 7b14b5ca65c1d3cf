//! A configuration that is exchanged while the relay runs: all of it that can be, or nothing.
//!
//! Everything is read, checked and made before anything is exchanged, so what is wrong changes nothing. What
//! cannot be exchanged is named until the relay is started again.
//!
//! Invariant: what is running is what the last good configuration says, but for the keys that the log has named.

use serde_json::Value;

use super::settings;
use crate::config::{Auth, Config, ConfigErrors};
use crate::identity::KeyError;
use crate::logging::{LevelError, Relevel};
use crate::node::Node;
use crate::sockets::Budget;
use crate::tls::TlsError;

/// Reads the configuration again, from where it was read first.
pub(crate) type Reread = Box<dyn Fn() -> Result<Config, ConfigErrors>>;

/// The keys that are exchanged.
const EXCHANGED: [&str; 9] = [
    "http.allowed_origins",
    "http.forwarded",
    "http.hosts",
    "http.tls_cert_file",
    "http.tls_key_file",
    "http.trusted_proxies",
    "limits.connections_per_address",
    "limits.connections_per_user",
    "log.level",
];

/// The keys of `[auth]` that are not exchanged; all others are.
const KEPT: [&str; 3] = ["auth.cookie", "auth.share_key", "auth.share_key_file"];

/// Whether a key is exchanged.
fn is_exchanged(key: &str) -> bool {
    EXCHANGED.contains(&key) || (key.starts_with("auth.") && !KEPT.contains(&key))
}

/// Why nothing was exchanged.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Certificate(#[from] TlsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("log.level: {0}")]
    Level(#[from] LevelError),
}

/// What came of a reload.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Keys that have another value now.
    changed: Vec<String>,
    /// Keys whose new value takes a restart.
    restart: Vec<String>,
}

/// What a reload needs.
pub(super) struct Reloader {
    /// What runs.
    running: Config,
    /// What the file descriptors are for.
    budget: Budget,
    reread: Reread,
    relevel: Relevel,
}

impl Reloader {
    pub(super) fn new(
        running: &Config,
        budget: Budget,
        (reread, relevel): (Reread, Relevel),
    ) -> Self {
        Self {
            running: running.clone(),
            budget,
            reread,
            relevel,
        }
    }

    /// Exchanges what can be, and says what came of it.
    pub(super) fn reload(&mut self, node: &Node) {
        match self.try_reload(node) {
            Ok(Outcome { changed, restart }) => {
                tracing::info!(
                    changed = %list(&changed),
                    needs_restart = %list(&restart),
                    "the configuration was read again, with the certificate and the keys that it names"
                );
            }
            Err(error) => tracing::error!(
                %error,
                "the configuration was read again and is wrong, so nothing has changed; fix it, and send SIGHUP again"
            ),
        }
    }

    fn try_reload(&mut self, node: &Node) -> Result<Outcome, ReloadError> {
        let config = (self.reread)()?;
        let certificate = config.http.certificate()?;
        let outcome = differences(&self.running, &config);
        let next = with_exchanged(&self.running, &config);
        let identity = next.identity()?;
        let rules = settings::rules(&next);
        let limits = settings::ledger_limits(&next.limits, self.budget);
        // The one thing that can fail yet, so it goes first.
        (self.relevel)(&config.log)?;
        node.identity.replace(identity);
        node.certificate.change(certificate);
        node.rules.change(rules);
        node.admissions.change(limits);
        self.running = next;
        Ok(outcome)
    }
}

fn list(keys: &[String]) -> String {
    match keys {
        [] => "nothing".to_owned(),
        keys => keys.join(", "),
    }
}

/// What runs once a configuration was exchanged for another, as far as it can be.
fn with_exchanged(running: &Config, new: &Config) -> Config {
    let mut config = running.clone();
    config.auth = Auth {
        cookie: running.auth.cookie.clone(),
        share_key: running.auth.share_key.clone(),
        share_key_file: running.auth.share_key_file.clone(),
        ..new.auth.clone()
    };
    let (http, from) = (&mut config.http, new.http.clone());
    http.allowed_origins = from.allowed_origins;
    http.forwarded = from.forwarded;
    http.hosts = from.hosts;
    http.tls_cert_file = from.tls_cert_file;
    http.tls_key_file = from.tls_key_file;
    http.trusted_proxies = from.trusted_proxies;
    config.limits.connections_per_address = new.limits.connections_per_address;
    config.limits.connections_per_user = new.limits.connections_per_user;
    config.log.level.clone_from(&new.log.level);
    config
}

/// The keys that differ, by whether they are exchanged.
fn differences(running: &Config, new: &Config) -> Outcome {
    let [before, after] =
        [running, new].map(|config| serde_json::to_value(config).unwrap_or_default());
    let mut keys = Vec::new();
    for (section, value) in after.as_object().into_iter().flatten() {
        let old = &before[section];
        let names = [old, value].map(Value::as_object).into_iter().flatten();
        for name in names.flat_map(|table| table.keys()) {
            let key = format!("{section}.{name}");
            if old[name] != value[name] && !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    // What is not shown differs all the same.
    for (key, differs) in [
        ("auth.key", running.auth.key != new.auth.key),
        (
            "auth.share_key",
            running.auth.share_key != new.auth.share_key,
        ),
        ("nats.password", running.nats.password != new.nats.password),
        ("nats.token", running.nats.token != new.nats.token),
        ("nats.url", running.nats.url != new.nats.url),
    ] {
        if differs && !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
    }
    let (changed, restart) = keys.into_iter().partition(|key| is_exchanged(key));
    Outcome { changed, restart }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: &str) -> Config {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file).unwrap();
        Config::load(Some(path.path()), std::iter::empty()).unwrap()
    }

    #[test]
    fn each_key_that_differs_is_exchanged_or_takes_a_restart() {
        let before =
            config("[auth]\nmode = \"anonymous\"\ncookie = \"a\"\n[nats]\ntoken = \"one\"");
        let after = config(
            "[auth]\nmode = \"anonymous\"\ncookie = \"b\"\nleeway = \"1s\"\n[nats]\ntoken = \"two\"\n[http]\nhosts = [\"relay.example\"]\nshards = 3\n[limits]\nconnections_per_user = 7\n[kinds.clip]\nremoved_by = [\"gone\"]\n[log]\nlevel = \"debug\"",
        );
        let outcome = differences(&before, &after);
        let has = |keys: &[String], wanted: &[&str]| {
            keys.len() == wanted.len()
                && wanted.iter().all(|each| keys.iter().any(|key| key == each))
        };
        let changed = [
            "auth.leeway",
            "http.hosts",
            "limits.connections_per_user",
            "log.level",
        ];
        assert!(has(&outcome.changed, &changed), "{outcome:?}");
        let restart = ["auth.cookie", "http.shards", "kinds.clip", "nats.token"];
        assert!(has(&outcome.restart, &restart), "{outcome:?}");
        let running = with_exchanged(&before, &after);
        let left = differences(&running, &after);
        assert_eq!((left.changed.len(), left.restart), (0, outcome.restart));
    }

    #[test]
    fn what_is_exchanged_is_what_is_said_to_be() {
        for key in EXCHANGED {
            assert!(
                crate::config::known_keys().iter().any(|known| known == key),
                "{key}"
            );
        }
    }
}
