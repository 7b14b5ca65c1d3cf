//! The workers' side of a run: what is published when, and when all of it has been told.
//!
//! It decides what the next update is and whether it is due; [`crate::publisher`] carries it, and the
//! watchers' tally says where it got to.
//!
//! Invariant: an update's time is when it was due, however late it is published.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

use super::{Crowd, TICK};
use crate::publisher::Publisher;
use crate::scenario::Publish;
use crate::tally::{Class, document};

/// Nothing heard for this long, with something on its way: it will not come.
const STUCK: Duration = Duration::from_secs(15);

/// What to publish, and how large.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) publish: &'a Publish,
    pub(crate) payload: usize,
    /// Watchers that leave and come back, a second.
    pub(crate) churn: f64,
    /// The field of a document that says which update it is.
    pub(crate) carries: &'a str,
}

impl Crowd {
    /// Publishes as the scenario says until all is told, or nothing more comes. `show` is called about
    /// [`TICK`] apart.
    pub(crate) fn drive(&mut self, plan: &Plan<'_>, mut show: impl FnMut(&mut Self)) -> Result<()> {
        let began = Instant::now();
        let (mut sent, mut left) = (0, plan.publish.updates);
        let mut shares = Shares::default();
        let mut churned = 0;
        let mut progress = Instant::now();
        let mut before = (0, 0);
        loop {
            let now = Instant::now();
            while left > 0 {
                let at = match plan.publish.rate {
                    Some(rate) => began + Duration::from_secs_f64(sent as f64 / rate),
                    None if self.under_way() < plan.publish.window => now,
                    None => break,
                };
                if at > now {
                    break;
                }
                let job = (sent % self.names.len() as u64) as usize;
                let last_round = plan.publish.end && left <= self.names.len() as u64;
                self.publish(job, shares.next(plan.publish, last_round), plan, at);
                sent += 1;
                left -= 1;
            }
            if let Some(publisher) = &mut self.publisher {
                publisher.flush()?;
            }
            if plan.churn > 0.0 && began.elapsed().as_secs_f64() * plan.churn > f64::from(churned) {
                churned += 1;
                self.churn(churned as usize)?;
            }
            if left == 0 && self.under_way() == 0 {
                return Ok(());
            }
            let progressed = (self.tally.counts.deliveries, self.under_way());
            if progressed != before {
                (before, progress) = (progressed, now);
            } else if progress.elapsed() > STUCK && (left == 0 || plan.publish.rate.is_none()) {
                if left == 0 {
                    // What has not come will not; the report says how much it is.
                    return Ok(());
                }
                bail!(
                    "stuck: {} updates have not reached everybody within {STUCK:?}, {} connections lost{}",
                    self.under_way(),
                    self.lost,
                    self.complaint()
                );
            }
            let next = plan.publish.rate.filter(|_| left > 0).map(|rate| {
                (began + Duration::from_secs_f64(sent as f64 / rate))
                    .saturating_duration_since(Instant::now())
            });
            self.turn(next.unwrap_or(TICK).min(TICK))?;
            show(self);
        }
    }

    /// Updates that are not everywhere yet, or not acknowledged.
    fn under_way(&self) -> u64 {
        let unanswered = self.publisher.as_ref().map_or(0, Publisher::unanswered);
        self.tally.outstanding().max(unanswered)
    }

    fn publish(&mut self, job: usize, class: Class, plan: &Plan<'_>, at: Instant) {
        let (number, attempt) = (self.tally.next(job), self.attempts[job]);
        let body = document(number, class, attempt, plan.payload, plan.carries);
        self.tally.published(job, at, class);
        if class == Class::Ending {
            self.attempts[job] += 1;
        }
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(&self.names[job], class, &body);
        }
    }
}

/// Spreads milestones and endings evenly among states.
#[derive(Debug, Default)]
struct Shares {
    milestones: f64,
    endings: f64,
}

impl Shares {
    fn next(&mut self, publish: &Publish, last_round: bool) -> Class {
        self.milestones += publish.milestones;
        self.endings += publish.endings;
        if last_round || self.endings >= 1.0 {
            self.endings -= self.endings.floor();
            Class::Ending
        } else if self.milestones >= 1.0 {
            self.milestones -= 1.0;
            Class::Milestone
        } else {
            Class::State
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_spread_evenly_and_the_last_round_ends() {
        let publish = Publish {
            milestones: 0.25,
            endings: 0.5,
            ..Publish::default()
        };
        let mut shares = Shares::default();
        let classes: Vec<Class> = (0..8).map(|_| shares.next(&publish, false)).collect();
        let count = |class| classes.iter().filter(|each| **each == class).count();
        assert_eq!((count(Class::Ending), count(Class::State)), (4, 3));
        assert_eq!(count(Class::Milestone), 1);
        assert_eq!(shares.next(&publish, true), Class::Ending);
    }
}
