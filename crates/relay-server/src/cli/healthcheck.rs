//! `relay healthcheck`: is the relay here well? For containers that have neither shell nor curl.
//!
//! It knows the admin listener's two questions and nothing of what they look at.
//!
//! Invariant: one line out, and exit 0 only when the relay said yes itself.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use super::http_client::{Answer, Call, ServerUrl, call};

/// The admin listener's setting, which a container's health check shares with the server beside it.
const ADMIN_LISTEN: &str = "RELAY__ADMIN__LISTEN";
/// The part of `/readyz` that is worth a word.
#[derive(Debug, serde::Deserialize)]
struct Status {
    ready: bool,
    draining: bool,
    bus: String,
    bus_up: bool,
    connections: u64,
}

const USUAL_ADMIN: &str = "127.0.0.1:9090";

/// Ask a running relay whether it is ready
///
/// Asks the admin listener and prints one line. Exit 0: yes. Exit 1: no, or no answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  relay healthcheck                            is it ready to take clients?
  relay healthcheck --live                     is the process alive? (for liveness probes)
  relay healthcheck --url http://10.0.0.5:9090

In a Dockerfile:
  HEALTHCHECK CMD [\"relay\", \"healthcheck\"]")]
pub(super) struct HealthcheckArgs {
    /// The relay's admin address [default: $RELAY__ADMIN__LISTEN, or http://127.0.0.1:9090]
    #[arg(long, value_name = "URL")]
    url: Option<ServerUrl>,
    /// Ask whether the process is alive (/livez) instead of ready (/readyz)
    #[arg(long)]
    live: bool,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks, prints a line, and says with the exit code what the relay said.
pub(super) async fn run(args: HealthcheckArgs) -> ExitCode {
    let path = if args.live { "/livez" } else { "/readyz" };
    let Some(url) = args
        .url
        .or_else(|| admin_url(std::env::var(ADMIN_LISTEN).ok().as_deref()))
    else {
        return tell(
            false,
            &format!("{ADMIN_LISTEN} is not an address; give --url"),
        );
    };
    match call(&url, Call::get(path), args.timeout).await {
        Ok(answer) => tell(answer.status.is_success(), &in_words(&answer)),
        Err(error) => tell(false, &error.to_string()),
    }
}

/// Where the admin listener of the relay in this container can be asked.
fn admin_url(listen: Option<&str>) -> Option<ServerUrl> {
    let listen = listen
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .unwrap_or(USUAL_ADMIN);
    // A listener on every address is reached on the loopback one.
    let reachable = match listen.rsplit_once(':')? {
        ("0.0.0.0" | "", port) => format!("127.0.0.1:{port}"),
        ("[::]", port) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    };
    reachable.parse().ok()
}

/// What `/readyz` says of the node, or whatever else was answered.
fn in_words(answer: &Answer) -> String {
    let Ok(status) = serde_json::from_slice::<Status>(&answer.body) else {
        return answer.sentence();
    };
    let bus = match (status.bus_up, status.ready) {
        (true, _) => "is up",
        (false, true) => "is away at the moment",
        (false, false) => "has not been reached yet",
    };
    let standing = match (status.ready, status.draining) {
        (true, _) => "ready",
        (false, true) => "draining",
        (false, false) => "not ready",
    };
    format!(
        "{standing}: bus {} {bus}, {} connections",
        status.bus, status.connections
    )
}

fn tell(well: bool, line: &str) -> ExitCode {
    let told = if well {
        writeln!(io::stdout().lock(), "{line}")
    } else {
        writeln!(io::stderr().lock(), "relay healthcheck: {line}")
    };
    ExitCode::from(u8::from(!well || told.is_err()))
}

#[cfg(test)]
mod tests {
    use super::admin_url;

    #[test]
    fn the_admin_url_follows_the_listeners_setting() {
        let url = |listen| admin_url(listen).map(|url| url.to_string());
        assert_eq!(url(None).unwrap(), "http://127.0.0.1:9090");
        assert_eq!(url(Some("0.0.0.0:9191")).unwrap(), "http://127.0.0.1:9191");
        assert_eq!(url(Some("[::]:9191")).unwrap(), "http://[::1]:9191");
        assert_eq!(url(Some("10.0.0.5:9090")).unwrap(), "http://10.0.0.5:9090");
        assert_eq!(url(Some("nonsense")), None);
    }
}
