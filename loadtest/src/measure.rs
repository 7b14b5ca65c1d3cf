//! One run of a scenario against one server, and what came out.
//!
//! Knows neither files nor tables. The server's figures are taken from just before the first counted update
//! to just after the last delivery.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::client::Transport;
use crate::crowd::{Arrival, Crowd, Plan};
use crate::figure::ratio;
use crate::process::{Cpu, Memory};
use crate::progress::Progress;
use crate::scenario::{Kind, Publish, Scenario};
use crate::tally::{Counts, millis};
use crate::target::Target;

/// After connecting, so that the handshakes' last words are not counted.
const SETTLE: Duration = Duration::from_millis(400);
/// Nothing heard for this long is quiet.
const QUIET: Duration = Duration::from_millis(1500);
/// Between two points of a curve.
const POINT: Duration = Duration::from_millis(250);
/// Connected and left again first, so that what a server sets up once is not counted.
const WARM_UP_WATCHERS: usize = 16;
const MAX_WARM_UP: u64 = 20;

/// What one run of one server came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Run {
    pub(crate) server: String,
    pub(crate) connect: Connect,
    pub(crate) published: u64,
    pub(crate) refused_updates: u64,
    pub(crate) deliveries_expected: u64,
    pub(crate) deliveries: u64,
    /// To watchers that come and go.
    pub(crate) other_deliveries: u64,
    /// Not delivered because something newer of the job came instead, as the watchers saw it.
    pub(crate) superseded: u64,
    /// The same by the relay's own counters, if it was asked.
    pub(crate) conflated_by_relay: Option<f64>,
    /// Expected, and neither delivered nor superseded.
    pub(crate) missing: u64,
    pub(crate) out_of_order: u64,
    pub(crate) lost_connections: u64,
    /// Why the first of them was lost.
    pub(crate) loss: Option<String>,
    pub(crate) bytes_per_delivery: f64,
    pub(crate) cpu: Cpu,
    pub(crate) micros_per_delivery: f64,
    pub(crate) micros_per_update: f64,
    pub(crate) updates_per_second: f64,
    pub(crate) deliveries_per_second: f64,
    pub(crate) latency: Latency,
    pub(crate) ending_latency: Option<Latency>,
    /// From when the last update was due to the last delivery.
    pub(crate) last_within_ms: f64,
    pub(crate) memory: Memory,
    pub(crate) kib_per_connection: f64,
    pub(crate) kib_per_job: Option<f64>,
    pub(crate) curve: Vec<Point>,
}

/// How the watchers got in.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Connect {
    pub(crate) connections: usize,
    pub(crate) refused: u64,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    pub(crate) cpu_micros_each: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

/// A moment of a run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Point {
    pub(crate) seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) resident_kib: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1e3,
        }
    }
}

/// What one run needs besides the scenario.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) progress: &'a mut Progress,
    /// Distinguishes this run's jobs from any other's.
    pub(crate) prefix: &'a str,
    /// Bytes of an update; the floor's are as long as the relay's frames were.
    pub(crate) payload: usize,
    /// The field of a document that says which update it is.
    pub(crate) carries: &'a str,
}

/// Plays a scenario to a server.
pub(crate) fn run(scenario: &Scenario, target: &mut Target, stage: &mut Stage<'_>) -> Result<Run> {
    let outcome = match scenario.kind {
        Kind::Fanout => fan_out(scenario, target, stage),
        Kind::Idle => idle(scenario, target, stage),
        Kind::Ramp => ramp(scenario, target, stage),
        Kind::Intake => intake(scenario, target, stage),
    };
    let outcome = outcome.with_context(|| {
        let log = target.log();
        let from = log.len().saturating_sub(2000);
        format!("{}\n{}", target.name, log.get(from..).unwrap_or_default())
    })?;
    Ok(Run {
        server: target.name.clone(),
        ..outcome
    })
}

fn enter(scenario: &Scenario, target: &Target, stage: &mut Stage<'_>) -> Result<(Crowd, Run)> {
    let jobs = match scenario.kind {
        // Each its own: what a topic costs is part of what a connection costs.
        Kind::Idle => scenario.watch.watchers.max(1),
        Kind::Fanout | Kind::Ramp | Kind::Intake => scenario.publish.jobs,
    };
    let mut crowd = Crowd::new(target.door.clone(), stage.prefix, jobs)?;
    let connect = open(scenario, target, &mut crowd, stage)?;
    Ok((
        crowd,
        Run {
            connect,
            ..Run::default()
        },
    ))
}

fn open(
    scenario: &Scenario,
    target: &Target,
    crowd: &mut Crowd,
    stage: &mut Stage<'_>,
) -> Result<Connect> {
    let before = target.meter.cpu()?;
    let progress = &mut *stage.progress;
    let arrival = crowd.open(&scenario.watch, |crowd| {
        progress.show(|| format!("{}: {} connected", target.name, crowd.inside));
    })?;
    let cpu = target.meter.cpu()?.since(before);
    let Arrival {
        took,
        refused,
        complaint,
        each,
    } = arrival;
    ensure!(
        refused == 0 || scenario.kind == Kind::Ramp,
        "{refused} watchers were refused: {}",
        complaint.unwrap_or_default()
    );
    let at = |quantile| each.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Connect {
        connections: crowd.inside,
        refused,
        seconds: took.as_secs_f64(),
        per_second: crowd.inside as f64 / took.as_secs_f64(),
        cpu_micros_each: ratio(cpu.micros(), crowd.inside as u64),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    })
}

fn fan_out(scenario: &Scenario, target: &Target, stage: &mut Stage<'_>) -> Result<Run> {
    let (mut crowd, mut run) = enter(scenario, target, stage)?;
    let publish = &scenario.publish;
    crowd.settle(SETTLE)?;
    crowd.employ(target.intake, publish.connections)?;
    let warm_up = Publish {
        updates: (publish.updates / 10)
            .clamp(1, MAX_WARM_UP)
            .max(publish.jobs.min(1000) as u64),
        rate: None,
        window: 1.max(publish.jobs.min(8) as u64),
        end: false,
        endings: 0.0,
        ..publish.clone()
    };
    let plan = |publish, churn| Plan {
        publish,
        payload: stage.payload,
        churn,
        carries: stage.carries,
    };
    crowd.drive(&plan(&warm_up, 0.0), |_| {})?;
    crowd.settle(SETTLE)?;
    crowd.tally.start()?;
    let metrics = target.metrics(stage.runtime)?;
    let (began, before) = (Instant::now(), target.meter.cpu()?);
    let mut curve = Curve::new(began);
    let expected = publish.updates * (scenario.watch.watchers / publish.jobs).max(1) as u64;
    let plan = plan(publish, scenario.watch.churn);
    let progress = &mut *stage.progress;
    crowd.drive(&plan, |crowd| {
        curve.point(target, &mut crowd.tally.counts);
        progress.show(|| {
            let counts = &crowd.tally.counts;
            let p99 = counts.latency.value_at_quantile(0.99) as f64 / 1e3;
            let got = counts.deliveries;
            format!(
                "{}: {got} of {expected} deliveries, p99 {p99:.1} ms",
                target.name
            )
        });
    })?;
    let took = began.elapsed();
    run.cpu = target.meter.cpu()?.since(before);
    run.memory = target.meter.memory()?;
    run.curve = curve.points;
    let last_due = crowd.tally.last_due().zip(crowd.tally.heard_at);
    run.last_within_ms = last_due.map_or(0.0, |(due, heard)| {
        millis(heard.saturating_duration_since(due))
    });
    run.lost_connections = crowd.lost;
    run.loss = crowd.loss.clone();
    if let (Some(before), Some(after)) = (metrics, target.metrics(stage.runtime)?) {
        let grown = |name| after.sum(name, "") - before.sum(name, "");
        run.conflated_by_relay =
            Some(grown("relay_conflated_total") + grown("relay_shard_inbox_conflated_total"));
    }
    count(
        &mut run,
        &crowd,
        publish.updates,
        took,
        scenario.watch.transport,
    );
    Ok(run)
}

/// Puts what was counted into the run.
fn count(run: &mut Run, crowd: &Crowd, updates: u64, took: Duration, transport: Transport) {
    let counts = &crowd.tally.counts;
    run.published = updates;
    run.refused_updates = crowd
        .publisher
        .as_ref()
        .map_or(0, |publisher| publisher.refused);
    run.deliveries_expected = counts.expected;
    run.deliveries = counts.deliveries;
    run.other_deliveries = counts.others;
    run.superseded = counts.superseded;
    run.out_of_order = counts.out_of_order;
    let accounted = counts.deliveries + counts.superseded - counts.out_of_order;
    run.missing = counts.expected.saturating_sub(accounted);
    let all = counts.deliveries + counts.others;
    let payload = ratio(counts.bytes, all);
    run.bytes_per_delivery = match transport {
        Transport::Ws => payload + transport.overhead(payload as usize) as f64,
        // The text is the whole event but for the blank line behind it.
        Transport::Sse => payload + 2.0,
    };
    run.micros_per_delivery = ratio(run.cpu.micros(), all);
    run.micros_per_update = ratio(run.cpu.micros(), updates);
    run.deliveries_per_second = all as f64 / took.as_secs_f64();
    run.updates_per_second = updates as f64 / took.as_secs_f64();
    run.latency = Latency::of(&counts.latency);
    run.ending_latency = (!counts.endings.is_empty()).then(|| Latency::of(&counts.endings));
}

/// Points of a run's curves.
struct Curve {
    began: Instant,
    points: Vec<Point>,
}

impl Curve {
    fn new(began: Instant) -> Self {
        Self {
            began,
            points: Vec::new(),
        }
    }

    fn point(&mut self, target: &Target, counts: &mut Counts) {
        let seconds = self.began.elapsed();
        if seconds < POINT * (u32::try_from(self.points.len()).unwrap_or(u32::MAX) + 1) {
            return;
        }
        let at = |quantile| counts.recent.value_at_quantile(quantile) as f64 / 1e3;
        self.points.push(Point {
            seconds: seconds.as_secs_f64(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            // A server that is gone is reported by whoever waits for its deliveries.
            resident_kib: target.meter.resident_kib().unwrap_or(0),
        });
        counts.recent.reset();
    }
}

fn idle(scenario: &Scenario, target: &Target, stage: &mut Stage<'_>) -> Result<Run> {
    let mut few = scenario.clone();
    few.watch.watchers = WARM_UP_WATCHERS;
    let (mut crowd, _) = enter(&few, target, stage)?;
    crowd.leave();
    crowd.settle(QUIET)?;
    let before = target.meter.memory()?;
    let (mut crowd, mut run) = enter(scenario, target, stage)?;
    crowd.settle(QUIET)?;
    ensure!(
        crowd.lost == 0,
        "{} connections were lost while idle: {}",
        crowd.lost,
        crowd.loss.unwrap_or_default()
    );
    run.memory = target.meter.memory()?;
    let grown = run.memory.pss_kib.saturating_sub(before.pss_kib);
    run.kib_per_connection = ratio(grown, crowd.inside as u64);
    Ok(run)
}

/// Everybody comes at once; then the server is restarted and everybody comes again. The second coming is the
/// one that is told, for its server is cold and its clients are many; the first is in the curve's place.
fn ramp(scenario: &Scenario, target: &mut Target, stage: &mut Stage<'_>) -> Result<Run> {
    let (mut crowd, mut run) = enter(scenario, target, stage)?;
    crowd.settle(SETTLE)?;
    run.lost_connections = crowd.lost;
    run.memory = target.meter.memory()?;
    let first = run.connect.clone();
    crowd.leave();
    if target.restart(stage.runtime)? {
        let again = open(scenario, target, &mut crowd, stage)?;
        // The worse of the two is what can be relied on.
        if again.per_second < first.per_second || again.refused > first.refused {
            run.connect = again;
        }
    }
    Ok(run)
}

fn intake(scenario: &Scenario, target: &Target, stage: &mut Stage<'_>) -> Result<Run> {
    let (mut crowd, mut run) = enter(scenario, target, stage)?;
    crowd.employ(target.intake, scenario.publish.connections)?;
    crowd.settle(QUIET)?;
    let held = |stage: &Stage<'_>| -> Result<(f64, f64)> {
        let metrics = target.metrics(stage.runtime)?.unwrap_or_default();
        let taken = metrics.sum("relay_updates_total", "");
        Ok((taken, metrics.sum("relay_job_payload_bytes", "")))
    };
    let (taken_before, bytes_before) = held(stage)?;
    let memory_before = target.meter.memory()?;
    let (began, before) = (Instant::now(), target.meter.cpu()?);
    let progress = &mut *stage.progress;
    let plan = Plan {
        publish: &scenario.publish,
        payload: stage.payload,
        churn: 0.0,
        carries: stage.carries,
    };
    crowd.drive(&plan, |crowd| {
        let done = crowd
            .publisher
            .as_ref()
            .map_or(0, |publisher| publisher.acknowledged);
        progress.show(|| format!("{}: {done} updates acknowledged", target.name));
    })?;
    // The broker has them all; the relay may still be reading.
    let updates = scenario.publish.updates as f64;
    while held(stage)?.0 - taken_before < updates {
        ensure!(
            began.elapsed() < scenario.patience(),
            "the relay has taken in {} of {updates} updates",
            held(stage)?.0 - taken_before
        );
        crowd.turn(Duration::from_millis(20))?;
    }
    let took = began.elapsed();
    run.cpu = target.meter.cpu()?.since(before);
    count(
        &mut run,
        &crowd,
        scenario.publish.updates,
        took,
        scenario.watch.transport,
    );
    run.memory = target.meter.memory()?;
    let grown = run.memory.pss_kib.saturating_sub(memory_before.pss_kib) as f64;
    let payloads = (held(stage)?.1 - bytes_before) / 1024.0;
    run.kib_per_job = Some((grown - payloads).max(0.0) / scenario.publish.jobs as f64);
    Ok(run)
}
