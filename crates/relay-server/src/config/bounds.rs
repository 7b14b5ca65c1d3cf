//! From the configuration's keys to the bounds that connections are held to.
//!
//! Derived here once, for native clients and as what a dialect falls back on.

use std::time::Duration;

use relay_core::watcher::WatcherBounds;
use relay_core::watcher::outbox::OutboxBounds;
use relay_core::watcher::session::SessionBounds;

use super::{Config, Delivery};

/// How long a client may take to authenticate by message.
const AUTH_TIMEOUT: Duration = Duration::from_secs(10);
/// Jobs with something waiting in one outbox.
const OUTBOX_JOBS: usize = 10_000;

impl Config {
    /// What a watcher is held to.
    pub(crate) fn watcher_bounds(&self) -> WatcherBounds {
        WatcherBounds {
            session: self.session_bounds(),
            outbox: self.delivery.outbox_bounds(),
            ack_timeout: self.delivery.ack_timeout,
            endings_within: None,
        }
    }

    fn session_bounds(&self) -> SessionBounds {
        SessionBounds {
            subscriptions: self.limits.subscriptions_per_connection,
            auth_timeout: AUTH_TIMEOUT,
            ping_interval: self.delivery.ping_interval,
            dead_after: self.delivery.dead_after,
        }
    }
}

impl Delivery {
    fn outbox_bounds(&self) -> OutboxBounds {
        OutboxBounds {
            milestones: self.milestones,
            bytes: self.outbox_bytes,
            jobs: OUTBOX_JOBS,
            interval: match self.updates_per_second {
                0 => Duration::ZERO,
                per_second => Duration::from_secs(1) / per_second,
            },
        }
    }
}
