//! Logs: one line a thing, JSON for machines, text for people.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging to standard error. `log.format = "auto"` is text on a terminal and JSON elsewhere.
///
/// # Errors
/// When `log.level` is not a filter.
pub(crate) fn start(log: &Log) -> Result<(), tracing_subscriber::filter::ParseError> {
    // The NATS client tells every event twice; what matters of it the bus says itself.
    let filter = EnvFilter::try_new(format!("async_nats=warn,{}", log.level))?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_target(false).init();
    }
    Ok(())
}
