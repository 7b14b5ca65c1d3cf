//! `relay healthcheck`: is the relay here well? For containers that have neither shell nor curl.
//!
//! It knows the admin listener's two questions and nothing of what they look at.
//!
//! Invariant: one line out, and exit 0 only when the relay said yes itself.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::http_client::{Answer, Call, ServerUrl, call};
use crate::config::{Config, environment};

/// The part of `/readyz` that is worth a word.
#[derive(Debug, serde::Deserialize)]
struct Status {
    ready: bool,
    draining: bool,
    bus: String,
    bus_up: bool,
    connections: u64,
}

/// Ask a running relay whether it is ready
///
/// Asks the admin listener and prints one line. Exit 0: yes. Exit 1: no, or no answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  relay healthcheck                            is it ready to take clients?
  relay healthcheck --live                     is the process alive? (for liveness probes)
  relay healthcheck --config /etc/relay/relay.toml
  relay healthcheck --url http://10.0.0.5:9090

In a Dockerfile:
  HEALTHCHECK CMD [\"relay\", \"healthcheck\"]")]
pub(super) struct HealthcheckArgs {
    /// The relay's admin address [default: admin.listen of the configuration]
    #[arg(long, value_name = "URL")]
    url: Option<ServerUrl>,
    /// Certificates (PEM) to trust an https --url by, instead of the system's
    #[arg(long, env = "RELAY_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Configuration file of the relay, for admin.listen; the environment goes before it, as for the relay
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "RELAY_CONFIG",
        conflicts_with = "url"
    )]
    config: Option<PathBuf>,
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
    let url = match args.url {
        Some(url) => url.trusting(args.ca),
        None => match Config::admin_listen(args.config.as_deref(), environment()) {
            Ok(listen) => match admin_url(listen) {
                Some(url) => url,
                None => return tell(false, &format!("{listen} cannot be asked; give --url")),
            },
            Err(errors) => return tell(false, &errors.to_string()),
        },
    };
    match call(&url, Call::get(path), args.timeout).await {
        Ok(answer) => tell(answer.status.is_success(), &in_words(&answer)),
        Err(error) => tell(false, &error.to_string()),
    }
}

/// Where the admin listener of the relay in this container can be asked.
fn admin_url(mut listen: SocketAddr) -> Option<ServerUrl> {
    // A listener on every address is reached on the loopback one.
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen.to_string().parse().ok()
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
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_listener_on_every_address_is_asked_on_the_loopback_one() {
        let url = |listen: &str| admin_url(listen.parse().unwrap()).unwrap().to_string();
        assert_eq!(url("127.0.0.1:9090"), "http://127.0.0.1:9090");
        assert_eq!(url("0.0.0.0:9191"), "http://127.0.0.1:9191");
        assert_eq!(url("[::]:9191"), "http://[::1]:9191");
        assert_eq!(url("10.0.0.5:9090"), "http://10.0.0.5:9090");
    }

    #[test]
    fn the_relay_is_asked_where_its_configuration_says() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        // What else is wrong, or cannot be read here, is for the relay itself to say.
        let text = "[admin]\nlisten = \"127.0.0.1:9191\"\n[auth]\nmode = \"jwt\"\nkey_file = \"/no/key\"\n";
        file.write_all(text.as_bytes()).unwrap();
        let listen = |file, vars: &[(&str, &str)]| {
            let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Config::admin_listen(file, vars).map(|listen| listen.to_string())
        };
        let path = Some(file.path());
        assert_eq!(listen(None, &[]).unwrap(), "127.0.0.1:9090");
        assert_eq!(listen(path, &[]).unwrap(), "127.0.0.1:9191");
        let variable = [("RELAY__ADMIN__LISTEN", "127.0.0.1:9292")];
        assert_eq!(listen(path, &variable).unwrap(), "127.0.0.1:9292");
        let wrong = listen(None, &[("RELAY__ADMIN__LISTEN", "")]).unwrap_err();
        assert!(wrong.to_string().contains("is set to nothing"), "{wrong}");
        let missing = listen(Some(Path::new("/no/file")), &[]).unwrap_err();
        assert!(missing.to_string().contains("/no/file"), "{missing}");
    }
}
