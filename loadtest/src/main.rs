//! Drives a relay as its users would, and says what each delivery and each idle connection cost.
//!
//! Every speed is stated against the floor, measured in the same run: one thread writing the same
//! ready-made bytes to every socket, one write a message and socket, nothing else. It knows the relay's
//! public surface and nothing of its insides. Server and client are separate processes, so each has its
//! own file limit and the server's figures are its own.
//!
//! Invariant: every phase of a run is bounded, and the servers it started end with it.

mod chaos;
mod chart;
mod client;
mod crowd;
mod door;
mod figure;
mod floor;
mod measure;
mod peer;
mod play;
mod process;
mod profile;
mod progress;
mod publisher;
mod report;
mod scale;
mod scenario;
mod tally;
mod target;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// What a relay costs: CPU per delivery against the floor, memory per idle connection
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples (build first: cargo build --release -p relay-server -p relay-loadtest):
  relay-loadtest run loadtest/scenarios/one-job.toml --start target/release/relay
  relay-loadtest run loadtest/scenarios/idle-*.toml --start target/release/relay --out report
  relay-loadtest run loadtest/scenarios/one-job.toml --url 127.0.0.1:8080 --pid 4242
  relay-loadtest run loadtest/scenarios/one-job.toml --start target/release/relay --peer ws --peer nats
  relay-loadtest scale --start target/release/relay
  relay-loadtest profile --start target/release/relay
  relay-loadtest chaos --start target/release/relay --minutes 10

A connection is a file: with the usual limit of 1024 run `ulimit -n 20000` first."
)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Play scenario files to the relay, the floor and peers
    Run(play::RunArgs),
    /// The same at 1, 2, 4 … times the watchers, the jobs and the rate, fitted
    Scale(scale::ScaleArgs),
    /// Instructions per delivery, by callgrind: the same on a noisy machine
    Profile(profile::ProfileArgs),
    /// Clients that do anything at any moment, beside one who must notice nothing
    Chaos(chaos::ChaosArgs),
    /// The floor itself, for one run: serves until its publisher leaves
    #[command(hide = true)]
    FloorServer(floor::FloorArgs),
}

fn main() -> ExitCode {
    let outcome = match Line::parse().command {
        Command::Run(args) => play::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        // One thread and no runtime: that is the point of it.
        Command::FloorServer(args) => floor::serve(&args).map(|()| true),
    };
    told(outcome)
}

/// `Ok(false)`: it ran, and a figure was missed.
fn told(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            // With stderr closed the exit code still tells.
            drop(writeln!(io::stderr().lock(), "relay-loadtest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
