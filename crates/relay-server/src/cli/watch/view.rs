//! Where the news goes: bars on a terminal, lines in a log, NDJSON in a pipe, or nowhere.
//!
//! A view shows what it is handed and keeps no opinion on when to stop or reconnect.
//!
//! Invariant: stdout carries the news and nothing else; what the command has to say of itself goes to
//! stderr, or on a terminal below the bars.

mod bars;
mod layout;
mod lines;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::Value;

use super::board::{Board, News};
use super::frame::Job;
use super::text::printable;

/// What can be shown. An error means that nobody reads any more.
pub(crate) trait View {
    /// A frame as it came.
    fn frame(&mut self, _text: &str) -> io::Result<()> {
        Ok(())
    }

    /// The topics are being watched; the board says of which jobs nothing is known yet.
    fn subscribed(&mut self, _board: &Board) -> io::Result<()> {
        Ok(())
    }

    /// A job's state, already on the board.
    fn state(&mut self, _board: &Board, _job: &Job, _news: News) -> io::Result<()> {
        Ok(())
    }

    /// A named event.
    fn milestone(&mut self, _job_id: &str, _name: &str, _data: &Value) -> io::Result<()> {
        Ok(())
    }

    /// Milestones of a job were lost; the state that follows is whole.
    fn gap(&mut self, _job_id: Option<&str>, _reason: &str) -> io::Result<()> {
        Ok(())
    }

    /// A job was removed, or expired.
    fn gone(&mut self, _board: &Board, _job_id: &str, _reason: &str) -> io::Result<()> {
        Ok(())
    }

    /// What is shown may be old (or is fresh again): the relay does not reach its bus.
    fn stale(&mut self, _stale: bool) -> io::Result<()> {
        Ok(())
    }

    /// The state of the connection: why there is none and when it is tried again, or `None` when it
    /// stands.
    fn connection(&mut self, _trouble: Option<(&str, Duration)>) -> io::Result<()> {
        Ok(())
    }

    /// A moment passed.
    fn tick(&mut self, _board: &Board) -> io::Result<()> {
        Ok(())
    }

    /// The watching is over; leaves the screen as it should stay.
    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Which view was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Bars where there is a terminal, lines where there is none.
    People,
    /// The frames, one a line.
    Json,
    /// Only the exit code.
    Quiet,
}

/// The view that suits what was asked for and where stdout leads.
pub(crate) fn view(wanted: Wanted, board: &Board) -> Box<dyn View> {
    let can_move = std::env::var("TERM").is_ok_and(|term| !matches!(&*term, "" | "dumb"));
    match wanted {
        Wanted::People if io::stdout().is_terminal() && can_move => {
            let coloured = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            Box::new(bars::Bars::new(
                io::stdout(),
                size,
                coloured,
                board.is_crowd(),
            ))
        }
        Wanted::People => Box::new(lines::Lines::default()),
        Wanted::Json => Box::new(Json::default()),
        Wanted::Quiet => Box::new(Quiet),
    }
}

/// How large the terminal is.
fn size() -> Option<layout::Size> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    let (width, height) = (size.ws_col.into(), size.ws_row.into());
    (width > 0 && height > 0).then_some(layout::Size { width, height })
}

/// Shows nothing.
struct Quiet;

impl View for Quiet {}

/// Shows the frames themselves.
#[derive(Default)]
struct Json {
    log: ConnectionLog,
}

impl View for Json {
    fn frame(&mut self, text: &str) -> io::Result<()> {
        // In JSON a line break is white space, never part of a text, so a frame can be made one line.
        let line = text.replace(['\n', '\r'], " ");
        writeln!(io::stdout().lock(), "{line}")
    }

    fn connection(&mut self, trouble: Option<(&str, Duration)>) -> io::Result<()> {
        self.log.connection(trouble)
    }
}

/// Tells on stderr what becomes of the connection, and the same reason once, however often it is tried.
#[derive(Debug, Default)]
struct ConnectionLog {
    told: Option<String>,
}

impl ConnectionLog {
    fn connection(&mut self, trouble: Option<(&str, Duration)>) -> io::Result<()> {
        let mut log = io::stderr().lock();
        match trouble {
            Some((why, _)) if self.told.as_deref() == Some(why) => Ok(()),
            Some((why, _)) => {
                self.told = Some(why.to_owned());
                writeln!(log, "relay watch: {}; trying again", printable(why))
            }
            None if self.told.take().is_some() => writeln!(log, "relay watch: connected again"),
            None => Ok(()),
        }
    }
}
