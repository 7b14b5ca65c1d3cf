//! How cost grows: one scenario at 1, 2, 4 … times the watchers, the jobs and the update rate, fitted with
//! straight lines, and what that comes to at sizes no single machine here reaches.
//!
//! Invariant: what is extrapolated is told with what it assumes.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::measure::Run;
use crate::play::Player;
use crate::scenario::{Kind, Scenario};
use crate::target::RelayArgs;

/// Where to.
const SIZES: [f64; 2] = [100_000.0, 1_000_000.0];
const NODES: [f64; 3] = [1.0, 10.0, 100.0];

/// What to scale.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    relay: RelayArgs,
    /// The scenario at its smallest; it needs a rate
    #[arg(long, default_value = "loadtest/scenarios/scale.toml")]
    scenario: PathBuf,
    /// Multiples to play
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    factors: Vec<u32>,
    /// Write the points and fits as JSON into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Axis {
    Watchers,
    Jobs,
    Rate,
}

/// One scenario played.
#[derive(Debug, Serialize)]
struct Sample {
    axis: Axis,
    factor: u32,
    watchers: usize,
    updates_per_second: f64,
    deliveries_per_second: f64,
    /// Server CPU, in cores.
    cores: f64,
    resident_mib: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// `cost = per_update * updates + per_delivery * deliveries` and `memory = base + per_connection * watchers`.
#[derive(Debug, Clone, Copy, Serialize)]
struct Fit {
    micros_per_update: f64,
    micros_per_delivery: f64,
    base_mib: f64,
    kib_per_connection: f64,
}

#[derive(Debug, Serialize)]
struct Growth {
    samples: Vec<Sample>,
    fit: Fit,
    projections: Vec<Projection>,
}

/// What a node would need.
#[derive(Debug, Serialize)]
struct Projection {
    connections: f64,
    nodes: f64,
    cores_per_node: f64,
    mib_per_node: f64,
}

/// Plays, fits, projects.
pub(crate) fn run(args: &ScaleArgs) -> Result<bool> {
    let base = Scenario::read(&args.scenario)?;
    ensure!(
        base.kind == Kind::Fanout && base.publish.rate.is_some(),
        "{} has no rate: a closed loop takes all the machine at any size",
        args.scenario.display()
    );
    let mut player = Player::new(false)?;
    let mut samples = Vec::new();
    for axis in [Axis::Watchers, Axis::Jobs, Axis::Rate] {
        for factor in &args.factors {
            let scenario = multiplied(&base, axis, *factor);
            let runs = player.play(&scenario, &args.relay, false, &[])?;
            samples.extend(runs.iter().map(|run| Sample::of(run, axis, *factor)));
        }
    }
    let fit = Fit::of(&samples);
    let rate = base.publish.rate.unwrap_or(1.0);
    let watched = base.watch.watchers as f64 / base.publish.jobs as f64;
    let growth = Growth {
        projections: project(fit, rate / base.publish.jobs as f64, watched),
        samples,
        fit,
    };
    growth.print(watched, rate / base.publish.jobs as f64)?;
    if let Some(path) = &args.out {
        fs::write(path, serde_json::to_string_pretty(&growth)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(true)
}

fn multiplied(base: &Scenario, axis: Axis, factor: u32) -> Scenario {
    let mut scenario = base.clone();
    let times = factor as usize;
    scenario.title = format!("{} ({axis:?} x {factor})", base.title);
    let (watch, publish) = (&mut scenario.watch, &mut scenario.publish);
    match axis {
        Axis::Watchers => watch.watchers *= times,
        Axis::Jobs => {
            // As many watchers over more jobs, each as busy as before.
            publish.jobs *= times;
            publish.rate = publish.rate.map(|rate| rate * f64::from(factor));
            publish.updates *= u64::from(factor);
        }
        Axis::Rate => {
            publish.rate = publish.rate.map(|rate| rate * f64::from(factor));
            publish.updates *= u64::from(factor);
        }
    }
    scenario
}

impl Sample {
    fn of(run: &Run, axis: Axis, factor: u32) -> Self {
        let seconds = run.published as f64 / run.updates_per_second;
        let resident = run
            .curve
            .last()
            .map_or(run.memory.rss_kib, |at| at.resident_kib);
        Self {
            axis,
            factor,
            watchers: run.connect.connections,
            updates_per_second: run.updates_per_second,
            deliveries_per_second: run.deliveries_per_second,
            cores: run.cpu.micros() as f64 / 1e6 / seconds,
            resident_mib: resident as f64 / 1024.0,
            p50_ms: run.latency.p50_ms,
            p99_ms: run.latency.p99_ms,
        }
    }
}

impl Fit {
    fn of(samples: &[Sample]) -> Self {
        let cost = samples.iter().map(|each| {
            (
                each.updates_per_second,
                each.deliveries_per_second,
                each.cores * 1e6,
            )
        });
        let (micros_per_update, micros_per_delivery) = plane(cost);
        let memory = samples.iter().filter(|each| each.axis == Axis::Watchers);
        let memory = memory.map(|each| (1.0, each.watchers as f64, each.resident_mib));
        let (base_mib, mib_per_connection) = plane(memory);
        Self {
            micros_per_update,
            micros_per_delivery,
            base_mib,
            kib_per_connection: mib_per_connection * 1024.0,
        }
    }
}

/// Least squares for `z = a * x + b * y`.
fn plane(points: impl Iterator<Item = (f64, f64, f64)>) -> (f64, f64) {
    let (mut xx, mut xy, mut yy, mut xz, mut yz) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, y, z) in points {
        xx += x * x;
        xy += x * y;
        yy += y * y;
        xz += x * z;
        yz += y * z;
    }
    let determinant = xx * yy - xy * xy;
    if determinant.abs() < f64::EPSILON * xx * yy {
        return (0.0, if yy > 0.0 { yz / yy } else { 0.0 });
    }
    (
        (xz * yy - yz * xy) / determinant,
        (yz * xx - xz * xy) / determinant,
    )
}

/// Every node reads every update; connections and deliveries are shared out evenly.
fn project(fit: Fit, updates_per_job: f64, watchers_per_job: f64) -> Vec<Projection> {
    let mut projections = Vec::new();
    for connections in SIZES {
        for nodes in NODES {
            let updates = connections / watchers_per_job * updates_per_job;
            let deliveries = connections * updates_per_job / nodes;
            projections.push(Projection {
                connections,
                nodes,
                cores_per_node: (updates * fit.micros_per_update
                    + deliveries * fit.micros_per_delivery)
                    / 1e6,
                mib_per_node: fit.base_mib + connections / nodes * fit.kib_per_connection / 1024.0,
            });
        }
    }
    projections
}

impl Growth {
    fn print(&self, watched: f64, per_job: f64) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "     axis     x  watchers  updates/s  deliveries/s  cores  resident MiB  p50 ms  p99 ms"
        )?;
        for each in &self.samples {
            writeln!(
                out,
                "{:>9} {:>5} {:>9} {:>10.0} {:>13.0} {:>6.3} {:>13.1} {:>7.2} {:>7.2}",
                format!("{:?}", each.axis),
                each.factor,
                each.watchers,
                each.updates_per_second,
                each.deliveries_per_second,
                each.cores,
                each.resident_mib,
                each.p50_ms,
                each.p99_ms
            )?;
        }
        let Fit {
            micros_per_update,
            micros_per_delivery,
            base_mib,
            kib_per_connection,
        } = self.fit;
        writeln!(
            out,
            "\nfitted: {micros_per_update:.1} us an update, {micros_per_delivery:.2} us a delivery; {base_mib:.1} MiB and {kib_per_connection:.2} KiB a connection\n\
             projected, assuming {watched:.0} watchers a job and {per_job:.1} updates a second a job, that every node reads every update, that\n\
             connections spread evenly, that cost stays linear, and that a network card costs what loopback does:"
        )?;
        for each in &self.projections {
            writeln!(
                out,
                "{:>10.0} connections on {:>3.0} nodes: {:>7.2} cores and {:>7.0} MiB a node",
                each.connections, each.nodes, each.cores_per_node, each.mib_per_node
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_is_found_through_its_points() {
        let points = [(1.0, 2.0), (3.0, 1.0), (2.0, 5.0)];
        let (a, b) = plane(points.iter().map(|(x, y)| (*x, *y, 10.0 * x + 4.0 * y)));
        assert!((a - 10.0).abs() < 1e-9 && (b - 4.0).abs() < 1e-9);
    }

    #[test]
    fn every_node_reads_every_update_and_shares_the_deliveries() {
        let fit = Fit {
            micros_per_update: 10.0,
            micros_per_delivery: 5.0,
            base_mib: 0.0,
            kib_per_connection: 1.0,
        };
        let projections = project(fit, 1.0, 10.0);
        // 10,000 updates and 100,000 deliveries a second.
        assert!((projections[0].cores_per_node - 0.6).abs() < 1e-9);
        assert!((projections[1].cores_per_node - 0.15).abs() < 1e-9);
    }
}
