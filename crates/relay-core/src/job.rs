//! One job as this node knows it: its guard, its latest state, its milestones, and since when it is sure.
//!
//! A job takes updates in the bus's order and turns the acceptable ones into publications; asked by a
//! returning client, it says what that client has missed. It does not know who watches it.
//!
//! Invariant: every accepted update numbered above `known_from` that no later one superseded is in
//! `history` or is `state`.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::document::{JobDocument, MilestoneData, Refusal, Status};
use crate::eta::EtaEstimator;
use crate::guard::{Guard, Stale, Verdict};
use crate::id::{JobId, Name, Owner};
use crate::moment::{Moment, WallTime};
use crate::publication::{Body, Frames, JobKey, Publication};

/// What every job on a node shares.
#[derive(Debug, Clone, Copy)]
pub struct JobBounds {
    /// Milestones (and endings of earlier attempts) kept for returning clients.
    pub history: usize,
    /// Bytes of one update.
    pub update_bytes: usize,
}

impl JobBounds {
    fn admit(&self, payload: &[u8]) -> Result<(), Declined> {
        let (actual, limit) = (payload.len(), self.update_bytes);
        if actual > limit {
            return Err(Declined::TooLarge { actual, limit });
        }
        Ok(())
    }
}

/// Where and when an update stands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Which life of the bus `seq` belongs to.
    pub epoch: u64,
    /// The bus's number.
    pub seq: u64,
    /// When this node took it in.
    pub received_at: Moment,
    /// When the bus took it in.
    pub stored_at: WallTime,
}

/// What an update is about.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// The complete state.
    State,
    /// A named milestone.
    Milestone(&'a Name),
}

/// Why an update went no further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Declined {
    /// The update itself is wrong.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It comes too late.
    #[error("{0}")]
    Stale(Stale),
    /// It says exactly what the last one said.
    #[error("the same state was published twice in a row")]
    Repeated,
    /// It is larger than a node takes.
    #[error("the update is {actual} bytes; the limit is {limit} (limits.update_bytes)")]
    TooLarge {
        /// Its size in bytes.
        actual: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The job belongs to somebody else.
    #[error("the job belongs to another owner")]
    ForeignOwner,
}

impl Declined {
    /// A short word for metrics and machine readers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Stale(stale) => stale.as_str(),
            Self::Repeated => "repeated",
            Self::TooLarge { .. } => "too_large",
            Self::ForeignOwner => "foreign_owner",
        }
    }
}

/// What a client that comes (back) is owed about one job.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// Whether all it missed is here. A client without a cursor is never "recovered".
    pub recovered: bool,
    /// In ascending `seq`.
    pub publications: Vec<Arc<Publication>>,
}

/// One job.
#[derive(Debug)]
pub struct Job {
    /// Its number on this node.
    pub key: JobKey,
    /// Its id.
    pub id: JobId,
    /// Its owner: the first whose update was accepted.
    pub owner: Owner,
    guard: Guard,
    eta: EtaEstimator,
    state: Option<Arc<Publication>>,
    history: VecDeque<Arc<Publication>>,
    known_from: u64,
    /// Hash of the worker's bytes behind `state`, to know a repetition.
    said: u64,
}

impl Job {
    /// A job about which everything above `known_from` will be applied.
    pub fn new(key: JobKey, id: JobId, owner: Owner, known_from: u64) -> Self {
        Self {
            key,
            id,
            owner,
            guard: Guard::new(),
            eta: EtaEstimator::default(),
            state: None,
            history: VecDeque::new(),
            known_from,
            said: 0,
        }
    }

    /// The latest accepted state.
    pub fn state(&self) -> Option<&Arc<Publication>> {
        self.state.as_ref()
    }

    /// From which number on nothing is unknown.
    pub fn known_from(&self) -> u64 {
        self.known_from
    }

    /// Bytes of payload held.
    pub fn payload_bytes(&self) -> usize {
        self.state
            .iter()
            .chain(&self.history)
            .map(|publication| publication.payload_bytes())
            .sum()
    }

    /// Takes one update: checks it, and remembers it if it is accepted.
    ///
    /// # Errors
    /// Says why the update goes no further; the job is as it was then.
    pub fn apply(
        &mut self,
        subject: Subject<'_>,
        payload: &Bytes,
        place: Place,
        bounds: &JobBounds,
    ) -> Result<Arc<Publication>, Declined> {
        bounds.admit(payload)?;
        match subject {
            Subject::State => self.apply_state(payload, place, bounds),
            Subject::Milestone(name) => self.apply_milestone(name, payload, place, bounds),
        }
    }

    /// Whether [`Job::apply`] would take an update; true if it is an ending.
    ///
    /// # Errors
    /// As [`Job::apply`] would, but for a repetition, which does no harm.
    pub fn check(
        &self,
        subject: Subject<'_>,
        payload: &[u8],
        bounds: &JobBounds,
    ) -> Result<bool, Declined> {
        bounds.admit(payload)?;
        match subject {
            Subject::State => {
                let document = JobDocument::parse(payload, &self.id, &self.owner)?;
                match self.guard.check(&document) {
                    Verdict::Accepted { .. } => Ok(document.status().is_terminal()),
                    Verdict::Stale(stale) => Err(Declined::Stale(stale)),
                }
            }
            Subject::Milestone(_) => {
                MilestoneData::parse(payload)?;
                if self.guard.is_terminal() {
                    return Err(Declined::Stale(Stale::AfterEnding));
                }
                Ok(false)
            }
        }
    }

    fn apply_state(
        &mut self,
        payload: &[u8],
        place: Place,
        bounds: &JobBounds,
    ) -> Result<Arc<Publication>, Declined> {
        let mut document = JobDocument::parse(payload, &self.id, &self.owner)?;
        let mut guard = self.guard;
        let reopened = match guard.admit(&document) {
            Verdict::Accepted { reopened } => reopened,
            Verdict::Stale(stale) => return Err(Declined::Stale(stale)),
        };
        if document.attempt() != self.guard.attempt() {
            self.eta = EtaEstimator::default();
        }
        let said = hash(payload);
        if self.state.is_some() && said == self.said {
            return Err(Declined::Repeated);
        }
        self.said = said;
        self.guard = guard;
        self.estimate(&mut document, place.received_at);
        let json = Bytes::from(document.to_json());
        let publication = self.publication(
            Body::State {
                json,
                status: document.status(),
                attempt: document.attempt(),
            },
            document.parent_id().cloned(),
            document.ts(),
            place,
        );
        let previous = self.state.replace(publication.clone());
        // The ending of an attempt that is being tried again is history, and still owed to whoever was away.
        if let Some(ending) = previous.filter(|state| reopened && state.is_terminal()) {
            self.remember(ending, bounds);
        }
        Ok(publication)
    }

    fn apply_milestone(
        &mut self,
        name: &Name,
        payload: &[u8],
        place: Place,
        bounds: &JobBounds,
    ) -> Result<Arc<Publication>, Declined> {
        let data = MilestoneData::parse(payload)?;
        if self.guard.is_terminal() {
            return Err(Declined::Stale(Stale::AfterEnding));
        }
        let parent = self.state.as_ref().and_then(|state| state.parent.clone());
        let publication = self.publication(
            Body::Milestone {
                name: name.clone(),
                data: Bytes::copy_from_slice(data.as_json().as_bytes()),
            },
            parent,
            data.ts(),
            place,
        );
        self.remember(publication.clone(), bounds);
        Ok(publication)
    }

    /// What somebody is owed who has been told everything up to `since`, or nothing yet.
    pub fn replay(&self, since: Option<u64>) -> Replay {
        let Some(since) = since.filter(|since| *since >= self.known_from) else {
            return Replay {
                recovered: false,
                publications: self.snapshot(),
            };
        };
        let mut publications: Vec<_> = self
            .history
            .iter()
            .chain(&self.state)
            .filter(|publication| publication.seq > since)
            .cloned()
            .collect();
        publications.sort_by_key(|publication| publication.seq);
        Replay {
            recovered: true,
            publications,
        }
    }

    /// Whether this publication is known here: it is the state, or in the history.
    pub fn holds(&self, publication: &Publication) -> bool {
        self.history
            .iter()
            .chain(&self.state)
            .any(|known| known.seq == publication.seq)
    }

    /// Every milestone and ending of an earlier attempt that is remembered, and the state, by number.
    pub fn publications(&self) -> Vec<Arc<Publication>> {
        let mut all: Vec<_> = self.history.iter().chain(&self.state).cloned().collect();
        all.sort_by_key(|publication| publication.seq);
        all
    }

    /// Notes that updates up to `seq` may have been missed.
    pub fn doubt(&mut self, seq: u64) {
        self.known_from = self.known_from.max(seq);
    }

    /// What is told first to somebody who knows nothing: the state, and the milestones that are newer.
    pub fn snapshot(&self) -> Vec<Arc<Publication>> {
        let since = self.state.as_ref().map_or(0, |state| state.seq);
        let newer = self.history.iter().filter(|each| each.seq > since);
        self.state.iter().chain(newer).cloned().collect()
    }

    /// Takes over what another copy of the same job knows, keeping this one's key.
    pub fn replace_with(&mut self, other: Self) {
        *self = Self {
            key: self.key,
            ..other
        };
    }

    fn estimate(&mut self, document: &mut JobDocument, now: Moment) {
        if document.status() != Status::Running {
            return;
        }
        if let Some(progress) = document.progress() {
            self.eta.observe(progress, now);
        }
        if let Some(left) = self.eta.estimate(now) {
            document.estimate_eta(left.as_secs_f64());
        }
    }

    fn remember(&mut self, publication: Arc<Publication>, bounds: &JobBounds) {
        self.history.push_back(publication);
        while self.history.len() > bounds.history {
            if let Some(forgotten) = self.history.pop_front() {
                self.known_from = self.known_from.max(forgotten.seq);
            }
        }
    }

    fn publication(
        &self,
        body: Body,
        parent: Option<Name>,
        worker_at: Option<WallTime>,
        place: Place,
    ) -> Arc<Publication> {
        Arc::new(Publication {
            seq: place.seq,
            epoch: place.epoch,
            key: self.key,
            job: self.id.clone(),
            owner: self.owner.clone(),
            parent,
            body,
            received_at: place.received_at,
            worker_at,
            stored_at: place.stored_at,
            frames: Frames::default(),
        })
    }
}

fn hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}
