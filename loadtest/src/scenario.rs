//! What to do to a server, as read from a scenario file.
//!
//! A scenario says who watches what, who publishes what, and which figures are to be reached. It knows no
//! server: the same file is played to the relay, to the floor and to every peer.
//!
//! Invariant: a scenario that was read is within the bounds of [`Scenario::check`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::client::Transport;
use crate::door::Dialect;

/// The server every other is held against, in a report.
pub(crate) const FLOOR: &str = "floor";
/// The relay, watched in its own protocol.
pub(crate) const RELAY: &str = "relay";

/// More connections than this are more than one process is allowed anywhere.
const MAX_WATCHERS: usize = 1_000_000;
const MAX_UPDATES: u64 = 100_000_000;
/// The most updates a second of one job that a relay can be told to pass on: unless a scenario is about
/// conflation, everything published is to be delivered.
const MOST_UPDATES_PER_SECOND: u32 = 10_000;

/// A scenario file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What it shows, in one line.
    pub(crate) title: String,
    /// What is done.
    #[serde(default)]
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) watch: Watch,
    #[serde(default)]
    pub(crate) publish: Publish,
    /// How many times; medians count.
    #[serde(default = "runs")]
    pub(crate) runs: usize,
    /// Whether the floor is played to as well.
    #[serde(default = "yes")]
    pub(crate) floor: bool,
    /// Configuration of the relay, by key, on top of what every run sets.
    #[serde(default)]
    pub(crate) relay: BTreeMap<String, toml::Value>,
    /// The relay's dialects it is played to as well, each beside the native protocol in the same turn.
    #[serde(default)]
    pub(crate) dialects: Vec<Dialect>,
    #[serde(default)]
    pub(crate) reach: Reach,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Connect, publish, count what arrives.
    #[default]
    Fanout,
    /// Connect, wait, look at the memory.
    Idle,
    /// Connect all at once; then the server is restarted and all come back.
    Ramp,
    /// Publish and let nobody watch: what an update and a job cost.
    Intake,
}

/// Who watches.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Watch {
    /// How many connections.
    pub(crate) watchers: usize,
    /// How they connect.
    pub(crate) transport: Transport,
    /// Handshakes under way at a time.
    pub(crate) at_once: usize,
    /// Share of the watchers (0 to 1) that never read after their handshake.
    pub(crate) slow: f64,
    /// Watchers that leave and are replaced, per second.
    pub(crate) churn: f64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            watchers: 1000,
            transport: Transport::Ws,
            at_once: 64,
            slow: 0.0,
            churn: 0.0,
        }
    }
}

/// How updates get to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Over {
    /// `POST`, to the relay itself.
    #[default]
    Http,
    /// Core NATS.
    Nats,
    /// JetStream; what it does not acknowledge counts as refused.
    JetStream,
}

/// What is published.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Publish {
    pub(crate) over: Over,
    /// Connections to publish over HTTP on.
    pub(crate) connections: usize,
    /// Jobs, published in turn; watchers are spread over them evenly.
    pub(crate) jobs: usize,
    /// Updates in a run, over all jobs.
    pub(crate) updates: u64,
    /// Updates a second, over all jobs, whether or not they arrive.
    pub(crate) rate: Option<f64>,
    /// Without a rate: updates on their way at a time. One is on its way until it has reached everybody,
    /// or, if nobody watches, until it is acknowledged.
    pub(crate) window: u64,
    /// Length of an update's document, in bytes.
    pub(crate) payload: usize,
    /// Share of updates (0 to 1) that are milestones.
    pub(crate) milestones: f64,
    /// Share of updates (0 to 1) that end their job; the next one begins a new attempt.
    pub(crate) endings: f64,
    /// Whether each job's last update ends it.
    pub(crate) end: bool,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            over: Over::Http,
            connections: 1,
            jobs: 1,
            updates: 300,
            rate: None,
            window: 1,
            payload: 300,
            milestones: 0.0,
            endings: 0.0,
            end: false,
        }
    }
}

/// The figures to reach; those that are given are checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Reach {
    /// Server CPU per delivery, as a multiple of the floor's.
    pub(crate) cpu_ratio: Option<f64>,
    /// Server CPU per delivery of each dialect, as a multiple of the native protocol's.
    pub(crate) dialect_ratio: Option<f64>,
    /// Median latency, as a multiple of the floor's.
    pub(crate) p50_ratio: Option<f64>,
    /// 99th percentile of latency, as a multiple of the floor's.
    pub(crate) p99_ratio: Option<f64>,
    /// KiB per idle connection.
    pub(crate) kib_per_connection: Option<f64>,
    /// KiB per job beyond its payloads.
    pub(crate) kib_per_job: Option<f64>,
    /// Connections accepted per second, at least.
    pub(crate) connections_per_second: Option<f64>,
    /// Microseconds of server CPU per connection accepted.
    pub(crate) micros_per_connection: Option<f64>,
    /// Updates taken in per second of server CPU, at least.
    pub(crate) updates_per_cpu_second: Option<f64>,
    /// Deliveries as a share of what was published times watchers, at most.
    pub(crate) delivered_share: Option<f64>,
    /// From the last update's publishing to its last delivery, in milliseconds.
    pub(crate) last_within_ms: Option<f64>,
}

fn runs() -> usize {
    5
}

fn yes() -> bool {
    true
}

impl Scenario {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let scenario: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        scenario
            .check()
            .with_context(|| path.display().to_string())?;
        Ok(scenario)
    }

    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<()> {
        let (watch, publish) = (&self.watch, &self.publish);
        let share = |part: f64| (0.0..=1.0).contains(&part);
        ensure!(self.runs > 0, "runs is at least 1");
        ensure!(
            watch.watchers <= MAX_WATCHERS,
            "watchers is at most {MAX_WATCHERS}"
        );
        ensure!(watch.at_once > 0, "at_once is at least 1");
        ensure!(share(watch.slow), "slow is a share from 0 to 1");
        ensure!(watch.churn >= 0.0, "churn is a rate");
        ensure!(publish.jobs > 0, "jobs is at least 1");
        ensure!(publish.connections > 0, "connections is at least 1");
        ensure!(publish.window > 0, "window is at least 1");
        ensure!(
            (1..=MAX_UPDATES).contains(&publish.updates),
            "updates is from 1 to {MAX_UPDATES}"
        );
        ensure!(
            publish.rate.is_none_or(|rate| rate > 0.0),
            "rate is above 0"
        );
        ensure!(
            share(publish.milestones) && share(publish.endings),
            "milestones and endings are shares from 0 to 1"
        );
        ensure!(
            self.dialects.is_empty() || watch.transport == Transport::Ws,
            "dialects are watched over WebSocket: transport is \"ws\""
        );
        for (at, dialect) in self.dialects.iter().enumerate() {
            let name = &dialect.name;
            ensure!(
                dialect.path.starts_with('/') && !dialect.path.contains([' ', '\r', '\n']),
                "{name}: path begins with / and has no spaces"
            );
            ensure!(
                !dialect.carries.is_empty() && !dialect.carries.contains(['"', '\\']),
                "{name}: carries is the name of a field"
            );
            let taken = [RELAY, FLOOR].contains(&name.as_str())
                || self.dialects[..at].iter().any(|other| other.name == *name);
            ensure!(!taken, "two servers are called {name}");
        }
        Ok(())
    }

    /// How long one run may take before it counts as stuck.
    pub(crate) fn patience(&self) -> Duration {
        let paced = self
            .publish
            .rate
            .map_or(0.0, |rate| self.publish.updates as f64 / rate);
        Duration::from_secs(120) + Duration::from_secs_f64(paced.min(86_400.0))
    }

    /// What the relay is configured with for this scenario.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (&str, String)> {
        let always = [
            ("auth.mode", "anonymous".to_owned()),
            ("log.level", "warn".to_owned()),
            ("limits.connections", MAX_WATCHERS.to_string()),
            ("limits.connections_per_user", MAX_WATCHERS.to_string()),
            ("limits.connections_per_address", MAX_WATCHERS.to_string()),
            (
                "delivery.updates_per_second",
                MOST_UPDATES_PER_SECOND.to_string(),
            ),
        ];
        let own = self.relay.iter();
        always
            .into_iter()
            .chain(own.map(|(key, value)| (key.as_str(), as_variable(value))))
    }
}

/// A value as the relay reads it from its environment: a list is one text with commas there.
fn as_variable(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => {
            let values: Vec<String> = values.iter().map(as_variable).collect();
            values.join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_file_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut read = 0;
        for entry in fs::read_dir(folder).unwrap() {
            Scenario::read(&entry.unwrap().path()).unwrap();
            read += 1;
        }
        assert!(read > 0);
    }

    #[test]
    fn what_is_left_out_has_a_default_and_what_is_unknown_is_refused() {
        let scenario: Scenario = toml::from_str("title = \"t\"").unwrap();
        assert_eq!((scenario.runs, scenario.watch.watchers), (5, 1000));
        assert!(toml::from_str::<Scenario>("title = \"t\"\nwatchers = 3").is_err());
        let bad: Scenario = toml::from_str("title = \"t\"\nwatch = { slow = 2.0 }").unwrap();
        assert!(bad.check().is_err());
    }

    #[test]
    fn a_scenarios_own_settings_come_last() {
        let text = "title = \"t\"\n[relay]\n\"delivery.updates_per_second\" = 10";
        let scenario: Scenario = toml::from_str(text).unwrap();
        let last = scenario.settings().last().unwrap();
        assert_eq!(last, ("delivery.updates_per_second", "10".to_owned()));
    }

    #[test]
    fn a_list_is_set_as_the_environment_has_it() {
        let text = "title = \"t\"\n[relay]\n\"dialects.enabled\" = [\"shop\", \"mine\"]";
        let scenario: Scenario = toml::from_str(text).unwrap();
        let last = scenario.settings().last().unwrap();
        assert_eq!(last, ("dialects.enabled", "shop,mine".to_owned()));
    }

    #[test]
    fn a_dialect_that_cannot_be_played_is_refused() {
        let dialect = "title = 't'\n[[dialects]]\nname = 'shop'\npath = '/live/{job}'";
        let check = |more: &str| {
            let scenario: Scenario = toml::from_str(&format!("{dialect}{more}")).unwrap();
            scenario.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(""), Ok(()));
        for (more, told) in [
            ("\n[[dialects]]\nname = 'shop'\npath = '/'", "two servers"),
            ("\n[[dialects]]\nname = 'b'\npath = 'live'", "b: path"),
            ("\ncarries = ''", "shop: carries"),
            ("\n[watch]\ntransport = 'sse'", "over WebSocket"),
        ] {
            let error = check(more).unwrap_err();
            assert!(error.contains(told), "{more}: {error}");
        }
    }
}
