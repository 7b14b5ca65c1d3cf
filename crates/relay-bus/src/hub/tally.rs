//! Tallies: how the jobs of users and groups stand, told to shards at most once a second, and to whoever asks.

use std::sync::Arc;
use std::time::Duration;

use relay_core::publication::Frames;
use relay_core::tally::{Aggregate, Tally};
use relay_core::topic::Topic;
use tokio::sync::oneshot;

use super::join::members;
use super::table::{Deferred, LoadKey, SurveyRequest, Table};
use super::{Hub, Survey};
use crate::inbox::Message;

/// How often a tally that changed is told.
pub(super) const TALLY_INTERVAL: Duration = Duration::from_secs(1);
/// A shard this far behind is told of a tally later, when it is newer.
const BEHIND: usize = 1024;

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
        let key = match topic {
            Topic::Job(_) => return Ok(None),
            Topic::User(owner) => LoadKey::Owner(owner.clone()),
            Topic::Group(_) => LoadKey::Everything,
        };
        debug_assert!(!topic.is_bare(), "of nobody's group nothing can be said");
        let is_complete = table.index.is_complete(&key);
        if self.backing.memory().is_none() || is_complete && !table.index.is_unsure(topic) {
            return Ok(Some(surveyed(&table, topic)));
        }
        if table.loads.is_full() {
            return Ok(None);
        }
        let (answer, waiting) = oneshot::channel();
        let request = SurveyRequest {
            topic: topic.clone(),
            answer,
        };
        if is_complete {
            self.survey_now(&mut table, request);
        } else {
            self.load_once(&mut table, &key);
            table.loads.await_survey(key, request);
        }
        Err(waiting)
    }

    /// The jobs somebody asked about are listed: what they come to, once each is known well enough.
    pub(super) fn survey_now(&self, table: &mut Table, request: SurveyRequest) {
        let members = members(table, &request.topic);
        let unsure = self.unsure(table, &request.topic, &members, None);
        if unsure.is_empty() {
            self.answer_survey(table, request);
        } else {
            self.defer(table, unsure, Deferred::Survey(request));
        }
    }

    pub(super) fn answer_survey(&self, table: &Table, request: SurveyRequest) {
        let survey = surveyed(table, &request.topic);
        // Whoever asked may have stopped waiting.
        request.answer.send(survey).ok();
    }

    /// How the jobs of a user or a group stand now. From here on the shard is told whenever that changes,
    /// until its last watcher of the topic leaves.
    pub fn tally(&self, topic: &Topic, shard: usize) -> Option<Tally> {
        self.table().index.follow_tally(topic, shard)
    }

    /// Tells of what has changed since the last time.
    pub(super) fn tell_tallies(&self) {
        let mut table = self.table();
        for topic in table.index.take_changed() {
            let Some(shards) = table.index.followers(&topic) else {
                continue;
            };
            let tally = table.index.tally(&topic);
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
                table.index.put_off(topic);
            }
        }
    }
}

fn surveyed(table: &Table, topic: &Topic) -> Survey {
    // What is under repair counts as it was last known.
    let stale = table.is_stale() || table.index.has_repairs(topic);
    Survey {
        tally: table.index.tally(topic),
        epoch: table.epoch(),
        stale,
    }
}
