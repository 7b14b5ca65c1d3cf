//! One plain line per change, for logs and pipes.
//!
//! It knows nothing of colours or cursors.
//!
//! Invariant: what would read the same as the job's last line is not printed again.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;

use super::{ConnectionLog, View};
use crate::cli::watch::board::{Board, News};
use crate::cli::watch::frame::Job;
use crate::cli::watch::text::{duration, printable, why_gone};

/// Lines on stdout.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The last line of each job that goes on.
    last: HashMap<String, String>,
    log: ConnectionLog,
    waiting_told: bool,
    stale_told: bool,
}

impl View for Lines {
    fn subscribed(&mut self, board: &Board) -> io::Result<()> {
        if !self.waiting_told {
            self.waiting_told = true;
            for id in board.unknown() {
                writeln!(
                    io::stderr().lock(),
                    "relay watch: {id} is not known yet; waiting for its first update"
                )?;
            }
        }
        Ok(())
    }

    fn state(&mut self, _board: &Board, job: &Job, news: News) -> io::Result<()> {
        let id = printable(&job.job_id);
        let line = line(&id, job);
        let known = self.last.get(&id) == Some(&line);
        match news {
            News::Ended => {
                self.last.remove(&id);
            }
            News::Live if !known => {
                self.last.insert(id, line.clone());
            }
            News::Live | News::Nothing => return Ok(()),
        }
        writeln!(io::stdout().lock(), "{line}")
    }

    fn milestone(&mut self, job_id: &str, name: &str, data: &Value) -> io::Result<()> {
        let (id, name) = (printable(job_id), printable(name));
        writeln!(
            io::stdout().lock(),
            "{id}  milestone  {name}  {}",
            printable(&data.to_string())
        )
    }

    fn gap(&mut self, job_id: Option<&str>, reason: &str) -> io::Result<()> {
        let id = printable(job_id.unwrap_or("-"));
        writeln!(
            io::stdout().lock(),
            "{id}  gap  milestones were lost ({})",
            printable(reason)
        )
    }

    fn gone(&mut self, _board: &Board, job_id: &str, reason: &str) -> io::Result<()> {
        let id = printable(job_id);
        self.last.remove(&id);
        writeln!(io::stdout().lock(), "{id}  gone  {}", why_gone(reason))
    }

    fn stale(&mut self, stale: bool) -> io::Result<()> {
        if stale == self.stale_told {
            return Ok(());
        }
        self.stale_told = stale;
        let what = if stale {
            "the relay does not reach its bus; what is shown may be old"
        } else {
            "the relay reaches its bus again"
        };
        writeln!(io::stderr().lock(), "relay watch: {what}")
    }

    fn connection(&mut self, trouble: Option<(&str, Duration)>) -> io::Result<()> {
        self.log.connection(trouble)
    }
}

/// `job-1  running  40%  encoding: frame 400 of 1000`
fn line(id: &str, job: &Job) -> String {
    let mut line = format!("{id}  {}", job.status.word());
    if let Some(percent) = job.percent() {
        line += &format!("  {percent}%");
    }
    let ended = crate::cli::watch::board::Ending::of(job.status).is_some();
    if let Some(took) = job.took().filter(|_| ended) {
        line += &format!("  in {}", duration(took));
    }
    let words = if ended { job.ending() } else { job.doing() };
    if !words.is_empty() {
        line += "  ";
        line += &words;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_there_is_to_say() {
        let of = |text: &str| line("j", &serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"status":"queued"}"#), "j  queued");
        let running =
            r#"{"status":"running","progress":40.7,"stage":"encoding","message":"frame 4"}"#;
        assert_eq!(of(running), "j  running  40%  encoding: frame 4");
        let done = r#"{"status":"completed","progress":100,"result_url":"/r/1",
            "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:01:20Z"}"#;
        assert_eq!(of(done), "j  completed  100%  in 1m 20s  /r/1");
    }
}
