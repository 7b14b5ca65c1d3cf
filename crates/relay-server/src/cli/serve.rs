//! `relay serve`: run a relay.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use relay_wire::dialect::BUILT_IN;

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
    let says_dialects = loaded.places.contains_key("dialects.enabled");
    let notice = (!says_dialects).then(no_dialects);
    let file = args.config.clone();
    let reread = move || Config::load(file.as_deref(), config::environment());
    let extras = Extras {
        reread: Some(Box::new(reread)),
        ..Extras::default()
    };
    start(&loaded.config, notice.as_deref(), extras)
}

/// What an operator is told who may have relied on dialects that were served without being asked for.
fn no_dialects() -> String {
    let names = BUILT_IN.map(|(name, _)| format!("{name:?}"));
    format!(
        "no dialects are served, because dialects.enabled is not set; until now the built-in ones were: set it to [{}] for those, or to [] for none",
        names.join(", ")
    )
}

/// Starts logging and a relay. The log begins with `notice`.
pub(super) fn start(config: &Config, notice: Option<&str>, mut extras: Extras) -> ExitCode {
    match logging::start(&config.log) {
        Ok(relevel) => extras.relevel = Some(relevel),
        Err(error) => {
            say(&format!("log.level: {error}"));
            return ExitCode::from(2);
        }
    }
    if let Some(notice) = notice {
        tracing::info!("{notice}");
    }
    match serve::run(config, extras) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
