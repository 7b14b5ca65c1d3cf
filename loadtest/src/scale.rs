//! How cost grows: one scenario at 1, 2, 4 … times the watchers, the jobs and the update rate, fitted with
//! straight lines, and what that comes to at sizes no single machine here reaches.
//!
//! Invariant: what is extrapolated is told with what it assumes, and how far the lines are off.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::chart::{self, Line};
use crate::figure::median;
use crate::measure::Run;
use crate::play::Player;
use crate::report;
use crate::scenario::{Kind, Scenario};
use crate::target::RelayArgs;

mod fit;

use fit::{Fit, Projection, project};

/// Times the scenario's rate at which reading is measured: a thread that is busy is not woken for each update, and
/// so is charged for reading alone.
const READING: u32 = 20;
/// How long.
const READING_SECONDS: f64 = 5.0;
const AXES: [Axis; 3] = [Axis::Watchers, Axis::Jobs, Axis::Rate];

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
    /// Updates a second of a job in what is projected
    #[arg(long, value_name = "RATE", default_value_t = 1.0)]
    job_rate: f64,
    /// Write points, fits and projections as JSON, and curves as SVG, into this directory
    #[arg(long, value_name = "DIRECTORY")]
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

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Watchers => "watchers",
            Self::Jobs => "jobs",
            Self::Rate => "updates",
        }
    }
}

/// One scenario played.
#[derive(Debug, Serialize)]
struct Sample {
    axis: Axis,
    factor: u32,
    watchers: usize,
    jobs: usize,
    updates_per_second: f64,
    deliveries_per_second: f64,
    /// How often a thread gave up or lost the processor, and had to be woken.
    wakes_per_second: f64,
    /// Server CPU, in cores.
    cores: f64,
    resident_mib: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Neither delivered nor superseded.
    missing: u64,
}

#[derive(Debug, Serialize)]
struct Growth {
    scenario: Scenario,
    /// Updates a second of a job in the projections.
    job_rate: f64,
    samples: Vec<Sample>,
    fit: Fit,
    projections: Vec<Projection>,
}

/// Plays, fits, projects.
pub(crate) fn run(args: &ScaleArgs) -> Result<bool> {
    let base = Scenario::read(&args.scenario)?;
    ensure!(
        base.kind == Kind::Fanout && base.publish.rate.is_some(),
        "{} has no rate: a closed loop takes all the machine at any size",
        args.scenario.display()
    );
    ensure!(args.job_rate > 0.0, "--job-rate is above 0");
    let mut player = Player::new(false)?;
    let mut samples = Vec::new();
    for axis in AXES {
        for factor in &args.factors {
            let scenario = multiplied(&base, axis, *factor);
            let runs = player.play(&scenario, &args.relay, false, &[])?;
            let sample = |run| Sample::of(run, axis, *factor, scenario.publish.jobs);
            samples.extend(runs.iter().map(sample));
        }
    }
    let reading = player.play(&unwatched(&base), &args.relay, false, &[])?;
    let fit = Fit::of(
        &samples,
        median(reading.iter().map(|run| run.micros_per_update)),
    );
    let growth = Growth {
        projections: project(fit, args.job_rate, base.watchers_per_job()),
        job_rate: args.job_rate,
        scenario: base,
        samples,
        fit,
    };
    growth.print()?;
    if let Some(directory) = &args.out {
        growth.write(directory)?;
    }
    Ok(true)
}

impl Scenario {
    fn watchers_per_job(&self) -> f64 {
        self.watch.watchers as f64 / self.publish.jobs as f64
    }
}

/// The updates with nobody to see them, and many more of them.
fn unwatched(base: &Scenario) -> Scenario {
    let mut scenario = base.clone();
    scenario.title = format!("{} (nobody watching)", base.title);
    scenario.kind = Kind::Intake;
    scenario.watch.watchers = 0;
    let publish = &mut scenario.publish;
    publish.rate = publish.rate.map(|rate| rate * f64::from(READING));
    publish.updates = (publish.rate.unwrap_or(1.0) * READING_SECONDS) as u64;
    scenario
}

fn multiplied(base: &Scenario, axis: Axis, factor: u32) -> Scenario {
    let mut scenario = base.clone();
    let times = factor as usize;
    scenario.title = format!("{} ({axis:?} x {factor})", base.title);
    let (watch, publish) = (&mut scenario.watch, &mut scenario.publish);
    match axis {
        Axis::Watchers => watch.watchers *= times,
        Axis::Jobs => {
            // As many watchers over more jobs, each as busy as before; some are watched by nobody then.
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
    fn of(run: &Run, axis: Axis, factor: u32, jobs: usize) -> Self {
        let seconds = run.published as f64 / run.updates_per_second;
        let resident = run
            .curve
            .last()
            .map_or(run.memory.rss_kib, |at| at.resident_kib);
        Self {
            axis,
            factor,
            watchers: run.connect.connections,
            jobs,
            updates_per_second: run.updates_per_second,
            deliveries_per_second: run.deliveries_per_second,
            wakes_per_second: run.cpu.context_switches as f64 / seconds,
            cores: run.cpu.micros() as f64 / 1e6 / seconds,
            resident_mib: resident as f64 / 1024.0,
            p50_ms: run.latency.p50_ms,
            p99_ms: run.latency.p99_ms,
            missing: run.missing,
        }
    }
}

impl Growth {
    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "\n{}; each of the three multiplied\n",
            self.scenario.title
        )?;
        report::print_table(&mut out, &self.measured())?;
        let fit = self.fit;
        let off = |got: f64, line: f64| (got / line - 1.0).abs() * 100.0;
        let cores = self.samples.iter();
        let cores: Vec<f64> = cores.map(|each| off(each.cores, fit.cores(each))).collect();
        let memory = self.samples.iter().filter(|each| each.axis != Axis::Rate);
        let memory: Vec<f64> = memory
            .map(|each| off(each.resident_mib, fit.mib(each)))
            .collect();
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let history = self.scenario.publish.updates as f64 / self.scenario.publish.jobs as f64;
        writeln!(
            out,
            "\nReading an update takes {:.1} us of CPU, measured with nobody watching at {READING} times the rate. Straight lines\n\
             through the rest: {:.2} us a delivery and {:.1} us to wake a thread; {:.1} MiB at rest, {:.2} KiB a connection\n\
             and {:.1} KiB a job with {history:.0} updates of history. What was measured is off them by {:.0} % in the middle\n\
             and {:.0} % at most for CPU, by {:.0} % at most for memory.\n\n\
             At other sizes that comes to, for each node:\n",
            fit.micros_per_update,
            fit.micros_per_delivery,
            fit.micros_per_wake,
            fit.base_mib,
            fit.kib_per_connection,
            fit.kib_per_job,
            median(cores.iter().copied()),
            most(&cores),
            most(&memory)
        )?;
        report::print_table(&mut out, &self.projected())?;
        writeln!(out, "\n{}", self.assumptions())?;
        let missing: u64 = self.samples.iter().map(|each| each.missing).sum();
        if missing > 0 {
            writeln!(out, "not all went well: {missing} deliveries are missing")?;
        }
        Ok(())
    }

    fn measured(&self) -> Vec<Vec<String>> {
        let heads = [
            "more", "times", "conns", "jobs", "upd/s", "del/s", "wakes/s", "cores", "fitted",
            "MiB", "fitted", "p50 ms", "p99 ms",
        ];
        let rows = self.samples.iter().map(|each| {
            let memory = match each.axis {
                Axis::Rate => String::new(),
                Axis::Watchers | Axis::Jobs => format!("{:.1}", self.fit.mib(each)),
            };
            vec![
                each.axis.name().to_owned(),
                each.factor.to_string(),
                each.watchers.to_string(),
                each.jobs.to_string(),
                format!("{:.0}", each.updates_per_second),
                format!("{:.0}", each.deliveries_per_second),
                format!("{:.0}", each.wakes_per_second),
                format!("{:.3}", each.cores),
                format!("{:.3}", self.fit.cores(each)),
                format!("{:.1}", each.resident_mib),
                memory,
                format!("{:.2}", each.p50_ms),
                format!("{:.2}", each.p99_ms),
            ]
        });
        std::iter::once(heads.map(str::to_owned).to_vec())
            .chain(rows)
            .collect()
    }

    fn projected(&self) -> Vec<Vec<String>> {
        let heads = [
            "conns",
            "nodes",
            "jobs",
            "upd/s",
            "del/s",
            "cores",
            "reading",
            "MiB conns",
            "MiB jobs",
        ];
        let rows = self.projections.iter().map(|each| {
            vec![
                format!("{:.0}", each.connections),
                format!("{:.0}", each.nodes),
                format!("{:.0}", each.jobs),
                format!("{:.0}", each.updates_per_second),
                format!("{:.0}", each.deliveries_per_second_and_node),
                format!("{:.2}", each.cores_per_node),
                format!(
                    "{:.2}{}",
                    each.reading_per_node,
                    if each.reading_per_node > 1.0 { "!" } else { "" }
                ),
                format!("{:.0}", each.connections_mib_per_node),
                format!("{:.0}", each.jobs_mib_per_node),
            ]
        });
        std::iter::once(heads.map(str::to_owned).to_vec())
            .chain(rows)
            .collect()
    }

    fn assumptions(&self) -> String {
        let most = |of: fn(&Sample) -> f64| self.samples.iter().map(of).fold(0.0, f64::max);
        format!(
            "Assumed: {:.0} watchers and {} updates of {} bytes a second for each job. Every node reads every update and keeps\n\
             every job; connections spread evenly over the nodes. Cost stays straight beyond what was measured ({:.0}\n\
             connections, {:.0} updates and {:.0} deliveries a second), but for wakes: threads that are busy are not woken, so\n\
             there are as many as were seen at most ({:.0} a second). A network card costs what loopback does, where the\n\
             sender pays for the receiver's half too; there is no TLS. Kernel memory of sockets is on top, and so is what\n\
             the operating system and the bus need.\n\
             \"reading\" is the part of the cores that reads updates, which one thread does: where it is above 1 (marked !) a\n\
             node cannot keep up, and owners have to be split over so many groups of nodes. Memory of jobs is bounded by\n\
             history.jobs and history.bytes, whatever stands here.",
            self.scenario.watchers_per_job(),
            self.job_rate,
            self.scenario.publish.payload,
            most(|each| each.watchers as f64),
            most(|each| each.updates_per_second),
            most(|each| each.deliveries_per_second),
            self.fit.wakes_per_second,
        )
    }

    fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let put = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        put("scale.json", serde_json::to_string_pretty(self)?)?;
        let lines = |value: fn(&Sample) -> f64| -> Vec<Line> {
            let line = |axis: Axis| Line {
                name: format!("more {}", axis.name()),
                points: self
                    .samples
                    .iter()
                    .filter(|each| each.axis == axis)
                    .map(|each| (f64::from(each.factor), value(each)))
                    .collect(),
            };
            AXES.map(line).into()
        };
        let draw = |file: &str, what: &str, unit: &str, value: fn(&Sample) -> f64| {
            let title = format!("{what}: {}", self.scenario.title);
            put(file, chart::draw(&title, "times", unit, &lines(value)))
        };
        draw("scale-cpu.svg", "CPU", "cores", |each| each.cores)?;
        draw("scale-memory.svg", "Memory", "MiB", |each| {
            each.resident_mib
        })?;
        draw("scale-latency.svg", "99th percentile", "ms", |each| {
            each.p99_ms
        })
    }
}
