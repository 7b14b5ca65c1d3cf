//! From the configuration's keys to the bounds each part is held to.

use std::sync::Arc;
use std::time::Duration;

use relay_bus::hub::{Hub, HubSettings};
use relay_core::limits::ConnectionLimits;
use relay_core::outbox::OutboxBounds;
use relay_core::session::SessionBounds;

use crate::admission::Admissions;
use crate::config::Config;
use crate::dialect::{Dialects, PollLimits};
use crate::identity::Mode;
use crate::origin::Policy;
use crate::readiness::Readiness;
use crate::shard::{Common, Mailboxes};
use crate::telemetry::Telemetry;

/// How long a client may take to authenticate by message.
const AUTH_TIMEOUT: Duration = Duration::from_secs(10);
/// Jobs with something waiting in one outbox.
const OUTBOX_JOBS: usize = 10_000;

pub(super) fn hub(config: &Config, shards: usize) -> HubSettings {
    HubSettings {
        shards,
        per_job: config.history.per_job,
        max_jobs: config.history.jobs,
        max_bytes: config.history.bytes,
        update_bytes: config.limits.update_bytes,
        terminal_ttl: config.history.terminal_ttl,
        idle_ttl: config.history.idle_ttl,
        resync_interval: config.nats.resync_interval,
    }
}

pub(crate) fn session(config: &Config) -> SessionBounds {
    SessionBounds {
        subscriptions: config.limits.subscriptions_per_connection,
        auth_timeout: AUTH_TIMEOUT,
        ping_interval: config.delivery.ping_interval,
        dead_after: config.delivery.dead_after,
    }
}

pub(crate) fn outbox(config: &Config) -> OutboxBounds {
    OutboxBounds {
        milestones: config.delivery.milestones,
        bytes: config.delivery.outbox_bytes,
        jobs: OUTBOX_JOBS,
        interval: match config.delivery.updates_per_second {
            0 => Duration::ZERO,
            per_second => Duration::from_secs(1) / per_second,
        },
    }
}

pub(super) fn common(
    config: &Config,
    hub: Arc<Hub>,
    identity: Mode,
    telemetry: Telemetry,
    dialects: Dialects,
    mailboxes: Mailboxes,
) -> Common {
    let (limits, delivery) = (&config.limits, &config.delivery);
    let count = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    Common {
        hub,
        identity,
        cookie: config.auth.cookie.clone(),
        origins: Policy::from_config(&config.http),
        admissions: Admissions::new(ConnectionLimits {
            per_user: count(limits.connections_per_user),
            per_address: count(limits.connections_per_address),
            per_node: count(limits.connections),
        }),
        readiness: Readiness::default(),
        telemetry,
        dialects,
        polls: PollLimits::default(),
        mailboxes,
        session: session(config),
        outbox: outbox(config),
        write_timeout: delivery.write_timeout,
        max_failures: delivery.max_failures,
        ack_timeout: delivery.ack_timeout,
        poll_wait: delivery.poll_wait,
        poll_wait_max: delivery.poll_wait_max,
        message_bytes: limits.message_bytes,
        messages_per_second: limits.messages_per_second,
        messages_burst: limits.messages_burst,
        header_timeout: config.http.header_timeout,
        drain_spread: config.drain.spread,
    }
}
