//! What may not be sent yet: jobs whose updates are being repaired.
//!
//! A cursor above a missing update would say that it has been sent. So nobody who watches a job that is being
//! repaired is sent anything newer than the hold until the job is released.
//!
//! It does not know who watches, or why a repair takes its time.
//!
//! Invariant: a held job is listed under each topic it is known to be seen under, and nowhere else.

use hashbrown::HashMap;

use crate::id::{JobName, Name};
use crate::position::Seq;
use crate::topic::Topic;

/// A repair as far as a watcher is concerned.
#[derive(Debug, Clone)]
pub enum Repairing {
    /// Whoever watches the job is sent nothing above a number until it is released.
    Hold(Hold),
    /// The repair is done.
    Release(JobName),
    /// Everybody is sent nothing above this number until all is released: the bus was away, and what was
    /// missed is not known yet.
    HoldAll(Seq),
    /// The comparison with the store is done; what was missed is held job by job.
    ReleaseAll,
}

/// A job being repaired.
#[derive(Debug, Clone)]
pub struct Hold {
    /// The job.
    pub job: JobName,
    /// Its parent; where that is not known, any group may be its own.
    pub parent: Option<Name>,
    /// What its watchers have been sent up to.
    pub seq: Seq,
}

impl Hold {
    /// Whether the job may be seen under `topic`.
    pub fn concerns(&self, topic: &Topic) -> bool {
        let is_owner = |owner: &Option<Name>| owner.as_ref().is_none_or(|it| *it == self.job.owner);
        match topic {
            Topic::Job(named) => named.id == self.job.id && is_owner(&named.owner),
            Topic::User(owner) => *owner == self.job.owner,
            Topic::Group(named) => {
                let parent = self.parent.as_ref();
                is_owner(&named.owner) && parent.is_none_or(|parent| *parent == named.id)
            }
        }
    }

    /// The topics it is known to be seen under; whoever named one bare may be waiting for just this.
    pub fn topics(&self) -> impl Iterator<Item = Topic> + use<> {
        let owner = &self.job.owner;
        let group = self.parent.clone();
        let group = group.map(|id| Topic::group(JobName::new(owner.clone(), id)));
        let exact = [Topic::job(self.job.clone())].into_iter().chain(group);
        let both = exact.flat_map(|topic| [topic.bare(), topic]);
        both.chain([Topic::User(owner.clone())])
    }
}

/// Who may go on.
#[derive(Debug)]
#[must_use]
pub enum Released {
    /// Nobody: something is held, or nothing was.
    Nobody,
    /// Everybody.
    Everybody,
    /// Whoever watches this job.
    Watchers(Hold),
}

impl Released {
    /// Whether somebody who watches `topics` may go on.
    pub fn concerns<'a>(&self, mut topics: impl Iterator<Item = &'a Topic>) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Watchers(hold) => topics.any(|topic| hold.concerns(topic)),
        }
    }
}

/// The holds that are known; nearly always none.
#[derive(Debug, Default)]
pub struct Holds {
    jobs: HashMap<JobName, Hold>,
    /// The held jobs that may be seen under a topic.
    topics: HashMap<Topic, Vec<JobName>>,
    /// Held jobs whose group is not known: they may be of any of their owner's.
    groupless: Vec<JobName>,
    /// Up to where anybody may be sent anything while the bus is compared with what is known.
    all: Option<Seq>,
}

impl Holds {
    /// Takes a change; answers who may go on.
    pub fn take(&mut self, repairing: Repairing) -> Released {
        let released = match repairing {
            Repairing::Hold(hold) => {
                self.add(hold);
                Released::Nobody
            }
            Repairing::HoldAll(seq) => {
                self.all = Some(self.all.map_or(seq, |all| all.min(seq)));
                Released::Nobody
            }
            Repairing::ReleaseAll => {
                self.all = None;
                Released::Everybody
            }
            Repairing::Release(job) => self
                .remove(&job)
                .map_or(Released::Nobody, Released::Watchers),
        };
        self.check();
        released
    }

    /// The highest number somebody who watches `topics` may be sent; [`Seq::MAX`] where nothing holds.
    pub fn ceiling<'a>(&self, topics: impl IntoIterator<Item = &'a Topic>) -> Seq {
        let all = self.all.unwrap_or(Seq::MAX);
        if self.jobs.is_empty() {
            return all;
        }
        let held = |topic: &'a Topic| {
            let of_group = match topic {
                Topic::Group(_) => self.groupless.as_slice(),
                Topic::Job(_) | Topic::User(_) => &[],
            };
            let listed = self.topics.get(topic).map_or(&[][..], Vec::as_slice);
            listed.iter().chain(of_group)
        };
        let holds = topics.into_iter().flat_map(|topic| {
            let jobs = held(topic).filter_map(|job| self.jobs.get(job));
            jobs.filter(|hold| hold.concerns(topic))
        });
        let seqs = holds.map(|hold| hold.seq);
        seqs.min().unwrap_or(Seq::MAX).min(all)
    }

    fn add(&mut self, mut hold: Hold) {
        // The hub knows more of the job by now; what its watchers were sent up to has not changed.
        if let Some(known) = self.remove(&hold.job) {
            hold.seq = hold.seq.min(known.seq);
        }
        for topic in hold.topics() {
            self.topics.entry(topic).or_default().push(hold.job.clone());
        }
        if hold.parent.is_none() {
            self.groupless.push(hold.job.clone());
        }
        self.jobs.insert(hold.job.clone(), hold);
    }

    fn remove(&mut self, job: &JobName) -> Option<Hold> {
        let hold = self.jobs.remove(job)?;
        for topic in hold.topics() {
            if let Some(jobs) = self.topics.get_mut(&topic) {
                jobs.retain(|each| each != job);
                if jobs.is_empty() {
                    self.topics.remove(&topic);
                }
            }
        }
        self.groupless.retain(|each| each != job);
        Some(hold)
    }

    /// Asserts the invariant.
    fn check(&self) {
        if cfg!(debug_assertions) {
            let listed: usize = self.topics.values().map(Vec::len).sum();
            let known: usize = self.jobs.values().map(|hold| hold.topics().count()).sum();
            debug_assert_eq!(listed, known, "a topic lists a job that is not held");
            let groupless = self.jobs.values().filter(|hold| hold.parent.is_none());
            debug_assert_eq!(self.groupless.len(), groupless.count());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(text: &str) -> Topic {
        Topic::parse(text).unwrap()
    }

    fn name(text: &str) -> JobName {
        crate::id::Named::parse(text).unwrap().exact().unwrap()
    }

    fn hold(job: &str, parent: Option<&str>, seq: u64) -> Repairing {
        Repairing::Hold(Hold {
            job: name(job),
            parent: parent.map(|parent| Name::parse(parent).unwrap()),
            seq: Seq::new(seq),
        })
    }

    fn held(holds: &mut Holds, repairing: Repairing) {
        assert!(matches!(holds.take(repairing), Released::Nobody));
    }

    #[test]
    fn a_hold_concerns_every_topic_its_job_may_be_seen_under() {
        let mut holds = Holds::default();
        held(&mut holds, hold("alice/j1", None, 7));
        for held in [
            "job:j1",
            "job:alice/j1",
            "user:alice",
            "group:any",
            "group:alice/any",
        ] {
            let ceiling = holds.ceiling([&topic("job:j2"), &topic(held)]);
            assert_eq!(ceiling, Seq::new(7), "{held}");
        }
        for other in ["job:j2", "job:bob/j1", "user:bob", "group:bob/any"] {
            assert_eq!(holds.ceiling([&topic(other)]), Seq::MAX, "{other}");
        }
        assert!(matches!(
            holds.take(Repairing::Release(name("alice/j1"))),
            Released::Watchers(_)
        ));
        let its_own = [&topic("job:j1"), &topic("group:any")];
        assert_eq!(holds.ceiling(its_own), Seq::MAX);
    }

    #[test]
    fn a_hold_that_learns_its_group_keeps_its_number() {
        let mut holds = Holds::default();
        held(&mut holds, hold("alice/j1", None, 7));
        held(&mut holds, hold("alice/j1", Some("g"), 20));
        assert_eq!(holds.ceiling([&topic("user:alice")]), Seq::new(7));
        assert_eq!(holds.ceiling([&topic("group:other")]), Seq::MAX);
    }

    #[test]
    fn while_all_is_held_nobody_is_sent_anything_newer() {
        let mut holds = Holds::default();
        held(&mut holds, Repairing::HoldAll(Seq::new(9)));
        assert_eq!(holds.ceiling([&topic("job:j1")]), Seq::new(9));
        held(&mut holds, hold("alice/j1", None, 7));
        assert!(matches!(
            holds.take(Repairing::ReleaseAll),
            Released::Everybody
        ));
        assert_eq!(holds.ceiling([&topic("job:j1")]), Seq::new(7));
        assert_eq!(holds.ceiling([&topic("job:j2")]), Seq::MAX);
    }
}
