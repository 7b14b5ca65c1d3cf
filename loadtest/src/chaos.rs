//! Clients that do anything at any moment, beside one who must notice nothing: `relay-loadtest chaos`.
//!
//! The clients' moves are those that the relay's own tests play for seconds (`relay_testkit::random`), by the
//! thousand and for as long as anybody likes. Beside them somebody publishes what must be refused. What is looked at
//! is what a user would: the bystander, the process, its log, its metrics, and what the kernel says of its memory
//! and descriptors.
//!
//! Invariant: every way to fail ends in one sentence and the seed.

mod bystander;
mod nonsense;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use relay_testkit::http;
use relay_testkit::random::{self, Cast, Game, unbalanced, unsettled};
use relay_testkit::relay::{Metrics, RelayServer, Settings};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::process::Meter;
use bystander::{Bystander, Seen};
use nonsense::Told;
use watch::Watch;

/// Clients of one game: games are played beside each other, the clients of one take turns.
const PER_GAME: usize = 100;
/// Jobs of each game that have ended before its first client comes.
const ENDED: usize = 20;
/// How long the relay may take to forget those who have gone.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const KEY: &str = "a secret of the chaos that is long enough for HS256";

/// What to play, and to whom.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Prints the seed, then what the bystander saw. Exit codes:
  0 the bystander noticed nothing, the counters add up, memory and descriptors stayed bounded
  1 something was noticed, which is told in one sentence, or the game could not be played

The same seed asks the same in the same order; what a client gets to see is up to the clock.")]
pub(crate) struct ChaosArgs {
    /// Start this relay on free ports, with tokens and dialects, and end it afterwards
    #[arg(long, value_name = "BINARY", required_unless_present = "target")]
    start: Option<PathBuf>,
    /// Play to a relay that runs already at this address (host:port) and wants no tokens
    #[arg(long, value_name = "ADDRESS", conflicts_with = "start")]
    target: Option<String>,
    /// Where the relay at --target has its /metrics (host:port); without it counters are not looked at
    #[arg(long, value_name = "ADDRESS", requires = "target")]
    admin: Option<String>,
    /// The process id of the relay at --target; without it memory and descriptors are not looked at
    #[arg(long, requires = "target")]
    pid: Option<u32>,
    /// NATS (host:port) over which nonsense is published too; a relay that is started reads its stream
    #[arg(long, value_name = "ADDRESS")]
    nats: Option<String>,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// Plays one again
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Clients at a time
    #[arg(long, value_name = "K", default_value_t = 2000)]
    clients: usize,
}

/// The relay that is played to.
struct Subject {
    address: String,
    admin: Option<String>,
    meter: Option<Meter>,
    /// `None` where it was found.
    relay: Option<RelayServer>,
    binary: Option<PathBuf>,
}

/// What games came to.
#[derive(Debug, Clone, Copy, Default)]
struct Played {
    /// Connections opened.
    opened: u64,
    /// Updates answered with 503, and published again.
    put_off: u64,
}

/// Plays, and prints what was seen.
///
/// # Errors
/// With the sentence that says what was noticed.
pub(crate) fn run(args: &ChaosArgs) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    say(&format!(
        "seed {seed}: relay-loadtest chaos --seed {seed} --clients {} --minutes {}",
        args.clients, args.minutes
    ))?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let summary = runtime.block_on(async {
        let subject = Subject::of(args).await?;
        let played = play(args, &subject, seed).await;
        if let (Err(_), Some(relay)) = (&played, &subject.relay) {
            say(&format!(
                "the end of the relay's log:\n{}",
                last(&relay.logs(), 40)
            ))?;
        }
        played.with_context(|| format!("seed {seed}"))
    })?;
    say(&summary)?;
    Ok(true)
}

impl Subject {
    async fn of(args: &ChaosArgs) -> Result<Self> {
        let Some(binary) = &args.start else {
            let address = args.target.clone().context("--start or --target")?;
            return Ok(Self {
                address,
                admin: args.admin.clone(),
                meter: args.pid.map(Meter::of),
                relay: None,
                binary: None,
            });
        };
        let binary = std::fs::canonicalize(binary)
            .with_context(|| format!("--start {}", binary.display()))?;
        // A bystander on a machine under load is not dead.
        let settings = random::settings(Settings::new(&binary))
            .set("delivery.dead_after", "20s")
            .set("auth.mode", "jwt")
            .set("auth.key", KEY)
            .set("auth.leeway", "0s");
        let settings = match &args.nats {
            Some(nats) => settings.jetstream(&format!("nats://{nats}")),
            None => settings,
        };
        let relay = RelayServer::start(settings).await?;
        Ok(Self {
            address: relay.address(),
            admin: Some(relay.admin_address()),
            meter: relay.id().map(Meter::of),
            binary: Some(binary),
            relay: Some(relay),
        })
    }

    /// A token as an operator would make it; `None` where the relay wants none.
    async fn token(&self, arguments: &[&str]) -> Result<Option<String>> {
        let Some(binary) = &self.binary else {
            return Ok(None);
        };
        let made = tokio::process::Command::new(binary)
            .arg("token")
            .args(arguments)
            .env("RELAY__AUTH__KEY", KEY)
            .env("RELAY__AUTH__MODE", "jwt")
            .output()
            .await?;
        if !made.status.success() {
            bail!("relay token: {}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(Some(String::from_utf8(made.stdout)?.trim().to_owned()))
    }

    /// Who plays one game. A stream that another run has filled knows other names.
    async fn cast(&self, seed: u64, number: usize, clients: usize) -> Result<Cast> {
        let name = format!("{seed}-{number}-");
        let (greedy, mallory) = (format!("greedy{name}"), format!("mallory{name}"));
        let group = format!("group:g{name}");
        let greedy = self.token(&["--sub", &greedy, "--topic", &group]).await?;
        let expired = self.token(&["--sub", &mallory, "--ttl", "1s"]).await?;
        let mallory = self.token(&["--sub", &mallory, "--ttl", "24h"]).await?;
        let tokens = match (greedy, mallory, expired) {
            (Some(greedy), Some(mallory), Some(expired)) => Some([greedy, mallory, expired]),
            _ => None,
        };
        let publisher = ["--sub", "publisher", "--publish", "*", "--ttl", "24h"];
        Ok(Cast {
            address: self.address.clone(),
            name,
            clients,
            tokens,
            publisher: self.token(&publisher).await?,
        })
    }

    async fn metrics(&self) -> Result<Option<Metrics>> {
        let Some(admin) = &self.admin else {
            return Ok(None);
        };
        let answer = http::get(admin, "/metrics")
            .await
            .context("the relay does not show its metrics")?;
        Ok(Some(Metrics::parse(&answer.text())))
    }
}

async fn play(args: &ChaosArgs, subject: &Subject, seed: u64) -> Result<String> {
    let mut watch = Watch::new(subject)?;
    let games = args.clients.div_ceil(PER_GAME).max(1);
    let mut casts = Vec::new();
    for number in 0..games {
        casts.push(
            subject
                .cast(seed, number, args.clients.div_ceil(games))
                .await?,
        );
    }
    let began = Instant::now();
    let length = Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?;
    let until = began + length;
    let publisher = casts.first().and_then(|cast| cast.publisher.clone());
    let token = subject
        .token(&["--sub", bystander::OWNER, "--ttl", "24h"])
        .await?;
    let bystander = Bystander::new(&subject.address, seed, token, publisher.clone()).await?;
    let mut watching = JoinSet::new();
    watching.spawn(bystander.run(until));
    let (finished, mut crowd) = oneshot::channel();
    std::thread::Builder::new()
        .name("crowd".to_owned())
        // Nobody waits for the answer any more when something was noticed.
        .spawn(move || drop(finished.send(games_of(casts, seed, until))))?;
    let mut nonsense = JoinSet::new();
    nonsense.spawn(nonsense::over_http(
        subject.address.clone(),
        seed,
        publisher,
        until,
    ));
    if let Some(nats) = args.nats.clone() {
        nonsense.spawn(nonsense::over_nats(nats, seed, until));
    }
    let (mut games_played, mut refused) = (None, Told::default());
    let mut seen: Option<Seen> = None;
    let mut look = tokio::time::interval(LOOK_EVERY);
    while seen.is_none() || games_played.is_none() || !nonsense.is_empty() {
        tokio::select! {
            Some(watched) = watching.join_next() => seen = Some(watched??),
            played = &mut crowd, if games_played.is_none() => games_played = Some(played??),
            Some(told) = nonsense.join_next() => {
                let told = told??;
                refused.refused += told.refused;
                refused.put_off += told.put_off;
            }
            _ = look.tick() => watch.look(subject).await?,
        }
    }
    let played = games_played.unwrap_or_default();
    let mut seen = seen.context("the bystander has left")?;
    // The bystander's own two connections are gone with it.
    settle(subject).await?;
    watch.look(subject).await?;
    let kept = watch.conclude(subject)?;
    Ok(format!(
        "{games} games of {} clients for {:.0} s: {} connections opened, {} updates refused as they must be, {} put off with 503\n\
         bystander: {seen}\n{kept}",
        args.clients.div_ceil(games),
        began.elapsed().as_secs_f64(),
        played.opened,
        refused.refused,
        played.put_off + refused.put_off,
        seen = seen.summary(),
    ))
}

/// Plays all games beside each other, on a thread of their own: what they cost is not in the bystander's latency.
fn games_of(casts: Vec<Cast>, seed: u64, until: Instant) -> Result<Played> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut players = JoinSet::new();
        for (number, cast) in casts.into_iter().enumerate() {
            players.spawn(game(seed.wrapping_add(number as u64), cast, until));
        }
        let mut all = Played::default();
        while let Some(played) = players.join_next().await {
            let played = played??;
            all.opened += played.opened;
            all.put_off += played.put_off;
        }
        Ok(all)
    })
}

/// Plays one game to its end.
async fn game(seed: u64, cast: Cast, until: Instant) -> Result<Played> {
    let name = cast.name.clone();
    // Each client does something about once a second.
    let pause = Duration::from_secs(1) / u32::try_from(cast.clients.max(1))?;
    let played = async {
        let mut game = Game::new(seed, cast).await?;
        game.end_jobs(ENDED).await?;
        let mut next = Instant::now();
        while Instant::now() < until {
            game.step().await?;
            // One that was held up does not catch up.
            next = (next + pause).max(Instant::now());
            sleep_until(next).await;
        }
        game.leave();
        anyhow::Ok(Played {
            opened: game.opened(),
            put_off: game.put_off(),
        })
    };
    played.await.with_context(|| format!("game {name}"))
}

/// Waits until the relay has forgotten all who have gone.
async fn settle(subject: &Subject) -> Result<()> {
    let until = Instant::now() + SETTLED_WITHIN;
    loop {
        let Some(metrics) = subject.metrics().await? else {
            return Ok(());
        };
        let differs = match subject.relay {
            Some(_) => unsettled(&metrics, 0.0),
            // Others may be there.
            None => unbalanced(&metrics),
        };
        if differs.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!(
                "{SETTLED_WITHIN:?} after everybody has gone, the counters do not add up: {}",
                differs.join("; ")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn last(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn say(text: &str) -> Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
