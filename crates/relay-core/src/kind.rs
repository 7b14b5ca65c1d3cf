//! What kinds of jobs declare: which milestones mean more than an ordinary one.
//!
//! A job's kind is what its latest state says. It does not know jobs, only names and what they stand for; who
//! declares a kind is the configuration's business.
//!
//! Invariant: what a kind declares stands for all its jobs, on every node that was given the same table.

use hashbrown::HashMap;

use crate::id::Name;

/// What one kind declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kind {
    /// Milestones that may follow a job's ending.
    pub after_ending: Vec<Name>,
    /// Milestones that take their job away.
    pub removed_by: Vec<Name>,
}

/// What a milestone means for its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It happened while the job was under way.
    Ordinary,
    /// It may follow the job's ending.
    MayFollowEnding,
    /// The job is not there any more.
    Removal,
}

/// The kinds that declare something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kinds {
    declared: HashMap<Box<str>, Kind>,
    /// For jobs of any other kind, and of none.
    others: Kind,
}

impl Kinds {
    /// The name under which what holds for all other kinds is declared.
    pub const OTHERS: &str = "*";

    /// The kinds by name.
    pub fn new(kinds: impl IntoIterator<Item = (String, Kind)>) -> Self {
        let mut declared: HashMap<Box<str>, Kind> = kinds
            .into_iter()
            .map(|(name, kind)| (name.into_boxed_str(), kind))
            .collect();
        let others = declared.remove(Self::OTHERS).unwrap_or_default();
        Self { declared, others }
    }

    /// Whether a kind declares anything, so that a milestone may follow the ending of its jobs.
    pub(crate) fn declare(&self, kind: impl FnOnce() -> Option<String>) -> bool {
        let nothing = Kind::default();
        if self.declared.is_empty() {
            return self.others != nothing;
        }
        let own = kind().and_then(|kind| self.declared.get(kind.as_str()));
        *own.unwrap_or(&self.others) != nothing
    }

    /// Whether any kind declares that this milestone takes its job away.
    pub(crate) fn removes(&self, milestone: &Name) -> bool {
        let mut kinds = self.declared.values().chain([&self.others]);
        kinds.any(|kind| kind.removed_by.contains(milestone))
    }

    /// What a milestone means for a job; its kind is asked for only where that matters.
    pub(crate) fn meaning(
        &self,
        milestone: &Name,
        kind: impl FnOnce() -> Option<String>,
    ) -> Meaning {
        if self.declared.is_empty() {
            return self.others.meaning(milestone);
        }
        let declares = |kind: &Kind| kind.meaning(milestone) != Meaning::Ordinary;
        if !declares(&self.others) && !self.declared.values().any(declares) {
            return Meaning::Ordinary;
        }
        let own = kind().and_then(|kind| self.declared.get(kind.as_str()));
        own.unwrap_or(&self.others).meaning(milestone)
    }
}

impl Kind {
    fn meaning(&self, milestone: &Name) -> Meaning {
        if self.removed_by.contains(milestone) {
            Meaning::Removal
        } else if self.after_ending.contains(milestone) {
            Meaning::MayFollowEnding
        } else {
            Meaning::Ordinary
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn a_kind_of_its_own_is_not_held_to_what_others_declare() {
        let kind = |after: &str, removed: &str| Kind {
            after_ending: vec![name(after)],
            removed_by: vec![name(removed)],
        };
        let kinds = Kinds::new([
            ("mail".to_owned(), kind("opened", "recalled")),
            ("*".to_owned(), kind("seen", "event_deleted")),
        ]);
        let meaning = |milestone: &str, kind: Option<&str>| {
            kinds.meaning(&name(milestone), || kind.map(str::to_owned))
        };
        assert_eq!(meaning("opened", Some("mail")), Meaning::MayFollowEnding);
        assert_eq!(meaning("recalled", Some("mail")), Meaning::Removal);
        assert_eq!(meaning("event_deleted", Some("mail")), Meaning::Ordinary);
        for other in [None, Some("sms")] {
            assert_eq!(meaning("event_deleted", other), Meaning::Removal);
            assert_eq!(meaning("opened", other), Meaning::Ordinary);
        }
        let declare = |kind: &str| kinds.declare(|| Some(kind.to_owned()));
        assert!(declare("mail") && declare("sms"));
    }

    #[test]
    fn the_kind_is_asked_for_only_where_a_milestone_is_declared() {
        let kinds = Kinds::new([("mail".to_owned(), Kind::default())]);
        let meaning = kinds.meaning(&name("clip"), || panic!("asked"));
        assert_eq!(meaning, Meaning::Ordinary);
    }
}
