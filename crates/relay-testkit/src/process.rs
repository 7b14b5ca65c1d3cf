//! One child process of a test: its log, its signals, its end.
//!
//! Invariant: a [`Process`] that is dropped has ended, and was ended by its own id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// A running child whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with no input, appending what it writes to `log`.
    ///
    /// # Errors
    /// When the program cannot be started or the log cannot be written.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("writing {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything written to standard output and standard error so far.
    pub fn logs(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(no log: {error})"),
        }
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`, `USR2`, …).
    ///
    /// # Errors
    /// When the process has already been waited for, or the signal is unknown.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        if let Some(status) = self.exited() {
            bail!("the process has already ended: {status}");
        }
        // the shell's own `kill`: std has no signals, and this crate no unsafe code
        let done = Command::new("sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name])
            .arg(self.child.id().to_string())
            .status()?;
        if !done.success() {
            bail!("kill -s {name} {}: {done}", self.child.id());
        }
        Ok(())
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it is still running after `within`.
    pub async fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("still running after {within:?}; its log:\n{}", self.logs());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it at once (`SIGKILL`) and waits until it is gone.
    pub fn kill(&mut self) {
        // an error means that it has ended already, which is what was asked for
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_gives_its_log_takes_a_signal_and_says_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap 'echo bye; exit 7' TERM; echo hi; while :; do sleep 0.01; done",
        ]);
        let mut process = Process::spawn(&mut command, &directory.path().join("log")).unwrap();
        crate::wait::until(Duration::from_secs(5), "the first line", || {
            process.logs().contains("hi")
        })
        .await
        .unwrap();
        process.signal("TERM").unwrap();
        let status = process.end(Duration::from_secs(5)).await.unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(process.logs(), "hi\nbye\n");
        assert!(process.signal("TERM").is_err());
    }
}
