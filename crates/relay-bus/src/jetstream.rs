//! JetStream: the stream is the store, and what it republishes is the live feed.
//!
//! One stream captures what workers publish and republishes it, numbered. [`JetStreamReader`] takes one
//! wildcard subscription to the republished messages and hands each on; [`JetStreamStore`] answers what
//! the hub's memory cannot, and is fresh even where replicas are not. Neither knows what an update means.
//!
//! Invariants: nothing is asked before the stream has been found fit; every request has a time limit.

mod ask;
mod decode;
mod fitness;
mod publishing;
mod reader;
mod store;
mod stream;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::position::Seq;
use tokio::sync::Semaphore;

pub use fitness::{Difference, Weight};
pub use store::JetStreamStore;
pub use stream::StreamError;

pub(crate) use fitness::of_server;

use crate::connection::{ConnectionError, ConnectionSettings, Link, Prepared};
use crate::seam::{Intake, StoreError, Unreachable};
use crate::subject::{PrefixError, Subjects};
use ask::Asker;
use stream::Place;

/// Loads under way at once; the rest wait.
const LOADS: usize = 64;
/// How long streams may take to say that they capture the subjects, when there is no hurry.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Where a stream keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// On disk: outlives the server.
    #[default]
    File,
    /// In memory: a job's history is found by walking over the stream, and is gone with the server.
    Memory,
}

/// The stream and how it is made.
#[derive(Debug, Clone)]
pub struct JetStreamSettings {
    /// The stream's name.
    pub stream: String,
    /// The JetStream domain it is in, where that is not the server's own.
    pub domain: Option<String>,
    /// What workers publish under.
    pub prefix: String,
    /// What is put in front of that when the stream republishes.
    pub live_prefix: String,
    /// Make the stream if it is missing.
    pub create: bool,
    /// Copies in a cluster, if it is made.
    pub replicas: usize,
    /// Where it keeps messages, if it is made.
    pub storage: Storage,
    /// How long it keeps them, if it is made.
    pub max_age: Duration,
    /// Messages kept per subject, if it is made.
    pub per_job: usize,
    /// Bytes of the largest update; the stream is made to take no larger ones.
    pub update_bytes: usize,
    /// How long an ending is kept that is published through the relay.
    pub terminal_ttl: Duration,
    /// How often the stream's identity and last number are checked.
    pub check_interval: Duration,
}

impl Default for JetStreamSettings {
    fn default() -> Self {
        Self {
            stream: "PROGRESS".to_owned(),
            domain: None,
            prefix: "progress".to_owned(),
            live_prefix: "live".to_owned(),
            create: true,
            replicas: 1,
            storage: Storage::File,
            max_age: Duration::from_secs(72 * 3600),
            per_job: 64,
            update_bytes: 64 * 1024,
            terminal_ttl: Duration::from_secs(24 * 3600),
            check_interval: Duration::from_secs(10),
        }
    }
}

impl JetStreamSettings {
    fn asker(&self, link: Link) -> Asker {
        Asker::new(link, &self.stream, self.domain.as_deref())
    }
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Of the connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Of the prefixes.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// Of the stream's name.
    #[error("{name:?} is not a stream's name: use A-Z a-z 0-9 _ -")]
    StreamName {
        /// The name as given.
        name: String,
    },
}

/// Makes the two halves of the mode: the store for the hub, and the reader to be run.
///
/// Nothing is connected before [`JetStreamReader::run`]; until then, and whenever NATS is away, the store
/// answers that it is unreachable.
///
/// # Errors
/// When the settings cannot work, whatever NATS says.
pub fn jetstream(
    settings: JetStreamSettings,
    connection: &ConnectionSettings,
) -> Result<(Arc<JetStreamStore>, JetStreamReader), SetupError> {
    let is_name = relay_core::id::check_name(&settings.stream).is_ok();
    if !is_name {
        let name = settings.stream;
        return Err(SetupError::StreamName { name });
    }
    let subjects = Subjects::new(&settings.prefix, &settings.live_prefix)?;
    let prepared = connection.prepare()?;
    let shared = Arc::new(Shared {
        settings,
        subjects,
        asker: OnceLock::new(),
        away: Mutex::new(Some(Unreachable::NotYet.to_string())),
        seen: AtomicU64::new(0),
        per_subject: AtomicU64::new(0),
        loads: Semaphore::new(LOADS),
    });
    let store = Arc::new(JetStreamStore::new(shared.clone()));
    Ok((store, JetStreamReader { shared, prepared }))
}

/// Looks at the stream as it is now, and makes and changes nothing.
pub(crate) async fn inspect(
    settings: &JetStreamSettings,
    subjects: &Subjects,
    link: Link,
) -> Result<Vec<Difference>, StreamError> {
    let asker = settings.asker(link);
    let captured = asker.capturing(subjects.probe(), LOOK_AROUND).await;
    let place = Place {
        asker: &asker,
        settings,
        subjects,
    };
    Ok(place.find(&captured, false).await?.differences)
}

/// Reads what the stream republishes, for as long as it is run.
#[derive(Debug)]
pub struct JetStreamReader {
    shared: Arc<Shared>,
    prepared: Prepared,
}

impl JetStreamReader {
    /// Connects and reads, comes back after every loss, and hands everything to `intake`. NATS may be
    /// absent at first. The connection lives on the runtime that runs this.
    ///
    /// # Errors
    /// Only with what no retry can mend.
    pub async fn run(self, intake: Arc<dyn Intake>) -> Result<Infallible, ConnectionError> {
        let link = self.prepared.connect().await?;
        let asker = self
            .shared
            .asker
            .get_or_init(|| self.shared.settings.asker(link));
        reader::read(&self.shared, asker, &*intake).await
    }
}

/// What the reader and the store have in common.
#[derive(Debug)]
struct Shared {
    settings: JetStreamSettings,
    subjects: Subjects,
    /// Set once, when the reader connects.
    asker: OnceLock<Asker>,
    /// Why the stream cannot be asked now; `None` when it can. Set by the reader.
    away: Mutex<Option<String>>,
    /// The highest number read live: an answer that is older is stale.
    seen: AtomicU64,
    /// How many messages the stream keeps of a subject; 0 where that has no bound, or is not known yet.
    per_subject: AtomicU64,
    /// A permit is one load under way.
    loads: Semaphore,
}

impl Shared {
    /// Says whether that is news.
    fn set_away(&self, reason: Option<&str>) -> bool {
        let mut away = self.away.lock();
        let is_news = away.as_deref() != reason;
        if is_news {
            *away = reason.map(str::to_owned);
        }
        is_news
    }

    fn seen(&self) -> Seq {
        Seq::new(self.seen.load(Ordering::Acquire))
    }

    /// Whom to ask, if there is anybody.
    fn asker(&self) -> Result<&Asker, StoreError> {
        if let Some(reason) = self.away.lock().clone() {
            return Err(Unreachable::Away { reason }.into());
        }
        match self.asker.get() {
            Some(asker) if asker.link().is_up() => Ok(asker),
            Some(asker) => Err(asker.link().away().into()),
            None => Err(Unreachable::NotYet.into()),
        }
    }
}
