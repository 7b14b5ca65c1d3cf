//! What makes room: jobs in the order in which they may be evicted, and how much there is of them.
//!
//! A job queues when it is entered. When its turn comes and it was used since, it queues once more; so one is
//! evicted that has been silent for a whole round. Whether somebody needs it all the same is asked elsewhere.
//! What is noted of a job is kept in its entry, as [`Turn`].
//!
//! Invariants: each job has one place in the order that counts; the bytes are the sum of the jobs' own.

use std::collections::VecDeque;

use relay_core::id::JobName;

/// The order is tidied when it has so many more places than twice the jobs.
const STALE_PLACES: usize = 1024;

/// The order, and how full the table is.
#[derive(Debug)]
pub(super) struct Eviction {
    order: VecDeque<QueuedJob>,
    touches: u64,
    bytes: usize,
    evicted: u64,
    max_jobs: usize,
    max_bytes: usize,
}

/// A place in the order; it counts while the job's [`Turn`] was queued as then.
#[derive(Debug)]
pub(super) struct QueuedJob {
    pub(super) id: JobName,
    queued: u64,
}

/// When a job was used last, when it queued, and what it weighs.
#[derive(Debug, Default)]
pub(super) struct Turn {
    touched: u64,
    /// What `touched` was when it last queued.
    queued: u64,
    bytes: usize,
}

impl Turn {
    /// Whether this is the place in the order that counts.
    pub(super) fn is_at(&self, place: &QueuedJob) -> bool {
        self.queued == place.queued
    }

    /// Whether the job was used since it queued.
    pub(super) fn was_used(&self) -> bool {
        self.touched != self.queued
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Eviction {
    pub(super) fn new(max_jobs: usize, max_bytes: usize) -> Self {
        Self {
            order: VecDeque::new(),
            touches: 0,
            bytes: 0,
            evicted: 0,
            max_jobs,
            max_bytes,
        }
    }

    /// Bytes of all jobs' payloads.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Jobs evicted since the start.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A new job queues.
    pub(super) fn enter(&mut self, id: &JobName) -> Turn {
        self.touches += 1;
        let mut turn = Turn {
            touched: self.touches,
            ..Turn::default()
        };
        self.queue(id.clone(), &mut turn);
        turn
    }

    /// Puts a job behind all others.
    pub(super) fn queue(&mut self, id: JobName, turn: &mut Turn) {
        turn.queued = turn.touched;
        let queued = turn.queued;
        self.order.push_back(QueuedJob { id, queued });
    }

    /// A job is used.
    pub(super) fn touch(&mut self, turn: &mut Turn) {
        self.touches += 1;
        turn.touched = self.touches;
    }

    /// A job weighs so much now.
    pub(super) fn weigh(&mut self, turn: &mut Turn, bytes: usize) {
        self.bytes = (self.bytes + bytes).saturating_sub(turn.bytes);
        turn.bytes = bytes;
    }

    /// Whether so many jobs, with their bytes, are too much.
    pub(super) fn is_full(&self, jobs: usize) -> bool {
        jobs > self.max_jobs || self.bytes > self.max_bytes
    }

    /// How many places the order has.
    pub(super) fn places(&self) -> usize {
        self.order.len()
    }

    /// The next whose turn it is, if the place still counts.
    pub(super) fn next(&mut self) -> Option<QueuedJob> {
        self.order.pop_front()
    }

    /// One was evicted.
    pub(super) fn count(&mut self) {
        self.evicted += 1;
    }

    /// Drops the places that do not count, once there are many; there are `jobs` that do.
    pub(super) fn tidy(&mut self, jobs: usize, counts: impl Fn(&QueuedJob) -> bool) {
        if self.order.len() > 2 * jobs + STALE_PLACES {
            self.order.retain(counts);
        }
    }

    /// Asserts the invariants for the jobs there are.
    pub(super) fn check<'a>(&self, turns: impl Iterator<Item = (&'a JobName, &'a Turn)>) {
        let mut bytes = 0;
        let mut jobs = 0;
        for (id, turn) in turns {
            bytes += turn.bytes;
            jobs += 1;
            debug_assert!(
                turn.queued <= turn.touched,
                "{id} queued before it was used"
            );
        }
        debug_assert_eq!(bytes, self.bytes);
        debug_assert!(
            self.order.len() >= jobs,
            "a job without a place is never evicted"
        );
    }
}
