//! What one connection has still to be sent, and how far its cursor may go.
//!
//! States are conflated: a newer state of a job takes the older one's place and its due time. Milestones
//! queue in order within a bound; past it the oldest are shed and a gap stands where they were. The
//! latest ending of a job is never shed. Replies to the client go their own way and never wait here.
//!
//! The outbox decides what is due and in which order; it does not know frames, sockets or bytes written.
//!
//! Invariants: items ascend by `seq` within a job; at most one state per job that a newer one may
//! supersede; the cursor handed out never falls, and never passes an item still here.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::id::JobId;
use crate::moment::Moment;
use crate::publication::{JobKey, Publication};

/// A connection's own number for one of its subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(pub u32);

/// The bounds of every outbox.
#[derive(Debug, Clone, Copy)]
pub struct OutboxBounds {
    /// Milestones waiting.
    pub milestones: usize,
    /// Bytes of milestones waiting.
    pub bytes: usize,
    /// Jobs with something waiting. Past it the connection is not slow but lost.
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
    pub position: u64,
    /// Whether it is what a subscription starts with, not news: its age says nothing of delivery.
    pub replayed: bool,
}

#[derive(Debug)]
struct Item {
    seq: u64,
    due: Moment,
    key: JobKey,
    via: SubscriptionId,
    telling: Telling,
    replayed: bool,
}

impl Item {
    fn publication(&self) -> Option<&Publication> {
        match &self.telling {
            Telling::Publication(publication) => Some(publication),
            Telling::Gap { .. } => None,
        }
    }

    fn is_state_of(&self, key: JobKey) -> bool {
        self.key == key && self.publication().is_some_and(Publication::is_state)
    }

    /// Whether the bound on milestones counts it: what no newer state makes needless.
    fn counts(&self) -> bool {
        self.publication().is_some_and(|publication| !publication.is_state())
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

/// The outbox of one connection. An idle one owns no memory of its own.
#[derive(Debug, Default)]
pub struct Outbox {
    items: Vec<Item>,
    paced: SmallVec<[Paced; 1]>,
    milestones: u32,
    milestone_bytes: u32,
    last_offered: u64,
    told: u64,
}

impl Outbox {
    /// Offers what was just published. Repairs come with a number below what was offered before.
    pub fn offer(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        now: Moment,
        bounds: &OutboxBounds,
    ) -> Offered {
        if self.last_offered == publication.seq {
            return Offered::Duplicate;
        }
        self.last_offered = publication.seq;
        let conflated = publication.is_state() && self.supersede(publication);
        if self.items.len() >= bounds.jobs + bounds.milestones {
            return Offered::Overflow;
        }
        let due = self.due(publication, now);
        if publication.is_terminal() {
            self.hurry(publication.key, now);
        }
        self.push(Item {
            seq: publication.seq,
            due,
            key: publication.key,
            via,
            telling: Telling::Publication(publication.clone()),
            replayed: false,
        });
        if !publication.is_state() {
            self.milestones += 1;
            self.milestone_bytes += u32::try_from(publication.payload_bytes()).unwrap_or(u32::MAX);
            let shed = self.shed(bounds);
            if shed > 0 {
                return Offered::Shed(shed);
            }
        }
        if conflated {
            Offered::Conflated
        } else {
            Offered::Queued
        }
    }

    /// Adds what a subscription starts with: a snapshot, or what its client missed. Goes at once.
    pub fn owe(&mut self, publication: &Arc<Publication>, via: SubscriptionId, now: Moment) {
        if publication.is_state() {
            self.supersede(publication);
        }
        self.push(Item {
            seq: publication.seq,
            due: now,
            key: publication.key,
            via,
            telling: Telling::Publication(publication.clone()),
            replayed: true,
        });
        self.recount();
    }

    /// Whether a subscription still waits for something at or below what the cursor names, so that the
    /// cursor does not speak for it.
    pub fn owes(&self, via: SubscriptionId) -> bool {
        self.items
            .iter()
            .take_while(|item| item.seq <= self.told)
            .any(|item| item.via == via)
    }

    /// Says that milestones of a job are lost to this client.
    pub fn announce_gap(
        &mut self,
        (key, job): (JobKey, JobId),
        seq: u64,
        reason: GapReason,
        via: SubscriptionId,
        now: Moment,
    ) {
        let known = self.items.iter().any(|item| {
            item.key == key && matches!(item.telling, Telling::Gap { reason: r, .. } if r == reason)
        });
        if !known {
            let telling = Telling::Gap { job, reason };
            self.push(Item {
                seq,
                due: now,
                key,
                via,
                telling,
                replayed: false,
            });
        }
    }

    /// Starts a client where its cursor stands.
    pub fn resume(&mut self, seq: u64) {
        self.told = self.told.max(seq);
    }

    /// Notes that everything up to `seq` has been offered or did not concern this connection.
    pub fn advance(&mut self, seq: u64) {
        if self.items.is_empty() {
            self.told = self.told.max(seq);
        }
    }

    /// The number a cursor may name now.
    pub fn position(&self) -> u64 {
        self.told
    }

    /// Takes the next thing that is due, oldest first. `ceiling` is how far any cursor on this shard may
    /// go (a repair under way holds it back); `u64::MAX` where nothing does.
    pub fn take(&mut self, now: Moment, ceiling: u64, bounds: &OutboxBounds) -> Option<Taken> {
        let at = self.items.iter().position(|item| item.due <= now)?;
        let item = self.items.remove(at);
        if self.items.is_empty() && self.items.capacity() > 4 {
            // Memory exists only while something waits.
            self.items = Vec::new();
        }
        if item.counts() {
            self.milestones -= 1;
            self.milestone_bytes -= u32::try_from(item.bytes()).unwrap_or(u32::MAX);
        }
        if item.publication().is_some_and(Publication::is_state) {
            self.pace(item.key, now + bounds.interval, now);
        }
        let owed = self
            .items
            .first()
            .map_or(u64::MAX, |first| first.seq.saturating_sub(1));
        self.told = self.told.max(item.seq.min(owed).min(ceiling));
        Some(Taken {
            telling: item.telling,
            via: item.via,
            position: self.told,
            replayed: item.replayed,
        })
    }

    /// When the next thing is due; `None` while nothing waits.
    pub fn next_due(&self) -> Option<Moment> {
        self.items.iter().map(|item| item.due).min()
    }

    /// Forgets what waits under a subscription that ended.
    pub fn forget(&mut self, via: SubscriptionId) {
        self.items.retain(|item| item.via != via);
        self.recount();
    }

    /// How many things wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The age of the oldest ending that waits.
    pub fn oldest_ending(&self, now: Moment) -> Option<Duration> {
        self.items
            .iter()
            .filter_map(Item::publication)
            .filter(|publication| publication.is_terminal())
            .map(|publication| now - publication.received_at)
            .max()
    }

    /// Removes the waiting state of the job that `newer` makes needless. The ending of an earlier attempt
    /// stays: it is history the client has not seen.
    fn supersede(&mut self, newer: &Publication) -> bool {
        let stale = self.items.iter().rposition(|item| {
            item.is_state_of(newer.key)
                && item.seq <= newer.seq
                && !item.publication().is_some_and(Publication::is_terminal)
        });
        if let Some(at) = stale {
            self.items.remove(at);
        }
        stale.is_some()
    }

    fn due(&self, publication: &Publication, now: Moment) -> Moment {
        if publication.is_terminal() {
            return now;
        }
        let paced = self.paced.iter().find(|paced| paced.key == publication.key);
        let next = paced.map_or(now, |paced| paced.next.max(now));
        if publication.is_state() {
            return next;
        }
        // A milestone goes at once, but not before a state of its job that waits and is older.
        let waiting = self.items.iter().rfind(|item| item.key == publication.key);
        waiting.map_or(now, |item| item.due.max(now))
    }

    /// What waits of a job goes before its ending, and the ending goes now.
    fn hurry(&mut self, key: JobKey, now: Moment) {
        for item in self.items.iter_mut().filter(|item| item.key == key) {
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
        self.items.insert(at, item);
    }

    /// Sheds the oldest milestones until the bounds hold; a gap stands where the first of each job was.
    fn shed(&mut self, bounds: &OutboxBounds) -> usize {
        let mut shed = 0;
        while self.milestones as usize > bounds.milestones
            || self.milestone_bytes as usize > bounds.bytes
        {
            let Some(at) = self.items.iter().position(Item::counts) else {
                break;
            };
            let item = self.items.remove(at);
            self.milestones -= 1;
            self.milestone_bytes -= u32::try_from(item.bytes()).unwrap_or(u32::MAX);
            shed += 1;
            if let Telling::Publication(publication) = item.telling {
                let who = (item.key, publication.job.clone());
                self.announce_gap(who, item.seq, GapReason::Outbox, item.via, item.due);
            }
        }
        shed
    }

    fn pace(&mut self, key: JobKey, next: Moment, now: Moment) {
        self.paced.retain(|paced| paced.next > now && paced.key != key);
        self.paced.push(Paced { key, next });
        if self.paced.len() == 1 && self.paced.spilled() {
            self.paced.shrink_to_fit();
        }
    }

    fn recount(&mut self) {
        let counted = || self.items.iter().filter(|item| item.counts());
        self.milestones = u32::try_from(counted().count()).unwrap_or(u32::MAX);
        let bytes = counted().map(Item::bytes).sum::<usize>();
        self.milestone_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    }
}
