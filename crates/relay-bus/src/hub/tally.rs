//! Tallies: how the jobs of watched users and groups stand, told to shards at most once a second.

use std::sync::Arc;
use std::time::Duration;

use relay_core::publication::Frames;
use relay_core::tally::{Aggregate, Tally};
use relay_core::topic::Topic;

use super::Hub;
use crate::inbox::Message;

/// How often a tally that changed is told.
pub(super) const TALLY_INTERVAL: Duration = Duration::from_secs(1);
/// A shard this far behind is told of a tally later, when it is newer.
const BEHIND: usize = 1024;

impl Hub {
    /// How the jobs of a user or a group stand now. From here on the shard is told whenever that changes,
    /// until its last watcher of the topic leaves.
    pub fn tally(&self, topic: &Topic, shard: usize) -> Option<Tally> {
        let mut table = self.table.lock();
        let members = table.members(topic)?;
        members.tallied |= 1 << shard;
        Some(members.tally)
    }

    /// Tells of what has changed since the last time.
    pub(super) fn tell_tallies(&self) {
        let mut table = self.table.lock();
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
