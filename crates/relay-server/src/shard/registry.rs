//! Which of a shard's connections watch what.
//!
//! Three maps, one per kind of topic, so that a publication is looked up by the names it carries without
//! making a topic of them. Members of a topic stand in one vector: the fan-out walks memory in order.

use hashbrown::HashMap;
use relay_core::id::Name;
use relay_core::outbox::SubscriptionId;
use relay_core::publication::Publication;
use relay_core::topic::Topic;
use smallvec::SmallVec;

/// One connection's interest in one topic: where the connection is in the shard's slab, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) slot: usize,
    pub(super) via: SubscriptionId,
}

/// A topic's members. Most jobs have one, who needs no allocation.
type Members = SmallVec<[Interest; 1]>;

/// A shard's watchers by topic.
#[derive(Debug, Default)]
pub(super) struct Registry {
    jobs: HashMap<Name, Members>,
    users: HashMap<Name, Members>,
    groups: HashMap<Name, Members>,
    /// Joins asked for and not answered, by topic. They count as interest: the hub was told of it, and must
    /// not be told that nobody is left while one is under way.
    joining: HashMap<Topic, u32>,
}

impl Registry {
    /// A join is asked for.
    pub(super) fn expect(&mut self, topic: &Topic) {
        *self.joining.entry_ref(topic).or_default() += 1;
    }

    /// A join was answered.
    pub(super) fn answered(&mut self, topic: &Topic) {
        if let Some(count) = self.joining.get_mut(topic) {
            *count -= 1;
            if *count == 0 {
                self.joining.remove(topic);
            }
        }
    }

    pub(super) fn add(&mut self, topic: &Topic, interest: Interest) {
        let members = self.map(topic).entry(topic.id().clone()).or_default();
        members.push(interest);
    }

    pub(super) fn remove(&mut self, topic: &Topic, interest: Interest) {
        let map = self.map(topic);
        let Some(members) = map.get_mut(topic.id()) else {
            return;
        };
        if let Some(at) = members.iter().position(|each| *each == interest) {
            members.swap_remove(at);
        }
        if members.is_empty() {
            map.remove(topic.id());
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

    #[test]
    fn regression_a_topic_is_wanted_while_a_join_is_under_way() {
        let topic = Topic::parse("job:j1").unwrap();
        let leaving = Interest {
            slot: 0,
            via: SubscriptionId(0),
        };
        let mut registry = Registry::default();
        registry.add(&topic, leaving);
        registry.expect(&topic);
        registry.remove(&topic, leaving);
        assert!(
            registry.is_wanted(&topic),
            "the hub would forget the shard before the join is answered"
        );
        registry.answered(&topic);
        assert!(!registry.is_wanted(&topic));
    }
}
