//! What operators see: Prometheus metrics, each defined here once, with what it counts.
//!
//! Handles are resolved at start, so the fan-out adds to a number and nothing else. No job, user or token
//! is ever a label. Sums that hold: `opened - closed = open` per transport; every update that came in is
//! in exactly one `relay_updates_total` result.

mod mapping;

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::local::{LocalHistogram, LocalIntCounter};
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use relay_bus::hub::HubStats;
use relay_core::quality::Grade;
use relay_wire::dialect::Meter;

use mapping::MappingMeter;

/// From a tenth of a millisecond, a good delivery, to half a minute, a client asleep.
const DELIVERY_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0, 30.0,
];

/// Every metric of the relay.
#[derive(Debug)]
pub(crate) struct Telemetry {
    registry: Registry,
    /// Held while figures counted elsewhere are brought up to date: two scrapes at once would add twice.
    scraping: Mutex<()>,
    updates: IntCounterVec,
    updates_refused: IntCounter,
    jobs: IntGauge,
    job_bytes: IntGauge,
    repairs: IntGauge,
    repaired: IntCounterVec,
    endings_again: IntCounterVec,
    evicted: IntCounter,
    bus_up: IntGauge,
    bus_lag: Gauge,
    bus_sequence: IntGauge,
    inbox_messages: IntGaugeVec,
    inbox_conflated: IntCounterVec,
    inbox_shed: IntCounterVec,
    connections: IntGaugeVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    refused: IntCounterVec,
    requests: IntCounterVec,
    deliveries: IntCounterVec,
    delivery_seconds: HistogramVec,
    end_to_end_seconds: HistogramVec,
    /// States a newer state took the place of, in a connection's outbox.
    pub conflated: IntCounter,
    gaps: IntCounterVec,
    resumes: IntCounterVec,
    /// Writes the kernel had no room for.
    pub writes_blocked: IntCounter,
    /// Write deadlines that passed.
    pub write_failures: IntCounter,
    /// Bytes written to clients.
    pub written_bytes: IntCounter,
    /// Endings offered again for want of an acknowledgement.
    pub endings_reoffered: IntCounter,
    /// Time from a ping to its pong.
    pub round_trip_seconds: Histogram,
    client_errors: IntCounterVec,
    dialect_runs: IntCounterVec,
    dialect_failures: IntCounterVec,
    dialect_connections: IntGaugeVec,
    /// Clients that left and would have been known again, but for others.
    pub departures_forgotten: IntCounter,
    quality: [IntGauge; Grade::ALL.len()],
    quality_changes: IntCounterVec,
    checks: IntCounterVec,
    endings_pending: IntGaugeVec,
    endings_oldest: GaugeVec,
    limit_in_use: IntGaugeVec,
    limit: IntGaugeVec,
    limit_rejections: IntCounterVec,
    /// Answers given up because their clients did not read them.
    pub answers_given_up: IntCounter,
    /// 1 while the relay drains.
    pub draining: IntGauge,
    jwks_refresh: IntCounterVec,
    jwks_last_success: IntGauge,
}

/// What a shard adds to for one transport.
#[derive(Debug, Clone)]
pub(crate) struct TransportMetrics {
    /// Open now.
    pub open: IntGauge,
    /// Opened since the start.
    pub opened: IntCounter,
    /// Publications handed to the kernel.
    pub deliveries: LocalIntCounter,
}

/// The classes delivery times are told apart by.
#[derive(Debug, Clone)]
pub(crate) struct ClassMetrics {
    /// From taken in to written.
    pub delivery: LocalHistogram,
    /// From the worker's clock to written.
    pub end_to_end: LocalHistogram,
}

impl Telemetry {
    /// Defines and registers every metric.
    ///
    /// # Errors
    /// When two definitions contradict each other, which a test would show.
    #[allow(
        clippy::too_many_lines,
        reason = "a list of definitions, read from top to bottom"
    )]
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let build = int_gauges(
            r,
            "relay_build_info",
            "1, labelled with the version that runs",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        Ok(Self {
            scraping: Mutex::new(()),
            updates: counters(
                r,
                "relay_updates_total",
                "Updates from the bus, by result",
                &["result"],
            )?,
            updates_refused: counter(
                r,
                "relay_updates_refused_total",
                "Updates refused or shortened without an answer to their worker, which GET /refused lists",
            )?,
            jobs: int_gauge(r, "relay_jobs", "Jobs in memory")?,
            job_bytes: int_gauge(
                r,
                "relay_job_payload_bytes",
                "Bytes of job payloads in memory",
            )?,
            repairs: int_gauge(r, "relay_repairs", "Jobs being fetched from the store now")?,
            repaired: counters(
                r,
                "relay_repairs_total",
                "Fetches of single jobs that are over, by result",
                &["result"],
            )?,
            endings_again: counters(
                r,
                "relay_endings_stored_again_total",
                "Endings that this node stored again because their worker went on, by result",
                &["result"],
            )?,
            evicted: counter(r, "relay_jobs_evicted_total", "Jobs evicted from memory")?,
            bus_up: int_gauge(
                r,
                "relay_bus_up",
                "1 while the bus is connected and what is served is fresh",
            )?,
            bus_lag: gauge(
                r,
                "relay_bus_lag_seconds",
                "Time from the bus storing the last update to this node receiving it",
            )?,
            bus_sequence: int_gauge(r, "relay_bus_sequence", "The highest bus sequence seen")?,
            inbox_messages: int_gauges(
                r,
                "relay_shard_inbox_messages",
                "Messages waiting for a shard",
                &["shard"],
            )?,
            inbox_conflated: counters(
                r,
                "relay_shard_inbox_conflated_total",
                "States conflated before an overloaded shard saw them",
                &["shard"],
            )?,
            inbox_shed: counters(
                r,
                "relay_shard_inbox_shed_total",
                "Milestones shed before an overloaded shard saw them, each announced as a gap",
                &["shard"],
            )?,
            connections: int_gauges(r, "relay_connections", "Open connections", &["transport"])?,
            opened: counters(
                r,
                "relay_connections_opened_total",
                "Connections opened",
                &["transport"],
            )?,
            closed: counters(
                r,
                "relay_connections_closed_total",
                "Connections closed, by reason",
                &["transport", "reason"],
            )?,
            refused: counters(
                r,
                "relay_connections_refused_total",
                "Connections rejected before they were opened, by reason",
                &["reason"],
            )?,
            requests: counters(
                r,
                "relay_http_requests_total",
                "HTTP requests that are not streams, by route and status",
                &["route", "code"],
            )?,
            deliveries: counters(
                r,
                "relay_deliveries_total",
                "Publications written to clients",
                &["transport"],
            )?,
            delivery_seconds: histograms(
                r,
                "relay_delivery_seconds",
                "Time from receiving an update to having written it to one client",
                &["class"],
            )?,
            end_to_end_seconds: histograms(
                r,
                "relay_end_to_end_seconds",
                "Time from the worker's clock (ts) to having written it to one client",
                &["class"],
            )?,
            conflated: counter(
                r,
                "relay_conflated_total",
                "States that a newer state of the same job replaced in an outbox",
            )?,
            gaps: counters(
                r,
                "relay_gaps_total",
                "Gaps announced to clients, by reason",
                &["reason"],
            )?,
            resumes: counters(
                r,
                "relay_resumes_total",
                "Subscriptions with a cursor, by result",
                &["result"],
            )?,
            writes_blocked: counter(
                r,
                "relay_writes_blocked_total",
                "Writes for which the kernel had no room",
            )?,
            write_failures: counter(
                r,
                "relay_write_failures_total",
                "Write deadlines that passed",
            )?,
            written_bytes: counter(r, "relay_written_bytes_total", "Bytes written to streams")?,
            endings_reoffered: counter(
                r,
                "relay_endings_reoffered_total",
                "Endings sent again because no acknowledgement came",
            )?,
            round_trip_seconds: histogram(
                r,
                "relay_round_trip_seconds",
                "Time from a WebSocket ping to its pong",
            )?,
            client_errors: counters(
                r,
                "relay_client_errors_total",
                "Client messages that were rejected, by code",
                &["code"],
            )?,
            dialect_runs: counters(
                r,
                "relay_dialect_runs_total",
                "Runs of a dialect's mappings",
                &["dialect", "mapping"],
            )?,
            dialect_failures: counters(
                r,
                "relay_dialect_failures_total",
                "Runs of a dialect's mappings that failed, or had nothing to read, so that nothing was sent, by reason",
                &["dialect", "mapping", "reason"],
            )?,
            dialect_connections: int_gauges(
                r,
                "relay_dialect_connections",
                "Open connections that speak a dialect",
                &["dialect"],
            )?,
            departures_forgotten: counter(
                r,
                "relay_departures_forgotten_total",
                "Clients of dialects with returns_within that left and were forgotten before that time was over, because more left than are kept",
            )?,
            quality: {
                let quality = int_gauges(
                    r,
                    "relay_connection_quality",
                    "Open WebSockets by quality, judged by their round trips",
                    &["verdict"],
                )?;
                Grade::ALL.map(|verdict| quality.with_label_values(&[verdict.as_str()]))
            },
            quality_changes: counters(
                r,
                "relay_connection_quality_changes_total",
                "Changes of a connection's quality, by the new verdict",
                &["verdict"],
            )?,
            checks: counters(
                r,
                "relay_connection_checks_total",
                "Checks that a dialect sends to see whether a client answers, by result",
                &["result"],
            )?,
            endings_pending: int_gauges(
                r,
                "relay_endings_pending",
                "Endings waiting to be written or acknowledged",
                &["shard"],
            )?,
            endings_oldest: gauges(
                r,
                "relay_endings_pending_oldest_seconds",
                "Age of the oldest ending that waits",
                &["shard"],
            )?,
            limit_in_use: int_gauges(
                r,
                "relay_limit_in_use",
                "How much of a limit is in use",
                &["limit"],
            )?,
            limit: int_gauges(r, "relay_limit", "The limit", &["limit"])?,
            limit_rejections: counters(
                r,
                "relay_limit_rejections_total",
                "What was rejected because a limit was reached, by limit and by whose share was used up",
                &["limit", "scope"],
            )?,
            answers_given_up: counter(
                r,
                "relay_answers_given_up_total",
                "Answers to requests that were not written to their end because the client did not read them",
            )?,
            draining: int_gauge(r, "relay_draining", "1 while the relay drains")?,
            jwks_refresh: counters(
                r,
                "relay_jwks_refresh_total",
                "Fetches of the keys that others publish, by result",
                &["result"],
            )?,
            jwks_last_success: int_gauge(
                r,
                "relay_jwks_last_success_timestamp_seconds",
                "When the keys that others publish were last fetched, in seconds since 1970; 0 if never",
            )?,
            registry,
        })
    }

    /// The handles for one transport.
    pub(crate) fn transport(&self, name: &str) -> TransportMetrics {
        TransportMetrics {
            open: self.connections.with_label_values(&[name]),
            opened: self.opened.with_label_values(&[name]),
            deliveries: self.deliveries.with_label_values(&[name]).local(),
        }
    }

    /// The handles for one class: `state`, `milestone` or `ending`.
    pub(crate) fn class(&self, name: &str) -> ClassMetrics {
        ClassMetrics {
            delivery: self.delivery_seconds.with_label_values(&[name]).local(),
            end_to_end: self.end_to_end_seconds.with_label_values(&[name]).local(),
        }
    }

    /// A connection closed.
    pub(crate) fn closed(&self, transport: &str, reason: &str) {
        self.closed.with_label_values(&[transport, reason]).inc();
    }

    /// A connection was refused.
    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// A request was answered.
    pub(crate) fn request(&self, route: &str, status: u16) {
        self.requests
            .with_label_values(&[route, &status.to_string()])
            .inc();
    }

    /// A gap was announced.
    pub(crate) fn gap(&self, reason: &str) {
        self.gaps.with_label_values(&[reason]).inc();
    }

    /// A subscription came with a cursor.
    pub(crate) fn resume(&self, recovered: bool) {
        let result = if recovered { "recovered" } else { "snapshot" };
        self.resumes.with_label_values(&[result]).inc();
    }

    /// A client's message was refused.
    pub(crate) fn client_error(&self, code: &str) {
        self.client_errors.with_label_values(&[code]).inc();
    }

    /// The meter of one mapping of a dialect.
    pub(crate) fn mapping(&self, dialect: &str, mapping: &str) -> Box<dyn Meter> {
        let labels = [dialect, mapping];
        Box::new(MappingMeter::new(
            labels,
            self.dialect_runs.with_label_values(&labels),
            self.dialect_failures.clone(),
        ))
    }

    /// How many open connections speak a dialect.
    pub(crate) fn dialect_connections(&self, dialect: &str) -> IntGauge {
        self.dialect_connections.with_label_values(&[dialect])
    }

    /// How many WebSockets are as good as this.
    pub(crate) fn quality(&self, verdict: Grade) -> &IntGauge {
        &self.quality[verdict as usize]
    }

    /// A connection is judged differently.
    pub(crate) fn quality_change(&self, verdict: Grade) {
        let changes = &self.quality_changes;
        changes.with_label_values(&[verdict.as_str()]).inc();
    }

    /// What came of a check: `answered` or `missed`.
    pub(crate) fn check(&self, result: &str) {
        self.checks.with_label_values(&[result]).inc();
    }

    /// What a shard has not got rid of.
    pub(crate) fn endings(&self, shard: usize, pending: usize, oldest: Duration) {
        let shard = shard.to_string();
        self.endings_pending
            .with_label_values(&[&shard])
            .set(signed(pending));
        self.endings_oldest
            .with_label_values(&[&shard])
            .set(oldest.as_secs_f64());
    }

    /// Fetches of keys that succeeded and failed until now, and when the last one succeeded.
    pub(crate) fn keys_fetched(&self, (succeeded, failed, last): (u64, u64, i64)) {
        let _alone = self.scraping.lock();
        for (result, count) in [("ok", succeeded), ("failed", failed)] {
            raise(&self.jwks_refresh.with_label_values(&[result]), count);
        }
        self.jwks_last_success.set(last);
    }

    /// A bound and how much of it is in use.
    pub(crate) fn bound(&self, name: &str, in_use: usize, limit: usize) {
        self.limit_in_use
            .with_label_values(&[name])
            .set(signed(in_use));
        self.limit.with_label_values(&[name]).set(signed(limit));
    }

    /// Something was rejected because a limit was reached.
    pub(crate) fn limit_rejected(&self, limit: &str, scope: &str) {
        self.limit_rejections
            .with_label_values(&[limit, scope])
            .inc();
    }

    /// The text Prometheus scrapes (exposition format 0.0.4), with the hub's figures as of now.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub(crate) fn scrape(&self, hub: &HubStats) -> Result<Vec<u8>, prometheus::Error> {
        let _alone = self.scraping.lock();
        self.jobs.set(signed(hub.jobs));
        self.job_bytes.set(signed(hub.bytes));
        self.repairs.set(signed(hub.repairs));
        raise(&self.evicted, hub.evicted);
        raise(&self.updates_refused, hub.refused);
        self.bus_up.set(i64::from(!hub.stale));
        self.bus_lag.set(hub.lag.as_secs_f64());
        self.bus_sequence
            .set(i64::try_from(hub.high.get()).unwrap_or(i64::MAX));
        for (shard, inbox) in hub.inboxes.iter().enumerate() {
            let shard = shard.to_string();
            let label = [shard.as_str()];
            self.inbox_messages
                .with_label_values(&label)
                .set(signed(inbox.waiting));
            raise(
                &self.inbox_conflated.with_label_values(&label),
                inbox.conflated,
            );
            raise(&self.inbox_shed.with_label_values(&label), inbox.shed);
        }
        for (result, count) in &hub.counts {
            raise(&self.updates.with_label_values(&[result]), *count);
        }
        for (result, count) in &hub.repaired {
            raise(&self.repaired.with_label_values(&[result]), *count);
        }
        for (result, count) in &hub.endings {
            raise(&self.endings_again.with_label_values(&[result]), *count);
        }
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Brings a counter up to what somebody else has counted.
fn raise(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

type Defined<T> = Result<T, prometheus::Error>;

fn counter(registry: &Registry, name: &str, help: &str) -> Defined<IntCounter> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Defined<Gauge> {
    let metric = Gauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Defined<IntCounterVec> {
    let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn int_gauge(registry: &Registry, name: &str, help: &str) -> Defined<IntGauge> {
    let metric = IntGauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn int_gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Defined<IntGaugeVec> {
    let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Defined<GaugeVec> {
    let metric = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Defined<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(DELIVERY_BUCKETS.to_vec());
    let metric = Histogram::with_opts(options)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Defined<HistogramVec> {
    let options = HistogramOpts::new(name, help).buckets(DELIVERY_BUCKETS.to_vec());
    let metric = HistogramVec::new(options, labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
