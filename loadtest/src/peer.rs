//! Servers a user might pick instead, started with a fair configuration, watched and fed in their own way.
//!
//! "Fair" means: no TLS, no compression, no access log, no authentication, limits out of the way, one
//! process as its documentation starts it. What each is started with stands beside it here.

use std::path::PathBuf;
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
use crate::target::Target;

const START_WITHIN: Duration = Duration::from_secs(15);

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
    /// nginx with Nchan (Debian: nginx libnginx-mod-nchan)
    Nchan,
}

/// A peer that runs.
#[derive(Debug)]
pub(crate) struct Running {
    process: Process,
    _ports: Vec<Port>,
    /// Its configuration and log.
    _directory: tempfile::TempDir,
}

impl Running {
    /// The process and all it started.
    pub(crate) fn meter(&self) -> Meter {
        let mut pids = vec![self.process.id()];
        let mut at = 0;
        while let Some(pid) = pids.get(at).copied() {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            pids.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            at += 1;
        }
        Meter { pids }
    }
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Nats => "nats",
            Self::Ws => "ws",
            Self::SocketIo => "socket.io",
            Self::Nchan => "nchan",
        }
    }

    /// Starts it.
    pub(crate) fn start(self, scenario: &Scenario, runtime: &Runtime) -> Result<Target> {
        let transport = scenario.watch.transport;
        ensure!(
            transport == Transport::Ws || matches!(self, Self::Baseline | Self::Nchan),
            "{} has no event streams",
            self.name()
        );
        let port = Port::reserve()?;
        let second = Port::reserve()?;
        let directory = tempfile::tempdir()?;
        let mut command = self.command(&port, &second, directory.path())?;
        let log = directory.path().join("log");
        let mut process = Process::spawn(&mut command, &log)?;
        runtime.block_on(async {
            let deadline = Instant::now() + START_WITHIN;
            while TcpStream::connect(port.address()).await.is_err() {
                if process.exited().is_some() || Instant::now() > deadline {
                    bail!("{} did not start: {}", self.name(), process.logs());
                }
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })?;
        let address = port.address().parse()?;
        let path = match transport {
            Transport::Ws => "/ws?job={job}",
            Transport::Sse => "/sse?job={job}",
        };
        let plain = Door::plain(address, transport, path);
        let (door, intake) = match self {
            Self::Baseline | Self::Ws | Self::Nchan => {
                (plain, Intake::Post(address, "/publish?job="))
            }
            Self::SocketIo => (
                Door {
                    path: "/socket.io/?EIO=4&transport=websocket&job={job}".into(),
                    say: vec!["40".into()],
                    ready: "joined".into(),
                    answers: vec![("2".into(), "3".into())],
                    ..plain
                },
                Intake::Post(address, "/publish?job="),
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
                Intake::Nats(second.address().parse()?),
            ),
        };
        let running = Running {
            process,
            _ports: vec![port, second],
            _directory: directory,
        };
        Ok(Target::peer(self.name(), door, intake, running))
    }

    fn command(self, port: &Port, second: &Port, directory: &std::path::Path) -> Result<Command> {
        let file = |name: &str, text: String| -> Result<PathBuf> {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(match self {
            Self::Baseline => {
                let program = std::env::current_exe()?.with_file_name("relay-loadtest-baseline");
                ensure!(
                    program.is_file(),
                    "{} is missing: cargo build --release -p relay-loadtest-baseline",
                    program.display()
                );
                let mut command = Command::new(program);
                command.arg(port.address());
                command
            }
            Self::Nats => {
                let config = format!(
                    "listen: \"{}\"\nmax_connections: 60000\nwebsocket {{ listen: \"{}\", no_tls: true }}\n",
                    second.address(),
                    port.address()
                );
                let mut command = Command::new(tools::nats_server()?);
                command.arg("-c").arg(file("nats.conf", config)?);
                command
            }
            Self::Ws | Self::SocketIo => {
                let peers = tools::workspace().join("loadtest/peers");
                let script = if self == Self::Ws {
                    "ws.mjs"
                } else {
                    "socket-io.mjs"
                };
                ensure!(
                    peers.join("node_modules").is_dir(),
                    "run npm install in {} first",
                    peers.display()
                );
                let mut command = Command::new(tools::node()?);
                command
                    .arg(peers.join(script))
                    .arg(port.number().to_string());
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
                    pid = directory.join("pid").display(),
                    address = port.address(),
                );
                let mut command = Command::new("nginx");
                command
                    .arg("-p")
                    .arg(directory)
                    .arg("-c")
                    .arg(file("nginx.conf", config).context("nginx.conf")?);
                command
            }
        })
    }
}
