//! Which owners have something by one id, and which shards wait for one of these without saying whose.
//!
//! An id is its owner's. Somebody who names it alone means the client's own, or the only one that may be seen; to say
//! which that is, all that are called so have to be known. Knows names, and nothing of jobs or groups.
//!
//! Invariants: an id is kept while it has an owner here, or somebody waits for it; of owners that only the store
//! knows at most [`MOST`] are kept beside.

use hashbrown::HashMap;
use relay_core::id::{JobName, Name, Owner};
use relay_core::position::Seq;
use smallvec::SmallVec;

use super::Shards;

/// Owners that are considered where an id does not say whose it is. With more of them its owner has to be named.
pub(in crate::hub) const MOST: usize = 16;

/// All ids.
#[derive(Debug, Default)]
pub(in crate::hub) struct Namesakes {
    ids: HashMap<Name, Same>,
    /// How many ids somebody waits for.
    awaited: usize,
    /// How often all lists were put in doubt.
    doubts: u64,
}

/// What is called the same.
#[derive(Debug, Default)]
struct Same {
    /// In their order. Those at hand, and those that the store told of.
    owners: SmallVec<[Owner; 1]>,
    /// How many of them are at hand.
    here: usize,
    /// Shards that wait for any of them.
    shards: Shards,
    /// When the store was asked who there is, if that still holds: the doubts of then, and the number it was as of.
    listed: Option<(u64, Seq)>,
}

impl Same {
    fn add(&mut self, owner: &Owner) {
        if let Err(at) = self.owners.binary_search(owner) {
            self.owners.insert(at, owner.clone());
        }
    }
}

impl Namesakes {
    /// Something is at hand that was not.
    pub(super) fn enter(&mut self, name: &JobName) {
        let same = self.ids.entry_ref(&name.id).or_default();
        same.add(&name.owner);
        same.here += 1;
    }

    /// Something is not at hand any more. Whether the store has it, is not known from here on.
    pub(super) fn remove(&mut self, name: &JobName) {
        if let Some(same) = self.ids.get_mut(&name.id) {
            if let Ok(at) = same.owners.binary_search(&name.owner) {
                same.owners.remove(at);
            }
            same.here = same.here.saturating_sub(1);
        }
        self.prune(&name.id);
    }

    /// Who has something by this id, as far as is known.
    pub(in crate::hub) fn owners(&self, id: &Name) -> &[Owner] {
        self.ids.get(id).map_or(&[], |same| &same.owners)
    }

    /// Shards that wait for anybody's.
    pub(super) fn watchers(&self, id: &Name) -> Shards {
        if self.awaited == 0 {
            return 0;
        }
        self.ids.get(id).map_or(0, |same| same.shards)
    }

    /// The ids somebody waits for, and as of which number it was asked who has one.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (&Name, Seq)> {
        let awaited = self.ids.iter().filter(|(_, same)| same.shards != 0);
        awaited.map(|(id, same)| (id, same.listed.map_or(Seq::ZERO, |(_, seq)| seq)))
    }

    /// Whether somebody waits for anything.
    pub(super) fn has_awaited(&self) -> bool {
        self.awaited > 0
    }

    /// Whether somebody waits for anybody's.
    pub(in crate::hub) fn is_awaited(&self, id: &Name) -> bool {
        self.watchers(id) != 0
    }

    /// A shard waits.
    pub(super) fn watch(&mut self, id: &Name, shard: usize) {
        let same = self.ids.entry_ref(id).or_default();
        self.awaited += usize::from(same.shards == 0);
        same.shards |= 1 << shard;
    }

    /// A shard does not wait any more.
    pub(super) fn leave(&mut self, id: &Name, shard: usize) {
        if let Some(same) = self.ids.get_mut(id) {
            let was_awaited = same.shards != 0;
            same.shards &= !(1 << shard);
            self.awaited -= usize::from(was_awaited && same.shards == 0);
        }
        self.prune(id);
    }

    /// The store was asked who has something by this id, and knows no more as of this number.
    pub(in crate::hub) fn list(&mut self, id: &Name, owners: &[Owner], seq: Seq) {
        let doubts = self.doubts;
        let Some(same) = self.ids.get_mut(id) else {
            return;
        };
        for owner in owners {
            if same.owners.len() < same.here + MOST {
                same.add(owner);
            }
        }
        same.listed = Some((doubts, seq));
    }

    /// Whether it is known who has something by this id.
    pub(in crate::hub) fn is_listed(&self, id: &Name) -> bool {
        let listed = self.ids.get(id).and_then(|same| same.listed);
        listed.is_some_and(|(doubts, _)| doubts == self.doubts)
    }

    /// Somebody may have something by this id that is not at hand.
    pub(in crate::hub) fn doubt(&mut self, id: &Name) {
        if let Some(same) = self.ids.get_mut(id) {
            same.listed = None;
        }
    }

    /// Anybody may have something by any id.
    pub(in crate::hub) fn doubt_all(&mut self) {
        self.doubts += 1;
    }

    fn prune(&mut self, id: &Name) {
        let is_idle = |same: &Same| same.here == 0 && same.shards == 0;
        if self.ids.get(id).is_some_and(is_idle) {
            self.ids.remove(id);
        }
    }

    /// How many ids are kept.
    #[cfg(test)]
    pub(in crate::hub) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Asserts the invariants for what is at hand.
    pub(super) fn check<'a>(&self, names: impl Iterator<Item = &'a JobName>) {
        let mut here = 0;
        for name in names {
            here += 1;
            let owners = self.owners(&name.id);
            debug_assert!(owners.contains(&name.owner), "{name} is not listed");
        }
        let counted: usize = self.ids.values().map(|same| same.here).sum();
        debug_assert_eq!(counted, here, "listed, and not at hand");
        let awaited = self.ids.values().filter(|same| same.shards != 0);
        debug_assert_eq!(awaited.count(), self.awaited);
        for (id, same) in &self.ids {
            debug_assert!(
                same.here > 0 || same.shards != 0,
                "{id} is kept for nothing"
            );
            debug_assert!(same.owners.len() <= same.here + MOST, "{id}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn job(owner: &str) -> JobName {
        JobName::new(name(owner), name("clip"))
    }

    #[test]
    fn an_id_is_kept_while_somebody_has_it_or_waits_for_it() {
        let (mut names, id) = (Namesakes::default(), name("clip"));
        names.enter(&job("bob"));
        names.enter(&job("alice"));
        names.watch(&id, 3);
        assert_eq!(names.owners(&id), [name("alice"), name("bob")]);
        assert_eq!(names.watchers(&id), 1 << 3);
        names.list(&id, &[name("carol")], Seq::new(7));
        assert!(names.is_listed(&id));
        names.remove(&job("bob"));
        names.remove(&job("alice"));
        assert_eq!(names.len(), 1);
        names.leave(&id, 3);
        assert_eq!((names.len(), names.watchers(&id)), (0, 0));
    }

    #[test]
    fn what_was_listed_is_doubted_by_id_and_all_together() {
        let (mut names, id) = (Namesakes::default(), name("clip"));
        names.enter(&job("alice"));
        for doubt in [
            |names: &mut Namesakes, id: &Name| names.doubt(id),
            |names: &mut Namesakes, _: &Name| names.doubt_all(),
        ] {
            names.list(&id, &[], Seq::new(7));
            assert!(names.is_listed(&id));
            doubt(&mut names, &id);
            assert!(!names.is_listed(&id));
        }
    }

    #[test]
    fn of_owners_that_only_the_store_knows_a_bounded_number_is_kept() {
        let (mut names, id) = (Namesakes::default(), name("clip"));
        names.enter(&job("alice"));
        let many: Vec<_> = (0..1000).map(|n| name(&format!("m{n}"))).collect();
        names.list(&id, &many, Seq::new(7));
        assert_eq!(names.owners(&id).len(), 1 + MOST);
        names.check([job("alice")].iter());
    }
}
