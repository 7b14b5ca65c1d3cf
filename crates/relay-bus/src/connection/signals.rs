//! What the NATS client says of its connection, kept for the reader and told in the log.
//!
//! The client hands its events through a queue that drops when it is full, so nothing here is counted on:
//! a reader that waits for a signal also looks for itself now and then.
//!
//! Invariant: however often a server refuses or is away, the log gets a line a minute about it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{ClientError, Event, ServerError};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::subject::Subjects;

const REFUSALS: usize = 16;
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What is known of the connection from its events.
#[derive(Debug)]
pub(super) struct Signals {
    /// The servers, for log lines.
    servers: String,
    /// Wakes whoever waits; a permit is left for the next if nobody does.
    changed: Notify,
    slow_consumers: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// Why it is down; `None` while it is up.
    failure: Option<String>,
    refusals: u64,
    /// The last few, in the server's words.
    refused_lately: VecDeque<String>,
    away: Seldom,
    refused: Seldom,
    slow: Seldom,
}

impl Signals {
    pub(super) fn new(servers: String) -> Self {
        Self {
            servers,
            changed: Notify::new(),
            slow_consumers: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn failure(&self) -> String {
        let failure = self.told.lock().failure.clone();
        failure.unwrap_or_else(|| format!("NATS at {} is not reachable", self.servers))
    }

    pub(super) fn slow_consumers(&self) -> u64 {
        self.slow_consumers.load(Ordering::Relaxed)
    }

    pub(super) fn refusals(&self) -> u64 {
        self.told.lock().refusals
    }

    pub(super) fn refusal_since(&self, mark: u64, about: &str) -> Option<String> {
        let told = self.told.lock();
        let since = usize::try_from(told.refusals.saturating_sub(mark)).unwrap_or(usize::MAX);
        let mut lately = told.refused_lately.iter().rev().take(since);
        lately.find(|refusal| refusal.contains(about)).cloned()
    }

    /// Takes one event in, and logs it if it is worth a line.
    pub(super) fn take(&self, event: &Event) {
        let mut told = self.told.lock();
        match event {
            Event::Connected => {
                told.failure = None;
                told.away = Seldom::default();
                tracing::info!(servers = %self.servers, "connected to NATS");
            }
            Event::Disconnected | Event::Closed => {
                told.failure = Some(format!(
                    "the connection to NATS at {} is lost",
                    self.servers
                ));
                tracing::warn!(servers = %self.servers, "the connection to NATS is lost; trying again until it is back");
            }
            Event::LameDuckMode => {
                tracing::info!("the NATS server is shutting down; it will send us to another one");
            }
            Event::SlowConsumer(_) => {
                self.slow_consumers.fetch_add(1, Ordering::Relaxed);
                if let Some(more) = told.slow.allow() {
                    tracing::warn!(
                        more,
                        "messages came faster than they could be read and were dropped"
                    );
                }
            }
            // Without that right nobody looks for other streams, and nothing else is lost.
            Event::ServerError(ServerError::Other(text)) if Subjects::is_about_probe(text) => {}
            Event::ServerError(ServerError::Other(text)) => told.refuse(text),
            Event::ServerError(error) => told.fail(&self.servers, &error.to_string()),
            Event::ClientError(ClientError::Other(text)) => told.fail(&self.servers, text),
            Event::ClientError(error) => told.fail(&self.servers, &error.to_string()),
            Event::Draining => {}
        }
        drop(told);
        self.changed.notify_waiters();
        self.changed.notify_one();
    }
}

impl Told {
    /// The server answered a command with an error; the connection stays.
    fn refuse(&mut self, text: &str) {
        self.refusals += 1;
        self.refused_lately.push_back(text.to_owned());
        if self.refused_lately.len() > REFUSALS {
            self.refused_lately.pop_front();
        }
        if let Some(more) = self.refused.allow() {
            tracing::warn!(refusal = text, more, "NATS rejected a command");
        }
    }

    /// An attempt to connect failed.
    fn fail(&mut self, servers: &str, text: &str) {
        let text = text.strip_prefix("nats: ").unwrap_or(text);
        let advice = match text {
            "authorization violation" | "failed signing nonce" => {
                "check the user, password, token, nkey or credentials of the nats section"
            }
            "TLS error" => {
                "check the tls settings of the nats section, and the server's certificate"
            }
            _ => "is it running?",
        };
        self.failure = Some(format!(
            "NATS at {servers} cannot be reached ({text}): {advice}"
        ));
        if let Some(more) = self.away.allow() {
            tracing::warn!(%servers, error = text, more, "cannot connect to NATS, trying again: {advice}");
        }
    }
}

/// Lets one through, then holds back for a minute and counts.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// `Some(n)` when it is time again; `n` have been held back since the last time.
    pub(crate) fn allow(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_repeats_is_told_once_a_minute() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.allow(), Some(0));
        assert_eq!(seldom.allow(), None);
        assert_eq!(seldom.allow(), None);
        tokio::time::advance(LOG_EVERY).await;
        assert_eq!(seldom.allow(), Some(2));
    }

    #[test]
    fn a_failure_names_the_servers_and_what_to_check() {
        let signals = Signals::new("nats://a:1".into());
        let refused = ClientError::Other("authorization violation".into());
        signals.take(&Event::ClientError(refused));
        let failure = signals.failure();
        assert!(
            failure.contains("nats://a:1") && failure.contains("password"),
            "{failure}"
        );
        signals.take(&Event::Connected);
        assert_eq!(signals.failure(), "NATS at nats://a:1 is not reachable");
    }

    #[test]
    fn a_refusal_is_known_to_whoever_waits_for_an_answer() {
        let signals = Signals::new(String::new());
        let mark = signals.refusals();
        assert_eq!(signals.refusal_since(mark, "x"), None);
        let refuse = |what: &str| {
            let text = format!("Permissions Violation for Publish to \"{what}\"");
            signals.take(&Event::ServerError(ServerError::Other(text)));
        };
        refuse("x");
        refuse("other");
        let words = "Permissions Violation for Publish to \"x\"";
        assert_eq!(signals.refusal_since(mark, "\"x\"").as_deref(), Some(words));
        assert_eq!(signals.refusal_since(mark + 1, "\"x\""), None);
        for _ in 0..100 {
            refuse("y");
        }
        assert_eq!(signals.refusal_since(mark, "\"x\""), None);
        assert!(signals.refusal_since(mark, "\"y\"").is_some());
    }
}
