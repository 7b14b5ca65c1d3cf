//! Drives a relay as its users would, and says what each delivery and each idle connection cost.
//!
//! Every speed is stated against the floor, measured in the same run: one thread writing the same
//! ready-made bytes to every socket, one write a message and socket, nothing else. It knows the relay's
//! public surface and nothing of its insides. Server and client are separate processes, so each has its
//! own file limit and the server's figures are its own.
//!
//! Invariant: a run is bounded by `--deadline`, and the servers it started end with it.

mod client;
mod fanout;
mod floor;
mod idle;
mod report;
mod server;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// What a relay costs: CPU per delivery against the floor, memory per idle connection
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples (build the relay first: cargo build --release -p relay-server):
  relay-loadtest fanout --start target/release/relay
  relay-loadtest fanout --start target/release/relay --transport sse --connections 2000 --json
  relay-loadtest idle   --start target/release/relay --connections 5000
  relay-loadtest idle   --url 127.0.0.1:8080 --pid 4242     a relay that runs already

A connection is a file: with the usual limit of 1024 run `ulimit -n 20000` first."
)]
struct Line {
    /// Give up after this many seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600)]
    deadline: u64,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, clap::Subcommand)]
enum Scenario {
    /// One job, many watchers: server CPU per delivery, against the floor
    Fanout(fanout::FanoutArgs),
    /// Many connections that hear nothing: memory per connection
    Idle(idle::IdleArgs),
    /// The floor itself, for one run: serves until its publisher leaves
    #[command(hide = true)]
    FloorServer(floor::FloorArgs),
}

fn main() -> ExitCode {
    match run(Line::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr closed the exit code still tells.
            drop(writeln!(io::stderr().lock(), "relay-loadtest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(line: Line) -> Result<()> {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let deadline = Duration::from_secs(line.deadline);
    match line.scenario {
        // One thread and no runtime: that is the point of it.
        Scenario::FloorServer(args) => floor::serve(&args),
        Scenario::Fanout(args) => {
            let report = bounded(&runtime()?, deadline, fanout::run(&args))?;
            report::print(&report, line.json)
        }
        Scenario::Idle(args) => {
            let report = bounded(&runtime()?, deadline, idle::run(&args))?;
            report::print(&report, line.json)
        }
    }
}

/// Runs a scenario on this thread, for no longer than `deadline`.
fn bounded<T>(
    runtime: &Runtime,
    deadline: Duration,
    scenario: impl Future<Output = Result<T>>,
) -> Result<T> {
    LocalSet::new().block_on(runtime, async {
        timeout(deadline, scenario)
            .await
            .with_context(|| format!("not done after {deadline:?} (--deadline)"))?
    })
}
