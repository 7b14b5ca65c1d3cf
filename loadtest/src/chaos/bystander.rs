//! The one who does nothing wrong and must notice nothing: a worker whose every update arrives, in order.
//!
//! One publishes over HTTP, at most five updates a second: states, milestones and endings, one job after another. Two watch
//! all of the owner's jobs, over a WebSocket and over an event stream. A state may be left out for a newer one; a
//! milestone or an ending may not, and nothing may come twice, late or in another order.
//!
//! Invariant: an update is on the list before it is published, so nobody sees what is not on it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use relay_testkit::client::{Frame, Heard, Transport, Watch, Watcher};
use relay_testkit::http::{Connection, Request};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Whose jobs these are; others publish nonsense in its name.
pub(super) const OWNER: &str = "bystander";
/// How late an update may be: a machine under load is no fault.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Below what a connection is sent of one job in a second.
const PACE: Duration = Duration::from_millis(200);
/// Updates of one job.
const LENGTH: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    State,
    Milestone,
    Ending,
}

/// An update by its number, from 0.
#[derive(Debug, Clone, Copy)]
struct Published {
    what: What,
    at: Instant,
}

/// What both sides know of.
#[derive(Debug, Default)]
struct List {
    published: Vec<Published>,
    is_over: bool,
}

/// The worker and its two watchers.
#[derive(Debug)]
pub(super) struct Bystander {
    address: String,
    seed: u64,
    publisher: Option<String>,
    watchers: Vec<(Transport, Watcher)>,
}

/// What the bystander saw.
#[derive(Debug)]
pub(super) struct Seen {
    updates: usize,
    /// Answered with 503, and published again.
    put_off: u64,
    delivered: u64,
    superseded: u64,
    /// From before an update was published to when it was read, in microseconds.
    latency: Histogram<u64>,
}

impl Seen {
    fn new() -> Result<Self> {
        Ok(Self {
            updates: 0,
            put_off: 0,
            delivered: 0,
            superseded: 0,
            latency: Histogram::new(3)?,
        })
    }

    pub(super) fn summary(&mut self) -> String {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        format!(
            "{} updates ({} put off with 503), delivered {} times on two connections, {} states superseded; latency p50 {:.1} ms, p99 {:.1} ms, \
             at most {:.1} ms",
            self.updates,
            self.put_off,
            self.delivered,
            self.superseded,
            at(0.5),
            at(0.99),
            at(1.0)
        )
    }
}

impl Bystander {
    /// Begins to watch.
    pub(super) async fn new(
        address: &str,
        seed: u64,
        token: Option<String>,
        publisher: Option<String>,
    ) -> Result<Self> {
        let mut watchers = Vec::new();
        for transport in [Transport::WebSocket, Transport::Sse] {
            let mut watch = Watch::topics([format!("user:{OWNER}")]);
            if let Some(token) = &token {
                watch = watch.token(token);
            }
            let watcher = Watcher::connect(transport, address, watch).await?;
            watchers.push((transport, watcher));
        }
        Ok(Self {
            address: address.to_owned(),
            seed,
            publisher,
            watchers,
        })
    }

    /// Publishes and watches until then, and until everything has arrived.
    pub(super) async fn run(self, until: Instant) -> Result<Seen> {
        let list = Arc::new(Mutex::new(List::default()));
        let prefix = format!("bystander-{}-", self.seed);
        let mut watching = JoinSet::new();
        for (transport, watcher) in self.watchers {
            watching.spawn(watched(transport, watcher, list.clone(), prefix.clone()));
        }
        let publishing = published(self.address, self.publisher, list.clone(), prefix, until);
        let mut seen = Seen::new()?;
        (seen.updates, seen.put_off) = publishing.await.context("the bystander's worker")?;
        while let Some(watched) = watching.join_next().await {
            let watched = watched??;
            seen.delivered += watched.delivered;
            seen.superseded += watched.superseded;
            seen.latency.add(&watched.latency)?;
        }
        Ok(seen)
    }
}

/// Publishes one job after another; says how many updates there were, and how often one was put off.
async fn published(
    address: String,
    token: Option<String>,
    list: Arc<Mutex<List>>,
    prefix: String,
    until: Instant,
) -> Result<(usize, u64)> {
    let mut connection = Connection::open(&address).await?;
    let (mut number, mut put_off) = (0, 0);
    // The last job is brought to its end.
    while Instant::now() < until || number % LENGTH != 0 {
        let (job, step) = (number / LENGTH, number % LENGTH);
        let path = format!("/v1/jobs/{prefix}{job}");
        let (what, request) = match step {
            _ if step == LENGTH - 1 => {
                let state = json!({"status": "completed", "number": number});
                (
                    What::Ending,
                    Request::post(format!("{path}?owner={OWNER}"), &state),
                )
            }
            _ if step % 5 == 4 => {
                let path = format!("{path}/milestones/passed?owner={OWNER}");
                (
                    What::Milestone,
                    Request::post(path, &json!({"number": number})),
                )
            }
            _ => {
                let state = json!({"status": "running", "current": step, "total": LENGTH, "number": number});
                (
                    What::State,
                    Request::post(format!("{path}?owner={OWNER}"), &state),
                )
            }
        };
        let at = Instant::now();
        list.lock().await.published.push(Published { what, at });
        if connection.is_closed() {
            connection = Connection::open(&address).await?;
        }
        let request = request
            .bearer(token.as_deref())
            .header("idempotency-key", format!("{prefix}{number}"));
        let answer = loop {
            let answered = connection.send(request.clone(), Duration::ZERO).await;
            let answer = answered
                .with_context(|| format!("update {number} of the bystander was not answered"))?;
            // The bus is slow. How long that may take, the watchers say.
            if answer.status.as_u16() != 503 || at.elapsed() > PATIENCE {
                break answer;
            }
            put_off += 1;
            sleep(PACE).await;
        };
        if answer.status.as_u16() != 202 {
            bail!(
                "update {number} of the bystander was not accepted: {} {}",
                answer.status,
                answer.text()
            );
        }
        number += 1;
        // From the answer on: a state that comes sooner than a connection is sent them may be left out.
        sleep(PACE).await;
    }
    list.lock().await.is_over = true;
    Ok((number, put_off))
}

/// Watches until everything has arrived, in its order.
async fn watched(
    transport: Transport,
    mut watcher: Watcher,
    list: Arc<Mutex<List>>,
    prefix: String,
) -> Result<Seen> {
    let mut seen = Seen::new()?;
    let mut next = 0;
    loop {
        match watcher.next(Duration::from_millis(500)).await {
            Heard::Frame(frame) => {
                if let Some(number) = number(&frame, &prefix) {
                    let list = list.lock().await;
                    next = take(&list, &mut seen, next, number)
                        .with_context(|| format!("the bystander over {transport}"))?;
                } else if matches!(frame.kind(), "gap" | "gone" | "server_shutdown" | "error") {
                    bail!("the bystander over {transport} was sent {frame}");
                }
            }
            Heard::Quiet => {}
            Heard::Closed { code, reason } => {
                bail!("the bystander's connection over {transport} was closed ({code:?} {reason})");
            }
        }
        let list = list.lock().await;
        match list.published.get(next) {
            Some(late) if late.at.elapsed() > PATIENCE => bail!(
                "the bystander over {transport} has not been sent update {next} ({:?}) within {PATIENCE:?}",
                late.what
            ),
            None if list.is_over => return Ok(seen),
            _ => {}
        }
    }
}

/// The number of one of the bystander's own updates.
fn number(frame: &Frame, prefix: &str) -> Option<usize> {
    if !frame.job_id().starts_with(prefix) {
        return None;
    }
    let number = match frame.kind() {
        "state" => &frame.job()["number"],
        "milestone" => &frame.0["data"]["number"],
        _ => return None,
    };
    usize::try_from(number.as_u64()?).ok()
}

/// Update `number` was read where `next` was the first that had not been; says which one that is now.
fn take(list: &List, seen: &mut Seen, next: usize, number: usize) -> Result<usize> {
    if number < next {
        bail!("update {number} came after update {}", next - 1);
    }
    let update = list
        .published
        .get(number)
        .context("an update came that was not published")?;
    let skipped = list.published.get(next..number).unwrap_or_default();
    if let Some(at) = skipped.iter().position(|it| it.what != What::State) {
        bail!(
            "update {} ({:?}) was left out: {number} came instead",
            next + at,
            skipped[at].what
        );
    }
    seen.superseded += skipped.len() as u64;
    seen.delivered += 1;
    let micros = u64::try_from(update.at.elapsed().as_micros())?;
    seen.latency.record(micros.max(1))?;
    Ok(number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(all: &[What]) -> List {
        let at = Instant::now();
        List {
            published: all
                .iter()
                .map(|what| Published { what: *what, at })
                .collect(),
            is_over: false,
        }
    }

    #[tokio::test]
    async fn a_state_may_be_left_out_and_nothing_else() {
        let list = list(&[
            What::State,
            What::State,
            What::Milestone,
            What::State,
            What::Ending,
        ]);
        let mut seen = Seen::new().unwrap();
        assert_eq!(take(&list, &mut seen, 0, 1).unwrap(), 2);
        assert_eq!((seen.delivered, seen.superseded), (1, 1));
        let left_out = take(&list, &mut seen, 2, 3).unwrap_err();
        assert!(
            left_out.to_string().contains("update 2 (Milestone)"),
            "{left_out}"
        );
        assert!(take(&list, &mut seen, 2, 1).is_err());
        assert!(take(&list, &mut seen, 3, 5).is_err());
        assert_eq!(take(&list, &mut seen, 3, 4).unwrap(), 5);
    }
}
