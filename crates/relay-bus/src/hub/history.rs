//! The hub's memory taken out and put back, for a bus that has no memory of its own.

use relay_core::document::Refusal;
use relay_core::id::{JobId, JobName, Owner};
use relay_core::job::{Job, JobMemory};
use relay_core::position::{Epoch, Position, Seq};
use relay_core::publication::Body;

use super::Hub;
use crate::poison;
use crate::seam::What;

/// Jobs copied at a time, so that nobody waits long for the table.
const JOBS_AT_ONCE: usize = 256;

/// Everything an embedded hub remembers.
#[derive(Debug, Default)]
pub struct History {
    /// Which life of the bus the numbers belong to.
    pub epoch: Epoch,
    /// The highest number given out.
    pub high: Seq,
    /// Below this a job that is not listed may have had updates.
    pub known_from: Seq,
    /// The jobs.
    pub jobs: Vec<Remembered>,
}

/// One job as it is put back.
#[derive(Debug)]
pub struct Remembered {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub owner: Owner,
    /// What is known of it.
    pub memory: JobMemory,
}

impl From<&Job> for Remembered {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            owner: job.owner.clone(),
            memory: job.memory(),
        }
    }
}

impl Hub {
    /// Copies what is remembered. Updates that come meanwhile may or may not be in the copy.
    pub fn history(&self) -> History {
        let ids = self.table().ids();
        let mut jobs: Vec<Remembered> = Vec::with_capacity(ids.len());
        for some in ids.chunks(JOBS_AT_ONCE) {
            let table = self.table();
            let known = some.iter().filter_map(|id| table.job(id));
            jobs.extend(known.map(Remembered::from));
        }
        // Oldest first, the order in which they are forgotten when there are too many.
        jobs.sort_by_key(|job| job.memory.publications.last().map(|last| last.seq));
        let table = self.table();
        History {
            epoch: table.epoch(),
            high: table.high(),
            known_from: table.known_from(),
            jobs,
        }
    }

    /// Puts back what was remembered before a restart. Call it before anything else has happened.
    ///
    /// # Errors
    /// When a job's state is not one that a hub accepts.
    pub fn restore(&self, history: History) -> Result<(), Refusal> {
        let mut table = self.table();
        let position = Position::new(history.epoch, history.high);
        table.begin_at(position, history.known_from);
        for Remembered { id, owner, memory } in history.jobs {
            let publications = memory.publications.clone();
            let key = publications
                .first()
                .map_or_else(|| table.new_key(), |first| first.key);
            table.keep_key(key);
            let last = publications.last().map_or(Seq::ZERO, |last| last.seq);
            let restored = poison::read(&id, Some(last), || {
                #[cfg(test)]
                poison::fault("panics-when-rebuilt", id.as_str());
                Job::restore(key, id.clone(), owner.clone(), memory)
            });
            let name = JobName::new(owner.clone(), id.clone());
            let Some(job) = restored.transpose()? else {
                table.doubt_below(last);
                continue;
            };
            let entry = table.entry(&name);
            entry.job = Some(Box::new(job));
            for publication in publications {
                let what = match &publication.body {
                    Body::Milestone { name, .. } => What::Milestone(name.clone()),
                    Body::State { .. } | Body::Gone(_) => What::State,
                };
                entry.note(&what, publication.seq);
            }
            table.enter(&name);
        }
        table.evict();
        Ok(())
    }
}
