//! Updates coming in: numbered, checked against what is known, applied, handed on.

use std::sync::Arc;
use std::time::Duration;

use relay_core::id::{JobName, JobNameRef, Name};
use relay_core::job::{Declined, Job, JobBounds, Judged, Place, Sender, Subject};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{JobKey, Publication};
use relay_core::watcher::beginning::LeftOut;
use relay_core::watcher::outbox::GapReason;

use super::Hub;
use super::rebuild::Stored;
use super::table::{Entry, Table};
use crate::inbox::{LostMilestones, Message};
use crate::poison;
use crate::seam::{First, Incoming, Intake, RefusedUpdate, What};

/// What a node adds to a document that it has read: whose and which job it is, and what it makes of its fields.
const ADDED_BYTES: usize = 2048;

/// How an update relates to what the table holds of its job.
enum Standing {
    /// It follows what is known.
    Next,
    /// It is known already.
    Known,
    /// Something before it was not seen.
    Hole,
}

impl Intake for Hub {
    fn ingest(&self, updates: &mut Vec<Incoming>) {
        let Some(last) = updates.last() else {
            return;
        };
        let now = self.clock.wall().as_unix_micros();
        let lag = now.saturating_sub(last.stored_at.as_unix_micros());
        let mut table = self.table();
        table.set_lag(Duration::from_micros(u64::try_from(lag).unwrap_or(0)));
        for incoming in updates.drain(..) {
            if let Err(declined) = self.take(&mut table, &incoming) {
                self.decline(&mut table, &incoming, &declined);
            }
        }
        if table.ahead.is_reached(table.high()) {
            self.admit_ahead(&mut table);
        }
    }

    fn live(&self, epoch: Epoch, from_seq: Seq) {
        let mut table = self.table();
        // Also a bus on which nothing had happened may have been watched.
        let first = table.begin_life();
        if epoch != table.epoch() {
            self.begin_epoch(&mut table, epoch, first);
        } else if !first {
            if self.backing.memory().is_some() {
                // Nobody's cursor may pass what was missed, and that is not known before the comparison.
                table.hold_all();
            }
            self.doubt(&mut table);
        }
        if self.backing.memory().is_some() {
            table.doubt_below(from_seq);
        }
        table.saw(from_seq);
        self.tell_holds(&mut table);
        self.admit_ahead(&mut table);
        if self.backing.memory().is_none() {
            self.freshen(&mut table);
        }
        drop(table);
        *self.resync.lock() = true;
        self.work.notify_one();
    }

    fn missing(&self, after: Seq) {
        let mut table = self.table();
        table.holdback.hold_for_hole(after);
        self.tell_holds(&mut table);
    }

    fn found(&self) {
        let mut table = self.table();
        table.holdback.close_hole();
        self.tell_holds(&mut table);
    }

    fn lost(&self, reason: &str) {
        let mut table = self.table();
        if table.set_stale(true) {
            tracing::warn!(
                reason,
                "the bus is away; clients keep their connections, states are marked stale"
            );
            self.tell_all(|| Message::Stale(true));
        }
    }

    fn dropped(&self, reason: &'static str) {
        self.table().count(reason);
    }

    fn refused(&self, update: RefusedUpdate) {
        self.table().count(update.reason);
        self.refusals.note(update);
    }
}

impl Hub {
    /// Counts an update that goes no further, and tells of it unless it only says again what was said.
    pub(super) fn decline(&self, table: &mut Table, incoming: &Incoming, declined: &Declined) {
        table.count(declined.code());
        if !matches!(declined, Declined::Repeated) {
            let stem = &self.settings.subject_stem;
            self.refusals
                .note(RefusedUpdate::declined(stem, incoming, declined));
        }
    }

    /// Lists a refused update that is found in the store. It may have come when no node was there to tell of it; if
    /// one was, it was counted and logged then.
    pub(super) fn recall(&self, incoming: &Incoming, stored: &Stored) {
        if !matches!(stored.reason, Declined::Repeated) {
            let stem = &self.settings.subject_stem;
            let update = RefusedUpdate::declined(stem, incoming, &stored.reason);
            self.refusals.recall(RefusedUpdate {
                size: stored.size,
                ..update
            });
        }
    }

    /// Takes one update as the table stands. `None`: it waits for a repair, or nobody needs it.
    pub(super) fn take(
        &self,
        table: &mut Table,
        incoming: &Incoming,
    ) -> Result<Option<Arc<Publication>>, Declined> {
        table.saw(incoming.seq);
        if let Some(repair) = table.get_mut(&incoming.job).and_then(|e| e.repair.as_mut()) {
            for _ in 0..repair.queue(incoming.clone()) {
                table.count("deferred");
            }
            let entry = table.entry(&incoming.job);
            if entry.job.is_none()
                && entry.nothing_until == Seq::ZERO
                && incoming.previous == Some(Seq::ZERO)
            {
                entry.nothing_until = incoming.seq.before();
            }
            // Watchers of its owner or group are owed it, though nothing of it was known.
            table.hold(&incoming.job, incoming.seq.before());
            self.tell_holds(table);
            return Ok(None);
        }
        if incoming.what == What::Gone {
            self.gone(table, incoming);
            return Ok(None);
        }
        match self.standing(table, incoming) {
            Standing::Next => self.apply(table, incoming).map(Some),
            Standing::Known => {
                table.count("duplicate");
                Ok(None)
            }
            Standing::Hole => match is_wanted(table, incoming) {
                Ok(true) => {
                    let repair = table.start_repair(&incoming.job, self.clock.now());
                    repair.queue(incoming.clone());
                    table.hold(&incoming.job, incoming.seq.before());
                    self.tell_holds(table);
                    self.work.notify_one();
                    Ok(None)
                }
                unwatched => {
                    // Its worker learns of a mistake whether anybody watches or not.
                    let alone = self.read_alone(table, incoming);
                    if alone.is_ok() || table.job(&incoming.job).is_some() {
                        // Nobody watches: whoever comes next will have it loaded.
                        table.forget(&incoming.job);
                        table.index.doubt_of(&incoming.job.owner);
                        table.names.doubt(&incoming.job.id);
                    }
                    unwatched?;
                    if self.meets_stranger(table, incoming) {
                        let repair = table.start_repair(&incoming.job, self.clock.now());
                        repair.queue(incoming.clone());
                        self.work.notify_one();
                        return Ok(None);
                    }
                    alone?;
                    table.count("unwatched");
                    Ok(None)
                }
            },
        }
    }

    /// Reads an update of a job of which too little is known to say whether it may follow.
    fn read_alone(&self, table: &Table, incoming: &Incoming) -> Result<(), Declined> {
        let JobName { owner, id } = incoming.job.clone();
        let job = Job::new(JobKey(0), id, owner, Seq::ZERO);
        judge_again(
            &job,
            incoming,
            None,
            self.place_of(table, incoming),
            Sender::Away,
            &table.bounds(),
        )
        .map(drop)
    }

    /// Where an update stands.
    pub(super) fn place_of(&self, table: &Table, incoming: &Incoming) -> Place {
        Place {
            epoch: table.epoch(),
            seq: incoming.seq,
            received_at: self.clock.now(),
            stored_at: incoming.stored_at,
        }
    }

    /// Applies an update that follows what is known, and hands it to the shards that watch.
    pub(super) fn apply(
        &self,
        table: &mut Table,
        incoming: &Incoming,
    ) -> Result<Arc<Publication>, Declined> {
        let verdict = self.judge(table, incoming, Sender::Away);
        self.settle(table, incoming, verdict)
    }

    /// What an update loses that is accepted.
    fn lost(&self, incoming: &Incoming, judged: &Result<Judged, Declined>) -> Vec<RefusedUpdate> {
        let stem = &self.settings.subject_stem;
        let dropped = judged.as_ref().map_or(&[][..], Judged::dropped);
        let lost = dropped
            .iter()
            .map(|it| RefusedUpdate::shortened(stem, incoming, it));
        lost.collect()
    }

    /// Enters an update that was judged, and hands it to the shards that watch.
    pub(super) fn settle(
        &self,
        table: &mut Table,
        incoming: &Incoming,
        verdict: Verdict,
    ) -> Result<Arc<Publication>, Declined> {
        let is_new = verdict.new.is_some();
        let lost = self.lost(incoming, &verdict.judged);
        let entered = enter(table, incoming, verdict);
        if entered.is_err() && is_new && self.backing.memory().is_some() {
            // Nothing else is known of the job. What follows this one has no hole before it.
            table
                .entry(&incoming.job)
                .note(&incoming.what, incoming.seq);
            table.evict();
        }
        let publication = match entered {
            Ok(publication) => publication,
            Err(declined) => {
                self.note_late(table, incoming, &declined);
                return Err(declined);
            }
        };
        if let Some(entry) = table.get_mut(&incoming.job)
            && !publication.is_milestone()
        {
            entry.late = 0;
            entry.first = incoming.first;
        }
        table.count(if lost.is_empty() {
            "accepted"
        } else {
            "shortened"
        });
        self.refusals.note_all(lost);
        self.publish_to(table.watchers_of(&publication), &publication);
        table.evict();
        Ok(publication)
    }

    /// Reads an update that follows what is known, once, and changes nothing of any job.
    pub(super) fn judge(&self, table: &mut Table, incoming: &Incoming, sender: Sender) -> Verdict {
        let bounds = table.bounds();
        let place = self.place_of(table, incoming);
        if let Some(job) = table.job(&incoming.job) {
            return Verdict {
                judged: judge_again(job, incoming, None, place, sender, &bounds),
                new: None,
            };
        }
        // Where all that was stored of it has been looked at, nothing was missed.
        let is_read = table.get(&incoming.job).is_some_and(Entry::is_read);
        let known_from = if is_read {
            Seq::ZERO
        } else {
            table.known_from()
        };
        // Whoever watches was told something of it since, if only that there is nothing.
        let first = incoming.first.filter(|_| table.is_unwatched(incoming));
        let JobName { owner, id } = incoming.job.clone();
        let job = Box::new(Job::new(table.new_key(), id, owner, known_from));
        Verdict {
            judged: judge_again(&job, incoming, first, place, sender, &bounds),
            new: Some(job),
        }
    }

    fn standing(&self, table: &Table, incoming: &Incoming) -> Standing {
        if self.backing.memory().is_none() {
            return Standing::Next;
        }
        let previous = incoming.previous.unwrap_or_default();
        let entry = table.get(&incoming.job);
        let seen = entry.map_or(Seq::ZERO, |entry| entry.seen(&incoming.what));
        match entry.filter(|entry| entry.job.is_some()) {
            Some(entry) if incoming.seq <= entry.last(&incoming.what) => Standing::Known,
            // `previous` is 0 when the subject's history is gone (rollup, expiry): nothing to repair from.
            Some(entry) if entry.partial || previous > seen => Standing::Hole,
            Some(_) => Standing::Next,
            None if previous <= seen && seen > Seq::ZERO => Standing::Next,
            None if previous == Seq::ZERO && incoming.what == What::State => Standing::Next,
            None => Standing::Hole,
        }
    }

    fn gone(&self, table: &mut Table, incoming: &Incoming) {
        table.count("expired");
        self.say_gone(table, &incoming.job, incoming.seq);
        if let Some(entry) = table.get_mut(&incoming.job) {
            // Somebody watches. What follows this has no hole before it.
            entry.note(&incoming.what, incoming.seq);
        }
    }

    /// Tells watchers that a job left history, and forgets it.
    pub(super) fn say_gone(&self, table: &mut Table, job: &JobName, seq: Seq) {
        if let Some(publication) = table.gone(job, seq) {
            self.publish_to(table.watchers_of(&publication), &publication);
        }
        table.forget(job);
    }

    /// The bus started anew: nothing known before counts, and no number does.
    fn begin_epoch(&self, table: &mut Table, epoch: Epoch, first: bool) {
        tracing::info!(epoch = epoch.get(), "the bus begins a new epoch");
        table.begin_epoch(epoch);
        self.tell_all(|| Message::NewEpoch { first });
    }

    /// The bus was away: what nobody watches is forgotten, what somebody watches will be compared.
    fn doubt(&self, table: &mut Table) {
        table.index.doubt_all();
        table.doubt_all();
        if self.backing.memory().is_some() {
            table.forget_unwatched();
            return;
        }
        // A bus that forgets cannot be asked: say that something may be missing.
        let high = table.high();
        let mut missed = Vec::new();
        for job in table.values_mut().filter_map(|it| it.job.as_mut()) {
            job.doubt(high);
            missed.extend(job.state().filter(|state| !state.is_terminal()).cloned());
        }
        for state in missed {
            self.tell(table.watchers_of(&state), || {
                Message::Gap(Box::new(LostMilestones {
                    what: LeftOut {
                        key: state.key,
                        job: state.job.clone(),
                        seq: high,
                    },
                    topics: state.topics().collect(),
                    reason: GapReason::History,
                }))
            });
        }
    }

    /// What is known is up to date again.
    pub(super) fn freshen(&self, table: &mut Table) {
        if table.set_stale(false) {
            tracing::info!("the bus is there; states are fresh");
            self.tell_all(|| Message::Stale(false));
        }
    }

    /// Passes on which jobs are held and which are released.
    pub(super) fn tell_holds(&self, table: &mut Table) {
        for repairing in table.holdback.take_untold() {
            self.tell_all(|| Message::Repair(repairing.clone()));
        }
    }
}

/// What an update comes to, before the table knows of it.
pub(super) struct Verdict {
    pub(super) judged: Result<Judged, Declined>,
    /// The job it was judged by, where nothing was known of it.
    pub(super) new: Option<Box<Job>>,
}

/// Enters an update that was judged as the table stands now. What was declined leaves its number with a job that
/// is known.
pub(super) fn enter(
    table: &mut Table,
    incoming: &Incoming,
    verdict: Verdict,
) -> Result<Arc<Publication>, Declined> {
    let bounds = table.bounds();
    let (mut job, judged) = match (verdict.new, verdict.judged) {
        (None, judged) => {
            let entry = table.entry(&incoming.job);
            let Some(job) = &mut entry.job else {
                debug_assert!(false, "{incoming} was judged by a job that is not there");
                return Err(Declined::Panicked);
            };
            let applied = judged.map(|judged| job.enter(judged, &bounds));
            entry.note(&incoming.what, incoming.seq);
            table.enter(&incoming.job);
            return applied;
        }
        (Some(_), Err(declined)) => return Err(declined),
        (Some(job), Ok(judged)) => (job, judged),
    };
    let publication = job.enter(judged, &bounds);
    let entry = table.entry(&incoming.job);
    #[cfg(test)]
    poison::fault("panics-when-entered", incoming.job.id.as_str());
    entry.job = Some(job);
    entry.note(&incoming.what, incoming.seq);
    table.enter(&incoming.job);
    Ok(publication)
}

/// As [`judge`]. An ending (or a removal) that is stored again may be where it was first, and is a little longer than it was when
/// its worker published it.
pub(super) fn judge_again(
    job: &Job,
    incoming: &Incoming,
    first: Option<First>,
    place: Place,
    sender: Sender,
    bounds: &JobBounds,
) -> Result<Judged, Declined> {
    if incoming.first.is_none() {
        return judge(job, incoming, place, sender, bounds);
    }
    let bounds = JobBounds {
        update_bytes: bounds.update_bytes + ADDED_BYTES,
        ..bounds.clone()
    };
    if let Some(First { seq, stored_at }) = first {
        let there = Place {
            seq,
            stored_at,
            ..place
        };
        let judged = judge(job, incoming, there, sender, &bounds);
        // It is believed of nothing else.
        if judged.as_ref().is_ok_and(Judged::is_last) {
            return judged;
        }
    }
    judge(job, incoming, place, sender, &bounds)
}

/// Reads an update and says what it comes to; nothing is changed yet.
pub(super) fn judge(
    job: &Job,
    incoming: &Incoming,
    place: Place,
    sender: Sender,
    bounds: &JobBounds,
) -> Result<Judged, Declined> {
    debug_assert!(job.owner == incoming.job.owner && job.id == incoming.job.id);
    let subject = match &incoming.what {
        What::Milestone(name) => Subject::Milestone(name),
        What::State | What::Gone => Subject::State,
    };
    let judged = poison::read(incoming, Some(incoming.seq), || {
        #[cfg(test)]
        poison::fault("panics-when-judged", incoming.job.id.as_str());
        job.judge(subject, &incoming.payload, place, sender, bounds)
    });
    judged.unwrap_or(Err(Declined::Panicked))
}

/// Whether anybody watches a job about which too little is known to say so from the table alone.
fn is_wanted(table: &Table, incoming: &Incoming) -> Result<bool, Declined> {
    let known_parent = table
        .get(&incoming.job)
        .and_then(|entry| entry.job.as_deref()?.group().cloned());
    if table.watchers(incoming.job.as_ref(), known_parent.as_ref()) != 0 {
        return Ok(true);
    }
    if !table.index.watches_groups() || incoming.what != What::State {
        return Ok(false);
    }
    // Only the body says which group a job belongs to.
    let parent = parent(incoming, &table.bounds())?;
    let owner = &incoming.job.owner;
    let is_watched = |id| table.index.is_watched(JobNameRef { owner, id });
    Ok(parent.as_ref().is_some_and(is_watched))
}

/// The group a state names, if it is one that can be read.
pub(super) fn parent(incoming: &Incoming, bounds: &JobBounds) -> Result<Option<Name>, Declined> {
    let parent = poison::read(incoming, Some(incoming.seq), || {
        #[cfg(test)]
        poison::fault("panics-when-judged", incoming.job.id.as_str());
        let JobName { owner, id } = &incoming.job;
        Job::group_named(&incoming.payload, id, owner, bounds)
    });
    parent.ok_or(Declined::Panicked)
}
