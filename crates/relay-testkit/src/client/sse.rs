//! A Server-Sent Events client: the parsing rules of the standard, no reconnecting of its own.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::Watch;
use super::frame::{Frame, Heard, Refused};
use crate::http::{ANSWER_WITHIN, Connection, Request, StatusCode};

/// One event stream.
#[derive(Debug)]
pub struct SseClient {
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Event>,
    cursor: Option<String>,
    /// Moves the bytes; dropping it drops the socket.
    _connection: Connection,
}

impl SseClient {
    /// Connects; a cursor goes into `Last-Event-ID`, as a browser that reconnects would send it.
    ///
    /// # Errors
    /// When the relay refuses ([`Refused`]) or is not there.
    pub async fn connect(address: &str, watch: Watch) -> Result<Self> {
        let topics = Watch {
            cursor: None,
            ..watch.clone()
        };
        let mut request = Request::get(format!("/v1/sse{}", topics.query()))
            .header("accept", "text/event-stream")
            .bearer(watch.token.as_deref());
        if let Some(cursor) = &watch.cursor {
            request = request.header("last-event-id", cursor);
        }
        let mut connection = Connection::open(address).await?;
        let answer = timeout(ANSWER_WITHIN, connection.start(request))
            .await
            .context("no answer in time")??;
        let status = answer.status();
        let body = answer.into_body();
        if status != StatusCode::OK {
            let body = timeout(ANSWER_WITHIN, body.collect()).await??.to_bytes();
            return Err(Refused {
                status: status.as_u16(),
                body: String::from_utf8_lossy(&body).into_owned(),
            }
            .into());
        }
        Ok(Self {
            body,
            parser: Parser::default(),
            ready: VecDeque::new(),
            cursor: watch.cursor,
            _connection: connection,
        })
    }

    /// The next frame, or that there was none within the time, or that the relay has closed.
    pub async fn next(&mut self, within: Duration) -> Heard {
        match timeout(within, self.hear()).await {
            Ok(heard) => heard,
            Err(_) => Heard::Quiet,
        }
    }

    async fn hear(&mut self) -> Heard {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if let Some(id) = event.id {
                    self.cursor = Some(id);
                }
                return match serde_json::from_str(&event.data) {
                    Ok(value) => Heard::Frame(Frame(value)),
                    Err(error) => Heard::lost(format!("not JSON ({error}): {}", event.data)),
                };
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.ready.extend(self.parser.feed(bytes));
                    }
                }
                Some(Err(error)) => return Heard::lost(error),
                None => return Heard::lost("end of stream"),
            }
        }
    }

    /// The last event id; before any, the cursor it came with.
    pub fn cursor(&self) -> Option<String> {
        self.cursor.clone()
    }

    /// The reconnection time the relay asked for, if it did.
    pub fn retry_ms(&self) -> Option<u64> {
        self.parser.retry_ms
    }
}

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    kind: String,
    data: String,
    id: Option<String>,
}

/// Bytes in, whole events out; a block that is cut off is never dispatched.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    kind: String,
    data: String,
    id: Option<String>,
    retry_ms: Option<u64>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if line.is_empty() {
                events.extend(self.dispatch());
            } else {
                self.field(line);
            }
        }
        events
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" => self.retry_ms = value.parse().ok().or(self.retry_ms),
            // a comment, or a field of another age
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<Event> {
        let kind = std::mem::take(&mut self.kind);
        let data = std::mem::take(&mut self.data);
        let id = self.id.take();
        let data = data.strip_suffix('\n')?.to_owned();
        Some(Event { kind, data, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_at_blank_lines_wherever_the_bytes_are_cut() {
        let text = ": hi\n\nevent: state\nid: c1\ndata: {\"a\":\ndata: 1}\n\nretry: 250\r\ndata: 2\r\n\r\nid: c2\ndata: cut";
        for step in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<Event> = text
                .as_bytes()
                .chunks(step)
                .flat_map(|chunk| parser.feed(chunk))
                .collect();
            assert_eq!(events.len(), 2, "{events:?}");
            assert_eq!(events[0].kind, "state");
            assert_eq!(events[0].id.as_deref(), Some("c1"));
            assert_eq!(events[0].data, "{\"a\":\n1}");
            assert_eq!((events[1].data.as_str(), &events[1].id), ("2", &None));
            assert_eq!(parser.retry_ms, Some(250));
        }
    }
}
