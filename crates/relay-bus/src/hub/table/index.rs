//! Which jobs are whose: by owner and by group, with how they stand taken together and which shards watch them.
//!
//! Knows ids, shards as bits of a mask, and the share of each job; not what else is known of a job. What it has
//! entered for a job it keeps in that job's [`Listing`].
//!
//! Invariants: nobody's jobs are listed without one, or a watcher; a tally counts no more jobs than are listed;
//! a group is watched if a shard watches it.

use hashbrown::{HashMap, HashSet};
use relay_core::id::{JobId, Name, Owner};
use relay_core::job::Job;
use relay_core::tally::{Share, Sum, Tally};
use relay_core::topic::Topic;

use super::Shards;
use super::loads::LoadKey;

/// The index.
#[derive(Debug, Default)]
pub(in crate::hub) struct Index {
    owners: HashMap<Owner, Members>,
    groups: HashMap<Name, Members>,
    /// Groups somebody watches.
    watched_groups: HashSet<Name>,
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
    jobs: HashSet<JobId>,
    shards: Shards,
    /// How the jobs stand, taken together.
    sum: Sum,
    /// How many of the jobs are known by their last state alone, which need not be the truth.
    unsure: u32,
    /// Shards that are told when that changes.
    tallied: Shards,
}

impl Members {
    fn put_in(&mut self, counted: Counted) {
        if let Some(share) = counted.share {
            self.sum.add(share);
        }
        self.unsure += u32::from(counted.is_unsure);
    }

    fn take_out(&mut self, counted: Counted) {
        if let Some(share) = counted.share {
            self.sum.remove(share);
        }
        self.unsure -= u32::from(counted.is_unsure);
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
}

#[derive(Debug, Clone)]
struct Place {
    owner: Owner,
    group: Option<Name>,
}

impl Index {
    /// Lists a job as it stands now.
    pub(super) fn enter(&mut self, listing: &mut Listing, job: &Job, is_unsure: bool) {
        let group = job.group();
        let share = job.state().and_then(|state| state.share());
        let counted = Counted { share, is_unsure };
        let stays = listing
            .place
            .as_ref()
            .is_some_and(|place| place.owner == job.owner && place.group.as_ref() == group);
        if stays && listing.counted == counted {
            return;
        }
        let place = Place {
            owner: job.owner.clone(),
            group: group.cloned(),
        };
        let before = listing.place.replace(place.clone());
        let counted_before = std::mem::replace(&mut listing.counted, counted);
        self.count(before.as_ref(), counted_before, Members::take_out);
        if !stays {
            self.unlist(&job.id, before);
            list(&mut self.owners, &place.owner, &job.id);
            if let Some(group) = &place.group {
                list(&mut self.groups, group, &job.id);
            }
        }
        self.count(Some(&place), counted, Members::put_in);
    }

    /// A job is not known any more.
    pub(super) fn remove(&mut self, id: &JobId, listing: Listing) {
        if let Some(place) = &listing.place {
            self.complete_owners.remove(&place.owner);
        }
        self.count(listing.place.as_ref(), listing.counted, Members::take_out);
        self.unlist(id, listing.place);
    }

    fn unlist(&mut self, id: &JobId, place: Option<Place>) {
        let Some(place) = place else {
            return;
        };
        unlist(&mut self.owners, &place.owner, id);
        if let Some(group) = place.group {
            unlist(&mut self.groups, &group, id);
        }
    }

    /// Puts what a job counts for into the sums of its owner and its group, or takes it out.
    fn count(
        &mut self,
        place: Option<&Place>,
        counted: Counted,
        change: fn(&mut Members, Counted),
    ) {
        let Some(place) = place else {
            return;
        };
        let of_owner = Topic::User(place.owner.clone());
        let of_group = place.group.clone().map(Topic::Group);
        for topic in std::iter::once(of_owner).chain(of_group) {
            if let Some(members) = self.members_mut(&topic) {
                change(members, counted);
                if members.tallied != 0 && counted.share.is_some() {
                    self.changed.insert(topic);
                }
            }
        }
    }

    fn members(&self, topic: &Topic) -> Option<&Members> {
        match topic {
            Topic::Job(_) => None,
            Topic::User(owner) => self.owners.get(owner),
            Topic::Group(group) => self.groups.get(group),
        }
    }

    fn members_mut(&mut self, topic: &Topic) -> Option<&mut Members> {
        match topic {
            Topic::Job(_) => None,
            Topic::User(owner) => self.owners.get_mut(owner),
            Topic::Group(group) => self.groups.get_mut(group),
        }
    }

    /// The jobs of an owner or a group, in no order.
    pub(in crate::hub) fn jobs(&self, topic: &Topic) -> impl Iterator<Item = &JobId> {
        self.members(topic).into_iter().flat_map(|it| &it.jobs)
    }

    /// Shards that watch the owner or the group.
    pub(super) fn watchers(&self, owner: &Owner, group: Option<&Name>) -> Shards {
        let by_owner = self.owners.get(owner).map_or(0, |members| members.shards);
        let by_group = group
            .and_then(|group| self.groups.get(group))
            .map_or(0, |members| members.shards);
        by_owner | by_group
    }

    /// Whether a shard watches the group.
    pub(in crate::hub) fn is_watched(&self, group: &Name) -> bool {
        self.watched_groups.contains(group)
    }

    /// Whether a shard watches any group.
    pub(in crate::hub) fn watches_groups(&self) -> bool {
        !self.watched_groups.is_empty()
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
            Topic::User(owner) => self.owners.entry(owner.clone()).or_default(),
            Topic::Group(group) => {
                self.watched_groups.insert(group.clone());
                self.groups.entry(group.clone()).or_default()
            }
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
                prune(&mut self.owners, owner);
                if !self.owners.contains_key(owner) {
                    // Owners without jobs are as many as anybody cares to name.
                    self.complete_owners.remove(owner);
                }
            }
            Topic::Group(group) => {
                if !is_watched {
                    self.watched_groups.remove(group);
                }
                prune(&mut self.groups, group);
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
                LoadKey::Everything | LoadKey::Job(_) => false,
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
            LoadKey::Everything | LoadKey::Job(_) => self.is_complete = true,
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
    pub(super) fn check(&self, is_known: impl Fn(&JobId) -> bool) {
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
            debug_assert!(members.jobs.iter().all(&is_known), "listed, and not known");
        }
        for (group, members) in &self.groups {
            let is_watched = self.watched_groups.contains(group);
            debug_assert_eq!(members.shards != 0, is_watched, "{group}");
        }
    }
}

fn list(index: &mut HashMap<Name, Members>, name: &Name, id: &JobId) {
    match index.get_mut(name) {
        Some(members) if members.jobs.contains(id) => {}
        Some(members) => {
            members.jobs.insert(id.clone());
        }
        None => {
            let members = index.entry(name.clone()).or_default();
            members.jobs.insert(id.clone());
        }
    }
}

fn unlist(index: &mut HashMap<Name, Members>, name: &Name, id: &JobId) {
    if let Some(members) = index.get_mut(name) {
        members.jobs.remove(id);
    }
    prune(index, name);
}

fn prune(index: &mut HashMap<Name, Members>, name: &Name) {
    if index.get(name).is_some_and(Members::is_idle) {
        index.remove(name);
    }
}
