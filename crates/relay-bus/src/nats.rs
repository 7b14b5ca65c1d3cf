//! Core NATS: a bus that carries and forgets.
//!
//! The reader subscribes to what workers publish and numbers it itself, so numbers mean nothing on
//! another node or after a restart: the epoch is this node's. There is nothing to load from; the hub's
//! memory is all there is. If a stream captures the same subjects, that does no harm here.
//!
//! Invariant: a number is given to each update once, in the order of reading.

mod reader;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::PublishErrorKind;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use parking_lot::Mutex;
use relay_core::id::{JobId, JobName, Named, Owner};
use relay_core::position::{Epoch, Seq};
use tokio::sync::{Semaphore, oneshot};

use crate::connection::{ConnectionError, ConnectionSettings, Link, Prepared};
use crate::seam::{
    Held, History, Incoming, Intake, Outgoing, Rejection, Store, StoreError, Unreachable, What,
};
use crate::subject::{PrefixError, Subjects};

/// Our own message is known by it when it comes back.
const RELAY_ID: &str = "Relay-Id";
/// How long a published message may take to come back with its number.
const ECHO_LIMIT: Duration = Duration::from_secs(2);
/// Messages on their way back at once; the rest wait.
const ECHOES: usize = 1024;

/// How updates are read from core NATS.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// What workers publish under.
    pub prefix: String,
    /// The epoch of the numbers given here: different at each start of a node.
    pub epoch: Epoch,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Of the connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Of the prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
}

/// Makes the two halves of the mode: the store, which only publishes, and the reader to be run.
///
/// # Errors
/// When the settings cannot work, whatever NATS says.
pub fn nats(
    settings: NatsSettings,
    connection: &ConnectionSettings,
) -> Result<(Arc<NatsStore>, NatsReader), SetupError> {
    let shared = Arc::new(Shared {
        subjects: Subjects::not_republished(&settings.prefix)?,
        settings,
        link: OnceLock::new(),
        echoes: Mutex::default(),
        publishing: Semaphore::new(ECHOES),
    });
    let prepared = connection.prepare()?;
    let store = Arc::new(NatsStore {
        shared: shared.clone(),
    });
    Ok((store, NatsReader { shared, prepared }))
}

#[derive(Debug)]
struct Shared {
    settings: NatsSettings,
    subjects: Subjects,
    /// Set once, when the reader connects.
    link: OnceLock<Link>,
    /// Who waits for the number of a message of ours, by its id. The reader holds the other end.
    echoes: Mutex<HashMap<String, oneshot::Sender<Seq>>>,
    /// A permit is one message on its way back; bounds `echoes`.
    publishing: Semaphore,
}

/// Reads what workers publish, for as long as it is run.
#[derive(Debug)]
pub struct NatsReader {
    shared: Arc<Shared>,
    prepared: Prepared,
}

impl NatsReader {
    /// Connects and reads, comes back after every loss, and hands everything to `intake`. NATS may be
    /// absent at first. The connection lives on the runtime that runs this.
    ///
    /// # Errors
    /// Only with what no retry can mend.
    pub async fn run(self, intake: Arc<dyn Intake>) -> Result<Infallible, ConnectionError> {
        let link = self.prepared.connect().await?;
        let link = self.shared.link.get_or_init(|| link);
        reader::read(&self.shared, link, &*intake).await
    }
}

/// Publishes over core NATS. It remembers nothing: every load is empty. Whether a subject's last number
/// is still the one expected, core NATS cannot say; the last to publish wins.
#[derive(Debug)]
pub struct NatsStore {
    shared: Arc<Shared>,
}

impl Store for NatsStore {
    fn load_job(&self, _: JobName, up_to: Seq) -> BoxFuture<'_, Result<History, StoreError>> {
        let nothing = History {
            up_to,
            ..History::default()
        };
        std::future::ready(Ok(nothing)).boxed()
    }

    fn load_owners(
        &self,
        _: JobId,
        up_to: Seq,
    ) -> BoxFuture<'_, Result<(Vec<Owner>, Seq), StoreError>> {
        std::future::ready(Ok((Vec::new(), up_to))).boxed()
    }

    fn load_last_states(
        &self,
        _: Option<Owner>,
        _: Seq,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<Incoming>, StoreError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn changed(&self, _: Vec<Held>) -> BoxFuture<'_, Result<Vec<Named>, StoreError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn ask(
        &self,
        subject: String,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        async move {
            let link = self
                .shared
                .link
                .get()
                .ok_or_else(|| StoreError::from(Unreachable::NotYet))?;
            link.ask(subject, payload, timeout).await
        }
        .boxed()
    }

    fn publish(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<Seq, StoreError>> {
        self.publish_and_hear(outgoing).boxed()
    }
}

impl NatsStore {
    /// Publishes, and waits until the message has come back and got its number.
    async fn publish_and_hear(&self, outgoing: Outgoing) -> Result<Seq, StoreError> {
        if outgoing.what == What::Gone {
            return Err(Rejection::Gone.into());
        }
        let Some(link) = self.shared.link.get() else {
            return Err(Unreachable::NotYet.into());
        };
        if !link.is_up() {
            return Err(link.away().into());
        }
        let mark = link.refusals();
        let subject = self.shared.subjects.of(&outgoing.job, &outgoing.what);
        let hearing = async {
            // Held until the message is back.
            let _turn = self.shared.publishing.acquire().await;
            let echo = Echo::expect(&self.shared);
            let number = self.send(link, &subject, outgoing, &echo.id).await;
            match number {
                Ok(()) => Ok(echo.number().await),
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            heard = tokio::time::timeout(ECHO_LIMIT, hearing) => match heard {
                Ok(Ok(Some(number))) => Ok(number),
                Ok(Err(error)) => Err(error),
                Ok(Ok(None)) | Err(_) => Err(match link.refusal_since(mark, &subject) {
                    Some(refusal) => Rejection::Forbidden { refusal }.into(),
                    None => Unreachable::NotHandedBack.into(),
                }),
            },
            () = link.broken() => Err(link.away().into()),
        }
    }

    async fn send(
        &self,
        link: &Link,
        subject: &str,
        outgoing: Outgoing,
        relay_id: &str,
    ) -> Result<(), StoreError> {
        let mut headers = HeaderMap::new();
        headers.insert(RELAY_ID, relay_id);
        let sent = link
            .client()
            .publish_with_headers(subject.to_owned(), headers, outgoing.payload)
            .await;
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Rejection::TooLarge {
                words: format!(
                    "the message is larger than the NATS server's max_payload, {} bytes",
                    link.client().max_payload()
                ),
            }
            .into(),
            PublishErrorKind::InvalidSubject => Rejection::NotTaken(error.into()).into(),
            PublishErrorKind::Send => Unreachable::Unanswered(error.into()).into(),
        })
    }
}

/// A message of ours that has not come back yet.
struct Echo<'a> {
    id: String,
    shared: &'a Shared,
    number: Option<oneshot::Receiver<Seq>>,
}

impl<'a> Echo<'a> {
    fn expect(shared: &'a Shared) -> Self {
        let id = format!("{:032x}", fastrand::u128(..));
        let (sender, number) = oneshot::channel();
        shared.echoes.lock().insert(id.clone(), sender);
        Self {
            id,
            shared,
            number: Some(number),
        }
    }

    async fn number(mut self) -> Option<Seq> {
        self.number.take()?.await.ok()
    }
}

impl Drop for Echo<'_> {
    /// Nobody waits any more.
    fn drop(&mut self) {
        self.shared.echoes.lock().remove(&self.id);
    }
}
