//! The process under test: started or found, and what it costs.
//!
//! Reads `/proc`; knows nothing of what the process does.
//!
//! Invariant: a relay that was started here ends when its [`Relay`] is dropped.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use relay_testkit::relay::{RelayServer, Settings};
use serde::Serialize;

/// A clock tick of `/proc`, in microseconds: `USER_HZ` is 100 on every Linux there is a relay for.
const TICK_MICROS: u64 = 10_000;
/// Above any number of connections that a run can make.
const NO_LIMIT: u32 = 1_000_000;
/// The most updates a second of one job that a relay can be told to pass on; a closed loop with more than
/// a handful of watchers never gets there.
const MOST_UPDATES_PER_SECOND: u32 = 10_000;

/// Which relay to measure.
#[derive(Debug, clap::Args)]
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
}

/// The relay under test.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) process: Meter,
    /// Dropping it ends the relay.
    _started: Option<RelayServer>,
}

impl Relay {
    /// Starts the relay, or finds it.
    pub(crate) async fn new(args: &RelayArgs) -> Result<Self> {
        match (&args.start, &args.url, args.pid) {
            (Some(binary), _, _) => Self::start(binary.clone()).await,
            (None, Some(url), Some(pid)) => {
                let address = url.trim_start_matches("http://").trim_end_matches('/');
                let mut addresses = address
                    .to_socket_addrs()
                    .with_context(|| format!("--url {url}"))?;
                Ok(Self {
                    address: addresses
                        .next()
                        .with_context(|| format!("--url {url} has no address"))?,
                    process: Meter { pid },
                    _started: None,
                })
            }
            _ => bail!("give --start, or --url and --pid"),
        }
    }

    async fn start(binary: PathBuf) -> Result<Self> {
        let binary =
            fs::canonicalize(&binary).with_context(|| format!("--start {}", binary.display()))?;
        let settings = Settings::new(binary)
            .set("auth.mode", "anonymous")
            .set("log.level", "warn")
            .set("limits.connections", NO_LIMIT)
            .set("limits.connections_per_user", NO_LIMIT)
            .set("limits.connections_per_address", NO_LIMIT)
            .set("delivery.updates_per_second", MOST_UPDATES_PER_SECOND);
        let relay = RelayServer::start(settings).await?;
        Ok(Self {
            address: relay.address().parse()?,
            process: Meter {
                pid: relay.id().context("the relay has ended")?,
            },
            _started: Some(relay),
        })
    }
}

/// Reads what a process has cost so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    pub(crate) pid: u32,
}

/// CPU used by a process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cpu {
    /// In its own code.
    pub(crate) user_micros: u64,
    /// In the kernel on its behalf.
    pub(crate) system_micros: u64,
    /// How often its threads gave up or lost the processor.
    pub(crate) context_switches: u64,
}

impl Cpu {
    /// User and system together.
    pub(crate) fn micros(self) -> u64 {
        self.user_micros + self.system_micros
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user_micros: self.user_micros.saturating_sub(earlier.user_micros),
            system_micros: self.system_micros.saturating_sub(earlier.system_micros),
            context_switches: self
                .context_switches
                .saturating_sub(earlier.context_switches),
        }
    }
}

/// Memory of a process. Kernel memory of its sockets is on top.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    /// Its proportional share of what is resident.
    pub(crate) pss_kib: u64,
    /// All that is resident.
    pub(crate) rss_kib: u64,
}

impl Meter {
    /// CPU so far.
    pub(crate) fn cpu(self) -> Result<Cpu> {
        let stat = self.read("stat")?;
        // The command's name is in brackets and may hold anything, so count from the last bracket.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |at: usize| -> Result<u64> {
            Ok(fields
                .get(at)
                .context("a short /proc/<pid>/stat")?
                .parse()?)
        };
        Ok(Cpu {
            user_micros: ticks(11)? * TICK_MICROS,
            system_micros: ticks(12)? * TICK_MICROS,
            context_switches: self.context_switches()?,
        })
    }

    fn context_switches(self) -> Result<u64> {
        let mut switches = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread may end between the listing and the reading.
            let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
            switches += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Ok(switches)
    }

    /// Memory now.
    pub(crate) fn memory(self) -> Result<Memory> {
        let rollup = self.read("smaps_rollup")?;
        let kib = |name| field(&rollup, name).with_context(|| format!("no {name} in smaps_rollup"));
        Ok(Memory {
            pss_kib: kib("Pss:")?,
            rss_kib: kib("Rss:")?,
        })
    }

    fn read(self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path)
            .with_context(|| format!("cannot read {path}; does the server still run, as you?"))
    }
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_be_read() {
        let this = Meter {
            pid: std::process::id(),
        };
        let memory = this.memory().unwrap();
        assert!(memory.pss_kib > 0 && memory.rss_kib >= memory.pss_kib);
        let before = this.cpu().unwrap();
        assert!(before.context_switches > 0);
        assert_eq!(before.since(before).micros(), 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Anon:  7 kB\nPss:   12 kB\nnonvoluntary_ctxt_switches: 3\nvoluntary_ctxt_switches: 2\n";
        assert_eq!(field(text, "Pss:"), Some(12));
        assert_eq!(field(text, "voluntary_ctxt_switches:"), Some(2));
        assert_eq!(field(text, "Swap:"), None);
    }
}
