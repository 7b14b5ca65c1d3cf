//! Plays scenarios: turn by turn to the relay, to the floor and to the peers, so that all see the same
//! machine in the same minutes.
//!
//! Invariant: servers take turns and never run beside each other.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use crate::chart::{self, Line};
use crate::door::MESSAGE;
use crate::measure::{self, Point, Run, Stage};
use crate::peer::Peer;
use crate::progress::Progress;
use crate::report::Report;
use crate::scenario::{FLOOR, Kind, Scenario};
use crate::target::{RelayArgs, Target};

/// What to play.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Scenario files
    #[arg(required = true)]
    scenarios: Vec<PathBuf>,
    #[command(flatten)]
    relay: RelayArgs,
    /// Turns, instead of what the scenario says; medians count
    #[arg(long)]
    runs: Option<usize>,
    /// Watchers, instead of what the scenario says
    #[arg(long)]
    watchers: Option<usize>,
    /// Share of watchers that never read, instead of what the scenario says
    #[arg(long, value_name = "SHARE")]
    slow: Option<f64>,
    /// Updates in a run, instead of what the scenario says
    #[arg(long)]
    updates: Option<u64>,
    /// Also this server, in the same turns; may be given several times
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
    /// Without the floor: nothing comes out as a ratio
    #[arg(long)]
    no_floor: bool,
    /// Fail with exit code 2 when a figure is missed that the scenario wants reached
    #[arg(long)]
    check: bool,
    /// Write reports as JSON, and curves as SVG, into this directory
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
}

/// Everything a command needs to play scenarios.
#[derive(Debug)]
pub(crate) struct Player {
    pub(crate) runtime: Runtime,
    pub(crate) progress: Progress,
}

impl Player {
    pub(crate) fn new(quiet: bool) -> Result<Self> {
        Ok(Self {
            runtime: Builder::new_current_thread().enable_all().build()?,
            progress: Progress::new(quiet),
        })
    }

    /// Plays one scenario to the relay, and to the floor and peers if wanted.
    pub(crate) fn play(
        &mut self,
        scenario: &Scenario,
        relay: &RelayArgs,
        floor: bool,
        peers: &[Peer],
    ) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for turn in 1..=scenario.runs {
            self.progress.head = format!("{} [{turn}/{}]", scenario.title, scenario.runs);
            let prefix = format!("lt-{}-{turn}", std::process::id());
            let mut stage = Stage {
                runtime: &self.runtime,
                progress: &mut self.progress,
                prefix: &prefix,
                payload: scenario.publish.payload,
                carries: MESSAGE,
            };
            let mut target = Target::relay(relay, scenario, None, &self.runtime)?;
            let run = measure::run(scenario, &mut target, &mut stage)?;
            drop(target);
            // The floor writes as many bytes as the relay just did, envelope and all.
            let frame = run.bytes_per_delivery.round() as usize;
            let transport = scenario.watch.transport;
            let body = frame.saturating_sub(transport.overhead(frame));
            runs.push(run);
            for dialect in &scenario.dialects {
                let mut target = Target::relay(relay, scenario, Some(dialect), &self.runtime)?;
                stage.carries = &dialect.carries;
                runs.push(measure::run(scenario, &mut target, &mut stage)?);
            }
            stage.carries = MESSAGE;
            for peer in peers {
                let scenario = peer.gentler(scenario);
                let mut target = Target::peer(*peer, &scenario, &self.runtime)?;
                runs.push(measure::run(&scenario, &mut target, &mut stage)?);
            }
            if floor && scenario.floor && scenario.kind != Kind::Intake {
                stage.payload = body;
                let mut target = Target::floor(scenario, &self.runtime)?;
                runs.push(measure::run(scenario, &mut target, &mut stage)?);
            }
            self.progress.clear();
        }
        Ok(runs)
    }
}

/// Plays all files; says whether every figure was reached, if that was asked.
pub(crate) fn run(args: &RunArgs) -> Result<bool> {
    let mut player = Player::new(args.quiet)?;
    let mut all_reached = true;
    for path in &args.scenarios {
        let mut scenario = Scenario::read(path)?;
        scenario.runs = args.runs.unwrap_or(scenario.runs);
        scenario.watch.watchers = args.watchers.unwrap_or(scenario.watch.watchers);
        scenario.publish.updates = args.updates.unwrap_or(scenario.publish.updates);
        scenario.watch.slow = args.slow.unwrap_or(scenario.watch.slow);
        scenario.check()?;
        let runs = player.play(&scenario, &args.relay, !args.no_floor, &args.peer)?;
        let report = Report::new(scenario, runs);
        all_reached &= report.targets.iter().all(|target| target.reached);
        if args.json {
            serde_json::to_writer_pretty(std::io::stdout().lock(), &report)?;
        } else {
            report.print()?;
        }
        if let Some(directory) = &args.out {
            write(directory, path, &report)?;
        }
    }
    Ok(all_reached || !args.check)
}

fn write(directory: &Path, scenario: &Path, report: &Report) -> Result<()> {
    fs::create_dir_all(directory)?;
    let name = scenario.file_stem().context("a scenario without a name")?;
    let name = name.to_string_lossy();
    let put = |end: &str, text: String| {
        let path = directory.join(format!("{name}{end}"));
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    put(".json", serde_json::to_string_pretty(report)?)?;
    // The last turn: by then nothing is cold.
    let mut last: Vec<&Run> = Vec::new();
    for run in report.runs.iter().rev() {
        if !run.curve.is_empty() && last.iter().all(|other| other.server != run.server) {
            last.insert(0, run);
        }
    }
    if last.is_empty() {
        return Ok(());
    }
    let line = |run: &Run, what: &str, value: fn(&Point) -> f64| Line {
        name: format!("{} {what}", run.server),
        points: run.curve.iter().map(|at| (at.seconds, value(at))).collect(),
    };
    let title = &report.scenario.title;
    let latency = last.iter().flat_map(|run| {
        [
            line(run, "p50", |at| at.p50_ms),
            line(run, "p99", |at| at.p99_ms),
        ]
    });
    let latency: Vec<Line> = latency.collect();
    put(
        "-latency.svg",
        chart::draw(title, "seconds", "ms", &latency),
    )?;
    let memory = last.iter().filter(|run| run.server != FLOOR);
    let memory: Vec<Line> = memory
        .map(|run| line(run, "resident", |at| at.resident_kib as f64 / 1024.0))
        .collect();
    put("-memory.svg", chart::draw(title, "seconds", "MiB", &memory))
}
