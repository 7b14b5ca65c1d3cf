//! How much users, addresses and the node have of what is scarce, and how much they may: one ledger.
//!
//! Counts and refuses; knows nothing of sockets or requests. What was taken is given back once, by the same user and
//! address.
//!
//! Invariant: the ledger holds an account only for a user or address that has something, so it is as small as the
//! node is busy; neither the accounts of addresses nor those of users sum to more than the node's.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;

use crate::id::Name;

/// What is scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Connections: streams, and polls until their answer is written.
    Connections,
    /// Sockets, whatever is done with them.
    Sockets,
    /// Bytes of answers that were made and are not written yet.
    AnswerBytes,
    /// Bytes of requests' bodies that are kept until they are dealt with.
    BodyBytes,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::Sockets,
        Self::AnswerBytes,
        Self::BodyBytes,
    ];

    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Sockets => "sockets",
            Self::AnswerBytes => "answer_bytes",
            Self::BodyBytes => "body_bytes",
        }
    }
}

/// Whose share is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A user's.
    User,
    /// An IPv4 address's, or an IPv6 /64's, which is what one household or machine is given.
    Address,
    /// This node's.
    Node,
}

impl Scope {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Address => "address",
            Self::Node => "node",
        }
    }
}

/// The most there may be at once. Zero admits nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of one user. What has no user counts for none.
    pub per_user: u64,
    /// Of one address.
    pub per_address: u64,
    /// On this node.
    pub per_node: u64,
}

/// The bounds of everything that is scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Of connections.
    pub connections: Bounds,
    /// Of sockets.
    pub sockets: Bounds,
    /// Of bytes of answers.
    pub answer_bytes: Bounds,
    /// Of bytes of bodies.
    pub body_bytes: Bounds,
}

impl LedgerLimits {
    /// The bounds of one of them.
    pub const fn of(&self, what: Resource) -> Bounds {
        match what {
            Resource::Connections => self.connections,
            Resource::Sockets => self.sockets,
            Resource::AnswerBytes => self.answer_bytes,
            Resource::BodyBytes => self.body_bytes,
        }
    }
}

/// Why something is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitRefusal {
    /// What was wanted.
    pub what: Resource,
    /// Whose share is used up.
    pub scope: Scope,
    /// The bound.
    pub limit: u64,
}

impl std::error::Error for LimitRefusal {}

impl std::fmt::Display for LimitRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (limit, who) = (self.limit, self.scope.as_str());
        match (self.what, self.scope) {
            (Resource::AnswerBytes, _) => write!(
                f,
                "answers of {limit} bytes for this {who} wait to be read, the most allowed; read them and try again"
            ),
            (Resource::BodyBytes, _) => write!(
                f,
                "bodies of {limit} bytes of this {who} are being received, the most allowed; try again later"
            ),
            (what, scope) => {
                let thing = match what {
                    Resource::Sockets => "socket",
                    _ => "connection",
                };
                let plural = if limit == 1 { "" } else { "s" };
                write!(f, "this {who} already has {limit} {thing}{plural}, ")?;
                match scope {
                    Scope::Node => f.write_str("the most it takes; try again later"),
                    _ => f.write_str("the most allowed; close one and try again"),
                }
            }
        }
    }
}

impl LimitRefusal {
    /// The reason as one word, for a metric's label and an error body.
    pub const fn code(&self) -> &'static str {
        match (self.what, self.scope) {
            (Resource::AnswerBytes, _) => "unread_answers",
            (Resource::BodyBytes, _) => "busy_receiving",
            (_, Scope::User) => "user_limit",
            (_, Scope::Address) => "address_limit",
            (_, Scope::Node) => "node_limit",
        }
    }

    /// The bound that was met.
    #[cfg(test)]
    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }
}

/// How much somebody has of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Account([u64; Resource::ALL.len()]);

impl Account {
    const fn of(&self, what: Resource) -> u64 {
        self.0[what as usize]
    }

    fn add(&mut self, what: Resource, amount: u64) {
        self.0[what as usize] = self.of(what).saturating_add(amount);
    }

    fn subtract(&mut self, what: Resource, amount: u64) {
        debug_assert!(self.of(what) >= amount, "gave back more than was taken");
        self.0[what as usize] = self.of(what).saturating_sub(amount);
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|amount| *amount == 0)
    }
}

/// Who has how much.
#[derive(Debug, Clone)]
pub struct Ledger {
    limits: LedgerLimits,
    users: HashMap<Name, Account>,
    addresses: HashMap<IpAddr, Account>,
    total: Account,
}

impl Ledger {
    /// An empty ledger under these limits.
    pub fn new(limits: LedgerLimits) -> Self {
        Self {
            limits,
            users: HashMap::new(),
            addresses: HashMap::new(),
            total: Account::default(),
        }
    }

    /// Gives so much to `user` at `address`, or to nobody in particular. What is without an address comes from where the
    /// bound of an address does not hold.
    ///
    /// # Errors
    /// When the node, the address or the user would have more than it may; then nothing is counted.
    pub fn take(
        &mut self,
        what: Resource,
        amount: u64,
        user: Option<&Name>,
        address: Option<IpAddr>,
    ) -> Result<(), LimitRefusal> {
        let bounds = self.limits.of(what);
        let address = address.map(network);
        let has = [
            (Scope::Node, self.total.of(what), bounds.per_node),
            (
                Scope::Address,
                address.map_or(0, |address| held(&self.addresses, &address, what)),
                address.map_or(u64::MAX, |_| bounds.per_address),
            ),
            (
                Scope::User,
                user.map_or(0, |user| held(&self.users, user, what)),
                user.map_or(u64::MAX, |_| bounds.per_user),
            ),
        ];
        for (scope, has, limit) in has {
            if has.saturating_add(amount) > limit {
                return Err(LimitRefusal { what, scope, limit });
            }
        }
        if amount > 0 {
            self.total.add(what, amount);
            if let Some(address) = address {
                let account = self.addresses.entry(address).or_default();
                account.add(what, amount);
            }
            if let Some(user) = user {
                self.users.entry_ref(user).or_default().add(what, amount);
            }
        }
        self.check(what);
        Ok(())
    }

    /// Goes by other limits from here on; what is counted stays counted, though it may be more.
    pub fn change_limits(&mut self, limits: LedgerLimits) {
        self.limits = limits;
    }

    /// Takes so much back.
    pub fn give_back(
        &mut self,
        what: Resource,
        amount: u64,
        user: Option<&Name>,
        address: Option<IpAddr>,
    ) {
        if amount == 0 {
            return;
        }
        self.total.subtract(what, amount);
        if let Some(address) = address {
            put_back(&mut self.addresses, &network(address), what, amount);
        }
        if let Some(user) = user {
            put_back(&mut self.users, user, what, amount);
        }
        self.check(what);
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
        let what = Resource::Connections;
        if let Some(user) = user {
            let limit = self.limits.of(what).per_user;
            if held(&self.users, user, what) >= limit {
                let scope = Scope::User;
                return Err(LimitRefusal { what, scope, limit });
            }
            self.users.entry_ref(user).or_default().add(what, 1);
        }
        if let Some(before) = before {
            put_back(&mut self.users, before, what, 1);
        }
        self.check(what);
        Ok(())
    }

    /// How much of it is taken on this node.
    pub fn used(&self, what: Resource) -> u64 {
        self.total.of(what)
    }

    /// How much of it there is.
    pub fn bounds(&self, what: Resource) -> Bounds {
        self.limits.of(what)
    }

    /// How many connections `user` has.
    #[cfg(test)]
    pub(crate) fn of_user(&self, user: &Name) -> u64 {
        held(&self.users, user, Resource::Connections)
    }

    /// How many connections there are from `address`, or from its /64.
    #[cfg(test)]
    pub(crate) fn of_address(&self, address: IpAddr) -> u64 {
        held(&self.addresses, &network(address), Resource::Connections)
    }

    /// How many users have something.
    #[cfg(test)]
    pub(crate) fn users(&self) -> usize {
        self.users.len()
    }

    /// How many addresses have something.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> usize {
        self.addresses.len()
    }

    /// Asserts in debug builds what holds after every change of one resource.
    fn check(&self, what: Resource) {
        // Thousands of accounts are not summed after every change.
        if !cfg!(debug_assertions) || self.addresses.len() + self.users.len() > CHECKED_ACCOUNTS {
            return;
        }
        check(self.addresses.values(), what, self.total.of(what));
        check(self.users.values(), what, self.total.of(what));
    }
}

fn check<'a>(accounts: impl Iterator<Item = &'a Account>, what: Resource, total: u64) {
    let mut sum = 0;
    for account in accounts {
        debug_assert!(!account.is_empty(), "an account with nothing in it");
        sum += account.of(what);
    }
    debug_assert!(sum <= total, "{sum} of accounts, {total} in all");
}

/// Accounts up to which all invariants are asserted after every change of a debug build.
const CHECKED_ACCOUNTS: usize = 64;

/// What counts as one address: an IPv4 address however it is written, or an IPv6 /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn held<K: Eq + Hash>(accounts: &HashMap<K, Account>, whose: &K, what: Resource) -> u64 {
    accounts.get(whose).map_or(0, |account| account.of(what))
}

/// Takes from an account; an empty one goes.
fn put_back<K: Eq + Hash>(
    accounts: &mut HashMap<K, Account>,
    whose: &K,
    what: Resource,
    amount: u64,
) {
    let Some(account) = accounts.get_mut(whose) else {
        debug_assert!(false, "given back by somebody who took nothing");
        return;
    };
    account.subtract(what, amount);
    if account.is_empty() {
        accounts.remove(whose);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger(per_user: u64, per_address: u64, per_node: u64) -> Ledger {
        let bounds = Bounds {
            per_user,
            per_address,
            per_node,
        };
        Ledger::new(LedgerLimits {
            connections: bounds,
            sockets: bounds,
            answer_bytes: bounds,
            body_bytes: bounds,
        })
    }

    impl Ledger {
        fn admit(
            &mut self,
            user: Option<&Name>,
            address: Option<IpAddr>,
        ) -> Result<(), LimitRefusal> {
            self.take(Resource::Connections, 1, user, address)
        }

        fn release(&mut self, user: Option<&Name>, address: Option<IpAddr>) {
            self.give_back(Resource::Connections, 1, user, address);
        }

        fn total(&self) -> u64 {
            self.used(Resource::Connections)
        }
    }

    fn refused(scope: Scope, limit: u64) -> LimitRefusal {
        let what = Resource::Connections;
        LimitRefusal { what, scope, limit }
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
        assert_eq!(refusal, refused(Scope::User, 1));
        assert_eq!(refusal.code(), "user_limit");
        assert_eq!(
            refusal.to_string(),
            "this user already has 1 connection, the most allowed; close one and try again"
        );
        ledger.admit(None, Some(ip("10.0.0.1"))).unwrap();
        let refusal = ledger.admit(None, Some(ip("10.0.0.1"))).unwrap_err();
        assert_eq!(refusal, refused(Scope::Address, 2));
        ledger.admit(None, Some(ip("10.0.0.3"))).unwrap();
        let refusal = ledger.admit(None, Some(ip("10.0.0.4"))).unwrap_err();
        assert_eq!(refusal, refused(Scope::Node, 3));
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
        assert_eq!(refusal, refused(Scope::Node, 3));
        ledger.release(None, None);
        assert_eq!((ledger.total(), ledger.addresses()), (2, 0));
    }

    #[test]
    fn bytes_are_given_up_to_the_bound_and_apart_from_connections() {
        let (bob, here) = (Name::parse("bob").unwrap(), Some(ip("10.0.0.1")));
        let mut ledger = ledger(10, 15, 20);
        let take = |ledger: &mut Ledger, amount, user: Option<&Name>, from| {
            ledger.take(Resource::AnswerBytes, amount, user, Some(ip(from)))
        };
        take(&mut ledger, 10, Some(&bob), "10.0.0.1").unwrap();
        let refusal = take(&mut ledger, 1, Some(&bob), "10.0.0.2").unwrap_err();
        assert_eq!(
            (refusal.scope, refusal.code()),
            (Scope::User, "unread_answers")
        );
        let refusal = take(&mut ledger, 6, None, "10.0.0.1").unwrap_err();
        assert_eq!(refusal.scope, Scope::Address);
        let refusal = take(&mut ledger, 11, None, "10.0.0.2").unwrap_err();
        assert_eq!(refusal.scope, Scope::Node);
        ledger.admit(Some(&bob), here).unwrap();
        ledger.give_back(Resource::AnswerBytes, 10, Some(&bob), here);
        assert_eq!(ledger.used(Resource::AnswerBytes), 0);
        assert_eq!(ledger.of_user(&bob), 1, "the connection stays");
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
            Err(refused(Scope::User, 1))
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
