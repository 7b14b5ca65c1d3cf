//! The reader of core NATS: one subscription that is never given up, numbered as it is read.
//!
//! Invariant: reading never waits. Whether the subscription is in place is found out beside it.

use std::convert::Infallible;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use relay_core::job::Declined;
use relay_core::position::Seq;
use tokio::sync::oneshot;

use super::{RELAY_ID, Shared};
use crate::clock::Clock;
use crate::connection::{BarrierError, ConnectionError, Link, Seldom};
use crate::poison;
use crate::seam::{About, Incoming, Intake, RefusedUpdate};
use crate::subject::PROBE;

/// In a cluster the interest in a subscription travels for a moment after its server has confirmed it.
const SETTLE: Duration = Duration::from_millis(200);
/// Messages read before looking at anything else.
const BURST: usize = 64;
/// Between two attempts to get the subscription in place.
const PAUSE: Duration = Duration::from_millis(500);

/// Why the subscription is not in place.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error("NATS rejected the subscription: {refusal}")]
    Refused { refusal: String },
    #[error(transparent)]
    Barrier(#[from] BarrierError),
}

/// Where the reader is with one connection.
enum Phase {
    Away,
    /// Finding out whether the subscription is in place.
    Joining(BoxFuture<'static, Result<(), JoinError>>),
    Live,
}

struct Reader<'a> {
    shared: &'a Shared,
    link: &'a Link,
    intake: &'a dyn Intake,
    subscription: Subscriber,
    phase: Phase,
    /// Which connection the phase is about.
    connects: u64,
    /// What was refused before this connection.
    refusals: u64,
    seq: Seq,
    /// What was read and is not handed on yet.
    burst: Vec<Incoming>,
    /// Who waits for one of these to be handed on, and its number.
    echoes: Vec<(oneshot::Sender<Seq>, Seq)>,
    slow_consumers: u64,
    often: Seldom,
    /// Why nothing can be read now, as last told.
    away: Option<String>,
    clock: Clock,
}

/// Reads for ever.
///
/// # Errors
/// When there is no client any more.
pub(super) async fn read(
    shared: &Shared,
    link: &Link,
    intake: &dyn Intake,
) -> Result<Infallible, ConnectionError> {
    let mut reader = Reader {
        shared,
        link,
        intake,
        subscription: subscribe(shared, link).await?,
        phase: Phase::Away,
        connects: 0,
        refusals: 0,
        seq: Seq::ZERO,
        burst: Vec::with_capacity(BURST),
        echoes: Vec::new(),
        slow_consumers: 0,
        often: Seldom::default(),
        away: None,
        clock: Clock::start(),
    };
    loop {
        reader.step().await?;
    }
}

async fn subscribe(shared: &Shared, link: &Link) -> Result<Subscriber, ConnectionError> {
    link.subscribe(shared.subjects.all_live()).await
}

impl Reader<'_> {
    async fn step(&mut self) -> Result<(), ConnectionError> {
        let joining = async {
            match &mut self.phase {
                Phase::Joining(joined) => joined.await,
                Phase::Away | Phase::Live => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.subscription.next() => match message {
                Some(message) => self.take_burst(message),
                None => self.subscription = subscribe(self.shared, self.link).await?,
            },
            joined = joining => self.joined(joined).await?,
            () = self.link.changed() => {}
        }
        self.look();
        Ok(())
    }

    /// Follows the connection.
    fn look(&mut self) {
        for _ in 0..self.link.newly_dropped(&mut self.slow_consumers) {
            self.intake.dropped("slow_consumer");
        }
        let connects = self.link.connects();
        if !self.link.is_up() {
            self.refusals = self.link.refusals();
            self.phase = Phase::Away;
            self.go_away(self.link.failure());
        } else if connects != self.connects {
            if matches!(self.phase, Phase::Live) {
                self.go_away("the connection to NATS was lost and is back".to_owned());
            }
            self.connects = connects;
            self.join(Duration::ZERO);
        }
    }

    fn go_away(&mut self, reason: String) {
        if self.away.as_ref() != Some(&reason) {
            self.intake.lost(&reason);
            self.away = Some(reason);
        }
    }

    fn join(&mut self, after: Duration) {
        let (link, refusals) = (self.link.clone(), self.refusals);
        let subject = self.shared.subjects.all_live();
        let joined = async move {
            tokio::time::sleep(after).await;
            link.barrier().await?;
            tokio::time::sleep(SETTLE).await;
            match link.refusal_since(refusals, &subject) {
                Some(refusal) => Err(JoinError::Refused { refusal }),
                None => Ok(()),
            }
        };
        self.phase = Phase::Joining(joined.boxed());
    }

    async fn joined(&mut self, joined: Result<(), JoinError>) -> Result<(), ConnectionError> {
        let Err(error) = joined else {
            self.phase = Phase::Live;
            self.away = None;
            tracing::info!(
                epoch = self.shared.settings.epoch.get(),
                from_seq = self.seq.get(),
                "reading from NATS"
            );
            self.intake.live(self.shared.settings.epoch, self.seq);
            return Ok(());
        };
        self.go_away(error.to_string());
        if self.often.allow().is_some() {
            tracing::warn!(reason = %error, "cannot read from NATS yet; trying again");
        }
        if let JoinError::Refused { .. } = error {
            // The server has forgotten the one it refused.
            self.refusals = self.link.refusals();
            self.subscription = subscribe(self.shared, self.link).await?;
        }
        self.join(PAUSE);
        Ok(())
    }

    /// Takes a message and those that wait behind it, up to a bound, and hands them on together.
    fn take_burst(&mut self, first: Message) {
        self.take(first);
        for _ in 1..BURST {
            let Some(Some(message)) = self.subscription.next().now_or_never() else {
                break;
            };
            self.take(message);
        }
        self.intake.ingest(&mut self.burst);
        for (echo, seq) in self.echoes.drain(..) {
            // Whoever published may have stopped waiting.
            echo.send(seq).unwrap_or_default();
        }
    }

    fn take(&mut self, message: Message) {
        let headers = message.headers.as_ref();
        if headers.is_some_and(|headers| headers.get(PROBE).is_some()) {
            return;
        }
        let subjects = &self.shared.subjects;
        let address = poison::read(&message.subject, None, || {
            subjects.parse_live(&message.subject)
        });
        let about = About {
            seq: None,
            size: message.payload.len(),
            time: self.clock.wall(),
        };
        let address = match address {
            Some(Ok(address)) => address,
            Some(Err(error)) => {
                let subject = &message.subject;
                let update = subjects.refused(subject, &error, about);
                self.intake.refused(update);
                return;
            }
            None => {
                let sentence = Declined::Panicked.to_string();
                let subject = &message.subject;
                let update = RefusedUpdate::unread(subject, poison::PANICKED, &sentence, about);
                self.intake.refused(update);
                return;
            }
        };
        self.seq = self.seq.next();
        self.burst.push(Incoming {
            job: address.job,
            what: address.what,
            payload: message.payload,
            seq: self.seq,
            previous: None,
            stored_at: about.time,
            first: None,
        });
        let id = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get_last(RELAY_ID));
        let echo = id.and_then(|id| self.shared.echoes.lock().remove(id.as_str()));
        self.echoes.extend(echo.map(|echo| (echo, self.seq)));
    }
}
