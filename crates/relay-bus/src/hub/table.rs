//! What a node remembers: jobs, who is interested in which, and what is being repaired.
//!
//! The table is the hub's inside, held under one lock. It decides; the hub talks to stores and shards.
//! It knows shards as bits of a mask and nothing of connections.
//!
//! Itself it holds the jobs, and up to where the bus has been read. What belongs to them lies in rooms of its own:
//! whose they are (`index`), which of them share an id (`namesakes`), which of them make room for others (`eviction`), what is loaded and who waits for it
//! (`loads`), what waits for the reader (`ahead`), what clients are not sent yet (`holdback`), and what came too late
//! (`late`).
//!
//! Invariants: a job in the table without a repair is complete above its `known_from`; a job that is
//! repaired is told nothing until the repair is done; a job somebody watches is never evicted.

mod ahead;
mod entry;
mod eviction;
mod holdback;
mod index;
mod late;
mod loads;
mod namesakes;

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use relay_core::id::{JobId, JobName, JobNameRef, Name, Named, Owner};
use relay_core::job::{Job, JobBounds};
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Position, Seq};
use relay_core::publication::{Body, Gone, JobKey, Publication};
use relay_core::topic::Topic;

pub(super) use ahead::{Ahead, Early};
pub(super) use entry::{Entry, Repair};
pub(super) use holdback::Holdback;
pub(super) use index::Index;
pub(super) use late::Late;
pub(super) use loads::{Answer, Deferred, Found, LoadKey, Loads, SurveyRequest};
pub(super) use namesakes::{MOST as MOST_NAMESAKES, Namesakes};

use crate::seam::{Held, Incoming};
use eviction::Eviction;

/// Which shards: bit `n` is shard `n`.
pub(super) type Shards = u64;

/// Jobs up to which all invariants are asserted after every change of a debug build.
const CHECKED_JOBS: usize = 64;

/// How much a table holds.
#[derive(Debug, Clone)]
pub(super) struct TableBounds {
    /// Of each job.
    pub(super) job: JobBounds,
    /// Jobs.
    pub(super) jobs: usize,
    /// Bytes of their payloads.
    pub(super) bytes: usize,
}

/// The hub's memory.
#[derive(Debug)]
pub(super) struct Table {
    epoch: Epoch,
    /// The highest number seen.
    high: Seq,
    /// Below this a job that is not in the table may have had updates.
    known_from: Seq,
    /// Which reading of the bus this is: what was asked during an earlier one is asked again. 0 before the first.
    life: u64,
    is_stale: bool,
    /// Whether there is a store that may hold what is not here.
    remembers: bool,
    /// How long the last update took from the bus to here.
    lag: Duration,
    bounds: JobBounds,
    /// Boxed: up to half of a map's places are empty.
    jobs: HashMap<JobName, Box<Entry>>,
    /// Entries with a repair.
    repairs: usize,
    next_key: u64,
    counts: HashMap<&'static str, u64>,
    /// Repairs that are over, by what came of them.
    repaired: HashMap<&'static str, u64>,
    /// Endings that were stored again, by what came of it.
    endings: HashMap<&'static str, u64>,
    eviction: Eviction,
    /// Whose the jobs are that have an id, and who waits for one of them.
    pub(super) names: Namesakes,
    pub(super) index: Index,
    pub(super) loads: Loads,
    pub(super) ahead: Ahead,
    pub(super) holdback: Holdback,
    pub(super) late: Late,
}

impl Table {
    pub(super) fn new(bounds: TableBounds, epoch: Epoch, is_stale: bool, remembers: bool) -> Self {
        Self {
            epoch,
            high: Seq::ZERO,
            known_from: Seq::ZERO,
            life: 0,
            is_stale,
            remembers,
            lag: Duration::ZERO,
            bounds: bounds.job,
            jobs: HashMap::new(),
            repairs: 0,
            next_key: 0,
            counts: HashMap::new(),
            repaired: HashMap::new(),
            endings: HashMap::new(),
            eviction: Eviction::new(bounds.jobs, bounds.bytes),
            names: Namesakes::default(),
            index: Index::default(),
            loads: Loads::default(),
            ahead: Ahead::default(),
            holdback: Holdback::default(),
            late: Late::default(),
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest number seen.
    pub(super) fn high(&self) -> Seq {
        self.high
    }

    /// Which life of the bus this is, and the highest number seen in it.
    pub(super) fn position(&self) -> Position {
        Position::new(self.epoch, self.high)
    }

    /// Below this a job that is not in the table may have had updates.
    pub(super) fn known_from(&self) -> Seq {
        self.known_from
    }

    /// Which reading of the bus this is; 0 before the first.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// Whether the bus is away, so that what is known may be out of date.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// How long the last update took from the bus to here.
    pub(super) fn lag(&self) -> Duration {
        self.lag
    }

    /// What every job is bounded by.
    pub(super) fn bounds(&self) -> JobBounds {
        self.bounds.clone()
    }

    /// The bus has come as far as this number.
    pub(super) fn saw(&mut self, seq: Seq) {
        self.high = self.high.max(seq);
    }

    pub(super) fn set_lag(&mut self, lag: Duration) {
        self.lag = lag;
    }

    /// True if that is news.
    pub(super) fn set_stale(&mut self, is_stale: bool) -> bool {
        std::mem::replace(&mut self.is_stale, is_stale) != is_stale
    }

    /// The bus is read anew. True if it is the first time.
    pub(super) fn begin_life(&mut self) -> bool {
        self.life += 1;
        self.life == 1
    }

    /// The bus started anew: nothing known before counts, and no number does.
    pub(super) fn begin_epoch(&mut self, epoch: Epoch) {
        for id in self.ids() {
            self.forget(&id);
        }
        for entry in self.jobs.values_mut() {
            entry.nothing_until = Seq::ZERO;
        }
        self.epoch = epoch;
        self.high = Seq::ZERO;
        self.known_from = Seq::ZERO;
        self.names.doubt_all();
        self.holdback.forget_holes();
        self.holdback.release_all();
    }

    /// Goes on from another life of this table.
    pub(super) fn begin_at(&mut self, position: Position, known_from: Seq) {
        self.epoch = position.epoch;
        self.high = position.seq;
        self.known_from = known_from;
    }

    /// A job that is not in the table may have had updates up to `seq`.
    pub(super) fn doubt_below(&mut self, seq: Seq) {
        self.known_from = self.known_from.max(seq);
    }

    /// A job that is not in the table may have had updates up to now.
    pub(super) fn doubt_all(&mut self) {
        self.known_from = self.high;
        self.names.doubt_all();
    }

    /// Drops what is known of jobs that nobody watches.
    pub(super) fn forget_unwatched(&mut self) {
        for id in self.ids() {
            if !self.is_watched(&id) {
                self.forget(&id);
            }
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// What became of updates, in no order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(what, count)| (*what, *count))
    }

    pub(super) fn count_repair(&mut self, result: &'static str) {
        *self.repaired.entry(result).or_default() += 1;
    }

    /// Repairs that are over, by what came of them, in no order.
    pub(super) fn repaired(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.repaired.iter().map(|(what, count)| (*what, *count))
    }

    pub(super) fn count_ending(&mut self, result: &'static str) {
        *self.endings.entry(result).or_default() += 1;
    }

    /// Endings that were stored again, by what came of it, in no order.
    pub(super) fn endings(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.endings.iter().map(|(what, count)| (*what, *count))
    }

    /// Jobs in memory, known or only watched.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Bytes of their payloads.
    pub(super) fn bytes(&self) -> usize {
        self.eviction.bytes()
    }

    /// Jobs being repaired.
    pub(super) fn repairs(&self) -> usize {
        self.repairs
    }

    /// Jobs evicted since the start.
    pub(super) fn evicted(&self) -> u64 {
        self.eviction.evicted()
    }

    pub(super) fn new_key(&mut self) -> JobKey {
        self.next_key += 1;
        JobKey(self.next_key)
    }

    /// Notes that keys up to this one are in use.
    pub(super) fn keep_key(&mut self, key: JobKey) {
        self.next_key = self.next_key.max(key.0);
    }

    /// The names of all jobs.
    pub(super) fn ids(&self) -> Vec<JobName> {
        self.jobs.keys().cloned().collect()
    }

    pub(super) fn get(&self, id: &JobName) -> Option<&Entry> {
        self.jobs.get(id).map(Box::as_ref)
    }

    /// As [`Table::get`], by names that stand apart.
    pub(super) fn get_ref(&self, name: JobNameRef<'_>) -> Option<&Entry> {
        self.jobs.get(&name).map(Box::as_ref)
    }

    /// The job, if anything is known of it.
    pub(super) fn job(&self, id: &JobName) -> Option<&Job> {
        self.get(id)?.job.as_deref()
    }

    /// To be changed; what a job's state is or weighs is entered with [`Table::enter`].
    pub(super) fn get_mut(&mut self, id: &JobName) -> Option<&mut Entry> {
        self.jobs.get_mut(id).map(Box::as_mut)
    }

    /// To be changed; what a job's state is or weighs is entered with [`Table::enter`].
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.jobs.values_mut().map(Box::as_mut)
    }

    /// The entry of a job, made if there is none.
    pub(super) fn entry(&mut self, id: &JobName) -> &mut Entry {
        if !self.jobs.contains_key(id) {
            let entry = Entry::new(self.eviction.enter(id));
            self.jobs.insert(id.clone(), Box::new(entry));
            self.names.enter(id);
            let jobs = &self.jobs;
            self.eviction.tidy(jobs.len(), |place| {
                jobs.get(&place.id).is_some_and(|it| it.turn.is_at(place))
            });
        }
        self.jobs.entry(id.clone()).or_default()
    }

    /// Shards that watch a job through any topic, as far as its entry, owner and parent say.
    pub(super) fn watchers(&self, name: JobNameRef<'_>, parent: Option<&Name>) -> Shards {
        let by_job = self.jobs.get(&name).map_or(0, |entry| entry.shards);
        by_job | self.names.watchers(name.id) | self.index.watchers(name.owner, parent)
    }

    /// Shards that watch what `publication` is about.
    pub(super) fn watchers_of(&self, publication: &Publication) -> Shards {
        self.watchers(publication.name_ref(), publication.parent.as_ref())
    }

    /// Enters a job's current state into the index and accounts for its size.
    pub(super) fn enter(&mut self, id: &JobName) {
        let Some(entry) = self.jobs.get_mut(id) else {
            return;
        };
        let entry = entry.as_mut();
        self.eviction.touch(&mut entry.turn);
        if let Some(job) = &entry.job {
            self.eviction.weigh(&mut entry.turn, job.payload_bytes());
        }
        entry.list(&mut self.index);
    }

    /// Whether nobody watches what an update is about, as far as it says that without being read.
    pub(super) fn is_unwatched(&self, update: &Incoming) -> bool {
        !self.index.watches_groups() && self.watchers(update.job.as_ref(), None) == 0
    }

    /// Keeps the table within its bounds; what is evicted can be loaded again where there is a store.
    pub(super) fn evict(&mut self) {
        let mut chances = self.eviction.places();
        while self.eviction.is_full(self.jobs.len()) && chances > 0 {
            chances -= 1;
            let Some(place) = self.eviction.next() else {
                return;
            };
            let id = &place.id;
            let Some(entry) = self.jobs.get(id).filter(|entry| entry.turn.is_at(&place)) else {
                continue;
            };
            if entry.turn.was_used() || self.is_watched(id) {
                // A second chance: it was used since it queued.
                if let Some(entry) = self.jobs.get_mut(id) {
                    self.eviction.queue(place.id, &mut entry.turn);
                }
                continue;
            }
            self.eviction.count();
            if entry.job.is_some() {
                let last = entry.last_seq();
                self.doubt_below(last);
            }
            self.forget(id);
        }
    }

    /// Whether a job must stay: somebody watches it, or it is being repaired.
    pub(super) fn is_watched(&self, id: &JobName) -> bool {
        let Some(entry) = self.jobs.get(id) else {
            return false;
        };
        entry.repair.is_some()
            || match &entry.job {
                Some(job) => self.watchers(id.as_ref(), job.group()) != 0,
                None => entry.shards != 0,
            }
    }

    /// Drops what is known of a job; its watchers stay.
    pub(super) fn forget(&mut self, id: &JobName) {
        let Some(entry) = self.jobs.get_mut(id) else {
            return;
        };
        self.eviction.weigh(&mut entry.turn, 0);
        entry.forget_numbers();
        entry.nothing_until = self.high;
        let known = entry.job.take().is_some();
        let listing = std::mem::take(&mut entry.listing);
        if entry.is_idle() {
            self.drop_entry(id);
        }
        if known {
            self.index.doubt_some();
            self.names.doubt(&id.id);
        }
        self.index.remove(id, listing);
    }

    /// Drops the entry of a job if nothing would be lost with it.
    pub(super) fn prune(&mut self, id: &JobName) {
        if self.jobs.get(id).is_some_and(|entry| entry.is_blank()) {
            self.drop_entry(id);
        }
    }

    /// The one place in which entries end.
    fn drop_entry(&mut self, id: &JobName) {
        if self.jobs.remove(id).is_some() {
            self.names.remove(id);
        }
    }

    /// Every job somebody watches, as it is held; and every id for which somebody waits who did not say whose.
    pub(super) fn watched(&self) -> Vec<Held> {
        let watched = self.jobs.iter().filter(|(name, _)| self.is_watched(name));
        let jobs = watched.map(|(name, entry)| Held {
            job: name.clone().into(),
            seq: entry.compared_to(),
        });
        let bare = self.names.awaited().map(|(id, listed)| {
            let owners = self.names.owners(id).iter();
            let names = owners.map(|owner| JobNameRef { owner, id });
            let known = names.filter_map(|name| Some(self.jobs.get(&name)?.compared_to()));
            Held {
                job: Named::bare(id.clone()),
                seq: known.chain([listed]).max().unwrap_or_default(),
            }
        });
        jobs.chain(bare).collect()
    }

    /// The owners that may have a job called so, as far as is known here: of those of whom it is known that there is
    /// nothing to be told, none.
    pub(super) fn owners(&self, id: &JobId) -> impl Iterator<Item = &Owner> {
        self.names.owners(id).iter().filter(move |owner| {
            let entry = self.jobs.get(&JobNameRef { owner, id });
            match entry {
                Some(entry) if entry.job.is_some() || entry.repair.is_some() => true,
                Some(entry) => self.remembers && !entry.is_read(),
                None => self.remembers,
            }
        })
    }

    /// The jobs that are at hand and called so.
    pub(super) fn named(&self, id: &JobId) -> Vec<JobName> {
        let owners = self.names.owners(id).iter();
        owners
            .map(|owner| JobName::new(owner.clone(), id.clone()))
            .filter(|name| self.jobs.contains_key(name))
            .collect()
    }

    /// Whether a job of this owner is known, or about to be.
    pub(super) fn has(&self, name: JobNameRef<'_>) -> bool {
        let entry = self.jobs.get(&name);
        entry.is_some_and(|entry| entry.job.is_some() || entry.repair.is_some())
    }

    /// Starts fetching a job; whatever comes meanwhile waits in the repair. One that is repaired over and over has
    /// to wait for it, a little longer each time.
    pub(super) fn start_repair(&mut self, id: &JobName, now: Moment) -> &mut Repair {
        // What came live while the bus is compared says nothing of what was missed before it.
        let missed_from = self.holdback.missed_from();
        let entry = self.entry(id);
        if entry.repair.is_none() {
            entry.repair = Some(Box::default());
            let is_known = entry.job.is_some();
            let last = entry.last_seq().min(missed_from.unwrap_or(Seq::MAX));
            let due = entry.repaired.next(now);
            self.repairs += 1;
            let key = LoadKey::Job(id.clone());
            match due {
                Some(due) => self.loads.ask_later(key, due),
                None => self.loads.ask(key),
            }
            if is_known {
                self.hold(id, last);
            }
            self.relist(id);
        }
        let repair = self.entry(id).repair.get_or_insert_default();
        repair.missed_from = repair.missed_from.into_iter().chain(missed_from).min();
        repair
    }

    /// Ends a job's repair; what it held is the caller's to deal with.
    pub(super) fn take_repair(&mut self, id: &JobName) -> Option<Repair> {
        let repair = self.jobs.get_mut(id)?.repair.take()?;
        self.repairs -= 1;
        self.relist(id);
        Some(*repair)
    }

    /// A job's repair begins or ends.
    fn relist(&mut self, id: &JobName) {
        if let Some(entry) = self.jobs.get_mut(id) {
            entry.list(&mut self.index);
        }
    }

    /// Nobody who watches the job is told anything above `seq` until its repair is done: a cursor past it
    /// would say that what is being repaired has been told.
    pub(super) fn hold(&mut self, id: &JobName, seq: Seq) {
        let job = self.jobs.get(id).and_then(|entry| entry.job.as_deref());
        let parent = || job.and_then(|job| job.group().cloned());
        self.holdback.hold(id, seq, parent);
    }

    /// The job's repair is done, unless another has begun.
    pub(super) fn release(&mut self, id: &JobName) {
        let entry = self.jobs.get(id);
        if entry.is_none_or(|entry| entry.repair.is_none()) {
            self.holdback.release(id);
        }
    }

    /// The bus was away: nobody is told anything above what is known now until what was missed is.
    pub(super) fn hold_all(&mut self) {
        let watched = self.watched();
        self.holdback.hold_all(self.high, watched);
    }

    /// Jobs being repaired of which nothing is known yet, and which may belong to `topic`: watchers of it
    /// are owed them.
    pub(super) fn unknown_members(&self, topic: &Topic) -> impl Iterator<Item = &JobName> {
        self.holdback.jobs().filter(move |id| {
            let entry = self.jobs.get(*id).filter(|entry| entry.job.is_none());
            let is_repaired = entry.is_some_and(|entry| entry.repair.is_some());
            is_repaired
                && match topic {
                    Topic::User(owner) => id.owner == *owner,
                    Topic::Group(group) => group.owner.as_ref().is_none_or(|it| *it == id.owner),
                    Topic::Job(_) => false,
                }
        })
    }

    /// A shard watches `topic`.
    pub(super) fn watch(&mut self, topic: &Topic, shard: usize) {
        match topic {
            Topic::Job(named) => match named.exact() {
                Some(name) => self.entry(&name).shards |= 1 << shard,
                None => self.names.watch(&named.id, shard),
            },
            Topic::User(_) | Topic::Group(_) => self.index.watch(topic, shard),
        }
    }

    /// A shard's last watcher of `topic` left.
    pub(super) fn leave(&mut self, topic: &Topic, shard: usize) {
        let Topic::Job(named) = topic else {
            self.index.leave(topic, shard);
            return;
        };
        let Some(name) = named.exact() else {
            self.names.leave(&named.id, shard);
            return;
        };
        let Some(entry) = self.jobs.get_mut(&name) else {
            return;
        };
        entry.shards &= !(1 << shard);
        self.prune(&name);
    }

    /// Jobs that are over for longer than `ended`, or silent for longer than `silent`.
    pub(super) fn expired(&self, now: WallTime, ended: i64, silent: i64) -> Vec<JobName> {
        let old = |state: &Arc<Publication>| {
            let stored_at = state.stored_at.as_unix_micros();
            let age = now.as_unix_micros().saturating_sub(stored_at);
            age > if state.is_last() { ended } else { silent }
        };
        let expired = self
            .jobs
            .iter()
            .filter(|(_, entry)| entry.repair.is_none() && entry.last_word().is_some_and(old));
        expired.map(|(id, _)| id.clone()).collect()
    }

    /// The publication that tells watchers a job left history.
    pub(super) fn gone(&self, id: &JobName, seq: Seq) -> Option<Arc<Publication>> {
        let last = self.jobs.get(id)?.state()?;
        let status = match last.body {
            Body::State { status, .. } => Some(status),
            Body::Milestone { .. } | Body::Gone(_) => None,
        };
        Some(Arc::new(Publication {
            seq,
            epoch: self.epoch,
            key: last.key,
            job: id.id.clone(),
            owner: id.owner.clone(),
            parent: last.parent.clone(),
            body: Body::Gone(Gone::Expired { last: status }),
            first_at: last.first_at,
            received_at: last.received_at,
            worker_at: None,
            stored_at: last.stored_at,
            frames: relay_core::publication::Frames::default(),
        }))
    }

    /// Asserts the invariants in a debug build, here and in every room: in a large table only what costs nothing.
    pub(super) fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.holdback.check();
        if self.jobs.len() > CHECKED_JOBS {
            return;
        }
        let entries = || self.jobs.iter();
        let is_known = |id: &JobName| self.jobs.get(id).is_some_and(|it| it.job.is_some());
        self.index.check(is_known);
        self.loads.check();
        self.ahead.check();
        self.names.check(entries().map(|(name, _)| name));
        self.eviction
            .check(entries().map(|(id, entry)| (id, &entry.turn)));
        let repairs = entries().filter(|(_, entry)| entry.repair.is_some());
        debug_assert_eq!(repairs.count(), self.repairs);
        for (id, entry) in entries() {
            entry.check(id);
        }
        for id in self.holdback.jobs() {
            let is_repaired = self.jobs.get(id).is_some_and(|it| it.repair.is_some());
            debug_assert!(is_repaired, "{id} holds clients, and nothing releases them");
        }
    }
}
