//! The dialects that are shipped, compiled as the relay does.

use std::sync::LazyLock;
use std::time::Duration;

use relay_core::watcher::WatcherBounds;
use relay_core::watcher::outbox::OutboxBounds;
use relay_core::watcher::session::SessionBounds;
use relay_wire::dialect::{BUILT_IN, Dialects, Source};

/// As configured where nothing is configured.
pub const BOUNDS: WatcherBounds = WatcherBounds {
    outbox: OutboxBounds {
        milestones: 100,
        bytes: 256 * 1024,
        jobs: 10_000,
        interval: Duration::from_millis(100),
    },
    session: SessionBounds {
        subscriptions: 100,
        auth_timeout: Duration::from_secs(10),
        ping_interval: Duration::from_secs(25),
        dead_after: Duration::from_secs(60),
    },
    ack_timeout: Duration::from_secs(5),
    endings_within: None,
};

/// All that are shipped.
pub static DIALECTS: LazyLock<Dialects> = LazyLock::new(|| {
    let sources: Vec<Source> = BUILT_IN
        .iter()
        .map(|(name, text)| Source {
            name: (*name).to_owned(),
            path: format!("{name}.toml").into(),
            text: (*text).to_owned().into(),
            base: None,
        })
        .collect();
    Dialects::load(&sources, BOUNDS, &|_, _| Box::new(())).expect("what is shipped compiles")
});
