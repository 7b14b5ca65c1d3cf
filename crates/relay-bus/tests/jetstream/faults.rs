//! Servers that go away and streams that are made anew.

use std::path::PathBuf;

use async_nats::jetstream::stream;
use relay_bus::seam::{Store, StoreError, What};
use relay_core::position::{Epoch, Position, Seq};
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, Said, Worker, chain, job, outgoing};

#[tokio::test]
async fn a_relay_starts_before_nats_and_reads_when_it_comes() {
    let mut server = NatsServer::absent(&Options::jetstream()).unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.lost_with("cannot be reached").await;
    let away = mode
        .store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await;
    assert!(matches!(away, Err(StoreError::Unreachable(_))), "{away:?}");
    assert!(mode.heard.lives().is_empty());
    server.restart().await.unwrap();
    mode.heard.live(1).await;
    let worker = Worker::at(&server.url()).await;
    worker.publish("progress.u.j.state", "{}").await;
    assert_eq!(chain(&mode.heard.updates_until(1).await), [(1, Some(0))]);
}

#[tokio::test]
async fn a_server_that_is_killed_is_lost_and_the_same_epoch_goes_on() {
    let mut server = NatsServer::start(Options::jetstream()).await.unwrap();
    let (mode, worker, epoch) = begin(&server, &server.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    mode.heard.updates_until(1).await;
    server.kill();
    mode.heard.lost_with("NATS").await;
    let away = mode.store.load_job(job("j"), Seq::new(1)).await;
    assert!(matches!(away, Err(StoreError::Unreachable(_))), "{away:?}");
    server.restart().await.unwrap();
    let again = mode.heard.live(2).await;
    assert_eq!(again, Position::new(epoch, Seq::new(1)));
    assert_eq!(
        mode.store
            .load_job(job("j"), Seq::new(1))
            .await
            .unwrap()
            .updates
            .len(),
        1
    );
    let worker = Worker::at(&server.url()).await;
    worker.publish("progress.u.j.state", "2").await;
    assert_eq!(
        chain(&mode.heard.updates_until(2).await),
        [(1, Some(0)), (2, Some(1))]
    );
}

#[tokio::test]
async fn what_was_published_while_the_relay_was_away_is_below_from_seq() {
    // Two servers of one cluster would do; one that is stopped for the relay alone is simpler: the
    // relay's connection goes through a door that can be shut.
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let door = Door::before(&server).await;
    let (mode, worker, epoch) = begin(&server, &door.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    mode.heard.updates_until(1).await;
    door.shut();
    mode.heard.lost_with("NATS").await;
    worker.publish("progress.u.j.state", "2").await;
    worker.publish("progress.u.j.state", "3").await;
    door.open();
    assert_eq!(mode.heard.live(2).await, Position::new(epoch, Seq::new(3)));
    worker.publish("progress.u.j.state", "4").await;
    assert_eq!(
        chain(&mode.heard.updates_until(2).await),
        [(1, Some(0)), (4, Some(3))]
    );
}

#[tokio::test]
async fn a_stream_made_anew_while_connected_is_a_new_epoch() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let (mode, worker, epoch) = begin(&server, &server.url()).await;
    for _ in 0..5 {
        worker.publish("progress.u.j.state", "{}").await;
    }
    mode.heard.updates_until(5).await;
    make_anew(&worker).await;
    // The number that goes backwards is seen at once, before the next check.
    worker.publish("progress.u.j.state", "{}").await;
    let Position {
        epoch: again,
        seq: from_seq,
    } = mode.heard.live(2).await;
    assert_ne!(again, epoch);
    assert_eq!(from_seq, Seq::new(1));
    worker.publish("progress.u.j.state", "{}").await;
    mode.heard
        .until("the new stream's second", |heard| {
            heard.updates().len() >= 6
        })
        .await;
    let after: Vec<Said> = mode
        .heard
        .said()
        .into_iter()
        .skip_while(|said| !matches!(said, Said::Live(live) if live.epoch == again))
        .collect();
    let numbers: Vec<u64> = after
        .iter()
        .filter_map(|said| match said {
            Said::Update(update) => Some(update.seq.get()),
            Said::Live(..) | Said::Lost(_) | Said::Dropped(_) | Said::Refused(_) => None,
        })
        .collect();
    assert_eq!(numbers, [2]);
    let old = mode
        .heard
        .updates()
        .iter()
        .filter(|update| update.seq > Seq::new(2))
        .count();
    assert_eq!(old, 3);
}

#[tokio::test]
async fn a_stream_made_anew_while_nobody_publishes_is_seen_by_the_check() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let (mode, worker, epoch) = begin(&server, &server.url()).await;
    make_anew(&worker).await;
    let Position {
        epoch: again,
        seq: from_seq,
    } = mode.heard.live(2).await;
    assert_ne!(again, epoch);
    assert_eq!(from_seq, Seq::new(0));
}

#[tokio::test]
async fn a_stream_made_anew_while_the_relay_is_away_is_a_new_epoch_and_nothing_old_is_read() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let door = Door::before(&server).await;
    let (mode, worker, epoch) = begin(&server, &door.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    mode.heard.updates_until(1).await;
    door.shut();
    mode.heard.lost_with("NATS").await;
    make_anew(&worker).await;
    worker.publish("progress.u.k.state", "1").await;
    worker.publish("progress.u.k.state", "2").await;
    door.open();
    let Position {
        epoch: again,
        seq: from_seq,
    } = mode.heard.live(2).await;
    assert_ne!(again, epoch);
    assert_eq!(from_seq, Seq::new(2));
}

#[tokio::test]
async fn a_deleted_stream_is_made_again() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let (mode, worker, epoch) = begin(&server, &server.url()).await;
    worker.jetstream.delete_stream("PROGRESS").await.unwrap();
    let again = mode.heard.live(2).await.epoch;
    assert_ne!(again, epoch);
}

#[tokio::test]
async fn a_message_that_is_stored_and_never_republished_is_fetched() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let (mode, worker, _) = begin(&server, &server.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    mode.heard.updates_until(1).await;
    // A leader that ends between storing and republishing does this; here the republishing is off.
    let config = silence(&worker).await;
    worker.publish("progress.u.j.state", "2").await;
    worker.publish("progress.u.lost.state", "3").await;
    worker.jetstream.update_stream(config).await.unwrap();
    // Nothing follows on its subject; the leader's last number shows it.
    let updates = mode.heard.updates_until(3).await;
    assert_eq!(
        (updates[2].seq.get(), updates[2].job.id.as_str()),
        (3, "lost")
    );
    // The hub is told of a hole before each, so it loads what it does not have.
    assert_eq!(chain(&updates), [(1, Some(0)), (2, Some(1)), (3, Some(2))]);
    worker.publish("progress.u.j.state", "4").await;
    assert_eq!(mode.heard.updates_until(4).await[3].seq, Seq::new(4));
    assert_eq!(mode.heard.lives().len(), 1);
}

#[tokio::test]
async fn many_messages_that_never_came_by_are_compared_as_a_whole() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let (mode, worker, epoch) = begin(&server, &server.url()).await;
    let config = silence(&worker).await;
    for n in 0..400 {
        worker
            .client
            .publish(format!("progress.u.j{n}.state"), "{}".into())
            .await
            .unwrap();
    }
    worker.publish("progress.u.j.state", "{}").await;
    worker.jetstream.update_stream(config).await.unwrap();
    worker.publish("progress.u.j.state", "{}").await;
    assert_eq!(
        mode.heard.live(2).await,
        Position::new(epoch, Seq::new(402))
    );
}

#[tokio::test]
async fn a_stream_that_lost_its_end_is_a_new_epoch() {
    let disk = Disk::new();
    let mut server = disk.server().await;
    let (mode, worker, epoch) = begin(&server, &server.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    // or it would be among what was missed, and no update
    mode.heard.updates_until(1).await;
    server.kill();
    disk.keep();
    server.restart().await.unwrap();
    mode.heard.live(2).await;
    let worker = Worker::at(&server.url()).await;
    for _ in 0..3 {
        worker
            .publish("progress.u.j.state", "lost in the power cut")
            .await;
    }
    mode.heard.updates_until(4).await;
    server.kill();
    disk.go_back();
    server.restart().await.unwrap();
    let Position {
        epoch: again,
        seq: from_seq,
    } = mode.heard.live(3).await;
    assert_ne!(again, epoch);
    assert_eq!(from_seq, Seq::new(1));
}

#[tokio::test]
async fn a_stream_that_lost_its_end_and_gives_the_numbers_out_again_is_a_new_epoch() {
    let disk = Disk::new();
    let mut server = disk.server().await;
    let door = Door::before(&server).await;
    let (mode, worker, epoch) = begin(&server, &door.url()).await;
    worker.publish("progress.u.j.state", "1").await;
    mode.heard.updates_until(1).await;
    door.shut();
    server.kill();
    disk.keep();
    server.restart().await.unwrap();
    door.open();
    let same = mode.heard.live(2).await.epoch;
    assert_eq!(same, epoch);
    let worker = Worker::at(&server.url()).await;
    for _ in 0..3 {
        worker.publish("progress.u.j.state", "lost").await;
    }
    mode.heard.updates_until(4).await;
    door.shut();
    server.kill();
    disk.go_back();
    server.restart().await.unwrap();
    let worker = Worker::at(&server.url()).await;
    for _ in 0..5 {
        worker.publish("progress.u.j.state", "another").await;
    }
    door.open();
    let Position {
        epoch: again,
        seq: from_seq,
    } = mode.heard.live(3).await;
    assert_ne!(again, epoch);
    assert_eq!(from_seq, Seq::new(6));
}

/// A reader that went live at `url`, a worker at the server itself, and the epoch.
async fn begin(server: &NatsServer, url: &str) -> (Mode, Worker, Epoch) {
    let mode = Mode::at(url);
    let epoch = mode.heard.live(1).await.epoch;
    (mode, Worker::at(&server.url()).await, epoch)
}

async fn config(worker: &Worker) -> stream::Config {
    let stream = worker.jetstream.get_stream("PROGRESS").await.unwrap();
    stream.cached_info().config.clone()
}

/// Deletes the stream and creates it again as it was.
async fn make_anew(worker: &Worker) {
    let config = config(worker).await;
    worker.jetstream.delete_stream("PROGRESS").await.unwrap();
    worker.jetstream.create_stream(config).await.unwrap();
}

/// Stops the republishing; to update the stream with what this returns starts it again.
async fn silence(worker: &Worker) -> stream::Config {
    let config = config(worker).await;
    let silent = stream::Config {
        republish: None,
        ..config.clone()
    };
    worker.jetstream.update_stream(silent).await.unwrap();
    config
}

/// Where a server has its stream, and a copy of it from before a power cut.
#[derive(Debug)]
struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn kept(&self) -> PathBuf {
        self.directory.path().join("kept")
    }

    async fn server(&self) -> NatsServer {
        let own_store = format!("jetstream {{ store_dir: {:?} }}", self.store());
        let options = Options::core().config(&own_store);
        NatsServer::start(options).await.unwrap()
    }

    fn keep(&self) {
        copy(&self.store(), &self.kept());
    }

    fn go_back(&self) {
        std::fs::remove_dir_all(self.store()).unwrap();
        copy(&self.kept(), &self.store());
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A TCP door before a server: shut, it cuts those who are through and lets nobody in.
#[derive(Debug)]
struct Door {
    address: std::net::SocketAddr,
    is_open: tokio::sync::watch::Sender<bool>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Door {
    async fn before(server: &NatsServer) -> Self {
        let inside = server.url().trim_start_matches("nats://").to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_open, opened) = tokio::sync::watch::channel(true);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut through = tokio::task::JoinSet::new();
            loop {
                let (mut outer, _) = listener.accept().await.unwrap();
                if !*opened.borrow() {
                    continue;
                }
                let (inside, mut opened) = (inside.clone(), opened.clone());
                through.spawn(async move {
                    let mut inner = tokio::net::TcpStream::connect(inside).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut outer, &mut inner) => {}
                        _ = opened.wait_for(|is_open| !is_open) => {}
                    }
                });
            }
        });
        Self {
            address,
            is_open,
            _tasks: tasks,
        }
    }

    fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    fn shut(&self) {
        self.is_open.send_replace(false);
    }

    fn open(&self) {
        self.is_open.send_replace(true);
    }
}
