//! The checks on `[nats]`: subjects, ways to log in, files.
//!
//! Knows how things are spelled, not how NATS works; nothing is connected to.
//!
//! Invariant: more than one way to log in is never accepted, as nobody could say which one was used.

use super::Findings;
use crate::config::{Nats, NatsUrl, read_secret};
use crate::identity::key::pem_labels;

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
    if let Some(domain) = &nats.domain
        && (domain.is_empty() || !domain.chars().all(word))
    {
        found.error(
            &["nats.domain"],
            format!("{domain:?} is not a valid JetStream domain; use A-Z a-z 0-9 _ -, or leave the key out"),
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
            &["nats.user", "nats.password", "nats.password_file"],
            "has no password; set nats.password_file or nats.password too",
        );
    }
    if nats.user.is_none() && password {
        found.error(
            &["nats.password", "nats.password_file", "nats.user"],
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
    for (key, file, holds) in [
        ("nats.password_file", &nats.password_file, Holds::Secret),
        ("nats.token_file", &nats.token_file, Holds::Secret),
        ("nats.nkey_file", &nats.nkey_file, Holds::Seed),
        ("nats.creds_file", &nats.creds_file, Holds::Credentials),
        ("nats.tls_ca_file", &nats.tls_ca_file, Holds::Certificates),
        (
            "nats.tls_cert_file",
            &nats.tls_cert_file,
            Holds::Certificates,
        ),
        ("nats.tls_key_file", &nats.tls_key_file, Holds::PrivateKey),
    ] {
        let Some(file) = file.as_deref() else {
            continue;
        };
        if !found.readable(key, file) {
            continue;
        }
        let wrong = match read_secret(file) {
            Ok(text) => holds.wrong_with(text.expose()).map(str::to_owned),
            Err(error) => Some(error.to_string()),
        };
        if let Some(wrong) = wrong {
            found.error(&[key], format!("{} {wrong}", file.display()));
        }
    }
    match (&nats.tls_cert_file, &nats.tls_key_file) {
        (Some(_), None) => found.error(
            &["nats.tls_cert_file", "nats.tls_key_file"],
            "has no private key; set nats.tls_key_file too",
        ),
        (None, Some(_)) => found.error(
            &["nats.tls_key_file", "nats.tls_cert_file"],
            "has no certificate; set nats.tls_cert_file too",
        ),
        (None, None) | (Some(_), Some(_)) => {}
    }
}

/// What a file has to hold.
#[derive(Debug, Clone, Copy)]
enum Holds {
    Secret,
    Seed,
    Credentials,
    Certificates,
    PrivateKey,
}

impl Holds {
    /// What is wrong with a file's text, if anything is: the end of a sentence that begins with the file.
    fn wrong_with(self, text: &str) -> Option<&'static str> {
        let count = |label: &str| {
            pem_labels(text.as_bytes())
                .iter()
                .filter(|l| l.contains(label))
                .count()
        };
        match self {
            _ if text.trim().is_empty() => Some("is an empty file; put the secret into it"),
            Self::Secret if text.contains('\n') => {
                Some("has several lines, and a secret is one; keep that line alone")
            }
            Self::Secret => None,
            Self::Seed
                if text.trim().starts_with("SU") && !text.trim().contains(char::is_whitespace) =>
            {
                None
            }
            Self::Seed => Some(
                "does not hold the seed of a user's NKey, which begins with SU, and nothing else",
            ),
            // nsc writes the seed between lines of its own, not PEM's.
            Self::Credentials => match (count("NATS USER JWT"), count("USER NKEY SEED")) {
                (1, 1) => None,
                (0, _) | (_, 0) => Some(
                    "is not a credentials file with a JWT and a seed; nsc writes one: nsc generate creds",
                ),
                _ => {
                    Some("holds several users, and only one can log in; keep one JWT and its seed")
                }
            },
            Self::Certificates => (count("CERTIFICATE") == 0)
                .then_some("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"),
            Self::PrivateKey => match count("PRIVATE KEY") {
                1 => None,
                0 => Some("holds no private key in PEM (-----BEGIN PRIVATE KEY-----)"),
                _ => Some(
                    "holds several private keys, and only one belongs to the certificate; keep that one",
                ),
            },
        }
    }
}
