//! The binary `relay`.

use std::process::ExitCode;

use clap::Parser as _;
use relay_server::cli::{self, Cli};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli::run(cli),
        Err(error) => cli::explain(&error),
    }
}
