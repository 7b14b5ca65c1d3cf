//! Last states of many jobs, entered a few at a time before the list as a whole is looked at.
//!
//! They are read apart from the table, and the lock is held for some of them: an owner may have a thousand jobs, and
//! a reader must not wait for that. What the list says as a whole, and what of it is owed to somebody, is decided
//! where it is finished (`load`); whatever cannot be entered here is left for that.
//!
//! Invariant: nothing is entered that finishing the list would not enter.

use relay_core::id::JobName;
use relay_core::job::{Job, JobBounds, Place, Sender};
use relay_core::position::Seq;
use relay_core::publication::JobKey;
use tokio::task::yield_now;

use super::Hub;
use super::intake::{Verdict, enter, judge_again};
use super::table::{LoadKey, Table};
use crate::seam::{First, Incoming};

/// States entered under one lock, and bytes of them that are read before others have their turn.
const AT_ONCE: usize = 16;
const BYTES_AT_ONCE: usize = 64 << 10;

/// What a state is read with.
struct Reading {
    key: JobKey,
    known_from: Seq,
    first: Option<First>,
    place: Place,
}

impl Hub {
    /// Enters those of an answer's states that are new here and owed to nobody.
    pub(super) async fn enter_listed(&self, key: &LoadKey, life: u64, states: &[Incoming]) {
        let mut rest = states;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |state: &&Incoming| {
                bytes += state.payload.len();
                bytes <= BYTES_AT_ONCE
            };
            let count = rest.iter().take(AT_ONCE).take_while(fits).count().max(1);
            let (piece, behind) = rest.split_at(count);
            rest = behind;
            let (readings, bounds) = self.readings(key, life, piece);
            let verdicts: Vec<_> = piece
                .iter()
                .zip(readings)
                .filter_map(|(state, reading)| Some((state, read(state, reading?, &bounds))))
                .collect();
            {
                let mut table = self.table();
                for (state, verdict) in verdicts {
                    if is_new(&table, key, life, state) {
                        self.enter_last(&mut table, state, verdict);
                    }
                }
                table.evict();
            }
            yield_now().await;
        }
    }

    fn readings(
        &self,
        key: &LoadKey,
        life: u64,
        piece: &[Incoming],
    ) -> (Vec<Option<Reading>>, JobBounds) {
        let mut table = self.table();
        let readings = piece.iter().map(|state| {
            is_new(&table, key, life, state).then(|| Reading {
                key: table.new_key(),
                known_from: table.known_from(),
                first: state.first.filter(|_| table.is_unwatched(state)),
                place: self.place_of(&table, state),
            })
        });
        (readings.collect(), table.bounds())
    }

    /// Enters a job of which only its last state is known. False if that is not one.
    pub(super) fn enter_last(&self, table: &mut Table, state: &Incoming, verdict: Verdict) -> bool {
        if enter(table, state, verdict).is_err() {
            return false;
        }
        let kinds = table.bounds().kinds;
        if let Some(entry) = table.get_mut(&state.job)
            && let Some(job) = &mut entry.job
        {
            entry.partial = true;
            entry.is_sole = state.previous == Some(Seq::ZERO) && !job.may_be_followed(&kinds);
            // Of what was before its last state this says nothing, wherever a cursor stands.
            job.doubt(state.seq);
        }
        table.enter(&state.job);
        true
    }
}

/// Whether finishing the list would enter this one.
fn is_new(table: &Table, key: &LoadKey, life: u64, state: &Incoming) -> bool {
    let is_now = life == table.life() && table.holdback.missed_from().is_none();
    let is_read = state.seq <= table.high();
    is_now && is_read && table.get(&state.job).is_none() && is_owed_to_nobody(table, key, state)
}

/// Whether a state that is found in a list is news to nobody who has been told anything: whoever waits for the list is
/// told of it there, and whoever only counts is told of none.
pub(super) fn is_owed_to_nobody(table: &Table, key: &LoadKey, state: &Incoming) -> bool {
    table.loads.is_joined(key) || table.loads.is_surveyed(key) && table.is_unwatched(state)
}

fn read(state: &Incoming, reading: Reading, bounds: &JobBounds) -> Verdict {
    let Reading {
        key,
        known_from,
        first,
        place,
    } = reading;
    let JobName { owner, id } = state.job.clone();
    let job = Box::new(Job::new(key, id, owner, known_from));
    Verdict {
        judged: judge_again(&job, state, first, place, Sender::Away, bounds),
        new: Some(job),
    }
}
