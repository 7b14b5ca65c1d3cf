//! A look at NATS before anything is started: what of it does not fit the relay's settings.
//!
//! It connects, asks and leaves; it makes and changes nothing.
//!
//! Invariant: it ends within a few seconds, whatever NATS does.

use std::time::Duration;

use tokio::time::timeout;

use crate::connection::{ConnectionError, ConnectionSettings, Link};
use crate::jetstream::{self, Difference, JetStreamSettings, StreamError, of_server};
use crate::subject::{PrefixError, Subjects};

/// How long NATS may take to answer a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long the rest may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Why nothing can be said, or nothing good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// It is not there, or does not let this user in.
    #[error("{reason}")]
    Unreachable {
        /// What the connection says of that.
        reason: String,
    },
    /// The settings of the connection cannot work.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The settings of the subjects cannot work.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// The stream cannot be used.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What of a NATS server does not fit core NATS mode.
///
/// # Errors
/// When it cannot be reached.
pub async fn nats(
    connection: &ConnectionSettings,
    update_bytes: usize,
) -> Result<Vec<Difference>, InspectError> {
    let link = connect(connection).await?;
    let max_payload = link.client().max_payload();
    Ok(of_server(max_payload, update_bytes).into_iter().collect())
}

/// What of the server and the stream does not fit JetStream mode. A stream that is missing and may be made is as the
/// relay will make it.
///
/// # Errors
/// When it cannot be reached, or the stream cannot be used for a reason that is not one of its settings.
pub async fn jetstream(
    settings: &JetStreamSettings,
    connection: &ConnectionSettings,
) -> Result<Vec<Difference>, InspectError> {
    let subjects = Subjects::new(&settings.prefix, &settings.live_prefix)?;
    let link = connect(connection).await?;
    let max_payload = link.client().max_payload();
    let looking = jetstream::inspect(settings, &subjects, link);
    let looked = timeout(LOOK_LIMIT, looking).await;
    let slow = || InspectError::Unreachable {
        reason: format!("JetStream did not answer in {} s", LOOK_LIMIT.as_secs()),
    };
    match looked.map_err(|_| slow())? {
        Err(StreamError::Missing { .. }) if settings.create => {
            let of_server = of_server(max_payload, settings.update_bytes);
            Ok(of_server.into_iter().collect())
        }
        other => Ok(other?),
    }
}

async fn connect(connection: &ConnectionSettings) -> Result<Link, InspectError> {
    let link = connection.prepare()?.connect().await?;
    let up = async {
        while !link.is_up() {
            link.changed().await;
        }
    };
    match timeout(CONNECT_LIMIT, up).await {
        Ok(()) => Ok(link),
        Err(_) => Err(InspectError::Unreachable {
            reason: link.failure(),
        }),
    }
}
