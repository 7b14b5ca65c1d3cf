//! Publishes the life of one job to JetStream: progress, a milestone, an ending.
//!
//! Usage: `NATS_URL=nats://127.0.0.1:4222 relay-example-worker JOB [OWNER [ATTEMPT]]`
//!
//! Credentials: `NATS_USER` and `NATS_PASSWORD`, or `NATS_TOKEN`, `NATS_CREDS` (a file) or `NATS_NKEY` (a file).

use std::env;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, HeaderMap};
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// One job's line to whoever watches it.
struct Job {
    line: Arc<Line>,
    /// The state that waits to be published; `None` once the job has ended.
    latest: Option<watch::Sender<String>>,
    /// Publishes the latest state. Dropped, it publishes no more.
    sender: JoinSet<()>,
}

impl Job {
    /// A job that has ended begins anew with a higher `attempt`.
    fn new(line: Line) -> Self {
        let line = Arc::new(line);
        let (latest, waiting) = watch::channel(String::new());
        let mut sender = JoinSet::new();
        sender.spawn(line.clone().send(waiting));
        Self {
            line,
            latest: Some(latest),
            sender,
        }
    }

    /// The complete current state. At most ten a second are published, and always the last one.
    fn state(&self, mut state: Value) {
        state["status"] = json!("running");
        if let Some(latest) = &self.latest {
            latest.send_replace(self.line.encode(state));
        }
    }

    /// An event that no later message replaces.
    async fn milestone(&self, name: &str, data: Value) {
        let payload = data.to_string();
        let patience = Duration::from_secs(15);
        let told = self.line.publish(name, payload, HeaderMap::new(), patience);
        if let Err(error) = told.await {
            eprintln!("the milestone {name} is not told: {error:#}");
        }
    }

    /// The last state. Alone on its subject, kept for a day, and offered until it is stored, for ten minutes.
    async fn end(&mut self, status: &str, mut state: Value) -> Result<()> {
        state["status"] = json!(status);
        self.latest = None;
        while self.sender.join_next().await.is_some() {}
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-TTL", "24h");
        let (payload, patience) = (self.line.encode(state), Duration::from_secs(600));
        let line = &self.line;
        match line
            .publish("state", payload.clone(), headers, patience)
            .await
        {
            Err(error) if has_no_rollup(&error) => {
                let none = HeaderMap::new();
                line.publish("state", payload, none, patience).await
            }
            told => told,
        }
    }
}

/// What a job and the sender of its states share.
struct Line {
    jetstream: Context,
    subject: String,
    attempt: u64,
    /// Nobody else's, nor another run's: whoever uses an id first makes the next with that id a repeat.
    ids: String,
    count: AtomicU64,
    /// Held while something is published, so that what comes later waits.
    order: Mutex<()>,
    /// What NATS has said that this user may not do.
    denied: watch::Receiver<String>,
}

impl Line {
    fn encode(&self, mut state: Value) -> String {
        state["attempt"] = json!(self.attempt);
        state["ts"] = json!(OffsetDateTime::now_utc().format(&Rfc3339).ok());
        state.to_string()
    }

    async fn send(self: Arc<Self>, mut latest: watch::Receiver<String>) {
        while latest.changed().await.is_ok() {
            let state = latest.borrow_and_update().clone();
            let patience = Duration::from_secs(15);
            let told = self.publish("state", state, HeaderMap::new(), patience);
            if let Err(error) = told.await {
                eprintln!("a state is not told: {error:#}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn publish(
        &self,
        what: &str,
        payload: String,
        mut headers: HeaderMap,
        patience: Duration,
    ) -> Result<()> {
        let _first = self.order.lock().await;
        let subject = format!("{}.{what}", self.subject);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        // the same id at each try: what was stored but not acknowledged is not stored twice
        headers.insert("Nats-Msg-Id", format!("{}.{count}", self.ids));
        let start = Instant::now();
        let mut pause = Duration::from_millis(200);
        loop {
            // the first await hands the message over, the second waits until it is stored
            let stored = async {
                let (subject, payload) = (subject.clone(), payload.clone().into());
                let publish =
                    self.jetstream
                        .publish_with_headers(subject, headers.clone(), payload);
                anyhow::Ok(publish.await?.await?)
            };
            let error = match timeout(Duration::from_secs(2), stored).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(late) => late.into(),
            };
            // NATS does not answer what a user may not publish; it says so on the side
            let denied = self.denied.borrow().clone();
            if denied.contains(&format!("\"{subject}\"")) {
                bail!(denied);
            }
            if is_final(&error) || start.elapsed() + pause > patience {
                return Err(error);
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(Duration::from_secs(3));
        }
    }
}

/// Whether the same message will be rejected again, however often it is sent.
fn is_final(error: &Error) -> bool {
    let is_final = error.chain().any(|cause| {
        let rejected = cause.downcast_ref::<jetstream::Error>();
        let unsent = cause.downcast_ref::<PublishError>();
        rejected.is_some_and(|error| (400..500).contains(&error.code()))
            || unsent.is_some_and(|error| error.kind() == PublishErrorKind::MaxPayloadExceeded)
    });
    is_final || has_no_rollup(error)
}

/// Whether the stream is one owner's own: it takes no roll-up and no lifetime, and needs none.
fn has_no_rollup(error: &Error) -> bool {
    let codes = [
        ErrorCode::STREAM_ROLLUP_FAILED,
        ErrorCode::MESSAGE_TTL_DISABLED,
    ];
    error.chain().any(|cause| {
        let rejected = cause.downcast_ref::<jetstream::Error>();
        rejected.is_some_and(|error| codes.contains(&error.error_code()))
    })
}

/// Stands for the real work.
async fn work(job: &Job) -> Result<Value> {
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
        job.state(json!({"current": step, "total": steps, "unit": "steps", "message": message}));
        if step == steps / 2 {
            job.milestone("half_way", json!({"step": step})).await;
        }
    }
    Ok(json!({"steps": steps}))
}

/// How to log in to NATS, from the variables that the `nats` command reads too.
fn credentials() -> Result<ConnectOptions> {
    let given = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
    let options = ConnectOptions::new();
    if let Some(user) = given("NATS_USER") {
        return Ok(options.user_and_password(user, given("NATS_PASSWORD").unwrap_or_default()));
    }
    if let Some(token) = given("NATS_TOKEN") {
        return Ok(options.token(token));
    }
    let read =
        |file: String| std::fs::read_to_string(&file).with_context(|| format!("reading {file}"));
    if let Some(file) = given("NATS_CREDS") {
        return Ok(options.credentials(&read(file)?)?);
    }
    match given("NATS_NKEY") {
        Some(file) => Ok(options.nkey(read(file)?.trim().to_owned())),
        None => Ok(options),
    }
}

/// Connects, however long NATS takes to be there; what the connection says later goes to `denied` too.
async fn connect(url: &str, denied: watch::Sender<String>) -> Result<Client> {
    let denied = Arc::new(denied);
    loop {
        let denied = denied.clone();
        let options = credentials()?.event_callback(move |event| {
            eprintln!("nats: {event}");
            denied.send_replace(event.to_string());
            std::future::ready(())
        });
        match options.connect(url).await {
            Ok(client) => return Ok(client),
            Err(error) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    let check = "check NATS_USER and NATS_PASSWORD, or the others";
                    bail!("NATS does not let this worker in: {error}; {check}");
                }
                _ => eprintln!("nats: {error}; trying again"),
            },
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Ctrl-C, and what a supervisor sends before it kills.
async fn stopped() -> Result<()> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn failure(message: &str) -> Value {
    let message: String = message.chars().take(1000).collect();
    json!({"error": {"code": "worker", "message": message}})
}

/// Does the work and ends the job, whatever comes.
async fn run(job: &mut Job) -> Result<ExitCode> {
    let (mut status, last) = tokio::select! {
        done = AssertUnwindSafe(work(job)).catch_unwind() => match done {
            Ok(Ok(result)) => ("completed", json!({"progress": 100, "result": result})),
            Ok(Err(error)) => {
                eprintln!("{error:#}");
                ("failed", failure(&format!("{error:#}")))
            }
            Err(_) => ("failed", failure("the worker panicked")),
        },
        stopped = stopped() => {
            stopped?;
            ("cancelled", json!({"message": "the worker was stopped"}))
        }
    };
    tokio::select! {
        ended = job.end(status, last) => if let Err(error) = ended {
            // what NATS does not take ends the job too
            eprintln!("the ending is not told: {error:#}");
            status = "failed";
            job.end(status, failure(&format!("{error:#}"))).await?;
        },
        // the second time at once
        _ = stopped() => {}
    }
    Ok(ExitCode::from(match status {
        "completed" => 0,
        "failed" => 1,
        _ => 130,
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let mut arguments = env::args().skip(1);
    let id = arguments
        .next()
        .context("usage: relay-example-worker JOB [OWNER [ATTEMPT]]")?;
    let owner = arguments.next().unwrap_or_else(|| "-".to_owned());
    let attempt = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let url = env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let (denials, denied) = watch::channel(String::new());
    let client = connect(&url, denials).await?;
    let mut job = Job::new(Line {
        jetstream: jetstream::new(client),
        subject: format!("progress.{owner}.{id}"),
        attempt,
        ids: format!("{owner}.{id}.{:032x}", fastrand::u128(..)),
        count: AtomicU64::new(0),
        order: Mutex::new(()),
        denied,
    });
    run(&mut job).await
}
