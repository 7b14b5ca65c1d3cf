//! Who has how much of what is scarce: the node's ledger, shared by all shards.
//!
//! Whoever takes something keeps a [`Share`]; dropped, it counts no more. Nothing is counted twice and nothing stays
//! counted, whatever way a connection or a request ends. What the bounds are is not known here.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::id::Name;
use relay_core::limits::{Bounds, Ledger, LedgerLimits, LimitRefusal, Resource};

use crate::proxies::Client;

/// The node's ledger.
#[derive(Debug, Clone)]
pub(crate) struct Admissions {
    /// Held for one look-up, never across anything else.
    ledger: Arc<Mutex<Ledger>>,
}

impl Admissions {
    /// An empty ledger.
    pub(crate) fn new(limits: LedgerLimits) -> Self {
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
        let share = self.take(Resource::Connections, 1, user, client)?;
        Ok(Admission(Arc::new(Mutex::new(share))))
    }

    /// Gives so much to `user`, from where `client` is.
    ///
    /// # Errors
    /// Names the bound that would be passed.
    pub(crate) fn take(
        &self,
        what: Resource,
        amount: u64,
        user: Option<&Name>,
        client: Client,
    ) -> Result<Share, LimitRefusal> {
        let mut share = Share {
            ledger: self.ledger.clone(),
            what,
            amount: 0,
            user: user.cloned(),
            client,
        };
        share.grow(amount)?;
        Ok(share)
    }

    /// Bounds newcomers otherwise from here on; those that are there stay.
    pub(crate) fn change(&self, limits: LedgerLimits) {
        self.ledger.lock().change_limits(limits);
    }

    /// Connections counted now.
    pub(crate) fn total(&self) -> usize {
        usize::try_from(self.used(Resource::Connections)).unwrap_or(usize::MAX)
    }

    /// How much of it is taken.
    pub(crate) fn used(&self, what: Resource) -> u64 {
        self.ledger.lock().used(what)
    }

    /// How much of it there is.
    pub(crate) fn bounds(&self, what: Resource) -> Bounds {
        self.ledger.lock().bounds(what)
    }
}

/// What somebody has taken. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Share {
    ledger: Arc<Mutex<Ledger>>,
    what: Resource,
    amount: u64,
    user: Option<Name>,
    client: Client,
}

impl Share {
    /// Takes so much more.
    ///
    /// # Errors
    /// Names the bound that would be passed; then nothing changes.
    pub(crate) fn grow(&mut self, more: u64) -> Result<(), LimitRefusal> {
        let address = self.client.counted();
        let mut ledger = self.ledger.lock();
        ledger.take(self.what, more, self.user.as_ref(), address)?;
        self.amount += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let address = self.client.counted();
        let mut ledger = self.ledger.lock();
        ledger.give_back(self.what, self.amount, self.user.as_ref(), address);
    }
}

/// One connection's place in the ledger. Dropping the last of its clones frees the place: a poll's answer has one
/// until it is written.
#[derive(Debug, Clone)]
pub(crate) struct Admission(
    /// Held for one look-up.
    Arc<Mutex<Share>>,
);

impl Admission {
    /// Where it comes from.
    pub(crate) fn address(&self) -> IpAddr {
        self.0.lock().client.address
    }

    /// The connection turned out to be `user`'s.
    ///
    /// # Errors
    /// When that user has as many connections as allowed; the place stays as it was.
    pub(crate) fn identify(&self, user: Option<&Name>) -> Result<(), LimitRefusal> {
        let mut share = self.0.lock();
        share.ledger.lock().change_user(share.user.as_ref(), user)?;
        share.user = user.cloned();
        Ok(())
    }
}
