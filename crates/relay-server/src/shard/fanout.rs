//! The fan-out: what the bus says reaches everybody on this shard whom it concerns.
//!
//! A connection that has nothing else to be sent gets a publication at once; with every other it waits for what
//! else is due. What a connection makes of it is its own affair.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use relay_bus::inbox::{ConnectionId, LostMilestones};
use relay_core::moment::Moment;
use relay_core::publication::Publication;
use relay_core::tally::Aggregate;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::Joined;
use relay_core::watcher::holds::{Released, Repairing};
use relay_core::watcher::sight::Viewer as _;

use super::connection::Occasion;
use super::registry::Interest;
use super::{Shard, State, on_panic};

impl Shard {
    /// Offers a publication to everybody on this shard who watches it. `alone` if nothing else came with it
    /// that had better leave in the same write.
    ///
    /// It is one walk. A panic costs the connection whose turn it was, and the walk goes on behind it.
    pub(super) fn fan_out(
        &self,
        state: &mut State,
        publication: &Arc<Publication>,
        alone: bool,
        now: Moment,
    ) {
        let is_news = state.tools.horizon.hear(publication.seq);
        let occasion = Occasion { alone, is_news };
        let mut desk = self.desk(&mut state.tools, now);
        let (connections, registry) = (&mut state.connections, &state.registry);
        let (dirty, ending) = (&mut state.dirty, &mut state.ending);
        let mut forbidden = Vec::new();
        let mut interests = registry.watchers_of(publication);
        let mut current = None;
        loop {
            let walked = catch_unwind(AssertUnwindSafe(|| {
                for interest in interests.by_ref() {
                    current = Some(interest.slot);
                    let Some(connection) = connections.get_mut(interest.slot) else {
                        continue;
                    };
                    if !connection.goes_on() {
                        continue;
                    }
                    #[cfg(test)]
                    super::tests::fault_in_fan_out(connection);
                    if !connection.offer(publication, interest.via, occasion, &mut desk) {
                        forbidden.push(*interest);
                    }
                    if connection.due && !connection.listed {
                        connection.listed = true;
                        dirty.push(interest.slot);
                    }
                    if !connection.goes_on() {
                        ending.push(interest.slot);
                    }
                }
            }));
            let (Err(_), Some(slot)) = (walked, current) else {
                break;
            };
            if let Some(connection) = connections.get_mut(slot) {
                on_panic(connection);
                ending.push(slot);
            }
        }
        drop(interests);
        for Interest { slot, via } in state.registry.waiting(publication) {
            self.bind(state, Interest { slot, via }, now);
        }
        for Interest { slot, via } in forbidden {
            self.work(state, slot, now, |connection, desk| {
                connection.refuse_subscription(via, desk);
            });
        }
    }

    /// A subscription that named its topic without an owner may have learnt whose it is.
    fn bind(&self, state: &mut State, interest: Interest, now: Moment) {
        let Interest { slot, via } = interest;
        let Some(connection) = state.connections.get(slot) else {
            return;
        };
        let bound = connection.watcher.subscription(via);
        let Some(exact) = bound
            .filter(|it| !it.is_unbound())
            .map(|it| it.topic.clone())
        else {
            return;
        };
        state.registry.bind(&exact.bare(), &exact, interest);
        self.work(state, slot, now, |connection, desk| {
            connection.begin_aggregates(via, &exact, desk);
        });
    }

    /// A join was answered: the subscription is live, and what it starts with goes out at once.
    pub(super) fn on_joined(
        &self,
        state: &mut State,
        connection: ConnectionId,
        joined: Joined,
        now: Moment,
    ) {
        state.tools.horizon.hear(joined.high);
        let (topic, via) = (joined.topic.clone(), joined.subscription);
        // It may have left while the hub was asked.
        let live = state.find(connection).filter(|slot| {
            let begun = self.work(state, *slot, now, |connection, desk| {
                connection.begin(joined, desk)
            });
            begun == Some(true)
        });
        let meant = live.and_then(|slot| {
            let connection = state.connections.get(slot)?;
            let subscription = connection.watcher.subscription(via)?;
            Some((Interest { slot, via }, subscription.topic.clone()))
        });
        let begun = meant.as_ref().map(|(interest, topic)| (*interest, topic));
        state.registry.joined(&topic, begun);
        // The hub tells of changes whoever watches, and knows that this shard does from here on.
        if let Some((Interest { slot, via }, topic)) = meant {
            self.work(state, slot, now, |connection, desk| {
                connection.begin_aggregates(via, &topic, desk);
            });
        }
    }

    /// How the jobs of a topic stand has changed.
    pub(super) fn on_aggregate(&self, state: &mut State, aggregate: &Aggregate, now: Moment) {
        for interest in state.registry.watchers(&aggregate.topic).to_vec() {
            self.work(state, interest.slot, now, |connection, desk| {
                connection.tell_aggregate(interest.via, aggregate, desk);
            });
        }
    }

    /// A repair began: whoever watches the job waits. It ended: they go on.
    pub(super) fn on_repair(&self, state: &mut State, repairing: Repairing) {
        let released = state.tools.horizon.repair(repairing);
        if matches!(released, Released::Nobody) {
            return;
        }
        for (slot, connection) in &mut state.connections {
            let watcher = &connection.watcher;
            if watcher.is_owed() && released.concerns(watcher.topics()) {
                connection.due = true;
                if !connection.listed {
                    connection.listed = true;
                    state.dirty.push(slot);
                }
            }
        }
    }

    /// Milestones were lost before they reached this shard: everybody who watches the job is told.
    pub(super) fn on_lost(&self, state: &mut State, lost: &LostMilestones, now: Moment) {
        let owner = lost.topics.iter().find_map(|topic| match topic {
            Topic::User(owner) => Some(owner),
            Topic::Job(_) | Topic::Group(_) => None,
        });
        let parent = lost.topics.iter().find_map(|topic| match topic {
            Topic::Group(parent) => Some(&parent.id),
            Topic::Job(_) | Topic::User(_) => None,
        });
        for topic in &lost.topics {
            for Interest { slot, via } in state.registry.watchers(topic).to_vec() {
                self.work(state, slot, now, |connection, desk| {
                    // Also that a job exists is not for everybody.
                    if connection.identity.may_watch(topic, owner, parent) {
                        connection.watcher.lose(&lost.what, lost.reason, via, now);
                        connection.due = true;
                        desk.node.telemetry.gap(lost.reason.as_str());
                    }
                });
            }
        }
    }
}
