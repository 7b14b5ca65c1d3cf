//! How the jobs of a topic stand, taken together: said when a topic begins, and whenever that changes.

use relay_core::publication::Frames;
use relay_core::tally::Aggregate;
use relay_core::topic::Topic;
use relay_core::watcher::outbox::SubscriptionId;

use super::{Connection, Desk};

impl Connection {
    /// The client has begun to watch a topic.
    pub(crate) fn begin_aggregates(
        &mut self,
        via: SubscriptionId,
        topic: &Topic,
        desk: &mut Desk<'_>,
    ) {
        if !self.speaker.hears_aggregates(topic) {
            return;
        }
        if let Some(tally) = desk.node.hub.tally(topic, desk.shard) {
            let aggregate = Aggregate {
                topic: topic.clone(),
                tally,
                frames: Frames::default(),
            };
            self.tell_aggregate(via, &aggregate, desk);
        }
    }

    /// The jobs of a topic stand differently.
    pub(crate) fn tell_aggregate(
        &mut self,
        via: SubscriptionId,
        aggregate: &Aggregate,
        desk: &mut Desk<'_>,
    ) {
        if !self.speaker.hears_aggregates(&aggregate.topic) {
            return;
        }
        if self.outlet.is_blocked() {
            let owed = &mut self.rare().owed;
            if !owed.contains(&aggregate.topic) {
                owed.push(aggregate.topic.clone());
            }
            return;
        }
        let subscription = self.watcher.subscription(via);
        let is_bare = subscription.is_some_and(|each| each.is_bare);
        let told = (via, is_bare);
        let frame = self.speaker.aggregate(aggregate, told, desk.wall());
        self.reply(frame, desk);
    }

    /// There is room again: the topics whose jobs stand differently since there was none.
    pub(crate) fn tell_owed(&mut self, desk: &mut Desk<'_>) {
        let Some(rare) = &mut self.rare else {
            return;
        };
        let owed = std::mem::take(&mut rare.owed);
        self.tidy();
        for topic in owed {
            let showing: Vec<_> = self.watcher.showing(&topic).collect();
            for via in showing {
                self.begin_aggregates(via, &topic, desk);
            }
        }
    }
}
