//! Clients of every kind that do anything at any moment: whatever they do, it is their own connection alone that
//! ends by it.
//!
//! Each step comes from one seed, which is shown with a failure. `RELAY_CLIENTS_SEED` plays one again, and
//! `RELAY_CLIENTS_STEPS` makes the game longer; for hours and by the thousand, `relay-loadtest chaos` plays it.
//!
//! Invariant: nobody here but the neighbour reads because it has to.

use std::time::Duration;

use anyhow::{Context as _, Result};
use relay_testkit::random::{self, Cast, Game, unsettled};
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;

use crate::SOON;
use crate::identity::{of, token, with_tokens};
use crate::neighbour::Neighbour;

const STEPS: usize = 600;
/// Clients at a time.
const CLIENTS: usize = 16;
/// Endings that are there before the first client comes: more than replies may wait for one that does not read.
const ENDINGS: usize = 100;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn cast(relay: &RelayServer) -> Cast {
    let (greedy, mallory) = (of("greedy").topics(&["group:g"]), of("mallory"));
    let expired = mallory.clone().expired_since(Duration::from_secs(60));
    Cast {
        address: relay.address(),
        name: String::new(),
        clients: CLIENTS,
        tokens: Some([token(&greedy), token(&mallory), token(&expired)]),
        publisher: Some(token(&of("publisher").publish(&["greedy", "mallory"]))),
    }
}

async fn play(relay: &RelayServer, seed: u64, steps: usize) -> Result<()> {
    let mine = token(&of("neighbour").publish(&["neighbour"]));
    let mut neighbour = Neighbour::with_token(relay, Some(mine)).await?;
    let mut game = Game::new(seed, cast(relay)).await?;
    game.end_jobs(ENDINGS).await?;
    for step in 0..steps {
        let stepped = game.step().await;
        stepped.with_context(|| format!("step {step}"))?;
        if step % 50 == 0 {
            let undisturbed = neighbour.is_undisturbed(relay).await;
            undisturbed.with_context(|| format!("the neighbour, after step {step}"))?;
        }
    }
    game.leave();
    neighbour.is_undisturbed(relay).await?;
    let mut differs = Vec::new();
    let settled = wait::until_some(SOON, "all to be forgotten", async || {
        neighbour.is_undisturbed(relay).await.ok()?;
        differs = unsettled(&relay.metrics().await.ok()?, 1.0);
        differs.is_empty().then_some(())
    })
    .await;
    settled.with_context(|| format!("{differs:?}"))?;
    let bugs = r#"reason="internal_error""#;
    let bugs = relay
        .metrics()
        .await?
        .sum("relay_connections_closed_total", bugs);
    anyhow::ensure!(bugs == 0.0, "{bugs} connections were closed for a bug");
    anyhow::ensure!(!relay.logs().contains("panicked"), "the relay panicked");
    Ok(())
}

#[tokio::test]
async fn clients_that_do_anything_at_any_moment_harm_nobody_else() {
    let seed = number("RELAY_CLIENTS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = number("RELAY_CLIENTS_STEPS").map_or(STEPS, |steps| steps as usize);
    let settings = random::settings(with_tokens().set("http.shards", 1));
    let relay = RelayServer::start(settings).await.unwrap();
    if let Err(error) = play(&relay, seed, steps).await {
        panic!("RELAY_CLIENTS_SEED={seed}: {error:#}\n{}", relay.logs());
    }
}
