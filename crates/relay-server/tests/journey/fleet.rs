//! The workers' side of a journey: a Python process that publishes many jobs' lives, and what it published.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use relay_testkit::journey::Published;
use relay_testkit::process::Process;
use relay_testkit::tools;
use serde_json::json;
use tempfile::TempDir;

/// How many workers there are and what they do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) jobs: usize,
    pub(crate) owners: usize,
    /// Updates of each job between its first and its last.
    pub(crate) steps: usize,
    /// Seconds between two updates of one job, on average.
    pub(crate) pause: f64,
    /// Seconds over which the jobs begin.
    pub(crate) spread: f64,
}

impl Plan {
    /// The owner of the job with this index.
    pub(crate) fn owner(&self, index: usize) -> String {
        format!("o{}", index % self.owners)
    }

    /// The id of the job with this index.
    pub(crate) fn job(&self, index: usize) -> String {
        format!("{}-j{index}", self.owner(index))
    }
}

/// The running workers.
#[derive(Debug)]
pub(crate) struct Fleet {
    process: Process,
    _directory: TempDir,
}

impl Fleet {
    /// Starts the workers; they connect to any of `urls`.
    pub(crate) fn start(plan: &Plan, urls: &[String]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let settings = json!({
            "urls": urls,
            "seed": plan.seed,
            "jobs": plan.jobs,
            "owners": plan.owners,
            "steps": plan.steps,
            "pause": plan.pause,
            "spread": plan.spread,
        });
        let mut command = Command::new(tools::python()?);
        command
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/journey/fleet.py"
            ))
            .arg(settings.to_string());
        Ok(Self {
            process: Process::spawn(&mut command, &directory.path().join("published"))?,
            _directory: directory,
        })
    }

    /// How many updates were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.process.logs().lines().count()
    }

    /// Waits until all jobs have ended, and gives everything that was published.
    pub(crate) async fn finish(&mut self, within: Duration) -> Result<Published> {
        let status = self.process.end(within).await?;
        if !status.success() {
            bail!("the workers failed: {status}\n{}", self.process.logs());
        }
        Ok(Published::parse(&self.process.logs()))
    }
}
