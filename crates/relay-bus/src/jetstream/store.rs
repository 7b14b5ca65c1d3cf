//! What the stream still has, asked so that the answer is not older than what was read live.
//!
//! A replica answers from what it has. An answer counts when it says that it reaches at least as far as
//! the hub has seen (`Nats-UpTo-Sequence`); else it is asked for again, and at last of the leader. Plainly
//! subscribing and then getting lost up to 4 % of joins on a cluster under load (measured on nats-server
//! 2.15); this lost none of 27,000.
//!
//! Invariant: "there is nothing" is only ever the leader's word.

mod history;
mod lasts;
mod window;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use relay_core::id::{JobId, JobName, Named, Owner};
use relay_core::position::Seq;
use serde::Deserialize;
use serde_json::json;

use super::ask::{AskError, Asker};
use super::decode::Stored;
use super::{Shared, publishing};
use crate::seam::{
    Held, History, Incoming, Outgoing, Rejection, Store, StoreError, Unreachable, What,
};
use crate::subject::Subjects;
use lasts::Lasts;

/// A server answers for 1024 subjects at once and refuses more.
const SUBJECTS_PER_GET: usize = 1000;
/// Jobs compared with one question: each may have several subjects.
const JOBS_PER_GET: usize = 200;
/// Subjects listed for one answer: past it the listing alone would weigh too much.
const LISTED: usize = 500_000;
/// How long any load may take.
const LOAD_LIMIT: Duration = Duration::from_secs(30);

/// The stream as the hub's memory.
#[derive(Debug)]
pub struct JetStreamStore {
    shared: Arc<Shared>,
}

impl Store for JetStreamStore {
    fn load_job(&self, job: JobName, at_least: Seq) -> BoxFuture<'_, Result<History, StoreError>> {
        self.load(async move |reading| reading.job(job, at_least).await)
            .boxed()
    }

    fn load_owners(
        &self,
        id: JobId,
        at_least: Seq,
    ) -> BoxFuture<'_, Result<(Vec<Owner>, Seq), StoreError>> {
        self.load(async move |reading| reading.owners(id, at_least).await)
            .boxed()
    }

    fn load_last_states(
        &self,
        owner: Option<Owner>,
        at_least: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Incoming>, StoreError>> {
        self.load(async move |reading| reading.last_states(owner, at_least, limit).await)
            .boxed()
    }

    fn changed(&self, jobs: Vec<Held>) -> BoxFuture<'_, Result<Vec<Named>, StoreError>> {
        let seen = self.shared.seen();
        self.load(async move |reading| reading.changed_among(jobs, seen).await)
            .boxed()
    }

    fn ask(
        &self,
        subject: String,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        async move {
            let link = self.shared.asker()?.link();
            link.ask(subject, payload, timeout).await
        }
        .boxed()
    }

    fn kept_per_subject(&self) -> Option<u64> {
        let kept = self.shared.per_subject.load(Ordering::Relaxed);
        (kept > 0).then_some(kept)
    }

    fn publish(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<Seq, StoreError>> {
        self.store(outgoing).boxed()
    }
}

impl JetStreamStore {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// One load among the others, within its time.
    async fn load<'a, T, F>(&'a self, read: impl FnOnce(Reading<'a>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let reading = Reading {
            asker: self.shared.asker()?,
            subjects: &self.shared.subjects,
        };
        let work = async {
            // Held until the answer is there.
            let _turn = self.shared.loads.acquire().await;
            read(reading).await
        };
        match tokio::time::timeout(LOAD_LIMIT, unless_broken(reading.asker, work)).await {
            Ok(answer) => answer,
            Err(_) => Err(Unreachable::Slow { limit: LOAD_LIMIT }.into()),
        }
    }

    async fn store(&self, outgoing: Outgoing) -> Result<Seq, StoreError> {
        if outgoing.what == What::Gone {
            return Err(Rejection::Gone.into());
        }
        let asker = self.shared.asker()?;
        let (settings, subjects) = (&self.shared.settings, &self.shared.subjects);
        let subject = subjects.of(&outgoing.job, &outgoing.what);
        let publishing = publishing::publish(asker, settings, subject, outgoing);
        unless_broken(asker, publishing).await
    }
}

/// Subjects, each with how many messages are stored on it, as of a number.
struct Listed {
    subjects: HashMap<String, u64>,
    up_to: Seq,
}

/// One load.
#[derive(Debug, Clone, Copy)]
struct Reading<'a> {
    asker: &'a Asker,
    subjects: &'a Subjects,
}

impl Reading<'_> {
    async fn last_states(
        &self,
        owner: Option<Owner>,
        at_least: Seq,
        limit: usize,
    ) -> Result<Vec<Incoming>, StoreError> {
        let filter = self.subjects.states(owner.as_ref());
        let mut states = Vec::new();
        let listed = match self.lasts(std::slice::from_ref(&filter), at_least).await? {
            Lasts::Are(lasts, _) => {
                keep_recent(&mut states, lasts, limit);
                if states.is_empty() {
                    return Ok(states);
                }
                self.list(&filter).await?
            }
            Lasts::Stale => return Err(AskError::Stale { at_least }.into()),
            Lasts::TooMany => {
                let listed = self.list(&filter).await?;
                let subjects: Vec<String> = listed.subjects.keys().cloned().collect();
                for some in subjects.chunks(SUBJECTS_PER_GET) {
                    let Lasts::Are(lasts, _) = self.lasts(some, at_least).await? else {
                        return Err(AskError::Stale { at_least }.into());
                    };
                    keep_recent(&mut states, lasts, limit);
                }
                listed
            }
        };
        for state in &mut states {
            let subject = self.subjects.of(&state.job, &state.what);
            let is_sole = listed.subjects.get(&subject) == Some(&1) && state.seq <= listed.up_to;
            state.previous = is_sole.then_some(Seq::ZERO);
        }
        Ok(states)
    }

    /// Whose jobs there are with this id, in the leader's word: of no message more than its subject is read.
    async fn owners(&self, id: JobId, at_least: Seq) -> Result<(Vec<Owner>, Seq), StoreError> {
        let listed = self.list(&self.subjects.of_job(&Named::bare(id))).await?;
        let addresses = listed.subjects.keys();
        let addresses = addresses.filter_map(|subject| self.subjects.parse(subject).ok());
        let owners: BTreeSet<Owner> = addresses.map(|address| address.job.owner).collect();
        Ok((owners.into_iter().collect(), listed.up_to.max(at_least)))
    }

    /// The subjects that match, in the leader's word.
    async fn list(&self, filter: &str) -> Result<Listed, StoreError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: usize,
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            last_seq: Seq,
            #[serde(default)]
            subjects: HashMap<String, u64>,
        }
        let mut listed = Listed {
            subjects: HashMap::new(),
            up_to: Seq::MAX,
        };
        let mut offset = 0;
        loop {
            let question = json!({ "subjects_filter": filter, "offset": offset });
            let page: Page = self.asker.api("STREAM.INFO", &question).await?;
            if page.total > LISTED {
                return Err(StoreError::TooMany(LISTED));
            }
            listed.up_to = listed.up_to.min(page.state.last_seq);
            let is_last = page.state.subjects.is_empty();
            offset += page.state.subjects.len();
            listed.subjects.extend(page.state.subjects);
            if is_last || offset >= page.total {
                return Ok(listed);
            }
        }
    }

    async fn leader_last_of(&self, held: &Held) -> Result<Option<StreamMessage>, AskError> {
        let filter = self.subjects.of_job(&held.job);
        self.asker.leader_last(&filter).await
    }

    async fn changed_among(
        &self,
        jobs: Vec<Held>,
        at_least: Seq,
    ) -> Result<Vec<Named>, StoreError> {
        let mut changed = Vec::new();
        let mut parts: Vec<&[Held]> = jobs.chunks(JOBS_PER_GET).collect();
        while let Some(part) = parts.pop() {
            let filters: Vec<String> = part
                .iter()
                .map(|held| self.subjects.of_job(&held.job))
                .collect();
            let mut newest: HashMap<Named, Seq> = HashMap::new();
            match (self.lasts(&filters, at_least).await?, part) {
                (Lasts::Are(lasts, _), _) => {
                    for last in lasts {
                        let Ok(address) = self.subjects.parse(&last.subject) else {
                            continue;
                        };
                        // Somebody may wait for whatever is called so.
                        let bare = Named::bare(address.job.id.clone());
                        for named in [bare, address.job.into()] {
                            let most = newest.entry(named).or_default();
                            *most = last.seq.max(*most);
                        }
                    }
                }
                (Lasts::Stale, _) => return Err(AskError::Stale { at_least }.into()),
                (Lasts::TooMany, [held]) => {
                    if let Some(last) = self.leader_last_of(held).await? {
                        newest.insert(held.job.clone(), Seq::new(last.sequence));
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
}

/// Waits no longer than the connection lasts over which the answer would come.
async fn unless_broken<T>(
    asker: &Asker,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let link = asker.link();
    tokio::select! {
        answer = work => answer,
        () = link.broken() => Err(link.away().into()),
    }
}

/// Adds states to those there are and keeps the most recent, in ascending order.
fn keep_recent(states: &mut Vec<Incoming>, more: Vec<Stored>, limit: usize) {
    let more = more.into_iter().filter_map(|stored| stored.update);
    states.extend(more.filter(|update| update.what == What::State));
    // A subject that moved while a large answer came in parts is there twice; the later one counts.
    states.sort_unstable_by_key(|state| std::cmp::Reverse(state.seq));
    let mut seen = std::collections::HashSet::new();
    states.retain(|state| seen.insert(state.job.clone()));
    states.truncate(limit);
    states.reverse();
}
