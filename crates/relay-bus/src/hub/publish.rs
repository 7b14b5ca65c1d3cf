//! Publishing on behalf of somebody who speaks HTTP: checked against what is known, then sent the way
//! every worker's update goes.

use std::time::Duration;

use bytes::Bytes;
use relay_core::document::{Refusal, merge_patch};
use relay_core::id::{JobId, Owner};
use relay_core::job::{Declined, Job, JobBounds, Subject};
use relay_core::position::{Position, Seq};
use relay_core::publication::{Body, JobKey};
use tokio::time::sleep;

use super::Hub;
use crate::poison;
use crate::seam::{Incoming, Outgoing, StoreError, What};

/// How often a patch is tried again when somebody else published first.
const PATCH_TRIES: u32 = 10;

/// What kind of publishing this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// The payload is the update.
    Put(What),
    /// The payload is a JSON merge patch (RFC 7396) onto the last state.
    Patch,
}

/// Somebody wants to publish.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The job.
    pub job: JobId,
    /// Whose it is, where the caller says; otherwise the known owner, or nobody.
    pub owner: Option<Owner>,
    /// What to do.
    pub verb: Verb,
    /// The body.
    pub payload: Bytes,
    /// De-duplication id.
    pub message_id: Option<String>,
}

/// Why an update is not on the bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The update is wrong or late.
    #[error(transparent)]
    Declined(#[from] Declined),
    /// A patch for a job without a state.
    #[error(
        "no state of job {0} is known, so there is nothing to patch; POST the complete state first"
    )]
    UnknownJob(JobId),
    /// The bus would not take it.
    #[error(transparent)]
    Bus(#[from] StoreError),
}

impl Hub {
    /// The owner a request publishes for: the one it names, else the job's, else nobody.
    pub async fn owner_of(&self, job: &JobId, named: Option<&Owner>) -> Owner {
        match named {
            Some(owner) => owner.clone(),
            None => match self.lookup(job).await.state {
                Some(state) => state.owner.clone(),
                None => Owner::nobody(),
            },
        }
    }

    /// Publishes an update; answers with its place in history.
    ///
    /// # Errors
    /// Says what is wrong with the update, or that the bus would not take it.
    pub async fn publish(&self, request: PublishRequest) -> Result<Position, PublishError> {
        // The guard's verdict needs the job in memory, wherever it comes from.
        self.lookup(&request.job).await;
        let mut tries = 0;
        loop {
            let outgoing = self.prepare(&request)?;
            let Some(store) = self.backing.store() else {
                return self.publish_here(outgoing);
            };
            match store.publish(outgoing).await {
                Ok(seq) => {
                    return Ok(Position::new(self.epoch(), seq));
                }
                Err(StoreError::Conflict) if tries < PATCH_TRIES => {
                    // The other update is on its way to us; merge onto it once it is here.
                    tries += 1;
                    sleep(Duration::from_millis(u64::from(5 * tries))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks whoever answers `subject` on the bus.
    ///
    /// # Errors
    /// When nobody answers in time, or this bus cannot carry questions.
    pub async fn ask(
        &self,
        subject: String,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, StoreError> {
        match self.backing.store() {
            Some(store) => store.ask(subject, payload, timeout).await,
            None => Err(StoreError::Refused(format!(
                "this bus cannot carry requests, so nothing answers {subject}"
            ))),
        }
    }

    /// What goes onto the bus, if the job as it is known would accept it.
    fn prepare(&self, request: &PublishRequest) -> Result<Outgoing, PublishError> {
        let table = self.table();
        let entry = table.get(&request.job);
        let job = entry.and_then(|entry| entry.job.as_deref());
        let owner = request
            .owner
            .clone()
            .or_else(|| job.map(|job| job.owner.clone()))
            .unwrap_or_else(Owner::nobody);
        if job.is_some_and(|job| job.owner != owner) {
            return Err(Declined::ForeignOwner.into());
        }
        let last = entry.map_or(Seq::ZERO, |entry| entry.last(&What::State));
        let bounds = table.bounds();
        let outgoing = poison::read(&request.job, None, || {
            #[cfg(test)]
            poison::fault("panics-when-published", request.job.as_str());
            request.outgoing(job, owner, last, &bounds)
        });
        outgoing.unwrap_or(Err(Declined::Panicked.into()))
    }

    fn publish_here(&self, outgoing: Outgoing) -> Result<Position, PublishError> {
        let mut table = self.table();
        let incoming = Incoming {
            owner: outgoing.owner,
            job: outgoing.job,
            what: outgoing.what,
            payload: outgoing.payload,
            seq: table.high().next(),
            previous: None,
            stored_at: self.clock.wall(),
        };
        let position = Position::new(table.epoch(), incoming.seq);
        match self.take(&mut table, incoming) {
            Ok(_) | Err(Declined::Repeated) => Ok(position),
            Err(error) => {
                table.count(error.code());
                Err(error.into())
            }
        }
    }
}

impl PublishRequest {
    /// The update as it goes onto the bus; `last` is the number of the job's last state.
    fn outgoing(
        &self,
        job: Option<&Job>,
        owner: Owner,
        last: Seq,
        bounds: &JobBounds,
    ) -> Result<Outgoing, PublishError> {
        let (what, payload) = match &self.verb {
            Verb::Put(what) => (what.clone(), self.payload.clone()),
            Verb::Patch => {
                let state = job.and_then(Job::state);
                let Some(Body::State { json, .. }) = state.map(|state| &state.body) else {
                    return Err(PublishError::UnknownJob(self.job.clone()));
                };
                let merged = merge_patch(json, &self.payload).map_err(declined)?;
                (What::State, Bytes::from(merged))
            }
        };
        let subject = match &what {
            What::Milestone(name) => Subject::Milestone(name),
            What::State | What::Gone => Subject::State,
        };
        let terminal = match job {
            Some(job) => job.check(subject, &payload, bounds)?,
            None => Job::new(JobKey(0), self.job.clone(), owner.clone(), Seq::ZERO)
                .check(subject, &payload, bounds)?,
        };
        Ok(Outgoing {
            owner,
            job: self.job.clone(),
            what,
            payload,
            terminal,
            message_id: self.message_id.clone(),
            expected_last: (self.verb == Verb::Patch).then_some(last),
        })
    }
}

fn declined(refusal: Refusal) -> PublishError {
    PublishError::Declined(refusal.into())
}
