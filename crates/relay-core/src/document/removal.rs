//! The document that takes a job away: a state whose status is `removed`.
//!
//! It is not one of a job's statuses: nobody is shown it. What becomes of the job is not known here.
//!
//! Invariant: no word that stands for a status stands for this.

use crate::id::{JobId, Name, Owner};

use super::field::Field;
use super::refusal::Refusal;
use super::text::{read_object, text_of};
use super::{Sent, Status, value};

/// The status that takes a job away. Relays that do not know it refuse it, as they do any word they do not know.
const REMOVED: &str = "removed";
/// How the job stood, in a removal and in what clients are sent of it.
const LAST_STATUS: &str = "last_status";

/// What a removal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Which try at the job it takes away, with all before it; from 1.
    pub(crate) attempt: u32,
    /// The group the job belonged to.
    pub(crate) parent_id: Option<Name>,
    /// How the job stood, if one of the five words says so.
    pub(crate) last_status: Option<Status>,
}

impl Removal {
    /// The removal of `attempt`, for whoever publishes it. The group is repeated, as it is in each state, and how the
    /// job stood is said: what was before is not stored any more when this is read.
    pub fn document(attempt: u32, parent: Option<&Name>, last: Option<Status>) -> String {
        let member = |name: &str, text: Option<&str>| {
            text.map_or_else(String::new, |text| format!(",\"{name}\":\"{text}\""))
        };
        let parent = member("parent_id", parent.map(Name::as_str));
        let last = member(LAST_STATUS, last.map(Status::as_str));
        format!("{{\"status\":\"{REMOVED}\",\"attempt\":{attempt}{parent}{last}}}")
    }

    /// Reads what a worker published for `job` of `owner`; `None` if it is not a removal.
    ///
    /// # Errors
    /// Says which of the few fields that count is wrong. Others may say what they like.
    pub(crate) fn read(
        payload: &[u8],
        job: &JobId,
        owner: &Owner,
    ) -> Option<Result<Self, Refusal>> {
        let text = text_of(payload).ok()?;
        let members = read_object(text, "a state").ok()?;
        let mut sent = Sent::sort(&members);
        let word = value::string(sent.raw(Field::Status)?, "a string").ok()?;
        word.trim()
            .eq_ignore_ascii_case(REMOVED)
            .then(|| Self::check(&mut sent, job, owner))
    }

    fn check(sent: &mut Sent<'_>, job: &JobId, owner: &Owner) -> Result<Self, Refusal> {
        sent.agrees("job_id", Field::JobId, job)?;
        sent.agrees("owner", Field::Owner, owner)?;
        let last = sent.unknown.iter().find(|each| each.name == LAST_STATUS);
        let last = last.and_then(|each| value::string(each.value, "a string").ok());
        Ok(Self {
            last_status: last.and_then(|word| Status::from_word(&word)),
            attempt: sent.read(Field::Attempt, value::attempt)?.unwrap_or(1),
            parent_id: sent.read(Field::ParentId, value::name)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::JobDocument;

    fn read(text: &str) -> Option<Result<Removal, Refusal>> {
        let (job, owner) = (Name::parse("j").unwrap(), Name::parse("alice").unwrap());
        Removal::read(text.as_bytes(), &job, &owner)
    }

    #[test]
    fn what_is_written_is_read() {
        let parent = Name::parse("g").unwrap();
        for (parent, last) in [(None, None), (Some(&parent), Some(Status::Failed))] {
            let removal = read(&Removal::document(3, parent, last)).unwrap().unwrap();
            assert_eq!((removal.attempt, removal.parent_id.as_ref()), (3, parent));
            assert_eq!(removal.last_status, last);
        }
    }

    #[test]
    fn a_worker_says_removed_and_may_say_more() {
        for text in [
            r#"{"status":"removed"}"#,
            r#"{"status":" Removed","progress":"x","meta":1,"job_id":"j","owner":"alice"}"#,
            r#"{"status":"removed","last_status":7}"#,
        ] {
            assert_eq!(read(text).unwrap().unwrap().attempt, 1);
        }
        for (text, field) in [
            (r#"{"status":"removed","attempt":0}"#, "attempt"),
            (r#"{"status":"removed","parent_id":"a b"}"#, "parent_id"),
            (r#"{"status":"removed","owner":"bob"}"#, "owner"),
        ] {
            let refusal = read(text).unwrap().unwrap_err();
            assert_eq!(refusal.field(), Some(field));
        }
        for text in [
            r#"{"status":"running"}"#,
            r#"{"removed":true}"#,
            "",
            "[1]",
            "{",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn no_status_is_called_so() {
        assert_eq!(Status::from_word(REMOVED), None);
        let (job, owner) = (Name::parse("j").unwrap(), Name::parse("-").unwrap());
        let text = Removal::document(1, None, None);
        assert!(JobDocument::parse(text.as_bytes(), &job, &owner).is_err());
    }
}
