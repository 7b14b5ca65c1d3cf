//! What a client may see, as far as a watcher has to know it.
//!
//! It does not know tokens or users: whoever owns them answers for them through [`Viewer`].

use crate::id::{Name, Owner};
use crate::topic::Topic;

/// Whether a topic may be watched, before anything is known of the jobs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Whatever comes under it.
    Yes,
    /// Each job has to be looked at when its owner is known.
    WhenKnown,
    /// Nothing.
    No,
}

/// Somebody who watches.
pub trait Viewer {
    /// Whether `topic` may be subscribed to.
    fn sight(&self, topic: &Topic) -> Sight;

    /// Whether a job of this `owner` and `parent` may be shown under `topic`. With `owner` unknown, a job or a
    /// group may be waited for.
    fn may_watch(&self, topic: &Topic, owner: Option<&Owner>, parent: Option<&Name>) -> bool;
}
