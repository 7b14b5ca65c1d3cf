//! What is wrong with a configuration, where, and what was probably meant.
//!
//! Knows places and words, not keys' meanings; `source` and `validate` find the problems.
//!
//! Invariant: a problem's text never holds the value of a secret.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Place {
    /// In a file; line and column count from 1, the column in characters.
    File {
        /// The file as it was named on the command line.
        path: PathBuf,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// In an environment variable.
    Env(String),
    /// Nowhere: the default, or a key that is missing.
    #[default]
    Unset,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Unset => f.write_str("default"),
        }
    }
}

/// One thing that is wrong: where, which key, what, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Where the offending value is.
    pub place: Place,
    /// The key, such as `nats.url`; empty when the whole file is meant.
    pub key: String,
    /// What is wrong and how to put it right, in one sentence.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Place::Unset {
            write!(f, "{}: ", self.place)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// Orders the problems as a person reads: down the file, then the environment, then what is missing.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "an error without a problem");
        problems.sort();
        problems.dedup();
        Self { problems }
    }

    /// The problems, in the order they are to be read.
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Names people know from other programs, and the key they mean here.
const KNOWN_AS: [(&str, &str); 14] = [
    ("http.addr", "http.listen"),
    ("http.address", "http.listen"),
    ("http.bind", "http.listen"),
    ("http.host", "http.listen"),
    ("http.port", "http.listen"),
    ("http.cors", "http.allowed_origins"),
    ("http.proxies", "http.trusted_proxies"),
    ("http.proxy_protocol", "http.forwarded"),
    ("nats.host", "nats.url"),
    ("nats.servers", "nats.url"),
    ("nats.username", "nats.user"),
    ("auth.secret", "auth.key"),
    ("auth.public_key", "auth.key"),
    ("bus.type", "bus.mode"),
];

/// The key of `known` that somebody who wrote `wanted` probably meant.
pub(super) fn nearest<'a>(wanted: &str, known: &'a [String]) -> Option<&'a str> {
    let wanted = &wanted.to_lowercase();
    if let Some((_, key)) = KNOWN_AS.iter().find(|(name, _)| *name == wanted) {
        return known.iter().find(|k| k == key).map(String::as_str);
    }
    let name = key_name(wanted);
    known
        .iter()
        .map(|key| {
            // A right name in a wrong section is a smaller mistake than any misspelling.
            let elsewhere = distance(name, key_name(key)) + usize::from(name.len() < 4);
            let here = distance(wanted, key) * 2;
            (here.min(elsewhere * 2 + 1), key)
        })
        .filter(|(cost, _)| *cost <= 2 * name.len().div_ceil(3).min(3) + 1)
        .min_by_key(|(cost, _)| *cost)
        .map(|(_, key)| key.as_str())
}

/// `url` of `nats.url`.
pub(super) fn key_name(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// How many letters must be put in, left out, replaced or swapped with the next to make `b` of `a`.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::known_keys;

    #[test]
    fn distance_counts_single_slips() {
        for (a, b, n) in [
            ("url", "url", 0),
            ("urll", "url", 1),
            ("ulr", "url", 1),
            ("lisen", "listen", 1),
            ("", "abc", 3),
        ] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_key_is_the_one_meant() {
        let known = known_keys();
        for (wrote, meant) in [
            ("nats.urll", Some("nats.url")),
            ("nats.ulr", Some("nats.url")),
            ("http.lisen", Some("http.listen")),
            ("http.ping_interval", Some("delivery.ping_interval")),
            ("ping_intervall", Some("delivery.ping_interval")),
            ("http.port", Some("http.listen")),
            ("auth.secret", Some("auth.key")),
            ("limit.connections", Some("limits.connections")),
            ("NATS.URL", Some("nats.url")),
            ("delivery.pingInterval", Some("delivery.ping_interval")),
            ("nats.zzzzz", None),
            ("http.x", None),
        ] {
            assert_eq!(nearest(wrote, &known), meant, "{wrote}");
        }
    }

    #[test]
    fn a_problem_reads_as_place_key_and_sentence() {
        let problem = Problem {
            place: Place::File {
                path: "config/relay.toml".into(),
                line: 12,
                column: 3,
            },
            key: "nats.urll".to_owned(),
            message: "unknown key; did you mean nats.url?".to_owned(),
        };
        assert_eq!(
            problem.to_string(),
            "config/relay.toml:12:3: nats.urll: unknown key; did you mean nats.url?"
        );
    }
}
