//! Long-poll: a request that waits for news, and its answer.
//!
//! The wait is kept here; what news is, and what has been seen, is the shard's.
//!
//! Invariant: a request that is dropped takes its poll with it.

use std::time::Duration;

use axum::body::Body;
use http::{Response, StatusCode};
use relay_bus::inbox::ConnectionId;
use relay_wire::exchange::{Hurry, Unanswered};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Door;
use super::gate::LOOKUP_WAIT;
use super::peer::Peer;
use crate::answer::{self, ApiError};
use crate::shard::{Opening, Shard};

impl Door {
    /// Watches until there is news, or `wait` is over. A client that sends nothing more is not kept waiting: it may
    /// be gone, and if it is not, it has its answer.
    pub(super) async fn poll_once(
        &self,
        opening: Opening,
        wait: Duration,
        peer: &Peer,
    ) -> Result<Response<Body>, ApiError> {
        let (request, mut answered) = oneshot::channel();
        let (id, _) = self.shard.begin_polling(opening, Some(request));
        let shard = &self.shard;
        let _forgotten = Forget { shard, id };
        let news = async {
            tokio::select! {
                answer = &mut answered => Some(answer),
                () = peer.hung_up() => None,
            }
        };
        let answer = match timeout(wait, news).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => {
                shard.hurry(id, Hurry::Time);
                match timeout(LOOKUP_WAIT, &mut answered).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        shard.hurry(id, Hurry::Lookup);
                        answered.await
                    }
                }
            }
        };
        let body = answer.map_err(|_| ApiError::draining())?;
        match body {
            Ok(body) => Ok(answer::json(StatusCode::OK, body)),
            Err(Unanswered::Forbidden) => Err(ApiError::forbidden()),
            Err(Unanswered::Ambiguous) => Err(ApiError::ambiguous()),
            Err(Unanswered::Draining) => Err(ApiError::draining()),
            Err(Unanswered::BusUnavailable) => Err(ApiError::bus_unavailable()),
        }
    }
}

/// Forgets a poll when its request is dropped; one that was answered is gone already.
struct Forget<'a> {
    shard: &'a Shard,
    id: ConnectionId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shard.forget(self.id);
    }
}
