//! A job as its stored updates tell it.
//!
//! All of them are run through the guard from the first, so that every node comes to the same state whatever it
//! saw live. That is done apart from the table, a piece at a time: a job may be large, and others must not wait.
//!
//! Knows one job's updates, and nothing of who waits for them.
//!
//! Invariant: what was read is not read again; of an update only its number is left.

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use relay_core::id::{JobName, Name};
use relay_core::job::{Declined, Inherited, Job, JobBounds, Place, Sender};
use relay_core::moment::Moment;
use relay_core::position::{Epoch, Seq};
use relay_core::publication::JobKey;
use tokio::task::yield_now;

use super::intake::{judge_again, parent};
use crate::seam::{First, History, Incoming, What};

/// Bytes read before others have their turn.
const READ_AT_ONCE: usize = 64 << 10;

/// A job that is about to be read from the store, and what its history is made with.
#[derive(Debug, Clone)]
pub(super) struct Rebuild {
    pub(super) id: JobName,
    /// Its number on this node.
    pub(super) key: JobKey,
    pub(super) epoch: Epoch,
    pub(super) now: Moment,
    pub(super) bounds: JobBounds,
    /// The group it was shown in until now: what removed it may have rolled up the states that name it.
    pub(super) group: Option<Name>,
    /// Messages that the store keeps of a subject.
    pub(super) per_subject: usize,
    /// What is known of the job already, for what the store has let go of.
    pub(super) inherited: Option<Inherited>,
    /// Up to where those who watch have been told of it, or that there is nothing.
    pub(super) told_to: Seq,
}

/// What the store has of one job.
#[derive(Debug)]
pub(super) struct Rebuilt {
    /// `None` if none of its updates is acceptable.
    pub(super) job: Option<Box<Job>>,
    /// All that is stored, without payloads.
    pub(super) updates: Vec<Incoming>,
    /// How many states have followed what is stored of the job's end.
    pub(super) late: u64,
    /// Where the state stood first, if it is one that was stored again.
    pub(super) stood_first: Option<First>,
    /// Those that are not told, by number.
    pub(super) declined: Vec<Stored>,
    /// Up to where that is all there is.
    pub(super) reach: Seq,
}

/// A stored update that is not told.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) seq: Seq,
    /// Bytes of its payload.
    pub(super) size: usize,
    pub(super) reason: Declined,
}

impl Rebuilt {
    /// Why an update that is stored is not told.
    pub(super) fn take_reason(&mut self, seq: Seq) -> Option<Declined> {
        let at = self
            .declined
            .binary_search_by_key(&seq, |stored| stored.seq)
            .ok()?;
        Some(self.declined.remove(at).reason)
    }

    /// The last of those that are not told, with what is stored of them: at most `limit`, the newest last.
    pub(super) fn last_declined(&self, limit: usize) -> impl Iterator<Item = (&Incoming, &Stored)> {
        let last = &self.declined[self.declined.len().saturating_sub(limit)..];
        last.iter().filter_map(|stored| {
            let at = self
                .updates
                .binary_search_by_key(&stored.seq, |update| update.seq);
            Some((self.updates.get(at.ok()?)?, stored))
        })
    }
}

impl Rebuild {
    /// Reads what is stored.
    ///
    /// A milestone published between an ending and the next attempt is declined by whoever sees it live;
    /// once the next ending has rolled the first one up, nobody can tell any more that it came after an
    /// ending, and it is accepted. It did happen, so it is told rather than looked for.
    pub(super) async fn read(self, history: History) -> Rebuilt {
        let mut updates = history.updates;
        // What came after an ending came after it, though that was stored again since.
        updates.sort_by_key(|update| update.first.map_or(update.seq, |first| first.seq));
        let mut job: Option<Box<Job>> = None;
        let mut declined = Vec::new();
        let mut stood_first = None;
        let mut read = 0;
        for update in &updates {
            read += update.payload.len();
            if read > READ_AT_ONCE {
                read = 0;
                yield_now().await;
            }
            if update.what == What::Gone {
                continue;
            }
            let place = Place {
                epoch: self.epoch,
                seq: update.seq,
                received_at: self.now,
                stored_at: update.stored_at,
            };
            let is_first = job.is_none();
            let by = job.get_or_insert_with(|| self.first(&updates, history.left_out_to));
            // Where that is behind what was told, nobody would hear of it there.
            let first = update.first.filter(|first| first.seq >= self.told_to);
            match judge_again(by, update, first, place, Sender::Away, &self.bounds) {
                Ok(judged) => {
                    if !by.enter(judged, &self.bounds).is_milestone() {
                        stood_first = update.first;
                    }
                }
                Err(reason) => {
                    declined.push(Stored {
                        seq: update.seq,
                        size: update.payload.len(),
                        reason,
                    });
                    job = job.filter(|_| !is_first);
                }
            }
        }
        let newest = updates.iter().map(|update| update.seq).max();
        let late = late(&updates, &declined);
        for update in &mut updates {
            update.payload = Bytes::new();
        }
        declined.sort_unstable_by_key(|it| it.seq);
        Rebuilt {
            job,
            reach: newest.unwrap_or_default().max(history.up_to),
            late,
            stood_first,
            updates,
            declined,
        }
    }

    /// The job before its first update.
    fn first(&self, updates: &[Incoming], left_out_to: Seq) -> Box<Job> {
        let JobName { owner, id } = self.id.clone();
        let mut first = Box::new(Job::new(self.key, id, owner, Seq::ZERO));
        let discarded = discarded_to(updates, self.per_subject).max(left_out_to);
        if discarded > Seq::ZERO {
            first.doubt(discarded);
        }
        first.belongs_to(first_parent(updates, &self.bounds).or_else(|| self.group.clone()));
        if let Some(known) = self.inherited.clone() {
            first.inherit(known);
        }
        first
    }
}

/// How many declined states stand behind the last that was accepted.
fn late(updates: &[Incoming], declined: &[Stored]) -> u64 {
    let declined: HashSet<Seq> = declined.iter().map(|it| it.seq).collect();
    let is_declined = |update: &&Incoming| declined.contains(&update.seq);
    let mut states: Vec<&Incoming> = updates.iter().filter(|it| it.what == What::State).collect();
    states.sort_unstable_by_key(|state| state.seq);
    let late = states.iter().rev().take_while(|state| is_declined(state));
    late.count() as u64
}

/// The group the first stored state names: a rollup leaves milestones without the state that was before
/// them, and those who watch the group are owed them too.
fn first_parent(updates: &[Incoming], bounds: &JobBounds) -> Option<Name> {
    let first = updates.iter().find(|each| each.what == What::State)?;
    parent(first, bounds).ok().flatten()
}

/// Up to which number a subject's messages may have been discarded for want of room.
fn discarded_to(updates: &[Incoming], per_subject: usize) -> Seq {
    let mut milestones: HashMap<&Name, (Seq, usize)> = HashMap::new();
    for update in updates {
        if let What::Milestone(name) = &update.what {
            let (_, count) = milestones.entry(name).or_insert((update.seq, 0));
            *count += 1;
        }
    }
    let full = milestones
        .into_values()
        .filter(|(_, count)| *count >= per_subject);
    full.map(|(first, _)| first).max().unwrap_or_default()
}
