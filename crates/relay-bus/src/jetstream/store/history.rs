//! All that is stored of one job.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use relay_core::id::JobId;
use relay_core::position::Seq;

use super::Reading;
use super::lasts::{FIRST_PAUSE, Lasts, TRIES};
use super::window::Window;
use crate::jetstream::ask::{AskError, DirectAnswer, DirectGet};
use crate::jetstream::decode::{self, Stored};
use crate::seam::{Incoming, StoreError};
use crate::subject::Subjects;

/// Subjects of a job that are read each by itself, at the same time.
const SUBJECTS_READ_ONE_BY_ONE: usize = 16;
const MESSAGES_PER_GET: usize = 256;
/// Messages taken from the leader one by one.
const LEADER_STEPS: usize = 4096;

/// Some of a job's history: what a filter finds, and the number it must reach to be complete.
struct Part {
    filter: String,
    reach: Seq,
}

impl Part {
    fn new(filter: String, reach: Seq) -> Self {
        Self { filter, reach }
    }

    /// Everything of the job that belongs to the owner of `last`.
    fn owners(subjects: &Subjects, job: &JobId, last: &Stored) -> Self {
        let owner = subjects
            .parse(&last.subject)
            .ok()
            .map(|address| address.owner);
        Self::new(subjects.of_job(owner.as_ref(), job), last.seq)
    }
}

impl Reading<'_> {
    pub(super) async fn job(&self, job: JobId, at_least: Seq) -> Result<Vec<Incoming>, StoreError> {
        let everywhere = self.subjects.of_job(None, &job);
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            let (parts, up_to) = match self
                .lasts(std::slice::from_ref(&everywhere), at_least)
                .await?
            {
                Lasts::Are(lasts, up_to) => (self.parts(&job, &lasts), up_to),
                too_many_or_stale => {
                    // The leader is always fresh.
                    let last = self.asker.leader_last(&everywhere).await?;
                    let last = last.map(|last| decode::from_leader(self.subjects, last));
                    let part = last.map(|last| match too_many_or_stale {
                        Lasts::TooMany => Part::owners(self.subjects, &job, &last),
                        Lasts::Are(..) | Lasts::Stale => Part::new(everywhere.clone(), last.seq),
                    });
                    (part.into_iter().collect(), Seq::MAX)
                }
            };
            let reading = parts.iter().map(|part| self.part_of_history(part));
            let windows = try_join_all(reading).await?;
            let windows = windows.into_iter().collect::<Option<Vec<_>>>();
            // Rolled up meanwhile, a subject may have nothing left from before.
            let whole = windows.filter(|windows| windows.iter().all(|part| part.begins_by(up_to)));
            if let Some(windows) = whole {
                return Ok(Window::merge(windows, up_to).finish());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.leader_history(&everywhere, at_least).await
    }

    /// What to fetch so that the history reaches each of its last messages: subject by subject, or, where
    /// there are many, all of an owner's at once, which costs the server more for each message.
    fn parts(&self, job: &JobId, lasts: &[Stored]) -> Vec<Part> {
        let literal = |last: &Stored| Part::new(last.subject.clone(), last.seq);
        if lasts.len() <= SUBJECTS_READ_ONE_BY_ONE {
            return lasts.iter().map(literal).collect();
        }
        let mut parts: HashMap<String, Part> = HashMap::new();
        for last in lasts {
            let part = Part::owners(self.subjects, job, last);
            let most = parts.entry(part.filter.clone()).or_insert(part);
            most.reach = most.reach.max(last.seq);
        }
        parts.into_values().collect()
    }

    /// Everything stored under the filter, if the replica that answers has come as far as it must. A
    /// replica has the stream up to some number, without holes; so reaching the last is reaching all.
    async fn part_of_history(&self, part: &Part) -> Result<Option<Window>, AskError> {
        let mut window = Window::default();
        let mut reached = Seq::ZERO;
        loop {
            let get = DirectGet {
                seq: Some(reached.next()),
                next_by_subj: Some(&part.filter),
                batch: Some(MESSAGES_PER_GET),
                ..DirectGet::default()
            };
            let batch = match self.asker.direct(&get).await {
                Ok(DirectAnswer::Batch(batch)) => batch,
                Ok(DirectAnswer::Nothing | DirectAnswer::TooMany) => break,
                // Maybe another replica answers.
                Err(AskError::TimedOut { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let read = batch.messages.len();
            for message in batch.messages {
                if let Some(stored) = decode::direct(self.subjects, message) {
                    window.push(stored);
                }
            }
            reached = reached.max(batch.last);
            if batch.pending == 0 || read == 0 {
                break;
            }
        }
        Ok((reached >= part.reach).then_some(window))
    }

    /// The same from the leader, one by one.
    async fn leader_history(
        &self,
        filter: &str,
        at_least: Seq,
    ) -> Result<Vec<Incoming>, StoreError> {
        let mut window = Window::default();
        let mut next = Seq::new(1);
        for _ in 0..LEADER_STEPS {
            let Some(message) = self.asker.leader_next(filter, next).await? else {
                return Ok(window.finish());
            };
            next = Seq::new(message.sequence).next();
            window.push(decode::from_leader(self.subjects, message));
        }
        Err(AskError::Stale { at_least }.into())
    }
}
