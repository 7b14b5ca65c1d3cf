//! One job and what the table knows around it: who watches it, what is being fetched of it, and who waits for that.
//!
//! What a job is listed under and when it may be evicted, the index and the eviction note here for themselves.
//!
//! Invariant: of a job that nothing is known of, no number is.

use std::sync::Arc;

use relay_core::id::{JobId, Name, Owner};
use relay_core::job::Job;
use relay_core::position::Seq;
use relay_core::publication::Publication;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::Shards;
use super::eviction::Turn;
use super::index::Listing;
use crate::hub::request::{JoinRequest, Lookup};
use crate::seam::{Incoming, What};

/// Who waits for a job's repair.
#[derive(Debug)]
pub(in crate::hub) enum Waiter {
    Join(JoinRequest),
    Lookup(oneshot::Sender<Lookup>),
}

impl Waiter {
    /// Whether anybody still wants the answer, as far as that can be seen from here.
    pub(in crate::hub) fn waits(&self) -> bool {
        match self {
            Self::Join(_) => true,
            Self::Lookup(answer) => !answer.is_closed(),
        }
    }
}

/// A job's updates being fetched from the store.
#[derive(Debug, Default)]
pub(in crate::hub) struct Repair {
    /// Live updates that came meanwhile, in order.
    pub(in crate::hub) queued: Vec<Incoming>,
    pub(in crate::hub) waiters: Vec<Waiter>,
    /// Too much came meanwhile: fetch once more.
    pub(in crate::hub) again: bool,
    /// Whose job it is, where that is known though nothing else is.
    pub(in crate::hub) owner: Option<Owner>,
    /// What watchers had been told up to when the bus went away, if it began when the bus came back.
    pub(in crate::hub) missed_from: Option<Seq>,
}

/// One job and what the table knows around it.
#[derive(Debug, Default)]
pub(in crate::hub) struct Entry {
    /// `None` while nothing is known of it, as of a job that is watched before it begins.
    pub(in crate::hub) job: Option<Box<Job>>,
    /// Shards with a watcher of `job:<id>`.
    pub(super) shards: Shards,
    /// The last number on each of the job's subjects; `None` is the state's.
    pub(super) subjects: SmallVec<[(Option<Name>, Seq); 1]>,
    pub(in crate::hub) repair: Option<Box<Repair>>,
    /// Up to where watchers were told that there is nothing; 0 if nobody was told so. What came after is
    /// news to them, all of it.
    pub(in crate::hub) nothing_until: Seq,
    /// Only its last state was read from the store; whether that is the truth the guard has not seen.
    pub(in crate::hub) partial: bool,
    pub(super) listing: Listing,
    pub(super) turn: Turn,
}

impl Entry {
    pub(super) fn new(turn: Turn) -> Self {
        Self {
            turn,
            ..Self::default()
        }
    }

    /// Whether nobody watches it and nothing is fetched, so that it is kept for what is known of it alone.
    pub(super) fn is_idle(&self) -> bool {
        self.shards == 0 && self.repair.is_none()
    }

    /// Asserts the invariants.
    pub(super) fn check(&self, id: &JobId) {
        if self.job.is_none() {
            debug_assert!(self.subjects.is_empty(), "{id} has numbers of nothing");
            debug_assert!(!self.partial, "{id} is known in part, and not at all");
            debug_assert_eq!(self.turn.bytes(), 0, "{id} weighs something");
        }
    }

    /// The last number seen on a subject of the job, 0 if none was.
    pub(in crate::hub) fn last(&self, what: &What) -> Seq {
        let name = subject_name(what);
        let found = self.subjects.iter().find(|(each, _)| each.as_ref() == name);
        found.map_or(Seq::ZERO, |(_, seq)| *seq)
    }

    /// The last number seen of the job.
    pub(in crate::hub) fn last_seq(&self) -> Seq {
        let seqs = self.subjects.iter().map(|(_, seq)| *seq);
        seqs.max().unwrap_or_default()
    }

    pub(in crate::hub) fn note(&mut self, what: &What, seq: Seq) {
        let name = subject_name(what);
        match self
            .subjects
            .iter_mut()
            .find(|(each, _)| each.as_ref() == name)
        {
            Some((_, last)) => *last = (*last).max(seq),
            None => self.subjects.push((name.cloned(), seq)),
        }
    }

    /// Gives up joins that wait for the repair; how many.
    pub(in crate::hub) fn withdraw(&mut self, is_it: impl Fn(&JoinRequest) -> bool) -> usize {
        let Some(repair) = &mut self.repair else {
            return 0;
        };
        let before = repair.waiters.len();
        repair
            .waiters
            .retain(|waiter| !matches!(waiter, Waiter::Join(request) if is_it(request)));
        before - repair.waiters.len()
    }

    pub(in crate::hub) fn state(&self) -> Option<&Arc<Publication>> {
        self.job.as_deref().and_then(Job::state)
    }
}

fn subject_name(what: &What) -> Option<&Name> {
    match what {
        What::Milestone(name) => Some(name),
        What::State | What::Gone => None,
    }
}
