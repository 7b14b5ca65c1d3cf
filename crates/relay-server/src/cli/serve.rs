//! `relay serve`: run a relay.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::say;
use crate::config::{self, Config, Loaded};
use crate::logging;
use crate::serve::{self, Extras};

/// Arguments of `relay serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a file the defaults run a relay on 127.0.0.1:8080 with an embedded bus.
Every key can also be set in the environment: RELAY__NATS__URL=nats://nats:4222
All keys, their defaults and reasons: config/relay.toml. Check yours with: relay check --config FILE")]
pub(super) struct ServeArgs {
    /// Configuration file (TOML)
    #[arg(short, long, env = "RELAY_CONFIG")]
    config: Option<PathBuf>,
}

/// Runs a relay until it is told to stop.
pub(super) fn run(args: &ServeArgs) -> ExitCode {
    let loaded = match Loaded::load(args.config.as_deref(), config::environment()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            say(&format!("the configuration is wrong\n{errors}"));
            return ExitCode::from(2);
        }
    };
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    start(&loaded.config, Extras::default())
}

/// Starts logging and a relay.
pub(super) fn start(config: &Config, extras: Extras) -> ExitCode {
    if let Err(error) = logging::start(&config.log) {
        say(&format!("log.level: {error}"));
        return ExitCode::from(2);
    }
    match serve::run(config, extras) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
