//! The bus a configuration asks for, and the tasks that read it.

use std::io;
use std::sync::Arc;

use relay_bus::clock::Clock;
use relay_bus::connection::ConnectionSettings;
use relay_bus::hub::{Backing, Hub};
use relay_bus::inspect::{self, InspectError};
use relay_bus::jetstream::{
    self, Difference, JetStreamReader, JetStreamSettings, JetStreamStore, Storage,
};
use relay_bus::nats::{self, NatsReader, NatsSettings, NatsStore};
use relay_core::position::Epoch;
use tokio::runtime::Builder;

use super::lost::Tasks;
use crate::config::{BusMode, Config, Nats, StreamStorage, read_secret};

/// Why a bus cannot be set up, whatever NATS says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BusError {
    /// The settings of core NATS contradict its rules.
    #[error(transparent)]
    Nats(#[from] nats::SetupError),
    /// The settings of JetStream contradict its rules.
    #[error(transparent)]
    JetStream(#[from] jetstream::SetupError),
    /// A file with a secret cannot be read.
    #[error("a file that [nats] names cannot be read: {0}")]
    Secret(#[from] io::Error),
}

/// What of the NATS that a configuration names does not fit it. It connects, and starts nothing.
pub(crate) fn inspect(config: &Config) -> Result<Vec<Difference>, InspectError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let unusable = |error: io::Error| InspectError::Unreachable {
        reason: BusError::from(error).to_string(),
    };
    let (runtime, connection) = (runtime.map_err(unusable)?, connection(&config.nats));
    let connection = connection.map_err(unusable)?;
    runtime.block_on(async {
        match config.bus.mode {
            BusMode::Embedded => Ok(Vec::new()),
            BusMode::Nats => inspect::nats(&connection, config.limits.update_bytes).await,
            BusMode::Jetstream => inspect::jetstream(&stream(config), &connection).await,
        }
    })
}

/// A bus that is set up and not yet read.
#[derive(Debug)]
pub(super) enum Bus {
    Embedded,
    Nats(Arc<NatsStore>, NatsReader),
    JetStream(Arc<JetStreamStore>, JetStreamReader),
}

/// The epoch of a bus that has none of its own: this start.
pub(super) fn epoch(clock: Clock) -> Epoch {
    Epoch::new(u64::try_from(clock.wall().as_unix_micros()).unwrap_or(1))
}

impl Bus {
    pub(super) fn new(config: &Config, epoch: Epoch) -> Result<Self, BusError> {
        Ok(match config.bus.mode {
            BusMode::Embedded => Self::Embedded,
            BusMode::Nats => {
                let settings = NatsSettings {
                    prefix: config.nats.prefix.clone(),
                    epoch,
                };
                let (store, reader) = nats::nats(settings, &connection(&config.nats)?)?;
                Self::Nats(store, reader)
            }
            BusMode::Jetstream => {
                let (store, reader) =
                    jetstream::jetstream(stream(config), &connection(&config.nats)?)?;
                Self::JetStream(store, reader)
            }
        })
    }

    pub(super) fn backing(&self) -> Backing {
        match self {
            Self::Embedded => Backing::Embedded,
            Self::Nats(store, _) => Backing::Passing(store.clone()),
            Self::JetStream(store, _) => Backing::Stored(store.clone()),
        }
    }

    /// Starts reading.
    pub(super) fn spawn(self, hub: &Arc<Hub>, tasks: &mut Tasks) {
        let hub = hub.clone();
        match self {
            Self::Embedded => {}
            Self::Nats(_, reader) => {
                tasks.spawn(async move { reader.run(hub).await.err() });
            }
            Self::JetStream(_, reader) => {
                tasks.spawn(async move { reader.run(hub).await.err() });
            }
        }
    }
}

fn connection(nats: &Nats) -> Result<ConnectionSettings, io::Error> {
    let seed = nats
        .nkey_file
        .as_ref()
        .map(|file| read_secret(file))
        .transpose()?;
    Ok(ConnectionSettings {
        urls: nats.url.iter().map(|url| url.expose().to_owned()).collect(),
        user: nats.user.clone(),
        password: nats
            .password()?
            .map(|password| password.expose().to_owned()),
        token: nats.token()?.map(|token| token.expose().to_owned()),
        nkey_seed: seed.map(|seed| seed.expose().trim().to_owned()),
        creds_file: nats.creds_file.clone(),
        tls_required: nats.tls_required,
        tls_ca_file: nats.tls_ca_file.clone(),
        tls_cert_file: nats.tls_cert_file.clone(),
        tls_key_file: nats.tls_key_file.clone(),
        ..ConnectionSettings::default()
    })
}

fn stream(config: &Config) -> JetStreamSettings {
    let nats = &config.nats;
    JetStreamSettings {
        stream: nats.stream.clone(),
        domain: nats.domain.clone(),
        prefix: nats.prefix.clone(),
        live_prefix: nats.live_prefix.clone(),
        create: nats.stream_create,
        replicas: nats.stream_replicas,
        storage: match nats.stream_storage {
            StreamStorage::File => Storage::File,
            StreamStorage::Memory => Storage::Memory,
        },
        max_age: nats.stream_max_age,
        per_job: config.history.per_job,
        update_bytes: config.limits.update_bytes,
        terminal_ttl: config.history.terminal_ttl,
        ..JetStreamSettings::default()
    }
}
