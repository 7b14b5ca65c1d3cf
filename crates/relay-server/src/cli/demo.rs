//! `relay demo`: the first run.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::PathBuf;
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
    if config.history.file.is_none() {
        config.history.file = history_file(config.http.listen.port());
    }
    if let Err(errors) = config.validate() {
        say(&format!("the demo cannot run like this\n{errors}"));
        return ExitCode::from(2);
    }
    super::serve::start(
        &config,
        None,
        Extras {
            routes: Some(demo::routes()),
            companion: Some(Box::new(demo::start_workers)),
            ready: Some(Box::new(announce)),
            ..Extras::default()
        },
    )
}

/// Where a demo keeps its jobs, so that one that is started again soon still has them: a folder of the user's own
/// among the temporary files. Without one the jobs are kept in memory alone.
fn history_file(port: u16) -> Option<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let folder = std::env::temp_dir().join(format!("relay-demo-{user}"));
    drop(fs::DirBuilder::new().mode(0o700).create(&folder));
    let about = fs::symlink_metadata(&folder).ok()?;
    // A folder that somebody else has made, or may write to, could lead anywhere.
    if port == 0 || !about.is_dir() || about.uid() != user || about.mode() & 0o077 != 0 {
        return None;
    }
    let file = folder.join(format!("{}-{port}", env!("CARGO_PKG_VERSION")));
    let modified = fs::metadata(&file).and_then(|about| about.modified());
    let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ENDED_FOR));
    if is_old {
        drop(fs::remove_file(&file));
    }
    Some(file)
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
