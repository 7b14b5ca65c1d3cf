//! A long-poll client: asks, takes the frames, asks again with the cursor it was given.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::Watch;
use super::frame::{Frame, Heard};
use crate::http::{Answer, Connection, Request, StatusCode};

/// How long each question asks the relay to wait; short, so that a leaving client is not waited for.
const WAIT_SECONDS: u64 = 5;

/// One client that polls over a kept connection.
#[derive(Debug)]
pub struct PollClient {
    address: String,
    watch: Watch,
    /// `None` before the first question and after a failed one.
    connection: Option<Connection>,
    ready: VecDeque<Frame>,
    /// The cursor of the answer being read; it counts once all its frames are taken.
    next_cursor: Option<String>,
}

impl PollClient {
    /// A client that will ask at `host:port`.
    pub fn new(address: &str, watch: Watch) -> Self {
        Self {
            address: address.to_owned(),
            watch,
            connection: None,
            ready: VecDeque::new(),
            next_cursor: None,
        }
    }

    /// The next frame, or that there was none within the time, or that the relay refused.
    pub async fn next(&mut self, within: Duration) -> Heard {
        let deadline = Instant::now() + within;
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Heard::Frame(frame);
            }
            if let Some(cursor) = self.next_cursor.take() {
                self.watch.cursor = Some(cursor);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(answer) = timeout(left, self.ask()).await else {
                // the answer may be on its way: a new connection, so that it is not taken for the next
                self.connection = None;
                return Heard::Quiet;
            };
            match answer {
                Ok(answer) if answer.status == StatusCode::OK => self.take(&answer.json()),
                Ok(answer) => {
                    return Heard::Closed {
                        code: Some(answer.status.as_u16()),
                        reason: answer.text(),
                    };
                }
                Err(error) => {
                    self.connection = None;
                    return Heard::lost(format!("{error:#}"));
                }
            }
        }
    }

    async fn ask(&mut self) -> anyhow::Result<Answer> {
        let connection = match &mut self.connection {
            Some(kept) if !kept.is_closed() => kept,
            kept => kept.insert(Connection::open(&self.address).await?),
        };
        let path = format!("/v1/poll{}&wait={WAIT_SECONDS}", self.watch.query());
        let request = Request::get(path).bearer(self.watch.token.as_deref());
        connection
            .send(request, Duration::from_secs(WAIT_SECONDS))
            .await
    }

    fn take(&mut self, answer: &Value) {
        let frames = answer["frames"].as_array().into_iter().flatten();
        self.ready.extend(frames.cloned().map(Frame));
        self.next_cursor = answer["cursor"].as_str().map(str::to_owned);
    }

    /// The cursor of the last answer all of whose frames were taken. With frames still untaken, coming
    /// back with it would give those already taken a second time: see [`PollClient::is_between_answers`].
    pub fn cursor(&self) -> Option<String> {
        match &self.next_cursor {
            Some(cursor) if self.ready.is_empty() => Some(cursor.clone()),
            _ => self.watch.cursor.clone(),
        }
    }

    /// Whether every frame of the last answer has been taken.
    pub fn is_between_answers(&self) -> bool {
        self.ready.is_empty()
    }
}
