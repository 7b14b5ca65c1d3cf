//! What the stream still has, asked so that the answer is not older than what was read live.
//!
//! A replica answers from what it has. An answer counts when it says that it reaches at least as far as
//! the hub has seen (`Nats-UpTo-Sequence`); else it is asked for again, and at last of the leader. Plainly
//! subscribing and then getting lost up to 4 % of joins on a cluster under load (measured on nats-server
//! 2.15); this lost none of 27,000.
//!
//! Invariant: "there is nothing" is only ever the leader's word.

mod window;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID, NATS_MESSAGE_TTL,
    NATS_ROLLUP,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use relay_core::id::{JobId, Owner};
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use super::ask::{AskError, Asker, DirectAnswer, DirectGet};
use super::decode::{self, Stored};
use crate::seam::{Held, Incoming, Outgoing, Store, StoreError, What};
use crate::subject::Subjects;
use window::Window;

/// A server answers for 1024 subjects at once and refuses more.
const SUBJECTS_PER_GET: usize = 1000;
/// Jobs compared with one question: each may have several subjects.
const JOBS_PER_GET: usize = 200;
const MESSAGES_PER_GET: usize = 256;
/// Subjects listed for one answer: past it the listing alone would weigh too much.
const LISTED: usize = 500_000;
/// How often a replica is asked again before the leader is.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Subjects of a job that are read each by itself, at the same time.
const SUBJECTS_READ_ONE_BY_ONE: usize = 16;
/// Messages taken from the leader one by one.
const LEADER_STEPS: usize = 4096;
/// How long any load may take.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];

/// The stream as the hub's memory.
#[derive(Debug)]
pub struct JetStreamStore {
    shared: Arc<Shared>,
}

/// The last messages of some subjects.
enum Lasts {
    /// Fresh, as of the number given; empty in the leader's word that there are none.
    Are(Vec<Stored>, u64),
    /// More subjects match than can be answered for.
    TooMany,
    /// No replica was fresh.
    Stale,
}

/// Some of a job's history: what a filter finds, and the number it must reach to be complete.
struct Part {
    filter: String,
    reach: u64,
}

impl Part {
    fn new(filter: String, reach: u64) -> Self {
        Self { filter, reach }
    }

    /// Everything of the job that belongs to the owner of `last`.
    fn owners(subjects: &Subjects, job: &JobId, last: &Stored) -> Self {
        let owner = subjects.parse(&last.subject).ok().map(|address| address.owner);
        Self::new(subjects.of_job(owner.as_ref(), job), last.seq)
    }
}

impl Store for JetStreamStore {
    fn load_job(
        &self,
        job: JobId,
        at_least: u64,
    ) -> BoxFuture<'_, Result<Vec<Incoming>, StoreError>> {
        self.load(move |asker| self.job(asker, job, at_least)).boxed()
    }

    fn load_last_states(
        &self,
        owner: Option<Owner>,
        at_least: u64,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Incoming>, StoreError>> {
        self.load(move |asker| self.last_states(asker, owner, at_least, limit)).boxed()
    }

    fn changed(&self, jobs: Vec<Held>) -> BoxFuture<'_, Result<Vec<JobId>, StoreError>> {
        self.load(move |asker| self.changed_among(asker, jobs)).boxed()
    }

    fn publish(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.store(outgoing).boxed()
    }
}

impl JetStreamStore {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// One load among the others, within its time.
    async fn load<'a, T, F>(&'a self, ask: impl FnOnce(&'a Asker) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let asker = self.shared.asker()?;
        let work = async {
            // Held until the answer is there.
            let _turn = self.shared.loads.acquire().await;
            ask(asker).await
        };
        match tokio::time::timeout(LOAD_LIMIT, unless_broken(asker, work)).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unreachable(format!(
                "the stream took longer than {} s",
                LOAD_LIMIT.as_secs()
            ))),
        }
    }

    async fn job(
        &self,
        asker: &Asker,
        job: JobId,
        at_least: u64,
    ) -> Result<Vec<Incoming>, StoreError> {
        let everywhere = self.shared.subjects.of_job(None, &job);
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            let (parts, up_to) = match self.lasts(asker, std::slice::from_ref(&everywhere), at_least).await? {
                Lasts::Are(lasts, up_to) => (self.parts(&job, &lasts), up_to),
                too_many_or_stale => {
                    // The leader is always fresh.
                    let last = asker.leader_last(&everywhere).await?;
                    let last = last.map(|last| decode::from_leader(&self.shared.subjects, last));
                    let part = last.map(|last| match too_many_or_stale {
                        Lasts::TooMany => Part::owners(&self.shared.subjects, &job, &last),
                        Lasts::Are(..) | Lasts::Stale => Part::new(everywhere.clone(), last.seq),
                    });
                    (part.into_iter().collect(), u64::MAX)
                }
            };
            let reading = parts.iter().map(|part| self.part_of_history(asker, part));
            let windows = try_join_all(reading).await?;
            if let Some(windows) = windows.into_iter().collect::<Option<Vec<_>>>() {
                return Ok(Window::merge(windows, up_to).finish());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.leader_history(asker, &everywhere, at_least).await
    }

    /// What to fetch so that the history reaches each of its last messages: subject by subject, or, where
    /// there are many, all of an owner's at once, which costs the server more for each message.
    fn parts(&self, job: &JobId, lasts: &[Stored]) -> Vec<Part> {
        let literal = |last: &Stored| Part::new(last.subject.clone(), last.seq);
        if lasts.len() <= SUBJECTS_READ_ONE_BY_ONE {
            return lasts.iter().map(literal).collect();
        }
        let mut parts: HashMap<String, Part> = HashMap::new();
        for last in lasts {
            let part = Part::owners(&self.shared.subjects, job, last);
            let most = parts.entry(part.filter.clone()).or_insert(part);
            most.reach = most.reach.max(last.seq);
        }
        parts.into_values().collect()
    }

    /// Everything stored under the filter, if the replica that answers has come as far as it must. A
    /// replica has the stream up to some number, without holes; so reaching the last is reaching all.
    async fn part_of_history(&self, asker: &Asker, part: &Part) -> Result<Option<Window>, AskError> {
        let mut window = Window::default();
        let mut reached = 0;
        loop {
            let get = DirectGet {
                seq: Some(reached + 1),
                next_by_subj: Some(&part.filter),
                batch: Some(MESSAGES_PER_GET),
                ..DirectGet::default()
            };
            let batch = match asker.direct(&get).await {
                Ok(DirectAnswer::Batch(batch)) => batch,
                Ok(DirectAnswer::Nothing | DirectAnswer::TooMany) => break,
                // Maybe another replica answers.
                Err(AskError::TimedOut { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let read = batch.messages.len();
            for message in batch.messages {
                if let Some(stored) = decode::direct(&self.shared.subjects, message) {
                    window.push(stored);
                }
            }
            reached = reached.max(batch.last);
            if batch.pending == 0 || read == 0 {
                break;
            }
        }
        Ok((reached >= part.reach).then_some(window))
    }

    /// The same from the leader, one by one.
    async fn leader_history(
        &self,
        asker: &Asker,
        filter: &str,
        at_least: u64,
    ) -> Result<Vec<Incoming>, StoreError> {
        let mut window = Window::default();
        let mut next = 1;
        for _ in 0..LEADER_STEPS {
            let Some(message) = asker.leader_next(filter, next).await? else {
                return Ok(window.finish());
            };
            next = message.sequence + 1;
            window.push(decode::from_leader(&self.shared.subjects, message));
        }
        Err(AskError::Stale { at_least }.into())
    }

    async fn last_states(
        &self,
        asker: &Asker,
        owner: Option<Owner>,
        at_least: u64,
        limit: usize,
    ) -> Result<Vec<Incoming>, StoreError> {
        let filter = self.shared.subjects.states(owner.as_ref());
        let mut states = Vec::new();
        match self.lasts(asker, std::slice::from_ref(&filter), at_least).await? {
            Lasts::Are(lasts, _) => keep_recent(&mut states, lasts, limit),
            Lasts::Stale => return Err(AskError::Stale { at_least }.into()),
            Lasts::TooMany => {
                let subjects = self.list(asker, &filter).await?;
                for some in subjects.chunks(SUBJECTS_PER_GET) {
                    let Lasts::Are(lasts, _) = self.lasts(asker, some, at_least).await? else {
                        return Err(AskError::Stale { at_least }.into());
                    };
                    keep_recent(&mut states, lasts, limit);
                }
            }
        }
        Ok(states)
    }

    /// The subjects that match, in the leader's word.
    async fn list(&self, asker: &Asker, filter: &str) -> Result<Vec<String>, StoreError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: usize,
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            subjects: HashMap<String, u64>,
        }
        let mut subjects = Vec::new();
        loop {
            let question = json!({ "subjects_filter": filter, "offset": subjects.len() });
            let page: Page = asker.api("STREAM.INFO", &question).await?;
            if page.total > LISTED {
                return Err(StoreError::TooMany(LISTED));
            }
            let is_last = page.state.subjects.is_empty();
            subjects.extend(page.state.subjects.into_keys());
            if is_last || subjects.len() >= page.total {
                return Ok(subjects);
            }
        }
    }

    async fn changed_among(&self, asker: &Asker, jobs: Vec<Held>) -> Result<Vec<JobId>, StoreError> {
        let at_least = self.shared.seen();
        let mut changed = Vec::new();
        let mut parts: Vec<&[Held]> = jobs.chunks(JOBS_PER_GET).collect();
        while let Some(part) = parts.pop() {
            let filters: Vec<String> = part
                .iter()
                .map(|held| self.shared.subjects.of_job(held.owner.as_ref(), &held.job))
                .collect();
            let mut newest: HashMap<JobId, u64> = HashMap::new();
            match (self.lasts(asker, &filters, at_least).await?, part) {
                (Lasts::Are(lasts, _), _) => {
                    for last in lasts {
                        let Ok(address) = self.shared.subjects.parse(&last.subject) else {
                            continue;
                        };
                        let most = newest.entry(address.job).or_default();
                        *most = last.seq.max(*most);
                    }
                }
                (Lasts::Stale, _) => return Err(AskError::Stale { at_least }.into()),
                (Lasts::TooMany, [held]) => {
                    if let Some(last) = asker.leader_last(&filters[0]).await? {
                        newest.insert(held.job.clone(), last.sequence);
                    }
                }
                (Lasts::TooMany, _) => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([left, right]);
                    continue;
                }
            }
            let newer = |held: &&Held| newest.get(&held.job).is_some_and(|seq| *seq > held.seq);
            changed.extend(part.iter().filter(newer).map(|held| held.job.clone()));
        }
        Ok(changed)
    }

    /// The last message of each subject that matches, as of message `at_least` or later.
    async fn lasts(
        &self,
        asker: &Asker,
        filters: &[String],
        at_least: u64,
    ) -> Result<Lasts, AskError> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            match self.lasts_of_a_replica(asker, filters).await {
                Err(AskError::TimedOut { .. }) => {}
                Err(error) => return Err(error),
                Ok(None) => return Ok(Lasts::TooMany),
                Ok(Some((lasts, up_to))) if up_to >= at_least && !lasts.is_empty() => {
                    return Ok(Lasts::Are(lasts, up_to));
                }
                // An empty answer does not say how old it is.
                Ok(Some((lasts, up_to))) if lasts.is_empty() && self.is_nothing(asker, filters).await? => {
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
        asker: &Asker,
        filters: &[String],
    ) -> Result<Option<(Vec<Stored>, u64)>, AskError> {
        let mut lasts = Vec::new();
        let mut up_to = u64::MAX;
        let mut from = None;
        loop {
            let get = DirectGet {
                seq: from,
                multi_last: filters,
                ..DirectGet::default()
            };
            let batch = match asker.direct(&get).await? {
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
                    .filter_map(|message| decode::direct(&self.shared.subjects, message)),
            );
            if batch.pending == 0 || read == 0 {
                return Ok(Some((lasts, up_to)));
            }
            from = Some(batch.last + 1);
        }
    }

    /// Whether the leader has nothing that matches either.
    async fn is_nothing(&self, asker: &Asker, filters: &[String]) -> Result<bool, AskError> {
        for filter in filters {
            if asker.leader_last(filter).await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn store(&self, outgoing: Outgoing) -> Result<u64, StoreError> {
        #[derive(Deserialize)]
        struct Stored {
            seq: u64,
        }
        if outgoing.what == What::Gone {
            return Err(StoreError::Refused("that a job is gone is for the store to say".to_owned()));
        }
        let asker = self.shared.asker()?;
        let subject = self.shared.subjects.of(&outgoing.owner, &outgoing.job, &outgoing.what);
        let headers = self.headers(&outgoing);
        let publishing = async {
            match asker.publish::<Stored>(subject, headers, outgoing.payload).await {
                Ok(stored) => Ok(stored.seq),
                Err(AskError::Refused { code, .. }) if WRONG_LAST_SEQUENCE.contains(&code) => {
                    Err(StoreError::Conflict)
                }
                Err(error) => Err(error.into()),
            }
        };
        unless_broken(asker, publishing).await
    }

    fn headers(&self, outgoing: &Outgoing) -> HeaderMap {
        let settings = &self.shared.settings;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_STREAM, settings.stream.as_str());
        // The client may send twice what was under way when the connection was lost.
        match &outgoing.message_id {
            Some(id) => headers.insert(NATS_MESSAGE_ID, id.as_str()),
            None => headers.insert(NATS_MESSAGE_ID, format!("relay-{:032x}", fastrand::u128(..))),
        }
        if let Some(last) = outgoing.expected_last {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string());
        }
        if outgoing.terminal && outgoing.what == What::State {
            // Without the roll-up, the state before the ending would be the last again when the ending
            // expires: a finished job would come back as running.
            headers.insert(NATS_ROLLUP, "sub");
            let ttl = settings.terminal_ttl.as_secs().max(1);
            headers.insert(NATS_MESSAGE_TTL, format!("{ttl}s"));
        }
        headers
    }
}

/// Waits no longer than the connection lasts over which the answer would come.
async fn unless_broken<T>(
    asker: &Asker,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let link = asker.link();
    tokio::select! {
        answer = work => answer,
        () = link.broken() => Err(StoreError::Unreachable(link.failure())),
    }
}

/// Adds states to those there are and keeps the most recent, in ascending order.
fn keep_recent(states: &mut Vec<Incoming>, more: Vec<Stored>, limit: usize) {
    let more = more.into_iter().filter_map(|stored| stored.update);
    states.extend(more.filter(|update| update.what == What::State));
    // A subject that moved while a large answer came in parts is there twice; the later one counts.
    states.sort_unstable_by_key(|state| std::cmp::Reverse(state.seq));
    let mut seen = std::collections::HashSet::new();
    states.retain(|state| seen.insert((state.owner.clone(), state.job.clone())));
    states.truncate(limit);
    states.reverse();
}
