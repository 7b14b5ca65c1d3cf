//! The reader: one wildcard subscription, read in a tight loop, taken up anew after every doubt.
//!
//! It subscribes, waits until the subscription is in place on all servers, and only then asks the leader
//! how far the stream has come: what is stored after that answer is republished after it, to a
//! subscription that is there. Meanwhile live messages wait in the subscription.
//!
//! It numbers and hands on; the hub decides what a hole in a job's chain means. What the hub cannot see,
//! a message that is lost and not followed by another of its subject, shows here: all messages of the
//! stream come by, so their numbers have no holes, and none is behind the leader's last for long.
//!
//! Invariant: no message of a later connection or of another life of the stream is handed on before
//! [`Intake::live`] has said so.

mod missing;

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use super::ask::{AskError, Asker};
use super::decode::{self, Flaw};
use super::stream::{self, Facts, StreamError};
use crate::connection::{BarrierError, Seldom};
use crate::seam::{Incoming, Intake};
use missing::{Missing, Range};

/// In a cluster the interest in a subscription travels for a moment after its server has confirmed it.
const SETTLE: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(250);
/// Messages read before looking at anything else.
const BURST: usize = 64;
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at a stream that does not fit: somebody has to mend it.
const LONG_PAUSE: Duration = Duration::from_secs(3);
/// A leader that has just been deposed may answer once more with too low a number.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

/// Why reading has not begun.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("{0}")]
    Away(String),
    #[error("NATS refuses the subscription: {refusal}")]
    Refused { refusal: String },
    #[error("the subscription could not be sent")]
    Unsent,
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the connection changed meanwhile")]
    Changed,
}

impl AttachError {
    fn pause(&self) -> Duration {
        match self {
            Self::Changed => Duration::ZERO,
            Self::Away(_) | Self::Unsent | Self::Barrier(_) => PAUSE,
            Self::Stream(StreamError::Unanswered { .. }) => PAUSE,
            Self::Stream(_) | Self::Refused { .. } => LONG_PAUSE,
        }
    }
}

/// Why reading has to begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Trouble {
    #[error("the connection to NATS is lost")]
    Lost,
    #[error("the connection to NATS was lost and is back")]
    Reconnected,
    #[error("the stream was deleted")]
    Deleted,
    #[error("the stream was deleted and made anew")]
    Recreated,
    #[error("the stream has lost its last messages")]
    Rewound,
    #[error("the stream's numbers went backwards")]
    Backwards,
    #[error("the subscription ended")]
    Ended,
}

/// A subscription in place.
struct Attached {
    subscription: Subscriber,
    /// Which connection this is; a message of another one is not read from here.
    connects: u64,
    facts: Facts,
}

/// Done beside reading.
enum Chore {
    /// The leader's word, and the highest number read when it was asked.
    Checked(Result<Facts, AskError>, u64),
    Fetched(Range, Result<Vec<Incoming>, AskError>),
}

/// Reads for ever.
pub(super) async fn read<'a, E>(
    shared: &'a Shared,
    asker: &'a Asker,
    intake: &'a dyn Intake,
) -> Result<Infallible, E> {
    let mut reader = Reader {
        shared,
        asker,
        intake,
        life: Life::default(),
        slow_consumers: 0,
        told: None,
        often: Seldom::default(),
    };
    loop {
        match reader.attach().await {
            Ok(attached) => {
                let epoch = reader.life.epoch(attached.facts);
                reader.go_live(epoch, attached.facts.last_seq);
                let trouble = Follow::new(&mut reader, attached, epoch).run().await;
                tracing::debug!(reason = %trouble, "reading begins anew");
                reader.go_away(match trouble {
                    Trouble::Lost => asker.link().failure(),
                    other => other.to_string(),
                });
            }
            Err(error) => {
                reader.tell(&error);
                reader.go_away(error.to_string());
                tokio::time::sleep(error.pause()).await;
            }
        }
    }
}

/// One life of the stream's numbers.
#[derive(Debug, Default)]
struct Life {
    created: u64,
    /// How often the stream fell behind what was read of it, within one creation.
    rewinds: u64,
}

impl Life {
    /// The epoch these facts belong to. Numbers of a stream that lost its end (a power cut before its
    /// data reached the disk) are given out again, so it counts as another stream.
    fn epoch(&self, facts: Facts) -> u64 {
        facts.created.wrapping_add(self.rewinds)
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    asker: &'a Asker,
    intake: &'a dyn Intake,
    life: Life,
    slow_consumers: u64,
    /// What keeps the reader from reading, as last logged.
    told: Option<String>,
    often: Seldom,
}

impl Reader<'_> {
    fn go_live(&mut self, epoch: u64, from_seq: u64) {
        self.told = None;
        self.shared.seen.store(from_seq, Ordering::Release);
        self.shared.set_away(None);
        tracing::info!(stream = self.shared.settings.stream, epoch, from_seq, "reading the stream");
        self.intake.live(epoch, from_seq);
    }

    fn go_away(&self, reason: String) {
        if self.shared.set_away(Some(&reason)) {
            self.intake.lost(&reason);
        }
    }

    /// Logs what keeps the reader waiting: once, and again when it changes or a minute has passed.
    fn tell(&mut self, error: &AttachError) {
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            self.often = Seldom::default();
        }
        // A lost connection has its own line.
        let is_own = !matches!(error, AttachError::Away(_) | AttachError::Changed);
        if is_own && self.often.allow().is_some() {
            tracing::warn!(reason = text, "cannot read the stream yet; trying again");
        }
        self.told = Some(text);
    }

    /// Puts the subscription in place, then learns how far the stream has come.
    async fn attach(&mut self) -> Result<Attached, AttachError> {
        let link = self.asker.link();
        if !link.is_up() {
            link.changed().await;
            if !link.is_up() {
                return Err(AttachError::Away(link.failure()));
            }
        }
        let connects = link.connects();
        let mark = link.refusals();
        let subject = self.shared.subjects.all_live();
        // A new subscription each time: what waits in an old one may be of another life of the stream.
        let subscribing = link.client().subscribe(subject);
        let subscription = tokio::time::timeout(SUBSCRIBE_LIMIT, subscribing).await;
        let Ok(Ok(subscription)) = subscription else {
            return Err(AttachError::Unsent);
        };
        link.barrier().await?;
        tokio::time::sleep(SETTLE).await;
        if let Some(refusal) = link.refusal_since(mark) {
            return Err(AttachError::Refused { refusal });
        }
        let facts = stream::fit(self.asker, &self.shared.settings, &self.shared.subjects).await?;
        let facts = self.recognise(facts).await?;
        if link.connects() != connects || !link.is_up() {
            return Err(AttachError::Changed);
        }
        Ok(Attached {
            subscription,
            connects,
            facts,
        })
    }

    /// Holds the stream against what was read of it before.
    async fn recognise(&mut self, facts: Facts) -> Result<Facts, AttachError> {
        if facts.created != self.life.created {
            self.life = Life {
                created: facts.created,
                rewinds: 0,
            };
            return Ok(facts);
        }
        let seen = self.shared.seen();
        if facts.last_seq >= seen {
            return Ok(facts);
        }
        tokio::time::sleep(CONFIRM_AFTER).await;
        let again = stream::fit(self.asker, &self.shared.settings, &self.shared.subjects).await?;
        if again.created == facts.created && again.last_seq < seen {
            tracing::warn!(seen, last = again.last_seq, "the stream has lost its last messages");
            self.life.rewinds += 1;
        }
        Ok(again)
    }
}

/// Reading from one subscription until there is trouble.
struct Follow<'r, 'a> {
    reader: &'r mut Reader<'a>,
    subscription: Subscriber,
    connects: u64,
    created: u64,
    epoch: u64,
    /// The number of the last live message, to see order.
    last: u64,
    missing: Missing,
    chores: FuturesUnordered<BoxFuture<'a, Chore>>,
    next_check: Instant,
    /// Whether a check is among the chores.
    checking: bool,
    /// The last check found the stream shorter than what was read.
    doubtful: bool,
}

impl<'r, 'a> Follow<'r, 'a> {
    fn new(reader: &'r mut Reader<'a>, attached: Attached, epoch: u64) -> Self {
        Self {
            connects: attached.connects,
            created: attached.facts.created,
            epoch,
            last: 0,
            missing: Missing::after(attached.facts.last_seq),
            chores: FuturesUnordered::new(),
            next_check: Instant::now() + reader.shared.settings.check_interval,
            checking: false,
            doubtful: false,
            subscription: attached.subscription,
            reader,
        }
    }

    async fn run(mut self) -> Trouble {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Not biased: under a flood the subscription is always ready, and checks must go on.
            tokio::select! {
                message = self.subscription.next() => {
                    let Some(message) = message else {
                        return Trouble::Ended;
                    };
                    if let Err(trouble) = self.take_burst(message) {
                        return trouble;
                    }
                }
                Some(chore) = self.chores.next() => {
                    if let Err(trouble) = self.finish(chore) {
                        return trouble;
                    }
                }
                () = self.reader.asker.link().signal() => {}
                _ = ticks.tick() => self.look(),
            }
            self.count_slow_consumers();
            if let Err(trouble) = self.connection() {
                // What was read before the loss is good.
                return self.drain().err().unwrap_or(trouble);
            }
        }
    }

    fn connection(&self) -> Result<(), Trouble> {
        let link = self.reader.asker.link();
        if link.connects() != self.connects {
            return Err(Trouble::Reconnected);
        }
        if link.is_up() { Ok(()) } else { Err(Trouble::Lost) }
    }

    /// Takes a message and those that wait behind it, up to a bound.
    fn take_burst(&mut self, first: Message) -> Result<(), Trouble> {
        self.take(first)?;
        for _ in 1..BURST {
            match self.subscription.next().now_or_never() {
                Some(Some(message)) => self.take(message)?,
                Some(None) => return Err(Trouble::Ended),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes what came before the connection was lost.
    fn drain(&mut self) -> Result<(), Trouble> {
        while let Some(Some(message)) = self.subscription.next().now_or_never() {
            self.take(message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), Trouble> {
        // The counter rises before a message of the new connection can be here.
        if self.reader.asker.link().connects() != self.connects {
            return Err(Trouble::Reconnected);
        }
        let shared = self.reader.shared;
        let Some(seq) = decode::live_seq(&shared.settings.stream, &message) else {
            self.refuse(&Flaw::NotFromStream, &message);
            return Ok(());
        };
        if seq <= self.last {
            // One stream is one order: this is another stream, or the same one grown shorter.
            return Err(Trouble::Backwards);
        }
        self.last = seq;
        if let Some(range) = self.missing.saw(seq) {
            self.fetch(range);
        }
        shared.seen.fetch_max(seq, Ordering::AcqRel);
        match decode::live(&shared.subjects, seq, &message) {
            Ok(Some(update)) => self.reader.intake.ingest(update),
            Ok(None) => {}
            Err(flaw) => self.refuse(&flaw, &message),
        }
        Ok(())
    }

    fn refuse(&self, flaw: &Flaw, message: &Message) {
        tracing::debug!(subject = %message.subject, reason = %flaw, "dropped a message");
        self.reader.intake.dropped(flaw.label());
    }

    fn count_slow_consumers(&mut self) {
        let link = self.reader.asker.link();
        for _ in 0..link.newly_dropped(&mut self.reader.slow_consumers) {
            self.reader.intake.dropped("slow_consumer");
        }
    }

    /// Looks after what is due.
    fn look(&mut self) {
        let now = Instant::now();
        if let Some(range) = self.missing.overdue(now) {
            self.fetch(range);
        }
        if self.missing.wants_compare(now) {
            self.reader.intake.live(self.epoch, self.missing.seen());
        }
        if now >= self.next_check && !self.checking {
            self.checking = true;
            let (asker, seen) = (self.reader.asker, self.missing.seen());
            let check = async move { Chore::Checked(stream::facts(asker).await, seen) };
            self.chores.push(check.boxed());
        }
    }

    fn fetch(&mut self, range: Range) {
        tracing::debug!(from = range.first, to = range.last, "live messages are missing; fetching them");
        let (asker, subjects) = (self.reader.asker, &self.reader.shared.subjects);
        let fetch = async move { Chore::Fetched(range, missing::fetch(asker, subjects, range).await) };
        self.chores.push(fetch.boxed());
    }

    fn finish(&mut self, chore: Chore) -> Result<(), Trouble> {
        match chore {
            Chore::Fetched(_, Ok(updates)) => {
                for update in updates {
                    self.reader.intake.ingest(update);
                }
                Ok(())
            }
            Chore::Fetched(range, Err(error)) => {
                tracing::debug!(from = range.first, %error, "could not fetch missing messages");
                self.missing.compare();
                Ok(())
            }
            Chore::Checked(facts, seen) => self.checked(facts, seen),
        }
    }

    fn checked(&mut self, facts: Result<Facts, AskError>, seen: u64) -> Result<(), Trouble> {
        let now = Instant::now();
        self.checking = false;
        self.next_check = now + self.reader.shared.settings.check_interval;
        let facts = match facts {
            Ok(facts) => facts,
            Err(error) if stream::is_missing(&error) => return Err(Trouble::Deleted),
            Err(error) => {
                tracing::debug!(%error, "could not check the stream");
                self.next_check = now + PAUSE;
                return Ok(());
            }
        };
        if facts.created != self.created {
            return Err(Trouble::Recreated);
        }
        if facts.last_seq >= seen {
            self.doubtful = false;
            self.missing.expect(facts.last_seq, now);
            return Ok(());
        }
        if std::mem::replace(&mut self.doubtful, true) {
            return Err(Trouble::Rewound);
        }
        self.next_check = now + CONFIRM_AFTER;
        Ok(())
    }
}
