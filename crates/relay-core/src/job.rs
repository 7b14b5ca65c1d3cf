//! One job as this node knows it: its guard, its latest state, its milestones, and since when it is sure.
//!
//! A job takes updates in the bus's order and turns the acceptable ones into publications; asked by a
//! returning client, it says what that client has missed. It does not know who watches it.
//!
//! Invariant: every accepted update numbered above `known_from` that no later one superseded is in
//! `history` or is `state`.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hashbrown::DefaultHashBuilder;

use crate::document::{JobDocument, Known, MilestoneData, Refusal, Removal, Status};
use crate::eta::EtaEstimator;
use crate::guard::{Guard, Stale, Verdict};
use crate::id::{JobId, Name, Owner};
use crate::kind::{Kinds, Meaning};
use crate::moment::{Moment, WallTime};
use crate::position::{Epoch, Seq};
use crate::publication::{Body, Frames, Gone, JobKey, Publication};

/// What every job on a node shares.
#[derive(Debug, Clone)]
pub struct JobBounds {
    /// Milestones (and endings of earlier attempts) kept for returning clients.
    pub history: usize,
    /// Bytes of one update.
    pub update_bytes: usize,
    /// What kinds of jobs declare.
    pub kinds: Arc<Kinds>,
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
    pub epoch: Epoch,
    /// The bus's number.
    pub seq: Seq,
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

/// Whether the sender of an update can be told what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// It waits for an answer: an update with anything wrong in it is refused.
    Waiting,
    /// It is away, as on a bus: an ending is taken without what is wrong in it, so that nobody waits for it in
    /// vain. Anything else is refused.
    Away,
}

/// What an update is to its job's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// More may follow.
    Open,
    /// It ends the job's attempt.
    Ending,
    /// It takes the job away.
    Removal,
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
    /// The code that reads it panicked; whoever caught that says so with this.
    #[error("the relay failed while it read this update, and skipped it")]
    Panicked,
}

impl Declined {
    /// A short word for metrics and machine readers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Stale(stale) => stale.as_str(),
            Self::Repeated => "repeated",
            Self::TooLarge { .. } => "too_large",
            Self::Panicked => "panicked",
        }
    }
}

/// An accepted update before the job has taken it: all that may go wrong with its bytes is behind it.
#[derive(Debug)]
#[must_use = "the job takes it with Job::enter"]
pub struct Judged {
    publication: Arc<Publication>,
    change: Change,
    dropped: Vec<Refusal>,
}

impl Judged {
    /// What was wrong in an ending that is taken all the same, and what was too large: each with its field and the
    /// reason, the first of them if they are many. The document names the fields.
    pub fn dropped(&self) -> &[Refusal] {
        &self.dropped
    }
}

/// What of a job an accepted update replaces.
#[derive(Debug)]
enum Change {
    State {
        guard: Guard,
        eta: EtaEstimator,
        said: u64,
        reopened: bool,
        /// Another than before.
        created_at: Option<Box<str>>,
    },
    Milestone,
    Removal {
        guard: Guard,
    },
}

/// What a client that comes (back) is owed about one job.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// Whether all it missed is here. A client without a cursor is never "recovered".
    pub recovered: bool,
    /// In ascending `seq`.
    pub publications: Vec<Arc<Publication>>,
}

/// What from before its cursor somebody who comes back is told once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing: it knows what it was told.
    Nothing,
    /// The state: it may not show it any more.
    State,
    /// The snapshot of then: it only began there, and may not have got it.
    Snapshot,
}

/// What a job remembers, for a restart.
#[derive(Debug, Clone, Default)]
pub struct JobMemory {
    /// From which number on nothing is unknown.
    pub known_from: Seq,
    /// Up to where milestones are lost, or may be.
    pub lost_to: Seq,
    /// When its first update was.
    pub first_at: Option<WallTime>,
    /// Its state and its history, by number.
    pub publications: Vec<Arc<Publication>>,
}

/// One job.
#[derive(Debug)]
pub struct Job {
    /// Its number on this node.
    pub key: JobKey,
    /// Its id.
    pub id: JobId,
    /// Its owner, who has no other by that id.
    pub owner: Owner,
    guard: Guard,
    eta: EtaEstimator,
    /// The group it belongs to, as the last state said, or the first that is to come.
    parent: Option<Name>,
    state: Option<Arc<Publication>>,
    /// That it was taken away; it has neither state nor history then.
    removed: Option<Arc<Publication>>,
    /// Up to here all was taken away.
    removed_to: Seq,
    history: VecDeque<Arc<Publication>>,
    known_from: Seq,
    /// Up to here there were milestones or endings that are lost, or there may have been.
    lost_to: Seq,
    /// Hash of the worker's bytes behind `state`, to know a repetition.
    said: u64,
    /// The first `created_at` of the attempt, as its worker wrote it, else of one before.
    created_at: Option<Box<str>>,
    /// When its first update was.
    first_at: Option<WallTime>,
    /// What is known of it beside the updates that it is rebuilt from.
    inherited: Option<Box<Inherited>>,
}

/// What a job that is rebuilt takes over from the one that was known, because the store may have let go of it.
#[derive(Debug, Clone)]
pub struct Inherited {
    owner: Owner,
    first_at: Option<WallTime>,
    attempt: u32,
    progress: Option<f64>,
    created_at: Option<Box<str>>,
}

/// A time in a document that is longer is not taken over.
const MAX_TIME_BYTES: usize = 64;

impl Judged {
    /// Whether nothing of the attempt may follow: it is an ending, or takes the job away.
    pub fn is_last(&self) -> bool {
        self.publication.is_last()
    }
}

impl Job {
    /// A job about which everything above `known_from` will be applied.
    pub fn new(key: JobKey, id: JobId, owner: Owner, known_from: Seq) -> Self {
        Self {
            key,
            id,
            owner,
            guard: Guard::new(),
            eta: EtaEstimator::default(),
            parent: None,
            state: None,
            removed: None,
            removed_to: Seq::ZERO,
            history: VecDeque::new(),
            known_from,
            lost_to: Seq::ZERO,
            said: 0,
            created_at: None,
            first_at: None,
            inherited: None,
        }
    }

    /// What is known of the job, for a copy of it that is rebuilt from the store.
    pub fn legacy(&self) -> Inherited {
        Inherited {
            owner: self.owner.clone(),
            attempt: self.guard.attempt(),
            progress: self.guard.progress(),
            created_at: self.created_at.clone(),
            first_at: self.first_at,
        }
    }

    /// Takes over, before the first update, what was known of the job, if it is the same owner's.
    pub fn inherit(&mut self, known: Inherited) {
        if known.owner == self.owner {
            self.first_at = known.first_at;
            self.inherited = Some(Box::new(known));
        }
    }

    /// Notes the group of a job whose milestones are read before the state that says so.
    pub fn belongs_to(&mut self, parent: Option<Name>) {
        self.parent = parent;
    }

    /// The latest accepted state.
    pub fn state(&self) -> Option<&Arc<Publication>> {
        self.state.as_ref()
    }

    /// That it was taken away, if it was and no higher attempt has begun.
    pub fn removed(&self) -> Option<&Arc<Publication>> {
        self.removed.as_ref()
    }

    /// Its last word: its state, or that it was taken away.
    pub fn last_word(&self) -> Option<&Arc<Publication>> {
        self.removed.as_ref().or(self.state.as_ref())
    }

    /// Up to where all of it was taken away.
    pub fn removed_to(&self) -> Seq {
        self.removed_to
    }

    /// The group it belongs to, or belonged to when it was taken away.
    pub fn group(&self) -> Option<&Name> {
        self.last_word()?.parent.as_ref()
    }

    /// The document that takes it away as it is now.
    pub fn removal(&self) -> String {
        let attempt = self.guard.attempt().max(1);
        Removal::document(attempt, self.parent.as_ref(), self.last_status())
    }

    /// How it stands, or stood when it was taken away.
    fn last_status(&self) -> Option<Status> {
        match self.last_word()?.body {
            Body::State { status, .. } => Some(status),
            Body::Gone(gone) => gone.last(),
            Body::Milestone { .. } => None,
        }
    }

    /// From which number on nothing is unknown.
    pub fn known_from(&self) -> Seq {
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
    #[cfg(test)]
    pub(crate) fn apply(
        &mut self,
        subject: Subject<'_>,
        payload: &Bytes,
        place: Place,
        bounds: &JobBounds,
    ) -> Result<Arc<Publication>, Declined> {
        let judged = self.judge(subject, payload, place, Sender::Away, bounds)?;
        Ok(self.enter(judged, bounds))
    }

    /// The first half of taking an update: reads its bytes and changes nothing.
    ///
    /// # Errors
    /// Says why the update goes no further.
    pub fn judge(
        &self,
        subject: Subject<'_>,
        payload: &[u8],
        place: Place,
        sender: Sender,
        bounds: &JobBounds,
    ) -> Result<Judged, Declined> {
        match subject {
            Subject::State => {
                let declined = match self.read_state(payload, sender, bounds) {
                    Ok((document, dropped)) => {
                        return self.judge_state(document, dropped, payload, place);
                    }
                    Err(declined) => declined,
                };
                let removal = Removal::read(payload, &self.id, &self.owner);
                let removal = removal.filter(|_| payload.len() <= bounds.update_bytes);
                let removal = removal.ok_or(declined)??;
                self.judge_removal(removal, None, place)
            }
            Subject::Milestone(name) => {
                bounds.admit(payload)?;
                self.judge_milestone(name, payload, place, &bounds.kinds)
            }
        }
    }

    /// The group that a state of a job names which is not known, if it can be read.
    pub fn group_named(
        payload: &[u8],
        job: &JobId,
        owner: &Owner,
        bounds: &JobBounds,
    ) -> Option<Name> {
        let job = Self::new(JobKey(0), job.clone(), owner.clone(), Seq::ZERO);
        match job.read_state(payload, Sender::Away, bounds) {
            Ok((document, _)) => document.parent_id().cloned(),
            Err(_) => Removal::read(payload, &job.id, &job.owner)?.ok()?.parent_id,
        }
    }

    /// A state's document, with what was wrong in it and is left out.
    fn read_state(
        &self,
        payload: &[u8],
        sender: Sender,
        bounds: &JobBounds,
    ) -> Result<(JobDocument, Vec<Refusal>), Declined> {
        let read = || {
            bounds.admit(payload)?;
            Ok(JobDocument::parse(payload, &self.id, &self.owner)?)
        };
        let declined = match read() {
            Ok(document) => return Ok((document, Vec::new())),
            Err(declined) => declined,
        };
        let known = Known {
            attempt: self.guard.attempt(),
            parent: self.parent.as_ref(),
        };
        let (id, owner, limit) = (&self.id, &self.owner, bounds.update_bytes);
        match sender {
            Sender::Waiting => Err(declined),
            Sender::Away => JobDocument::salvage(payload, id, owner, known, limit)
                .map(|salvaged| (salvaged.document, salvaged.dropped))
                .ok_or(declined),
        }
    }

    /// The second half: remembers what this job, as it is now, has judged.
    pub fn enter(&mut self, judged: Judged, bounds: &JobBounds) -> Arc<Publication> {
        let Judged {
            publication,
            change,
            dropped: _,
        } = judged;
        self.first_at.get_or_insert(publication.first_at);
        match change {
            Change::State {
                guard,
                eta,
                said,
                reopened,
                created_at,
            } => {
                self.guard = guard;
                self.eta = eta;
                self.said = said;
                self.created_at = created_at.or(self.created_at.take());
                self.parent.clone_from(&publication.parent);
                if let Some(removed) = self.removed.take() {
                    // It is still owed to whoever was away.
                    self.remember(removed, bounds);
                }
                let previous = self.state.replace(publication.clone());
                // The ending of an attempt that is being tried again is history, and still owed to whoever
                // was away.
                if let Some(ending) = previous.filter(|state| reopened && state.is_terminal()) {
                    self.remember(ending, bounds);
                }
            }
            Change::Milestone => self.remember(publication.clone(), bounds),
            Change::Removal { guard } => {
                self.guard = guard;
                self.eta = EtaEstimator::default();
                self.parent.clone_from(&publication.parent);
                self.state = None;
                self.history.clear();
                self.lost_to = Seq::ZERO;
                self.created_at = None;
                self.first_at = None;
                self.removed_to = publication.seq;
                self.removed = Some(publication.clone());
            }
        }
        publication
    }

    /// Whether an update would be accepted, and what it is then.
    ///
    /// # Errors
    /// As [`Job::judge`], but for a repetition, which does no harm.
    pub fn check(
        &self,
        subject: Subject<'_>,
        payload: &[u8],
        bounds: &JobBounds,
    ) -> Result<Finality, Declined> {
        bounds.admit(payload)?;
        match subject {
            Subject::State => self.check_state(payload),
            Subject::Milestone(name) => {
                MilestoneData::parse(payload)?;
                match self.meaning(name, &bounds.kinds) {
                    Meaning::Removal => match self.removed_at(self.guard.attempt()) {
                        Err(Stale::Removed) | Ok(_) => Ok(Finality::Open),
                        Err(stale) => Err(Declined::Stale(stale)),
                    },
                    meaning => self.may_be_followed_by(meaning).map(|()| Finality::Open),
                }
            }
        }
    }

    fn check_state(&self, payload: &[u8]) -> Result<Finality, Declined> {
        let document = match JobDocument::parse(payload, &self.id, &self.owner) {
            Ok(document) => document,
            Err(refusal) => {
                let Some(removal) = Removal::read(payload, &self.id, &self.owner) else {
                    return Err(refusal.into());
                };
                return match self.removed_at(removal?.attempt) {
                    // Whoever was not told that it arrived says it again; it did.
                    Ok(_) | Err(Stale::Removed) => Ok(Finality::Removal),
                    Err(stale) => Err(Declined::Stale(stale)),
                };
            }
        };
        match self.guard.check(&document) {
            // As above.
            Verdict::Stale(stale) if !self.has_said(payload) && !self.is_told(&document) => {
                Err(Declined::Stale(stale))
            }
            Verdict::Accepted { .. } | Verdict::Stale(_) => match document.status().is_terminal() {
                true => Ok(Finality::Ending),
                false => Ok(Finality::Open),
            },
        }
    }

    /// What a milestone means for this job.
    fn meaning(&self, name: &Name, kinds: &Kinds) -> Meaning {
        // Its kind went with its state; whoever says again what took it away was not told that it arrived.
        if self.removed.is_some() && kinds.removes(name) {
            return Meaning::Removal;
        }
        kinds.meaning(name, || self.kind())
    }

    /// Whether milestones may follow its ending.
    pub fn may_be_followed(&self, kinds: &Kinds) -> bool {
        kinds.declare(|| self.kind())
    }

    /// What sort of job its state says it is.
    fn kind(&self) -> Option<String> {
        match &self.state()?.body {
            Body::State { json, .. } => JobDocument::kind_in(json),
            Body::Milestone { .. } | Body::Gone(_) => None,
        }
    }

    /// Whether a milestone that takes nothing away may follow what was accepted so far.
    fn may_be_followed_by(&self, meaning: Meaning) -> Result<(), Declined> {
        let is_over = self.guard.is_terminal();
        if is_over && (self.removed.is_some() || meaning == Meaning::Ordinary) {
            return Err(Declined::Stale(self.guard.over()));
        }
        Ok(())
    }

    /// The guard once the job is taken away, as far as `attempt`.
    fn removed_at(&self, attempt: u32) -> Result<Guard, Stale> {
        let mut guard = self.guard;
        guard.remove(attempt.max(1))?;
        Ok(guard)
    }

    /// Whether the last state was these very bytes.
    fn has_said(&self, payload: &[u8]) -> bool {
        self.state.is_some() && self.said == hash(payload)
    }

    /// Whether the last state says the same, in whatever bytes.
    fn is_told(&self, document: &JobDocument) -> bool {
        let body = self.state.as_ref().map(|state| &state.body);
        matches!(body, Some(Body::State { json, .. }) if json == document.as_json().as_bytes())
    }

    fn judge_state(
        &self,
        mut document: JobDocument,
        dropped: Vec<Refusal>,
        payload: &[u8],
        place: Place,
    ) -> Result<Judged, Declined> {
        if self.has_said(payload) {
            return Err(Declined::Repeated);
        }
        let mut guard = self.guard;
        let reopened = match guard.admit(&document) {
            Verdict::Accepted { reopened } => reopened,
            Verdict::Stale(Stale::AfterEnding) if self.is_told(&document) => {
                return Err(Declined::Repeated);
            }
            Verdict::Stale(stale) => return Err(Declined::Stale(stale)),
        };
        let mut eta = if document.attempt() == self.guard.attempt() {
            self.eta
        } else {
            EtaEstimator::default()
        };
        estimate(&mut eta, &mut document, place.received_at);
        // An estimate rests on what the worker said, so it comes before what is taken over.
        let created_at = self.carry(&mut document, &guard);
        let (parent, ts) = (document.parent_id().cloned(), document.ts());
        Ok(Judged {
            publication: self.publication(Body::state(document), parent, ts, place),
            change: Change::State {
                guard,
                eta,
                said: hash(payload),
                reopened,
                created_at,
            },
            dropped,
        })
    }

    /// Puts into a state what is known from those before it; its `created_at`, if that is the first. `guard` is
    /// the one that has admitted it.
    fn carry(&self, document: &mut JobDocument, guard: &Guard) -> Option<Box<str>> {
        let inherited = self.inherited.as_deref();
        let of_attempt = inherited.filter(|it| it.attempt == guard.attempt());
        let progress = guard.progress().or(of_attempt.and_then(|it| it.progress));
        let begins = guard.attempt() != self.guard.attempt();
        let own = document
            .created_at()
            .filter(|text| text.len() <= MAX_TIME_BYTES);
        let known = of_attempt.and_then(|it| it.created_at.as_deref());
        let known = known.or(self.created_at.as_deref());
        let is_first = own.is_some() && (begins || known.is_none());
        let first = if is_first { own.map(Box::from) } else { None };
        document.carry(progress, known.filter(|_| !is_first));
        first
    }

    fn judge_milestone(
        &self,
        name: &Name,
        payload: &[u8],
        place: Place,
        kinds: &Kinds,
    ) -> Result<Judged, Declined> {
        let data = MilestoneData::parse(payload)?;
        match self.meaning(name, kinds) {
            Meaning::Removal => {
                let removal = Removal {
                    attempt: self.guard.attempt(),
                    parent_id: None,
                    last_status: None,
                };
                return self.judge_removal(removal, data.ts(), place);
            }
            meaning => self.may_be_followed_by(meaning)?,
        }
        let parent = self.parent.clone();
        let ts = data.ts();
        let body = Body::Milestone {
            name: name.clone(),
            data: Bytes::from(data.into_json()),
        };
        Ok(Judged {
            publication: self.publication(body, parent, ts, place),
            change: Change::Milestone,
            dropped: Vec::new(),
        })
    }

    fn judge_removal(
        &self,
        removal: Removal,
        ts: Option<WallTime>,
        place: Place,
    ) -> Result<Judged, Declined> {
        let guard = match self.removed_at(removal.attempt) {
            Ok(guard) => guard,
            Err(Stale::Removed) => return Err(Declined::Repeated),
            Err(stale) => return Err(Declined::Stale(stale)),
        };
        // Whoever was shown it in a group is told there.
        let parent = self.parent.clone().or(removal.parent_id);
        let body = Body::Gone(Gone::Removed {
            attempt: guard.attempt(),
            last: self.last_status().or(removal.last_status),
        });
        Ok(Judged {
            publication: self.publication(body, parent, ts, place),
            change: Change::Removal { guard },
            dropped: Vec::new(),
        })
    }

    /// What somebody is owed who has been told everything up to `since`, or nothing yet.
    pub(crate) fn replay(&self, since: Option<Seq>) -> Replay {
        if let (Some(removed), Some(since)) = (&self.removed, since) {
            // Whatever it missed is gone with the job.
            let is_news = removed.seq > since;
            return Replay {
                recovered: since >= self.known_from,
                publications: is_news.then(|| removed.clone()).into_iter().collect(),
            };
        }
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

    /// What is owed to somebody who was told a part of a snapshot, up to `since`; and up to where milestones are left out
    /// of it that may have been missed. What was told before stays told: whoever is told a snapshot in parts must not
    /// be told the first of them for ever.
    pub fn rest(&self, since: Seq) -> (Vec<Arc<Publication>>, Option<Seq>) {
        let replay = self.replay(Some(since));
        if replay.recovered || self.removed.is_some() {
            return (replay.publications, None);
        }
        let mut publications = replay.publications;
        publications.retain(|each| each.seq > since);
        (publications, self.left_out_since(since))
    }

    /// As `Job::replay`, with what is told again.
    pub fn replay_with(&self, since: Option<Seq>, again: Again) -> Replay {
        let mut replay = self.replay(since);
        if let Some(since) = since.filter(|_| replay.recovered) {
            let mut told = self.snapshot();
            told.retain(|publication| match again {
                Again::Nothing => false,
                Again::State => publication.is_state() && publication.seq <= since,
                Again::Snapshot => publication.seq <= since,
            });
            replay.publications.splice(0..0, told);
        }
        replay
    }

    /// Whether the publication with this number is known here: it is the state, or in the history.
    pub fn holds(&self, seq: Seq) -> bool {
        let mut held = self.history.iter().chain(&self.state).chain(&self.removed);
        held.any(|known| known.seq == seq)
    }

    /// The milestones of this attempt that are remembered, by number, and whether there were earlier ones.
    pub fn milestones(&self) -> (Vec<Arc<Publication>>, bool) {
        let last = self.history.iter().rposition(|each| !each.is_milestone());
        let begin = last.map_or(0, |at| at + 1);
        let milestones: Vec<_> = self.history.range(begin..).cloned().collect();
        let first = last.and_then(|at| self.history.get(at));
        let began = first.map_or(Seq::ZERO, |ending| ending.seq);
        (milestones, self.lost_to > began)
    }

    /// Every milestone and ending of an earlier attempt that is remembered, and its last word, by number.
    pub fn publications(&self) -> Vec<Arc<Publication>> {
        let held = self.history.iter().chain(&self.state).chain(&self.removed);
        let mut all: Vec<_> = held.cloned().collect();
        all.sort_by_key(|publication| publication.seq);
        all
    }

    /// Up to where milestones newer than `since` are missing in a [`Job::snapshot`]: those that are lost,
    /// and those older than the state. `None` if none is.
    pub fn left_out_since(&self, since: Seq) -> Option<Seq> {
        let state = self.state.as_ref().map_or(Seq::ZERO, |state| state.seq);
        let older = self.history.iter().filter(|each| each.seq < state);
        let last = older.map(|each| each.seq).max();
        let last = last.into_iter().chain([self.lost_to]).max();
        last.filter(|last| *last > since)
    }

    /// Notes that updates up to `seq` may have been missed.
    pub fn doubt(&mut self, seq: Seq) {
        self.known_from = self.known_from.max(seq);
        if !self.guard.is_terminal() {
            self.lost_to = self.lost_to.max(seq);
        }
    }

    /// What is told first to somebody who knows nothing: the state, and the milestones that are newer.
    pub fn snapshot(&self) -> Vec<Arc<Publication>> {
        let since = self.state.as_ref().map_or(Seq::ZERO, |state| state.seq);
        let newer = self.history.iter().filter(|each| each.seq > since);
        self.state.iter().chain(newer).cloned().collect()
    }

    /// Takes over what a copy rebuilt from the store knows, and keeps what only this one does: what the
    /// store has let go of since (an ending that the next one rolled up) is still owed to whoever was away.
    pub fn merge(&mut self, rebuilt: Self, bounds: &JobBounds) {
        let known = std::mem::replace(self, rebuilt);
        self.key = known.key;
        self.inherited = None;
        self.created_at = self.created_at.take().or(known.created_at);
        // What is from before the job was taken away is owed to nobody, though the store may have it still and have
        // let go of what took it away.
        self.removed_to = self.removed_to.max(known.removed_to);
        let from = self.removed_to;
        self.history.retain(|each| each.seq >= from);
        let Some(state) = self.state.clone() else {
            return;
        };
        let ending = known.state.filter(|state| state.is_terminal());
        let only_known = known.history.into_iter().chain(ending).chain(known.removed);
        let only_known: Vec<_> = only_known
            .filter(|each| each.seq > from && each.seq < state.seq && !self.holds(each.seq))
            .collect();
        if only_known.is_empty() {
            return;
        }
        let mut history: Vec<_> = self.history.drain(..).chain(only_known).collect();
        history.sort_by_key(|publication| publication.seq);
        for publication in history {
            self.remember(publication, bounds);
        }
    }

    /// What has to be kept for [`Job::restore`].
    pub fn memory(&self) -> JobMemory {
        JobMemory {
            known_from: self.known_from,
            lost_to: self.lost_to,
            first_at: self.first_at,
            publications: self.publications(),
        }
    }

    /// The job that was in memory before a restart. The latest of the publications is its state if it is
    /// one, else the latest state among them.
    ///
    /// # Errors
    /// When its state is not one that was accepted before.
    pub fn restore(
        key: JobKey,
        id: JobId,
        owner: Owner,
        memory: JobMemory,
    ) -> Result<Self, Refusal> {
        let mut job = Self::new(key, id, owner, memory.known_from);
        job.lost_to = memory.lost_to;
        job.first_at = memory.first_at;
        let mut history = memory.publications;
        if let Some(at) = history.iter().rposition(|each| each.is_state()) {
            let state = history.remove(at);
            job.parent.clone_from(&state.parent);
            job.state = Some(state);
        }
        if let Some(Body::State { json, .. }) = job.state().map(|state| &state.body) {
            let document = JobDocument::parse(json, &job.id, &job.owner)?;
            // The first state a guard sees is accepted.
            let verdict = job.guard.admit(&document);
            debug_assert!(verdict.is_accepted(), "nothing came before it");
            job.created_at = document.created_at().map(Box::from);
        }
        let state = job.state.as_ref().map_or(Seq::ZERO, |state| state.seq);
        if let Some(removed) = history.pop_if(|last| last.is_removal() && last.seq > state) {
            if let Body::Gone(Gone::Removed { attempt, .. }) = removed.body {
                job.guard = Guard::removed(attempt);
            }
            job.parent.clone_from(&removed.parent);
            job.state = None;
            job.removed = Some(removed);
            history.clear();
        }
        job.history = history.into();
        Ok(job)
    }

    fn remember(&mut self, publication: Arc<Publication>, bounds: &JobBounds) {
        self.history.push_back(publication);
        while self.history.len() > bounds.history {
            if let Some(forgotten) = self.history.pop_front() {
                self.known_from = self.known_from.max(forgotten.seq);
                self.lost_to = self.lost_to.max(forgotten.seq);
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
            first_at: (self.first_at).unwrap_or(worker_at.unwrap_or(place.stored_at)),
            received_at: place.received_at,
            worker_at,
            stored_at: place.stored_at,
            frames: Frames::default(),
        })
    }
}

/// Notes a running job's progress, and says how long it will take where its worker does not.
fn estimate(eta: &mut EtaEstimator, document: &mut JobDocument, now: Moment) {
    if document.status() != Status::Running {
        return;
    }
    if let Some(progress) = document.progress() {
        eta.observe(progress, now);
    }
    if let Some(left) = eta.estimate(now) {
        document.estimate_eta(left.as_secs_f64());
    }
}

/// Comparable within this process: the seed is its own.
fn hash(payload: &[u8]) -> u64 {
    static SEED: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);
    SEED.hash_one(payload)
}

#[cfg(test)]
mod tests;
