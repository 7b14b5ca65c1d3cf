//! Which of a shard's connections watch what, and what of that the hub is told.
//!
//! The hub counts a shard in for a topic from the first join that is asked for until the last interest ends. It
//! does not know which connection is which.
//!
//! A map for each kind of topic, so that a publication is looked up by the names it carries without making a topic
//! of them; jobs and groups that are waited for without their owner stand apart until it is known. Members of a topic
//! stand in one vector: the fan-out walks memory in order.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;
use relay_bus::hub::{Hub, JoinRequest};
use relay_bus::inbox::ConnectionId;
use relay_core::id::{JobName, JobNameRef, Name};
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
    jobs: HashMap<JobName, Members>,
    users: HashMap<Name, Members>,
    groups: HashMap<JobName, Members>,
    /// Jobs and groups named without an owner, by their ids: members wait to learn whose they watch.
    unbound_jobs: HashMap<Name, Members>,
    unbound_groups: HashMap<Name, Members>,
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
            unbound_jobs: HashMap::new(),
            unbound_groups: HashMap::new(),
            joining: HashMap::new(),
        }
    }

    /// Asks the hub for a subscription's first word.
    pub(super) fn join(&mut self, connection: ConnectionId, own: Option<&Name>, join: Join) {
        *self.joining.entry_ref(&join.topic).or_default() += 1;
        self.hub.join(JoinRequest {
            shard: self.shard,
            connection,
            subscription: join.subscription,
            topic: join.topic,
            own: own.cloned(),
            cursor: join.cursor,
            again: join.again,
        });
    }

    /// A join was answered. The interest that waited for it, if it still does, is there from now on, in what it turned
    /// out to mean.
    pub(super) fn joined(&mut self, topic: &Topic, interest: Option<(Interest, &Topic)>) {
        self.answered(topic);
        if let Some((interest, meant)) = interest {
            self.enter(meant, interest);
            if meant != topic {
                // Until now it was heard of by its bare name, and is for as long as that is not left.
                self.hub.watch(meant, self.shard);
                self.check(meant);
            }
        }
        self.leave_unwanted(topic);
        self.check(topic);
    }

    /// An interest that waited to learn whose it is has learnt it.
    pub(super) fn bind(&mut self, bare: &Topic, exact: &Topic, interest: Interest) {
        if self.remove(bare, interest) {
            self.enter(exact, interest);
            self.hub.watch(exact, self.shard);
        }
        self.leave_unwanted(bare);
        self.check(bare);
        self.check(exact);
    }

    fn enter(&mut self, topic: &Topic, interest: Interest) {
        let members = match topic {
            Topic::User(user) => self.users.entry_ref(user),
            Topic::Job(named) => match named.exact() {
                Some(name) => return self.jobs.entry(name).or_default().push(interest),
                None => self.unbound_jobs.entry_ref(&named.id),
            },
            Topic::Group(named) => match named.exact() {
                Some(name) => return self.groups.entry(name).or_default().push(interest),
                None => self.unbound_groups.entry_ref(&named.id),
            },
        };
        members.or_default().push(interest);
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
        match topic {
            Topic::User(user) => remove(&mut self.users, user, interest),
            Topic::Job(named) => match named.exact() {
                Some(name) => remove(&mut self.jobs, &name, interest),
                None => remove(&mut self.unbound_jobs, &named.id, interest),
            },
            Topic::Group(named) => match named.exact() {
                Some(name) => remove(&mut self.groups, &name, interest),
                None => remove(&mut self.unbound_groups, &named.id, interest),
            },
        }
    }

    /// Asserts what holds after every change: a topic without interests has no entry, and nobody is listed twice.
    fn check(&mut self, topic: &Topic) {
        if cfg!(debug_assertions) {
            let entry = self.members(topic);
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

    /// Everybody who watches what a publication is about: its job first, then its owner, then its group; and whoever
    /// waits for one that is called so. Somebody who watches several of them comes several times.
    pub(super) fn watchers_of<'a>(
        &'a self,
        publication: &Publication,
    ) -> impl Iterator<Item = &'a Interest> + use<'a> {
        let by_job = self.jobs.get(&publication.name_ref());
        let by_owner = self.users.get(&publication.owner);
        let by_group = publication
            .group()
            .and_then(|group| self.groups.get(&group));
        let members = [by_job, by_owner, by_group].into_iter();
        let all = self.unbound(publication).into_iter().chain(members);
        all.flatten().flat_map(SmallVec::as_slice)
    }

    /// Those who wait for a job, or for a group, that is called as the publication's is.
    fn unbound(&self, publication: &Publication) -> [Option<&Members>; 2] {
        let parent = publication.parent.as_ref();
        [
            self.unbound_jobs.get(&publication.job),
            parent.and_then(|parent| self.unbound_groups.get(parent)),
        ]
    }

    /// As [`Registry::unbound`]; nearly always nobody.
    pub(super) fn waiting(&self, publication: &Publication) -> SmallVec<[Interest; 1]> {
        let all = self.unbound(publication).into_iter().flatten();
        all.flat_map(SmallVec::as_slice).copied().collect()
    }

    pub(super) fn watchers(&self, topic: &Topic) -> &[Interest] {
        self.members(topic).map_or(&[], SmallVec::as_slice)
    }

    fn members(&self, topic: &Topic) -> Option<&Members> {
        let (named, exact, unbound) = match topic {
            Topic::User(user) => return self.users.get(user),
            Topic::Job(named) => (named, &self.jobs, &self.unbound_jobs),
            Topic::Group(named) => (named, &self.groups, &self.unbound_groups),
        };
        match &named.owner {
            Some(owner) => exact.get(&JobNameRef {
                owner,
                id: &named.id,
            }),
            None => unbound.get(&named.id),
        }
    }
}

/// False if it was not there.
fn remove<K: Eq + Hash>(map: &mut HashMap<K, Members>, key: &K, interest: Interest) -> bool {
    let Some(members) = map.get_mut(key) else {
        return false;
    };
    let at = members.iter().position(|each| *each == interest);
    if let Some(at) = at {
        members.swap_remove(at);
    }
    if members.is_empty() {
        map.remove(key);
    }
    at.is_some()
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
        registry.join(CONNECTION, None, join);
    }

    #[test]
    fn regression_a_topic_is_wanted_while_a_join_is_under_way() {
        let topic = Topic::parse("job:j1").unwrap();
        let mut registry = registry();
        join(&mut registry, &topic, 0);
        registry.joined(&topic, Some((interest(0), &topic)));
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
    fn who_waits_for_an_id_is_found_under_its_owner_once_that_is_known() {
        let bare = Topic::parse("job:clip").unwrap();
        let exact = Topic::parse("job:alice/clip").unwrap();
        let mut registry = registry();
        join(&mut registry, &bare, 0);
        registry.joined(&bare, Some((interest(0), &bare)));
        registry.bind(&bare, &exact, interest(0));
        assert!(!registry.is_wanted(&bare));
        assert_eq!(registry.watchers(&exact), [interest(0)]);
        // It was known when its join was answered.
        join(&mut registry, &bare, 1);
        registry.joined(&bare, Some((interest(1), &exact)));
        assert_eq!(registry.watchers(&exact), [interest(0), interest(1)]);
        assert!(!registry.is_wanted(&bare));
    }

    #[test]
    fn an_interest_that_ends_twice_ends_once() {
        let topic = Topic::parse("user:alice").unwrap();
        let mut registry = registry();
        for via in 0..2 {
            join(&mut registry, &topic, via);
            registry.joined(&topic, Some((interest(via), &topic)));
        }
        registry.leave(&topic, CONNECTION, interest(0));
        registry.leave(&topic, CONNECTION, interest(0));
        assert_eq!(registry.watchers(&topic), [interest(1)]);
    }
}
