//! Which of a shard's connections watch what, and what of that the hub is told.
//!
//! The hub counts a shard in for a topic from the first join that is asked for until the last interest ends. It
//! does not know which connection is which.
//!
//! Three maps, one per kind of topic, so that a publication is looked up by the names it carries without
//! making a topic of them. Members of a topic stand in one vector: the fan-out walks memory in order.

use std::sync::Arc;

use hashbrown::HashMap;
use relay_bus::hub::{Hub, JoinRequest};
use relay_bus::inbox::ConnectionId;
use relay_core::id::Name;
use relay_core::publication::Publication;
use relay_core::topic::Topic;
use relay_core::watcher::outbox::SubscriptionId;
use relay_core::watcher::session::Join;
use smallvec::SmallVec;

/// One connection's interest in one topic: where the connection is in the shard's slab, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) slot: usize,
    pub(super) via: SubscriptionId,
}

/// A topic's members. Most jobs have one, who needs no allocation.
type Members = SmallVec<[Interest; 1]>;

/// A shard's interests by topic.
#[derive(Debug)]
pub(super) struct Registry {
    shard: usize,
    hub: Arc<Hub>,
    jobs: HashMap<Name, Members>,
    users: HashMap<Name, Members>,
    groups: HashMap<Name, Members>,
    /// Joins asked for and not answered, by topic. They count as interest: the hub was told of it, and must
    /// not be told that nobody is left while one is under way.
    joining: HashMap<Topic, u32>,
}

impl Registry {
    /// The registry of a shard that nobody watches on.
    pub(super) fn new(shard: usize, hub: Arc<Hub>) -> Self {
        Self {
            shard,
            hub,
            jobs: HashMap::new(),
            users: HashMap::new(),
            groups: HashMap::new(),
            joining: HashMap::new(),
        }
    }

    /// Asks the hub for a subscription's first word.
    pub(super) fn join(&mut self, connection: ConnectionId, join: Join) {
        *self.joining.entry_ref(&join.topic).or_default() += 1;
        self.hub.join(JoinRequest {
            shard: self.shard,
            connection,
            subscription: join.subscription,
            topic: join.topic,
            cursor: join.cursor,
            again: join.again,
        });
    }

    /// A join was answered. The interest that waited for it, if it still does, is there from now on.
    pub(super) fn joined(&mut self, topic: &Topic, interest: Option<Interest>) {
        self.answered(topic);
        if let Some(interest) = interest {
            let members = self.map(topic).entry(topic.id().clone()).or_default();
            members.push(interest);
        }
        self.leave_unwanted(topic);
        self.check(topic);
    }

    /// An interest ends, perhaps before its join was answered.
    pub(super) fn leave(&mut self, topic: &Topic, connection: ConnectionId, interest: Interest) {
        if !self.remove(topic, interest)
            && self
                .hub
                .withdraw(topic, self.shard, connection, interest.via)
        {
            self.answered(topic);
        }
        self.leave_unwanted(topic);
        self.check(topic);
    }

    /// The hub is told when nobody on this shard is left.
    fn leave_unwanted(&self, topic: &Topic) {
        if !self.is_wanted(topic) {
            self.hub.leave(topic, self.shard);
        }
    }

    fn answered(&mut self, topic: &Topic) {
        if let Some(count) = self.joining.get_mut(topic) {
            *count -= 1;
            if *count == 0 {
                self.joining.remove(topic);
            }
        }
    }

    /// False if it was not there.
    fn remove(&mut self, topic: &Topic, interest: Interest) -> bool {
        let map = self.map(topic);
        let Some(members) = map.get_mut(topic.id()) else {
            return false;
        };
        let at = members.iter().position(|each| *each == interest);
        if let Some(at) = at {
            members.swap_remove(at);
        }
        if members.is_empty() {
            map.remove(topic.id());
        }
        at.is_some()
    }

    /// Asserts what holds after every change: a topic without interests has no entry, and nobody is listed twice.
    fn check(&mut self, topic: &Topic) {
        if cfg!(debug_assertions) {
            let entry = self.map(topic).get(topic.id());
            debug_assert!(entry.is_none_or(|members| !members.is_empty()));
            let members = self.watchers(topic);
            let twice = |at: usize| members[at + 1..].contains(&members[at]);
            // Of a thousand only the last can be new.
            let from = members.len().saturating_sub(8);
            debug_assert!(!(from..members.len()).any(twice), "listed twice: {topic}");
            debug_assert!(self.joining.values().all(|count| *count > 0));
        }
    }

    /// Whether anybody on this shard watches a topic, or is about to.
    pub(super) fn is_wanted(&self, topic: &Topic) -> bool {
        !self.watchers(topic).is_empty() || self.joining.contains_key(topic)
    }

    /// Everybody who watches what a publication is about: its job first, then its owner, then its group.
    /// Somebody who watches several of them comes several times.
    pub(super) fn watchers_of<'a>(
        &'a self,
        publication: &Publication,
    ) -> impl Iterator<Item = &'a Interest> + use<'a> {
        let by_job = self.jobs.get(&publication.job);
        let by_owner = self.users.get(&publication.owner);
        let by_group = publication
            .parent
            .as_ref()
            .and_then(|parent| self.groups.get(parent));
        let members = [by_job, by_owner, by_group].into_iter().flatten();
        members.flat_map(SmallVec::as_slice)
    }

    pub(super) fn watchers(&self, topic: &Topic) -> &[Interest] {
        let map = match topic {
            Topic::Job(_) => &self.jobs,
            Topic::User(_) => &self.users,
            Topic::Group(_) => &self.groups,
        };
        map.get(topic.id()).map_or(&[], SmallVec::as_slice)
    }

    fn map(&mut self, topic: &Topic) -> &mut HashMap<Name, Members> {
        match topic {
            Topic::Job(_) => &mut self.jobs,
            Topic::User(_) => &mut self.users,
            Topic::Group(_) => &mut self.groups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::serve::settings::test_node;
    use relay_core::job::Again;

    const CONNECTION: ConnectionId = ConnectionId(1);

    fn registry() -> Registry {
        Registry::new(0, test_node(&Config::default()).hub.clone())
    }

    fn interest(via: u32) -> Interest {
        Interest {
            slot: 0,
            via: SubscriptionId(via),
        }
    }

    fn join(registry: &mut Registry, topic: &Topic, via: u32) {
        let join = Join {
            subscription: SubscriptionId(via),
            topic: topic.clone(),
            cursor: None,
            again: Again::Nothing,
        };
        registry.join(CONNECTION, join);
    }

    #[test]
    fn regression_a_topic_is_wanted_while_a_join_is_under_way() {
        let topic = Topic::parse("job:j1").unwrap();
        let mut registry = registry();
        join(&mut registry, &topic, 0);
        registry.joined(&topic, Some(interest(0)));
        join(&mut registry, &topic, 1);
        registry.leave(&topic, CONNECTION, interest(0));
        assert!(
            registry.is_wanted(&topic),
            "the hub would forget the shard before the join is answered"
        );
        registry.joined(&topic, None);
        assert!(!registry.is_wanted(&topic));
    }

    #[test]
    fn an_interest_that_ends_twice_ends_once() {
        let topic = Topic::parse("user:alice").unwrap();
        let mut registry = registry();
        for via in 0..2 {
            join(&mut registry, &topic, via);
            registry.joined(&topic, Some(interest(via)));
        }
        registry.leave(&topic, CONNECTION, interest(0));
        registry.leave(&topic, CONNECTION, interest(0));
        assert_eq!(registry.watchers(&topic), [interest(1)]);
    }
}
