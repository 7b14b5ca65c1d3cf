//! The binary `relay`.

use std::process::ExitCode;

use clap::Parser as _;
use relay_server::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
