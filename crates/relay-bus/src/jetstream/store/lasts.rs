//! The last message of each of some subjects, no older than it must be.

use std::time::Duration;

use relay_core::position::Seq;

use super::Reading;
use crate::jetstream::ask::{AskError, DirectAnswer, DirectGet};
use crate::jetstream::decode::{self, Stored};

/// How often a replica is asked again before the leader is.
pub(super) const TRIES: u32 = 6;
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The last messages of some subjects.
pub(super) enum Lasts {
    /// Fresh, as of the number given; empty in the leader's word that there are none.
    Are(Vec<Stored>, Seq),
    /// More subjects match than can be answered for.
    TooMany,
    /// No replica was fresh.
    Stale,
}

impl Reading<'_> {
    /// The last message of each subject that matches, as of message `at_least` or later.
    pub(super) async fn lasts(&self, filters: &[String], at_least: Seq) -> Result<Lasts, AskError> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            match self.lasts_of_a_replica(filters).await {
                Err(AskError::TimedOut { .. }) => {}
                Err(error) => return Err(error),
                Ok(None) => return Ok(Lasts::TooMany),
                Ok(Some((lasts, up_to))) if up_to >= at_least && !lasts.is_empty() => {
                    return Ok(Lasts::Are(lasts, up_to));
                }
                // An empty answer does not say how old it is.
                Ok(Some((lasts, up_to)))
                    if lasts.is_empty() && self.is_nothing(filters).await? =>
                {
                    return Ok(Lasts::Are(lasts, up_to));
                }
                Ok(Some(_)) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(Lasts::Stale)
    }

    /// What one replica says, and the last number it has; `None` if there are too many. Large answers
    /// come in parts, maybe from different replicas: the oldest counts. A subject that moves meanwhile
    /// moves to a later part, so none is missed.
    async fn lasts_of_a_replica(
        &self,
        filters: &[String],
    ) -> Result<Option<(Vec<Stored>, Seq)>, AskError> {
        let mut lasts = Vec::new();
        let mut up_to = Seq::MAX;
        let mut from = None;
        loop {
            let get = DirectGet {
                seq: from,
                multi_last: filters,
                ..DirectGet::default()
            };
            let batch = match self.asker.direct(&get).await? {
                DirectAnswer::Batch(batch) => batch,
                DirectAnswer::TooMany => return Ok(None),
                DirectAnswer::Nothing => return Ok(Some((lasts, up_to))),
            };
            up_to = up_to.min(batch.up_to);
            let read = batch.messages.len();
            lasts.extend(
                batch
                    .messages
                    .into_iter()
                    .filter_map(|message| decode::direct(self.subjects, message)),
            );
            if batch.pending == 0 || read == 0 {
                return Ok(Some((lasts, up_to)));
            }
            from = Some(batch.last.next());
        }
    }

    /// Whether the leader has nothing that matches either.
    async fn is_nothing(&self, filters: &[String]) -> Result<bool, AskError> {
        for filter in filters {
            if self.asker.leader_last(filter).await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
