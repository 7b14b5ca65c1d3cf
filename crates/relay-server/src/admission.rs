//! How many connections each user and each address holds: the node's ledger, shared by all shards.
//!
//! A connection keeps an [`Admission`]; dropped, it counts no more. Nothing is counted twice and nothing
//! stays counted, whatever way a connection ends.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::id::Name;
use relay_core::limits::{ConnectionLimits, Ledger, LimitRefusal};

use crate::proxies::Client;

/// The node's ledger.
#[derive(Debug, Clone)]
pub(crate) struct Admissions {
    /// Held for one look-up, never across anything else.
    ledger: Arc<Mutex<Ledger>>,
}

impl Admissions {
    /// An empty ledger.
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(Ledger::new(limits))),
        }
    }

    /// Counts one more connection of `user` from where `client` is.
    ///
    /// # Errors
    /// Names the bound that is reached.
    pub(crate) fn admit(
        &self,
        user: Option<&Name>,
        client: Client,
    ) -> Result<Admission, LimitRefusal> {
        self.ledger.lock().admit(user, client.counted())?;
        Ok(Admission {
            ledger: self.ledger.clone(),
            user: user.cloned(),
            client,
        })
    }

    /// Connections counted now.
    pub(crate) fn total(&self) -> usize {
        self.ledger.lock().total() as usize
    }
}

/// One connection's place in the ledger. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Admission {
    ledger: Arc<Mutex<Ledger>>,
    user: Option<Name>,
    client: Client,
}

impl Admission {
    /// Where it comes from.
    pub(crate) fn address(&self) -> IpAddr {
        self.client.address
    }

    /// The connection turned out to be `user`'s.
    ///
    /// # Errors
    /// When that user has as many connections as allowed; the place stays as it was.
    pub(crate) fn identify(&mut self, user: Option<&Name>) -> Result<(), LimitRefusal> {
        let mut ledger = self.ledger.lock();
        ledger.change_user(self.user.as_ref(), user)?;
        self.user = user.cloned();
        Ok(())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let address = self.client.counted();
        self.ledger.lock().release(self.user.as_ref(), address);
    }
}
