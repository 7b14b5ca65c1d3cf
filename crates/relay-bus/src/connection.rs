//! The connection to NATS: whether it is up, the way back after a loss, and what it says of itself.
//!
//! Where it leads, and as whom, is in `settings`. It does not know what is read or written over it.
//!
//! Invariant: a connection is never given up.

mod settings;
mod signals;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::seam::{Rejection, StoreError, Unreachable};

pub(crate) use settings::Prepared;
pub use settings::{ConnectionError, ConnectionSettings};
pub(crate) use signals::Seldom;
use signals::Signals;

const MAX_RECONNECT_DELAY_MS: u64 = 4_000;
/// Events may be lost, so whoever waits for one looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const BARRIER_LIMIT: Duration = Duration::from_secs(2);

/// Doubles from 8 ms up to 4 s; the lower half is random, or a fleet would come back in step.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.min(10)).unwrap_or(10);
    let most = (4_u64 << doublings).min(MAX_RECONNECT_DELAY_MS);
    Duration::from_millis(fastrand::u64(most / 2..=most))
}

impl Prepared {
    /// Begins to connect and answers at once: if NATS is not there, the connection keeps trying.
    pub(crate) async fn connect(self) -> Result<Link, ConnectionError> {
        let client = self
            .options
            .reconnect_delay_callback(reconnect_delay)
            .connect(self.servers)
            .await
            .map_err(ConnectionError::Client)?;
        Ok(Link {
            client,
            signals: self.signals,
        })
    }
}

/// A connection that may be up or down, and comes back by itself.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    client: Client,
    /// Filled by the client's events.
    signals: Arc<Signals>,
}

/// Why a barrier was not passed.
#[derive(Debug, thiserror::Error)]
#[error(
    "NATS does not hand our own message back; may this user publish and subscribe to {inbox}.>?"
)]
pub(crate) struct BarrierError {
    inbox: String,
}

impl Link {
    /// Asks whoever answers `subject`.
    pub(crate) async fn ask(
        &self,
        subject: String,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, StoreError> {
        if !self.is_up() {
            return Err(self.away().into());
        }
        let request = async_nats::Request::new()
            .payload(payload)
            .timeout(Some(timeout));
        match self.client.send_request(subject.clone(), request).await {
            Ok(message) => Ok(message.payload),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                Err(Rejection::NoListener { subject }.into())
            }
            Err(error) => Err(Unreachable::Unanswered(error.into()).into()),
        }
    }

    /// Subscribes. The client sends it when it is connected, and again after each reconnect.
    ///
    /// # Errors
    /// When there is no client any more.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, ConnectionError> {
        let subscribed = self.client.subscribe(subject).await;
        subscribed.map_err(ConnectionError::Stopped)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How often a connection was established. It rises before the first message of a new connection
    /// can be read, and unlike events it is never lost.
    pub(crate) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Waits for word from the connection; it may be lost.
    pub(crate) async fn signal(&self) {
        self.signals.changed().await;
    }

    /// Waits for a change, or for a while: events may be lost, so look again either way.
    pub(crate) async fn changed(&self) {
        let limit = tokio::time::timeout(LOOK_AGAIN, self.signals.changed());
        // Running out of time is the ordinary case.
        limit.await.unwrap_or_default();
    }

    /// Ends when the connection is lost, even if it is back at once: what was asked over it will not be
    /// answered any more.
    pub(crate) async fn broken(&self) {
        let connects = self.connects();
        while self.is_up() && self.connects() == connects {
            self.changed().await;
        }
    }

    /// Why the connection is down, in a sentence's end.
    pub(crate) fn failure(&self) -> String {
        self.signals.failure()
    }

    /// The same, as an answer to whoever asked something.
    pub(crate) fn away(&self) -> Unreachable {
        let reason = self.failure();
        Unreachable::Away { reason }
    }

    /// How many messages were dropped because the reader was slow, beyond those `known`.
    pub(crate) fn newly_dropped(&self, known: &mut u64) -> u64 {
        let now = self.signals.slow_consumers();
        now.saturating_sub(std::mem::replace(known, now))
    }

    /// A mark for [`Link::refusal_since`].
    pub(crate) fn refusals(&self) -> u64 {
        self.signals.refusals()
    }

    /// What the server refused since, in its own words, if it was about that subject. It says so on the
    /// side: a refused request is simply never answered.
    pub(crate) fn refusal_since(&self, mark: u64, subject: &str) -> Option<String> {
        self.signals.refusal_since(mark, &format!("\"{subject}\""))
    }

    /// Passes when the server has seen everything sent before on this connection. The client's `flush`
    /// only empties its buffer into the socket: measured, up to 256 messages were missed after it.
    pub(crate) async fn barrier(&self) -> Result<(), BarrierError> {
        let inbox = self.client.new_inbox();
        let round_trip = async {
            let mut echo = self.client.subscribe(inbox.clone()).await.ok()?;
            self.client
                .publish(inbox.clone(), Bytes::new())
                .await
                .ok()?;
            echo.next().await
        };
        match tokio::time::timeout(BARRIER_LIMIT, round_trip).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(BarrierError {
                inbox: inbox
                    .rsplit_once('.')
                    .map_or(&*inbox, |(prefix, _)| prefix)
                    .to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_jittered_and_never_longer_than_four_seconds() {
        for attempts in 1..100 {
            let delay = reconnect_delay(attempts).as_millis();
            assert!(
                delay <= 4_000 && (attempts < 10 || delay >= 2_000),
                "{attempts}: {delay}"
            );
        }
        assert!(reconnect_delay(1).as_millis() <= 8);
        let delays: std::collections::HashSet<_> = (0..50).map(|_| reconnect_delay(50)).collect();
        assert!(delays.len() > 10);
    }
}
