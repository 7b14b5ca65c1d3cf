//! What the hub is asked, and what it answers to those who wait.

use std::sync::Arc;

use relay_core::cursor::Cursor;
use relay_core::job::Again;
use relay_core::position::Epoch;
use relay_core::publication::Publication;
use relay_core::tally::Tally;
use relay_core::topic::Topic;
use relay_core::watcher::outbox::SubscriptionId;

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
    /// Where it left off.
    pub cursor: Option<Cursor>,
    /// What it is told of the time before.
    pub again: Again,
}

/// What the relay knows of one job.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// Its latest state, or `None` if no state is known.
    pub state: Option<Arc<Publication>>,
    /// Whether the bus is away, so that there may be a newer one.
    pub stale: bool,
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
