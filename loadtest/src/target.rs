//! A server under test: started or found, how to get in, how to feed it, what it costs.
//!
//! Knows the command lines and doors of the relay and of the floor; how a peer is started, [`crate::peer`] knows.
//! It knows nothing of what is measured.
//!
//! Invariant: whatever was started for a target ends when the target is dropped.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use relay_testkit::http;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{Metrics, RelayServer, Settings};
use tokio::runtime::Runtime;

use crate::client::Transport;
use crate::door::{Dialect, Door};
use crate::floor::Floor;
use crate::peer::{Peer, Running, Started};
use crate::process::Meter;
use crate::publisher::Intake;
use crate::scenario::{FLOOR, Over, RELAY, Scenario};

/// Which relay to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RelayArgs {
    /// Start this binary on free ports, with its limits out of the way, and end it afterwards
    #[arg(long, value_name = "BINARY", required_unless_present = "url")]
    start: Option<PathBuf>,
    /// Measure a relay that runs already at this address (host:port); needs --pid
    #[arg(
        long,
        value_name = "ADDRESS",
        requires = "pid",
        conflicts_with = "start"
    )]
    url: Option<String>,
    /// The process id of the relay at --url, on this machine
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Where the relay at --url has its /metrics (host:port)
    #[arg(long, requires = "url")]
    admin: Option<String>,
    /// Where the relay at --url gets its updates from, if not over HTTP (host:port of NATS)
    #[arg(long, requires = "url")]
    nats: Option<String>,
}

impl RelayArgs {
    /// The binary to start, if one is to be started.
    pub(crate) fn binary(&self) -> Result<Option<PathBuf>> {
        let absolute = |path: &PathBuf| {
            fs::canonicalize(path).with_context(|| format!("--start {}", path.display()))
        };
        self.start.as_ref().map(absolute).transpose()
    }
}

/// A server under test.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) door: Door,
    pub(crate) intake: Intake,
    pub(crate) meter: Meter,
    admin: Option<String>,
    relay: Option<RelayServer>,
    /// The broker a relay reads from.
    nats: Option<NatsServer>,
    /// Dropping it ends the server.
    guard: Option<Guard>,
}

/// What keeps a server that is no relay alive.
#[derive(Debug)]
pub(crate) enum Guard {
    Floor { _floor: Floor },
    Peer { _peer: Running },
}

impl Target {
    /// The relay, configured as the scenario wants it, and watched in its own way or in a dialect.
    pub(crate) fn relay(
        args: &RelayArgs,
        scenario: &Scenario,
        dialect: Option<&Dialect>,
        runtime: &Runtime,
    ) -> Result<Self> {
        let target = Self::native(args, scenario, runtime)?;
        Ok(match dialect {
            None => target,
            Some(dialect) => Self {
                name: dialect.name.clone(),
                door: Door::dialect(target.door.address, dialect),
                ..target
            },
        })
    }

    fn native(args: &RelayArgs, scenario: &Scenario, runtime: &Runtime) -> Result<Self> {
        let Some(binary) = args.binary()? else {
            return Self::found(args, scenario);
        };
        runtime.block_on(async {
            let mut settings = Settings::new(binary);
            for (key, value) in scenario.settings() {
                settings = settings.set(key, value);
            }
            let nats = match scenario.publish.over {
                Over::Http => None,
                Over::Nats => Some(NatsServer::start(Options::core()).await?),
                Over::JetStream => Some(NatsServer::start(Options::jetstream()).await?),
            };
            if let Some(nats) = &nats {
                let mode = match scenario.publish.over {
                    Over::Http | Over::Nats => "nats",
                    Over::JetStream => "jetstream",
                };
                settings = settings.set("bus.mode", mode).set("nats.url", nats.url());
            }
            let relay = RelayServer::start(settings).await?;
            let address = relay.address().parse()?;
            let intake = match &nats {
                None => Intake::Relay(address),
                Some(nats) => nats_intake(scenario.publish.over, &nats.url())?,
            };
            Ok(Self {
                name: RELAY.to_owned(),
                door: Door::native(address, scenario.watch.transport),
                intake,
                meter: Meter::of(relay.id().context("the relay has ended")?),
                admin: Some(relay.admin_address()),
                relay: Some(relay),
                nats,
                guard: None,
            })
        })
    }

    /// A relay that somebody else started and will end.
    pub(crate) fn serving(relay: &RelayServer, transport: Transport) -> Result<Self> {
        let address = relay.address().parse()?;
        Ok(Self {
            name: RELAY.to_owned(),
            door: Door::native(address, transport),
            intake: Intake::Relay(address),
            meter: Meter::of(relay.id().context("the relay has ended")?),
            admin: Some(relay.admin_address()),
            relay: None,
            nats: None,
            guard: None,
        })
    }

    fn found(args: &RelayArgs, scenario: &Scenario) -> Result<Self> {
        let (Some(url), Some(pid)) = (&args.url, args.pid) else {
            bail!("give --start, or --url and --pid");
        };
        let address = resolve(url).with_context(|| format!("--url {url}"))?;
        let intake = match (scenario.publish.over, &args.nats) {
            (Over::Http, _) => Intake::Relay(address),
            (over, Some(nats)) => nats_intake(over, nats)?,
            (_, None) => bail!("the scenario publishes over NATS: say where it is with --nats"),
        };
        Ok(Self {
            name: RELAY.to_owned(),
            door: Door::native(address, scenario.watch.transport),
            intake,
            meter: Meter::of(pid),
            admin: args.admin.clone(),
            relay: None,
            nats: None,
            guard: None,
        })
    }

    /// The floor.
    pub(crate) fn floor(scenario: &Scenario, runtime: &Runtime) -> Result<Self> {
        let floor = runtime.block_on(Floor::start())?;
        Ok(Self {
            name: FLOOR.to_owned(),
            door: Door {
                ready: "".into(),
                ..Door::native(floor.address, scenario.watch.transport)
            },
            intake: Intake::Bare(floor.address),
            meter: floor.process.clone(),
            admin: None,
            relay: None,
            nats: None,
            guard: Some(Guard::Floor { _floor: floor }),
        })
    }

    /// A server that somebody might use instead.
    pub(crate) fn peer(peer: Peer, scenario: &Scenario, runtime: &Runtime) -> Result<Self> {
        let Started {
            door,
            intake,
            running,
        } = peer.start(scenario, runtime)?;
        Ok(Self {
            name: peer.name().to_owned(),
            door,
            intake,
            meter: running.meter(),
            admin: None,
            relay: None,
            nats: None,
            guard: Some(Guard::Peer { _peer: running }),
        })
    }

    /// The relay's own counters, where it is known where they are.
    pub(crate) fn metrics(&self, runtime: &Runtime) -> Result<Option<Metrics>> {
        let Some(admin) = &self.admin else {
            return Ok(None);
        };
        let answer = runtime.block_on(http::get(admin, "/metrics"))?;
        Ok(Some(Metrics::parse(&answer.text())))
    }

    /// Ends the server at once and starts it again; `false` if it was not started here.
    pub(crate) fn restart(&mut self, runtime: &Runtime) -> Result<bool> {
        let Some(relay) = &mut self.relay else {
            return Ok(false);
        };
        runtime.block_on(relay.restart())?;
        self.meter = Meter::of(relay.id().context("the relay has ended")?);
        Ok(true)
    }

    /// What a server said that went wrong, for a report of failure.
    pub(crate) fn log(&self) -> String {
        let relay = self.relay.as_ref().map(RelayServer::logs);
        let nats = self.nats.as_ref().map(NatsServer::logs);
        let floor = matches!(self.guard, Some(Guard::Floor { .. })).then(String::new);
        relay.or(nats).or(floor).unwrap_or_default()
    }
}

fn nats_intake(over: Over, url: &str) -> Result<Intake> {
    let address = resolve(url)?;
    Ok(match over {
        Over::Http | Over::Nats => Intake::Nats(address),
        Over::JetStream => Intake::JetStream(address),
    })
}

fn resolve(url: &str) -> Result<SocketAddr> {
    let (_, address) = url.split_once("://").unwrap_or(("", url));
    let mut addresses = address
        .trim_end_matches('/')
        .to_socket_addrs()
        .with_context(|| url.to_owned())?;
    addresses
        .next()
        .with_context(|| format!("{url} has no address"))
}
