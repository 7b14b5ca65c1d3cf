//! What must wait: above which number nobody is sent anything yet, and because of what.
//!
//! Three things hold clients back. A job that is being repaired holds those who watch it. The comparison after
//! the bus was away holds everybody until all that was missed is known. A hole in the stream, whose messages
//! are being fetched, holds everybody until they are in. Each change is kept until the hub has passed it on to
//! the shards, who hold the clients.
//!
//! Knows numbers and ids, and nothing of what is known of a job.
//!
//! Invariants: while there is a hole, it is known what came before it; a comparison that awaits no load any
//! more is over.

use hashbrown::{HashMap, HashSet};
use relay_core::id::{JobName, Name, Named};
use relay_core::position::Seq;
use relay_core::watcher::holds::{Hold, Repairing};

use super::loads::LoadKey;
use crate::seam::Held;

/// What holds clients back.
#[derive(Debug)]
pub(in crate::hub) struct Holdback {
    /// Jobs under repair that clients are owed something of.
    jobs: HashSet<JobName>,
    /// The comparison after the bus was away, while it is under way.
    comparison: Option<Comparison>,
    /// Ranges of missing messages that are being fetched.
    holes: u32,
    /// What came before the first of them; [`Seq::MAX`] where there is none.
    before_holes: Seq,
    /// What of all this the shards have not been told.
    untold: Vec<Repairing>,
}

/// After the bus was away nobody is told anything new until all that was missed is known.
#[derive(Debug)]
struct Comparison {
    /// The highest number that came before the bus went away.
    from: Seq,
    /// Watched jobs as they were held then. What has come live since may hide what was missed before it.
    watched: Vec<Held>,
    /// Loads that have to come in; `None` until the comparison of single jobs has.
    awaited: Option<HashSet<LoadKey>>,
}

impl Default for Holdback {
    fn default() -> Self {
        Self {
            jobs: HashSet::new(),
            comparison: None,
            holes: 0,
            before_holes: Seq::MAX,
            untold: Vec::new(),
        }
    }
}

impl Holdback {
    /// The changes that the shards have not been told, in their order.
    pub(in crate::hub) fn take_untold(&mut self) -> impl Iterator<Item = Repairing> {
        self.untold.drain(..)
    }

    /// The highest number that came before the bus went away, until what was missed since is known.
    pub(in crate::hub) fn missed_from(&self) -> Option<Seq> {
        self.comparison.as_ref().map(|comparison| comparison.from)
    }

    /// Whether the bus was away and what was missed is not known yet.
    pub(in crate::hub) fn is_comparing(&self) -> bool {
        self.comparison.is_some()
    }

    /// What was watched when the bus went away, until what was missed since is known.
    pub(in crate::hub) fn watched(&self) -> Option<&[Held]> {
        let comparison = self.comparison.as_ref()?;
        Some(&comparison.watched)
    }

    /// Jobs under repair that clients are owed something of.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &JobName> {
        self.jobs.iter()
    }

    /// Nobody who watches the job is told anything above `seq` until [`Holdback::release`].
    pub(super) fn hold(&mut self, id: &JobName, seq: Seq, parent: impl FnOnce() -> Option<Name>) {
        if self.jobs.insert(id.clone()) {
            self.untold.push(Repairing::Hold(Hold {
                job: id.clone(),
                parent: parent(),
                seq,
            }));
        }
    }

    /// The job's repair is done.
    pub(super) fn release(&mut self, id: &JobName) {
        if self.jobs.remove(id) {
            self.untold.push(Repairing::Release(id.clone()));
        }
    }

    /// The bus was away: nobody is told anything above `high` until what was missed is known. `watched` is what
    /// has to be compared.
    pub(super) fn hold_all(&mut self, high: Seq, mut watched: Vec<Held>) {
        // What was being fetched is compared with the rest.
        self.holes = 0;
        let before_holes = std::mem::replace(&mut self.before_holes, Seq::MAX);
        let mut from = high.min(before_holes);
        for held in &mut watched {
            held.seq = held.seq.min(before_holes);
        }
        if let Some(before) = self.comparison.take() {
            from = from.min(before.from);
            let still: HashMap<Named, Seq> = before
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
        self.comparison = Some(Comparison {
            from,
            watched,
            awaited: None,
        });
        self.untold.push(Repairing::HoldAll(from));
    }

    /// Single jobs have been compared; these loads say the rest of what was missed.
    pub(in crate::hub) fn compared(&mut self, awaited: HashSet<LoadKey>) {
        if let Some(comparison) = &mut self.comparison {
            comparison.awaited = Some(awaited);
            self.end_comparison();
        }
    }

    /// A load came in. True if it was the last that was awaited, and all that was missed is known.
    pub(in crate::hub) fn caught_up(&mut self, loaded: &LoadKey) -> bool {
        let comparison = self.comparison.as_mut();
        let Some(awaited) = comparison.and_then(|it| it.awaited.as_mut()) else {
            return false;
        };
        awaited.remove(loaded);
        self.end_comparison()
    }

    fn end_comparison(&mut self) -> bool {
        let awaited = self.comparison.as_ref().and_then(|it| it.awaited.as_ref());
        let is_over = awaited.is_some_and(HashSet::is_empty);
        if is_over {
            self.release_all();
        }
        is_over
    }

    /// Whoever waited for a comparison waits no more, unless messages are still being fetched.
    pub(in crate::hub) fn release_all(&mut self) {
        if self.comparison.take().is_some() && self.holes == 0 {
            self.untold.push(Repairing::ReleaseAll);
        }
    }

    /// Messages above `after` are being fetched: whose they are is not known, so everybody waits for them.
    pub(in crate::hub) fn hold_for_hole(&mut self, after: Seq) {
        self.holes += 1;
        self.before_holes = self.before_holes.min(after);
        self.untold.push(Repairing::HoldAll(after));
    }

    /// Some of them came.
    pub(in crate::hub) fn close_hole(&mut self) {
        if self.holes == 1 {
            self.forget_holes();
        }
        self.holes = self.holes.saturating_sub(1);
    }

    /// Nothing is missing any more, or it will not come.
    pub(in crate::hub) fn forget_holes(&mut self) {
        self.before_holes = Seq::MAX;
        if std::mem::take(&mut self.holes) > 0 && self.comparison.is_none() {
            self.untold.push(Repairing::ReleaseAll);
        }
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        let is_before_known = self.before_holes < Seq::MAX;
        debug_assert_eq!(self.holes > 0, is_before_known, "a hole has an edge");
        let awaited = self.comparison.as_ref().and_then(|it| it.awaited.as_ref());
        let is_over = awaited.is_some_and(HashSet::is_empty);
        debug_assert!(!is_over, "a comparison that awaits nothing is over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(holdback: &mut Holdback) -> Vec<String> {
        holdback.check();
        let told = holdback.take_untold();
        told.map(|repairing| match repairing {
            Repairing::Hold(hold) => format!("{} above {}", hold.job, hold.seq),
            Repairing::Release(job) => format!("{job} released"),
            Repairing::HoldAll(seq) => format!("all above {seq}"),
            Repairing::ReleaseAll => "all released".to_owned(),
        })
        .collect()
    }

    fn seq(number: u64) -> Seq {
        Seq::new(number)
    }

    fn job() -> JobName {
        JobName::new(Name::parse("alice").unwrap(), Name::parse("j").unwrap())
    }

    #[test]
    fn a_job_is_held_once_until_it_is_released() {
        let mut holdback = Holdback::default();
        holdback.hold(&job(), seq(4), || None);
        holdback.hold(&job(), seq(5), || None);
        assert_eq!(told(&mut holdback), ["alice/j above 4"]);
        holdback.release(&job());
        holdback.release(&job());
        assert_eq!(told(&mut holdback), ["alice/j released"]);
    }

    #[test]
    fn everybody_waits_until_the_last_hole_is_closed() {
        let mut holdback = Holdback::default();
        holdback.hold_for_hole(seq(8));
        holdback.hold_for_hole(seq(12));
        holdback.close_hole();
        assert_eq!(told(&mut holdback), ["all above 8", "all above 12"]);
        holdback.close_hole();
        holdback.close_hole();
        assert_eq!(told(&mut holdback), ["all released"]);
    }

    #[test]
    fn a_comparison_is_over_when_each_load_it_awaits_is_in() {
        let mut holdback = Holdback::default();
        holdback.hold_all(seq(9), Vec::new());
        assert!(
            !holdback.caught_up(&LoadKey::Everything),
            "nothing is compared"
        );
        holdback.compared([LoadKey::Everything].into());
        assert_eq!(told(&mut holdback), ["all above 9"]);
        assert!(holdback.caught_up(&LoadKey::Everything));
        assert_eq!(told(&mut holdback), ["all released"]);
        holdback.hold_all(seq(11), Vec::new());
        holdback.compared(HashSet::new());
        assert_eq!(told(&mut holdback), ["all above 11", "all released"]);
    }

    #[test]
    fn a_hole_that_is_open_when_the_bus_goes_is_compared_with_the_rest() {
        let mut holdback = Holdback::default();
        holdback.hold_for_hole(seq(5));
        let held = Held {
            job: job().into(),
            seq: seq(7),
        };
        holdback.hold_all(seq(9), vec![held]);
        assert_eq!(holdback.missed_from(), Some(seq(5)));
        assert_eq!(holdback.watched().unwrap()[0].seq, seq(5));
        // Away once more before the comparison was done: what was missed the first time still counts.
        holdback.hold_all(seq(20), Vec::new());
        assert_eq!(holdback.missed_from(), Some(seq(5)));
        // A hole that shows meanwhile is waited for by itself.
        holdback.hold_for_hole(seq(21));
        holdback.compared(HashSet::new());
        assert!(!holdback.is_comparing());
        assert_eq!(told(&mut holdback).last().unwrap(), "all above 21");
        holdback.close_hole();
        assert_eq!(told(&mut holdback), ["all released"]);
    }
}
