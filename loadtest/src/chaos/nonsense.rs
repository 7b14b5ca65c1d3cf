//! Updates that must be refused, published in the bystander's own name: they may hold up nothing of it.
//!
//! Over HTTP each must be answered with a refusal. Over NATS nobody is answered.
//!
//! Invariant: none of these is an update that a relay may accept.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use relay_testkit::http::{Connection, Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::bystander::{OWNER, PATIENCE};

const PACE: Duration = Duration::from_millis(50);

/// What became of updates that must be refused.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    /// Refused, or published where nobody is answered.
    pub(super) refused: u64,
    /// Answered with 503, and published again.
    pub(super) put_off: u64,
}

/// A state that cannot be accepted.
fn refused(rng: &mut Rng) -> Vec<u8> {
    let large = rng.usize(70_000..100_000);
    match rng.u32(0..10) {
        0 => b"{\"progress\":1}".to_vec(),
        1 => b"{\"status\":\"runing\"}".to_vec(),
        2 => b"{\"status\":\"running\",\"progress\":NaN}".to_vec(),
        3 => b"{\"status\":\"running\",\"progress\":101}".to_vec(),
        4 => b"\xff\xfe{".to_vec(),
        5 => b"[]".to_vec(),
        6 => format!("{{\"status\":\"running\",\"meta\":{}", "[".repeat(1000)).into_bytes(),
        7 => b"{\"status\":\"running\",\"status\":\"queued\"}".to_vec(),
        8 => format!(
            "{{\"status\":\"running\",\"message\":\"{}\"}}",
            "x".repeat(large)
        )
        .into_bytes(),
        _ => std::iter::repeat_with(|| rng.u8(..)).take(200).collect(),
    }
}

/// Publishes over HTTP, until all are refused.
pub(super) async fn over_http(
    address: String,
    seed: u64,
    token: Option<String>,
    until: Instant,
) -> Result<Told> {
    let mut rng = Rng::with_seed(seed);
    let mut connection = Connection::open(&address).await?;
    let mut told = Told::default();
    while Instant::now() < until {
        let path = format!("/v1/jobs/nonsense-{}?owner={OWNER}", rng.u32(0..3));
        let body = refused(&mut rng);
        let request = Request::new(Method::POST, path)
            .body(body)
            .bearer(token.as_deref());
        let began = Instant::now();
        loop {
            if connection.is_closed() {
                connection = Connection::open(&address).await?;
            }
            // A body that is too large may be answered before it is sent, and the connection closed.
            let Ok(answer) = connection.send(request.clone(), Duration::ZERO).await else {
                break;
            };
            let status = answer.status;
            if status.is_client_error() {
                told.refused += 1;
                break;
            }
            // The bus is slow, as it may be for the bystander.
            if status.as_u16() != 503 || began.elapsed() > PATIENCE {
                bail!("nonsense was answered with {status}: {}", answer.text());
            }
            told.put_off += 1;
            sleep(PACE).await;
        }
        sleep(PACE).await;
    }
    Ok(told)
}

/// Publishes over NATS, also on subjects that are none.
pub(super) async fn over_nats(address: String, seed: u64, until: Instant) -> Result<Told> {
    let mut rng = Rng::with_seed(seed);
    let stream = TcpStream::connect(&address)
        .await
        .with_context(|| format!("cannot publish to NATS at {address}"))?;
    let (mut reading, mut writing) = stream.into_split();
    writing
        .write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n")
        .await?;
    let mut buffer = vec![0; 16 * 1024];
    let mut told = Told::default();
    while Instant::now() < until {
        let job = rng.u32(0..3);
        let subject = match rng.u32(0..6) {
            0 => format!("progress.{OWNER}.nonsense-{job}"),
            1 => format!("progress.{OWNER}@example.nonsense-{job}.state"),
            2 => format!("progress.{OWNER}.nonsense-{job}.a.b.c"),
            _ => format!("progress.{OWNER}.nonsense-{job}.state"),
        };
        let body = refused(&mut rng);
        let mut sends = format!("PUB {subject} {}\r\n", body.len()).into_bytes();
        sends.extend(body);
        sends.extend(b"\r\n");
        writing.write_all(&sends).await?;
        told.refused += 1;
        // What the server says is read between two updates.
        if let Ok(read) = timeout(PACE, reading.read(&mut buffer)).await {
            answer(&buffer[..read?], &mut writing).await?;
        }
    }
    Ok(told)
}

async fn answer(said: &[u8], writing: &mut (impl tokio::io::AsyncWrite + Unpin)) -> Result<()> {
    let said = String::from_utf8_lossy(said);
    if said.is_empty() {
        bail!("NATS has closed the connection");
    }
    if let Some(error) = said.lines().find(|line| line.starts_with("-ERR")) {
        bail!("NATS says {error}");
    }
    if said.lines().any(|line| line == "PING") {
        writing.write_all(b"PONG\r\n").await?;
    }
    Ok(())
}
