//! What is happening, while it happens: one line on stderr, renewed.
//!
//! On a terminal the line is rewritten in place; elsewhere a new one is written now and then.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

const RENEW: Duration = Duration::from_millis(200);
const RENEW_IN_LOG: Duration = Duration::from_secs(5);

/// The line.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    shown: Option<Instant>,
    /// What stands before every line: the scenario and the run.
    pub(crate) head: String,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: io::stderr().is_terminal(),
            shown: None,
            head: String::new(),
        }
    }

    /// Shows a line if the last one is old enough; `line` is made only then.
    pub(crate) fn show(&mut self, line: impl FnOnce() -> String) {
        let every = if self.terminal { RENEW } else { RENEW_IN_LOG };
        if self.quiet || self.shown.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        // Elsewhere than on a terminal the first line would come before anything has happened.
        if self.shown.is_some() || self.terminal {
            let mut err = io::stderr().lock();
            let (before, after) = if self.terminal {
                ("\r\x1b[K", "")
            } else {
                ("", "\n")
            };
            // Nobody reads it: then it is not shown.
            drop(write!(err, "{before}{} {}{after}", self.head, line()));
            drop(err.flush());
        }
        self.shown = Some(Instant::now());
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if self.terminal && self.shown.is_some() {
            drop(write!(io::stderr().lock(), "\r\x1b[K"));
        }
        self.shown = None;
    }
}
