//! What may not be told yet: jobs whose updates are being repaired.
//!
//! A cursor above a missing update would say that it has been told. So whoever watches a job that is
//! being repaired is told nothing newer than the hold until the job is released.

use hashbrown::HashMap;
use relay_bus::inbox::{Hold, Repairing};
use relay_core::id::JobId;
use relay_core::position::Seq;
use relay_core::topic::Topic;

/// The holds a shard knows of; nearly always none.
#[derive(Debug, Default)]
pub(super) struct Holds {
    jobs: HashMap<JobId, Hold>,
    /// The held jobs that may be seen under a topic.
    topics: HashMap<Topic, Vec<JobId>>,
    /// Held jobs whose group is not known: they may be of any.
    groupless: Vec<JobId>,
    /// Up to where anybody may be told anything while the bus is compared with what is known.
    all: Option<Seq>,
}

/// Who may go on.
#[derive(Debug)]
pub(super) enum Released {
    Nobody,
    Everybody,
    /// Whoever watches this job.
    Watchers(Hold),
}

impl Holds {
    /// Takes what the hub says; answers who may go on.
    pub(super) fn take(&mut self, repairing: Repairing) -> Released {
        match repairing {
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
        }
    }

    /// The highest number somebody who watches `topics` may be told; `Seq::MAX` where nothing holds.
    pub(super) fn ceiling<'a>(&self, topics: impl IntoIterator<Item = &'a Topic>) -> Seq {
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
        let jobs = topics.into_iter().flat_map(held);
        let seqs = jobs.filter_map(|job| Some(self.jobs.get(job)?.seq));
        seqs.min().unwrap_or(Seq::MAX).min(all)
    }

    fn add(&mut self, mut hold: Hold) {
        // The hub knows more of the job by now; what its watchers were told up to has not changed.
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

    fn remove(&mut self, job: &JobId) -> Option<Hold> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_core::id::Name;

    fn topic(text: &str) -> Topic {
        Topic::parse(text).unwrap()
    }

    fn hold(job: &str, owner: Option<&str>, parent: Option<&str>, seq: u64) -> Repairing {
        let name = |text: &str| Name::parse(text).unwrap();
        Repairing::Hold(Hold {
            job: name(job),
            owner: owner.map(name),
            parent: parent.map(name),
            seq: Seq::new(seq),
        })
    }

    #[test]
    fn a_hold_concerns_every_topic_its_job_may_be_seen_under() {
        let mut holds = Holds::default();
        holds.take(hold("j1", Some("alice"), None, 7));
        for held in ["job:j1", "user:alice", "group:any"] {
            assert_eq!(
                holds.ceiling([&topic("job:j2"), &topic(held)]),
                Seq::new(7),
                "{held}"
            );
        }
        assert_eq!(
            holds.ceiling([&topic("job:j2"), &topic("user:bob")]),
            Seq::MAX
        );
        assert!(matches!(
            holds.take(Repairing::Release(Name::parse("j1").unwrap())),
            Released::Watchers(_)
        ));
        assert_eq!(
            holds.ceiling([&topic("job:j1"), &topic("group:any")]),
            Seq::MAX
        );
    }

    #[test]
    fn a_hold_that_learns_its_owner_keeps_its_number() {
        let mut holds = Holds::default();
        holds.take(hold("j1", None, None, 7));
        holds.take(hold("j1", Some("alice"), Some("g"), 20));
        assert_eq!(holds.ceiling([&topic("user:alice")]), Seq::new(7));
        assert_eq!(holds.ceiling([&topic("group:other")]), Seq::MAX);
    }

    #[test]
    fn while_all_is_held_nobody_is_told_anything_newer() {
        let mut holds = Holds::default();
        holds.take(Repairing::HoldAll(Seq::new(9)));
        assert_eq!(holds.ceiling([&topic("job:j1")]), Seq::new(9));
        holds.take(hold("j1", None, None, 7));
        holds.take(Repairing::ReleaseAll);
        assert_eq!(holds.ceiling([&topic("job:j1")]), Seq::new(7));
        assert_eq!(holds.ceiling([&topic("job:j2")]), Seq::MAX);
    }
}
