//! Fetching from the store: jobs not in memory, holes, and the comparison after the bus was away.
//!
//! What may go wrong with the answer is behind it when the table is changed (`rebuild`). Whatever the answer is, it
//! ends the repair: nothing that a worker publishes has its job fetched over and over while others wait.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use relay_core::id::{JobName, Named};
use relay_core::job::{Job, Sender};
use relay_core::position::Seq;
use relay_core::publication::Publication;
use relay_core::watcher::beginning::LeftOut;
use relay_core::watcher::outbox::GapReason;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::endings::ENDINGS_AT_ONCE;
use super::listed::is_owed_to_nobody;
use super::rebuild::{Rebuild, Rebuilt};
use super::table::{Answer, Entry, Found, LoadKey, Repair, Table};
use super::tally::TALLY_INTERVAL;
use super::{Hub, Lookup, SNAPSHOT_JOBS};
use crate::inbox::{LostMilestones, Message};
use crate::seam::{Incoming, Store, StoreError, What};

/// Requests to the store, and answers that wait for the reader, at a time.
const IN_FLIGHT: usize = 64;
/// How long a request that failed waits before it is made again.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// Refused updates of one job that are listed when it is read from the store.
const RECALLED: usize = 16;
/// How often expired jobs are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// How often what waits for this node to catch up is looked at.
const PATIENCE_INTERVAL: Duration = Duration::from_millis(500);

/// What came of one request, and of which reading of the bus it was.
#[derive(Debug)]
pub(super) enum Loaded {
    Found(LoadKey, u64, Result<Found, StoreError>),
    Changed(u64, Result<Vec<Named>, StoreError>),
}

impl Hub {
    /// Does what the table asks for, until the future is dropped. Run it once, on the bus's runtime.
    pub async fn run(self: Arc<Self>) {
        let mut in_flight: FuturesUnordered<BoxFuture<'_, Loaded>> = FuturesUnordered::new();
        let mut endings: FuturesUnordered<BoxFuture<'_, JobName>> = FuturesUnordered::new();
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
            let due = self.table().loads.next_due();
            let due = due.map(|due| self.clock.instant(due));
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
                while endings.len() < ENDINGS_AT_ONCE
                    && let Some(id) = self.next_ending()
                {
                    endings.push(Box::pin(self.keep_ending(store, id)));
                }
            }
            tokio::select! {
                () = self.work.notified() => {}
                () = at(due) => {}
                Some(loaded) = in_flight.next() => {
                    comparing &= !matches!(loaded, Loaded::Changed(..));
                    self.finish(loaded);
                }
                Some(id) = endings.next() => self.ending_kept(&id),
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
        if room {
            table.loads.next(self.clock.now())
        } else {
            None
        }
    }

    pub(super) async fn load(&self, store: &Arc<dyn Store>, key: LoadKey) -> Loaded {
        let (life, high) = {
            let table = self.table();
            (table.life(), table.high())
        };
        let states = async |owner, limit| {
            let states = store.load_last_states(owner, high, limit).await?;
            self.enter_listed(&key, life, &states).await;
            Ok(Found::States(states))
        };
        let answer = match &key {
            LoadKey::Job(job) => match store.load_job(job.clone(), high).await {
                Ok(history) => {
                    let rebuild = self.rebuild(job);
                    Ok(Found::Job(Box::new(rebuild.read(history).await)))
                }
                Err(error) => Err(error),
            },
            LoadKey::Owners(id) => store
                .load_owners(id.clone(), high)
                .await
                .map(|(owners, up_to)| Found::Owners(owners, up_to)),
            LoadKey::Owner(owner) => states(Some(owner.clone()), SNAPSHOT_JOBS).await,
            LoadKey::Everything => states(None, self.settings.max_jobs).await,
        };
        if let Err(error) = &answer {
            tracing::debug!(?key, %error, "the store did not answer; asking again");
        }
        Loaded::Found(key, life, answer)
    }

    /// What a job is made with that is read from the store.
    pub(super) fn rebuild(&self, job: &JobName) -> Rebuild {
        let mut table = self.table();
        let new = table.new_key();
        let entry = table.get(job);
        let known = entry.and_then(|entry| entry.job.as_ref());
        // Of which only the last state was read, the store knows more.
        let whole = entry.filter(|entry| !entry.partial);
        let inherited = whole.and_then(|entry| entry.job.as_deref().map(Job::legacy));
        let group = table.job(job).and_then(|job| job.group().cloned());
        Rebuild {
            group,
            id: job.clone(),
            key: known.map_or(new, |job| job.key),
            epoch: table.epoch(),
            now: self.clock.now(),
            bounds: table.bounds(),
            per_subject: self.settings.per_job,
            inherited,
            told_to: entry.map_or(Seq::ZERO, |entry| {
                let state = entry.state().map(|state| state.seq);
                state.unwrap_or(entry.nothing_until)
            }),
        }
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
            Loaded::Found(key, life, Ok(found)) if life == table.life() => {
                let answer = Answer { key, life, found };
                self.answered(&mut table, answer);
            }
            Loaded::Found(key, life, Err(error @ StoreError::TooMany(_)))
                if life == table.life() =>
            {
                // It would be the same again: whoever waits gets what is known, and no claim that it is all.
                tracing::warn!(?key, %error, "not every job can be listed");
                self.finish_many(&mut table, key, None);
            }
            // Of a reading of the bus that is over: asked anew in this one.
            Loaded::Found(key, _, Ok(_)) => table.loads.ask(key),
            Loaded::Found(key, _, Err(_)) => {
                if matches!(key, LoadKey::Job(_)) {
                    table.count_repair("failed");
                }
                // Apart, so that they do not come all at once.
                let pause = RETRY_AFTER.mul_f64(0.5 + fastrand::f64());
                table.loads.ask_later(key, self.clock.now() + pause);
            }
        }
    }

    pub(super) fn take_answer(&self, table: &mut Table, answer: Answer) {
        let Answer { key, found, .. } = answer;
        match (key, found) {
            (LoadKey::Job(id), Found::Job(rebuilt)) => self.finish_job(table, &id, *rebuilt),
            (LoadKey::Owners(id), Found::Owners(owners, up_to)) => {
                self.finish_owners(table, &id, &owners, up_to);
            }
            (key, Found::States(states)) => self.finish_many(table, key, Some(states)),
            (key, Found::Job(_) | Found::Owners(..)) => {
                debug_assert!(false, "{key:?} was not asked for");
            }
        }
    }

    /// The store was compared with what is watched: what changed is repaired, the rest is up to date.
    fn compared(&self, table: &mut Table, changed: Vec<Named>) {
        let missed_from = table.holdback.missed_from();
        let mut called = Vec::new();
        for named in changed {
            let Some(id) = named.exact() else {
                // Somebody waits for whatever is called so, and there may be more of that.
                called.push(LoadKey::Owners(named.id));
                continue;
            };
            table.start_repair(&id, self.clock.now());
            if let Some(from) = missed_from {
                // Also where nothing was known of it: its watchers are owed its first word.
                table.hold(&id, from);
            }
        }
        // Whoever watches all jobs of a user must hear of one whose only update was missed.
        let mut keys = table.index.watched_loads();
        keys.extend(called);
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
            LoadKey::Everything | LoadKey::Job(_) | LoadKey::Owners(_) => self.settings.max_jobs,
        };
        let whole = updates.as_ref().is_some_and(|all| all.len() < limit);
        let missed_from = table.holdback.missed_from();
        for update in updates.into_iter().flatten() {
            let entry = table.get(&update.job);
            let repairing = entry.is_some_and(|entry| entry.repair.is_some());
            let known = entry.and_then(|it| it.job.is_some().then(|| it.last(&What::State)));
            let refused = entry.map_or(Seq::ZERO, |entry| entry.seen(&What::State));
            match known {
                Some(_) if repairing => {}
                Some(last) if last >= update.seq => {}
                Some(_) => {
                    table.start_repair(&update.job, self.clock.now());
                }
                // It was seen, and nothing of it can be told.
                None if !repairing && refused >= update.seq => {}
                None => {
                    // Found by a comparison, not by a join: those who watch have not been told of it; whoever
                    // only counts is told of none. Or on its way already: its last state must not stand in front
                    // of what is being fetched, and whoever joins waits for that.
                    let is_owed = missed_from.is_some() || !is_owed_to_nobody(table, &key, &update);
                    // What cannot be read may stand in front of what can.
                    if repairing || is_owed || !self.remember(table, &update) {
                        table.start_repair(&update.job, self.clock.now());
                        let from = missed_from.unwrap_or(update.seq.before());
                        table.hold(&update.job, from);
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
            match &key {
                // It could not be said whose there are: what is known is all that can be meant.
                LoadKey::Owners(id) => {
                    let owners = table.owners(id).cloned().collect();
                    self.join_one_of(table, id, owners, request);
                }
                _ => self.answer_many(table, request),
            }
        }
        for request in table.loads.take_surveys(&key) {
            self.survey_now(table, request);
        }
        table.loads.answer_owners(&key, &[]);
        table.evict();
        if table.holdback.caught_up(&key) {
            self.freshen(table);
        }
        self.tell_holds(table);
        self.work.notify_one();
    }

    /// Enters a job of which only its last state is known. False if that is not one.
    fn remember(&self, table: &mut Table, update: &Incoming) -> bool {
        let verdict = self.judge(table, update, Sender::Away);
        self.enter_last(table, update, verdict)
    }

    /// All that is stored of one job came: it becomes what is known, and watchers are told what they
    /// have not heard.
    ///
    /// The answer speaks for everything up to its reach, whether it is acceptable, refused or not there any more.
    /// So nothing that came up to there is asked for again.
    fn finish_job(&self, table: &mut Table, id: &JobName, mut rebuilt: Rebuilt) {
        let Some(mut repair) = table.take_repair(id) else {
            return;
        };
        let (reach, is_found) = (rebuilt.reach, rebuilt.job.is_some());
        let never_came = never_came(table, id, &rebuilt.updates, &repair);
        for _ in 0..never_came {
            table.count("resynced");
        }
        self.adopt(table, id, &mut rebuilt, repair.missed_from);
        if repair.left_to > reach {
            table.count_repair("again");
            self.repair_again(table, id, repair, reach);
            return;
        }
        table.count_repair(if is_found { "found" } else { "nothing" });
        for incoming in repair.take_queued() {
            let newer = table
                .get(id)
                .is_none_or(|entry| incoming.seq > entry.last(&incoming.what));
            let declined = if newer {
                self.take(table, &incoming).err()
            } else if let Some(reason) = rebuilt.take_reason(incoming.seq) {
                Some(reason)
            } else {
                table.count("deferred");
                None
            };
            if let Some(declined) = declined {
                self.decline(table, &incoming, &declined);
            }
        }
        for (incoming, stored) in rebuilt.last_declined(RECALLED) {
            self.recall(incoming, stored);
        }
        table.release(id);
        self.tell_holds(table);
        let stale = table.is_stale();
        for request in repair.joins.into_values() {
            self.answer_job(table, Some(id), request);
        }
        for answer in repair.lookups {
            // Whoever asked may have stopped waiting.
            drop(answer.send(Lookup::of(table.get(id), stale)));
        }
        self.release_deferred(table, id);
        table.evict();
        table.prune(id);
    }

    /// More came meanwhile than could wait, and after the store had answered. What it has said is told; the rest
    /// is asked for, and only that is waited for.
    fn repair_again(&self, table: &mut Table, id: &JobName, mut repair: Repair, reach: Seq) {
        table.release(id);
        let again = table.start_repair(id, self.clock.now());
        for incoming in repair.take_queued() {
            again.queue(incoming);
        }
        again.left_to = again.left_to.max(repair.left_to);
        again.joins = repair.joins;
        again.lookups = repair.lookups;
        table.hold(id, reach);
        self.tell_holds(table);
        self.work.notify_one();
    }

    fn adopt(
        &self,
        table: &mut Table,
        id: &JobName,
        rebuilt: &mut Rebuilt,
        missed_from: Option<Seq>,
    ) {
        let (updates, reach, late) = (&rebuilt.updates, rebuilt.reach, rebuilt.late);
        let stood_first = rebuilt.stood_first;
        let Some(rebuilt) = rebuilt.job.take() else {
            // Nothing is stored that can be told: the job expired while nobody looked, or never was, or all of it
            // was refused.
            let high = table.high();
            if table.get(id).is_some_and(|entry| entry.job.is_some()) {
                self.say_gone(table, id, high);
            } else {
                table.forget(id);
            }
            let entry = table.entry(id);
            entry.nothing_until = high;
            for update in updates {
                entry.note(&update.what, update.seq);
            }
            entry.read(reach);
            return;
        };
        let bounds = table.bounds();
        let entry = table.entry(id);
        let untold = untold(entry, &rebuilt, missed_from);
        let lost = lost_milestones(entry, &rebuilt, updates);
        match &mut entry.job {
            Some(job) => job.merge(*rebuilt, &bounds),
            None => entry.job = Some(rebuilt),
        }
        entry.nothing_until = Seq::ZERO;
        for update in updates {
            entry.note(&update.what, update.seq);
        }
        entry.read(reach);
        let is_over = entry.last_word().is_some_and(|last| last.is_last());
        entry.late = if is_over { late } else { 0 };
        entry.first = stood_first;
        table.enter(id);
        self.ask_late(table, id);
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

/// How many of a job's stored updates should have come live, and did not. Of a job that was not known, and of which
/// nothing was missed that somebody watched, nobody can say.
fn never_came(table: &Table, id: &JobName, updates: &[Incoming], repair: &Repair) -> usize {
    let Some(entry) = table.get(id) else {
        return 0;
    };
    let from = match (&entry.job, repair.missed_from) {
        (_, Some(from)) => from,
        (Some(_), None) if !entry.partial => Seq::ZERO,
        _ => return 0,
    };
    let is_new = |it: &&Incoming| it.seq > from.max(repair.left_to).max(entry.seen(&it.what));
    let missed = updates.iter().filter(is_new);
    missed.filter(|it| !repair.holds(it.seq)).count()
}

/// Waits until then, or for ever.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
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
                publication.seq > known.known_from().max(known.removed_to())
                    && !known.holds(publication.seq)
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

/// Whether milestones that came after what is known were discarded before they could be read: by the store,
/// or because more came than a job's history holds.
fn lost_milestones(entry: &Entry, rebuilt: &Job, updates: &[Incoming]) -> bool {
    let Some(known) = &entry.job else {
        return false;
    };
    if rebuilt.removed().is_some() {
        // Of a job that is not there any more nothing is missed.
        return false;
    }
    let lost_to = rebuilt.known_from();
    // What costs least is asked first: there may be thousands.
    updates.iter().any(|update| {
        let is_in_doubt = update.seq <= lost_to && update.seq > known.known_from();
        let discarded = || update.previous == Some(Seq::ZERO) || !rebuilt.holds(update.seq);
        let unseen = || update.seq > entry.last(&update.what);
        matches!(update.what, What::Milestone(_)) && is_in_doubt && discarded() && unseen()
    })
}
