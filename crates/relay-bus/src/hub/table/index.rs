//! Which jobs are whose: by owner and by group, which is one owner's, with how they stand taken together and which shards watch them.
//!
//! Knows ids, shards as bits of a mask, and the share of each job; not what else is known of a job. What it has
//! entered for a job it keeps in that job's [`Listing`].
//!
//! Invariants: nobody's jobs are listed without one, or a watcher; a tally counts no more jobs than are listed;
//! a group is watched if a shard watches it; whoever wants the newest jobs of an owner or a group looks at no others.

use std::collections::BTreeSet;

use hashbrown::{HashMap, HashSet};
use relay_core::id::{JobName, JobNameRef, Name, Owner};
use relay_core::job::Job;
use relay_core::position::Seq;
use relay_core::tally::{Share, Sum, Tally};
use relay_core::topic::Topic;

use super::Shards;
use super::loads::LoadKey;
use super::namesakes::Namesakes;

/// The index.
#[derive(Debug, Default)]
pub(in crate::hub) struct Index {
    owners: HashMap<Owner, Members>,
    groups: HashMap<JobName, Members>,
    /// Whose the groups are that have an id, and who waits for one of them.
    pub(in crate::hub) names: Namesakes,
    /// Groups somebody watches.
    watched_groups: HashSet<JobName>,
    /// Owners all of whose jobs are in the table.
    complete_owners: HashSet<Owner>,
    /// Whether all jobs are in the table.
    is_complete: bool,
    /// Tallies that changed since shards were told of them.
    changed: HashSet<Topic>,
}

/// The jobs of an owner or a group, and the shards that watch them.
#[derive(Debug, Default)]
struct Members {
    /// In the order of their last numbers.
    jobs: BTreeSet<(Seq, JobName)>,
    shards: Shards,
    /// How the jobs stand, taken together.
    sum: Sum,
    /// How many of the jobs are known by their last state alone, which need not be the truth.
    unsure: u32,
    /// How many of the jobs are being repaired.
    repaired: u32,
    /// Shards that are told when that changes.
    tallied: Shards,
}

impl Members {
    fn put_in(&mut self, counted: Counted) {
        if let Some(share) = counted.share {
            self.sum.add(share);
        }
        self.unsure += u32::from(counted.is_unsure);
        self.repaired += u32::from(counted.is_repaired);
    }

    fn take_out(&mut self, counted: Counted) {
        if let Some(share) = counted.share {
            self.sum.remove(share);
        }
        self.unsure -= u32::from(counted.is_unsure);
        self.repaired -= u32::from(counted.is_repaired);
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.shards == 0
    }
}

/// Under what a job is listed, and what it counts for there.
#[derive(Debug, Default)]
pub(super) struct Listing {
    place: Option<Place>,
    counted: Counted,
}

/// What a job counts for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Counted {
    share: Option<Share>,
    /// Whether it is known by its last state alone, which need not be the truth.
    is_unsure: bool,
    /// Whether it is being repaired.
    is_repaired: bool,
}

/// What the index has to know of a job besides the job itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// The last number seen of it.
    pub(super) seq: Seq,
    /// Whether it is known by its last state alone, which need not be the truth.
    pub(super) is_unsure: bool,
    /// Whether it is being repaired.
    pub(super) is_repaired: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Place {
    owner: Owner,
    group: Option<JobName>,
    seq: Seq,
}

impl Place {
    fn topics(&self) -> impl Iterator<Item = Topic> {
        let of_owner = Topic::User(self.owner.clone());
        let of_group = self.group.clone().map(Topic::group);
        std::iter::once(of_owner).chain(of_group)
    }
}

impl Index {
    /// Lists a job as it stands now.
    pub(super) fn enter(&mut self, listing: &mut Listing, job: &Job, known: Known) {
        let group = job.group();
        let counted = Counted {
            share: job.state().and_then(|state| state.share()),
            is_unsure: known.is_unsure,
            is_repaired: known.is_repaired,
        };
        let before = listing.place.as_ref();
        // An entry is of one owner's job for good.
        let stays = before.is_some_and(|it| it.group.as_ref().map(|group| &group.id) == group);
        let in_place = stays && before.is_some_and(|it| it.seq == known.seq);
        if in_place && listing.counted == counted {
            return;
        }
        let place = Place {
            owner: job.owner.clone(),
            group: group.map(|id| JobName::new(job.owner.clone(), id.clone())),
            seq: known.seq,
        };
        let name = JobName::new(job.owner.clone(), job.id.clone());
        let before = listing.place.replace(place.clone());
        let counted_before = std::mem::replace(&mut listing.counted, counted);
        if !stays || counted_before != counted {
            let is_news = !stays || counted_before.share != counted.share;
            self.count(before.as_ref(), counted_before, is_news, Members::take_out);
            if !stays {
                self.unlist(&name, before.as_ref());
                self.list(&name, &place);
            }
            self.count(Some(&place), counted, is_news, Members::put_in);
        }
        if stays && !in_place {
            self.reorder(&name, before.as_ref(), &place);
        }
    }

    /// A job is not known any more.
    pub(super) fn remove(&mut self, id: &JobName, listing: Listing) {
        if let Some(place) = &listing.place {
            self.complete_owners.remove(&place.owner);
        }
        let Listing { place, counted } = listing;
        self.count(place.as_ref(), counted, true, Members::take_out);
        self.unlist(id, place.as_ref());
    }

    fn list(&mut self, id: &JobName, place: &Place) {
        let owner = self.owners.entry_ref(&place.owner).or_default();
        owner.jobs.insert((place.seq, id.clone()));
        if let Some(group) = &place.group {
            self.group(group).jobs.insert((place.seq, id.clone()));
        }
    }

    fn unlist(&mut self, id: &JobName, place: Option<&Place>) {
        let Some(place) = place else {
            return;
        };
        let listed = (place.seq, id.clone());
        for topic in place.topics() {
            if let Some(members) = self.members_mut(&topic) {
                members.jobs.remove(&listed);
            }
        }
        self.prune_owner(&place.owner);
        if let Some(group) = &place.group {
            self.prune_group(group);
        }
    }

    /// A group, made if there is none.
    fn group(&mut self, name: &JobName) -> &mut Members {
        if !self.groups.contains_key(name) {
            self.names.enter(name);
        }
        self.groups.entry_ref(name).or_default()
    }

    fn prune_owner(&mut self, owner: &Owner) {
        if self.owners.get(owner).is_some_and(Members::is_idle) {
            self.owners.remove(owner);
        }
    }

    fn prune_group(&mut self, group: &JobName) {
        if self.groups.get(group).is_some_and(Members::is_idle) {
            self.groups.remove(group);
            self.names.remove(group);
        }
    }

    /// A job has a newer number than before.
    fn reorder(&mut self, id: &JobName, before: Option<&Place>, now: &Place) {
        let Some(before) = before else {
            return;
        };
        let mut listed = (before.seq, id.clone());
        let owner = self.owners.get_mut(&now.owner);
        let group = now.group.as_ref();
        let group = group.and_then(|group| self.groups.get_mut(group));
        for members in owner.into_iter().chain(group) {
            listed.0 = before.seq;
            members.jobs.remove(&listed);
            listed.0 = now.seq;
            members.jobs.insert(listed.clone());
        }
    }

    /// Puts what a job counts for into the sums of its owner and its group, or takes it out. `is_news` where that
    /// changes what is told of them.
    fn count(
        &mut self,
        place: Option<&Place>,
        counted: Counted,
        is_news: bool,
        change: fn(&mut Members, Counted),
    ) {
        let Some(place) = place else {
            return;
        };
        for topic in place.topics() {
            if let Some(members) = self.members_mut(&topic) {
                change(members, counted);
                if is_news && members.tallied != 0 && counted.share.is_some() {
                    self.changed.insert(topic);
                }
            }
        }
    }

    fn members(&self, topic: &Topic) -> Option<&Members> {
        match topic {
            Topic::Job(_) => None,
            Topic::User(owner) => self.owners.get(owner),
            // Of a group without its owner nothing is said.
            Topic::Group(named) => {
                let (owner, id) = (named.owner.as_ref()?, &named.id);
                self.groups.get(&JobNameRef { owner, id })
            }
        }
    }

    fn members_mut(&mut self, topic: &Topic) -> Option<&mut Members> {
        match topic {
            Topic::Job(_) => None,
            Topic::User(owner) => self.owners.get_mut(owner),
            Topic::Group(named) => {
                let (owner, id) = (named.owner.as_ref()?, &named.id);
                self.groups.get_mut(&JobNameRef { owner, id })
            }
        }
    }

    /// The owners that have jobs in a group called so.
    pub(in crate::hub) fn owners(&self, group: &Name) -> impl Iterator<Item = &Owner> {
        let owners = self.names.owners(group).iter();
        owners.filter(|owner| self.has_group(JobNameRef { owner, id: group }))
    }

    /// Whether the group has jobs.
    fn has_group(&self, name: JobNameRef<'_>) -> bool {
        let members = self.groups.get(&name);
        members.is_some_and(|members| !members.jobs.is_empty())
    }

    /// The jobs of an owner or a group with their last numbers, the most recently updated first.
    pub(in crate::hub) fn newest(&self, topic: &Topic) -> impl Iterator<Item = &(Seq, JobName)> {
        let members = self.members(topic).into_iter();
        members.flat_map(|it| it.jobs.iter().rev())
    }

    /// Whether any job of a user or a group is being repaired.
    pub(in crate::hub) fn has_repairs(&self, topic: &Topic) -> bool {
        self.members(topic).is_some_and(|it| it.repaired > 0)
    }

    /// Shards that watch the owner or the group.
    pub(super) fn watchers(&self, owner: &Owner, group: Option<&Name>) -> Shards {
        let by_owner = self.owners.get(owner).map_or(0, |members| members.shards);
        let by_group = group.map_or(0, |id| {
            let members = self.groups.get(&JobNameRef { owner, id });
            members.map_or(0, |members| members.shards) | self.names.watchers(id)
        });
        by_owner | by_group
    }

    /// Whether a shard watches the group.
    pub(in crate::hub) fn is_watched(&self, group: JobNameRef<'_>) -> bool {
        self.watched_groups.contains(&group) || self.names.is_awaited(group.id)
    }

    /// Whether a shard watches any group.
    pub(in crate::hub) fn watches_groups(&self) -> bool {
        !self.watched_groups.is_empty() || self.names.has_awaited()
    }

    /// What has to be loaded so that no job of whom somebody watches is missed.
    pub(in crate::hub) fn watched_loads(&self) -> HashSet<LoadKey> {
        let watched = self.owners.iter().filter(|(_, it)| it.shards != 0);
        let owners = watched.map(|(owner, _)| LoadKey::Owner(owner.clone()));
        let all = self.watches_groups().then_some(LoadKey::Everything);
        owners.chain(all).collect()
    }

    /// A shard watches an owner or a group.
    pub(super) fn watch(&mut self, topic: &Topic, shard: usize) {
        let members = match topic {
            Topic::Job(_) => return,
            Topic::User(owner) => self.owners.entry_ref(owner).or_default(),
            Topic::Group(named) => match named.exact() {
                None => return self.names.watch(&named.id, shard),
                Some(group) => {
                    self.watched_groups.insert(group.clone());
                    self.group(&group)
                }
            },
        };
        members.shards |= 1 << shard;
    }

    /// A shard's last watcher of an owner or a group left.
    pub(super) fn leave(&mut self, topic: &Topic, shard: usize) {
        let mut is_watched = false;
        if let Some(members) = self.members_mut(topic) {
            members.shards &= !(1 << shard);
            members.tallied &= !(1 << shard);
            is_watched = members.shards != 0;
        }
        match topic {
            Topic::Job(_) => {}
            Topic::User(owner) => {
                self.prune_owner(owner);
                if !self.owners.contains_key(owner) {
                    // Owners without jobs are as many as anybody cares to name.
                    self.complete_owners.remove(owner);
                }
            }
            Topic::Group(named) => {
                let Some(group) = named.exact() else {
                    return self.names.leave(&named.id, shard);
                };
                if !is_watched {
                    self.watched_groups.remove(&group);
                }
                self.prune_group(&group);
            }
        }
    }

    /// How the jobs of a user or a group stand; all zeros where there are none.
    pub(in crate::hub) fn tally(&self, topic: &Topic) -> Tally {
        self.members(topic)
            .map(|it| it.sum.tally())
            .unwrap_or_default()
    }

    /// How they stand; from here on the shard is told whenever that changes, until its last watcher leaves.
    pub(in crate::hub) fn follow_tally(&mut self, topic: &Topic, shard: usize) -> Option<Tally> {
        let members = self.members_mut(topic)?;
        members.tallied |= 1 << shard;
        Some(members.sum.tally())
    }

    /// Whether of any job of a user or a group only the last state is known, which need not be the truth.
    pub(in crate::hub) fn is_unsure(&self, topic: &Topic) -> bool {
        self.members(topic)
            .is_some_and(|members| members.unsure > 0)
    }

    /// Tallies that changed since the last time.
    pub(in crate::hub) fn take_changed(&mut self) -> HashSet<Topic> {
        std::mem::take(&mut self.changed)
    }

    /// Some shard has not been told of a tally that changed.
    pub(in crate::hub) fn put_off(&mut self, topic: Topic) {
        self.changed.insert(topic);
    }

    /// The shards that are told how a topic's jobs stand; `None` if there are none any more.
    pub(in crate::hub) fn followers(&self, topic: &Topic) -> Option<Shards> {
        self.members(topic).map(|members| members.tallied)
    }

    /// Whether every job that a load would bring is in the table.
    pub(in crate::hub) fn is_complete(&self, key: &LoadKey) -> bool {
        self.is_complete
            || match key {
                LoadKey::Owner(owner) => self.complete_owners.contains(owner),
                LoadKey::Everything | LoadKey::Job(_) | LoadKey::Owners(_) => false,
            }
    }

    /// Every job that a load would bring is in the table; at most `most` owners are remembered for it.
    pub(in crate::hub) fn complete(&mut self, key: &LoadKey, most: usize) {
        match key {
            LoadKey::Owner(owner) => {
                // Who has no jobs leaves no trace but this one; they are asked for again.
                if self.complete_owners.len() >= most {
                    self.complete_owners.clear();
                }
                self.complete_owners.insert(owner.clone());
            }
            LoadKey::Everything | LoadKey::Job(_) | LoadKey::Owners(_) => self.is_complete = true,
        }
    }

    /// A job, whoever's it is, may not be in the table.
    pub(in crate::hub) fn doubt_some(&mut self) {
        self.is_complete = false;
    }

    /// A job of this owner may not be in the table.
    pub(in crate::hub) fn doubt_of(&mut self, owner: &Owner) {
        self.is_complete = false;
        self.complete_owners.remove(owner);
    }

    /// Any job may not be in the table.
    pub(in crate::hub) fn doubt_all(&mut self) {
        self.is_complete = false;
        self.complete_owners.clear();
    }

    /// How many owners and groups are listed.
    #[cfg(test)]
    pub(in crate::hub) fn len(&self) -> usize {
        self.owners.len() + self.groups.len()
    }

    /// Asserts the invariants; `jobs` is what there is of a listed job.
    pub(super) fn check(&self, is_known: impl Fn(&JobName) -> bool) {
        for members in self.owners.values().chain(self.groups.values()) {
            debug_assert!(!members.is_idle(), "listed for nothing");
            let counted = usize::try_from(members.sum.tally().total()).unwrap_or(usize::MAX);
            debug_assert!(
                counted <= members.jobs.len(),
                "counted more than are listed"
            );
            debug_assert_eq!(
                members.tallied & !members.shards,
                0,
                "told, and not watching"
            );
            let mut jobs = members.jobs.iter().map(|(_, id)| id);
            debug_assert!(jobs.all(&is_known), "listed, and not known");
        }
        self.names.check(self.groups.keys());
        for (group, members) in &self.groups {
            let is_watched = self.watched_groups.contains(group);
            debug_assert_eq!(members.shards != 0, is_watched, "{group}");
        }
    }
}

#[cfg(test)]
mod tests {
    use relay_core::publication::JobKey;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn job_name(id: &str) -> JobName {
        JobName::new(name("u1"), name(id))
    }

    #[test]
    fn the_newest_jobs_of_an_owner_come_first_whatever_came_between() {
        let mut index = Index::default();
        let job = |id: &str| Job::new(JobKey(1), name(id), name("u1"), Seq::ZERO);
        let listed = |index: &mut Index, listing: &mut Listing, id: &str, seq| {
            let known = Known {
                seq: Seq::new(seq),
                is_unsure: false,
                is_repaired: id == "b",
            };
            index.enter(listing, &job(id), known);
        };
        let (mut a, mut b, mut c) = <(Listing, Listing, Listing)>::default();
        listed(&mut index, &mut a, "a", 1);
        listed(&mut index, &mut b, "b", 2);
        listed(&mut index, &mut c, "c", 3);
        listed(&mut index, &mut a, "a", 4);
        let topic = Topic::User(name("u1"));
        let newest = |index: &Index| -> Vec<_> {
            let newest = index.newest(&topic);
            newest.map(|(_, name)| name.id.to_string()).collect()
        };
        assert_eq!(newest(&index), ["a", "c", "b"]);
        assert!(index.has_repairs(&topic));
        index.remove(&job_name("b"), b);
        assert_eq!(newest(&index), ["a", "c"]);
        assert!(!index.has_repairs(&topic));
        index.remove(&job_name("a"), a);
        index.remove(&job_name("c"), c);
        assert_eq!(index.len(), 0);
    }
}
