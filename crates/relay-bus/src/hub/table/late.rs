//! Jobs whose worker goes on after what it said is settled: what came too late pushes an ending out of a store that
//! keeps so many messages of a subject.
//!
//! Knows ids and counts, and nothing of what the store holds.
//!
//! Invariant: a job is due once, however often it is asked for; all that is kept here is bounded.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use relay_core::id::JobName;
use relay_core::moment::Moment;

/// Jobs whose endings may wait to be stored again; past it they are asked for again when more comes.
const DUE: usize = 4096;
/// Jobs that are not in the table and are counted all the same.
const STRANGERS: usize = 16_384;
/// Between two jobs that are read for nobody but this.
const STRANGERS_EVERY: Duration = Duration::from_millis(50);

/// Endings to be stored again, and jobs that may have one.
#[derive(Debug, Default)]
pub(in crate::hub) struct Late {
    due: VecDeque<JobName>,
    /// Those that are due, or under way.
    asked: HashSet<JobName>,
    /// How many states have come of jobs that nobody watches and nothing is known of.
    strangers: HashMap<JobName, u64>,
    /// When one of them was read last.
    met: Option<Moment>,
}

impl Late {
    /// The job's ending has to be stored again. True if that is news.
    pub(in crate::hub) fn ask(&mut self, id: &JobName) -> bool {
        let is_new = self.asked.len() < DUE && !self.asked.contains(id);
        if is_new {
            self.asked.insert(id.clone());
            self.due.push_back(id.clone());
        }
        is_new
    }

    /// Whether any ending has to be stored again now.
    pub(in crate::hub) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next whose ending has to be stored again.
    pub(in crate::hub) fn next(&mut self) -> Option<JobName> {
        self.due.pop_front()
    }

    /// It is stored, or cannot be.
    pub(in crate::hub) fn done(&mut self, id: &JobName) {
        self.asked.remove(id);
    }

    /// A state came of a job that nothing is known of. True if the job has to be read: so many have come that they
    /// may push out an ending.
    pub(in crate::hub) fn meet(&mut self, id: &JobName, most: u64, now: Moment) -> bool {
        if self.strangers.len() >= STRANGERS && !self.strangers.contains_key(id) {
            // Whoever goes on is counted anew.
            self.strangers.clear();
        }
        let count = self.strangers.entry(id.clone()).or_default();
        *count += 1;
        let is_time = self.met.is_none_or(|met| now - met >= STRANGERS_EVERY);
        if *count < most || !is_time {
            return false;
        }
        self.strangers.remove(id);
        self.met = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_core::id::Name;

    fn job(id: &str) -> JobName {
        JobName::new(Name::nobody(), Name::parse(id).unwrap())
    }

    #[test]
    fn a_job_is_due_once_until_it_is_done() {
        let mut late = Late::default();
        let id = job("j");
        assert!(late.ask(&id));
        assert!(!late.ask(&id));
        assert_eq!(late.next().as_ref(), Some(&id));
        assert!(!late.ask(&id), "it is under way");
        late.done(&id);
        assert!(late.ask(&id));
    }

    #[test]
    fn strangers_are_counted_one_by_one_read_apart_and_bounded() {
        let mut late = Late::default();
        let (one, other) = (job("a"), job("b"));
        let start = Moment::default();
        assert!(!late.meet(&one, 2, start));
        assert!(!late.meet(&other, 2, start));
        assert!(late.meet(&one, 2, start));
        assert!(!late.meet(&other, 2, start), "one at a time");
        assert!(late.meet(&other, 2, start + STRANGERS_EVERY));
        for n in 0..3 * STRANGERS {
            late.meet(&job(&format!("j{n}")), 2, start);
        }
        assert!(late.strangers.len() <= STRANGERS);
    }
}
