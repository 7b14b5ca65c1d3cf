//! How often a client may poll, where a dialect says so: fixed windows of a minute, shared by all shards.
//!
//! It does not know requests or identities; the door names the caller.
//!
//! Invariant: at most [`MAX_CALLERS`] callers are counted at a time.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use relay_core::id::Name;
use relay_core::limits::network;
use relay_core::moment::Moment;

const WINDOW: Duration = Duration::from_secs(60);
/// Callers counted at a time. Past it the one whose window began first is forgotten.
const MAX_CALLERS: usize = 100_000;

/// Whose window: of a path and a caller.
type Key = (String, Caller);

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// The user, where there is a credential.
    User(Name),
    /// The address, where there is none; IPv6 by /64.
    Address(IpAddr),
}

impl Caller {
    /// The user, or where there is none the address.
    pub(crate) fn of(user: Option<&Name>, address: IpAddr) -> Self {
        match user {
            Some(user) => Self::User(user.clone()),
            None => Self::Address(network(address)),
        }
    }
}

/// What is left to a caller in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Whether this request is within it.
    pub(crate) granted: bool,
    /// Requests left.
    pub(crate) remaining: u32,
    /// Until the window ends.
    pub(crate) reset: Duration,
}

/// Every caller's window, by path.
#[derive(Debug, Default)]
pub(crate) struct PollLimits {
    /// Held for one look-up.
    windows: Mutex<Windows>,
}

#[derive(Debug, Default)]
struct Windows {
    /// When each began, and how much of it is used.
    open: HashMap<Key, (Moment, u32)>,
    /// In the order in which they began. One that began anew stands here twice.
    begun: VecDeque<(Moment, Key)>,
}

impl Windows {
    /// Forgets windows that are over, a few at a time, and the oldest where there are too many.
    fn tidy(&mut self, now: Moment) {
        for _ in 0..2 {
            let is_over = |(began, _): &(Moment, Key)| now - *began >= WINDOW;
            let is_full = self.open.len() >= MAX_CALLERS;
            if !self
                .begun
                .front()
                .is_some_and(|first| is_full || is_over(first))
            {
                return;
            }
            let Some((began, key)) = self.begun.pop_front() else {
                return;
            };
            if self.open.get(&key).is_some_and(|(of, _)| *of == began) {
                self.open.remove(&key);
            }
        }
    }
}

impl PollLimits {
    /// Counts one request of `caller` for `path`, of which a minute has `limit`.
    pub(crate) fn count(&self, path: &str, caller: Caller, limit: u32, now: Moment) -> Allowance {
        let mut windows = self.windows.lock();
        let key = (path.to_owned(), caller);
        windows.tidy(now);
        let known = windows
            .open
            .get(&key)
            .filter(|(began, _)| now - *began < WINDOW);
        if known.is_none() {
            windows.begun.push_back((now, key.clone()));
            windows.open.insert(key.clone(), (now, 0));
        }
        let (began, used) = windows.open.entry(key).or_insert((now, 0));
        let granted = *used < limit;
        *used = used.saturating_add(1);
        Allowance {
            granted,
            remaining: limit.saturating_sub(*used),
            reset: WINDOW.saturating_sub(now - *began),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_caller_and_windows_that_are_over_are_forgotten() {
        let caller = |text: &str| Caller::of(None, text.parse().unwrap());
        assert_eq!(caller("2001:db8::1"), caller("2001:db8::2:3"));
        assert_ne!(caller("2001:db8::1"), caller("2001:db8:0:1::1"));
        let limits = PollLimits::default();
        let begin = Moment::default();
        for n in 0..1000_u32 {
            let address = Caller::Address(n.to_be_bytes().into());
            limits.count("/x", address, 2, begin);
        }
        for after in 60..1060 {
            let now = begin + Duration::from_secs(after);
            limits.count("/x", caller("10.0.0.1"), 2, now);
        }
        let windows = limits.windows.lock();
        assert_eq!((windows.open.len(), windows.begun.len()), (1, 1));
    }

    #[test]
    fn a_window_ends_after_a_minute_and_callers_do_not_share_it() {
        let limits = PollLimits::default();
        let begin = Moment::default();
        let caller = |n: u8| Caller::Address([10, 0, 0, n].into());
        let count = |n, after| limits.count("/x", caller(n), 2, begin + Duration::from_secs(after));
        assert_eq!(count(1, 0).remaining, 1);
        assert!(count(1, 10).granted);
        let refused = count(1, 20);
        assert!(!refused.granted);
        assert_eq!(refused.reset, Duration::from_secs(40));
        assert!(count(2, 20).granted);
        assert!(count(1, 60).granted);
    }
}
