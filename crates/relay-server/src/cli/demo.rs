//! `relay demo`: the first run.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::say;
use crate::config::value::parse_address;
use crate::config::{self, BusMode, Config};
use crate::demo;
use crate::serve::{Addresses, Extras};

/// How long an ended job stays on the page: the workers go on for ever.
const ENDED_FOR: Duration = Duration::from_secs(600);

/// Connections of a demo: no reason to complain of a small machine's limits.
const CONNECTIONS: usize = 1000;

/// Arguments of `relay demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Address of the page and of everything clients use
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    listen: Option<SocketAddr>,
}

/// Runs the demo until it is told to stop.
pub(super) fn run(args: &DemoArgs) -> ExitCode {
    let mut config = match Config::load(None, config::environment()) {
        Ok(config) => config,
        Err(errors) => {
            say(&format!("the environment is wrong\n{errors}"));
            return ExitCode::from(2);
        }
    };
    config.bus.mode = BusMode::Embedded;
    config.history.terminal_ttl = config.history.terminal_ttl.min(ENDED_FOR);
    config.limits.connections = config.limits.connections.min(CONNECTIONS);
    if let Some(listen) = args.listen {
        config.http.listen = listen;
    }
    if let Err(errors) = config.validate() {
        say(&format!("the demo cannot run like this\n{errors}"));
        return ExitCode::from(2);
    }
    super::serve::start(
        &config,
        Extras {
            routes: Some(demo::routes()),
            companion: Some(Box::new(demo::start_workers)),
            ready: Some(Box::new(announce)),
        },
    )
}

fn announce(addresses: Addresses) {
    let Addresses { http, admin } = addresses;
    let text = format!(
        "\n  Relay is running, with six simulated workers.\n\n  \
           watch    http://{http}/\n  \
           publish  curl -d '{{\"status\":\"running\",\"progress\":40}}' 'http://{http}/v1/jobs/my-job?owner=demo'\n  \
           metrics  http://{admin}/metrics\n\n  \
           Stop it with Ctrl-C.\n\n"
    );
    // Without a standard output nobody reads it.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}
