//! One job and many watchers: what a delivery costs the server, against the floor.
//!
//! The relay and the floor take turns, each hears the same publisher, writes as many bytes to as many
//! sockets, and is read by the same client.
//!
//! Invariant: a run counts only if every watcher got to the last update.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use relay_testkit::http::{Connection as Publisher, Request, StatusCode};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Connection, Message, Transport, find};
use crate::floor::Floor;
use crate::report::{Report, median, quantile, ratio};
use crate::server::{Cpu, Meter, Relay, RelayArgs};

/// Connections in the middle of their handshake at a time.
const AT_ONCE: usize = 64;
/// How long one update may take to reach every watcher.
const DELIVER_WITHIN: Duration = Duration::from_secs(20);
/// After connecting, so that the handshakes' last words are not counted.
const SETTLE: Duration = Duration::from_millis(300);
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Says which update a message carries; eight digits follow.
const MARK: &[u8] = b"\"message\":\"update ";

/// What to publish to whom.
#[derive(Debug, clap::Args)]
pub(crate) struct FanoutArgs {
    #[command(flatten)]
    relay: RelayArgs,
    /// How many watchers
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// How they connect
    #[arg(long, value_enum, default_value_t = Transport::Ws)]
    transport: Transport,
    /// How many updates each watcher gets in a run
    #[arg(long, default_value_t = 300)]
    updates: u32,
    /// How long a published document is, in bytes
    #[arg(long, default_value_t = 300)]
    payload: usize,
    /// Updates on their way at a time: the next is published when all watchers have the one this many before
    #[arg(long, default_value_t = 1)]
    window: u32,
    /// Publish this many a second instead, whether or not they arrive
    #[arg(long, conflicts_with = "window")]
    rate: Option<u32>,
    /// How many runs of each; the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// One server in one run.
#[derive(Debug, Serialize)]
struct Run {
    deliveries_expected: u64,
    deliveries: u64,
    bytes_per_delivery: f64,
    cpu: Cpu,
    micros_per_delivery: f64,
    switches_per_delivery: f64,
    deliveries_per_second: f64,
    /// From the publisher's sending to a watcher's reading.
    latency_micros_p50: u32,
    latency_micros_p99: u32,
}

/// All runs.
#[derive(Debug, Serialize)]
pub(crate) struct FanoutReport {
    scenario: &'static str,
    transport: &'static str,
    connections: usize,
    updates: u32,
    payload_bytes: usize,
    window: Option<u32>,
    rate: Option<u32>,
    relay: Vec<Run>,
    floor: Vec<Run>,
    relay_micros_per_delivery: f64,
    floor_micros_per_delivery: f64,
    /// The median of the ratios of each pair of runs.
    ratio: f64,
}

/// Lets the relay and the floor take turns.
pub(crate) async fn run(args: &FanoutArgs) -> Result<FanoutReport> {
    let server = Relay::new(&args.relay).await?;
    let (mut relay, mut floor) = (Vec::new(), Vec::new());
    for turn in 0..args.runs {
        let job = format!("fanout-{}-{turn}", std::process::id());
        let run = measure(args, server.address, server.process, &job, args.payload).await;
        let run = run.with_context(|| format!("run {turn} of the relay"))?;
        // The floor writes as many bytes as the relay just did, envelope and all.
        let length = run.bytes_per_delivery.round() as usize;
        let body = length.saturating_sub(args.transport.overhead(length));
        relay.push(run);
        let bare = Floor::start().await?;
        let run = measure(args, bare.address, bare.process, &job, body).await;
        floor.push(run.with_context(|| format!("run {turn} of the floor"))?);
    }
    let pairs = relay.iter().zip(&floor);
    let ratios: Vec<f64> = pairs
        .map(|(r, f)| r.micros_per_delivery / f.micros_per_delivery)
        .collect();
    Ok(FanoutReport {
        scenario: "fanout",
        transport: args.transport.name(),
        connections: args.connections,
        updates: args.updates,
        payload_bytes: args.payload,
        window: args.rate.is_none().then_some(args.window),
        rate: args.rate,
        relay_micros_per_delivery: median(relay.iter().map(|run| run.micros_per_delivery)),
        floor_micros_per_delivery: median(floor.iter().map(|run| run.micros_per_delivery)),
        ratio: median(ratios),
        relay,
        floor,
    })
}

/// One run against one server.
async fn measure(
    args: &FanoutArgs,
    server: SocketAddr,
    process: Meter,
    job: &str,
    payload: usize,
) -> Result<Run> {
    let warm_up = (args.updates / 10).clamp(1, 20);
    let tally = Rc::new(Tally::new(args.connections, warm_up + args.updates));
    let mut watchers = connect(args, server, job, &tally).await?;
    sleep(SETTLE).await;
    let mut publisher = Publisher::open(&server.to_string()).await?;
    let path = format!("/v1/jobs/{job}");
    let mut publish = async |number: u32| -> Result<()> {
        let request = Request::new(relay_testkit::http::Method::POST, path.as_str())
            .header("content-type", "application/json")
            .body(document(number, payload));
        tally.published(number);
        let answer = publisher.send(request, Duration::ZERO).await?;
        if answer.status != StatusCode::ACCEPTED {
            bail!(
                "publishing was refused: {} {}",
                answer.status,
                answer.text()
            );
        }
        Ok(())
    };
    for number in 1..=warm_up {
        publish(number).await?;
        tally.reached(number).await?;
    }
    tally.start();
    let (began, before) = (Instant::now(), process.cpu()?);
    let mut pace = args
        .rate
        .map(|rate| tokio::time::interval(Duration::from_secs(1) / rate.max(1)));
    for number in warm_up + 1..=warm_up + args.updates {
        match &mut pace {
            Some(pace) => {
                pace.tick().await;
            }
            None => {
                tally
                    .reached(number.saturating_sub(args.window.max(1)))
                    .await?
            }
        }
        publish(number).await?;
    }
    tally.reached(warm_up + args.updates).await?;
    let (cpu, took) = (process.cpu()?.since(before), began.elapsed());
    if let Some(ended) = watchers.try_join_next() {
        bail!("the server closed a connection: {:?}", ended?);
    }
    Ok(tally.run(args, cpu, took))
}

/// Opens the watchers.
async fn connect(
    args: &FanoutArgs,
    server: SocketAddr,
    job: &str,
    tally: &Rc<Tally>,
) -> Result<JoinSet<Result<()>>> {
    let buffer = Rc::new(RefCell::new(vec![0; READ_BUFFER_BYTES]));
    let topic: Rc<str> = format!("job:{job}").into();
    let transport = args.transport;
    let (mut opening, mut watchers) = (JoinSet::new(), JoinSet::new());
    let mut indexes = 0..args.connections;
    loop {
        while opening.len() < AT_ONCE {
            let Some(index) = indexes.next() else { break };
            let topic = Rc::clone(&topic);
            opening.spawn_local(async move {
                (
                    index,
                    Connection::open(server, transport, &topic, index).await,
                )
            });
        }
        let Some(opened) = opening.join_next().await else {
            break;
        };
        let (index, connection) = opened?;
        let (connection, buffer, tally) = (connection?, Rc::clone(&buffer), Rc::clone(tally));
        watchers.spawn_local(async move {
            connection
                .follow(&buffer, |message| {
                    if let Message::Text(text) = message {
                        tally.heard(index, text, transport);
                    }
                })
                .await
        });
    }
    Ok(watchers)
}

/// A document of `length` bytes that says which update it is.
fn document(number: u32, length: usize) -> String {
    let mut document =
        format!(r#"{{"status":"running","progress":50,"message":"update {number:08} "#);
    let padding = length.saturating_sub(document.len() + 2);
    document.extend(std::iter::repeat_n('.', padding));
    document.push_str("\"}");
    document
}

/// Which update a message carries.
fn number_in(text: &[u8]) -> Option<u32> {
    let digits = find(text, MARK)? + MARK.len();
    std::str::from_utf8(text.get(digits..digits + 8)?)
        .ok()?
        .parse()
        .ok()
}

/// Who has got what.
struct Tally {
    counts: RefCell<Counts>,
    /// Told when an update has reached every watcher.
    progress: Notify,
}

struct Counts {
    /// The last update each watcher has.
    last: Vec<u32>,
    /// How many watchers have this update or a later one; index = update.
    reached: Vec<usize>,
    published_at: Vec<Option<Instant>>,
    deliveries: u64,
    bytes: u64,
    latencies_micros: Vec<u32>,
}

impl Tally {
    fn new(watchers: usize, updates: u32) -> Self {
        let updates = updates as usize + 1;
        Self {
            counts: RefCell::new(Counts {
                last: vec![0; watchers],
                reached: vec![0; updates],
                published_at: vec![None; updates],
                deliveries: 0,
                bytes: 0,
                latencies_micros: Vec::new(),
            }),
            progress: Notify::new(),
        }
    }

    fn published(&self, number: u32) {
        self.counts.borrow_mut().published_at[number as usize] = Some(Instant::now());
    }

    /// Forgets the warm-up.
    fn start(&self) {
        let mut counts = self.counts.borrow_mut();
        counts.deliveries = 0;
        counts.bytes = 0;
        counts.latencies_micros.clear();
    }

    fn heard(&self, watcher: usize, text: &[u8], transport: Transport) {
        let Some(number) = number_in(text) else {
            return;
        };
        let counts = &mut *self.counts.borrow_mut();
        counts.deliveries += 1;
        counts.bytes += wire_length(text, transport) as u64;
        if let Some(at) = counts.published_at.get(number as usize).copied().flatten() {
            let micros = at.elapsed().as_micros();
            counts
                .latencies_micros
                .push(u32::try_from(micros).unwrap_or(u32::MAX));
        }
        // A newer state stands for those it superseded.
        let before = std::mem::replace(&mut counts.last[watcher], number);
        for reached in counts
            .reached
            .iter_mut()
            .take(number as usize + 1)
            .skip(before as usize + 1)
        {
            *reached += 1;
            if *reached == counts.last.len() {
                self.progress.notify_one();
            }
        }
    }

    /// Waits until every watcher has this update or a later one.
    async fn reached(&self, number: u32) -> Result<()> {
        let so_far = || {
            let counts = self.counts.borrow();
            (counts.reached[number as usize], counts.last.len())
        };
        let all = async {
            while number > 0 && so_far().0 < so_far().1 {
                self.progress.notified().await;
            }
        };
        timeout(DELIVER_WITHIN, all).await.map_err(|_| {
            let (some, all) = so_far();
            anyhow::anyhow!(
                "update {number} has reached {some} of {all} watchers within {DELIVER_WITHIN:?}"
            )
        })
    }

    fn run(&self, args: &FanoutArgs, cpu: Cpu, took: Duration) -> Run {
        let counts = &mut *self.counts.borrow_mut();
        counts.latencies_micros.sort_unstable();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Run {
            deliveries_expected: args.connections as u64 * u64::from(args.updates),
            deliveries: counts.deliveries,
            bytes_per_delivery: ratio(counts.bytes, counts.deliveries),
            cpu,
            micros_per_delivery: ratio(cpu.micros(), counts.deliveries),
            switches_per_delivery: ratio(cpu.context_switches, counts.deliveries),
            deliveries_per_second: ratio(counts.deliveries * 1_000_000, micros),
            latency_micros_p50: quantile(&counts.latencies_micros, 0.5),
            latency_micros_p99: quantile(&counts.latencies_micros, 0.99),
        }
    }
}

/// How many bytes a message was on the wire, but for an HTTP chunk around it.
fn wire_length(text: &[u8], transport: Transport) -> usize {
    match transport {
        Transport::Ws => text.len() + transport.overhead(text.len()),
        // The text is the whole event but for the blank line behind it.
        Transport::Sse => text.len() + 2,
    }
}

impl Report for FanoutReport {
    fn table(&self) -> Vec<Vec<String>> {
        let heads = [
            "",
            "run",
            "expected",
            "got",
            "bytes",
            "us/delivery",
            "user",
            "sys",
            "switches",
            "per s",
            "p50 ms",
            "p99 ms",
        ];
        let mut table = vec![heads.map(str::to_owned).to_vec()];
        let runs = self.relay.iter().zip(&self.floor).enumerate();
        for (number, (relay, floor)) in runs {
            for (name, run) in [("relay", relay), ("floor", floor)] {
                let each = |micros| format!("{:.2}", ratio(micros, run.deliveries));
                table.push(vec![
                    name.to_owned(),
                    (number + 1).to_string(),
                    run.deliveries_expected.to_string(),
                    run.deliveries.to_string(),
                    format!("{:.0}", run.bytes_per_delivery),
                    format!("{:.2}", run.micros_per_delivery),
                    each(run.cpu.user_micros),
                    each(run.cpu.system_micros),
                    format!("{:.4}", run.switches_per_delivery),
                    format!("{:.0}", run.deliveries_per_second),
                    format!("{:.2}", f64::from(run.latency_micros_p50) / 1000.0),
                    format!("{:.2}", f64::from(run.latency_micros_p99) / 1000.0),
                ]);
            }
        }
        table
    }

    fn conclusion(&self) -> String {
        format!(
            "{} {} watchers: {:.2} us of server CPU per delivery, floor {:.2} us: {:.2} times the floor (medians)",
            self.connections,
            self.transport,
            self.relay_micros_per_delivery,
            self.floor_micros_per_delivery,
            self.ratio
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_the_length_asked_for_and_says_its_number() {
        let document = document(42, 300);
        assert_eq!(document.len(), 300);
        assert_eq!(number_in(document.as_bytes()), Some(42));
        assert!(serde_json::from_str::<serde_json::Value>(&document).is_ok());
    }

    #[tokio::test]
    async fn a_newer_state_stands_for_the_one_it_superseded() {
        let tally = Tally::new(2, 3);
        tally.heard(0, document(1, 0).as_bytes(), Transport::Ws);
        tally.heard(0, document(2, 0).as_bytes(), Transport::Ws);
        assert_eq!(tally.counts.borrow().reached, [0, 1, 1, 0]);
        tally.heard(1, document(2, 0).as_bytes(), Transport::Ws);
        assert_eq!(tally.counts.borrow().reached, [0, 2, 2, 0]);
        tally.reached(2).await.unwrap();
        assert_eq!(tally.counts.borrow().deliveries, 3);
    }
}
