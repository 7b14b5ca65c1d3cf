//! Waiting for a condition with a deadline, in place of sleeping and hoping.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

const STEP: Duration = Duration::from_millis(10);

/// Waits until `condition` holds.
///
/// # Errors
/// When it does not hold within the time; the message names `what` was waited for.
pub async fn until(
    within: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + within;
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited {within:?} for {what}");
        }
        sleep(STEP).await;
    }
    Ok(())
}

/// Asks again and again until the answer is `Some`.
///
/// # Errors
/// When there is none within the time; the message names `what` was waited for.
pub async fn until_some<T>(
    within: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {within:?} for {what}");
        }
        sleep(STEP).await;
    }
}
