//! Three servers, three replicas, a relay on each: replicas that are behind, a leader that is killed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use relay_bus::jetstream::JetStreamSettings;
use relay_bus::seam::Store;
use relay_core::id::JobName;
use relay_core::position::Seq;
use relay_testkit::nats::NatsCluster;
use relay_testkit::wait;

use crate::support::{Mode, SOON, Worker, connection, job, settings};

async fn modes(cluster: &NatsCluster) -> Vec<Mode> {
    let replicated = JetStreamSettings {
        replicas: 3,
        ..settings()
    };
    let modes: Vec<Mode> = cluster
        .urls()
        .iter()
        .map(|url| Mode::start(replicated.clone(), &connection(url)))
        .collect();
    for mode in &modes {
        mode.heard.live(1).await;
    }
    modes
}

/// Joins at any moment, as the hub does it: what was seen of the job before asking is in the answer, and
/// what comes live after what was seen completes it.
#[tokio::test]
async fn a_join_at_any_moment_on_any_node_misses_nothing() {
    const JOINS: usize = 240;
    const UPDATES: u32 = 30;
    let cluster = NatsCluster::start(3).await.unwrap();
    let modes = modes(&cluster).await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut work = tokio::task::JoinSet::new();
    for (node, url) in cluster.urls().into_iter().enumerate() {
        let enough = enough.clone();
        work.spawn(async move {
            let worker = Worker::at(&url).await;
            let mut last = Seq::ZERO;
            for job in 0_u32.. {
                for n in 0..UPDATES {
                    last = worker
                        .publish(&format!("progress.u.j{node}-{job}.state"), &n.to_string())
                        .await;
                }
                if enough.load(Ordering::Relaxed) {
                    break;
                }
            }
            last
        });
    }
    let mut joins = Vec::new();
    while joins.len() < JOINS {
        let joining = modes.iter().cycle().take(12).filter_map(|mode| {
            // The last job seen is the one under way.
            let last = mode.heard.updates().pop()?;
            let (job, high) = (last.job, last.seq);
            Some(async move {
                let loaded = mode
                    .store
                    .load_job(job.clone(), high)
                    .await
                    .unwrap()
                    .updates;
                (mode, job, high, loaded)
            })
        });
        joins.extend(futures_util::future::join_all(joining).await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    enough.store(true, Ordering::Relaxed);
    let total = work.join_all().await.into_iter().max().unwrap();
    for mode in &modes {
        let what = "all updates";
        mode.heard
            .until(what, |heard| {
                heard.updates().last().is_some_and(|last| last.seq == total)
            })
            .await;
    }
    let mut all: HashMap<JobName, Vec<Seq>> = HashMap::new();
    for update in modes[0].heard.updates() {
        all.entry(update.job).or_default().push(update.seq);
    }
    for (mode, job, high, loaded) in &joins {
        let mut numbers: Vec<Seq> = loaded.iter().map(|update| update.seq).collect();
        let covered = numbers.last().copied().unwrap_or_default().max(*high);
        let later = mode
            .heard
            .updates()
            .into_iter()
            .filter(|update| &update.job == job && update.seq > covered);
        numbers.extend(later.map(|update| update.seq));
        assert_eq!(&numbers, &all[job], "joined {job} having seen {high}");
    }
}

#[tokio::test]
async fn a_replica_that_is_behind_does_not_answer_for_the_stream() {
    let mut cluster = NatsCluster::start(3).await.unwrap();
    let modes = modes(&cluster).await;
    let leader = leader(&cluster).await;
    let follower = (leader + 1) % 3;
    let mode = &modes[leader];
    let worker = Worker::at(&cluster.urls()[leader]).await;
    worker.publish("progress.u.j.state", "before").await;
    for round in 0..3_u64 {
        // It keeps its place among those that answer, and misses what follows.
        cluster.servers()[follower].signal("STOP").unwrap();
        let mut last = Seq::ZERO;
        for n in 0..20 {
            last = worker.publish("progress.u.j.state", &n.to_string()).await;
        }
        worker
            .publish(&format!("progress.u.new{round}.state"), "{}")
            .await;
        let asked: Vec<_> = (0..12)
            .map(|_| mode.store.load_job(job("j"), last))
            .chain([mode
                .store
                .load_job(job(&format!("new{round}")), last.next())])
            .collect();
        let loading = futures_util::future::try_join_all(asked);
        let wake = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            cluster.servers()[follower].signal("CONT").unwrap();
        };
        let (loaded, ()) = tokio::join!(loading, wake);
        let mut loaded = loaded.unwrap();
        let new = loaded.pop().unwrap();
        assert_eq!(
            new.updates.last().map(|update| update.seq),
            Some(last.next())
        );
        for history in loaded {
            let history = history.updates;
            assert_eq!(history.last().map(|update| update.seq), Some(last));
            // Sixty-four are kept; none of them is left out.
            assert_eq!(
                history.len(),
                usize::try_from(1 + 20 * (round + 1)).unwrap()
            );
        }
    }
}

#[tokio::test]
async fn a_killed_leader_is_followed_by_another_and_nothing_stored_is_lost() {
    let mut cluster = NatsCluster::start(3).await.unwrap();
    let modes = modes(&cluster).await;
    let epoch = modes[0].heard.live(1).await.epoch;
    let leader = leader(&cluster).await;
    let survivor = (leader + 1) % 3;
    let worker = Worker::at(&cluster.urls()[survivor]).await;
    worker.publish("progress.u.j.state", "1").await;
    modes[survivor].heard.updates_until(1).await;
    cluster.servers()[leader].kill();
    // Refused until there is a new leader; workers try again with the same id.
    let stored = wait::until_some(SOON, "a new leader", async || {
        let headers = crate::support::headers(&[("Nats-Msg-Id", "j-2")]);
        let sent = worker
            .jetstream
            .publish_with_headers("progress.u.j.state", headers, "2".into());
        let acknowledged = tokio::time::timeout(Duration::from_millis(500), sent.await.ok()?).await;
        acknowledged.ok()?.ok().map(|ack| ack.sequence)
    })
    .await
    .unwrap();
    assert_eq!(stored, 2);
    // The node whose server was killed has gone to another one.
    for mode in &modes {
        mode.heard
            .until("the update after", |heard| {
                heard
                    .lives()
                    .last()
                    .is_some_and(|live| live.seq >= Seq::new(2))
                    || heard
                        .updates()
                        .iter()
                        .any(|update| update.seq == Seq::new(2))
            })
            .await;
        assert_eq!(
            mode.store
                .load_job(job("j"), Seq::new(2))
                .await
                .unwrap()
                .updates
                .len(),
            2
        );
        assert!(mode.heard.lives().iter().all(|live| live.epoch == epoch));
    }
}

async fn leader(cluster: &NatsCluster) -> usize {
    wait::until_some(SOON, "the stream's leader", async || {
        cluster.leader_of("PROGRESS").await
    })
    .await
    .unwrap()
}
