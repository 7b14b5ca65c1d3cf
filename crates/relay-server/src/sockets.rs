//! How many sockets clients may have open at once, and what becomes of one too many: the descriptors of the
//! process, shared out.
//!
//! It counts and shares out; it accepts nothing. How many an address has stands in the node's ledger.
//!
//! Invariant: whatever clients open, the descriptors that the relay needs for itself and for its operators are
//! left.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::Share;
use crate::config::Limits;

/// How the descriptors of the process are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Connections of clients: `limits.connections`, or as many as there are descriptors for.
    pub(crate) connections: usize,
    /// Sockets that are served: connections, and requests that are answered.
    served: usize,
    /// Sockets that are told that there are too many.
    refused: usize,
    /// Sockets of operators.
    pub(crate) operators: usize,
}

/// There are not even descriptors for the relay itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit on file descriptors is {descriptors}, and the relay itself needs {needed}; raise it (ulimit -n, LimitNOFILE)"
)]
pub(crate) struct TooFew {
    descriptors: u64,
    needed: u64,
}

/// Descriptors of a runtime, a listener and a thread's waker, with some to spare.
const PER_SHARD: u64 = 8;
/// Descriptors of the bus, its history, the signals and the standard streams, with some to spare.
const FOR_ITSELF: u64 = 24;
/// Of each kind of sockets that are not connections. There are that many where descriptors are scarce and where
/// they are not.
const ASIDE: [u64; 2] = [8, 64];

impl Budget {
    /// Shares `descriptors` out (`None`: there is no limit), for as many connections as are `configured`.
    ///
    /// # Errors
    /// When nothing is left for clients.
    pub(crate) fn new(
        descriptors: Option<u64>,
        configured: usize,
        shards: usize,
    ) -> Result<Self, TooFew> {
        let descriptors = descriptors.unwrap_or(u64::from(u32::MAX));
        let [least, most] = ASIDE;
        let aside = (descriptors / 8).clamp(least, most);
        let itself = FOR_ITSELF + PER_SHARD * to_u64(shards);
        // For operators, for requests, and for sockets that are told that there are too many.
        let Some(left) = descriptors.checked_sub(itself + 3 * aside + 1) else {
            let needed = itself + 3 * least + 1;
            return Err(TooFew {
                descriptors,
                needed,
            });
        };
        let connections = configured.min(to_usize(left + 1));
        Ok(Self {
            connections,
            served: to_usize(left + 1 + aside),
            refused: to_usize(aside),
            operators: to_usize(aside),
        })
    }
}

impl Budget {
    /// How many sockets one address may have: some more than connections, for its requests. Where descriptors are
    /// scarce no address may have more than half of them, unless it may have all connections there are.
    pub(crate) fn sockets_per_address(&self, limits: &Limits) -> u64 {
        let most = limits.connections_per_address.saturating_mul(2);
        let most = to_u64(most.saturating_add(64));
        match limits.connections_per_address >= limits.connections {
            true => u64::MAX,
            false => most.min(to_u64(self.served / 2).max(8)),
        }
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// The sockets of the public listener, over all shards.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// One each socket; dropped with it. Also one each shard, for the next.
    seats: Arc<Semaphore>,
    /// How many of the places are for sockets that are served.
    served: usize,
    refused: usize,
}

/// A socket's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Seat {
    _one: OwnedSemaphorePermit,
    /// Counts it against its address.
    share: Option<Share>,
}

impl Seat {
    /// The socket that has it is one of an address.
    pub(crate) fn of(mut self, share: Share) -> Self {
        self.share = Some(share);
        self
    }
}

impl Sockets {
    /// As many as there are in the budget; `shards` wait for the next one at a time.
    pub(crate) fn new(budget: Budget, shards: usize) -> Self {
        let seats = budget.served.saturating_add(budget.refused + shards);
        Self {
            seats: Arc::new(Semaphore::new(seats.min(Semaphore::MAX_PERMITS))),
            served: budget.served,
            refused: budget.refused,
        }
    }

    /// How many are served at most.
    pub(crate) fn most(&self) -> usize {
        self.served
    }

    /// How many that are not served may take their time to read so, on one shard.
    pub(crate) fn aside(&self) -> usize {
        (self.refused / 2).max(4)
    }

    /// Waits for a place. `None` is for a semaphore that is closed, which this one never is.
    pub(crate) async fn seat(&self) -> Option<Seat> {
        let one = self.seats.clone().acquire_owned().await.ok()?;
        Some(Seat {
            _one: one,
            share: None,
        })
    }

    /// Whether the places left are for sockets that are told so and closed.
    pub(crate) fn are_full(&self) -> bool {
        self.seats.available_permits() < self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_on_descriptors_bounds_connections_and_leaves_some_for_the_rest() {
        let budget = |descriptors, configured| Budget::new(Some(descriptors), configured, 2);
        let scarce = budget(200, 100_000).unwrap();
        assert_eq!(scarce.connections, 200 - 40 - 75);
        let all = scarce.served + scarce.refused + scarce.operators + 40;
        assert_eq!(all, 200);
        assert_eq!(budget(200, 10).unwrap().connections, 10);
        assert_eq!(budget(200_000, 100_000).unwrap().connections, 100_000);
        assert_eq!(budget(65, 100).unwrap().connections, 1);
        let error = budget(60, 100).unwrap_err().to_string();
        assert!(
            error.contains("60") && error.contains("needs 65"),
            "{error}"
        );
        let endless = Budget::new(None, 100_000, 64).unwrap();
        assert_eq!(endless.connections, 100_000);
    }

    #[test]
    fn one_address_has_half_of_scarce_descriptors_at_most() {
        let budget = |descriptors| Budget::new(Some(descriptors), 100_000, 2).unwrap();
        let limits = Limits::default();
        assert_eq!(budget(200_000).sockets_per_address(&limits), 264);
        let scarce = budget(200);
        assert!(scarce.sockets_per_address(&limits) <= 55, "{scarce:?}");
        let of_a_proxy = Limits {
            connections_per_address: 100_000,
            ..limits
        };
        assert_eq!(scarce.sockets_per_address(&of_a_proxy), u64::MAX);
    }

    #[tokio::test]
    async fn a_socket_more_than_are_served_is_to_be_told_so() {
        let budget = Budget::new(Some(65), 100, 2).unwrap();
        let sockets = Sockets::new(budget, 2);
        let mut seats = Vec::new();
        // Two for the shards that wait, one connection and eight requests.
        for _ in 0..2 + 1 + 8 {
            assert!(!sockets.are_full());
            seats.push(sockets.seat().await.unwrap());
        }
        assert!(!sockets.are_full());
        seats.push(sockets.seat().await.unwrap());
        assert!(sockets.are_full());
        seats.pop();
        assert!(!sockets.are_full());
    }
}
