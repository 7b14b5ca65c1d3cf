//! Reading from one subscription, in a tight loop, with checks and fetches done beside it.
//!
//! Invariant: nothing here waits for the stream's answer but a message that is out of order.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use relay_core::position::{Epoch, Seq};
use tokio::time::{Instant, MissedTickBehavior};

use super::missing::{self, Missing, Range};
use super::{Attached, CONFIRM_AFTER, PAUSE, Reader};
use crate::jetstream::ask::AskError;
use crate::jetstream::decode::{self, Flaw};
use crate::jetstream::stream::{self, Found, Place};
use crate::seam::{About, Incoming, RefusedUpdate};

const TICK: Duration = Duration::from_millis(250);
/// Messages read before looking at anything else.
const BURST: usize = 64;
/// Questions under way at once; past it everything is compared instead.
const CHORES: usize = 8;

/// Why reading has to begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
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
    #[error("the stream's settings were changed, and do not fit any more")]
    Unfit,
    #[error("the subscription ended")]
    Ended,
}

/// Done beside reading.
enum Chore {
    /// The leader's word, and the highest number read when it was asked.
    Checked(Result<Found, AskError>, Seq),
    Fetched(Range, Result<Vec<Incoming>, AskError>),
}

/// Reading from one subscription until there is trouble.
pub(super) struct Follow<'r, 'a> {
    reader: &'r mut Reader<'a>,
    subscription: Subscriber,
    connects: u64,
    created: u64,
    epoch: Epoch,
    /// The number of the last live message, to see order.
    last: Seq,
    /// What was read and is not handed on yet; empty whenever something else is looked at.
    burst: Vec<Incoming>,
    /// A message out of order. Nothing is read on until the stream is known to be the same: a new one's
    /// numbers begin again, and a new leader may repeat what the old one has republished.
    held: Option<Message>,
    /// Whether the check under way was asked for after the message was held.
    is_about_held: bool,
    missing: Missing,
    chores: FuturesUnordered<BoxFuture<'a, Chore>>,
    next_check: Instant,
    /// Whether a check is among the chores.
    checking: bool,
    /// The last check found the stream shorter than what was read.
    doubtful: bool,
}

impl<'r, 'a> Follow<'r, 'a> {
    pub(super) fn new(reader: &'r mut Reader<'a>, attached: Attached, epoch: Epoch) -> Self {
        Self {
            connects: attached.connects,
            created: attached.facts.created,
            epoch,
            last: Seq::ZERO,
            burst: Vec::with_capacity(BURST),
            held: None,
            is_about_held: false,
            missing: Missing::after(attached.facts.last_seq),
            chores: FuturesUnordered::new(),
            next_check: Instant::now() + reader.shared.settings.check_interval,
            checking: false,
            doubtful: false,
            subscription: attached.subscription,
            reader,
        }
    }

    pub(super) async fn run(mut self) -> Trouble {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Not biased: under a flood the subscription is always ready, and checks must go on.
            tokio::select! {
                message = self.subscription.next(), if self.held.is_none() => {
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
        if link.is_up() {
            Ok(())
        } else {
            Err(Trouble::Lost)
        }
    }

    /// Takes a message and those that wait behind it, up to a bound, and hands them on together.
    fn take_burst(&mut self, first: Message) -> Result<(), Trouble> {
        let taken = self.take_while_ready(first);
        self.hand_on();
        taken
    }

    fn take_while_ready(&mut self, first: Message) -> Result<(), Trouble> {
        self.take(first)?;
        for _ in 1..BURST {
            if self.held.is_some() {
                return Ok(());
            }
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
        while self.held.is_none() {
            let Some(Some(message)) = self.subscription.next().now_or_never() else {
                return Ok(());
            };
            self.take_burst(message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), Trouble> {
        // The counter rises before a message of the new connection can be here.
        if self.reader.asker.link().connects() != self.connects {
            return Err(Trouble::Reconnected);
        }
        let shared = self.reader.shared;
        let seq = match decode::live_seq(&shared.settings.stream, &message) {
            Ok(seq) => seq,
            Err(flaw) => {
                self.refuse(&flaw, None, &message);
                return Ok(());
            }
        };
        if seq <= self.last {
            self.held = Some(message);
            self.check();
            return Ok(());
        }
        self.last = seq;
        self.accept(seq, &message);
        Ok(())
    }

    fn accept(&mut self, seq: Seq, message: &Message) {
        let shared = self.reader.shared;
        if let Some(range) = self.missing.saw(seq) {
            self.fetch(range);
        }
        shared.seen.fetch_max(seq.get(), Ordering::AcqRel);
        match decode::live(&shared.subjects, seq, message) {
            Ok(Some(update)) => {
                self.reader.marks.push(seq, update.stored_at);
                self.burst.push(update);
            }
            Ok(None) => {}
            Err(flaw) => self.refuse(&flaw, Some(seq), message),
        }
    }

    fn hand_on(&mut self) {
        self.reader.intake.ingest(&mut self.burst);
    }

    fn refuse(&self, flaw: &Flaw, seq: Option<Seq>, message: &Message) {
        let subjects = &self.reader.shared.subjects;
        let about = About {
            seq,
            size: message.payload.len(),
            time: self.reader.clock.wall(),
        };
        let subject = subjects.published(&message.subject);
        self.reader.intake.refused(match flaw {
            Flaw::Subject(error) => subjects.refused(subject, error, about),
            // It is shown as it came: that is what is wrong with it.
            Flaw::NotFromStream => {
                RefusedUpdate::unread(&message.subject, flaw.label(), &flaw.to_string(), about)
            }
            Flaw::Panicked => {
                RefusedUpdate::unread(subject, flaw.label(), &flaw.to_string(), about)
            }
        });
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
        if now >= self.next_check {
            self.check();
        }
    }

    /// Asks the leader how the stream is.
    fn check(&mut self) {
        if std::mem::replace(&mut self.checking, true) {
            return;
        }
        self.is_about_held = self.held.is_some();
        let (shared, seen) = (self.reader.shared, self.missing.seen());
        let place = Place {
            asker: self.reader.asker,
            settings: &shared.settings,
            subjects: &shared.subjects,
        };
        let check = async move { Chore::Checked(place.look().await, seen) };
        self.chores.push(check.boxed());
    }

    fn fetch(&mut self, range: Range) {
        self.hand_on();
        self.reader.intake.missing(range.first.before());
        if self.chores.len() >= CHORES {
            self.missing.compare();
            return;
        }
        tracing::debug!(
            from = range.first.get(),
            to = range.last.get(),
            "live messages are missing; fetching them"
        );
        let (asker, subjects) = (self.reader.asker, &self.reader.shared.subjects);
        let fetch =
            async move { Chore::Fetched(range, missing::fetch(asker, subjects, range).await) };
        self.chores.push(fetch.boxed());
    }

    fn finish(&mut self, chore: Chore) -> Result<(), Trouble> {
        match chore {
            Chore::Fetched(_, Ok(mut updates)) => {
                self.reader.intake.ingest(&mut updates);
                self.reader.intake.found();
                Ok(())
            }
            Chore::Fetched(range, Err(error)) => {
                tracing::debug!(from = range.first.get(), %error, "could not fetch missing messages");
                self.missing.compare();
                Ok(())
            }
            Chore::Checked(found, seen) => self.checked(found, seen),
        }
    }

    fn checked(&mut self, found: Result<Found, AskError>, seen: Seq) -> Result<(), Trouble> {
        let now = Instant::now();
        self.checking = false;
        self.next_check = now + self.reader.shared.settings.check_interval;
        let found = match found {
            Ok(found) => found,
            Err(error) if stream::is_missing(&error) => return Err(Trouble::Deleted),
            Err(error) => {
                tracing::debug!(%error, "could not check the stream");
                self.next_check = now + PAUSE;
                return Ok(());
            }
        };
        let facts = found.facts;
        if facts.created != self.created {
            return Err(Trouble::Recreated);
        }
        if !found.fits() {
            return Err(Trouble::Unfit);
        }
        self.reader.advise(&found.differences);
        // It may have been changed.
        let per_subject = &self.reader.shared.per_subject;
        per_subject.store(facts.per_subject, Ordering::Relaxed);
        if facts.last_seq >= seen {
            self.doubtful = false;
            self.missing.expect(facts.last_seq, now);
            if self.held.is_some() && !self.is_about_held {
                self.check();
            } else if let Some(message) = self.held.take() {
                // It had a number when it was put aside.
                if let Ok(seq) = decode::live_seq(&self.reader.shared.settings.stream, &message) {
                    self.accept(seq, &message);
                    self.hand_on();
                }
            }
            return Ok(());
        }
        if std::mem::replace(&mut self.doubtful, true) {
            return Err(Trouble::Rewound);
        }
        self.next_check = now + CONFIRM_AFTER;
        Ok(())
    }
}
