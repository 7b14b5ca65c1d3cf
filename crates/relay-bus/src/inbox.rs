//! A shard's inbox: what the hub hands over, in order, without ever waiting for the shard.
//!
//! The hub pushes under its own lock, so the order here is the order of the table. A shard that falls
//! behind costs its clients freshness and the hub nothing: past a first bound a newer state takes an
//! older one's place, past a second one milestones are shed and a gap is left.
//!
//! Invariant: answers to joins are never shed; their number is bounded by the shard's connections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use relay_core::id::{JobId, Name, Owner};
use relay_core::outbox::{GapReason, SubscriptionId};
use relay_core::position::Seq;
use relay_core::publication::{JobKey, Publication};
use relay_core::tally::Aggregate;
use relay_core::topic::Topic;
use tokio::sync::Notify;

/// From this many messages on, states are conflated before they reach the shard.
const SOFT_LIMIT: usize = 16_384;
/// From this many on, milestones are shed too.
const HARD_LIMIT: usize = 65_536;

/// Names a connection to its shard; the hub only hands it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// What a shard is told.
#[derive(Debug)]
pub enum Message {
    /// An update was accepted.
    Publish(Arc<Publication>),
    /// A join was answered.
    Joined(Box<Joined>),
    /// How the jobs of a user or a group stand, taken together.
    Aggregate(Arc<Aggregate>),
    /// Milestones of a job are lost on their way here.
    Gap(Box<LostMilestones>),
    /// A repair began or ended.
    Repair(Repairing),
    /// Whether what the relay knows may be out of date.
    Stale(bool),
    /// The bus began a new life: numbers start again, and old cursors mean nothing.
    NewEpoch {
        /// Whether it is the first that this node sees: nobody here was told anything of another.
        first: bool,
    },
}

/// The answer to a join: what the client is told first.
#[derive(Debug)]
pub struct Joined {
    /// Whose join it was.
    pub connection: ConnectionId,
    /// The subscription that waited.
    pub subscription: SubscriptionId,
    /// What it watches.
    pub topic: Topic,
    /// The owner, where the topic is a job somebody owns.
    pub owner: Option<Owner>,
    /// The parent, where the topic is a job in a group.
    pub parent: Option<Name>,
    /// Where the client's cursor stood, if it meant anything here.
    pub since: Option<Seq>,
    /// Whether everything missed since the cursor follows.
    pub recovered: bool,
    /// What follows, in ascending order.
    pub publications: Vec<Arc<Publication>>,
    /// Jobs with milestones since the cursor that do not follow: the history no longer has them, or they
    /// are older than a snapshot. Empty where `recovered`.
    pub left_out: Vec<LeftOut>,
    /// Everything up to here that concerns the topic is in `publications`, or was before the cursor.
    pub high: Seq,
}

/// A job some of whose milestones a returning client is not told.
#[derive(Debug, Clone)]
pub struct LeftOut {
    /// The job's number.
    pub key: JobKey,
    /// The job.
    pub job: JobId,
    /// The number of the last of them, or one above it.
    pub seq: Seq,
}

/// A repair as far as a shard is concerned.
#[derive(Debug, Clone)]
pub enum Repairing {
    /// Who watches the job is told nothing above a number until it is released.
    Hold(Hold),
    /// The repair is done.
    Release(JobId),
    /// Everybody is told nothing above this number until all is released: the bus was away, and what was
    /// missed is not known yet.
    HoldAll(Seq),
    /// The comparison with the store is done; what was missed is held job by job.
    ReleaseAll,
}

/// A job being repaired.
#[derive(Debug, Clone)]
pub struct Hold {
    /// The job.
    pub job: JobId,
    /// Its owner, where that is known.
    pub owner: Option<Owner>,
    /// Its parent; where that is not known, any group may be its own.
    pub parent: Option<Name>,
    /// What its watchers have been told up to.
    pub seq: Seq,
}

impl Hold {
    /// Whether the job may be seen under `topic`.
    pub fn concerns(&self, topic: &Topic) -> bool {
        match topic {
            Topic::Job(job) => *job == self.job,
            Topic::User(owner) => Some(owner) == self.owner.as_ref(),
            Topic::Group(group) => self.parent.as_ref().is_none_or(|parent| parent == group),
        }
    }

    /// The topics it is known to be seen under.
    pub fn topics(&self) -> impl Iterator<Item = Topic> + use<> {
        let job = Topic::Job(self.job.clone());
        let owner = self.owner.clone().map(Topic::User);
        let parent = self.parent.clone().map(Topic::Group);
        std::iter::once(job).chain(owner).chain(parent)
    }
}

/// Which milestones are lost.
#[derive(Debug)]
pub struct LostMilestones {
    /// The job's number.
    pub key: JobKey,
    /// The job.
    pub job: JobId,
    /// The topics it is seen under.
    pub topics: Vec<Topic>,
    /// A number at or above the lost ones.
    pub seq: Seq,
    /// Why they are lost.
    pub reason: GapReason,
}

/// The queue between the hub and one shard.
#[derive(Debug, Default)]
pub struct Inbox {
    queue: Mutex<Queue>,
    /// Whether something was pushed since the shard was last woken.
    unsaid: AtomicBool,
    /// Wakes the shard; a permit is kept, so a wake between two drains is never missed.
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Option<Message>>,
    /// Where in `messages` the waiting state of a job is.
    states: HashMap<JobKey, usize>,
    /// Jobs for which a gap waits.
    gaps: HashSet<JobKey>,
    vacant: usize,
    conflated: u64,
    shed: u64,
}

impl Inbox {
    /// Hands over a message; the shard hears of it with the next [`Inbox::wake`] at the latest.
    pub fn push(&self, message: Message) {
        self.queue.lock().push(message);
        self.unsaid.store(true, Ordering::Release);
    }

    /// Wakes the shard if anything was pushed since it was last woken. Waking another thread costs as much
    /// as several deliveries, so many messages share one.
    pub fn wake(&self) {
        if self.unsaid.load(Ordering::Acquire) && self.unsaid.swap(false, Ordering::AcqRel) {
            self.arrived.notify_one();
        }
    }

    /// Waits until the shard was woken.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes everything that waits, in order.
    pub fn drain(&self, into: &mut Vec<Message>) {
        let mut queue = self.queue.lock();
        into.extend(queue.messages.drain(..).flatten());
        queue.states.clear();
        queue.gaps.clear();
        queue.vacant = 0;
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        let queue = self.queue.lock();
        queue.messages.len() - queue.vacant
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// States conflated and milestones shed before they reached the shard, since the start.
    pub fn lost(&self) -> (u64, u64) {
        let queue = self.queue.lock();
        (queue.conflated, queue.shed)
    }
}

impl Queue {
    fn push(&mut self, message: Message) {
        let Message::Publish(publication) = &message else {
            self.messages.push_back(Some(message));
            return;
        };
        let waiting = self.messages.len() - self.vacant;
        if publication.is_state() {
            if waiting >= SOFT_LIMIT {
                self.conflate(publication);
            }
            if !publication.is_terminal() {
                self.states.insert(publication.key, self.messages.len());
            }
        } else if waiting >= HARD_LIMIT {
            self.shed += 1;
            let gap = Message::Gap(Box::new(LostMilestones {
                key: publication.key,
                job: publication.job.clone(),
                topics: publication.topics().collect(),
                seq: publication.seq,
                reason: GapReason::Outbox,
            }));
            // One gap a job says as much as many.
            if self.gaps.insert(publication.key) {
                self.messages.push_back(Some(gap));
            }
            return;
        }
        self.messages.push_back(Some(message));
    }

    fn conflate(&mut self, newer: &Publication) {
        let Some(at) = self.states.remove(&newer.key) else {
            return;
        };
        if let Some(slot) = self.messages.get_mut(at)
            && slot.take().is_some()
        {
            self.vacant += 1;
            self.conflated += 1;
        }
        if self.vacant > self.messages.len() / 2 {
            self.compact();
        }
    }

    fn compact(&mut self) {
        self.messages.retain(Option::is_some);
        self.vacant = 0;
        self.states.clear();
        for (at, message) in self.messages.iter().enumerate() {
            if let Some(Message::Publish(publication)) = message
                && publication.is_state()
                && !publication.is_terminal()
            {
                self.states.insert(publication.key, at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
