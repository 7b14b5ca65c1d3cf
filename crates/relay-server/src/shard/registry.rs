//! Which of a shard's connections watch what.
//!
//! Three maps, one per kind of topic, so that a publication is looked up by the names it carries without
//! making a topic of them. Members of a topic stand in one vector: the fan-out walks memory in order.

use hashbrown::HashMap;
use relay_core::id::Name;
use relay_core::outbox::SubscriptionId;
use relay_core::publication::Publication;
use relay_core::topic::Topic;

/// One connection's interest in one topic: where the connection is in the shard's slab, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watcher {
    pub(super) slot: usize,
    pub(super) subscription: SubscriptionId,
}

/// A shard's watchers by topic.
#[derive(Debug, Default)]
pub(super) struct Registry {
    jobs: HashMap<Name, Vec<Watcher>>,
    users: HashMap<Name, Vec<Watcher>>,
    groups: HashMap<Name, Vec<Watcher>>,
}

impl Registry {
    pub(super) fn add(&mut self, topic: &Topic, watcher: Watcher) {
        let members = self.map(topic).entry(topic.id().clone()).or_default();
        members.push(watcher);
    }

    /// Removes a watcher. True if it was the topic's last.
    pub(super) fn remove(&mut self, topic: &Topic, watcher: Watcher) -> bool {
        let map = self.map(topic);
        let Some(members) = map.get_mut(topic.id()) else {
            return false;
        };
        if let Some(at) = members.iter().position(|each| *each == watcher) {
            members.swap_remove(at);
        }
        if !members.is_empty() {
            return false;
        }
        map.remove(topic.id());
        true
    }

    pub(super) fn is_watched(&self, topic: &Topic) -> bool {
        let map = match topic {
            Topic::Job(_) => &self.jobs,
            Topic::User(_) => &self.users,
            Topic::Group(_) => &self.groups,
        };
        map.contains_key(topic.id())
    }

    /// Everybody who watches what a publication is about: its job first, then its owner, then its group.
    /// Somebody who watches several of them comes several times.
    pub(super) fn watchers_of<'a>(
        &'a self,
        publication: &Publication,
    ) -> impl Iterator<Item = &'a Watcher> + use<'a> {
        let by_job = self.jobs.get(&publication.job);
        let by_owner = self.users.get(&publication.owner);
        let by_group = publication.parent.as_ref().and_then(|parent| self.groups.get(parent));
        [by_job, by_owner, by_group].into_iter().flatten().flatten()
    }

    pub(super) fn watchers(&self, topic: &Topic) -> &[Watcher] {
        let map = match topic {
            Topic::Job(_) => &self.jobs,
            Topic::User(_) => &self.users,
            Topic::Group(_) => &self.groups,
        };
        map.get(topic.id()).map_or(&[], Vec::as_slice)
    }

    fn map(&mut self, topic: &Topic) -> &mut HashMap<Name, Vec<Watcher>> {
        match topic {
            Topic::Job(_) => &mut self.jobs,
            Topic::User(_) => &mut self.users,
            Topic::Group(_) => &mut self.groups,
        }
    }
}
