//! Endings that stand, though their worker goes on.
//!
//! A second run of a job with the same attempt publishes states that come after the ending. Every node declines them,
//! but the stream keeps so many messages of a subject and no more: in the end they push the ending out, and a node
//! that starts then takes the second run for the truth. So a node that knows the ending stores it again before that:
//! alone on its subject, with the time it has left, and only if nothing has come that the node has not judged.
//! Where several nodes notice, one succeeds.
//!
//! The ending keeps the number it had (`Relay-First`), so nobody is told it twice.
//!
//! A removal is kept in the same way: without it the job would come back.
//!
//! Invariant: of one job at most one publication is under way, and at most four are made in a second.

use std::sync::Arc;
use std::time::Duration;

use relay_core::id::JobName;
use relay_core::job::Declined;
use relay_core::job::Finality;
use relay_core::publication::Body;
use tokio::time::sleep;

use super::Hub;
use super::table::Table;
use crate::seam::{First, Incoming, Outgoing, Store, StoreError, What};

/// Endings that are stored at a time.
pub(super) const ENDINGS_AT_ONCE: usize = 16;
/// All nodes notice at the same time; they try one after another.
const APART: Duration = Duration::from_millis(30);
/// How often a node tries while the worker goes on publishing in between.
const TRIES: u32 = 6;
/// Between two publications of one ending.
const PAUSE: Duration = Duration::from_millis(250);
/// Before an ending is stored again that the stream did not take.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Less than this an ending is not worth keeping for.
const LEAST_LEFT: Duration = Duration::from_secs(2);

impl Hub {
    /// How many states may follow an ending before it is stored again; `None` where nothing pushes it out.
    fn late_states(&self) -> Option<u64> {
        let kept = self.backing.memory()?.kept_per_subject()?;
        Some((kept / 2).max(1))
    }

    /// A state was declined: if it came after an ending or a removal, it takes the room of that in the store.
    pub(super) fn note_late(&self, table: &mut Table, incoming: &Incoming, declined: &Declined) {
        let Some(entry) = table.get_mut(&incoming.job) else {
            return;
        };
        let ends = |job: &relay_core::job::Job| job.last_word().is_some_and(|last| last.is_last());
        if incoming.what != What::State || !entry.job.as_deref().is_some_and(ends) {
            return;
        }
        if matches!(declined, Declined::Repeated) {
            // That was it, once more.
            entry.late = 0;
            entry.first = entry.first.or(incoming.first);
            return;
        }
        entry.late += 1;
        self.ask_late(table, &incoming.job);
    }

    /// Has the ending of a job stored again, if so many states have followed it that it would be pushed out.
    pub(super) fn ask_late(&self, table: &mut Table, id: &JobName) {
        let late = table.get(id).map_or(0, |entry| entry.late);
        let is_due = late > 0 && self.late_states().is_some_and(|most| late >= most);
        if is_due && table.late.ask(id) {
            self.work.notify_one();
        }
    }

    /// A state came of a job that nobody watches and nothing is known of: after a restart, nobody would know that it
    /// has ended. True if it has to be read.
    pub(super) fn meets_stranger(&self, table: &mut Table, incoming: &Incoming) -> bool {
        // What was before has taken half of the room at most.
        let most = self.late_states().map(|most| (most / 2).max(1));
        incoming.what == What::State
            && most.is_some_and(|most| table.late.meet(&incoming.job, most, self.clock.now()))
    }

    /// The next job whose ending has to be stored again.
    pub(super) fn next_ending(&self) -> Option<JobName> {
        // Looked at without changing the table, which nearly always has none.
        if self.table().late.is_due() {
            self.table().late.next()
        } else {
            None
        }
    }

    /// Stores the ending of a job again.
    pub(super) async fn keep_ending(&self, store: &Arc<dyn Store>, id: JobName) -> JobName {
        sleep(APART.mul_f64(fastrand::f64())).await;
        let mut pause = PAUSE;
        for attempt in 1..=TRIES {
            let Some(ending) = self.ending_again(&id) else {
                return id;
            };
            let result = match store.publish(ending).await {
                Ok(_) => "stored",
                // Something has come meanwhile, and is on its way to here.
                Err(StoreError::Conflict) if attempt < TRIES => {
                    sleep(Duration::from_millis(fastrand::u64(
                        1..=5 * u64::from(attempt),
                    )))
                    .await;
                    continue;
                }
                Err(StoreError::Conflict) => "outrun",
                Err(error) => {
                    pause = PAUSE_AFTER_FAILURE;
                    self.warn_of_ending(&id, &error);
                    "failed"
                }
            };
            self.table().count_ending(result);
            break;
        }
        sleep(pause).await;
        id
    }

    /// What is published so that the ending stands, if it is one and would not.
    fn ending_again(&self, id: &JobName) -> Option<Outgoing> {
        let table = self.table();
        let entry = table.get(id).filter(|entry| entry.late > 0)?;
        if entry.repair.is_some() || entry.partial {
            return None;
        }
        let job = entry.job.as_deref()?;
        let last = job.last_word().filter(|last| last.is_last())?;
        let (payload, finality) = match &last.body {
            Body::State { json, .. } => (json.clone(), Finality::Ending),
            Body::Gone(_) => (job.removal().into(), Finality::Removal),
            Body::Milestone { .. } => return None,
        };
        let since = entry.first.map_or(last.stored_at, |first| first.stored_at);
        let age = self.clock.age_of(since);
        if age + LEAST_LEFT > self.settings.terminal_ttl {
            return None;
        }
        let here = First {
            seq: last.seq,
            stored_at: last.stored_at,
        };
        // A node that was told otherwise meanwhile has it at a later place.
        let first = entry.first.filter(|first| first.seq < here.seq);
        Some(Outgoing {
            job: id.clone(),
            what: What::State,
            payload,
            finality,
            stamp: None,
            expected_last: Some(entry.last(&What::State)),
            first: Some(first.unwrap_or(here)),
        })
    }

    fn warn_of_ending(&self, id: &JobName, error: &StoreError) {
        if let Some(held_back) = self.endings_told.lock().allow() {
            tracing::warn!(
                job = %id,
                %error,
                held_back,
                "a job goes on after its ending or removal, which could not be stored again; nodes that start later may take the job for running"
            );
        }
    }

    /// An ending was stored again, or could not be: what came meanwhile may push it out once more.
    pub(super) fn ending_kept(&self, id: &JobName) {
        let mut table = self.table();
        table.late.done(id);
        self.ask_late(&mut table, id);
    }
}
