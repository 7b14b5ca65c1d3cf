//! How often: rates of connections, requests, publishes and reads, for each user and each address.
//!
//! Buckets that fill again, shared by all shards. How many of something there may be at once is the ledger's affair.
//!
//! Invariant: a bucket that is full again is forgotten, so there are as few as callers are busy.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, QuantaClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use relay_core::id::Name;
use relay_core::limits::{Scope, network};

use crate::config::Limits;

/// What is counted over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rate {
    /// Connections that are opened.
    Connections,
    /// Requests of any kind.
    Requests,
    /// Requests that publish.
    Publishes,
    /// Requests that read: states and polls.
    Reads,
}

impl Rate {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [
        Self::Connections,
        Self::Requests,
        Self::Publishes,
        Self::Reads,
    ];

    /// The key of the configuration, which is the word in metrics too.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections_per_second",
            Self::Requests => "requests_per_second",
            Self::Publishes => "publishes_per_second",
            Self::Reads => "reads_per_second",
        }
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Connections => "new connections",
            Self::Requests => "requests",
            Self::Publishes => "requests that publish",
            Self::Reads => "requests that read",
        }
    }

    fn per_second(self, limits: &Limits) -> u32 {
        match self {
            Self::Connections => limits.connections_per_second,
            Self::Requests => limits.requests_per_second,
            Self::Publishes => limits.publishes_per_second,
            Self::Reads => limits.reads_per_second,
        }
    }
}

/// Something comes too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOften {
    /// What.
    pub(crate) what: Rate,
    /// Whose.
    pub(crate) scope: Scope,
    /// How many may come in a second, over any longer time.
    per_second: u32,
    /// When the next may come.
    wait: Duration,
}

impl TooOften {
    /// Seconds until the next may come.
    pub(crate) fn retry_after(&self) -> u32 {
        u32::try_from(self.wait.as_secs())
            .unwrap_or(u32::MAX)
            .saturating_add(1)
    }
}

impl std::fmt::Display for TooOften {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, who, rate) = (self.what.noun(), self.scope.as_str(), self.per_second);
        let (key, seconds) = (self.what.as_str(), self.retry_after());
        write!(
            f,
            "more than {rate} {what} in a second from this {who} (limits.{key}); try again in {seconds} s"
        )
    }
}

/// How long a caller may go on at ten times its rate before it is slowed down.
const BURST_SECONDS: u32 = 10;
/// How often buckets that are full again are looked for, in requests.
const TIDY_EVERY: u32 = 4096;

/// The buckets of callers of one kind.
#[derive(Debug)]
struct Buckets<K: Hash + Eq + Clone> {
    limiter: DefaultKeyedRateLimiter<K>,
    per_second: u32,
    /// Requests since it was tidied.
    since: AtomicU32,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// `None` where there is no bound.
    fn new(per_second: u32) -> Option<Self> {
        let rate = NonZeroU32::new(per_second)?;
        let burst = rate.saturating_mul(NonZeroU32::new(BURST_SECONDS)?);
        Some(Self {
            limiter: RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst)),
            per_second,
            since: AtomicU32::new(0),
        })
    }

    fn take(&self, whose: &K, what: Rate, scope: Scope) -> Result<(), TooOften> {
        if self.since.fetch_add(1, Ordering::Relaxed) >= TIDY_EVERY {
            self.since.store(0, Ordering::Relaxed);
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.check_key(whose).map_err(|not_until| TooOften {
            what,
            scope,
            per_second: self.per_second,
            wait: not_until.wait_time_from(QuantaClock::default().now()),
        })
    }
}

/// All buckets of a node.
#[derive(Debug)]
pub(crate) struct Rates {
    users: [Option<Buckets<Name>>; Rate::ALL.len()],
    addresses: [Option<Buckets<IpAddr>>; Rate::ALL.len()],
}

impl Rates {
    /// The rates of a configuration. An address may have as many users as its connections are for.
    pub(crate) fn new(limits: &Limits) -> Self {
        let users = limits.connections_per_address / limits.connections_per_user.max(1);
        let users = u32::try_from(users.max(1)).unwrap_or(u32::MAX);
        Self {
            users: Rate::ALL.map(|rate| Buckets::new(rate.per_second(limits))),
            addresses: Rate::ALL
                .map(|rate| Buckets::new(rate.per_second(limits).saturating_mul(users))),
        }
    }

    /// Counts one more of a user.
    ///
    /// # Errors
    /// When it comes too often.
    pub(crate) fn of_user(&self, what: Rate, user: &Name) -> Result<(), TooOften> {
        let buckets = self.users.get(what as usize).and_then(Option::as_ref);
        buckets.map_or(Ok(()), |buckets| buckets.take(user, what, Scope::User))
    }

    /// Counts one more from an address, where the bounds of one hold.
    ///
    /// # Errors
    /// When it comes too often.
    pub(crate) fn of_address(&self, what: Rate, address: Option<IpAddr>) -> Result<(), TooOften> {
        let Some(address) = address else {
            return Ok(());
        };
        let buckets = self.addresses.get(what as usize).and_then(Option::as_ref);
        buckets.map_or(Ok(()), |buckets| {
            buckets.take(&network(address), what, Scope::Address)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_often_is_told_when_to_come_again_and_nobody_else_is() {
        let limits = Limits {
            reads_per_second: 1,
            connections_per_user: 5,
            connections_per_address: 10,
            ..Limits::default()
        };
        let rates = Rates::new(&limits);
        let (alice, bob) = (Name::parse("alice").unwrap(), Name::parse("bob").unwrap());
        // Ten at once; while they are taken, another may have become due.
        let refused = (0..30).find_map(|_| rates.of_user(Rate::Reads, &alice).err());
        let refused = refused.unwrap();
        assert_eq!((refused.scope, refused.per_second), (Scope::User, 1));
        assert!(refused.retry_after() >= 1, "{refused}");
        rates.of_user(Rate::Reads, &bob).unwrap();
        rates.of_user(Rate::Publishes, &alice).unwrap();
        let from = |text: &str| rates.of_address(Rate::Reads, Some(text.parse().unwrap()));
        let refused = (0..60).find_map(|n| from(&format!("2001:db8::{n}")).err());
        assert_eq!(
            refused.unwrap().per_second,
            2,
            "an address is two users here"
        );
        from("2001:db8:0:1::1").unwrap();
    }

    #[test]
    fn zero_is_no_bound() {
        let rates = Rates::new(&Limits {
            requests_per_second: 0,
            ..Limits::default()
        });
        let here = Some([127, 0, 0, 1].into());
        assert!((0..100_000).all(|_| rates.of_address(Rate::Requests, here).is_ok()));
    }
}
