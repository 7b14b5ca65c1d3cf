//! Requests that come again under the same key: what became of each lately.
//!
//! A key is a caller's word (`Idempotency-Key`) for one request. It is made into a [`Stamp`] together with all
//! that separates requests, so no caller's key can be another's. What was published under a stamp is remembered
//! here, on this node; a store that knows stamps itself recognises them on every node.
//!
//! The same request twice at a time is carried out once; the second waits for what becomes of the first.
//!
//! Invariant: a stamp is under way once at a time, and remembered only when its request was published.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use relay_core::id::{JobName, Name};
use relay_core::moment::Moment;
use relay_core::position::Position;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::Hub;
use super::publish::Verb;
use crate::clock::Clock;
use crate::seam::{Reused, Stamp, What};

/// How long a key is remembered: as long as a stream that the relay makes recognises it.
const KEPT: Duration = Duration::from_secs(120);
/// Keys remembered, 64 bytes each; past it the oldest go first.
const KEYS: usize = 65_536;

/// A caller's word for one request.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// Who asks; nobody where nobody is identified.
    caller: Option<Name>,
    /// The key as the caller wrote it.
    text: String,
    /// Which part of the request this is: a line of a batch.
    part: Option<usize>,
}

impl RequestKey {
    /// The key that `caller` gave a request.
    pub fn new(caller: Option<Name>, text: &str) -> Self {
        let text = text.to_owned();
        Self {
            caller,
            text,
            part: None,
        }
    }

    /// The same key, for one part of the request.
    #[must_use]
    pub fn part(self, part: usize) -> Self {
        let part = Some(part);
        Self { part, ..self }
    }

    /// What this key is for an update of `job`.
    pub(super) fn of_update(&self, job: &JobName, verb: &Verb, payload: &[u8]) -> Stamp {
        let (owner, id) = (job.owner.as_str(), job.id.as_str());
        let verb = match verb {
            Verb::Put(What::State | What::Gone) => "state",
            Verb::Put(What::Milestone(name)) => {
                return self.stamp(&["milestone", owner, id, name.as_str()], payload);
            }
            Verb::Patch => "patch",
            Verb::Remove => "remove",
        };
        self.stamp(&[verb, owner, id], payload)
    }

    fn stamp(&self, about: &[&str], payload: &[u8]) -> Stamp {
        let part = self.part.map(|part| part.to_string());
        let ours = [
            self.caller.as_ref().map_or("", Name::as_str),
            &self.text,
            part.as_deref().unwrap_or(""),
        ];
        let mut id = Sha256::new();
        for text in ours.iter().chain(about) {
            // With its length, or two texts could be cut elsewhere.
            id.update(text.len().to_be_bytes());
            id.update(text);
        }
        Stamp {
            id: short(id),
            content: short(Sha256::new_with_prefix(payload)),
        }
    }
}

/// The first half of a digest: still nothing that two requests share by chance, or by somebody's will.
fn short(digest: Sha256) -> u128 {
    let digest = digest.finalize();
    digest
        .iter()
        .take(16)
        .fold(0, |all, byte| all << 8 | u128::from(*byte))
}

/// What is remembered of a stamp.
#[derive(Debug, Clone, Copy)]
struct Known {
    content: u128,
    /// Where it was published; `None` while it is under way.
    at: Option<Position>,
}

#[derive(Debug, Default)]
struct Memory {
    known: HashMap<u128, Known>,
    /// Every id that was remembered, and when, oldest first. One whose request failed is here and not in `known`.
    order: VecDeque<(u128, Moment)>,
}

/// The keys of a node.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Held for a look, never across an await.
    memory: Mutex<Memory>,
    /// Wakes those whose request is under way already, when any request has ended.
    ended: Notify,
}

/// A request that may be carried out.
#[derive(Debug)]
#[must_use = "a key is free again when its claim is dropped"]
pub(super) enum Claimed<'a> {
    /// It was not seen lately.
    New(Claim<'a>),
    /// It was published, here.
    Done(Position),
}

/// A request of many parts that is under way under one key.
#[derive(Debug)]
pub struct ClaimedBatch<'a> {
    claim: Option<Claim<'a>>,
    place: Position,
}

impl Drop for ClaimedBatch<'_> {
    /// The parts remember for themselves what was published; here only what the whole was is kept.
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            claim.done(self.place);
        }
    }
}

impl Hub {
    /// Takes a key for a request of many parts, each of which has its own [`RequestKey::part`].
    ///
    /// # Errors
    /// When the key was used for another request.
    pub async fn claim_batch(
        &self,
        key: &RequestKey,
        payload: &[u8],
    ) -> Result<ClaimedBatch<'_>, Reused> {
        let stamp = key.stamp(&["batch"], payload);
        let claimed = self.keys.claim(stamp, self.clock).await?;
        let place = self.place();
        let claim = match claimed {
            Claimed::New(claim) => Some(claim),
            Claimed::Done(_) => None,
        };
        Ok(ClaimedBatch { claim, place })
    }
}

/// A key that is under way. Dropped without [`Claim::done`], the request may be tried again.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    keys: &'a Keys,
    stamp: Stamp,
    is_done: bool,
}

impl Keys {
    /// Takes a key for one request, as soon as no other has it.
    ///
    /// # Errors
    /// When it was used for another body.
    pub(super) async fn claim(&self, stamp: Stamp, clock: Clock) -> Result<Claimed<'_>, Reused> {
        loop {
            let ended = self.ended.notified();
            let mut ended = std::pin::pin!(ended);
            // From here on nothing that ends is missed.
            ended.as_mut().enable();
            if let Some(claimed) = self.try_claim(stamp, clock.now())? {
                return Ok(claimed);
            }
            ended.await;
        }
    }

    /// The same, now; `None` if it is under way.
    fn try_claim(&self, stamp: Stamp, now: Moment) -> Result<Option<Claimed<'_>>, Reused> {
        let mut memory = self.memory.lock();
        memory.forget(now);
        match memory.known.get(&stamp.id) {
            Some(known) if known.content != stamp.content => {
                return Err(Reused::OtherBody);
            }
            Some(known) => return Ok(known.at.map(Claimed::Done)),
            None => {}
        }
        let content = stamp.content;
        memory.known.insert(stamp.id, Known { content, at: None });
        memory.order.push_back((stamp.id, now));
        Ok(Some(Claimed::New(Claim {
            keys: self,
            stamp,
            is_done: false,
        })))
    }
}

impl Memory {
    fn forget(&mut self, now: Moment) {
        while let Some((id, since)) = self.order.front().copied() {
            if self.order.len() < KEYS && now - since < KEPT {
                return;
            }
            self.order.pop_front();
            self.known.remove(&id);
        }
    }
}

impl Claim<'_> {
    /// By what the store may recognise it.
    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The request was published.
    pub(super) fn done(mut self, at: Position) {
        self.is_done = true;
        // Its drop wakes those who wait.
        if let Some(known) = self.keys.memory.lock().known.get_mut(&self.stamp.id) {
            known.at = Some(at);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.keys.memory.lock().known.remove(&self.stamp.id);
        }
        self.keys.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use relay_core::position::{Epoch, Seq};

    use super::*;

    fn key(caller: &str, text: &str, part: Option<usize>) -> RequestKey {
        RequestKey {
            caller: Name::parse(caller).ok(),
            text: text.to_owned(),
            part,
        }
    }

    fn stamp(key: &RequestKey, owner: &str, job: &str, verb: &Verb) -> Stamp {
        let job = JobName::new(Name::parse(owner).unwrap(), Name::parse(job).unwrap());
        key.of_update(&job, verb, b"{}")
    }

    fn milestone(name: &str) -> Verb {
        Verb::Put(What::Milestone(Name::parse(name).unwrap()))
    }

    #[test]
    fn a_key_belongs_to_its_caller_owner_job_request_and_line() {
        let state = Verb::Put(What::State);
        let all = [
            stamp(&key("a", "1", None), "o", "j", &state),
            stamp(&key("b", "1", None), "o", "j", &state),
            stamp(&key("", "1", None), "o", "j", &state),
            stamp(&key("a", "2", None), "o", "j", &state),
            stamp(&key("a", "1", Some(1)), "o", "j", &state),
            stamp(&key("a", "1", Some(2)), "o", "j", &state),
            stamp(&key("a", "1", None), "p", "j", &state),
            stamp(&key("a", "1", None), "o", "k", &state),
            stamp(&key("a", "1", None), "o", "j", &Verb::Patch),
            stamp(&key("a", "1", None), "o", "j", &milestone("m")),
            stamp(&key("a", "1", None), "o", "j", &milestone("state")),
            stamp(&key("a", "1o", None), "j", "state", &state),
            stamp(&key("a", "11", None), "o", "j", &state),
        ];
        let ids: std::collections::HashSet<u128> = all.iter().map(|stamp| stamp.id).collect();
        assert_eq!(ids.len(), all.len());
        assert_eq!(all[0], stamp(&key("a", "1", None), "o", "j", &state));
    }

    fn at(seq: u64) -> Position {
        Position::new(Epoch::new(1), Seq::new(seq))
    }

    fn moment(seconds: u64) -> Moment {
        Moment::from_micros(seconds * 1_000_000)
    }

    const ONE: Stamp = Stamp { id: 1, content: 7 };

    fn begin(keys: &Keys, stamp: Stamp, now: Moment) -> Claim<'_> {
        match keys.try_claim(stamp, now) {
            Ok(Some(Claimed::New(claim))) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_published_is_remembered_and_what_failed_may_be_tried_again() {
        let keys = Keys::default();
        drop(begin(&keys, ONE, moment(0)));
        begin(&keys, ONE, moment(1)).done(at(5));
        let again = keys.try_claim(ONE, moment(2));
        assert!(matches!(again, Ok(Some(Claimed::Done(found))) if found == at(5)));
        let other = Stamp { content: 8, ..ONE };
        let other = keys.try_claim(other, moment(2));
        assert_eq!(other.err(), Some(Reused::OtherBody));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_request_waits_for_the_first_and_is_carried_out_if_that_fails() {
        let (keys, clock) = (Keys::default(), Clock::start());
        let first = begin(&keys, ONE, clock.now());
        let mut again = Box::pin(keys.claim(ONE, clock));
        assert!(again.as_mut().now_or_never().is_none());
        drop(first);
        let Some(Ok(Claimed::New(second))) = again.now_or_never() else {
            panic!("the first has failed");
        };
        let mut again = Box::pin(keys.claim(ONE, clock));
        assert!(again.as_mut().now_or_never().is_none());
        second.done(at(5));
        let done = again.now_or_never();
        assert!(matches!(done, Some(Ok(Claimed::Done(found))) if found == at(5)));
    }

    #[test]
    fn a_key_is_forgotten_after_two_minutes_and_the_oldest_when_there_are_too_many() {
        let keys = Keys::default();
        begin(&keys, ONE, moment(0)).done(at(5));
        begin(&keys, ONE, moment(120)).done(at(6));
        for id in 0..2 * KEYS as u128 {
            let stamp = Stamp {
                id: id + 2,
                content: 0,
            };
            begin(&keys, stamp, moment(121)).done(at(7));
        }
        let memory = keys.memory.lock();
        assert!(memory.known.len() <= KEYS && memory.order.len() <= KEYS);
        assert!(!memory.known.contains_key(&ONE.id));
    }
}
