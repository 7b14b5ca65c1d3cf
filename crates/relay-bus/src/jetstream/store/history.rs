//! All that is stored of one job, as of one number, and no more of it than a node reads.
//!
//! What comes later comes live, so a job that moves while it is read is not chased: what lies above the number is
//! left out. Of a subject that holds more bytes than may be read its last message is taken, and it is said that
//! there was more.
//!
//! Invariant: a load reads at most [`BYTES`] of states, and as much again of milestones, beside the last message of
//! each subject and one answer of the server.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use relay_core::id::JobName;
use relay_core::position::Seq;

use super::Reading;
use super::lasts::{FIRST_PAUSE, Lasts, TRIES};
use super::window::Window;
use crate::jetstream::ask::{AskError, DirectAnswer, DirectGet};
use crate::jetstream::decode::{self, Stored};
use crate::seam::{History, StoreError};

/// Subjects of a job that are read each by itself, at the same time.
const SUBJECTS_READ_ONE_BY_ONE: usize = 16;
const MESSAGES_PER_GET: usize = 256;
/// Bytes asked for at once.
const BYTES_PER_GET: usize = 1 << 20;
/// Bytes of states that are read of one job, and bytes of milestones: twice what a stream with 64 messages of
/// 64 KiB a subject holds of states.
const BYTES: usize = 8 << 20;
/// Messages taken from the leader one by one.
const LEADER_STEPS: usize = 4096;

/// Some of a job's history.
struct Part {
    /// What finds it.
    filter: String,
    /// The number it must reach to be complete.
    reach: Seq,
    /// The last messages it stands for; all that is taken of it where it is too large.
    lasts: Vec<Stored>,
}

impl Part {
    fn of(last: Stored) -> Self {
        Self {
            filter: last.subject.clone(),
            reach: last.seq,
            lasts: vec![last],
        }
    }

    fn is_states(&self) -> bool {
        !self.lasts.is_empty() && self.lasts.iter().all(Stored::is_state)
    }
}

/// Bytes that may still be read.
struct Budget(AtomicUsize);

impl Budget {
    fn new() -> Self {
        Self(AtomicUsize::new(BYTES))
    }

    /// Takes some; false if there are not so many.
    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if taken.is_err() {
            self.0.store(0, Ordering::Relaxed);
        }
        taken.is_ok()
    }
}

impl Reading<'_> {
    pub(super) async fn job(&self, job: JobName, at_least: Seq) -> Result<History, StoreError> {
        let everywhere = self.subjects.of_job(&job.clone().into());
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            let lasts = self.lasts(std::slice::from_ref(&everywhere), at_least);
            let (parts, up_to) = match lasts.await? {
                // Of nothing it is not said as of when.
                Lasts::Are(lasts, _) if lasts.is_empty() => (Vec::new(), at_least),
                Lasts::Are(lasts, up_to) => (self.parts(&job, lasts), up_to),
                Lasts::TooMany | Lasts::Stale => self.parts_by_leader(&job, at_least).await?,
            };
            let (states, milestones) = (Budget::new(), Budget::new());
            let reading = parts.iter().map(|part| {
                let budget = if part.is_states() {
                    &states
                } else {
                    &milestones
                };
                self.part_of_history(part, up_to, budget)
            });
            let windows = try_join_all(reading).await?;
            let windows = windows.into_iter().collect::<Option<Vec<_>>>();
            if let Some(windows) = windows {
                return Ok(Window::merge(windows, up_to).finish(up_to));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.leader_history(&everywhere, at_least).await
    }

    /// What to fetch so that the history reaches each of its last messages: subject by subject, or, where
    /// there are many milestones, all of them at once, which costs the server more for each message.
    fn parts(&self, job: &JobName, lasts: Vec<Stored>) -> Vec<Part> {
        if lasts.len() <= SUBJECTS_READ_ONE_BY_ONE {
            return lasts.into_iter().map(Part::of).collect();
        }
        let (states, milestones): (Vec<_>, Vec<_>) = lasts.into_iter().partition(Stored::is_state);
        let reach = milestones.iter().map(|last| last.seq).max();
        let milestones = reach.map(|reach| Part {
            filter: self.subjects.of_job(&job.clone().into()),
            reach,
            lasts: milestones,
        });
        let states = states.into_iter().map(Part::of);
        states.chain(milestones).collect()
    }

    /// The same where no replica can be asked for the last messages of all subjects: there are too many, or none is
    /// fresh. The leader always is.
    async fn parts_by_leader(
        &self,
        job: &JobName,
        at_least: Seq,
    ) -> Result<(Vec<Part>, Seq), AskError> {
        let everywhere = self.subjects.of_job(&job.clone().into());
        let Some(last) = self.asker.leader_last(&everywhere).await? else {
            return Ok((Vec::new(), at_least));
        };
        let last = decode::from_leader(self.subjects, last);
        let up_to = last.seq.max(at_least);
        let mut parts = Vec::new();
        let filter = self.subjects.state_of(job);
        if let Some(state) = self.asker.leader_last(&filter).await? {
            let state = decode::from_leader(self.subjects, state);
            parts.push(Part {
                filter,
                reach: state.seq,
                lasts: vec![state],
            });
        }
        parts.push(Part {
            filter: everywhere,
            reach: last.seq,
            // Its states are a part of their own.
            lasts: Some(last)
                .filter(|last| !last.is_state())
                .into_iter()
                .collect(),
        });
        Ok((parts, up_to))
    }

    /// Everything stored under the filter up to that number, if the replica that answers has come as far as it
    /// must. A replica has the stream up to some number, without holes; so reaching the last is reaching all.
    async fn part_of_history(
        &self,
        part: &Part,
        up_to: Seq,
        budget: &Budget,
    ) -> Result<Option<Window>, AskError> {
        let mut window = Window::default();
        let mut reached = Seq::ZERO;
        loop {
            let get = DirectGet {
                seq: Some(reached.next()),
                next_by_subj: Some(&part.filter),
                batch: Some(MESSAGES_PER_GET),
                max_bytes: Some(BYTES_PER_GET),
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
            let bytes = batch.messages.iter().map(|message| message.payload.len());
            if !budget.take(bytes.sum()) {
                tracing::debug!(
                    filter = part.filter,
                    "too much is stored of a job to be read"
                );
                return Ok(Some(Window::of_lasts(&part.lasts)));
            }
            for message in batch.messages {
                if let Some(stored) = decode::direct(self.subjects, message) {
                    window.push(stored);
                }
            }
            reached = reached.max(batch.last);
            if batch.pending == 0 || read == 0 || reached >= up_to {
                break;
            }
        }
        Ok((reached >= part.reach).then_some(window))
    }

    /// The same from the leader, one by one.
    async fn leader_history(&self, filter: &str, at_least: Seq) -> Result<History, StoreError> {
        let mut window = Window::default();
        let last = self.asker.leader_last(filter).await?;
        let up_to = last.map_or(at_least, |last| Seq::new(last.sequence).max(at_least));
        let mut next = Seq::new(1);
        for _ in 0..LEADER_STEPS {
            let message = self.asker.leader_next(filter, next).await?;
            let Some(message) = message.filter(|it| Seq::new(it.sequence) <= up_to) else {
                return Ok(window.finish(up_to));
            };
            next = Seq::new(message.sequence).next();
            window.push(decode::from_leader(self.subjects, message));
        }
        Err(AskError::Stale { at_least }.into())
    }
}
