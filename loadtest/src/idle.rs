//! What a connection costs that hears nothing.
//!
//! Opens many, waits until the server has nothing more to say, and compares the server's memory with
//! before.
//!
//! Invariant: the figure is taken with all connections open and none lost.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::{Connection, Transport};
use crate::report::{Report, ratio};
use crate::server::{Memory, Relay, RelayArgs};

/// Connections in the middle of their handshake at a time.
const AT_ONCE: usize = 64;
/// Opened and closed first, so that what a server sets up once is not counted.
const WARM_UP: usize = 16;
/// Nothing heard for this long is quiet.
const QUIET: Duration = Duration::from_millis(1500);
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// What to open.
#[derive(Debug, clap::Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    relay: RelayArgs,
    /// How many connections
    #[arg(long, default_value_t = 5000)]
    connections: usize,
    /// How they connect
    #[arg(long, value_enum, default_value_t = Transport::Ws)]
    transport: Transport,
    /// Connection number n watches the topic of this beginning and n
    #[arg(long, default_value = "job:idle-")]
    topic_prefix: String,
}

/// What they cost.
#[derive(Debug, Serialize)]
pub(crate) struct IdleReport {
    scenario: &'static str,
    transport: &'static str,
    connections: usize,
    before: Memory,
    after: Memory,
    pss_kib_per_connection: f64,
    rss_kib_per_connection: f64,
    cpu_micros_per_connection: f64,
}

/// Opens the connections and measures.
pub(crate) async fn run(args: &IdleArgs) -> Result<IdleReport> {
    let relay = Relay::new(&args.relay).await?;
    drop(Crowd::open(&relay, args, WARM_UP).await?);
    sleep(QUIET).await;
    let (before, cpu_before) = (relay.process.memory()?, relay.process.cpu()?);
    let mut crowd = Crowd::open(&relay, args, args.connections).await?;
    crowd.quiet().await?;
    let (after, cpu_after) = (relay.process.memory()?, relay.process.cpu()?);
    let per_connection =
        |after: u64, before: u64| ratio(after.saturating_sub(before), args.connections as u64);
    Ok(IdleReport {
        scenario: "idle",
        transport: args.transport.name(),
        connections: args.connections,
        before,
        after,
        pss_kib_per_connection: per_connection(after.pss_kib, before.pss_kib),
        rss_kib_per_connection: per_connection(after.rss_kib, before.rss_kib),
        cpu_micros_per_connection: per_connection(cpu_after.since(cpu_before).micros(), 0),
    })
}

/// Open connections and whether anything is heard on them.
struct Crowd {
    /// One task a connection; dropping it closes them.
    watchers: JoinSet<Result<()>>,
    heard_at: Rc<Cell<Instant>>,
}

impl Crowd {
    async fn open(relay: &Relay, args: &IdleArgs, count: usize) -> Result<Self> {
        let buffer = Rc::new(RefCell::new(vec![0; READ_BUFFER_BYTES]));
        let heard_at = Rc::new(Cell::new(Instant::now()));
        let (address, transport) = (relay.address, args.transport);
        let mut opening = JoinSet::new();
        let mut watchers = JoinSet::new();
        let mut indexes = 0..count;
        loop {
            while opening.len() < AT_ONCE {
                let Some(index) = indexes.next() else { break };
                let topic = format!("{}{index}", args.topic_prefix);
                opening.spawn_local(async move {
                    Connection::open(address, transport, &topic, index).await
                });
            }
            let Some(opened) = opening.join_next().await else {
                break;
            };
            let (connection, buffer, heard_at) =
                (opened??, Rc::clone(&buffer), Rc::clone(&heard_at));
            watchers.spawn_local(async move {
                connection
                    .follow(&buffer, |_| heard_at.set(Instant::now()))
                    .await
            });
        }
        Ok(Self { watchers, heard_at })
    }

    /// Waits until nothing has been heard for a while, with every connection still open.
    async fn quiet(&mut self) -> Result<()> {
        self.heard_at.set(Instant::now());
        while self.heard_at.get().elapsed() < QUIET {
            sleep(QUIET - self.heard_at.get().elapsed()).await;
        }
        match self.watchers.try_join_next() {
            Some(ended) => bail!("the server closed a connection: {:?}", ended?),
            None => Ok(()),
        }
    }
}

impl Report for IdleReport {
    fn table(&self) -> Vec<Vec<String>> {
        let row = |name: &str, kib: fn(&Memory) -> u64, each: f64| {
            let (before, after) = (kib(&self.before), kib(&self.after));
            vec![
                name.to_owned(),
                before.to_string(),
                after.to_string(),
                format!("{each:.2}"),
            ]
        };
        vec![
            ["", "before KiB", "after KiB", "KiB each"]
                .map(str::to_owned)
                .to_vec(),
            row("PSS", |memory| memory.pss_kib, self.pss_kib_per_connection),
            row("RSS", |memory| memory.rss_kib, self.rss_kib_per_connection),
        ]
    }

    fn conclusion(&self) -> String {
        format!(
            "{} idle {} connections: {:.2} KiB each (PSS), and {:.0} us of server CPU to open one",
            self.connections,
            self.transport,
            self.pss_kib_per_connection,
            self.cpu_micros_per_connection
        )
    }
}
