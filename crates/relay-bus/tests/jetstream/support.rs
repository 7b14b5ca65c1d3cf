//! A recording intake, and a reader with its store against a real server.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use parking_lot::Mutex;
use relay_bus::connection::ConnectionSettings;
use relay_bus::jetstream::{JetStreamSettings, JetStreamStore, jetstream};
use relay_bus::seam::{Incoming, Intake, Outgoing, RefusedUpdate, What};
use relay_core::id::{JobName, Name};
use relay_core::job::Finality;
use relay_core::position::{Epoch, Position, Seq};
use relay_testkit::client::raw::Raw;
use relay_testkit::wait;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// What a reader said.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    Live(Position),
    Lost(String),
    Dropped(&'static str),
    Refused(Box<RefusedUpdate>),
    Update(Box<Incoming>),
}

/// Keeps what it is told, in order.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    said: Mutex<Vec<Said>>,
}

impl Intake for Recorder {
    fn missing(&self, _after: Seq) {}

    fn found(&self) {}

    fn ingest(&self, updates: &mut Vec<Incoming>) {
        let updates = updates
            .drain(..)
            .map(|update| Said::Update(Box::new(update)));
        self.said.lock().extend(updates);
    }

    fn live(&self, epoch: Epoch, from_seq: Seq) {
        self.said
            .lock()
            .push(Said::Live(Position::new(epoch, from_seq)));
    }

    fn lost(&self, reason: &str) {
        self.said.lock().push(Said::Lost(reason.to_owned()));
    }

    fn dropped(&self, reason: &'static str) {
        self.said.lock().push(Said::Dropped(reason));
    }

    fn refused(&self, update: RefusedUpdate) {
        self.said.lock().push(Said::Refused(Box::new(update)));
    }
}

impl Recorder {
    pub(crate) fn said(&self) -> Vec<Said> {
        self.said.lock().clone()
    }

    pub(crate) fn updates(&self) -> Vec<Incoming> {
        let said = self.said();
        let updates = said.into_iter().filter_map(|each| match each {
            Said::Update(update) => Some(*update),
            Said::Live(..) | Said::Lost(_) | Said::Dropped(_) | Said::Refused(_) => None,
        });
        updates.collect()
    }

    /// Epoch and number of each time it went live.
    pub(crate) fn lives(&self) -> Vec<Position> {
        let said = self.said();
        let lives = said.into_iter().filter_map(|each| match each {
            Said::Live(position) => Some(position),
            Said::Update(_) | Said::Lost(_) | Said::Dropped(_) | Said::Refused(_) => None,
        });
        lives.collect()
    }

    pub(crate) fn losses(&self) -> Vec<String> {
        let said = self.said();
        let losses = said.into_iter().filter_map(|each| match each {
            Said::Lost(reason) => Some(reason),
            Said::Update(_) | Said::Live(..) | Said::Dropped(_) | Said::Refused(_) => None,
        });
        losses.collect()
    }

    /// What was refused, as it is listed.
    pub(crate) fn refused(&self) -> Vec<RefusedUpdate> {
        let said = self.said();
        let refused = said.into_iter().filter_map(|each| match each {
            Said::Refused(update) => Some(*update),
            Said::Update(_) | Said::Live(..) | Said::Lost(_) | Said::Dropped(_) => None,
        });
        refused.collect()
    }

    pub(crate) fn drops(&self) -> Vec<&'static str> {
        let said = self.said();
        let drops = said.into_iter().filter_map(|each| match each {
            Said::Dropped(reason) => Some(reason),
            Said::Refused(update) => Some(update.reason),
            Said::Update(_) | Said::Live(..) | Said::Lost(_) => None,
        });
        drops.collect()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        if wait::until(SOON, what, || holds(self)).await.is_err() {
            panic!("waited for {what}; said so far: {:#?}", self.said());
        }
    }

    /// Waits until it went live `times` times, and gives the last.
    pub(crate) async fn live(&self, times: usize) -> Position {
        self.until("going live", |said| said.lives().len() >= times)
            .await;
        self.lives()[times - 1]
    }

    pub(crate) async fn updates_until(&self, count: usize) -> Vec<Incoming> {
        self.until("updates", |said| said.updates().len() >= count)
            .await;
        self.updates()
    }

    pub(crate) async fn lost_with(&self, part: &str) {
        self.until(part, |said| {
            said.losses().iter().any(|reason| reason.contains(part))
        })
        .await;
    }
}

/// The two halves of the mode, running.
#[derive(Debug)]
pub(crate) struct Mode {
    pub(crate) store: Arc<JetStreamStore>,
    pub(crate) heard: Arc<Recorder>,
    /// The reader; ends with this.
    _tasks: JoinSet<()>,
}

impl Mode {
    pub(crate) fn start(settings: JetStreamSettings, connection: &ConnectionSettings) -> Self {
        let (store, reader) = jetstream(settings, connection).unwrap();
        let heard = Arc::new(Recorder::default());
        let mut tasks = JoinSet::new();
        let intake = heard.clone();
        tasks.spawn(async move {
            let never = reader.run(intake).await;
            panic!("the reader ended: {never:?}");
        });
        Self {
            store,
            heard,
            _tasks: tasks,
        }
    }

    pub(crate) fn at(url: &str) -> Self {
        Self::start(settings(), &connection(url))
    }
}

/// As the relay's own, but checked often enough for a test.
pub(crate) fn settings() -> JetStreamSettings {
    JetStreamSettings {
        check_interval: Duration::from_millis(500),
        ..JetStreamSettings::default()
    }
}

pub(crate) fn connection(url: &str) -> ConnectionSettings {
    ConnectionSettings {
        urls: vec![url.to_owned()],
        ..ConnectionSettings::default()
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// The job that nearly all of these are about: u's.
pub(crate) fn job(id: &str) -> JobName {
    JobName::new(name("u"), name(id))
}

pub(crate) fn outgoing(owner: &str, job: &str, what: What, payload: &str) -> Outgoing {
    Outgoing {
        job: JobName::new(name(owner), name(job)),
        what,
        payload: payload.to_owned().into(),
        finality: Finality::Open,
        stamp: None,
        expected_last: None,
        first: None,
    }
}

pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, *value);
    }
    headers
}

/// A worker: publishes and waits for the stream's word.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: async_nats::jetstream::Context,
}

impl Worker {
    pub(crate) async fn at(url: &str) -> Self {
        let client = async_nats::connect(url).await.unwrap();
        Self {
            jetstream: async_nats::jetstream::new(client.clone()),
            client,
        }
    }

    pub(crate) async fn publish(&self, subject: &str, payload: &str) -> Seq {
        self.publish_with(subject, &[], payload).await
    }

    pub(crate) async fn publish_with(
        &self,
        subject: &str,
        pairs: &[(&'static str, &str)],
        payload: &str,
    ) -> Seq {
        let deadline = Instant::now() + SOON;
        loop {
            let payload = payload.to_owned().into();
            let sent =
                self.jetstream
                    .publish_with_headers(subject.to_owned(), headers(pairs), payload);
            match sent.await.unwrap().await {
                Ok(stored) => return Seq::new(stored.sequence),
                // Between two leaders nobody listens, and nothing is stored.
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                    assert!(Instant::now() < deadline, "{subject}: {error}");
                    sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{subject}: {error}"),
            }
        }
    }
}

/// Number and the number before it, of each.
pub(crate) fn chain(updates: &[Incoming]) -> Vec<(u64, Option<u64>)> {
    updates
        .iter()
        .map(|update| (update.seq.get(), update.previous.map(Seq::get)))
        .collect()
}

/// Publishes messages that no client library would: their subjects, headers and payloads as bytes.
pub(crate) async fn publish_bytes(url: &str, messages: &[(&[u8], &[u8], &[u8])]) {
    let mut sends = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    for (subject, headers, payload) in messages {
        let (verb, sizes) = match headers.len() {
            0 => (&b"PUB "[..], payload.len().to_string()),
            length => (
                &b"HPUB "[..],
                format!("{length} {}", length + payload.len()),
            ),
        };
        sends.extend([verb, subject, b" ", sizes.as_bytes(), b"\r\n"].concat());
        sends.extend([headers, payload, &b"\r\n"[..]].concat());
    }
    sends.extend(b"PING\r\n");
    let mut raw = Raw::connect(url.trim_start_matches("nats://"))
        .await
        .unwrap();
    raw.send(sends).await.unwrap();
    let said = raw.read_until("PONG", SOON).await;
    assert!(said.contains("PONG") && !said.contains("-ERR"), "{said}");
}

/// Messages with bytes that are no text, each of which a server takes.
pub(crate) const NO_TEXT: [(&[u8], &[u8], &[u8]); 6] = [
    (b"progress.caf\xe9.j.state", b"", b"{}"),
    (b"progress.u.j\xff.state", b"", b"{}"),
    ("progress.u.a\u{2003}b.state".as_bytes(), b"", b"{}"),
    (
        b"progress.u.j.state",
        b"NATS/1.0\r\nX-Name: caf\xe9\r\n\r\n",
        b"1",
    ),
    (
        b"progress.u.j.state",
        b"NATS/1.0\r\nno colon\r\nbad name: x\r\n\r\n",
        b"2",
    ),
    (b"progress.u.j.state", b"NATS/1.0 caf\xe9\r\n\r\n", b"3"),
];
