//! What the table has of jobs beside what it tells watchers: the milestones that led to a state, and lists of states.
//!
//! It says what is known here and waits for nobody: whoever needs the store to be asked first looks a job up, or
//! surveys a topic, before.
//!
//! Invariant: nothing is changed by it.

use std::sync::Arc;

use relay_core::id::JobName;
use relay_core::publication::Publication;
use relay_core::topic::Topic;

use super::{Hub, SNAPSHOT_JOBS};

impl Hub {
    /// The milestones of a job's attempt that are remembered, in order, and whether there were earlier ones.
    pub fn milestones(&self, job: &JobName) -> (Vec<Arc<Publication>>, bool) {
        let table = self.table();
        let job = table.get(job).and_then(|entry| entry.job.as_ref());
        job.map_or((Vec::new(), true), |job| job.milestones())
    }

    /// The latest states of the jobs of a user or a group, the most recently updated first, at most `limit` of them.
    pub fn states(&self, topic: &Topic, limit: usize) -> Vec<Arc<Publication>> {
        let table = self.table();
        let newest = table.index.newest(topic).take(SNAPSHOT_JOBS);
        let states = newest.filter_map(|(_, id)| table.get(id)?.state().cloned());
        states.take(limit).collect()
    }
}
