//! One job and what the table knows around it: who watches it, what is being fetched of it, and who waits for that.
//!
//! What a job is listed under and when it may be evicted, the index and the eviction note here for themselves.
//!
//! Of a job that nothing is known of there may be numbers all the same: those of updates that were refused. What
//! was looked at is not looked at again.
//!
//! Invariants: the numbers of at most [`SUBJECTS`] subjects are remembered each by itself; a job that nothing is
//! known of weighs nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relay_core::backoff::Backoff;
use relay_core::id::{JobName, Name};
use relay_core::job::Job;
use relay_core::moment::Moment;
use relay_core::position::Seq;
use relay_core::publication::Publication;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::Shards;
use super::eviction::Turn;
use super::index::{Index, Known, Listing};
use crate::hub::request::{JoinRequest, Lookup, Whose};
use crate::seam::{First, Incoming, What};

/// Subjects of a job whose last numbers are remembered each by itself; of all others together the highest is.
pub(in crate::hub) const SUBJECTS: usize = 256;
/// Live updates that may wait for one repair, and their bytes; past it the oldest are left to the store.
const QUEUED: usize = 1024;
const QUEUED_BYTES: usize = 4 << 20;

/// How long the repair of a job waits that was repaired a moment ago, and how long a job must have been whole to
/// be repaired at once again.
const REPAIRS: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(1));
const CALM: Duration = Duration::from_secs(10);

/// A job's updates being fetched from the store.
#[derive(Debug, Default)]
pub(in crate::hub) struct Repair {
    /// Live updates that came meanwhile, in order.
    queued: VecDeque<Incoming>,
    /// Bytes of their payloads.
    queued_bytes: usize,
    /// Up to which number live updates that came meanwhile were left to the store; 0 if none was.
    pub(in crate::hub) left_to: Seq,
    /// Joins that wait for it: found by whose they are, for those who do not wait any more.
    pub(in crate::hub) joins: BTreeMap<Whose, JoinRequest>,
    /// Who looks the job up. Whoever asked holds the other end; dropping that one means not to wait any more.
    pub(in crate::hub) lookups: Vec<oneshot::Sender<Lookup>>,
    /// What watchers had been told up to when the bus went away, if it began when the bus came back.
    pub(in crate::hub) missed_from: Option<Seq>,
}

impl Repair {
    /// A live update waits for the repair. How many do not wait any more, and are left to the store.
    pub(in crate::hub) fn queue(&mut self, incoming: Incoming) -> u64 {
        let mut left = 0;
        self.queued_bytes += incoming.payload.len();
        self.queued.push_back(incoming);
        while self.queued.len() > QUEUED || self.queued_bytes > QUEUED_BYTES {
            let Some(oldest) = self.queued.pop_front() else {
                break;
            };
            self.queued_bytes -= oldest.payload.len();
            self.left_to = self.left_to.max(oldest.seq);
            left += 1;
        }
        left
    }

    /// Whether a live update with this number waits for the repair.
    pub(in crate::hub) fn holds(&self, seq: Seq) -> bool {
        self.queued.binary_search_by_key(&seq, |it| it.seq).is_ok()
    }

    /// What waits for the repair, in order.
    pub(in crate::hub) fn take_queued(&mut self) -> VecDeque<Incoming> {
        self.queued_bytes = 0;
        std::mem::take(&mut self.queued)
    }
}

/// When a job was repaired, to space one that is repaired over and over.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::hub) struct Repaired {
    /// When its last repair began.
    at: Option<Moment>,
    /// How many followed one another without a pause.
    in_a_row: u32,
}

impl Repaired {
    /// The job is repaired once more: when, if not at once.
    pub(super) fn next(&mut self, now: Moment) -> Option<Moment> {
        let is_calm = self.at.is_none_or(|at| now - at >= CALM);
        self.at = Some(now);
        if is_calm {
            self.in_a_row = 0;
            return None;
        }
        let due = now + REPAIRS.delay(self.in_a_row, fastrand::u64(..));
        self.in_a_row += 1;
        Some(due)
    }
}

/// Numbers of one job's subjects, as the store told them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::hub) struct Numbers {
    /// The last number on each; `None` is the state's.
    subjects: SmallVec<[(Option<Name>, Seq); 1]>,
    /// The highest of those that are not remembered each by itself.
    others: Seq,
}

impl Numbers {
    /// The last number seen on a subject, 0 if none was.
    fn last(&self, name: Option<&Name>) -> Seq {
        let found = self.subjects.iter().find(|(each, _)| each.as_ref() == name);
        found.map_or(Seq::ZERO, |(_, seq)| *seq)
    }

    fn highest(&self) -> Seq {
        let seqs = self.subjects.iter().map(|(_, seq)| *seq);
        seqs.max().unwrap_or_default().max(self.others)
    }

    fn note(&mut self, name: Option<&Name>, seq: Seq) {
        let mut subjects = self.subjects.iter_mut();
        if let Some((_, last)) = subjects.find(|(each, _)| each.as_ref() == name) {
            *last = (*last).max(seq);
            return;
        }
        self.subjects.push((name.cloned(), seq));
        if self.subjects.len() > SUBJECTS {
            // The state's stays: it decides what is told first.
            let milestones = self
                .subjects
                .iter()
                .enumerate()
                .filter(|(_, it)| it.0.is_some());
            if let Some((oldest, _)) = milestones.min_by_key(|(_, (_, seq))| *seq) {
                let (_, seq) = self.subjects.swap_remove(oldest);
                self.others = self.others.max(seq);
            }
        }
    }
}

/// One job and what the table knows around it.
#[derive(Debug, Default)]
pub(in crate::hub) struct Entry {
    /// `None` while nothing is known of it, as of a job that is watched before it begins.
    pub(in crate::hub) job: Option<Box<Job>>,
    /// Shards with a watcher of just this job.
    pub(super) shards: Shards,
    /// The last number on each of the job's subjects, also of what was refused.
    numbers: Numbers,
    /// Up to where all that the store has of the job was read; 0 if that was not done.
    read_to: Seq,
    pub(in crate::hub) repair: Option<Box<Repair>>,
    pub(in crate::hub) repaired: Repaired,
    /// States that came after the job's ending or removal, since that was stored.
    pub(in crate::hub) late: u64,
    /// Where the job's ending or removal stood first, if it was stored again before it came to here.
    pub(in crate::hub) first: Option<First>,
    /// Up to where watchers were told that there is nothing; 0 if nobody was told so. What came after is
    /// news to them, all of it.
    pub(in crate::hub) nothing_until: Seq,
    /// Only its last state was read from the store; whether that is the truth the guard has not seen.
    pub(in crate::hub) partial: bool,
    /// Nothing but that state is stored on its subject, so the guard would see no other, and no milestone may follow
    /// it if it is an ending.
    pub(in crate::hub) is_sole: bool,
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
    pub(in crate::hub) fn is_idle(&self) -> bool {
        self.shards == 0 && self.repair.is_none()
    }

    /// Lists the job as it stands now.
    pub(super) fn list(&mut self, index: &mut Index) {
        let known = Known {
            seq: self.last_seq(),
            is_unsure: self.is_unsure(),
            is_repaired: self.repair.is_some(),
        };
        if let Some(job) = &self.job {
            index.enter(&mut self.listing, job, known);
        }
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_blank(&self) -> bool {
        self.job.is_none() && self.is_idle() && self.numbers.highest() == Seq::ZERO
    }

    /// Asserts the invariants.
    pub(super) fn check(&self, id: &JobName) {
        debug_assert!(self.numbers.subjects.len() <= SUBJECTS, "{id}");
        if self.job.is_none() {
            debug_assert!(!self.partial, "{id} is known in part, and not at all");
            debug_assert_eq!(self.turn.bytes(), 0, "{id} weighs something");
        }
    }

    /// The last number seen on a subject of the job, 0 if none was.
    pub(in crate::hub) fn last(&self, what: &What) -> Seq {
        self.numbers.last(subject_name(what))
    }

    /// The last number seen of the job.
    pub(in crate::hub) fn last_seq(&self) -> Seq {
        self.numbers.highest()
    }

    /// Up to where all that came on a subject of the job is known, or was refused.
    pub(in crate::hub) fn seen(&self, what: &What) -> Seq {
        match self.last(what) {
            Seq::ZERO => self.numbers.others,
            last => last,
        }
        .max(self.read_to)
    }

    /// Up to where the store knows nothing more of the job.
    pub(in crate::hub) fn compared_to(&self) -> Seq {
        self.last_seq().max(self.read_to)
    }

    /// Whether all that the store has of the job was read, and what came since was seen: asked once more, it
    /// would say nothing else.
    pub(in crate::hub) fn is_read(&self) -> bool {
        self.read_to > Seq::ZERO && !self.partial && self.repair.is_none()
    }

    /// Whether it is known by its last state alone, and the guard may say otherwise.
    pub(in crate::hub) fn is_unsure(&self) -> bool {
        let last = self.last_word();
        let is_over = last.is_some_and(|last| last.is_last());
        self.partial && !(is_over && self.is_sole)
    }

    /// All that the store has of the job up to `seq` was read.
    pub(in crate::hub) fn read(&mut self, seq: Seq) {
        self.read_to = self.read_to.max(seq);
        self.partial = false;
    }

    pub(in crate::hub) fn note(&mut self, what: &What, seq: Seq) {
        self.numbers.note(subject_name(what), seq);
    }

    /// Nothing that was seen of the job counts any more.
    pub(super) fn forget_numbers(&mut self) {
        self.numbers = Numbers::default();
        self.read_to = Seq::ZERO;
        self.late = 0;
        self.first = None;
        self.partial = false;
    }

    /// Gives up a join that waits for the repair. False if none does.
    pub(in crate::hub) fn withdraw(&mut self, whose: Whose) -> bool {
        let repair = self.repair.as_mut();
        repair.is_some_and(|repair| repair.joins.remove(&whose).is_some())
    }

    pub(in crate::hub) fn state(&self) -> Option<&Arc<Publication>> {
        self.job.as_deref().and_then(Job::state)
    }

    /// Its state, or that it was removed.
    pub(in crate::hub) fn last_word(&self) -> Option<&Arc<Publication>> {
        self.job.as_deref().and_then(Job::last_word)
    }
}

fn subject_name(what: &What) -> Option<&Name> {
    match what {
        What::Milestone(name) => Some(name),
        What::State | What::Gone => None,
    }
}
