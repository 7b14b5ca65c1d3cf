//! A shard's inbox: what the hub hands over, in order, without ever waiting for the shard.
//!
//! The hub pushes under its own lock, so the order here is the order of the table. A shard that falls
//! behind costs its clients freshness and the hub nothing: past a first bound a newer state takes an
//! older one's place, past a second one milestones are shed and a gap is left.
//!
//! Invariants: answers to joins are never shed; their number is bounded by the shard's connections. The state
//! that a newer one may replace is where it is looked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use relay_core::publication::{JobKey, Publication};
use relay_core::tally::Aggregate;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::{Joined, LeftOut};
use relay_core::watcher::holds::Repairing;
use relay_core::watcher::outbox::GapReason;
use tokio::sync::Notify;

/// From this many messages on, states are conflated before they reach the shard.
const SOFT_LIMIT: usize = 16_384;
/// From this many on, milestones are shed too.
const HARD_LIMIT: usize = 65_536;
/// Messages up to which the invariants are asserted after every change of a debug build.
const CHECKED_MESSAGES: usize = 64;

/// Names a connection to its shard; the hub only hands it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What a shard is told.
#[derive(Debug)]
pub enum Message {
    /// An update was accepted.
    Publish(Arc<Publication>),
    /// A connection's join was answered.
    Joined(ConnectionId, Box<Joined>),
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

/// Which milestones are lost.
#[derive(Debug)]
pub struct LostMilestones {
    /// The job, and a number at or above the lost ones.
    pub what: LeftOut,
    /// The topics it is seen under.
    pub topics: Vec<Topic>,
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

/// Figures of one inbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InboxStats {
    /// Messages waiting.
    pub waiting: usize,
    /// States that a newer one replaced before they reached the shard, since the start.
    pub conflated: u64,
    /// Milestones that were dropped before they reached the shard, since the start.
    pub shed: u64,
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
        let mut queue = self.queue.lock();
        queue.push(message);
        queue.check();
        drop(queue);
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
        queue.check();
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

    /// Figures for operators.
    pub fn stats(&self) -> InboxStats {
        let queue = self.queue.lock();
        InboxStats {
            waiting: queue.messages.len() - queue.vacant,
            conflated: queue.conflated,
            shed: queue.shed,
        }
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
        } else if publication.is_milestone() && waiting >= HARD_LIMIT {
            self.shed += 1;
            let gap = Message::Gap(Box::new(LostMilestones {
                what: LeftOut {
                    key: publication.key,
                    job: publication.job.clone(),
                    seq: publication.seq,
                },
                topics: publication.topics().collect(),
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

impl Queue {
    /// Asserts the invariants in a debug build, unless the queue is long.
    fn check(&self) {
        if cfg!(debug_assertions) && self.messages.len() <= CHECKED_MESSAGES {
            self.check_all();
        }
    }

    fn check_all(&self) {
        let vacant = self.messages.iter().filter(|place| place.is_none());
        debug_assert_eq!(vacant.count(), self.vacant);
        for (key, at) in &self.states {
            let waits = matches!(
                self.messages.get(*at),
                Some(Some(Message::Publish(state)))
                    if state.key == *key && state.is_state() && !state.is_terminal()
            );
            debug_assert!(waits, "{key:?} has no state at {at}");
        }
        debug_assert!(self.gaps.len() <= self.messages.len() - self.vacant);
    }
}

#[cfg(test)]
mod tests;
