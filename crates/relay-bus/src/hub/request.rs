//! What the hub is asked, and what it answers to those who wait.

use std::sync::Arc;

use relay_core::cursor::Cursor;
use relay_core::id::Owner;
use relay_core::job::{Again, Job};
use relay_core::position::Epoch;
use relay_core::publication::Publication;
use relay_core::tally::Tally;
use relay_core::topic::Topic;
use relay_core::watcher::outbox::SubscriptionId;

use super::table::Entry;
use crate::inbox::ConnectionId;

/// A subscription that wants its first word.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// The shard that asks.
    pub shard: usize,
    /// Its connection.
    pub connection: ConnectionId,
    /// The connection's subscription.
    pub subscription: SubscriptionId,
    /// What it watches.
    pub topic: Topic,
    /// Whose own job or group is meant first, where the topic does not say whose.
    pub own: Option<Owner>,
    /// Where it left off.
    pub cursor: Option<Cursor>,
    /// What it is told of the time before.
    pub again: Again,
}

/// Which subscription of which connection of which shard: each shard numbers its own connections.
pub(super) type Whose = (usize, ConnectionId, SubscriptionId);

impl JoinRequest {
    /// Whose it is.
    pub(super) fn whose(&self) -> Whose {
        (self.shard, self.connection, self.subscription)
    }
}

/// What the relay knows of one job.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// Its latest state, or `None` if no state is known.
    pub state: Option<Arc<Publication>>,
    /// That it was removed, if it was and that is still known; it has no state then.
    pub removed: Option<Arc<Publication>>,
    /// Whether the bus is away, so that there may be a newer one.
    pub stale: bool,
}

impl Lookup {
    /// The job's last word: its state, or that it was removed.
    pub fn last_word(&self) -> Option<&Arc<Publication>> {
        self.state.as_ref().or(self.removed.as_ref())
    }

    /// What the table says of a job.
    pub(super) fn of(entry: Option<&Entry>, stale: bool) -> Self {
        let job = entry.and_then(|entry| entry.job.as_deref());
        Self {
            state: job.and_then(Job::state).cloned(),
            removed: job.and_then(Job::removed).cloned(),
            stale,
        }
    }

    /// Of a job that nothing is known of.
    pub(super) fn unknown(stale: bool) -> Self {
        Self::of(None, stale)
    }
}

/// How the jobs of a user or a group stand, for somebody who asks once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survey {
    /// How they stand; all zeros where there are none.
    pub tally: Tally,
    /// Which life of the bus that is of.
    pub epoch: Epoch,
    /// Whether the bus is away, so that they may stand differently by now.
    pub stale: bool,
}
