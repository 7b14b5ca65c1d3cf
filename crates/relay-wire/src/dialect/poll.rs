//! Routes that answer plain requests: how a job stands, how those of a user or a group do, and how the relay is.
//!
//! It makes bodies; what a request is worth, how it is answered and what is known of jobs is not its affair.
//!
//! Invariant: what a body is made of is bounded, however much is known of a job.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relay_core::id::Name;
use relay_core::moment::WallTime;
use relay_core::publication::{Body, Encoded, Publication};
use relay_core::tally::Tally;
use relay_core::topic::Topic;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::jq::{Failure, Input, Mapping};
use super::past::{Milestone, Past};
use super::template::{BadTopic, NoTopic, Template};
use super::{Dialect, Params};
use crate::native::frame;

/// Bytes of documents that go into one list.
const MAX_LISTED_BYTES: usize = 2 * 1024 * 1024;

/// A route that is asked again and again: for one job, or how the jobs of a user or a group stand.
pub struct Poll {
    /// The path as the file has it; a metric's label.
    pub path: String,
    /// The dialect.
    pub dialect: Arc<Dialect>,
    /// Requests a user may make in a minute.
    pub per_minute: Option<u32>,
    /// What `Retry-After` says until a job has ended.
    pub interval: Option<Duration>,
    pub(super) topic: Template,
    /// The file's own word for this kind of route.
    pub view: String,
    /// How many jobs it lists; none where it tells of one job, or of all taken together.
    pub list: Option<usize>,
    pub(super) body: Mapping,
    pub(super) unknown: Option<Unknown>,
    pub(super) slot: usize,
    pub(super) slots: Arc<AtomicUsize>,
}

/// The answer where nothing is known yet of what a poll asks for.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) status: u16,
    pub(super) body: Mapping,
}

/// A route that says whether the relay is well.
pub struct Health {
    /// The path as the file has it; a metric's label.
    pub path: String,
    /// The dialect.
    pub dialect: Arc<Dialect>,
    pub(super) body: Mapping,
}

/// What mappings of polls know besides their input.
#[derive(Serialize)]
struct Context<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    view: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_at: Option<String>,
    at: Option<String>,
    ms: i64,
    milestones: Vec<Milestone<'a>>,
    milestones_lost: bool,
}

/// What a mapping is to read; where that cannot be read, it counts as a failure of the mapping.
fn counted(mapping: &Mapping, input: Result<Input, Failure>) -> Option<Input> {
    input.inspect_err(|failure| mapping.failed(failure)).ok()
}

/// One of the jobs a list has.
#[derive(Serialize)]
struct Listed<'a> {
    job: &'a RawValue,
    status: Option<&'a str>,
    first_at: Option<String>,
    at: Option<String>,
    ms: i64,
}

/// The input of a list's mapping.
#[derive(Serialize)]
struct List<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    topic: String,
    jobs: Vec<Listed<'a>>,
    total: u32,
}

impl Poll {
    /// What a request is about.
    ///
    /// # Errors
    /// When path, query and credential do not say it.
    pub fn topic(
        &self,
        params: &Params,
        query: &[(String, String)],
        user: Option<&Name>,
    ) -> Result<Topic, NoTopic> {
        let text = self.topic.fill(params, query, user);
        let text = text.ok_or_else(|| self.topic.missing(query))?;
        Ok(BadTopic::unless(text)?)
    }

    /// Whether its body tells of the job's milestones.
    pub fn reads_milestones(&self) -> bool {
        self.body.reads_milestones()
    }

    /// The body for how the jobs of a topic stand. `None`: the mapping failed on it.
    pub fn summary(&self, topic: &Topic, tally: &Tally, at: WallTime) -> Option<Vec<u8>> {
        let input = counted(&self.body, Input::of(&frame::standing(topic, tally)))?;
        self.run(&self.body, &input, at)
    }

    /// The body for a list of jobs, by their latest states; `total` says how many there are. `None`: the mapping
    /// failed on it.
    pub fn listing(
        &self,
        topic: &Topic,
        states: &[Arc<Publication>],
        total: u32,
        at: WallTime,
    ) -> Option<Vec<u8>> {
        let mut left = MAX_LISTED_BYTES;
        let mut jobs = Vec::with_capacity(states.len());
        for state in states {
            let Body::State { json, status, .. } = &state.body else {
                continue;
            };
            left = left.saturating_sub(json.len());
            if left == 0 {
                break;
            }
            let detail = counted(&self.body, Input::parse(json))?.text("status_detail");
            let words = &self.dialect.words;
            let told_at = state.worker_at.unwrap_or(state.stored_at);
            jobs.push(Listed {
                job: serde_json::from_slice(json).ok()?,
                status: words.get(words.index(*status, detail.as_deref())),
                first_at: state.first_at.to_rfc3339(),
                at: told_at.to_rfc3339(),
                ms: told_at.as_unix_micros() / 1000,
            });
        }
        let list = List {
            kind: "list",
            topic: topic.to_string(),
            jobs,
            total,
        };
        self.run(&self.body, &counted(&self.body, Input::of(&list))?, at)
    }

    /// The status and the body for a topic of which nothing is known, where the file has them.
    pub fn unknown(&self, topic: &Topic, at: WallTime) -> Option<(u16, Option<Vec<u8>>)> {
        let unknown = self.unknown.as_ref()?;
        let job = match topic {
            Topic::Job(job) => Some(job.id.as_str()),
            Topic::User(_) | Topic::Group(_) => None,
        };
        let input = json!({"type": "unknown", "topic": topic.to_string(), "job_id": job});
        let input = counted(&unknown.body, Input::of(&input));
        let body = input.and_then(|input| self.run(&unknown.body, &input, at));
        Some((unknown.status, body))
    }

    /// Runs a mapping that does not speak of one job's state.
    fn run(&self, mapping: &Mapping, input: &Input, at: WallTime) -> Option<Vec<u8>> {
        let relay = counted(mapping, Input::of(&self.context(None, at, None)))?;
        let texts = self.dialect.run(mapping, input, &relay)?;
        texts.into_iter().next()
    }

    /// The body for a job's state, run once for each state, or for each request where it tells of `past`.
    pub fn body(&self, state: &Publication, past: Option<&Past>) -> Encoded {
        match past {
            Some(_) => self.encode(state, past),
            None => {
                let slots = self.slots.load(Ordering::Relaxed);
                state.encoded(slots, self.slot, |state| self.encode(state, None))
            }
        }
    }

    fn encode(&self, state: &Publication, past: Option<&Past>) -> Encoded {
        let json = frame::without_place(state);
        let texts = counted(&self.body, Input::parse(&json)).and_then(|input| {
            let relay = self.of_state(state, &input, past)?;
            self.dialect.run(&self.body, &input, &relay)
        });
        let first = texts.into_iter().flatten().next();
        Encoded {
            tag: u8::from(first.is_some()),
            bytes: first.unwrap_or_default().into(),
            of: None,
        }
    }

    fn of_state(&self, state: &Publication, input: &Input, past: Option<&Past>) -> Option<Input> {
        let Body::State { status, .. } = &state.body else {
            return None;
        };
        let detail = input
            .member("job")
            .and_then(|job| job.text("status_detail"));
        let words = &self.dialect.words;
        let at = state.worker_at.unwrap_or(state.stored_at);
        let status = words.get(words.index(*status, detail.as_deref()));
        let mut context = self.context(status, at, past);
        context.first_at = state.first_at.to_rfc3339();
        counted(&self.body, Input::of(&context))
    }

    fn context<'a>(
        &'a self,
        status: Option<&'a str>,
        at: WallTime,
        past: Option<&'a Past>,
    ) -> Context<'a> {
        Context {
            status,
            view: &self.view,
            first_at: None,
            at: at.to_rfc3339(),
            ms: at.as_unix_micros() / 1000,
            milestones: past.map(Past::milestones).unwrap_or_default(),
            milestones_lost: past.is_some_and(Past::is_cut),
        }
    }
}

impl Health {
    /// The body for how the relay is; `None` where the mapping fails.
    pub fn body(&self, input: &Input, relay: &Input) -> Option<Vec<u8>> {
        let texts = self.dialect.run(&self.body, input, relay)?;
        texts.into_iter().next()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poll")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
