//! From the configuration to what each part of a relay is made with.

use std::sync::Arc;

use relay_bus::hub::{Hub, HubSettings};
use relay_core::limits::{Bounds, LedgerLimits};
use relay_wire::dialect::Dialects;

use crate::admission::Admissions;
use crate::config::{Config, Limits};
use crate::departures::Departures;
use crate::exchanged::Exchanged;
use crate::identity::ticket::Tickets;
use crate::identity::{Authority, Basis};
use crate::node::{Node, Rules, Told};
use crate::origin::Policy;
use crate::poll_limits::PollLimits;
use crate::proxies::Proxies;
use crate::rates::Rates;
use crate::readiness::Readiness;
use crate::sockets::{Budget, Sockets};
use crate::telemetry::Telemetry;

/// The settings of the hub.
pub(super) fn hub(config: &Config, dialects: &Dialects, shards: usize) -> HubSettings {
    HubSettings {
        shards,
        per_job: config.history.per_job,
        max_jobs: config.history.jobs,
        max_bytes: config.history.bytes,
        update_bytes: config.limits.update_bytes,
        subject_stem: format!("{}.", config.nats.prefix),
        kinds: Arc::new(config.kinds_table(dialects)),
        terminal_ttl: config.history.terminal_ttl,
        idle_ttl: config.history.idle_ttl,
        resync_interval: config.nats.resync_interval,
    }
}

/// How much room there is for clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// What the file descriptors are for.
    pub(super) budget: Budget,
    /// How many threads accept sockets.
    pub(super) shards: usize,
}

/// How much users, addresses and the node may have at once. `limits` is what was configured, and `budget` what there
/// is.
pub(super) fn ledger_limits(limits: &Limits, budget: Budget) -> LedgerLimits {
    let count = |limit: usize| u64::try_from(limit).unwrap_or(u64::MAX);
    // Of what many share, one may have a quarter, and as much as one request needs.
    let batch = limits.batch_bytes();
    let shared = |bytes: usize, least: usize| {
        let one = count((bytes / 4).max(least));
        Bounds {
            per_user: one,
            per_address: one,
            per_node: count(bytes.max(least)),
        }
    };
    LedgerLimits {
        connections: Bounds {
            per_user: count(limits.connections_per_user),
            per_address: count(limits.connections_per_address),
            per_node: count(budget.connections),
        },
        sockets: Bounds {
            per_user: u64::MAX,
            per_address: budget.sockets_per_address(limits),
            per_node: u64::MAX,
        },
        answer_bytes: shared(limits.answer_bytes, limits.update_bytes * 4),
        body_bytes: shared(limits.body_bytes, batch),
    }
}

/// Who may come in.
pub(super) fn rules(config: &Config) -> Rules {
    Rules {
        proxies: Proxies::new(&config.http.trusted_proxies, config.http.forwarded),
        hosts: config.hosts(),
        origins: Policy::new(&config.http.allowed_origins, config.http.listen.ip()),
    }
}

/// The node of a configuration.
pub(super) fn node(
    config: &Config,
    room: Room,
    hub: Arc<Hub>,
    (identity, tickets): (Basis, Tickets),
    telemetry: Telemetry,
    dialects: Dialects,
) -> Node {
    let limits = Limits {
        connections: room.budget.connections,
        ..config.limits.clone()
    };
    Node {
        hub,
        identity: Authority::new(identity, tickets),
        cookie: config.auth.cookie.clone(),
        certificate: Exchanged::default(),
        rules: Exchanged::new(rules(config)),
        admissions: Admissions::new(ledger_limits(&config.limits, room.budget)),
        sockets: Sockets::new(room.budget, room.shards),
        rates: Rates::new(&limits),
        told: Told::default(),
        readiness: Readiness::default(),
        telemetry,
        dialects,
        polls: PollLimits::default(),
        departures: Departures::default(),
        bounds: config.watcher_bounds(),
        http: config.http.clone(),
        limits,
        delivery: config.delivery.clone(),
        drain: config.drain.clone(),
    }
}

/// A node without NATS, for tests of what is made with one.
#[cfg(test)]
pub(crate) fn test_node(config: &Config) -> Arc<Node> {
    let clock = relay_bus::clock::Clock::start();
    let backing = relay_bus::hub::Backing::Embedded;
    let dialects = config.load_dialects(&|_, _| Box::new(())).unwrap();
    let settings = hub(config, &dialects, 1);
    let hub = Hub::new(settings, backing, clock, super::bus::epoch(clock));
    let identity = (config.identity().unwrap(), config.auth.tickets().unwrap());
    let telemetry = Telemetry::new().unwrap();
    let budget = Budget::new(None, config.limits.connections, 1).unwrap();
    let room = Room { budget, shards: 1 };
    Arc::new(node(config, room, hub, identity, telemetry, dialects))
}
