//! Long-poll: a request that waits for news, and its answer.
//!
//! The wait is kept here; what news is, and what has been seen, is the shard's.
//!
//! Invariant: a request that is dropped takes its poll with it.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::time::timeout;

use super::Door;
use super::gate::LOOKUP_WAIT;
use crate::answer::{self, ApiError};
use crate::shard::Opening;
use crate::shard::poll::PollAnswer;

impl Door {
    /// Watches until there is news, or `wait` is over.
    pub(super) async fn poll_once(
        &self,
        opening: Opening,
        wait: Duration,
    ) -> Result<Response<Body>, ApiError> {
        let mut poll = self.shard.open_poll(opening);
        let answer = match timeout(wait, poll.answered()).await {
            Ok(answer) => answer,
            Err(_) => {
                poll.hurry();
                match timeout(LOOKUP_WAIT, poll.answered()).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        poll.stop();
                        poll.answered().await
                    }
                }
            }
        };
        respond(answer.ok_or_else(ApiError::draining)?)
    }
}

fn respond(answer: PollAnswer) -> Result<Response<Body>, ApiError> {
    if answer.forbidden {
        return Err(ApiError::forbidden());
    }
    if answer.shutdown && answer.frames.is_empty() {
        return Err(ApiError::draining());
    }
    if !answer.joined {
        return Err(ApiError::bus_unavailable());
    }
    let mut body = Vec::with_capacity(128 + answer.frames.iter().map(Bytes::len).sum::<usize>());
    body.extend_from_slice(
        format!(
            r#"{{"cursor":"{}","recovered":{}"#,
            answer.cursor, answer.recovered
        )
        .as_bytes(),
    );
    if answer.stale {
        body.extend_from_slice(br#","stale":true"#);
    }
    body.extend_from_slice(br#","frames":["#);
    for (at, frame) in answer.frames.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(frame);
    }
    body.extend_from_slice(b"]}");
    Ok(answer::json(StatusCode::OK, body))
}
