//! The whole way, as it is in use: plain Python workers, a real NATS server, the real relay, and watchers
//! on all four transports that come and go at random and carry their cursors from one to another.
//!
//! At the end every watcher must hold the last state of every job it watched, every ending and every
//! milestone, in order, none twice. A failure prints its seed; `RELAY_JOURNEY_SEED` runs it again.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test tells its seed"
)]

mod cursors;
mod fleet;
mod history;
mod walker;

use std::collections::BTreeSet;
use std::time::Duration;

use fleet::{Fleet, Plan};
use relay_testkit::client::{Frame, Transport, Watch, Watcher};
use relay_testkit::http;
use relay_testkit::journey::Published;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::wait;
use tokio::sync::watch;
use tokio::task::JoinSet;
use walker::{Interest, Walked, Walker};

/// How long the workers may take; a test is ended by its runner after 30 seconds.
const WORKERS_WITHIN: Duration = Duration::from_secs(18);
const SOON: Duration = Duration::from_secs(10);

fn seed() -> u64 {
    let seed = std::env::var("RELAY_JOURNEY_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("RELAY_JOURNEY_SEED={seed}");
    seed
}

fn settings(nats: &NatsServer) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_relay"))
        .jetstream(&nats.url())
        .set("limits.connections_per_address", 1000)
        // a restart in the middle of a test is quick, and politer clients would wait longer
        .set("drain.spread", "500ms")
        .set("drain.deadline", "1s")
}

/// Walkers of every kind: of one job, of a few, of more than a cursor lists one by one, of an owner.
fn walkers(plan: &Plan, count: usize) -> Vec<Walker> {
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut jobs: Vec<String> = (0..plan.jobs).map(|index| plan.job(index)).collect();
    (0..count)
        .map(|index| {
            random.shuffle(&mut jobs);
            let interest = match index % 4 {
                0 => Interest::Jobs(jobs[..1].to_vec()),
                1 => Interest::Jobs(jobs[..5].to_vec()),
                2 => Interest::Jobs(jobs[..12].to_vec()),
                _ => Interest::Owner(plan.owner(index / 4)),
            };
            Walker::new(format!("walker {index}"), interest, random.u64(..))
        })
        .collect()
}

/// Walkers on their way, to be told when the workers are done.
struct Walk {
    tasks: JoinSet<Walked>,
    /// Carries what was published to the walkers once it is known.
    done: watch::Sender<Option<Published>>,
}

impl Walk {
    fn start(walkers: Vec<Walker>, relays: &[&RelayServer]) -> Self {
        let (done, waiting) = watch::channel(None);
        let mut tasks = JoinSet::new();
        for walker in walkers {
            let addresses = relays.iter().map(|relay| relay.address()).collect();
            tasks.spawn(walker.walk(addresses, waiting.clone()));
        }
        Self { tasks, done }
    }

    async fn end(mut self, published: Published) -> Vec<Walked> {
        self.done.send(Some(published)).unwrap();
        let mut walked = Vec::new();
        while let Some(one) = self.tasks.join_next().await {
            walked.push(one.unwrap());
        }
        walked
    }
}

/// What is left of a complaint without its names and numbers.
fn kind_of(head: &str) -> String {
    let words = head
        .split(' ')
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// Everybody must be content; gaps are allowed only where a test says so.
fn judge(walked: &[Walked], published: &Published, relay: &RelayServer) {
    let breaches: Vec<&String> = walked.iter().flat_map(|one| &one.breaches).collect();
    let sum = |count: fn(&Walked) -> usize| walked.iter().map(count).sum::<usize>();
    eprintln!(
        "{} updates of {} jobs, {} walkers, {} legs, {} milestones seen, {} gaps, {} snapshots in place of a recovery",
        published.len(),
        published.0.len(),
        walked.len(),
        sum(|one| one.legs),
        sum(|one| one.milestones),
        sum(|one| one.gaps),
        sum(|one| one.unrecovered),
    );
    if !breaches.is_empty() {
        let heads: Vec<&str> = breaches
            .iter()
            .filter_map(|each| each.lines().next())
            .collect();
        // one whole story of each kind
        let mut kinds = BTreeSet::new();
        let told: Vec<&str> = breaches
            .iter()
            .filter(|each| kinds.insert(each.lines().next().map(kind_of)))
            .map(|each| each.as_str())
            .collect();
        let log = relay.logs();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        panic!(
            "{} broken words:\n{}\none of each kind:\n{}\nthe relay's last words, newest first:\n{}",
            breaches.len(),
            heads[..heads.len().min(30)].join("\n"),
            told.join("\n"),
            tail.join("\n"),
        );
    }
    assert_eq!(
        sum(|one| one.gaps),
        0,
        "gaps were told, though nothing was lost"
    );
    assert!(
        sum(|one| one.milestones) > 0,
        "no milestone was seen: the test tests nothing"
    );
}

#[tokio::test]
async fn watchers_that_come_and_go_on_all_transports_miss_nothing() {
    let plan = Plan {
        seed: seed(),
        jobs: 48,
        owners: 4,
        steps: 50,
        pause: 0.1,
        spread: 3.0,
    };
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let relay = RelayServer::start(settings(&nats)).await.unwrap();
    let walk = Walk::start(walkers(&plan, 24), &[&relay]);
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    assert!(
        published.len() > 2000,
        "{} updates are too few",
        published.len()
    );
    let walked = walk.end(published.clone()).await;
    judge(&walked, &published, &relay);
    assert_eq!(walked.iter().map(|one| one.unrecovered).sum::<usize>(), 0);
}

/// A fleet small enough to leave time for what happens to it.
fn short_plan() -> Plan {
    Plan {
        seed: seed(),
        jobs: 20,
        owners: 4,
        steps: 40,
        pause: 0.1,
        spread: 1.0,
    }
}

async fn half_way(fleet: &Fleet, plan: &Plan) {
    let half = plan.jobs * plan.steps / 2;
    wait::until(SOON, "half of the updates", || fleet.acknowledged() >= half)
        .await
        .unwrap();
}

#[tokio::test]
async fn nats_killed_in_the_middle_costs_no_watcher_anything() {
    let plan = short_plan();
    let mut nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let relay = RelayServer::start(settings(&nats)).await.unwrap();
    let walk = Walk::start(walkers(&plan, 12), &[&relay]);
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    half_way(&fleet, &plan).await;
    nats.kill();
    // long enough for everybody to notice, and for watchers to join meanwhile
    tokio::time::sleep(Duration::from_secs(1)).await;
    nats.restart().await.unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    let walked = walk.end(published.clone()).await;
    judge(&walked, &published, &relay);
}

/// One node hears what the other does not: who comes from the first to the second has been told more than
/// the second knows, until it is awake and has compared.
#[tokio::test]
async fn nodes_that_are_apart_in_time_repeat_nothing_and_lose_nothing() {
    let plan = short_plan();
    let mut nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let first = RelayServer::start(settings(&nats)).await.unwrap();
    let mut second = RelayServer::start(settings(&nats)).await.unwrap();
    let walkers = walkers(&plan, 12);
    let walkers = walkers.into_iter().map(Walker::streams_only).collect();
    let walk = Walk::start(walkers, &[&first, &second]);
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    half_way(&fleet, &plan).await;
    nats.kill();
    second.signal("STOP").unwrap();
    nats.restart().await.unwrap();
    let more = plan.jobs * plan.steps * 2 / 3;
    wait::until(SOON, "more updates", || fleet.acknowledged() >= more)
        .await
        .unwrap();
    second.signal("CONT").unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    let walked = walk.end(published.clone()).await;
    judge(&walked, &published, &first);
}

/// The relay sleeps while NATS restarts and the jobs go on to their ends: it hears none of that, and no
/// later message will tell it so. Who has been connected all along must get it all the same, in order.
#[tokio::test]
async fn what_the_relay_could_not_hear_comes_in_order_on_the_connections_there_are() {
    let plan = short_plan();
    let mut nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut relay = RelayServer::start(settings(&nats)).await.unwrap();
    let (done, waiting) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for (index, walker) in walkers(&plan, 12).into_iter().enumerate() {
        let transport = Transport::ALL[index % 3];
        tasks.spawn(walker.stay(relay.address(), transport, waiting.clone()));
    }
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    half_way(&fleet, &plan).await;
    relay.signal("STOP").unwrap();
    nats.kill();
    nats.restart().await.unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    relay.signal("CONT").unwrap();
    let walked = Walk { tasks, done }.end(published.clone()).await;
    judge(&walked, &published, &relay);
}

/// As above, for those who come back with a cursor while NATS is away, and stay; and the jobs go on, so that
/// what is heard again and what was not come together.
#[tokio::test]
async fn who_comes_back_while_nats_is_away_gets_what_the_relay_could_not_hear() {
    let plan = short_plan();
    let mut nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut relay = RelayServer::start(settings(&nats)).await.unwrap();
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    let mut early = JoinSet::new();
    for walker in walkers(&plan, 12) {
        early.spawn(walker.visit(relay.address(), Transport::Sse, Duration::from_millis(1500)));
    }
    let visited = early.join_all().await;
    half_way(&fleet, &plan).await;
    nats.kill();
    wait::until_some(SOON, "the relay to notice", async || {
        let up = relay.metrics().await.ok()?.sum("relay_bus_up", "");
        (up < 1.0).then_some(())
    })
    .await
    .unwrap();
    let (done, waiting) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for (index, walker) in visited.into_iter().enumerate() {
        let transport = Transport::ALL[index % 2];
        tasks.spawn(walker.stay(relay.address(), transport, waiting.clone()));
    }
    wait::until_some(SOON, "everybody to be back", async || {
        let open = relay.metrics().await.ok()?.sum("relay_connections", "");
        (open >= 12.0).then_some(())
    })
    .await
    .unwrap();
    relay.signal("STOP").unwrap();
    nats.restart().await.unwrap();
    let most = plan.jobs * plan.steps * 3 / 4;
    wait::until(SOON, "most updates", || fleet.acknowledged() >= most)
        .await
        .unwrap();
    relay.signal("CONT").unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    let walked = Walk { tasks, done }.end(published.clone()).await;
    judge(&walked, &published, &relay);
}

#[tokio::test]
async fn a_relay_killed_in_the_middle_costs_no_watcher_anything() {
    let plan = short_plan();
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut relay = RelayServer::start(settings(&nats)).await.unwrap();
    let walkers = walkers(&plan, 12)
        .into_iter()
        .map(Walker::relay_may_go)
        .collect();
    let walk = Walk::start(walkers, &[&relay]);
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    half_way(&fleet, &plan).await;
    relay.kill();
    relay.restart().await.unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    let walked = walk.end(published.clone()).await;
    judge(&walked, &published, &relay);
}

#[tokio::test]
async fn a_relay_that_drains_in_the_middle_costs_no_watcher_anything() {
    let plan = short_plan();
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let mut relay = RelayServer::start(settings(&nats)).await.unwrap();
    let walkers = walkers(&plan, 12)
        .into_iter()
        .map(Walker::relay_may_go)
        .collect();
    let walk = Walk::start(walkers, &[&relay]);
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    half_way(&fleet, &plan).await;
    let status = relay.terminate(SOON).await.unwrap();
    assert!(status.success(), "{status}\n{}", relay.logs());
    relay.restart().await.unwrap();
    let published = fleet.finish(WORKERS_WITHIN).await.unwrap();
    let walked = walk.end(published.clone()).await;
    judge(&walked, &published, &relay);
}

#[tokio::test]
async fn a_relay_that_starts_before_nats_serves_as_soon_as_nats_is_there() {
    let mut nats = NatsServer::absent(&Options::jetstream()).unwrap();
    let mut relay = RelayServer::start(settings(&nats).only_live())
        .await
        .unwrap();
    for path in ["/readyz", "/healthz"] {
        let ready = http::get(&relay.admin_address(), path).await.unwrap();
        assert_eq!(ready.status.as_u16(), 503, "{path}: {}", ready.text());
    }

    nats.restart().await.unwrap();
    relay.ready().await.unwrap();
    let mut watchers = Vec::new();
    for transport in Transport::ALL {
        let watch = Watch::topics(["job:o0-j0"]);
        watchers.push(
            Watcher::connect(transport, &relay.address(), watch)
                .await
                .unwrap(),
        );
    }
    let plan = Plan {
        seed: seed(),
        jobs: 1,
        owners: 1,
        steps: 3,
        pause: 0.01,
        spread: 0.0,
    };
    let mut fleet = Fleet::start(&plan, &[nats.url()]).unwrap();
    for watcher in &mut watchers {
        watcher
            .until(SOON, "the ending", Frame::is_ending)
            .await
            .unwrap();
    }
    fleet.finish(SOON).await.unwrap();
}
