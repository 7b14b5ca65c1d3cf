//! Tallies: how the jobs of users and groups stand, told to shards at most once a second, and to whoever asks.

use std::sync::Arc;
use std::time::Duration;

use relay_core::position::Epoch;
use relay_core::publication::Frames;
use relay_core::tally::{Aggregate, Tally};
use relay_core::topic::Topic;
use tokio::sync::oneshot;

use super::{Hub, MAX_LOADS};
use crate::inbox::Message;
use crate::table::{LoadKey, SurveyRequest, Table};

/// How often a tally that changed is told.
pub(super) const TALLY_INTERVAL: Duration = Duration::from_secs(1);
/// A shard this far behind is told of a tally later, when it is newer.
const BEHIND: usize = 1024;

/// How the jobs of a user or a group stand, for somebody who asks once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survey {
    /// How they stand; all zeros where there are none.
    pub tally: Tally,
    /// Which life of the bus that is of.
    pub epoch: Epoch,
    /// Whether the bus is away, so that they may stand differently by now.
    pub stale: bool,
}

impl Hub {
    /// How the jobs of a user or a group stand; waits for the store if it has to be asked which there are.
    /// `None` if nobody can say now.
    ///
    /// A user with more jobs than a snapshot lists is counted as far as this node knows them.
    pub async fn survey(&self, topic: &Topic) -> Option<Survey> {
        match self.survey_or_wait(topic) {
            Ok(survey) => survey,
            // The sender is dropped only with the hub.
            Err(waiting) => waiting.await.ok(),
        }
    }

    fn survey_or_wait(&self, topic: &Topic) -> Result<Option<Survey>, oneshot::Receiver<Survey>> {
        let mut table = self.table();
        let (key, complete) = match topic {
            Topic::Job(_) => return Ok(None),
            Topic::User(owner) => {
                let complete = table.complete || table.complete_owners.contains(owner);
                (LoadKey::Owner(owner.clone()), complete)
            }
            Topic::Group(_) => (LoadKey::Everything, table.complete),
        };
        if complete || self.backing.memory().is_none() {
            return Ok(Some(surveyed(&mut table, topic)));
        }
        if table.to_load.len() >= MAX_LOADS {
            return Ok(None);
        }
        let (answer, waiting) = oneshot::channel();
        self.load_once(&mut table, &key);
        let requests = table.surveys.entry(key).or_default();
        // Whoever asks over and over while the store is away has stopped waiting for the earlier answers.
        requests.retain(SurveyRequest::waits);
        requests.push(SurveyRequest {
            topic: topic.clone(),
            answer,
        });
        Err(waiting)
    }

    /// The jobs somebody asked about are in: what they come to.
    pub(super) fn answer_surveys(&self, table: &mut Table, key: &LoadKey) {
        for request in table.surveys.remove(key).unwrap_or_default() {
            let survey = surveyed(table, &request.topic);
            // Whoever asked may have stopped waiting.
            request.answer.send(survey).ok();
        }
    }

    /// How the jobs of a user or a group stand now. From here on the shard is told whenever that changes,
    /// until its last watcher of the topic leaves.
    pub fn tally(&self, topic: &Topic, shard: usize) -> Option<Tally> {
        let mut table = self.table();
        let members = table.members(topic)?;
        members.tallied |= 1 << shard;
        Some(members.tally)
    }

    /// Tells of what has changed since the last time.
    pub(super) fn tell_tallies(&self) {
        let mut table = self.table();
        for topic in std::mem::take(&mut table.tallies_changed) {
            let Some(members) = table.members(&topic) else {
                continue;
            };
            let (shards, tally) = (members.tallied, members.tally);
            let aggregate = Arc::new(Aggregate {
                topic: topic.clone(),
                tally,
                frames: Frames::default(),
            });
            let mut put_off = false;
            for (shard, inbox) in self.inboxes.iter().enumerate() {
                if shards & (1 << shard) == 0 {
                    continue;
                }
                if inbox.len() > BEHIND {
                    put_off = true;
                } else {
                    inbox.push(Message::Aggregate(aggregate.clone()));
                }
            }
            if put_off {
                table.tallies_changed.insert(topic);
            }
        }
    }
}

fn surveyed(table: &mut Table, topic: &Topic) -> Survey {
    // What is under repair counts as it was last known.
    let stale = table.stale || table.repairs > 0 && table.has_repairs(topic);
    Survey {
        tally: table.members(topic).map(|it| it.tally).unwrap_or_default(),
        epoch: table.epoch,
        stale,
    }
}
