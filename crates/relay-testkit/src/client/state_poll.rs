//! A client that asks for each job's document again and again, with `If-None-Match`.
//!
//! It sees states only. Each changed document is made into the `state` frame that another transport
//! would have carried, its cursor being the `ETag`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Watch;
use super::frame::{Frame, Heard};
use crate::http::{Connection, Request, StatusCode};

/// The pause between two rounds over all jobs.
const PAUSE: Duration = Duration::from_millis(50);

/// One client that polls over a kept connection.
#[derive(Debug)]
pub struct StateClient {
    address: String,
    watch: Watch,
    /// `None` before the first question and after a failed one.
    connection: Option<Connection>,
    /// The tag of each job's document as last seen.
    tags: BTreeMap<String, String>,
    /// Jobs still to be asked for in this round.
    round: VecDeque<String>,
    next_round: Instant,
    cursor: Option<String>,
}

impl StateClient {
    /// A client that will ask at `host:port`; topics other than `job:` are left out.
    pub fn new(address: &str, watch: Watch) -> Self {
        Self {
            address: address.to_owned(),
            cursor: watch.cursor.clone(),
            watch,
            connection: None,
            tags: BTreeMap::new(),
            round: VecDeque::new(),
            next_round: Instant::now(),
        }
    }

    /// The next changed document as a frame, or that there was none within the time.
    pub async fn next(&mut self, within: Duration) -> Heard {
        let deadline = Instant::now() + within;
        loop {
            let Some(job) = self.round.pop_front() else {
                if self.next_round > deadline {
                    sleep_until(deadline).await;
                    return Heard::Quiet;
                }
                sleep_until(self.next_round).await;
                self.next_round = Instant::now() + PAUSE;
                let jobs = self.watch.topics.iter();
                let jobs = jobs.filter_map(|topic| topic.strip_prefix("job:"));
                self.round.extend(jobs.map(str::to_owned));
                if self.round.is_empty() {
                    return Heard::lost("state polling needs a job: topic");
                }
                continue;
            };
            match timeout_at(deadline, self.ask(&job)).await {
                Ok(Ok(Some(frame))) => return Heard::Frame(frame),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    self.connection = None;
                    return Heard::lost(format!("{error:#}"));
                }
                Err(_) => {
                    self.connection = None;
                    self.round.push_front(job);
                    return Heard::Quiet;
                }
            }
        }
    }

    async fn ask(&mut self, job: &str) -> anyhow::Result<Option<Frame>> {
        let connection = match &mut self.connection {
            Some(kept) if !kept.is_closed() => kept,
            kept => kept.insert(Connection::open(&self.address).await?),
        };
        let mut request =
            Request::get(format!("/v1/jobs/{job}")).bearer(self.watch.token.as_deref());
        if let Some(tag) = self.tags.get(job) {
            request = request.header("if-none-match", tag);
        }
        let answer = connection.send(request, Duration::ZERO).await?;
        match answer.status {
            StatusCode::OK => {
                let tag = answer.header("etag").to_owned();
                let cursor = tag.trim_matches('"').to_owned();
                self.cursor = Some(cursor.clone());
                self.tags.insert(job.to_owned(), tag);
                Ok(Some(Frame(json!({
                    "type": "state",
                    "topic": format!("job:{job}"),
                    "cursor": cursor,
                    "job": answer.json(),
                }))))
            }
            StatusCode::NOT_MODIFIED => Ok(None),
            StatusCode::NOT_FOUND if answer.error_code() == "unknown_job" => Ok(None),
            status => anyhow::bail!("{status} {}", answer.text()),
        }
    }

    /// The tag of the last changed document: a cursor of its own job's topic alone.
    pub fn cursor(&self) -> Option<String> {
        self.cursor.clone()
    }
}
