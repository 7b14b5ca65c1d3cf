//! The relay's configuration: defaults, under a file, under the environment.
//!
//! A value is wrong in one of three ways: no such key, not of its key's type, or impossible beside the
//! others. All that is wrong is found in one reading and said with its place; nothing is guessed.
//!
//! Invariant: a [`Config`] from [`Config::load`] has passed [`Config::validate`].

mod auth;
mod bounds;
mod dialects;
mod kinds;
pub(crate) mod problem;
mod secret;
pub(crate) mod sections;
pub(crate) mod source;
pub(crate) mod url;
mod validate;
pub(crate) mod value;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use relay_core::kind::Kinds;
use rustls::ServerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hosts::Hosts;
use crate::tls::{self, TlsError};
pub(crate) use kinds::KindTables;
pub(crate) use problem::{ConfigErrors, Place, Problem};
pub(crate) use secret::{Redacted, read_secret};
pub(crate) use sections::{
    Admin, Auth, AuthMode, Bus, BusMode, Delivery, Dialects, Drain, History, Http, Limits, Log,
    LogFormat, Nats, StreamStorage,
};
#[cfg(test)]
pub(crate) use source::env_name;
pub(crate) use url::NatsUrl;

/// All that can be configured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The public listener: WebSocket, SSE, long-poll, state and publishing.
    pub http: Http,
    /// The operators' listener: `/metrics`, `/livez`, `/readyz`. Keep it off the internet.
    pub admin: Admin,
    /// Where updates come from.
    pub bus: Bus,
    /// How to reach NATS; read when bus.mode is "nats" or "jetstream".
    pub nats: Nats,
    /// Who clients are, and how that is proved.
    pub auth: Auth,
    /// What one client, or all of them, may take. What passes a bound is refused with its reason.
    pub limits: Limits,
    /// How updates are handed to a client, and when it is given up.
    pub delivery: Delivery,
    /// What a node remembers of jobs.
    pub history: History,
    /// How the relay stops: clients are told at once, and leave a few at a time.
    pub drain: Drain,
    /// Front ends of other applications that are served in their own wire shapes.
    pub dialects: Dialects,
    /// What kinds of jobs declare: a table for each, `[kinds.<name>]`, for jobs whose `kind` is that name. What `[kinds."*"]` declares holds for jobs of every other kind, and of none. All nodes need the same tables.
    pub kinds: KindTables,
    /// What the relay says about itself on standard error.
    pub log: Log,
}

/// A configuration with what is worth knowing about it.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where each key that somebody set was set.
    pub places: BTreeMap<String, Place>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads `file`, if there is one, and lays the `RELAY__SECTION__KEY` variables of `env` over it.
    ///
    /// # Errors
    /// All that is wrong, each with its place.
    pub(crate) fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        Loaded::load(file, env).map(|loaded| loaded.config)
    }

    /// The operators' listener alone, of a configuration that may be wrong elsewhere, or that names files which
    /// only the relay may read.
    ///
    /// # Errors
    /// The file cannot be read, or the value is wrong.
    pub(crate) fn admin_listen(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<SocketAddr, ConfigErrors> {
        const KEY: &str = "admin.listen";
        let known = known_keys();
        let mut problems = Vec::new();
        let mut leaves = file.map_or_else(Vec::new, |file| {
            source::from_file(file, &known, &mut problems)
        });
        leaves.retain(|leaf| leaf.key == KEY);
        let mut from_env = source::from_env(env, &known, &mut problems);
        from_env.retain(|leaf| leaf.key == KEY);
        // A file that cannot be read at all is a problem of no known key.
        problems.retain(|problem| problem.key == KEY || !known.contains(&problem.key));
        if !problems.is_empty() {
            return Err(ConfigErrors::new(problems));
        }
        let merged = source::merge(&leaves, &from_env);
        let merged = merged.map_err(|problem| ConfigErrors::new(vec![problem]))?;
        Ok(merged.admin.listen)
    }

    /// Checks values against their bounds, against each other and against the files they name.
    ///
    /// # Errors
    /// All that is wrong. [`Config::load`] has called this; it is for a configuration made in code.
    pub(crate) fn validate(&self) -> Result<(), ConfigErrors> {
        let found = validate::findings(self);
        let problems: Vec<Problem> = found
            .errors
            .into_iter()
            .map(|finding| finding.placed(&BTreeMap::new()))
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigErrors::new(problems))
        }
    }

    /// How clients are identified: as `auth.mode` says, and anonymously if it is not set.
    ///
    /// Not set is only valid on a loopback listener; [`Config::validate`] sees to that.
    pub(crate) fn auth_mode(&self) -> AuthMode {
        self.auth.mode.unwrap_or(AuthMode::Anonymous)
    }

    /// Under which names clients may ask.
    pub(crate) fn hosts(&self) -> Hosts {
        match (self.auth.mode, self.http.hosts.as_slice()) {
            (None, _) => Hosts::Loopback,
            (Some(_), []) => Hosts::Any,
            (Some(_), listed) => Hosts::Listed(listed.to_vec()),
        }
    }

    /// Under which names operators may ask.
    pub(crate) fn operators_hosts(&self) -> Hosts {
        match self.admin.listen.ip().to_canonical().is_loopback() {
            true => Hosts::Operators,
            false => Hosts::Any,
        }
    }
}

impl Loaded {
    /// As [`Config::load`], with the places and the warnings.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(crate) fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let known = known_keys();
        let mut problems = Vec::new();
        let file_leaves = file.map_or_else(Vec::new, |file| {
            source::from_file(file, &known, &mut problems)
        });
        let env_leaves = source::from_env(env, &known, &mut problems);
        let config = match source::merge(&file_leaves, &env_leaves) {
            Ok(config) => config,
            Err(problem) => {
                problems.push(problem);
                return Err(ConfigErrors::new(problems));
            }
        };
        let places: BTreeMap<String, Place> = file_leaves
            .iter()
            .chain(&env_leaves)
            .map(|leaf| (leaf.key.clone(), leaf.place.clone()))
            .collect();
        let found = validate::findings(&config);
        // A key that could not be read is at its default here; what follows from that is not a mistake.
        let unread: Vec<String> = problems
            .iter()
            .map(|p| base_key(&p.key).to_owned())
            .collect();
        problems.extend(
            found
                .errors
                .into_iter()
                .filter(|finding| finding.keys.iter().all(|k| !unread.iter().any(|u| u == k)))
                .map(|finding| finding.placed(&places)),
        );
        if problems.is_empty()
            && let Err(errors) = config.load_dialects(&|_, _| Box::new(()))
        {
            problems.extend_from_slice(errors.problems());
        }
        if !problems.is_empty() {
            return Err(ConfigErrors::new(problems));
        }
        let warnings = found
            .warnings
            .into_iter()
            .map(|finding| finding.placed(&places))
            .collect();
        Ok(Self {
            config,
            places,
            warnings,
        })
    }
}

impl Http {
    /// What is shown to clients that come over TLS; none where the listener speaks plain HTTP.
    ///
    /// # Errors
    /// When the files cannot be read, or do not belong together.
    pub(crate) fn certificate(&self) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(certificate), Some(key)) => tls::load(certificate, key).map(Some),
            _ => Ok(None),
        }
    }
}

impl Nats {
    /// The password, from `nats.password` or the file that `nats.password_file` names.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn password(&self) -> io::Result<Option<Redacted>> {
        given_or_read(self.password.as_ref(), self.password_file.as_deref())
    }

    /// The token, from `nats.token` or the file that `nats.token_file` names.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn token(&self) -> io::Result<Option<Redacted>> {
        given_or_read(self.token.as_ref(), self.token_file.as_deref())
    }
}

fn given_or_read(given: Option<&Redacted>, file: Option<&Path>) -> io::Result<Option<Redacted>> {
    match (given, file) {
        (Some(secret), _) => Ok(Some(secret.clone())),
        (None, Some(file)) => read_secret(file).map(Some),
        (None, None) => Ok(None),
    }
}

/// The process's environment, for [`Config::load`]. A value that is not Unicode keeps its readable part.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

/// Every key there is, as `section.key`, in the order they are declared.
pub(crate) fn known_keys() -> Vec<String> {
    type Declared = source::Declared<source::Declared<serde::de::IgnoredAny>>;
    // Through text, because a `serde_json::Value` would sort the keys.
    let text = serde_json::to_string(&Config::default()).unwrap_or_default();
    let sections: Declared = serde_json::from_str(&text).unwrap_or_default();
    let mut known = Vec::new();
    for (section, keys) in sections.0 {
        known.extend(keys.0.iter().map(|(key, _)| format!("{section}.{key}")));
    }
    known
}

impl Config {
    /// What kinds of jobs declare, here and in the files of the dialects that are spoken.
    pub(crate) fn kinds_table(&self, dialects: &relay_wire::dialect::Dialects) -> Kinds {
        kinds::table(&self.kinds, &dialects.kinds)
    }
}

/// `nats.url` of `nats.url[1]`.
fn base_key(key: &str) -> &str {
    key.split('[').next().unwrap_or(key)
}

#[cfg(test)]
mod tests;
