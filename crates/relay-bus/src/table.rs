//! What a node remembers: jobs, who is interested in which, and what is being repaired.
//!
//! The table is the hub's inside, held under one lock. It decides; the hub talks to stores and shards.
//! It knows shards as bits of a mask and nothing of connections.
//!
//! Invariants: a job in the table without a repair is complete above its `known_from`; a job that is
//! repaired is told nothing until the repair is done; a job somebody watches is never evicted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use relay_core::id::{JobId, Name, Owner};
use relay_core::job::{Job, JobBounds};
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{Body, JobKey, Publication};
use relay_core::tally::{Share, Tally};
use relay_core::topic::Topic;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::hub::{HubSettings, JoinRequest, Lookup, Survey};
use crate::seam::{Held, Incoming, What};
use relay_core::watcher::holds::{Hold, Repairing};

/// Which shards: bit `n` is shard `n`.
pub(crate) type Shards = u64;

/// What one repair or load is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum LoadKey {
    /// Everything stored about one job.
    Job(JobId),
    /// The last states of one owner's jobs.
    Owner(Owner),
    /// The last states of all jobs: which of them belong to a group is in their bodies.
    Everything,
}

/// What the store holds of what was asked for.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) key: LoadKey,
    /// Which reading of the bus it was asked in.
    pub(crate) life: u64,
    pub(crate) updates: Vec<Incoming>,
}

impl Answer {
    /// The highest number in it.
    pub(crate) fn newest(&self) -> Seq {
        let seqs = self.updates.iter().map(|update| update.seq);
        seqs.max().unwrap_or_default()
    }
}

/// Who waits for a job's repair.
#[derive(Debug)]
pub(crate) enum Waiter {
    Join(JoinRequest),
    Lookup(oneshot::Sender<Lookup>),
}

impl Waiter {
    /// Whether anybody still wants the answer, as far as that can be seen from here.
    pub(crate) fn waits(&self) -> bool {
        match self {
            Self::Join(_) => true,
            Self::Lookup(answer) => !answer.is_closed(),
        }
    }
}

/// Somebody who wants to know how the jobs of a user or a group stand, once they are known.
#[derive(Debug)]
pub(crate) struct SurveyRequest {
    pub(crate) topic: Topic,
    /// Whoever asked holds the other end; dropping that one means not to wait any more.
    pub(crate) answer: oneshot::Sender<Survey>,
}

impl SurveyRequest {
    /// Whether anybody still wants the answer.
    pub(crate) fn waits(&self) -> bool {
        !self.answer.is_closed()
    }
}

/// A job's updates being fetched from the store.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    /// Live updates that came meanwhile, in order.
    pub(crate) queued: Vec<Incoming>,
    pub(crate) waiters: Vec<Waiter>,
    /// Too much came meanwhile: fetch once more.
    pub(crate) again: bool,
    /// Whose job it is, where that is known though nothing else is.
    pub(crate) owner: Option<Owner>,
    /// What watchers had been told up to when the bus went away, if it began when the bus came back.
    pub(crate) missed_from: Option<Seq>,
}

/// One job and what the table knows around it.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// `None` while nothing is known of it, as of a job that is watched before it begins.
    pub(crate) job: Option<Box<Job>>,
    /// Shards with a watcher of `job:<id>`.
    pub(crate) shards: Shards,
    /// The last number on each of the job's subjects; `None` is the state's.
    pub(crate) subjects: SmallVec<[(Option<Name>, Seq); 1]>,
    pub(crate) repair: Option<Box<Repair>>,
    /// Up to where watchers were told that there is nothing; 0 if nobody was told so. What came after is
    /// news to them, all of it.
    pub(crate) nothing_until: Seq,
    /// What the job counts for in the tallies of the owner and the group it is indexed under.
    counted: Option<Share>,
    /// Only its last state was read from the store; whether that is the truth the guard has not seen.
    pub(crate) partial: bool,
    /// The owner and the parent under which it stands in the indices.
    indexed: Option<(Owner, Option<Name>)>,
    touched: u64,
    /// What `touched` was when the entry last queued for eviction.
    queued: u64,
    bytes: usize,
}

impl Entry {
    /// The last number seen on a subject of the job, 0 if none was.
    pub(crate) fn last(&self, what: &What) -> Seq {
        let name = subject_name(what);
        let found = self.subjects.iter().find(|(each, _)| each.as_ref() == name);
        found.map_or(Seq::ZERO, |(_, seq)| *seq)
    }

    /// The last number seen of the job.
    pub(crate) fn last_seq(&self) -> Seq {
        let seqs = self.subjects.iter().map(|(_, seq)| *seq);
        seqs.max().unwrap_or_default()
    }

    pub(crate) fn note(&mut self, what: &What, seq: Seq) {
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

    pub(crate) fn state(&self) -> Option<&Arc<Publication>> {
        self.job.as_deref().and_then(Job::state)
    }
}

fn subject_name(what: &What) -> Option<&Name> {
    match what {
        What::Milestone(name) => Some(name),
        What::State | What::Gone => None,
    }
}

/// The hub's memory.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) epoch: Epoch,
    /// The highest number seen.
    pub(crate) high: Seq,
    /// Below this a job that is not in the table may have had updates.
    pub(crate) known_from: Seq,
    pub(crate) stale: bool,
    /// Boxed: up to half of a map's places are empty.
    pub(crate) jobs: HashMap<JobId, Box<Entry>>,
    pub(crate) owners: HashMap<Owner, Members>,
    pub(crate) groups: HashMap<Name, Members>,
    /// Owners all of whose jobs are in the table.
    pub(crate) complete_owners: HashSet<Owner>,
    /// Whether all jobs are in the table.
    pub(crate) complete: bool,
    /// Joins that wait for an owner's jobs, or for all.
    pub(crate) waiting: HashMap<LoadKey, Vec<JoinRequest>>,
    /// Who waits for the same and only counts.
    pub(crate) surveys: HashMap<LoadKey, Vec<SurveyRequest>>,
    /// What the hub has to load next.
    pub(crate) to_load: VecDeque<LoadKey>,
    /// Jobs under repair that clients are owed something of, and whether the shards know whose they are.
    holds: HashMap<JobId, bool>,
    /// The comparison after the bus was away, while it is under way.
    pub(crate) catching_up: Option<CatchingUp>,
    /// Ranges of missing messages that are being fetched, and what came before the first of them.
    holes: u32,
    before_holes: Seq,
    /// Which reading of the bus this is: what was asked during an earlier one is asked again.
    pub(crate) life: u64,
    /// What of `holds` the shards have not been told.
    pub(crate) unsaid: Vec<Repairing>,
    /// Groups somebody watches.
    pub(crate) watched_groups: HashSet<Name>,
    /// Joins whose cursors are of a node that is ahead of this one, and until when they wait.
    pub(crate) ahead: VecDeque<(Moment, JoinRequest)>,
    /// What the store answered and the reader has not come as far as, and until when it waits.
    pub(crate) early: Vec<(Moment, Answer)>,
    /// The lowest number any of the two waits for.
    pub(crate) ahead_from: Seq,
    /// Joins of owners and groups that wait for the repair of single jobs.
    pub(crate) deferred: Vec<(HashSet<JobId>, JoinRequest)>,
    /// Tallies that changed since shards were told of them.
    pub(crate) tallies_changed: HashSet<Topic>,
    pub(crate) counts: HashMap<&'static str, u64>,
    pub(crate) bytes: usize,
    pub(crate) evicted: u64,
    /// How long the last update took from the bus to here.
    pub(crate) lag: Duration,
    /// Entries with a repair.
    pub(crate) repairs: usize,
    /// Jobs in the order in which they may be evicted, each with what `touched` was when it queued.
    eviction: VecDeque<(JobId, u64)>,
    next_key: u64,
    touches: u64,
    pub(crate) bounds: JobBounds,
    max_jobs: usize,
    max_bytes: usize,
}

/// After the bus was away nobody is told anything new until all that was missed is known.
#[derive(Debug)]
pub(crate) struct CatchingUp {
    /// The highest number that came before the bus went away.
    pub(crate) from: Seq,
    /// Watched jobs as they were held then. What has come live since may hide what was missed before it.
    pub(crate) watched: Vec<Held>,
    /// Loads that have to come in; `None` until the comparison of single jobs has.
    pub(crate) awaited: Option<HashSet<LoadKey>>,
}

/// The jobs of an owner or a group, and the shards that watch them.
#[derive(Debug, Default)]
pub(crate) struct Members {
    pub(crate) jobs: HashSet<JobId>,
    pub(crate) shards: Shards,
    /// How the jobs stand, taken together.
    pub(crate) tally: Tally,
    /// Shards that are told when that changes.
    pub(crate) tallied: Shards,
}

impl Table {
    pub(crate) fn new(settings: &HubSettings, epoch: Epoch) -> Self {
        Self {
            epoch,
            high: Seq::ZERO,
            known_from: Seq::ZERO,
            stale: false,
            jobs: HashMap::new(),
            owners: HashMap::new(),
            groups: HashMap::new(),
            complete_owners: HashSet::new(),
            complete: false,
            waiting: HashMap::new(),
            surveys: HashMap::new(),
            to_load: VecDeque::new(),
            holds: HashMap::new(),
            catching_up: None,
            holes: 0,
            before_holes: Seq::MAX,
            life: 0,
            unsaid: Vec::new(),
            watched_groups: HashSet::new(),
            ahead: VecDeque::new(),
            early: Vec::new(),
            ahead_from: Seq::MAX,
            deferred: Vec::new(),
            tallies_changed: HashSet::new(),
            counts: HashMap::new(),
            bytes: 0,
            evicted: 0,
            lag: Duration::ZERO,
            repairs: 0,
            eviction: VecDeque::new(),
            next_key: 0,
            touches: 0,
            bounds: JobBounds {
                history: settings.per_job,
                update_bytes: settings.update_bytes,
            },
            max_jobs: settings.max_jobs,
            max_bytes: settings.max_bytes,
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn new_key(&mut self) -> JobKey {
        self.next_key += 1;
        JobKey(self.next_key)
    }

    /// Notes that keys up to this one are in use.
    pub(crate) fn keep_key(&mut self, key: JobKey) {
        self.next_key = self.next_key.max(key.0);
    }

    /// The entry of a job, made if there is none.
    pub(crate) fn entry(&mut self, id: &JobId) -> &mut Entry {
        if !self.jobs.contains_key(id) {
            self.touches += 1;
            let (touched, queued) = (self.touches, self.touches);
            self.eviction.push_back((id.clone(), queued));
            self.jobs.insert(
                id.clone(),
                Box::new(Entry {
                    touched,
                    queued,
                    ..Entry::default()
                }),
            );
            if self.eviction.len() > 2 * self.jobs.len() + 1024 {
                let jobs = &self.jobs;
                let current = |id: &JobId, queued| jobs.get(id).is_some_and(|e| e.queued == queued);
                self.eviction.retain(|(id, queued)| current(id, *queued));
            }
        }
        self.jobs.entry(id.clone()).or_default()
    }

    /// Shards that watch a job through any topic, as far as its entry, owner and parent say.
    pub(crate) fn watchers(&self, id: &JobId, owner: &Owner, parent: Option<&Name>) -> Shards {
        let by_job = self.jobs.get(id).map_or(0, |entry| entry.shards);
        let by_owner = self.owners.get(owner).map_or(0, |members| members.shards);
        let by_group = parent
            .and_then(|parent| self.groups.get(parent))
            .map_or(0, |members| members.shards);
        by_job | by_owner | by_group
    }

    /// Shards that watch what `publication` is about.
    pub(crate) fn watchers_of(&self, publication: &Publication) -> Shards {
        self.watchers(
            &publication.job,
            &publication.owner,
            publication.parent.as_ref(),
        )
    }

    /// Enters a job's current state into the indices and accounts for its size.
    pub(crate) fn index(&mut self, id: &JobId) {
        self.touches += 1;
        let Some(entry) = self.jobs.get_mut(id) else {
            return;
        };
        entry.touched = self.touches;
        let Some(job) = &entry.job else {
            return;
        };
        let bytes = job.payload_bytes();
        self.bytes = self.bytes + bytes - entry.bytes;
        entry.bytes = bytes;
        let parent = job.state().and_then(|state| state.parent.as_ref());
        let share = job.state().and_then(|state| state.share());
        let stands = entry.indexed.as_ref();
        let stays =
            stands.is_some_and(|(owner, group)| *owner == job.owner && group.as_ref() == parent);
        if stays && entry.counted == share {
            return;
        }
        let place = (job.owner.clone(), parent.cloned());
        let before = entry.indexed.replace(place.clone());
        let counted = std::mem::replace(&mut entry.counted, share);
        self.tally(before.as_ref(), counted, Tally::remove);
        if !stays {
            self.unindex(id, before);
            member(&mut self.owners, &place.0, id);
            if let Some(parent) = &place.1 {
                member(&mut self.groups, parent, id);
            }
        }
        self.tally(Some(&place), share, Tally::add);
    }

    fn unindex(&mut self, id: &JobId, place: Option<(Owner, Option<Name>)>) {
        let Some((owner, parent)) = place else {
            return;
        };
        leave(&mut self.owners, &owner, id);
        if let Some(parent) = parent {
            leave(&mut self.groups, &parent, id);
        }
    }

    /// Puts a job's share into the tallies of its owner and its group, or takes it out.
    fn tally(
        &mut self,
        place: Option<&(Owner, Option<Name>)>,
        share: Option<Share>,
        change: fn(&mut Tally, Share),
    ) {
        let (Some((owner, parent)), Some(share)) = (place, share) else {
            return;
        };
        let of_owner = Topic::User(owner.clone());
        let of_group = parent.clone().map(Topic::Group);
        for topic in std::iter::once(of_owner).chain(of_group) {
            if let Some(members) = self.members(&topic) {
                change(&mut members.tally, share);
                if members.tallied != 0 {
                    self.tallies_changed.insert(topic);
                }
            }
        }
    }

    /// Whether nobody watches what an update is about, as far as it says that without being read.
    pub(crate) fn is_unwatched(&self, update: &Incoming) -> bool {
        let groups = &self.watched_groups;
        groups.is_empty() && self.watchers(&update.job, &update.owner, None) == 0
    }

    /// Whether any job of a user or a group is being repaired.
    pub(crate) fn has_repairs(&self, topic: &Topic) -> bool {
        let members = match topic {
            Topic::Job(_) => None,
            Topic::User(owner) => self.owners.get(owner),
            Topic::Group(parent) => self.groups.get(parent),
        };
        let mut jobs = members.iter().flat_map(|members| &members.jobs);
        jobs.any(|id| self.jobs.get(id).is_some_and(|it| it.repair.is_some()))
    }

    /// What is known under a user's or a group's topic.
    pub(crate) fn members(&mut self, topic: &Topic) -> Option<&mut Members> {
        match topic {
            Topic::Job(_) => None,
            Topic::User(owner) => self.owners.get_mut(owner),
            Topic::Group(parent) => self.groups.get_mut(parent),
        }
    }

    /// Keeps the table within its bounds; what is evicted can be loaded again where there is a store.
    pub(crate) fn evict(&mut self) {
        let mut chances = self.eviction.len();
        while (self.jobs.len() > self.max_jobs || self.bytes > self.max_bytes) && chances > 0 {
            chances -= 1;
            let Some((id, queued)) = self.eviction.pop_front() else {
                return;
            };
            let Some(entry) = self.jobs.get(&id).filter(|entry| entry.queued == queued) else {
                continue;
            };
            if entry.touched != queued || self.is_watched(&id) {
                // A second chance: it was used since it queued.
                if let Some(entry) = self.jobs.get_mut(&id) {
                    entry.queued = entry.touched;
                    self.eviction.push_back((id, entry.touched));
                }
                continue;
            }
            self.evicted += 1;
            self.known_from = self.known_from.max(
                self.jobs
                    .get(&id)
                    .map_or(Seq::ZERO, |entry| entry.last_seq()),
            );
            self.forget(&id);
        }
    }

    /// Whether a job must stay: somebody watches it, or it is being repaired.
    pub(crate) fn is_watched(&self, id: &JobId) -> bool {
        let Some(entry) = self.jobs.get(id) else {
            return false;
        };
        entry.repair.is_some()
            || match &entry.job {
                Some(job) => {
                    let parent = job.state().and_then(|state| state.parent.as_ref());
                    self.watchers(id, &job.owner, parent) != 0
                }
                None => entry.shards != 0,
            }
    }

    /// Drops what is known of a job; its watchers stay.
    pub(crate) fn forget(&mut self, id: &JobId) {
        let Some(entry) = self.jobs.get_mut(id) else {
            return;
        };
        self.bytes -= entry.bytes;
        entry.bytes = 0;
        entry.subjects.clear();
        entry.nothing_until = self.high;
        entry.partial = false;
        let known = entry.job.take().is_some();
        let place = entry.indexed.take();
        let counted = entry.counted.take();
        if entry.shards == 0 && entry.repair.is_none() {
            self.jobs.remove(id);
        }
        if known {
            self.complete = false;
        }
        if let Some((owner, _)) = &place {
            self.complete_owners.remove(owner);
        }
        self.tally(place.as_ref(), counted, Tally::remove);
        self.unindex(id, place);
    }

    /// Every job somebody watches, as it is held.
    pub(crate) fn watched(&self) -> Vec<Held> {
        let watched = self.jobs.iter().filter(|(id, _)| self.is_watched(id));
        watched
            .map(|(id, entry)| Held {
                owner: entry.job.as_ref().map(|job| job.owner.clone()),
                job: id.clone(),
                seq: entry.last_seq(),
            })
            .collect()
    }

    /// Starts fetching a job; whatever comes meanwhile waits in the repair.
    pub(crate) fn start_repair(&mut self, id: &JobId) -> &mut Repair {
        // What came live while the bus is compared says nothing of what was missed before it.
        let missed_from = self.catching_up.as_ref().map(|it| it.from);
        let entry = self.entry(id);
        if entry.repair.is_none() {
            entry.repair = Some(Box::default());
            self.repairs += 1;
            let entry = self.entry(id);
            let known = entry.job.as_ref().map(|job| job.owner.clone());
            let last = self
                .jobs
                .get(id)
                .map_or(Seq::ZERO, |entry| entry.last_seq());
            let last = last.min(missed_from.unwrap_or(Seq::MAX));
            self.to_load.push_back(LoadKey::Job(id.clone()));
            if known.is_some() {
                self.hold(id, known.as_ref(), last);
            }
        }
        let repair = self.entry(id).repair.get_or_insert_default();
        repair.missed_from = repair.missed_from.into_iter().chain(missed_from).min();
        repair
    }

    /// Ends a job's repair; what it held is the caller's to deal with.
    pub(crate) fn take_repair(&mut self, id: &JobId) -> Option<Repair> {
        let repair = self.jobs.get_mut(id)?.repair.take()?;
        self.repairs -= 1;
        Some(*repair)
    }

    /// Nobody who watches the job is told anything above `seq` until its repair is done: a cursor past it
    /// would say that what is being repaired has been told.
    pub(crate) fn hold(&mut self, id: &JobId, owner: Option<&Owner>, seq: Seq) {
        let repair = self.jobs.get_mut(id).and_then(|it| it.repair.as_mut());
        if let (Some(repair), Some(owner)) = (repair, owner) {
            repair.owner = Some(owner.clone());
        }
        let said = self.holds.get(id);
        if said.is_some_and(|owner_said| *owner_said || owner.is_none()) {
            return;
        }
        self.holds.insert(id.clone(), owner.is_some());
        let state = self.jobs.get(id).and_then(|entry| entry.state());
        self.unsaid.push(Repairing::Hold(Hold {
            job: id.clone(),
            owner: owner.cloned(),
            parent: state.and_then(|state| state.parent.clone()),
            seq,
        }));
    }

    /// Nobody is told anything above what is known now until [`Table::caught_up`].
    pub(crate) fn hold_all(&mut self) {
        // What was being fetched is compared with the rest.
        self.holes = 0;
        let before_holes = std::mem::replace(&mut self.before_holes, Seq::MAX);
        let mut from = self.high.min(before_holes);
        let mut watched = self.watched();
        for held in &mut watched {
            held.seq = held.seq.min(before_holes);
        }
        if let Some(before) = self.catching_up.take() {
            from = from.min(before.from);
            let still: HashMap<JobId, Seq> = before
                .watched
                .into_iter()
                .map(|held| (held.job, held.seq))
                .collect();
            for held in &mut watched {
                held.seq = still
                    .get(&held.job)
                    .map_or(held.seq, |seq| held.seq.min(*seq));
            }
        }
        self.catching_up = Some(CatchingUp {
            from,
            watched,
            awaited: None,
        });
        self.unsaid.push(Repairing::HoldAll(from));
    }

    /// A load came in. True if it was the last that was awaited, and all that was missed is known.
    pub(crate) fn caught_up(&mut self, loaded: Option<&LoadKey>) -> bool {
        let Some(awaited) = self.catching_up.as_mut().and_then(|it| it.awaited.as_mut()) else {
            return false;
        };
        if let Some(key) = loaded {
            awaited.remove(key);
        }
        let done = awaited.is_empty();
        if done {
            self.release_all();
        }
        done
    }

    /// Whoever waited for a comparison waits no more, unless messages are still being fetched.
    pub(crate) fn release_all(&mut self) {
        if self.catching_up.take().is_some() && self.holes == 0 {
            self.unsaid.push(Repairing::ReleaseAll);
        }
    }

    /// Messages above `after` are being fetched: whose they are is not known, so everybody waits for them.
    pub(crate) fn hold_for_hole(&mut self, after: Seq) {
        self.holes += 1;
        self.before_holes = self.before_holes.min(after);
        self.unsaid.push(Repairing::HoldAll(after));
    }

    /// Some of them came.
    pub(crate) fn close_hole(&mut self) {
        if self.holes == 1 {
            self.forget_holes();
        }
        self.holes = self.holes.saturating_sub(1);
    }

    /// Nothing is missing any more, or it will not come.
    pub(crate) fn forget_holes(&mut self) {
        self.before_holes = Seq::MAX;
        if std::mem::take(&mut self.holes) > 0 && self.catching_up.is_none() {
            self.unsaid.push(Repairing::ReleaseAll);
        }
    }

    /// The job's repair is done, unless another has begun.
    pub(crate) fn release(&mut self, id: &JobId) {
        let again = self
            .jobs
            .get(id)
            .is_some_and(|entry| entry.repair.is_some());
        if !again && self.holds.remove(id).is_some() {
            self.unsaid.push(Repairing::Release(id.clone()));
        }
    }

    /// Jobs being repaired of which nothing is known yet, and which may belong to `topic`: watchers of it
    /// are owed them.
    pub(crate) fn unknown_members(&self, topic: &Topic) -> impl Iterator<Item = &JobId> {
        self.holds.keys().filter(move |id| {
            let entry = self.jobs.get(*id).filter(|entry| entry.job.is_none());
            let repair = entry.and_then(|entry| entry.repair.as_ref());
            repair.is_some_and(|repair| match (topic, &repair.owner) {
                (Topic::User(owner), Some(of)) => owner == of,
                (Topic::User(_) | Topic::Group(_), _) => true,
                (Topic::Job(_), _) => false,
            })
        })
    }

    /// Whether any shard watches `topic`; its mask, to be changed.
    pub(crate) fn shards_of(&mut self, topic: &Topic) -> &mut Shards {
        match topic {
            Topic::Job(id) => &mut self.entry(id).shards,
            Topic::User(owner) => &mut self.owners.entry(owner.clone()).or_default().shards,
            Topic::Group(parent) => {
                self.watched_groups.insert(parent.clone());
                &mut self.groups.entry(parent.clone()).or_default().shards
            }
        }
    }

    /// A shard's last watcher of `topic` left.
    pub(crate) fn leave(&mut self, topic: &Topic, shard: usize) {
        *self.shards_of(topic) &= !(1 << shard);
        if let Some(members) = self.members(topic) {
            members.tallied &= !(1 << shard);
        }
        match topic {
            Topic::Job(id) => {
                let idle = self.jobs.get(id).is_some_and(|entry| {
                    entry.shards == 0 && entry.job.is_none() && entry.repair.is_none()
                });
                if idle {
                    self.jobs.remove(id);
                }
            }
            Topic::User(owner) => {
                prune(&mut self.owners, owner);
                if !self.owners.contains_key(owner) {
                    // Owners without jobs are as many as anybody cares to name.
                    self.complete_owners.remove(owner);
                }
            }
            Topic::Group(parent) => {
                if self
                    .groups
                    .get(parent)
                    .is_none_or(|members| members.shards == 0)
                {
                    self.watched_groups.remove(parent);
                }
                prune(&mut self.groups, parent);
            }
        }
    }

    /// Jobs that are over for longer than `ended`, or silent for longer than `silent`.
    pub(crate) fn expired(&self, now: WallTime, ended: i64, silent: i64) -> Vec<JobId> {
        let old = |state: &Arc<Publication>| {
            let stored_at = state.stored_at.as_unix_micros();
            let age = now.as_unix_micros().saturating_sub(stored_at);
            age > if state.is_terminal() { ended } else { silent }
        };
        let expired = self
            .jobs
            .iter()
            .filter(|(_, entry)| entry.repair.is_none() && entry.state().is_some_and(old));
        expired.map(|(id, _)| id.clone()).collect()
    }

    /// The publication that tells watchers a job left history.
    pub(crate) fn gone(&self, id: &JobId, seq: Seq) -> Option<Arc<Publication>> {
        let last = self.jobs.get(id)?.state()?;
        Some(Arc::new(Publication {
            seq,
            epoch: self.epoch,
            key: last.key,
            job: id.clone(),
            owner: last.owner.clone(),
            parent: last.parent.clone(),
            body: Body::Gone,
            received_at: last.received_at,
            worker_at: None,
            stored_at: last.stored_at,
            frames: relay_core::publication::Frames::default(),
        }))
    }
}

fn member(index: &mut HashMap<Name, Members>, name: &Name, id: &JobId) {
    match index.get_mut(name) {
        Some(members) if members.jobs.contains(id) => {}
        Some(members) => {
            members.jobs.insert(id.clone());
        }
        None => {
            let members = index.entry(name.clone()).or_default();
            members.jobs.insert(id.clone());
        }
    }
}

fn leave(index: &mut HashMap<Name, Members>, name: &Name, id: &JobId) {
    if let Some(members) = index.get_mut(name) {
        members.jobs.remove(id);
    }
    prune(index, name);
}

fn prune(index: &mut HashMap<Name, Members>, name: &Name) {
    let idle = index
        .get(name)
        .is_some_and(|members| members.jobs.is_empty() && members.shards == 0);
    if idle {
        index.remove(name);
    }
}
