//! Logs: one line a thing, JSON for machines, text for people.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{Log, LogFormat};

/// Takes another `log.level` while the relay runs.
pub(crate) type Relevel = Box<dyn Fn(&Log) -> Result<(), LevelError>>;

/// Why a level is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LevelError {
    /// It is none.
    #[error(transparent)]
    Filter(#[from] ParseError),
    /// There is nobody to take it.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

/// What is said at this level.
fn filter(log: &Log) -> Result<EnvFilter, ParseError> {
    // The NATS client tells every event twice; what matters of it the bus says itself.
    EnvFilter::try_new(format!("async_nats=warn,{}", log.level))
}

/// Starts logging to standard error. `log.format = "auto"` is text on a terminal and JSON elsewhere.
///
/// # Errors
/// When `log.level` is not a filter.
pub(crate) fn start(log: &Log) -> Result<Relevel, ParseError> {
    let first = filter(log)?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(first)
        .with_ansi(is_coloured(
            |name| std::env::var_os(name),
            std::io::stderr().is_terminal(),
        ))
        // A line that nobody can read any more is no reason to end a thread, which is what reporting it would do.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    Ok(if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        Box::new(move |log| Ok(handle.reload(filter(log)?)?))
    } else {
        let builder = builder.with_target(false).with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        Box::new(move |log| Ok(handle.reload(filter(log)?)?))
    })
}

/// Colours are for a terminal that can show them, and for people who have not said no (no-color.org).
fn is_coloured(variable: impl Fn(&str) -> Option<OsString>, is_terminal: bool) -> bool {
    let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = variable("TERM").is_some_and(|term| term == "dumb");
    is_terminal && !refused && !dumb
}

/// What may happen thousands of times and is worth a line a minute.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    said: Option<Instant>,
    since: u64,
}

impl Seldom {
    /// `Some(n)` when it is time for a line; it happened `n` times more since the last one.
    pub(crate) fn allow(&self) -> Option<u64> {
        const EVERY: Duration = Duration::from_secs(60);
        let mut held = self.0.lock();
        if held.said.is_some_and(|said| said.elapsed() < EVERY) {
            held.since += 1;
            return None;
        }
        held.said = Some(Instant::now());
        Some(std::mem::take(&mut held.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_alone_and_only_where_they_are_wanted() {
        let coloured = |variables: &[(&str, &str)], is_terminal| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| OsString::from(value))
            };
            is_coloured(variable, is_terminal)
        };
        assert!(coloured(&[("TERM", "xterm"), ("NO_COLOR", "")], true));
        assert!(!coloured(&[("TERM", "xterm")], false));
        assert!(!coloured(&[("NO_COLOR", "1")], true));
        assert!(!coloured(&[("TERM", "dumb")], true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_often_is_said_once_a_minute_with_how_often() {
        let seldom = Seldom::default();
        assert_eq!(seldom.allow(), Some(0));
        assert_eq!((seldom.allow(), seldom.allow()), (None, None));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(seldom.allow(), Some(2));
    }
}
