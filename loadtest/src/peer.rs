//! Servers a user might pick instead, started with a fair configuration, watched and fed in their own way.
//!
//! "Fair" means: no TLS, no compression, no access log, no authentication of watchers, limits out of the way,
//! started as its documentation starts it, on loopback. What each is started with stands beside it here; the
//! programs that some of them need besides are in `loadtest/peers`, and are not counted as theirs.
//!
//! Invariant: a peer that was started ends with its [`Running`], and so does all that it started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use relay_testkit::ports::Port;
use relay_testkit::process::Process;
use relay_testkit::tools;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

use crate::client::Transport;
use crate::door::Door;
use crate::process::Meter;
use crate::publisher::Intake;
use crate::scenario::Scenario;

const START_WITHIN: Duration = Duration::from_secs(15);
/// No further worker for this long: there are no more.
const SETTLED: Duration = Duration::from_millis(300);
/// How long a peer may take to end what it started before that is ended for it.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes under way at a time where each costs the peer a request to the server behind it.
const FEW_AT_ONCE: usize = 32;
/// What sockudo's one application is called: id, key and secret.
const APP: [&str; 3] = ["loadtest", "loadtest-key", "loadtest-secret"];

/// A server a user might pick instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    /// `loadtest/baseline`: axum and a broadcast channel a job, as written by hand in an afternoon
    Baseline,
    /// nats-server's own WebSocket listener
    Nats,
    /// npm `ws` (run `npm install` in loadtest/peers)
    Ws,
    /// npm `socket.io` (run `npm install` in loadtest/peers)
    SocketIo,
    /// npm `uwebsockets` (run `npm install --no-save uwebsockets@3.0.6` in loadtest/peers)
    Uwebsockets,
    /// nginx with Nchan (Debian: nginx libnginx-mod-nchan)
    Nchan,
    /// Pushpin with a small Node server behind it (Debian: pushpin)
    Pushpin,
    /// sockudo, published to over its signed HTTP API (`cargo install --locked sockudo`)
    Sockudo,
}

/// A peer that takes connections, and the way in.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) door: Door,
    pub(crate) intake: Intake,
    pub(crate) running: Running,
}

/// A peer that runs.
#[derive(Debug)]
pub(crate) struct Running {
    process: Process,
    /// What it needs besides; dropping them ends them.
    _helpers: Vec<Process>,
    _ports: Vec<Port>,
    /// Its configuration and log.
    _directory: tempfile::TempDir,
}

impl Running {
    /// The process and all it started.
    pub(crate) fn meter(&self) -> Meter {
        Meter::of(self.process.id())
    }
}

impl Drop for Running {
    /// Killing a master would leave its workers behind: it is asked first.
    fn drop(&mut self) {
        let mut left = self.meter().pids();
        if self.process.signal("TERM").is_err() {
            return;
        }
        // A thread may sleep here: nothing else is to happen until the next server has the machine.
        let deadline = Instant::now() + END_WITHIN;
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            left.retain(|pid| !has_ended(*pid));
        }
        for pid in left {
            // Gone by now, as it may be.
            drop(
                Command::new("kill")
                    .args(["-KILL", &pid.to_string()])
                    .output(),
            );
        }
    }
}

/// Whether a process is gone, or only waits for its parent to hear of its end.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    // The command's name is in brackets and may hold anything, so look behind the last one.
    stat.map_or(true, |stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

/// The files and ports of a peer that is being started.
struct Place<'a> {
    directory: &'a Path,
    /// Where it is watched.
    port: &'a Port,
    /// Where it is published to, if that is another place.
    second: &'a Port,
    third: &'a Port,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Nats => "nats",
            Self::Ws => "ws",
            Self::SocketIo => "socket.io",
            Self::Uwebsockets => "uwebsockets",
            Self::Nchan => "nchan",
            Self::Pushpin => "pushpin",
            Self::Sockudo => "sockudo",
        }
    }

    /// The scenario as this peer can be asked to play it.
    pub(crate) fn gentler(self, scenario: &Scenario) -> Scenario {
        let mut scenario = scenario.clone();
        if self == Self::Pushpin {
            scenario.watch.at_once = scenario.watch.at_once.min(FEW_AT_ONCE);
        }
        scenario
    }

    /// Starts it.
    pub(crate) fn start(self, scenario: &Scenario, runtime: &Runtime) -> Result<Started> {
        let transport = scenario.watch.transport;
        ensure!(
            transport == Transport::Ws
                || matches!(self, Self::Baseline | Self::Nchan | Self::Pushpin),
            "{} has no event streams",
            self.name()
        );
        let [port, second, third] = [Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let directory = tempfile::tempdir()?;
        let place = Place {
            directory: directory.path(),
            port: &port,
            second: &second,
            third: &third,
        };
        let log = directory.path().join("log");
        let mut helpers = Vec::new();
        for mut command in self.helpers(&place)? {
            helpers.push(Process::spawn(&mut command, &log)?);
        }
        let process = Process::spawn(&mut self.command(&place)?, &log)?;
        let mut listens = vec![port.address()];
        if matches!(self, Self::Pushpin | Self::Sockudo) {
            listens.push(second.address());
        }
        if self == Self::Pushpin {
            // Its handler opens this one, and takes no connections before.
            listens.push(third.address());
        }
        let mut running = Running {
            process,
            _helpers: helpers,
            _ports: vec![port, second, third],
            _directory: directory,
        };
        runtime.block_on(async {
            let deadline = Instant::now() + START_WITHIN;
            for address in &listens {
                while TcpStream::connect(address).await.is_err() {
                    if running.process.exited().is_some() || Instant::now() > deadline {
                        bail!("{} did not start: {}", self.name(), running.process.logs());
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
            // A master listens before its workers know of each other.
            let mut workers = 0;
            while workers < running.meter().pids().len() {
                workers = running.meter().pids().len();
                sleep(SETTLED).await;
            }
            Ok(())
        })?;
        let (door, intake) = self.door(transport, &running._ports)?;
        Ok(Started {
            door,
            intake,
            running,
        })
    }

    /// How it is watched and fed, at its ports.
    fn door(self, transport: Transport, ports: &[Port]) -> Result<(Door, Intake)> {
        let address = |at: usize| -> Result<_> {
            let port = ports.get(at).context("three ports are reserved")?;
            Ok(port.address().parse()?)
        };
        let watched = address(0)?;
        let path = match transport {
            Transport::Ws => "/ws?job={job}",
            Transport::Sse => "/sse?job={job}",
        };
        let plain = Door::plain(watched, transport, path);
        let post = |at| Ok::<_, anyhow::Error>(Intake::Post(address(at)?, "/publish?job="));
        Ok(match self {
            Self::Baseline | Self::Ws | Self::Uwebsockets | Self::Nchan => (plain, post(0)?),
            Self::Pushpin => (plain, post(1)?),
            Self::SocketIo => (
                Door {
                    path: "/socket.io/?EIO=4&transport=websocket&job={job}".into(),
                    say: vec!["40".into()],
                    ready: "joined".into(),
                    answers: vec![("2".into(), "3".into())],
                    ..plain
                },
                post(0)?,
            ),
            Self::Nats => (
                Door {
                    path: "/".into(),
                    say: vec![
                        "CONNECT {\"verbose\":false,\"protocol\":1}\r\nSUB progress.-.{job}.* 1\r\nPING\r\n".into(),
                    ],
                    ready: "PONG".into(),
                    answers: vec![("PING".into(), "PONG\r\n".into())],
                    ..plain
                },
                Intake::Nats(address(1)?),
            ),
            Self::Sockudo => (
                Door {
                    path: format!("/app/{}?protocol=7&client=loadtest&version=1", APP[1]).into(),
                    say: vec![
                        r#"{"event":"pusher:subscribe","data":{"channel":"{job}"}}"#.into(),
                    ],
                    ready: "subscription_succeeded".into(),
                    answers: vec![(
                        r#"{"event":"pusher:ping""#.into(),
                        r#"{"event":"pusher:pong","data":{}}"#.into(),
                    )],
                    ..plain
                },
                post(1)?,
            ),
        })
    }

    /// What it needs beside it: for Pushpin the sender of its requests and the server behind it, for sockudo
    /// somebody who signs what is published.
    fn helpers(self, place: &Place<'_>) -> Result<Vec<Command>> {
        Ok(match self {
            Self::Pushpin => {
                let mut zurl = Command::new("zurl");
                zurl.arg(format!("--config={}", place.zurl()?.display()));
                let mut origin = script("pushpin-origin.mjs")?;
                origin
                    .arg(place.second.number().to_string())
                    .arg(place.third.number().to_string());
                vec![zurl, origin]
            }
            Self::Sockudo => {
                let mut publisher = script("sockudo-publisher.mjs")?;
                publisher
                    .arg(place.second.number().to_string())
                    .arg(place.port.number().to_string())
                    .args(APP);
                vec![publisher]
            }
            Self::Baseline
            | Self::Nats
            | Self::Ws
            | Self::SocketIo
            | Self::Uwebsockets
            | Self::Nchan => Vec::new(),
        })
    }

    fn command(self, place: &Place<'_>) -> Result<Command> {
        Ok(match self {
            Self::Baseline => {
                let program = std::env::current_exe()?.with_file_name("relay-loadtest-baseline");
                ensure!(
                    program.is_file(),
                    "{} is missing: cargo build --release -p relay-loadtest-baseline",
                    program.display()
                );
                let mut command = Command::new(program);
                command.arg(place.port.address());
                command
            }
            Self::Nats => {
                let config = format!(
                    "listen: \"{}\"\nmax_connections: 60000\nwebsocket {{ listen: \"{}\", no_tls: true }}\n",
                    place.second.address(),
                    place.port.address()
                );
                let mut command = Command::new(tools::nats_server()?);
                command.arg("-c").arg(place.file("nats.conf", &config)?);
                command
            }
            Self::Ws | Self::SocketIo | Self::Uwebsockets => {
                let mut command = script(match self {
                    Self::Ws => "ws.mjs",
                    Self::SocketIo => "socket-io.mjs",
                    _ => "uwebsockets.mjs",
                })?;
                command.arg(place.port.number().to_string());
                command
            }
            Self::Nchan => {
                let module = "/usr/lib/nginx/modules/ngx_nchan_module.so";
                ensure!(
                    std::path::Path::new(module).is_file(),
                    "nginx with Nchan is missing (Debian: nginx libnginx-mod-nchan)"
                );
                let config = format!(
                    "load_module {module};\ndaemon off;\nworker_processes auto;\nworker_rlimit_nofile 20000;\nerror_log stderr error;\npid {pid};\n\
                     events {{ worker_connections 19000; }}\n\
                     http {{ access_log off; keepalive_requests 100000000; nchan_max_reserved_memory 256M;\n\
                     server {{ listen {address} backlog=4096;\n\
                     location /ws {{ nchan_subscriber websocket; nchan_channel_id $arg_job; nchan_subscriber_first_message newest; nchan_websocket_ping_interval 60; }}\n\
                     location /sse {{ nchan_subscriber eventsource; nchan_channel_id $arg_job; nchan_subscriber_first_message newest; }}\n\
                     location /publish {{ nchan_publisher; nchan_channel_id $arg_job; nchan_message_buffer_length 10; nchan_message_timeout 5m; }} }} }}\n",
                    pid = place.directory.join("pid").display(),
                    address = place.port.address(),
                );
                let mut command = Command::new("nginx");
                command
                    .arg("-p")
                    .arg(place.directory)
                    .arg("-c")
                    .arg(place.file("nginx.conf", &config)?);
                command
            }
            Self::Pushpin => {
                let mut command = Command::new("pushpin");
                command
                    .arg(format!("--config={}", place.pushpin()?.display()))
                    .arg("--merge-output");
                command
            }
            Self::Sockudo => {
                let mut command = Command::new("sockudo");
                command.current_dir(place.directory);
                // The queue's default driver wants a Redis server.
                for (key, value) in [
                    ("HOST", "127.0.0.1"),
                    ("PORT", &place.port.number().to_string()),
                    ("RUST_LOG", "error"),
                    ("METRICS_ENABLED", "false"),
                    ("MCP_ENABLED", "false"),
                    ("RATE_LIMITER_ENABLED", "false"),
                    ("QUEUE_DRIVER", "memory"),
                    ("SOCKUDO_DEFAULT_APP_ENABLED", "true"),
                    ("SOCKUDO_DEFAULT_APP_ID", APP[0]),
                    ("SOCKUDO_DEFAULT_APP_KEY", APP[1]),
                    ("SOCKUDO_DEFAULT_APP_SECRET", APP[2]),
                    ("SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS", "50000"),
                    (
                        "SOCKUDO_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SECOND",
                        "1000000",
                    ),
                ] {
                    command.env(key, value);
                }
                command
            }
        })
    }
}

/// A program of `loadtest/peers`.
fn script(name: &str) -> Result<Command> {
    let peers = tools::workspace().join("loadtest/peers");
    ensure!(
        peers.join("node_modules").is_dir(),
        "run npm install in {} first",
        peers.display()
    );
    let mut command = Command::new(tools::node()?);
    command.arg(peers.join(name));
    Ok(command)
}

impl Place<'_> {
    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Zurl's configuration: it may call loopback, which it denies by default, as often as it likes.
    fn zurl(&self) -> Result<PathBuf> {
        let directory = self.directory.display();
        self.file(
            "zurl.conf",
            &format!(
                "[General]\n\
                 in_spec=ipc://{directory}/zurl-in\n\
                 in_stream_spec=ipc://{directory}/zurl-in-stream\n\
                 out_spec=ipc://{directory}/zurl-out\n\
                 in_req_spec=ipc://{directory}/zurl-req\n\
                 defpolicy=allow\nallow=\ndeny=\nmax_open_requests=20000\nbuffer_size=200000\n\
                 timeout=600\nin_hwm=100000\nout_hwm=100000\n"
            ),
        )
    }

    /// Pushpin's: what its package comes with, but for the limit of 2,500 deliveries a second, the log and
    /// where it finds its parts.
    fn pushpin(&self) -> Result<PathBuf> {
        let directory = self.directory.display();
        let routes = format!("* {},over_http\n", self.second.address());
        let routes = self.file("routes", &routes)?;
        self.file(
            "pushpin.conf",
            &format!(
                "[global]\ninclude={{libdir}}/internal.conf\nrundir={directory}\nipc_prefix=pushpin-\nport_offset=0\n\
                 [runner]\nservices=condure,pushpin-proxy,pushpin-handler\nhttp_port={address}\n\
                 logdir={directory}\nlog_level=0\nclient_buffer_size=8192\nclient_maxconn=50000\n\
                 [proxy]\nroutesfile={routes}\nupdates_check=off\n\
                 zurl_out_specs=ipc://{directory}/zurl-in\n\
                 zurl_out_stream_specs=ipc://{directory}/zurl-in-stream\n\
                 zurl_in_specs=ipc://{directory}/zurl-out\n\
                 [handler]\npush_in_spec=ipc://{directory}/push\npush_in_sub_specs=ipc://{directory}/push-sub\n\
                 command_spec=ipc://{directory}/command\n\
                 push_in_http_addr=127.0.0.1\npush_in_http_port={control}\n\
                 push_in_http_max_headers_size=10000\npush_in_http_max_body_size=1000000\n\
                 message_rate=10000000\nmessage_hwm=10000000\n",
                address = self.port.address(),
                routes = routes.display(),
                control = self.third.number(),
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_started_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let master = "sleep 1000 & trap 'kill $!; exit' TERM; echo up; wait";
        let mut command = Command::new("sh");
        command.args(["-c", master]);
        let process = Process::spawn(&mut command, &directory.path().join("log")).unwrap();
        let deadline = Instant::now() + START_WITHIN;
        while !process.logs().contains("up") && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let running = Running {
            process,
            _helpers: Vec::new(),
            _ports: Vec::new(),
            _directory: directory,
        };
        let pids = running.meter().pids();
        assert_eq!(pids.len(), 2);
        drop(running);
        for pid in pids {
            assert!(has_ended(pid), "{pid} of a peer that was dropped");
        }
    }
}
