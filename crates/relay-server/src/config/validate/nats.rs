//! The checks on `[nats]`: subjects, ways to log in, files.
//!
//! Knows how things are spelled, not how NATS works; nothing is connected to.
//!
//! Invariant: more than one way to log in is never accepted, as nobody could say which one was used.

use super::Findings;
use crate::config::{Nats, NatsUrl, Redacted, read_secret};

pub(super) fn check(nats: &Nats, found: &mut Findings) {
    subjects(nats, found);
    credentials(nats, found);
    files(nats, found);
}

fn subjects(nats: &Nats, found: &mut Findings) {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    for (key, prefix) in [
        ("nats.prefix", &nats.prefix),
        ("nats.live_prefix", &nats.live_prefix),
    ] {
        let good = prefix
            .split('.')
            .all(|token| !token.is_empty() && token.chars().all(word));
        if !good || prefix.len() > 128 {
            found.error(
                &[key],
                format!("{prefix:?} is not a valid subject prefix; use words of A-Z a-z 0-9 _ - with single dots between, such as \"progress\""),
            );
        }
    }
    // live_prefix + "." + prefix is where the stream republishes to: neither may catch the other's subjects.
    let covers = |outer: &str, inner: &str| {
        inner == outer
            || inner
                .strip_prefix(outer)
                .is_some_and(|r| r.starts_with('.'))
    };
    if covers(&nats.prefix, &nats.live_prefix) || covers(&nats.live_prefix, &nats.prefix) {
        found.error(
            &["nats.live_prefix", "nats.prefix"],
            format!(
                "nats.live_prefix {:?} and nats.prefix {:?} overlap, so republished updates would be stored again; choose another first word for one",
                nats.live_prefix, nats.prefix
            ),
        );
    }
    if nats.stream.is_empty() || !nats.stream.chars().all(word) || nats.stream.len() > 255 {
        found.error(
            &["nats.stream"],
            format!(
                "{:?} is not a valid stream name; use A-Z a-z 0-9 _ -, such as \"PROGRESS\"",
                nats.stream
            ),
        );
    }
}

fn credentials(nats: &Nats, found: &mut Findings) {
    let password = nats.password.is_some() || nats.password_file.is_some();
    if nats.user.is_some() && !password {
        found.error(
            &["nats.user"],
            "has no password; set nats.password_file or nats.password too",
        );
    }
    if nats.user.is_none() && password {
        found.error(
            &["nats.password", "nats.password_file"],
            "is a password without a user; set nats.user too",
        );
    }
    if nats.password.is_some() && nats.password_file.is_some() {
        found.error(
            &["nats.password", "nats.password_file"],
            "nats.password and nats.password_file are both set; keep one",
        );
    }
    if nats.token.is_some() && nats.token_file.is_some() {
        found.error(
            &["nats.token", "nats.token_file"],
            "nats.token and nats.token_file are both set; keep one",
        );
    }
    let ways: Vec<&'static str> = [
        (nats.user.is_some() || password, "nats.user"),
        (
            nats.token.is_some() || nats.token_file.is_some(),
            "nats.token",
        ),
        (nats.nkey_file.is_some(), "nats.nkey_file"),
        (nats.creds_file.is_some(), "nats.creds_file"),
        (nats.url.iter().any(NatsUrl::has_credentials), "nats.url"),
    ]
    .into_iter()
    .filter_map(|(used, key)| used.then_some(key))
    .collect();
    if ways.len() > 1 {
        found.error(
            &ways,
            format!(
                "more than one way to log in to NATS is set ({}); keep one",
                ways.join(", ")
            ),
        );
    }
}

fn files(nats: &Nats, found: &mut Findings) {
    for (key, file) in [
        ("nats.password_file", &nats.password_file),
        ("nats.token_file", &nats.token_file),
        ("nats.nkey_file", &nats.nkey_file),
        ("nats.creds_file", &nats.creds_file),
        ("nats.tls_ca_file", &nats.tls_ca_file),
        ("nats.tls_cert_file", &nats.tls_cert_file),
        ("nats.tls_key_file", &nats.tls_key_file),
    ] {
        found.readable(key, file.as_deref());
    }
    for (key, file) in [
        ("nats.password_file", &nats.password_file),
        ("nats.token_file", &nats.token_file),
    ] {
        let secret = file.as_deref().map(read_secret);
        if matches!(secret, Some(Ok(secret)) if secret.expose().is_empty()) {
            found.error(&[key], "names an empty file; put the secret into it");
        }
    }
    for (key, text) in [
        ("nats.user", nats.user.as_deref()),
        (
            "nats.password",
            nats.password.as_ref().map(Redacted::expose),
        ),
        ("nats.token", nats.token.as_ref().map(Redacted::expose)),
    ] {
        if text == Some("") {
            found.error(&[key], "is empty; write it, or leave the key out");
        }
    }
    match (&nats.tls_cert_file, &nats.tls_key_file) {
        (Some(_), None) => found.error(
            &["nats.tls_cert_file"],
            "has no private key; set nats.tls_key_file too",
        ),
        (None, Some(_)) => found.error(
            &["nats.tls_key_file"],
            "has no certificate; set nats.tls_cert_file too",
        ),
        (None, None) | (Some(_), Some(_)) => {}
    }
}
