//! The checks on `[auth]` and on which web pages may connect.
//!
//! Whether a key fits its algorithms is `identity::key`'s to say; here it is put beside the other keys.
//!
//! Invariant: a listener that others can reach is never open to everybody unless that is written down.

use std::time::Duration;

use super::{Findings, minutes};
use crate::config::{AuthMode, Config};
use crate::origin::AllowedOrigin;

pub(super) fn check(config: &Config, found: &mut Findings) {
    let auth = &config.auth;
    found.duration("auth.leeway", auth.leeway, [Duration::ZERO, minutes(5)]);
    let cookie_name = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if auth.cookie.is_empty() || !auth.cookie.chars().all(cookie_name) {
        found.error(
            &["auth.cookie"],
            format!(
                "{:?} is not a valid cookie name; use A-Z a-z 0-9 _ -, such as \"relay_token\"",
                auth.cookie
            ),
        );
    }
    match auth.mode {
        Some(AuthMode::Jwt) => jwt(config, found),
        Some(AuthMode::Anonymous) => anonymous(config, found),
        Some(AuthMode::Url) => {
            if let Err(error) = config.identity() {
                found.error(error.keys(), error.to_string());
            }
        }
        None => unset(config, found),
    }
    if config.http.allowed_origins.contains(&AllowedOrigin::Any)
        && config.http.allowed_origins.len() > 1
    {
        found.warning(
            &["http.allowed_origins"],
            "\"*\" allows every origin already; drop it or the others",
        );
    }
}

fn jwt(config: &Config, found: &mut Findings) {
    let auth = &config.auth;
    if auth.issuer.is_some() && auth.audience.is_none() {
        found.error(
            &["auth.issuer", "auth.audience"],
            "is set without auth.audience, so a token that the issuer made for any other application would be accepted; set auth.audience to what tokens for this relay have in their claim aud",
        );
    }
    let made = auth.check_keys().and_then(|()| auth.key_material());
    match made {
        Err(error) => found.error(error.keys(), error.to_string()),
        Ok(keys) => {
            for key in keys {
                if let Some(weakness) = key.weakness(&auth.algorithms) {
                    found.warning(&["auth.key", "auth.key_file", "auth.keys"], weakness);
                }
            }
        }
    }
}

fn anonymous(config: &Config, found: &mut Findings) {
    if config.auth.has_keys() {
        found.warning(
            &["auth.mode"],
            "is \"anonymous\", so auth.key is not used and everybody sees everything; write \"jwt\" to check tokens",
        );
    }
}

fn unset(config: &Config, found: &mut Findings) {
    if config.auth.has_keys() {
        found.error(
            &["auth.mode"],
            "is not set although there is a key; set auth.mode = \"jwt\" to check tokens, or \"anonymous\" to let everybody in",
        );
    } else if !config.http.listen.ip().is_loopback() {
        found.error(
            &["auth.mode"],
            format!(
                "is not set, and http.listen {} can be reached from other machines; set auth.mode = \"jwt\" with auth.key_file, or auth.mode = \"anonymous\" if everybody may see and publish everything",
                config.http.listen
            ),
        );
    }
}
