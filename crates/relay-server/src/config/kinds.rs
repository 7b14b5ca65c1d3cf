//! What kinds of jobs declare, and what the rest of the process makes of it.
//!
//! Each kind is a table of its own, `[kinds.<name>]`; its keys are the same for all. It does not know where a kind
//! comes from: a job's state says it.
//!
//! Invariant: what passed [`problems`] can be made into the core's table.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use relay_core::id::Name;
use relay_core::kind::{self, Kinds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::ListOf;

/// Kinds that may be declared, and milestones of each list: every ending of a user's jobs may be held against them.
const MAX_KINDS: usize = 64;
const MAX_MILESTONES: usize = 16;
/// Bytes of a kind's name.
const MAX_NAME: usize = 128;

/// What one kind of jobs declares.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Kind {
    /// Milestones that may follow a job's ending; any other is rejected then. Example: `["receipt_opened"]`
    #[serde(with = "ListOf::<String>")]
    #[schemars(with = "Vec<String>")]
    pub milestones_after_ending: Vec<String>,
    /// Milestones that remove their job, also after its ending, as `DELETE /v1/jobs/{id}` does. Example: `["event_deleted"]`
    #[serde(with = "ListOf::<String>")]
    #[schemars(with = "Vec<String>")]
    pub removed_by: Vec<String>,
}

/// The kinds by name.
pub(crate) type KindTables = BTreeMap<String, Kind>;

impl Kind {
    fn lists(&self) -> [(&'static str, &[String]); 2] {
        [
            ("milestones_after_ending", &self.milestones_after_ending),
            ("removed_by", &self.removed_by),
        ]
    }
}

/// What is wrong with them, each with the key at fault.
pub(super) fn problems(kinds: &KindTables) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    if kinds.len() > MAX_KINDS {
        let message = format!("{} kinds are declared; at most {MAX_KINDS}", kinds.len());
        problems.push(("kinds".to_owned(), message));
    }
    for (name, kind) in kinds {
        let key = format!("kinds.{name}");
        if name.is_empty() || name.len() > MAX_NAME {
            let message = format!(
                "a kind's name has 1 to {MAX_NAME} bytes, not {}",
                name.len()
            );
            problems.push((key.clone(), message));
        }
        for (list, milestones) in kind.lists() {
            let mut refuse = |message| problems.push((format!("{key}.{list}"), message));
            if milestones.len() > MAX_MILESTONES {
                refuse(format!(
                    "{} milestones are listed; at most {MAX_MILESTONES}",
                    milestones.len()
                ));
            }
            for milestone in milestones {
                match Name::parse(milestone) {
                    Ok(_) if milestone == "state" => {
                        refuse(
                            "\"state\" is not a milestone's name; it is what states come under"
                                .to_owned(),
                        );
                    }
                    Ok(_) => {}
                    Err(error) => refuse(format!("{milestone:?} {error}")),
                }
            }
        }
        let mut both = kind.removed_by.iter();
        if let Some(both) = both.find(|each| kind.milestones_after_ending.contains(each)) {
            let message = format!(
                "{both:?} is in milestones_after_ending and in removed_by; what removes a job may follow its ending as it is"
            );
            problems.push((key, message));
        }
    }
    problems
}

/// The core's table: what is configured, and what dialects declare of kinds that are not. What is not a name was
/// refused before.
pub(super) fn table(kinds: &KindTables, of_dialects: &HashMap<String, kind::Kind>) -> Kinds {
    let names = |texts: &[String]| {
        texts
            .iter()
            .filter_map(|text| Name::parse(text).ok())
            .collect()
    };
    let configured = kinds.iter().map(|(name, kind)| {
        let kind = kind::Kind {
            after_ending: names(&kind.milestones_after_ending),
            removed_by: names(&kind.removed_by),
        };
        (name.clone(), kind)
    });
    let declared = of_dialects.iter();
    let declared = declared.map(|(name, kind)| (name.clone(), kind.clone()));
    // Of two with one name the later counts.
    Kinds::new(declared.chain(configured))
}
