//! What core NATS carries.

use std::sync::Arc;

use relay_bus::connection::ConnectionSettings;
use relay_bus::nats::{NatsSettings, NatsStore, SetupError, nats};
use relay_bus::seam::{Outgoing, Store, StoreError, What};
use relay_core::job::Finality;
use relay_core::position::{Epoch, Position, Seq};
use relay_testkit::nats::{NatsServer, Options};
use tokio::task::JoinSet;

use crate::support::{Mode, Recorder, Worker, chain, connection, headers, job, name, outgoing};

const EPOCH: Epoch = Epoch::new(77);

/// The two halves of core NATS mode, running.
pub(crate) struct Core {
    pub(crate) store: Arc<NatsStore>,
    pub(crate) heard: Arc<Recorder>,
    _tasks: JoinSet<()>,
}

impl Core {
    pub(crate) fn start(connection: &ConnectionSettings) -> Self {
        let settings = NatsSettings {
            prefix: "progress".into(),
            epoch: EPOCH,
        };
        let (store, reader) = nats(settings, connection).unwrap();
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
        Self::start(&connection(url))
    }
}

#[tokio::test]
async fn updates_are_numbered_as_they_are_read() {
    let server = NatsServer::start(Options::core()).await.unwrap();
    let core = Core::at(&server.url());
    assert_eq!(core.heard.live(1).await, Position::new(EPOCH, Seq::new(0)));
    let worker = Worker::at(&server.url()).await.client;
    worker
        .publish("progress.u.j.state", "1".into())
        .await
        .unwrap();
    worker
        .publish("progress.u.j.not a name", "2".into())
        .await
        .unwrap_err();
    worker.publish("progress.u.j", "2".into()).await.unwrap();
    // Headers of a worker that would rather have JetStream mean nothing here.
    let forged = headers(&[
        ("Nats-Sequence", "99"),
        ("Nats-Rollup", "sub"),
        ("Nats-TTL", "1s"),
    ]);
    worker
        .publish_with_headers("progress.u.j.clip", forged, "3".into())
        .await
        .unwrap();
    let updates = core.heard.updates_until(2).await;
    assert_eq!(chain(&updates), [(1, None), (2, None)]);
    assert_eq!(updates[1].what, What::Milestone(name("clip")));
    assert!(updates[1].stored_at.as_unix_micros() > 1_700_000_000_000_000);
    assert_eq!(core.heard.drops(), ["bad_subject"]);
}

#[tokio::test]
async fn publishing_answers_with_the_number_the_message_got_when_it_came_back() {
    let server = NatsServer::start(Options::core()).await.unwrap();
    let core = Core::at(&server.url());
    core.heard.live(1).await;
    let worker = Worker::at(&server.url()).await.client;
    worker
        .publish("progress.v.k.state", "1".into())
        .await
        .unwrap();
    core.heard.updates_until(1).await;
    let many = (0..50).map(|n| {
        core.store
            .publish(outgoing("u", &format!("j{n}"), What::State, "{}"))
    });
    let numbers = futures_util::future::try_join_all(many).await.unwrap();
    let updates = core.heard.updates();
    for (n, number) in numbers.iter().enumerate() {
        let update = updates.iter().find(|update| update.seq == *number).unwrap();
        assert_eq!(update.job.id, name(&format!("j{n}")));
    }
    let gone = core.store.publish(outgoing("u", "j", What::Gone, "")).await;
    assert!(matches!(gone, Err(StoreError::Refused(_))));
}

#[tokio::test]
async fn there_is_nothing_to_load() {
    let server = NatsServer::start(Options::core()).await.unwrap();
    let core = Core::at(&server.url());
    core.heard.live(1).await;
    core.store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await
        .unwrap();
    assert!(
        core.store
            .load_job(job("j"), Seq::new(0))
            .await
            .unwrap()
            .updates
            .is_empty()
    );
    assert!(
        core.store
            .load_last_states(None, Seq::ZERO, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(core.store.changed(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stream_beside_it_does_no_harm() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let stream = Mode::at(&server.url());
    stream.heard.live(1).await;
    let core = Core::at(&server.url());
    core.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    let ending = Outgoing {
        finality: Finality::Ending,
        ..outgoing("u", "j", What::State, "2")
    };
    assert_eq!(core.store.publish(ending).await.unwrap(), Seq::new(2));
    stream.heard.updates_until(2).await;
    assert_eq!(chain(&core.heard.updates()), [(1, None), (2, None)]);
}

#[tokio::test]
async fn a_lost_connection_is_told_and_numbers_go_on_when_it_is_back() {
    let mut server = NatsServer::start(Options::core()).await.unwrap();
    let core = Core::at(&server.url());
    core.heard.live(1).await;
    core.store
        .publish(outgoing("u", "j", What::State, "1"))
        .await
        .unwrap();
    server.kill();
    core.heard.lost_with("is lost").await;
    let away = core
        .store
        .publish(outgoing("u", "j", What::State, "2"))
        .await;
    assert!(matches!(away, Err(StoreError::Unreachable(_))), "{away:?}");
    server.restart().await.unwrap();
    assert_eq!(core.heard.live(2).await, Position::new(EPOCH, Seq::new(1)));
    assert_eq!(
        core.store
            .publish(outgoing("u", "j", What::State, "3"))
            .await
            .unwrap(),
        Seq::new(2)
    );
}

#[tokio::test]
async fn it_starts_before_nats() {
    let mut server = NatsServer::absent(&Options::core()).unwrap();
    let core = Core::at(&server.url());
    core.heard.lost_with("cannot be reached").await;
    server.restart().await.unwrap();
    core.heard.live(1).await;
    assert_eq!(
        core.store
            .publish(outgoing("u", "j", What::State, "1"))
            .await
            .unwrap(),
        Seq::new(1)
    );
}

#[test]
fn a_prefix_that_is_none_is_refused() {
    let settings = NatsSettings {
        prefix: "a b".into(),
        epoch: EPOCH,
    };
    let refused = nats(settings, &ConnectionSettings::default());
    assert!(matches!(refused, Err(SetupError::Prefix(_))));
}
