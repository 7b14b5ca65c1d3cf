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

mod follow;
mod missing;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subscriber;
use relay_core::moment::WallTime;
use relay_core::position::{Epoch, Seq};

use super::Shared;
use super::ask::Asker;
use super::decode;
use super::fitness::{Difference, Weight};
use super::stream::{Facts, Place, StreamError};
use crate::clock::Clock;
use crate::connection::{BarrierError, ConnectionError, Seldom};
use crate::seam::Intake;
use follow::{Follow, Trouble};

/// In a cluster the interest in a subscription travels for a moment after its server has confirmed it.
const SETTLE: Duration = Duration::from_millis(200);
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at a stream that does not fit: somebody has to mend it.
const LONG_PAUSE: Duration = Duration::from_secs(2);
/// Messages remembered to know the stream by. All of them may have been discarded since; then it is believed.
const MARKS: usize = 16;
/// A leader that has just been deposed may answer once more with too low a number.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

/// Why reading has not begun.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("{reason}")]
    Away { reason: String },
    #[error("NATS rejected the subscription: {refusal}")]
    Refused { refusal: String },
    #[error("the subscription could not be sent")]
    Unsent,
    #[error(transparent)]
    Stopped(ConnectionError),
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
            Self::Changed | Self::Stopped(_) => Duration::ZERO,
            Self::Away { .. } | Self::Unsent | Self::Barrier(_) => PAUSE,
            Self::Stream(StreamError::Unanswered { .. }) => PAUSE,
            Self::Stream(_) | Self::Refused { .. } => LONG_PAUSE,
        }
    }
}

/// A subscription in place.
struct Attached {
    subscription: Subscriber,
    /// Which connection this is; a message of another one is not read from here.
    connects: u64,
    facts: Facts,
}

/// Reads for ever.
///
/// # Errors
/// When there is no client any more.
pub(super) async fn read<'a>(
    shared: &'a Shared,
    asker: &'a Asker,
    intake: &'a dyn Intake,
) -> Result<Infallible, ConnectionError> {
    let mut reader = Reader {
        shared,
        asker,
        intake,
        life: Life::default(),
        marks: Marks::default(),
        slow_consumers: 0,
        told: None,
        often: Seldom::default(),
        clock: Clock::start(),
        advised: Vec::new(),
    };
    loop {
        match reader.attach().await {
            Ok(attached) => {
                let epoch = reader.life.epoch(attached.facts);
                let per_subject = attached.facts.per_subject;
                shared.per_subject.store(per_subject, Ordering::Relaxed);
                reader.go_live(epoch, attached.facts.last_seq);
                let trouble = Follow::new(&mut reader, attached, epoch).run().await;
                tracing::debug!(reason = %trouble, "reading begins anew");
                reader.go_away(match trouble {
                    Trouble::Lost => asker.link().failure(),
                    other => other.to_string(),
                });
            }
            Err(AttachError::Stopped(error)) => return Err(error),
            Err(error) => {
                reader.tell(&error);
                reader.go_away(error.to_string());
                tokio::time::sleep(error.pause()).await;
            }
        }
    }
}

/// The last messages read, by number and time: a stream that lost its end gives their numbers out again.
#[derive(Debug, Default)]
struct Marks(VecDeque<(Seq, WallTime)>);

impl Marks {
    fn push(&mut self, seq: Seq, stored_at: WallTime) {
        if self.0.len() == MARKS {
            self.0.pop_front();
        }
        self.0.push_back((seq, stored_at));
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
    fn epoch(&self, facts: Facts) -> Epoch {
        Epoch::new(facts.created.wrapping_add(self.rewinds))
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    asker: &'a Asker,
    intake: &'a dyn Intake,
    life: Life,
    marks: Marks,
    slow_consumers: u64,
    /// What keeps the reader from reading, as last logged.
    told: Option<String>,
    often: Seldom,
    clock: Clock,
    /// What of the stream loses something, as last logged.
    advised: Vec<Difference>,
}

impl Reader<'_> {
    fn go_live(&mut self, epoch: Epoch, from_seq: Seq) {
        self.told = None;
        self.shared.seen.store(from_seq.get(), Ordering::Release);
        self.shared.set_away(None);
        tracing::info!(
            stream = self.shared.settings.stream,
            epoch = epoch.get(),
            from_seq = from_seq.get(),
            "reading the stream"
        );
        self.intake.live(epoch, from_seq);
    }

    fn go_away(&self, reason: String) {
        if self.shared.set_away(Some(&reason)) {
            self.intake.lost(&reason);
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            asker: self.asker,
            settings: &self.shared.settings,
            subjects: &self.shared.subjects,
        }
    }

    /// Logs what the relay can live with, and its operator might not: once, and again when it changes.
    fn advise(&mut self, differences: &[Difference]) {
        let stream = &self.shared.settings.stream;
        let loses = |each: &&Difference| each.weight == Weight::Loses;
        let losing: Vec<Difference> = differences.iter().filter(loses).cloned().collect();
        for each in losing.iter().filter(|each| !self.advised.contains(each)) {
            tracing::warn!(%stream, setting = each.setting, "{each}");
        }
        self.advised = losing;
    }

    /// Logs what keeps the reader waiting: once, and again when it changes or a minute has passed.
    fn tell(&mut self, error: &AttachError) {
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            self.often = Seldom::default();
        }
        // A lost connection has its own line.
        let is_own = !matches!(error, AttachError::Away { .. } | AttachError::Changed);
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
                let reason = link.failure();
                return Err(AttachError::Away { reason });
            }
        }
        let connects = link.connects();
        let mark = link.refusals();
        let subject = self.shared.subjects.all_live();
        // A new subscription each time: what waits in an old one may be of another life of the stream.
        let subscribing = link.subscribe(subject.clone());
        let subscribed = tokio::time::timeout(SUBSCRIBE_LIMIT, subscribing).await;
        let subscription = subscribed
            .map_err(|_| AttachError::Unsent)?
            .map_err(AttachError::Stopped)?;
        link.barrier().await?;
        // Meanwhile interest in the subscription travels, and streams say who they are.
        let probe = self.shared.subjects.probe();
        let captured = self.asker.capturing(probe, SETTLE).await;
        if let Some(refusal) = link.refusal_since(mark, &subject) {
            return Err(AttachError::Refused { refusal });
        }
        let found = self.place().fit(&captured).await?;
        self.advise(&found.differences);
        let facts = self.recognise(found.facts).await?;
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
            self.marks = Marks::default();
            return Ok(facts);
        }
        let seen = self.shared.seen();
        if facts.last_seq >= seen {
            if !self.has_read_these().await? {
                tracing::warn!(
                    seen = seen.get(),
                    "the stream has lost messages that were read, and gives their numbers out again"
                );
                self.life.rewinds += 1;
                self.marks = Marks::default();
            }
            return Ok(facts);
        }
        tokio::time::sleep(CONFIRM_AFTER).await;
        let again = self.place().fit(&[]).await?.facts;
        if again.created == facts.created && again.last_seq < seen {
            tracing::warn!(
                seen = seen.get(),
                last = again.last_seq.get(),
                "the stream has lost its last messages"
            );
            self.life.rewinds += 1;
            self.marks = Marks::default();
        }
        Ok(again)
    }

    /// Whether the stream still has, under its number, the last message read that it has not discarded.
    async fn has_read_these(&self) -> Result<bool, StreamError> {
        let all = self.shared.subjects.all();
        for (seq, stored_at) in self.marks.0.iter().rev() {
            let next = self.asker.leader_next(&all, *seq).await;
            let found = next.map_err(|source| StreamError::Unanswered {
                stream: self.shared.settings.stream.clone(),
                source: source.into(),
            })?;
            let Some(found) = found.filter(|found| found.sequence == seq.get()) else {
                continue;
            };
            let found = decode::from_leader(&self.shared.subjects, found);
            return Ok(found
                .update
                .is_none_or(|update| update.stored_at == *stored_at));
        }
        Ok(true)
    }
}
