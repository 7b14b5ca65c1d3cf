//! How many connections a user, an address and the node may have, and how many they do.
//!
//! Counts and refuses; knows nothing of sockets. What was admitted is released once, with the same user and
//! address.
//!
//! Invariant: the ledger holds an entry only for a user or address that has a connection, so it is as small as the
//! node is busy; neither the counts of addresses nor those of users sum to more than the total.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;

use crate::id::Name;

/// The most connections there may be at once. Zero admits nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of one user. A connection without a user counts for none.
    pub per_user: u32,
    /// From one IPv4 address, or one IPv6 /64, which is what one household or machine is given.
    pub per_address: u32,
    /// On this node.
    pub per_node: u32,
}

/// Why a connection is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitRefusal {
    /// This user has as many as one may.
    #[error("this user already has {}, the most allowed; close one and try again", connections(*limit))]
    User {
        /// The bound.
        limit: u32,
    },
    /// This address has as many as one may.
    #[error("this address already has {}, the most allowed; close one and try again", connections(*limit))]
    Address {
        /// The bound.
        limit: u32,
    },
    /// The node is full.
    #[error("this node already has {}, the most it takes; try again later", connections(*limit))]
    Node {
        /// The bound.
        limit: u32,
    },
}

fn connections(limit: u32) -> String {
    match limit {
        1 => "1 connection".to_owned(),
        limit => format!("{limit} connections"),
    }
}

impl LimitRefusal {
    /// The reason as one word, for a metric's label and an error body.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::User { .. } => "user_limit",
            Self::Address { .. } => "address_limit",
            Self::Node { .. } => "node_limit",
        }
    }

    /// The bound that was met.
    #[cfg(test)]
    pub(crate) const fn limit(&self) -> u32 {
        match self {
            Self::User { limit } | Self::Address { limit } | Self::Node { limit } => *limit,
        }
    }
}

/// Who has how many connections.
#[derive(Debug, Clone)]
pub struct Ledger {
    limits: ConnectionLimits,
    users: HashMap<Name, u32>,
    addresses: HashMap<IpAddr, u32>,
    total: u32,
}

impl Ledger {
    /// An empty ledger under these limits.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            users: HashMap::new(),
            addresses: HashMap::new(),
            total: 0,
        }
    }

    /// Counts one more connection of `user` from `address`, or of nobody in particular. One without an address comes
    /// from where the bound of an address does not hold.
    ///
    /// # Errors
    /// When the node, the address or the user has as many as it may; then nothing is counted.
    pub fn admit(
        &mut self,
        user: Option<&Name>,
        address: Option<IpAddr>,
    ) -> Result<(), LimitRefusal> {
        let limits = self.limits;
        if self.total >= limits.per_node {
            let limit = limits.per_node;
            return Err(LimitRefusal::Node { limit });
        }
        if address.is_some_and(|address| self.of_address(address) >= limits.per_address) {
            let limit = limits.per_address;
            return Err(LimitRefusal::Address { limit });
        }
        if let Some(user) = user {
            self.count_user(user)?;
        }
        if let Some(address) = address {
            *self.addresses.entry(network(address)).or_default() += 1;
        }
        self.total += 1;
        self.check();
        Ok(())
    }

    /// Counts one connection of `user` from `address` less.
    pub fn release(&mut self, user: Option<&Name>, address: Option<IpAddr>) {
        debug_assert!(self.total > 0, "released more than was admitted");
        self.total = self.total.saturating_sub(1);
        if let Some(address) = address {
            take_one(&mut self.addresses, &network(address));
        }
        if let Some(user) = user {
            take_one(&mut self.users, user);
        }
        self.check();
    }

    /// Counts a connection of `before` as one of `user` from here on; its address keeps it.
    ///
    /// # Errors
    /// When the user has as many as one may; then nothing changes.
    pub fn change_user(
        &mut self,
        before: Option<&Name>,
        user: Option<&Name>,
    ) -> Result<(), LimitRefusal> {
        if before == user {
            return Ok(());
        }
        if let Some(user) = user {
            self.count_user(user)?;
        }
        if let Some(before) = before {
            take_one(&mut self.users, before);
        }
        self.check();
        Ok(())
    }

    /// How many connections there are.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// How many connections `user` has.
    pub(crate) fn of_user(&self, user: &Name) -> u32 {
        self.users.get(user).copied().unwrap_or(0)
    }

    /// How many connections there are from `address`, or from its /64.
    pub(crate) fn of_address(&self, address: IpAddr) -> u32 {
        let network = network(address);
        self.addresses.get(&network).copied().unwrap_or(0)
    }

    /// How many users have a connection.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        self.users.len()
    }

    /// From how many addresses there are connections.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> usize {
        self.addresses.len()
    }

    fn count_user(&mut self, user: &Name) -> Result<(), LimitRefusal> {
        let limit = self.limits.per_user;
        if self.of_user(user) >= limit {
            return Err(LimitRefusal::User { limit });
        }
        *self.users.entry_ref(user).or_default() += 1;
        Ok(())
    }

    /// Asserts in debug builds what holds after every change.
    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let mut counts = self.addresses.values().chain(self.users.values());
        debug_assert!(
            counts.all(|count| *count > 0),
            "an entry without a connection"
        );
        let of_addresses: u32 = self.addresses.values().sum();
        let of_users: u32 = self.users.values().sum();
        debug_assert!(
            of_addresses <= self.total,
            "{of_addresses} of addresses, {} in all",
            self.total
        );
        debug_assert!(
            of_users <= self.total,
            "{of_users} of users, {} in all",
            self.total
        );
    }
}

/// What counts as one address: an IPv4 address however it is written, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Counts one less; at zero the entry goes.
fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => {
            counts.remove(key);
        }
        None => debug_assert!(false, "released who was not admitted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(per_user: u32, per_address: u32, per_node: u32) -> Ledger {
        Ledger::new(ConnectionLimits {
            per_user,
            per_address,
            per_node,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_bound_is_kept_and_says_which_it_is() {
        let alice = Name::parse("alice").unwrap();
        let mut ledger = ledger(1, 2, 3);
        ledger.admit(Some(&alice), Some(ip("10.0.0.1"))).unwrap();
        let refusal = ledger
            .admit(Some(&alice), Some(ip("10.0.0.2")))
            .unwrap_err();
        assert_eq!(refusal, LimitRefusal::User { limit: 1 });
        assert_eq!(refusal.code(), "user_limit");
        assert_eq!(
            refusal.to_string(),
            "this user already has 1 connection, the most allowed; close one and try again"
        );
        ledger.admit(None, Some(ip("10.0.0.1"))).unwrap();
        let refusal = ledger.admit(None, Some(ip("10.0.0.1"))).unwrap_err();
        assert_eq!(refusal, LimitRefusal::Address { limit: 2 });
        ledger.admit(None, Some(ip("10.0.0.3"))).unwrap();
        let refusal = ledger.admit(None, Some(ip("10.0.0.4"))).unwrap_err();
        assert_eq!(refusal, LimitRefusal::Node { limit: 3 });
        assert_eq!(refusal.limit(), 3);
        assert_eq!(ledger.total(), 3, "what is refused is not counted");
        assert_eq!(ledger.addresses(), 2);
    }

    #[test]
    fn what_has_no_address_of_its_own_counts_for_the_node_alone() {
        let mut ledger = ledger(9, 1, 3);
        for _ in 0..3 {
            ledger.admit(None, None).unwrap();
        }
        let refusal = ledger.admit(None, None).unwrap_err();
        assert_eq!(refusal, LimitRefusal::Node { limit: 3 });
        ledger.release(None, None);
        assert_eq!((ledger.total(), ledger.addresses()), (2, 0));
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_ipv4_is_ipv4() {
        let mut ledger = ledger(9, 2, 9);
        ledger.admit(None, Some(ip("2001:db8:0:1::1"))).unwrap();
        ledger
            .admit(None, Some(ip("2001:db8:0:1:ffff::2")))
            .unwrap();
        assert!(ledger.admit(None, Some(ip("2001:db8:0:1::3"))).is_err());
        ledger.admit(None, Some(ip("2001:db8:0:2::1"))).unwrap();
        ledger.admit(None, Some(ip("::ffff:10.0.0.1"))).unwrap();
        assert_eq!(ledger.of_address(ip("10.0.0.1")), 1);
        assert_eq!(ledger.of_address(ip("::ffff:10.0.0.2")), 0);
    }

    #[test]
    fn regression_a_connection_may_become_anothers_while_all_have_users() {
        let (alice, bob) = (Name::parse("alice").unwrap(), Name::parse("bob").unwrap());
        let mut ledger = ledger(1, 9, 9);
        ledger.admit(Some(&alice), Some(ip("10.0.0.1"))).unwrap();
        ledger.change_user(Some(&alice), Some(&bob)).unwrap();
        assert_eq!((ledger.of_user(&alice), ledger.of_user(&bob)), (0, 1));
        ledger.change_user(Some(&bob), None).unwrap();
        assert_eq!((ledger.total(), ledger.users()), (1, 0));
    }

    #[test]
    fn a_user_may_be_named_later() {
        let alice = Name::parse("alice").unwrap();
        let mut ledger = ledger(1, 9, 9);
        ledger.admit(None, Some(ip("10.0.0.1"))).unwrap();
        ledger.change_user(None, Some(&alice)).unwrap();
        assert_eq!(
            ledger.change_user(None, Some(&alice)),
            Err(LimitRefusal::User { limit: 1 })
        );
        ledger.release(Some(&alice), Some(ip("10.0.0.1")));
        assert_eq!(
            (ledger.total(), ledger.users(), ledger.addresses()),
            (0, 0, 0)
        );
    }

    proptest! {
        #[test]
        fn counts_agree_and_vanish_with_the_last(steps in proptest::collection::vec((any::<bool>(), 0usize..4, 0u8..6), 0..200)) {
            let users: Vec<_> = ["a", "b", "c"].map(|name| Name::parse(name).unwrap()).into();
            let mut ledger = ledger(3, 4, 8);
            let mut open: Vec<(Option<&Name>, IpAddr)> = Vec::new();
            for (close, user, host) in steps {
                if close && !open.is_empty() {
                    let (user, address) = open.swap_remove(user % open.len());
                    ledger.release(user, Some(address));
                } else {
                    let (user, address) = (users.get(user), IpAddr::from([10, 0, 0, host]));
                    if ledger.admit(user, Some(address)).is_ok() {
                        open.push((user, address));
                    }
                }
                prop_assert_eq!(ledger.total() as usize, open.len());
                prop_assert!(open.len() <= 8);
                for user in &users {
                    let has = open.iter().filter(|(of, _)| *of == Some(user)).count();
                    prop_assert_eq!(ledger.of_user(user) as usize, has);
                    prop_assert!(has <= 3);
                }
                for (_, address) in &open {
                    let has = open.iter().filter(|(_, from)| from == address).count();
                    prop_assert_eq!(ledger.of_address(*address) as usize, has);
                    prop_assert!(has <= 4);
                }
            }
            for (user, address) in open.drain(..) {
                ledger.release(user, Some(address));
            }
            prop_assert_eq!((ledger.total(), ledger.users(), ledger.addresses()), (0, 0, 0));
        }
    }
}
