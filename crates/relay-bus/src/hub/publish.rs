//! Publishing on behalf of somebody who speaks HTTP: checked against what is known, then sent the way
//! every worker's update goes.

use std::time::Duration;

use bytes::Bytes;
use relay_core::document::merge_patch;
use relay_core::id::{JobId, JobName, Named, Owner};
use relay_core::job::{Declined, Finality, Job, JobBounds, Sender, Subject};
use relay_core::position::{Position, Seq};
use relay_core::publication::{Body, JobKey};
use relay_core::topic::Topic;
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
    /// Whose it is, where the caller says; otherwise the caller's own if there is one, else the only one that it may
    /// publish, or nobody's.
    pub owner: Option<Owner>,
    /// The caller.
    pub caller: Option<Owner>,
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
    /// Whoever asks may not publish for this owner, which it named, or which is nobody.
    #[error("this user may not publish jobs of owner {owner}")]
    MayNot {
        /// Whose job it would be.
        owner: Owner,
    },
    /// Several owners have a job by this id that whoever asks may publish.
    #[error("several owners have a job {0} that you may publish; say whose")]
    Ambiguous(JobId),
    /// Nobody can say now whose jobs there are by this id.
    #[error("it is not known now whose job {0} is")]
    Unsaid(JobId),
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

/// What was published.
#[derive(Debug)]
pub struct Published {
    /// Its place in history.
    pub at: Position,
    /// The job that it is of.
    pub name: JobName,
}

impl Hub {
    /// Publishes an update; answers with its place in history. `may_publish` says whether whoever asks may publish
    /// for an owner: the one the request names, or the one it turns out to mean.
    ///
    /// # Errors
    /// Says what is wrong with the update, that it may not be published, or that the bus would not take it.
    pub async fn publish(
        &self,
        request: PublishRequest,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Published, PublishError> {
        let owner = self.owner_meant(&request, may_publish).await?;
        let name = JobName::new(owner, request.job.clone());
        // The guard's verdict needs the job in memory, wherever it comes from.
        self.lookup(&name).await;
        let claim = match self.claim(&request, &name).await? {
            Some(Claimed::Done(at)) => return Ok(Published { at, name }),
            Some(Claimed::New(claim)) => Some(claim),
            None => None,
        };
        let stamp = claim.as_ref().map(Claim::stamp);
        let at = self.publish_as(&request, &name, stamp).await?;
        if let Some(claim) = claim {
            claim.done(at);
        }
        Ok(Published { at, name })
    }

    /// Whose job is meant. Of owners for whom the caller may not publish it is not told that there are any.
    async fn owner_meant(
        &self,
        request: &PublishRequest,
        may_publish: impl Fn(&Owner) -> bool,
    ) -> Result<Owner, PublishError> {
        if let Some(owner) = &request.owner {
            // Nothing is looked up for whoever may not.
            return permitted(owner.clone(), may_publish);
        }
        let own = request.caller.as_ref().filter(|own| may_publish(own));
        let topic = Topic::Job(Named::bare(request.job.clone()));
        let owners = self.owners(&topic, own).await;
        let owners = owners.ok_or_else(|| PublishError::Unsaid(request.job.clone()))?;
        let mut owners = owners.into_iter().filter(|owner| may_publish(owner));
        match (owners.next(), owners.next()) {
            (None, _) => permitted(Owner::nobody(), may_publish),
            (Some(owner), None) => Ok(owner),
            (Some(_), Some(_)) => Err(PublishError::Ambiguous(request.job.clone())),
        }
    }

    /// Takes the request's key, if it has one.
    async fn claim(
        &self,
        request: &PublishRequest,
        name: &JobName,
    ) -> Result<Option<Claimed<'_>>, PublishError> {
        let Some(key) = &request.key else {
            return Ok(None);
        };
        let stamp = key.of_update(name, &request.verb, &request.payload);
        let claimed = self.keys.claim(stamp, self.clock).await;
        Ok(Some(claimed.map_err(StoreError::from)?))
    }

    async fn publish_as(
        &self,
        request: &PublishRequest,
        name: &JobName,
        stamp: Option<Stamp>,
    ) -> Result<Position, PublishError> {
        let Some(store) = self.backing.store() else {
            return self.publish_here(request, name);
        };
        let mut tries = 0;
        loop {
            let outgoing = match self.prepare(request, name, stamp)? {
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
        name: &JobName,
        stamp: Option<Stamp>,
    ) -> Result<Prepared, PublishError> {
        let table = self.table();
        let (entry, bounds) = (table.get(name), table.bounds());
        let job = entry.and_then(|entry| entry.job.as_deref());
        if let Some(removed) = request.is_done(job) {
            return Ok(Prepared::Done(removed));
        }
        let last = entry.map_or(Seq::ZERO, |entry| entry.last(&What::State));
        let read = poison::read(name, None, || {
            let update = request.update(job)?;
            let finality = check(job, name, &update, &bounds)?;
            Ok::<_, PublishError>((update, finality))
        });
        let (update, finality) = read.unwrap_or(Err(Declined::Panicked.into()))?;
        // What rolls up what was before it must not roll up a newer attempt that was not seen here.
        let is_onto = matches!(request.verb, Verb::Patch | Verb::Remove);
        Ok(Prepared::Outgoing(Outgoing {
            job: name.clone(),
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
        name: &JobName,
    ) -> Result<Position, PublishError> {
        let mut table = self.table();
        let job = table.job(name);
        if let Some(removed) = request.is_done(job) {
            return Ok(removed);
        }
        let update = poison::read(name, None, || request.update(job));
        let update = update.unwrap_or(Err(Declined::Panicked.into()))?;
        let position = Position::new(table.epoch(), table.high().next());
        let incoming = Incoming {
            job: name.clone(),
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
    name: &JobName,
    update: &Update,
    bounds: &JobBounds,
) -> Result<Finality, Declined> {
    let subject = match &update.what {
        What::Milestone(name) => Subject::Milestone(name),
        What::State | What::Gone => Subject::State,
    };
    match job {
        Some(job) => job.check(subject, &update.payload, bounds),
        None => {
            let JobName { owner, id } = name.clone();
            let job = Job::new(JobKey(0), id, owner, Seq::ZERO);
            job.check(subject, &update.payload, bounds)
        }
    }
}
