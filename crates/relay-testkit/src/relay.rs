//! The real binary, run as its users run it: `relay serve`, configured by the environment.
//!
//! Knows the binary's command line, its configuration keys and its admin paths; nothing of its insides.
//!
//! Invariant: a server keeps its addresses and settings over a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::http::{self, Answer, Request, StatusCode};
use crate::ports::Port;
use crate::process::Process;

const START_WITHIN: Duration = Duration::from_secs(20);

/// What a started relay is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// `/readyz` says 200.
    Ready,
    /// `/livez` says 200: it runs, but its bus may be away.
    Live,
}

/// How to run a relay.
#[derive(Debug, Clone)]
pub struct Settings {
    binary: PathBuf,
    keys: BTreeMap<String, String>,
    wait: Wait,
}

impl Settings {
    /// A relay with the default configuration, but for its listeners. `binary` is
    /// `env!("CARGO_BIN_EXE_relay")` in relay-server's own tests.
    pub fn new(binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            keys: BTreeMap::new(),
            wait: Wait::Ready,
        }
    }

    /// Sets a key by its place in the configuration: `set("delivery.ping_interval", "1s")`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        let name = key.to_uppercase().replace('.', "__");
        self.keys
            .insert(format!("RELAY__{name}"), value.to_string());
        self
    }

    /// Uses JetStream at `url`.
    #[must_use]
    pub fn jetstream(self, url: &str) -> Self {
        self.set("bus.mode", "jetstream").set("nats.url", url)
    }

    /// Takes a start as done when the process is alive, though its bus may be away.
    #[must_use]
    pub fn only_live(mut self) -> Self {
        self.wait = Wait::Live;
        self
    }
}

/// A running relay.
#[derive(Debug)]
pub struct RelayServer {
    /// `None` while stopped.
    process: Option<Process>,
    settings: Settings,
    http: Port,
    admin: Port,
    directory: TempDir,
}

impl RelayServer {
    /// Starts a relay on free ports and waits until it is ready (or alive, see [`Settings::only_live`]).
    ///
    /// # Errors
    /// When it ends or does not come up; the message has its log.
    pub async fn start(settings: Settings) -> Result<Self> {
        let mut relay = Self::prepare(settings)?;
        relay.restart().await?;
        Ok(relay)
    }

    fn prepare(settings: Settings) -> Result<Self> {
        Ok(Self {
            process: None,
            settings,
            http: Port::reserve()?,
            admin: Port::reserve()?,
            directory: tempfile::tempdir()?,
        })
    }

    /// Starts it again on the same ports with the same settings, ending it first if it still runs.
    ///
    /// # Errors
    /// When it ends or does not come up; the message has its log.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let mut command = Command::new(&self.settings.binary);
        command.arg("serve").current_dir(self.directory.path());
        // whatever the developer's shell has set must not decide a test
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RELAY__") {
                command.env_remove(name);
            }
        }
        command
            .env("RELAY__HTTP__LISTEN", self.http.address())
            .env("RELAY__ADMIN__LISTEN", self.admin.address())
            .env("RELAY__LOG__FORMAT", "text")
            .envs(&self.settings.keys);
        let log = self.directory.path().join("log");
        self.process = Some(Process::spawn(&mut command, &log)?);
        let wait = self.settings.wait;
        self.up(wait).await
    }

    /// Waits until `/readyz` says yes, for a relay that was started [`Settings::only_live`].
    ///
    /// # Errors
    /// When it ends or stays unready; the message has its log.
    pub async fn ready(&mut self) -> Result<()> {
        self.up(Wait::Ready).await
    }

    async fn up(&mut self, wait: Wait) -> Result<()> {
        let path = match wait {
            Wait::Ready => "/readyz",
            Wait::Live => "/livez",
        };
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let answer = http::get(self.admin_address().as_str(), path).await;
            if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
                return Ok(());
            }
            if let Some(status) = self.process.as_mut().and_then(Process::exited) {
                bail!("relay ended: {status}\n{}", self.logs());
            }
            if Instant::now() > deadline {
                bail!("{path} does not say yes\n{}", self.logs());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// `host:port` of the public listener.
    pub fn address(&self) -> String {
        self.http.address()
    }

    /// `http://host:port` of the public listener.
    pub fn url(&self) -> String {
        format!("http://{}", self.http.address())
    }

    /// `host:port` of the admin listener.
    pub fn admin_address(&self) -> String {
        self.admin.address()
    }

    /// What it wrote, over all its starts.
    pub fn logs(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Sends a signal by name.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.process
            .as_mut()
            .context("the relay is not running")?
            .signal(name)
    }

    /// Asks it to go (`SIGTERM`) and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after `within`.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.end(within).await
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after `within`.
    pub async fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        let process = self.process.as_mut().context("the relay is not running")?;
        let status = process.end(within).await?;
        self.process = None;
        Ok(status)
    }

    /// Ends it at once, as a crash would (`SIGKILL`).
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// One request to the public listener.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn send(&self, request: Request) -> Result<Answer> {
        http::send(&self.address(), request).await
    }

    /// Publishes a complete state over HTTP and wants it accepted.
    ///
    /// # Errors
    /// When the answer is not 202.
    pub async fn publish(&self, job: &str, owner: &str, state: &Value) -> Result<String> {
        let request = Request::post(format!("/v1/jobs/{job}?owner={owner}"), state);
        self.accepted(request).await
    }

    /// Publishes a milestone over HTTP and wants it accepted.
    ///
    /// # Errors
    /// When the answer is not 202.
    pub async fn milestone(
        &self,
        job: &str,
        owner: &str,
        name: &str,
        data: &Value,
    ) -> Result<String> {
        let path = format!("/v1/jobs/{job}/milestones/{name}?owner={owner}");
        self.accepted(Request::post(path, data)).await
    }

    async fn accepted(&self, request: Request) -> Result<String> {
        let answer = self.send(request).await?;
        if answer.status != StatusCode::ACCEPTED {
            bail!("{} {}", answer.status, answer.text());
        }
        let cursor = answer.json()["cursor"].as_str().map(str::to_owned);
        cursor.with_context(|| format!("no cursor in {}", answer.text()))
    }

    /// All metrics now.
    ///
    /// # Errors
    /// When the admin listener does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = http::get(&self.admin_address(), "/metrics").await?;
        Ok(Metrics::parse(&answer.text()))
    }
}

/// One reading of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the Prometheus text format; a series is keyed as it is written, `name{label="value"}`.
    pub fn parse(text: &str) -> Self {
        let series = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                Some((series.to_owned(), value.parse().ok()?))
            });
        Self(series.collect())
    }

    /// One series by its full spelling.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// The sum over all series of a name whose labels contain `label` (`reason="slow"`, or nothing).
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.series()
            .filter(|(series, _)| {
                let (own_name, labels) = series.split_once('{').unwrap_or((series, ""));
                own_name == name && labels.contains(label)
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Every series with its value.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0
            .iter()
            .map(|(series, value)| (series.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_series_and_summed_by_name() {
        let metrics = Metrics::parse(
            "# HELP relay_x_total Things.\n# TYPE relay_x_total counter\n\
             relay_x_total{reason=\"a\"} 2\nrelay_x_total{reason=\"b\"} 3\nrelay_x_total_more 9\nrelay_y 1.5\n",
        );
        assert_eq!(metrics.get("relay_x_total{reason=\"a\"}"), Some(2.0));
        assert_eq!(metrics.get("relay_y"), Some(1.5));
        assert!((metrics.sum("relay_x_total", "") - 5.0).abs() < f64::EPSILON);
        assert!((metrics.sum("relay_x_total", "reason=\"b\"") - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_key_becomes_its_environment_variable() {
        let settings = Settings::new("relay").set("delivery.ping_interval", "1s");
        assert_eq!(settings.keys["RELAY__DELIVERY__PING_INTERVAL"], "1s");
    }

    #[tokio::test]
    async fn a_relay_that_ends_at_once_is_told_with_its_log() {
        let error = RelayServer::start(Settings::new("/bin/false"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("relay ended"), "{error}");
    }
}
