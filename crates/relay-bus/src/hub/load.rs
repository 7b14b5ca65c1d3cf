//! Fetching from the store: jobs not in memory, holes, and the comparison after the bus was away.
//!
//! Everything fetched is run through the guard from its first update, so that every node comes to the
//! same state whatever it saw live.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use relay_core::id::{JobId, Name};
use relay_core::job::{Job, Place};
use relay_core::position::Seq;
use relay_core::publication::Publication;
use relay_core::watcher::beginning::LeftOut;
use relay_core::watcher::outbox::GapReason;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::intake::{judge, parent};
use super::table::{Answer, Entry, LoadKey, Table, Waiter};
use super::tally::TALLY_INTERVAL;
use super::{Hub, Lookup, SNAPSHOT_JOBS};
use crate::inbox::{LostMilestones, Message};
use crate::seam::{Incoming, Store, StoreError, What};

/// Requests to the store, and answers that wait for the reader, at a time.
const IN_FLIGHT: usize = 64;
/// How long a request that failed waits before it is made again.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How often expired jobs are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// How often what waits for this node to catch up is looked at.
const PATIENCE_INTERVAL: Duration = Duration::from_millis(500);

/// What came of one request, and of which reading of the bus it was.
#[derive(Debug)]
pub(super) enum Loaded {
    Updates(LoadKey, u64, Result<Vec<Incoming>, StoreError>),
    Changed(u64, Result<Vec<JobId>, StoreError>),
}

impl Hub {
    /// Does what the table asks for, until the future is dropped. Run it once, on the bus's runtime.
    pub async fn run(self: Arc<Self>) {
        let mut in_flight: FuturesUnordered<BoxFuture<'_, Loaded>> = FuturesUnordered::new();
        let mut resync = interval(self.settings.resync_interval);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut expiry = interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = interval(PATIENCE_INTERVAL);
        patience.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tallies = interval(TALLY_INTERVAL);
        tallies.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut comparing = false;
        loop {
            // Before the bus is read there is no epoch that an answer would belong to.
            let reads = self.table().life() > 0;
            if let Some(store) = self.backing.memory().filter(|_| reads) {
                if !comparing && std::mem::take(&mut *self.resync.lock()) {
                    comparing = true;
                    in_flight.push(Box::pin(self.compare(store)));
                }
                while let Some(key) = self.next_load(in_flight.len()) {
                    in_flight.push(Box::pin(self.load(store, key)));
                }
            }
            tokio::select! {
                () = self.work.notified() => {}
                Some(loaded) = in_flight.next() => {
                    comparing &= !matches!(loaded, Loaded::Changed(..));
                    self.finish(loaded);
                }
                _ = resync.tick() => *self.resync.lock() = true,
                _ = expiry.tick() => self.expire(),
                _ = tallies.tick() => self.tell_tallies(),
                _ = patience.tick() => self.admit_ahead(&mut self.table()),
            }
        }
    }

    /// What to ask the store for next, if there is room for its answer.
    fn next_load(&self, in_flight: usize) -> Option<LoadKey> {
        let mut table = self.table();
        let room = in_flight + table.ahead.answers() < IN_FLIGHT;
        // Only then is the table changed.
        if room { table.loads.next() } else { None }
    }

    async fn load(&self, store: &Arc<dyn Store>, key: LoadKey) -> Loaded {
        let (life, high) = {
            let table = self.table();
            (table.life(), table.high())
        };
        let answer = match &key {
            LoadKey::Job(job) => store.load_job(job.clone(), high).await,
            LoadKey::Owner(owner) => {
                store
                    .load_last_states(Some(owner.clone()), high, SNAPSHOT_JOBS)
                    .await
            }
            LoadKey::Everything => {
                store
                    .load_last_states(None, high, self.settings.max_jobs)
                    .await
            }
        };
        if let Err(error) = &answer {
            tracing::debug!(?key, %error, "the store did not answer; asking again");
            sleep(RETRY_AFTER).await;
        }
        Loaded::Updates(key, life, answer)
    }

    async fn compare(&self, store: &Arc<dyn Store>) -> Loaded {
        let (life, watched) = {
            let table = self.table();
            let watched = match table.holdback.watched() {
                Some(watched) => watched.to_vec(),
                None => table.watched(),
            };
            (table.life(), watched)
        };
        let changed = store.changed(watched).await;
        if changed.is_err() {
            sleep(RETRY_AFTER).await;
        }
        Loaded::Changed(life, changed)
    }

    pub(super) fn finish(&self, loaded: Loaded) {
        let mut table = self.table();
        match loaded {
            Loaded::Changed(life, Ok(changed)) if life == table.life() => {
                self.compared(&mut table, changed);
            }
            Loaded::Changed(..) => {
                *self.resync.lock() = true;
                self.work.notify_one();
            }
            Loaded::Updates(key, life, Ok(updates)) if life == table.life() => {
                let answer = Answer { key, life, updates };
                self.answered(&mut table, answer);
            }
            Loaded::Updates(key, life, Err(error @ StoreError::TooMany(_)))
                if life == table.life() =>
            {
                // It would be the same again: whoever waits gets what is known, and no claim that it is all.
                tracing::warn!(?key, %error, "not every job can be listed");
                self.finish_many(&mut table, key, None);
            }
            Loaded::Updates(key, _, _) => table.loads.ask(key),
        }
    }

    pub(super) fn take_answer(&self, table: &mut Table, Answer { key, updates, .. }: Answer) {
        match key {
            LoadKey::Job(id) => self.finish_job(table, &id, updates),
            LoadKey::Owner(_) | LoadKey::Everything => self.finish_many(table, key, Some(updates)),
        }
    }

    /// The store was compared with what is watched: what changed is repaired, the rest is up to date.
    fn compared(&self, table: &mut Table, changed: Vec<JobId>) {
        let missed_from = table.holdback.missed_from();
        for id in changed {
            table.count("resynced");
            table.start_repair(&id);
            if let Some(from) = missed_from {
                // Also where nothing was known of it: its watchers are owed its first word.
                table.hold(&id, None, from);
            }
        }
        // Whoever watches all jobs of a user must hear of one whose only update was missed.
        let keys = table.index.watched_loads();
        for key in &keys {
            table.loads.ask(key.clone());
        }
        table.holdback.compared(keys);
        self.tell_holds(table);
        if !table.holdback.is_comparing() {
            self.freshen(table);
        }
        self.work.notify_one();
    }

    /// The last states of many jobs came: those not in memory are remembered, those newer are repaired.
    fn finish_many(&self, table: &mut Table, key: LoadKey, updates: Option<Vec<Incoming>>) {
        let limit = match key {
            LoadKey::Owner(_) => SNAPSHOT_JOBS,
            LoadKey::Everything | LoadKey::Job(_) => self.settings.max_jobs,
        };
        let whole = updates.as_ref().is_some_and(|all| all.len() < limit);
        let waited_for = table.loads.is_joined(&key);
        let surveyed = table.loads.is_surveyed(&key);
        let missed_from = table.holdback.missed_from();
        for update in updates.into_iter().flatten() {
            let entry = table.get(&update.job);
            let repairing = entry.is_some_and(|entry| entry.repair.is_some());
            let known = entry.filter(|entry| entry.job.is_some());
            match known.map(|entry| entry.last(&What::State)) {
                Some(_) if repairing => {}
                Some(last) if last >= update.seq => {}
                Some(_) => {
                    table.start_repair(&update.job);
                }
                // Found by a comparison, not by a join: those who watch have not been told of it; whoever only
                // counts is told of none. Or on its way already: its last state must not stand in front of
                // what is being fetched, and whoever joins waits for that.
                None if repairing
                    || missed_from.is_some()
                    || !(waited_for || surveyed && table.is_unwatched(&update)) =>
                {
                    table.start_repair(&update.job);
                    let from = missed_from.unwrap_or(update.seq.before());
                    table.hold(&update.job, Some(&update.owner), from);
                }
                None => {
                    if self.remember(table, &update).is_ok()
                        && let Some(entry) = table.get_mut(&update.job)
                        && let Some(job) = &mut entry.job
                    {
                        entry.partial = true;
                        // Of what was before its last state this says nothing, wherever a cursor stands.
                        job.doubt(update.seq);
                    }
                }
            }
        }
        if whole {
            table.index.complete(&key, self.settings.max_jobs);
        }
        for mut request in table.loads.take_joins(&key) {
            if key == LoadKey::Everything && !whole {
                // A member that is not in the table may have had updates since the cursor.
                request.cursor = None;
            }
            self.answer_many(table, request);
        }
        self.answer_surveys(table, &key);
        table.evict();
        if table.holdback.caught_up(&key) {
            self.freshen(table);
        }
        self.tell_holds(table);
        self.work.notify_one();
    }

    /// All that is stored of one job came: it becomes what is known, and watchers are told what they
    /// have not heard.
    fn finish_job(&self, table: &mut Table, id: &JobId, updates: Vec<Incoming>) {
        let Some(repair) = table.take_repair(id) else {
            return;
        };
        if repair.again {
            let again = table.start_repair(id);
            again.waiters = repair.waiters;
            again.queued = repair.queued;
            again.owner = repair.owner;
            again.missed_from = repair.missed_from;
            self.work.notify_one();
            return;
        }
        let rebuilt = self.rebuild(table, id, &updates);
        self.adopt(table, id, rebuilt, &updates, repair.missed_from);
        for incoming in repair.queued {
            let newer = table
                .get(id)
                .is_none_or(|entry| incoming.seq > entry.last(&incoming.what));
            if newer && let Err(declined) = self.take(table, &incoming) {
                self.decline(table, &incoming, &declined);
            }
        }
        table.release(id);
        self.tell_holds(table);
        let stale = table.is_stale();
        for waiter in repair.waiters {
            match waiter {
                Waiter::Join(request) => self.answer_job(table, id, request),
                Waiter::Lookup(answer) => {
                    let state = table.get(id).and_then(|entry| entry.state().cloned());
                    // Whoever asked may have stopped waiting.
                    drop(answer.send(Lookup { state, stale }));
                }
            }
        }
        self.release_deferred(table, id);
        table.evict();
    }

    /// The job as its stored updates tell it; `None` if none of them is acceptable.
    ///
    /// A milestone published between an ending and the next attempt is declined by whoever sees it live;
    /// once the next ending has rolled the first one up, nobody can tell any more that it came after an
    /// ending, and it is accepted. It did happen, so it is told rather than looked for.
    fn rebuild(&self, table: &mut Table, id: &JobId, updates: &[Incoming]) -> Option<Job> {
        let known = table.get(id).and_then(|entry| entry.job.as_ref());
        let known_key = known.map(|job| job.key);
        let mut job: Option<Job> = None;
        for update in updates {
            let place = Place {
                epoch: table.epoch(),
                seq: update.seq,
                received_at: self.clock.now(),
                stored_at: update.stored_at,
            };
            if update.what == What::Gone {
                continue;
            }
            match &mut job {
                Some(job) => {
                    // What is declined now was declined, and counted, when it came.
                    if let Ok(judged) = judge(job, update, place, &table.bounds()) {
                        job.enter(judged, &table.bounds());
                    }
                }
                None => {
                    let key = known_key.unwrap_or_else(|| table.new_key());
                    let mut first = Job::new(key, id.clone(), update.owner.clone(), Seq::ZERO);
                    let discarded = discarded_to(updates, self.settings.per_job);
                    if discarded > Seq::ZERO {
                        first.doubt(discarded);
                    }
                    first.belongs_to(first_parent(updates));
                    if let Ok(judged) = judge(&first, update, place, &table.bounds()) {
                        first.enter(judged, &table.bounds());
                        job = Some(first);
                    }
                }
            }
        }
        job
    }

    fn adopt(
        &self,
        table: &mut Table,
        id: &JobId,
        rebuilt: Option<Job>,
        updates: &[Incoming],
        missed_from: Option<Seq>,
    ) {
        let Some(rebuilt) = rebuilt else {
            // Nothing is stored: the job expired while nobody looked, or never was.
            if table.get(id).is_some_and(|entry| entry.job.is_some()) {
                let high = table.high();
                self.say_gone(table, id, high);
            } else {
                table.forget(id);
                let high = table.high();
                table.entry(id).nothing_until = high;
            }
            return;
        };
        let owner = rebuilt.owner.clone();
        let bounds = table.bounds();
        let entry = table.entry(id);
        entry.partial = false;
        let untold = untold(entry, &rebuilt, missed_from);
        let lost = lost_milestones(entry, &rebuilt, updates);
        match &mut entry.job {
            Some(job) => job.merge(rebuilt, &bounds),
            None => entry.job = Some(Box::new(rebuilt)),
        }
        entry.nothing_until = Seq::ZERO;
        for update in updates.iter().filter(|update| update.owner == owner) {
            entry.note(&update.what, update.seq);
        }
        table.enter(id);
        for publication in untold {
            let shards = table.watchers_of(&publication);
            if lost {
                self.tell(shards, || {
                    Message::Gap(Box::new(LostMilestones {
                        what: LeftOut {
                            key: publication.key,
                            job: publication.job.clone(),
                            seq: publication.seq,
                        },
                        topics: publication.topics().collect(),
                        reason: GapReason::History,
                    }))
                });
            }
            self.publish_to(shards, &publication);
        }
    }

    fn expire(&self) {
        let micros = |age: Duration| i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let (ended, silent) = (self.settings.terminal_ttl, self.settings.idle_ttl);
        let mut table = self.table();
        let high = table.high();
        for id in table.expired(self.clock.wall(), micros(ended), micros(silent)) {
            table.count("expired");
            self.say_gone(&mut table, &id, high);
        }
    }
}

/// What `rebuilt` holds that watchers of the known job have not been told. One that was known by its last state
/// was told as that; what was before is owed to nobody who is here. Of a job nothing was known of, they are
/// told all that was missed while the bus was away, or what anybody is told first.
fn untold(entry: &Entry, rebuilt: &Job, missed_from: Option<Seq>) -> Vec<Arc<Publication>> {
    match (&entry.job, missed_from) {
        (Some(known), _) => rebuilt
            .publications()
            .into_iter()
            .filter(|publication| {
                publication.seq > known.known_from() && !known.holds(publication.seq)
            })
            .filter(|publication| {
                !publication.is_state()
                    || known
                        .state()
                        .is_none_or(|state| publication.seq > state.seq)
            })
            .collect(),
        // They were told that there is nothing, or were told nothing while the bus was away, and have missed
        // all that came since.
        (None, from) => {
            let nothing_until = Some(entry.nothing_until).filter(|until| *until > Seq::ZERO);
            match from.into_iter().chain(nothing_until).min() {
                Some(from) => {
                    let all = rebuilt.publications().into_iter();
                    all.filter(|publication| publication.seq > from).collect()
                }
                None => rebuilt.snapshot(),
            }
        }
    }
}

/// The group the first stored state names: a rollup leaves milestones without the state that was before
/// them, and those who watch the group are owed them too.
fn first_parent(updates: &[Incoming]) -> Option<Name> {
    let first = updates.iter().find(|each| each.what == What::State)?;
    parent(first).ok().flatten()
}

/// Up to which number a subject's messages may have been discarded for want of room.
fn discarded_to(updates: &[Incoming], per_subject: usize) -> Seq {
    let milestones = updates
        .iter()
        .filter(|update| matches!(update.what, What::Milestone(_)));
    let first_of_full = milestones.clone().filter(|first| {
        first.previous == Some(Seq::ZERO)
            && milestones
                .clone()
                .filter(|update| update.what == first.what)
                .count()
                >= per_subject
    });
    first_of_full
        .map(|first| first.seq)
        .max()
        .unwrap_or_default()
}

/// Whether milestones that came after what is known were discarded before they could be read: by the store,
/// or because more came than a job's history holds.
fn lost_milestones(entry: &Entry, rebuilt: &Job, updates: &[Incoming]) -> bool {
    let Some(known) = &entry.job else {
        return false;
    };
    let lost_to = rebuilt.known_from();
    updates.iter().any(|update| {
        let unseen = update.seq > entry.last(&update.what) && update.seq > known.known_from();
        let discarded = update.previous == Some(Seq::ZERO) || !rebuilt.holds(update.seq);
        matches!(update.what, What::Milestone(_)) && update.seq <= lost_to && unseen && discarded
    })
}
