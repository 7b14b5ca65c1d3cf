//! What one connection has still to be sent, and how far its cursor may go.
//!
//! States are conflated: a newer state of a job takes the older one's place and its due time. Milestones
//! queue in order within a bound; past it the oldest are shed and a gap stands where they were. The
//! latest ending of a job is never shed. Replies to the client go their own way and never wait here.
//!
//! The outbox decides what is due and in which order; it does not know frames, sockets or bytes written.
//!
//! Invariants: items ascend by `seq` and leave in that order; of a job's live states only the newest waits,
//! and the endings before it; the cursor handed out never falls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use smallvec::{SmallVec, smallvec};

use crate::id::JobId;
use crate::moment::Moment;
use crate::position::Seq;
use crate::publication::{Body, Gone, JobKey, Publication};

use super::beginning::LeftOut;

/// A connection's own number for one of its subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(pub u32);

/// The bounds of every outbox.
#[derive(Debug, Clone, Copy)]
pub struct OutboxBounds {
    /// Milestones waiting that came live.
    pub milestones: usize,
    /// Bytes of milestones waiting that came live.
    pub bytes: usize,
    /// Jobs with something waiting that came live; past it the connection is not slow but lost. As many
    /// updates may wait of what subscriptions start with before milestones among them are shed.
    pub jobs: usize,
    /// Least time between two states of one job that are not endings.
    pub interval: Duration,
}

/// What became of an offered publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Offered {
    /// It waits to be taken.
    Queued,
    /// It took the place of an older state of the same job.
    Conflated,
    /// It reached this connection already through another of its topics.
    Duplicate,
    /// It waits, and so many milestones were shed for it.
    Shed(usize),
    /// More jobs wait than an outbox holds; the connection should be ended and resume by cursor.
    Overflow,
}

/// Why milestones are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// The connection was too slow for them.
    Outbox,
    /// They left the bus's history before they could be read.
    History,
}

impl GapReason {
    /// The word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::History => "history",
        }
    }
}

/// One thing to tell the client.
#[derive(Debug, Clone)]
pub enum Telling {
    /// An update.
    Publication(Arc<Publication>),
    /// Milestones of this job are lost to this client.
    Gap {
        /// The job.
        job: JobId,
        /// Why.
        reason: GapReason,
    },
}

/// Something taken from the outbox, to be written now.
#[derive(Debug, Clone)]
pub struct Taken {
    /// What to tell.
    pub telling: Telling,
    /// The subscription it is told under.
    pub via: SubscriptionId,
    /// How far the client's cursor may go once it has been told.
    pub position: Seq,
    /// Whether it is what a subscription starts with, not news: its age says nothing of delivery.
    pub replayed: bool,
}

#[derive(Debug)]
struct Item {
    seq: Seq,
    due: Moment,
    key: JobKey,
    /// The subscriptions it is owed to. It is told under the first of them that has not ended.
    vias: Vias,
    telling: Telling,
    replayed: bool,
}

type Vias = SmallVec<[SubscriptionId; 2]>;

impl Item {
    fn publication(&self) -> Option<&Publication> {
        match &self.telling {
            Telling::Publication(publication) => Some(publication),
            Telling::Gap { .. } => None,
        }
    }

    /// Whether a newer state of its job makes it needless. The ending of an earlier attempt stays: it is
    /// history the client has not seen. Nothing stays of a job that was taken away.
    fn yields_to(&self, newer: &Publication) -> bool {
        if newer.is_removal() {
            return self.key == newer.key && self.seq < newer.seq;
        }
        let waits = self.publication().filter(|_| self.key == newer.key);
        newer.is_state()
            && self.seq <= newer.seq
            && waits.is_some_and(|waits| waits.is_state() && !waits.is_terminal())
    }

    /// Whether it may be shed, for a gap: what no newer state makes needless.
    fn is_milestone(&self) -> bool {
        self.publication().is_some_and(Publication::is_milestone)
    }

    /// Whether the bound on live milestones counts it.
    fn counts(&self) -> bool {
        !self.replayed && self.is_milestone()
    }

    fn owe_to(&mut self, via: SubscriptionId) {
        if !self.vias.contains(&via) {
            self.vias.push(via);
        }
    }

    fn bytes(&self) -> usize {
        self.publication().map_or(0, Publication::payload_bytes)
    }
}

/// When a job's next state may go out, for jobs that had one within the last interval.
#[derive(Debug, Clone, Copy)]
struct Paced {
    key: JobKey,
    next: Moment,
}

/// What tells publications apart: their number. That a job is gone has none of its own, but the last one before.
type Identity = (Seq, Option<JobKey>);

fn identity(publication: &Publication) -> Identity {
    let is_gone = matches!(publication.body, Body::Gone(Gone::Expired { .. }));
    (publication.seq, is_gone.then_some(publication.key))
}

/// The outbox of one connection. An idle one owns no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    paced: SmallVec<[Paced; 1]>,
    /// Waiting items that subscriptions start with.
    replayed: u32,
    milestones: u32,
    milestone_bytes: u32,
    last_offered: Identity,
    told: Seq,
}

impl Outbox {
    /// Offers what was just published. Repairs come with a number below what was offered before.
    pub(super) fn offer(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        now: Moment,
        bounds: &OutboxBounds,
    ) -> Offered {
        if self.last_offered == identity(publication) {
            self.share(publication.key, publication.seq, via);
            return Offered::Duplicate;
        }
        self.last_offered = identity(publication);
        let item = Item {
            seq: publication.seq,
            due: self.due(publication, now),
            key: publication.key,
            vias: smallvec![via],
            telling: Telling::Publication(publication.clone()),
            replayed: false,
        };
        if self.items.len() == 1 && publication.is_state() && self.items[0].yields_to(publication) {
            // The usual case, a client of one job that is held back by its pace: nothing is moved.
            self.items[0] = item;
            self.replayed = 0;
            self.check();
            return Offered::Conflated;
        }
        let conflated = self.supersede(publication);
        if self.items.len() - self.replayed as usize >= bounds.jobs + bounds.milestones {
            return Offered::Overflow;
        }
        if publication.is_last() {
            self.hurry(now);
        }
        self.push(item);
        let shed = self.shed(bounds);
        match (shed, conflated) {
            (0, true) => Offered::Conflated,
            (0, false) => Offered::Queued,
            (shed, _) => Offered::Shed(shed),
        }
    }

    /// Passes on what was just published, where nothing waits before it and it is due: as if it had been
    /// offered and taken, without a place among what waits. The position the client's cursor then has;
    /// `None` where it has to be offered, and nothing has changed.
    pub(super) fn pass(
        &mut self,
        publication: &Publication,
        now: Moment,
        ceiling: Seq,
        bounds: &OutboxBounds,
    ) -> Option<Seq> {
        let is_news = publication.seq <= ceiling && identity(publication) != self.last_offered;
        if !is_news || !self.items.is_empty() || self.due(publication, now) > now {
            return None;
        }
        self.last_offered = identity(publication);
        if publication.is_state() {
            self.pace(publication.key, now + bounds.interval, now);
        }
        self.reach(publication.seq);
        Some(self.told)
    }

    /// Adds what a subscription starts with: a snapshot, or what its client missed. Goes at once.
    ///
    /// It takes nothing's place: what waits under another subscription is owed there.
    pub(super) fn owe(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        now: Moment,
        bounds: &OutboxBounds,
    ) {
        self.push(Item {
            seq: publication.seq,
            due: now,
            key: publication.key,
            vias: smallvec![via],
            telling: Telling::Publication(publication.clone()),
            replayed: true,
        });
        if publication.is_milestone() && self.replayed as usize > bounds.jobs {
            self.shed_first(|item| item.replayed && item.is_milestone());
        }
    }

    /// Notes that what was offered of a job with this number is owed to a further subscription, where it waits,
    /// or where a gap stands for it.
    pub(super) fn share(&mut self, key: JobKey, seq: Seq, via: SubscriptionId) {
        let waiting = self.items.iter_mut().rev();
        let mut same = waiting
            .skip_while(|item| item.seq > seq)
            .take_while(|item| item.seq == seq);
        if let Some(item) = same.find(|item| item.publication().is_some()) {
            return item.owe_to(via);
        }
        let mut gaps = self.items.iter_mut().filter(|item| {
            item.key == key
                && matches!(
                    item.telling,
                    Telling::Gap {
                        reason: GapReason::Outbox,
                        ..
                    }
                )
        });
        if let Some(gap) = gaps.next() {
            gap.owe_to(via);
        }
    }

    /// Makes what was just published, and waits under another subscription, the first word of this one. False if
    /// it does not wait.
    pub(super) fn take_over(
        &mut self,
        publication: &Publication,
        via: SubscriptionId,
        now: Moment,
    ) -> bool {
        let is_it = |item: &Item| {
            let waits = item.publication();
            !item.replayed && waits.is_some_and(|it| identity(it) == identity(publication))
        };
        let Some(item) = self.items.iter_mut().find(|item| is_it(item)) else {
            return false;
        };
        item.vias.retain(|each| *each != via);
        item.vias.insert(0, via);
        item.due = item.due.min(now);
        true
    }

    /// How far a subscription has been told, where that is less than the cursor's number says: it still
    /// waits for something at or below it.
    pub(super) fn behind(&self, via: SubscriptionId) -> Option<Seq> {
        self.items
            .iter()
            .take_while(|item| item.seq <= self.told)
            .find(|item| item.vias.contains(&via))
            .map(|owed| owed.seq.before())
    }

    /// Says that milestones of a job are lost to this client.
    pub(super) fn announce_gap(
        &mut self,
        lost: &LeftOut,
        reason: GapReason,
        via: SubscriptionId,
        now: Moment,
    ) {
        let known = self.items.iter_mut().find(|item| {
            item.key == lost.key
                && matches!(item.telling, Telling::Gap { reason: r, .. } if r == reason)
        });
        match known {
            Some(gap) => gap.owe_to(via),
            None => self.push(Item {
                seq: lost.seq,
                due: now,
                key: lost.key,
                vias: smallvec![via],
                telling: Telling::Gap {
                    job: lost.job.clone(),
                    reason,
                },
                replayed: false,
            }),
        }
    }

    /// Starts a client where its cursor stands, or as far as all that it watches is known.
    pub(super) fn resume(&mut self, seq: Seq) {
        self.reach(seq);
    }

    /// Notes that everything up to `seq` has been offered or did not concern this connection.
    pub(super) fn advance(&mut self, seq: Seq) {
        if self.items.is_empty() {
            self.reach(seq);
        }
    }

    /// The number a cursor may name now.
    pub(super) fn position(&self) -> Seq {
        self.told
    }

    /// Takes the oldest thing if it is due. Nothing above `ceiling` is taken while a repair holds the
    /// connection back; `Seq::MAX` where none does.
    ///
    /// What is newer waits behind what is older, also when only the older is held back by its pace: so
    /// one number says exactly what the client has been told, and a client that returns is told nothing
    /// twice. The wait is at most one interval, and endings end it.
    pub(super) fn take(
        &mut self,
        now: Moment,
        ceiling: Seq,
        bounds: &OutboxBounds,
    ) -> Option<Taken> {
        if !self.has_due(now, ceiling) {
            return None;
        }
        let item = self.remove(0)?;
        if self.items.is_empty() && self.items.capacity() > 4 {
            // Memory exists only while something waits.
            self.items = VecDeque::new();
        }
        if item.publication().is_some_and(Publication::is_state) {
            self.pace(item.key, now + bounds.interval, now);
        }
        self.reach(item.seq);
        Some(Taken {
            telling: item.telling,
            via: *item.vias.first()?,
            position: self.told,
            replayed: item.replayed,
        })
    }

    /// Whether [`Outbox::take`] would take something.
    pub(super) fn has_due(&self, now: Moment, ceiling: Seq) -> bool {
        let first = self.items.front();
        first.is_some_and(|first| first.due <= now && first.seq <= ceiling)
    }

    /// When the oldest thing is due; `None` while nothing waits, or a repair holds it back.
    pub(super) fn next_due(&self, ceiling: Seq) -> Option<Moment> {
        let first = self.items.front().filter(|first| first.seq <= ceiling);
        first.map(|first| first.due)
    }

    /// A subscription ended: what waits for it alone is forgotten.
    pub(super) fn forget(&mut self, via: SubscriptionId) {
        self.items.retain_mut(|item| {
            item.vias.retain(|each| *each != via);
            !item.vias.is_empty()
        });
        self.recount();
    }

    /// How many live milestones wait.
    #[cfg(test)]
    pub(crate) fn milestones(&self) -> usize {
        self.items.iter().filter(|item| item.counts()).count()
    }

    /// How many things wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The age of the oldest ending that waits.
    pub(super) fn oldest_ending(&self, now: Moment) -> Option<Duration> {
        self.items
            .iter()
            .filter_map(Item::publication)
            .filter(|publication| publication.is_terminal())
            .map(|publication| now - publication.received_at)
            .max()
    }

    /// The one place that moves the cursor, so that it never falls.
    fn reach(&mut self, seq: Seq) {
        self.told = self.told.max(seq);
    }

    /// Removes what `newer` makes needless.
    fn supersede(&mut self, newer: &Publication) -> bool {
        let mut conflated = false;
        // More than one only where several subscriptions start with the same state.
        while let Some(at) = self.items.iter().rposition(|item| item.yields_to(newer)) {
            self.remove(at);
            conflated = true;
        }
        conflated
    }

    fn due(&self, publication: &Publication, now: Moment) -> Moment {
        if publication.is_terminal() || !publication.is_state() {
            return now;
        }
        let paced = self.paced.iter().find(|paced| paced.key == publication.key);
        paced.map_or(now, |paced| paced.next.max(now))
    }

    /// What waits goes before an ending, and the ending goes now.
    fn hurry(&mut self, now: Moment) {
        for item in &mut self.items {
            item.due = item.due.min(now);
        }
    }

    fn push(&mut self, item: Item) {
        // Nearly always the newest: a repair's number may be below others', never below its own job's.
        let at = self
            .items
            .iter()
            .rposition(|waiting| waiting.seq <= item.seq)
            .map_or(0, |before| before + 1);
        self.replayed += u32::from(item.replayed);
        if item.counts() {
            self.milestones += 1;
            self.milestone_bytes += bytes_of(&item);
        }
        self.items.insert(at, item);
        self.check();
    }

    fn remove(&mut self, at: usize) -> Option<Item> {
        let item = self.items.remove(at)?;
        self.replayed -= u32::from(item.replayed);
        if item.counts() {
            self.milestones -= 1;
            self.milestone_bytes -= bytes_of(&item);
        }
        self.check();
        Some(item)
    }

    /// Sheds the oldest live milestones until the bounds hold.
    fn shed(&mut self, bounds: &OutboxBounds) -> usize {
        let mut shed = 0;
        while (self.milestones as usize > bounds.milestones
            || self.milestone_bytes as usize > bounds.bytes)
            && self.shed_first(Item::counts)
        {
            shed += 1;
        }
        shed
    }

    /// Sheds the first milestone that `may_go`; a gap stands where the first of each job was.
    fn shed_first(&mut self, may_go: impl Fn(&Item) -> bool) -> bool {
        let at = self.items.iter().position(may_go);
        let Some(item) = at.and_then(|at| self.remove(at)) else {
            return false;
        };
        if let Telling::Publication(publication) = item.telling {
            for via in item.vias {
                let lost = LeftOut {
                    key: item.key,
                    job: publication.job.clone(),
                    seq: item.seq,
                };
                self.announce_gap(&lost, GapReason::Outbox, via, item.due);
            }
        }
        true
    }

    fn pace(&mut self, key: JobKey, next: Moment, now: Moment) {
        self.paced
            .retain(|paced| paced.next > now && paced.key != key);
        self.paced.push(Paced { key, next });
        if self.paced.len() == 1 && self.paced.spilled() {
            self.paced.shrink_to_fit();
        }
    }

    fn recount(&mut self) {
        let count = |items: usize| u32::try_from(items).unwrap_or(u32::MAX);
        let counted = || self.items.iter().filter(|item| item.counts());
        self.milestones = count(counted().count());
        self.milestone_bytes = counted().map(bytes_of).sum();
        self.replayed = count(self.items.iter().filter(|item| item.replayed).count());
        self.check();
    }

    /// Asserts in debug builds what holds after every change of what waits.
    ///
    /// One walk over it, and nearly nothing where nothing or one thing waits, which is nearly always.
    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let (mut replayed, mut milestones, mut bytes) = (0, 0, 0);
        let mut newer = HashSet::new();
        let mut before = None;
        for item in self.items.iter().rev() {
            debug_assert!(
                before.is_none_or(|after| item.seq <= after),
                "{before:?} waits before {:?}",
                item.seq
            );
            before = Some(item.seq);
            debug_assert!(!item.vias.is_empty(), "{:?} is owed to nobody", item.seq);
            replayed += u32::from(item.replayed);
            if item.counts() {
                milestones += 1;
                bytes += bytes_of(item);
            }
            let live = item.publication().filter(|_| !item.replayed);
            if let Some(state) = live.filter(|publication| publication.is_state())
                && self.items.len() > 1
            {
                let is_newest = newer.insert(item.key);
                debug_assert!(
                    is_newest || state.is_terminal(),
                    "{state:?} waits, and so does a newer state"
                );
            }
        }
        let counted = (self.replayed, self.milestones, self.milestone_bytes);
        debug_assert_eq!(counted, (replayed, milestones, bytes));
    }
}

fn bytes_of(item: &Item) -> u32 {
    u32::try_from(item.bytes()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
