//! Publishing on behalf of somebody who speaks HTTP: checked against what is known, then sent the way
//! every worker's update goes.

use std::time::Duration;

use bytes::Bytes;
use relay_core::document::merge_patch;
use relay_core::id::{JobId, Owner};
use relay_core::job::{Declined, Finality, Job, JobBounds, Sender, Subject};
use relay_core::position::{Position, Seq};
use relay_core::publication::{Body, JobKey};
use tokio::time::sleep;

use super::Hub;
use super::keys::{Claim, Claimed, RequestKey};
use crate::poison;
use crate::seam::{Incoming, Outgoing, Rejection, Stamp, StoreError, What};

/// How often a patch is tried again when somebody else published first.
const PATCH_TRIES: u32 = 10;

/// What kind of publishing this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// The payload is the update.
    Put(What),
    /// The payload is a JSON merge patch (RFC 7396) onto the last state.
    Patch,
    /// The job is taken away; there is no payload.
    Remove,
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
    /// By which its caller will know it when it has to be sent again.
    pub key: Option<RequestKey>,
}

/// Why an update is not on the bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The update is wrong or late.
    #[error(transparent)]
    Declined(#[from] Declined),
    /// Whoever asks may not publish for this owner.
    #[error("this user may not publish jobs of owner {owner}")]
    MayNot {
        /// Whose job it is.
        owner: Owner,
    },
    /// A patch for a job without a state.
    #[error(
        "no state of job {0} is known, so there is nothing to patch; POST the complete state first"
    )]
    UnknownJob(JobId),
    /// The removal of a job of which nothing is known.
    #[error("job {0} is not known, so there is nothing to remove")]
    NothingToRemove(JobId),
    /// The bus would not take it.
    #[error(transparent)]
    Bus(#[from] StoreError),
}

impl Hub {
    /// Publishes an update; answers with its place in history. `may_publish` says whether whoever asks may publish
    /// for the owner it turns out to be: the one the request names, else the job's, else nobody.
    ///
    /// # Errors
    /// Says what is wrong with the update, that it may not be published, or that the bus would not take it.
    pub async fn publish(
        &self,
        request: PublishRequest,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Position, PublishError> {
        if let Some(owner) = &request.owner {
            // Nothing is looked up for whoever may not.
            permitted(owner.clone(), &may_publish)?;
        }
        // The guard's verdict needs the job in memory, wherever it comes from.
        self.lookup(&request.job).await;
        let claim = match self.claim(&request, &may_publish).await? {
            Some(Claimed::Done(position)) => return Ok(position),
            Some(Claimed::New(claim)) => Some(claim),
            None => None,
        };
        let stamp = claim.as_ref().map(Claim::stamp);
        let position = self.publish_as(&request, stamp, &may_publish).await?;
        if let Some(claim) = claim {
            claim.done(position);
        }
        Ok(position)
    }

    /// Takes the request's key, if it has one.
    async fn claim(
        &self,
        request: &PublishRequest,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Option<Claimed<'_>>, PublishError> {
        let Some(key) = &request.key else {
            return Ok(None);
        };
        let owner = {
            let table = self.table();
            let job = table
                .get(&request.job)
                .and_then(|entry| entry.job.as_deref());
            request.owner(job, may_publish)?
        };
        let stamp = key.of_update(&owner, &request.job, &request.verb, &request.payload);
        let claimed = self.keys.claim(stamp, self.clock).await;
        Ok(Some(claimed.map_err(StoreError::from)?))
    }

    async fn publish_as(
        &self,
        request: &PublishRequest,
        stamp: Option<Stamp>,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Position, PublishError> {
        let Some(store) = self.backing.store() else {
            return self.publish_here(request, may_publish);
        };
        let mut tries = 0;
        loop {
            let outgoing = match self.prepare(request, stamp, &may_publish)? {
                Prepared::Outgoing(outgoing) => outgoing,
                Prepared::Done(position) => return Ok(position),
            };
            match store.publish(outgoing).await {
                Ok(seq) => return Ok(Position::new(self.epoch(), seq)),
                Err(StoreError::Conflict) if tries < PATCH_TRIES => {
                    // The other update is on its way to us; merge onto it once it is here.
                    tries += 1;
                    sleep(Duration::from_millis(u64::from(5 * tries))).await;
                }
                Err(error) => {
                    if let StoreError::Refused(rejection) = &error {
                        self.say_rejected(rejection);
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// What NATS rejects for good somebody has to mend there: it is logged, once a minute.
    fn say_rejected(&self, rejection: &Rejection) {
        if let Some(more) = self.rejected.lock().allow() {
            tracing::warn!(reason = %rejection, more, "NATS rejected an update that was published over HTTP; `relay check` compares its limits with the relay's");
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
            None => Err(Rejection::NoQuestions { subject }.into()),
        }
    }

    /// What goes onto the bus, if the job as it is known would accept it.
    fn prepare(
        &self,
        request: &PublishRequest,
        stamp: Option<Stamp>,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Prepared, PublishError> {
        let table = self.table();
        let (entry, bounds) = (table.get(&request.job), table.bounds());
        let job = entry.and_then(|entry| entry.job.as_deref());
        let owner = request.owner(job, may_publish)?;
        if let Some(removed) = request.is_done(job) {
            return Ok(Prepared::Done(removed));
        }
        let last = entry.map_or(Seq::ZERO, |entry| entry.last(&What::State));
        let read = poison::read(&request.job, None, || {
            let update = request.update(job)?;
            let finality = check(job, &request.job, &owner, &update, &bounds)?;
            Ok::<_, PublishError>((update, finality))
        });
        let (update, finality) = read.unwrap_or(Err(Declined::Panicked.into()))?;
        // What rolls up what was before it must not roll up a newer attempt that was not seen here.
        let is_onto = matches!(request.verb, Verb::Patch | Verb::Remove);
        Ok(Prepared::Outgoing(Outgoing {
            owner,
            job: request.job.clone(),
            what: update.what,
            payload: update.payload,
            finality,
            stamp,
            expected_last: is_onto.then_some(last),
            first: None,
        }))
    }

    /// Publishes where there is no bus: what is accepted is in the table.
    fn publish_here(
        &self,
        request: &PublishRequest,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Position, PublishError> {
        let mut table = self.table();
        let job = table.job(&request.job);
        let owner = request.owner(job, may_publish)?;
        if let Some(removed) = request.is_done(job) {
            return Ok(removed);
        }
        let update = poison::read(&request.job, None, || request.update(job));
        let update = update.unwrap_or(Err(Declined::Panicked.into()))?;
        let position = Position::new(table.epoch(), table.high().next());
        let incoming = Incoming {
            owner,
            job: request.job.clone(),
            what: update.what,
            payload: update.payload,
            seq: position.seq,
            previous: None,
            stored_at: self.clock.wall(),
            first: None,
        };
        let verdict = self.judge(&mut table, &incoming, Sender::Waiting);
        match verdict.judged {
            Ok(_) | Err(Declined::Repeated) => {}
            // No number is given to it.
            Err(declined) => return Err(declined.into()),
        }
        table.saw(position.seq);
        if let Err(repeated) = self.settle(&mut table, &incoming, verdict) {
            table.count(repeated.code());
        }
        Ok(position)
    }
}

/// What is to be done for a request.
enum Prepared {
    /// This goes onto the bus.
    Outgoing(Outgoing),
    /// Nothing: it was done before, here.
    Done(Position),
}

/// An update as it is published: of a patch, what it comes to.
struct Update {
    what: What,
    payload: Bytes,
}

impl PublishRequest {
    /// Whose update it is, if that is somebody it may be published for.
    fn owner(
        &self,
        job: Option<&Job>,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Owner, PublishError> {
        let known = job.map(|job| &job.owner);
        let owner = self.owner.as_ref().or(known).cloned();
        let owner = permitted(owner.unwrap_or_else(Owner::nobody), may_publish)?;
        match known {
            Some(known) if *known != owner => Err(Declined::ForeignOwner.into()),
            _ => Ok(owner),
        }
    }

    /// Where the job was taken away, if that is what is asked for.
    fn is_done(&self, job: Option<&Job>) -> Option<Position> {
        let removed = job.and_then(Job::removed);
        let removed = removed.filter(|_| self.verb == Verb::Remove);
        removed.map(|removed| removed.position())
    }

    fn update(&self, job: Option<&Job>) -> Result<Update, PublishError> {
        #[cfg(test)]
        poison::fault("panics-when-published", self.job.as_str());
        let (what, payload) = match &self.verb {
            Verb::Put(what) => (what.clone(), self.payload.clone()),
            Verb::Patch => {
                let state = job.and_then(Job::state);
                let Some(Body::State { json, .. }) = state.map(|state| &state.body) else {
                    return Err(PublishError::UnknownJob(self.job.clone()));
                };
                let merged = merge_patch(json, &self.payload);
                let merged = merged.map_err(|refusal| PublishError::Declined(refusal.into()))?;
                (What::State, Bytes::from(merged))
            }
            Verb::Remove => {
                let job = job.ok_or_else(|| PublishError::NothingToRemove(self.job.clone()))?;
                (What::State, Bytes::from(job.removal()))
            }
        };
        Ok(Update { what, payload })
    }
}

fn permitted(owner: Owner, may_publish: impl Fn(&Owner) -> bool) -> Result<Owner, PublishError> {
    if may_publish(&owner) {
        Ok(owner)
    } else {
        Err(PublishError::MayNot { owner })
    }
}

/// What the update is to its job's history, if it is acceptable at all.
fn check(
    job: Option<&Job>,
    id: &JobId,
    owner: &Owner,
    update: &Update,
    bounds: &JobBounds,
) -> Result<Finality, Declined> {
    let subject = match &update.what {
        What::Milestone(name) => Subject::Milestone(name),
        What::State | What::Gone => Subject::State,
    };
    match job {
        Some(job) => job.check(subject, &update.payload, bounds),
        None => Job::new(JobKey(0), id.clone(), owner.clone(), Seq::ZERO).check(
            subject,
            &update.payload,
            bounds,
        ),
    }
}
