//! Publishes the life of one job to JetStream: progress, a milestone, an ending.
//!
//! Usage: `NATS_URL=nats://127.0.0.1:4222 relay-example-worker JOB [OWNER]`

use std::env;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep, timeout};

/// One job's line to whoever watches it.
struct Job {
    jetstream: Context,
    subject: String,
    /// Another run of the same job must not look like a repeat.
    run: u64,
    count: u64,
    last: Option<Instant>,
}

impl Job {
    fn new(jetstream: Context, job: &str, owner: &str) -> Self {
        let subject = format!("progress.{owner}.{job}");
        Self {
            jetstream,
            subject,
            run: fastrand::u64(..),
            count: 0,
            last: None,
        }
    }

    /// The complete current state; at most ten a second, the others are left out.
    async fn state(&mut self, mut state: Value) -> Result<()> {
        if self
            .last
            .is_some_and(|last| last.elapsed() < Duration::from_millis(100))
        {
            return Ok(());
        }
        self.last = Some(Instant::now());
        state["status"] = json!("running");
        self.publish("state", state, HeaderMap::new(), Duration::from_secs(15))
            .await
    }

    /// An event that no later message replaces.
    async fn milestone(&mut self, name: &str, data: Value) -> Result<()> {
        self.publish(name, data, HeaderMap::new(), Duration::from_secs(15))
            .await
    }

    /// The last state. Alone on its subject, kept for a day, and offered until it is stored.
    async fn end(&mut self, status: &str, mut state: Value) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-TTL", "24h");
        state["status"] = json!(status);
        self.publish("state", state, headers, Duration::MAX).await
    }

    async fn publish(
        &mut self,
        what: &str,
        mut body: Value,
        mut headers: HeaderMap,
        patience: Duration,
    ) -> Result<()> {
        self.count += 1;
        // the same id at each try: what was stored but not acknowledged is not stored twice
        headers.insert("Nats-Msg-Id", format!("{:x}-{}", self.run, self.count));
        if what == "state" {
            body["ts"] = json!(OffsetDateTime::now_utc().format(&Rfc3339)?);
        }
        let subject = format!("{}.{what}", self.subject);
        let start = Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            // the first await hands the message over, the second waits until it is stored
            let stored = async {
                let (subject, payload) = (subject.clone(), body.to_string().into());
                let ack = self
                    .jetstream
                    .publish_with_headers(subject, headers.clone(), payload);
                anyhow::Ok(ack.await?.await?)
            };
            let error = match timeout(Duration::from_secs(2), stored).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(late) => late.into(),
            };
            if start.elapsed() + pause > patience {
                eprintln!("gave up on {what}: {error:#}");
                return Ok(());
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(Duration::from_secs(3));
        }
    }
}

/// Stands for the real work.
async fn work(job: &mut Job) -> Result<Value> {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let steps = number("STEPS").unwrap_or(20);
    for step in 1..=steps {
        sleep(Duration::from_millis(50)).await;
        if number("FAIL_AT") == Some(step) {
            bail!("step {step} went wrong");
        }
        let message = format!("step {step}");
        job.state(json!({"current": step, "total": steps, "unit": "steps", "message": message}))
            .await?;
        if step == steps / 2 {
            job.milestone("half_way", json!({"step": step})).await?;
        }
    }
    Ok(json!({"steps": steps}))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let id = arguments
        .next()
        .context("usage: relay-example-worker JOB [OWNER]")?;
    let owner = arguments.next().unwrap_or_else(|| "-".to_owned());
    let url = env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .connect(url)
        .await?;
    let mut job = Job::new(jetstream::new(client), &id, &owner);
    match work(&mut job).await {
        Ok(result) => {
            job.end("completed", json!({"progress": 100, "result": result}))
                .await
        }
        Err(error) => {
            let message = error.to_string();
            job.end(
                "failed",
                json!({"error": {"code": "worker", "message": message}}),
            )
            .await?;
            Err(error)
        }
    }
}
