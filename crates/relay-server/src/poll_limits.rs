//! How often a client may poll, where a dialect says so: fixed windows of a minute, shared by all shards.
//!
//! It does not know requests or identities; the door names the caller.
//!
//! Invariant: at most [`MAX_CALLERS`] callers are counted at a time.

use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use relay_core::id::Name;
use relay_core::moment::Moment;

const WINDOW: Duration = Duration::from_secs(60);
/// Callers counted at a time. Past it those whose window is over are forgotten, and then nobody new counted.
const MAX_CALLERS: usize = 100_000;

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// The user, where there is a credential.
    User(Name),
    /// The address, where there is none.
    Address(IpAddr),
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
    windows: Mutex<HashMap<(String, Caller), (Moment, u32)>>,
}

impl PollLimits {
    /// Counts one request of `caller` for `path`, of which a minute has `limit`.
    pub(crate) fn count(&self, path: &str, caller: Caller, limit: u32, now: Moment) -> Allowance {
        let mut windows = self.windows.lock();
        let key = (path.to_owned(), caller);
        if windows.len() >= MAX_CALLERS && !windows.contains_key(&key) {
            windows.retain(|_, (began, _)| now - *began < WINDOW);
            if windows.len() >= MAX_CALLERS {
                return Allowance {
                    granted: true,
                    remaining: limit.saturating_sub(1),
                    reset: WINDOW,
                };
            }
        }
        let (began, used) = windows.entry(key).or_insert((now, 0));
        if now - *began >= WINDOW {
            (*began, *used) = (now, 0);
        }
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
