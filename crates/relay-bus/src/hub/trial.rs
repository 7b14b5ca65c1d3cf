//! Updates judged as they would be on ingest, before anybody publishes them: without a bus, without clients.
//!
//! Invariant: what reads a subject, judges an update and words a refusal here is what does so for a message that
//! came over the bus.

use bytes::Bytes;
use hashbrown::HashMap;
use relay_core::id::{JobId, JobName, Owner};
use relay_core::job::{Declined, Job, JobBounds, Place, Sender};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::JobKey;

use super::intake::judge;
use crate::clock::Clock;
use crate::seam::{About, Incoming, RefusedUpdate, What};
use crate::subject::{PrefixError, Subjects};

/// Jobs as they would be known if everything tried had been published, in this order.
#[derive(Debug)]
pub struct Trial {
    subjects: Subjects,
    bounds: JobBounds,
    clock: Clock,
    seq: Seq,
    /// What was accepted; as large as what is tried.
    jobs: HashMap<JobName, Job>,
}

/// What would become of an update that is not refused.
#[derive(Debug)]
pub enum Tried {
    /// Watchers are sent it, without what is wrong in it. Over HTTP it would be refused for that.
    Accepted(Vec<RefusedUpdate>),
    /// It says what the last one said: nobody is sent anything.
    Repeated,
}

impl Trial {
    /// Nothing was tried yet. Subjects begin with `prefix`.
    ///
    /// # Errors
    /// When it is not a prefix.
    pub fn new(prefix: &str, bounds: JobBounds) -> Result<Self, PrefixError> {
        Ok(Self {
            subjects: Subjects::not_republished(prefix)?,
            bounds,
            clock: Clock::start(),
            seq: Seq::ZERO,
            jobs: HashMap::new(),
        })
    }

    /// The subject of a job's states.
    pub fn subject(&self, owner: &Owner, job: &JobId) -> String {
        let name = JobName::new(owner.clone(), job.clone());
        self.subjects.of(&name, &What::State)
    }

    /// Tries an update that is published on `subject`.
    ///
    /// # Errors
    /// When the relay would refuse it: what it would say of it.
    pub fn publish(&mut self, subject: &str, payload: Bytes) -> Result<Tried, Box<RefusedUpdate>> {
        let stored_at = self.clock.wall();
        let address = self.subjects.parse(subject).map_err(|error| {
            let about = About {
                seq: None,
                size: payload.len(),
                time: stored_at,
            };
            self.subjects.refused(subject, &error, about)
        })?;
        self.seq = self.seq.next();
        let incoming = Incoming {
            job: address.job,
            what: address.what,
            payload,
            seq: self.seq,
            previous: None,
            stored_at,
            first: None,
        };
        let place = Place {
            epoch: Epoch::new(1),
            seq: self.seq,
            received_at: self.clock.now(),
            stored_at,
        };
        let known = self.jobs.remove(&incoming.job);
        let mut job = known.unwrap_or_else(|| {
            let (key, name) = (JobKey(self.seq.get()), incoming.job.clone());
            Job::new(key, name.id, name.owner, Seq::ZERO)
        });
        let judged = judge(&job, &incoming, place, Sender::Away, &self.bounds);
        let stem = self.subjects.stem();
        let tried = judged.map(|judged| {
            let lost = judged.dropped().iter();
            let lost = lost.map(|it| RefusedUpdate::shortened(stem, &incoming, it));
            let lost = lost.collect();
            job.enter(judged, &self.bounds);
            lost
        });
        // A job begins with the first update that is accepted.
        if job.state().is_some() || !job.publications().is_empty() {
            self.jobs.insert(incoming.job.clone(), job);
        }
        match tried {
            Ok(lost) => Ok(Tried::Accepted(lost)),
            Err(Declined::Repeated) => Ok(Tried::Repeated),
            Err(declined) => Err(RefusedUpdate::declined(stem, &incoming, &declined).into()),
        }
    }
}
