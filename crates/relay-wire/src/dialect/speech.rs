//! What one client of a dialect was told, and what it sends.
//!
//! Words and shapes are the dialect's; when something is sent, and to whom, is decided where it is for
//! everybody. It does not know how texts travel: its callers wrap them.
//!
//! Invariant: it remembers at most `MAX_TOLD` jobs.

use std::sync::Arc;

use bytes::Bytes;
use relay_core::id::{JobId, Name};
use relay_core::job::Again;
use relay_core::moment::Moment;
use relay_core::publication::{JobKey, Publication};
use relay_core::watcher::session::{CloseReason, Command, Join};
use serde::Serialize;
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::{Before, Dialect, Endpoint, Input, Instruction, Params, Voice};
use crate::Frame;
use crate::exchange::{About, Ask, Heard, Rejected, ReplyTo};

/// Jobs a connection remembers having been told of; the one told first is forgotten first.
const MAX_TOLD: usize = 1024;

/// Jobs, each with the status it was last told with.
type Statuses = SmallVec<[(JobKey, u8); 1]>;

/// What a connection needs to speak a dialect.
#[derive(Debug)]
pub struct Speech {
    /// What its client hears.
    pub endpoint: Arc<Endpoint>,
    /// What the path says.
    pub params: Params,
    /// The status each job was last told with, where the dialect tracks that.
    told: Statuses,
    /// The job a client came back to, with the status it was told there before.
    pub(crate) returned: Option<(JobId, u8)>,
    /// When anything was last said, in either direction.
    last_traffic: Moment,
    /// When the connection ends because its job has.
    ends_at: Option<Moment>,
    /// When the next check is due.
    next_check: Option<Moment>,
    /// The check whose answer is awaited.
    checked: Option<Moment>,
    /// Questions to workers that are under way.
    pub asking: u8,
    /// Topics that are joined when the client has had the time to ask for jobs of theirs by name.
    postponed: Option<(Moment, Vec<Join>)>,
}

/// What is due with a check of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckDue {
    /// Whether the one before was not answered.
    pub missed: bool,
}

impl Speech {
    /// One that was told nothing yet.
    pub(crate) fn new(endpoint: Arc<Endpoint>, params: Params, now: Moment) -> Self {
        let interval = endpoint.voice.dialect.check_interval;
        Self {
            endpoint,
            params,
            told: SmallVec::new(),
            returned: None,
            last_traffic: now,
            ends_at: None,
            next_check: interval.map(|interval| now + interval),
            checked: None,
            asking: 0,
            postponed: None,
        }
    }

    /// The language it speaks.
    pub fn dialect(&self) -> &Arc<Dialect> {
        &self.endpoint.voice.dialect
    }

    /// The next moment something of this is due.
    pub fn next(&self) -> Option<Moment> {
        let idle = self.dialect().idle_after;
        let idle = idle.map(|idle| self.last_traffic + idle);
        let postponed = self.postponed.as_ref().map(|(at, _)| *at);
        [idle, self.ends_at, self.next_check, postponed]
            .into_iter()
            .flatten()
            .min()
    }

    /// Why the connection ends now, if it does.
    pub fn is_over(&self, now: Moment) -> Option<CloseReason> {
        let idle = self.dialect().idle_after;
        if self.ends_at.is_some_and(|at| now >= at) {
            Some(CloseReason::Ended)
        } else if idle.is_some_and(|idle| now >= self.last_traffic + idle) {
            Some(CloseReason::Idle)
        } else {
            None
        }
    }

    /// Topics that are joined at `at`, and not before.
    pub fn postpone(&mut self, join: Join, at: Moment) {
        let (_, joins) = self.postponed.get_or_insert_with(|| (at, Vec::new()));
        joins.push(join);
    }

    /// What was to wait until now.
    pub fn postponed(&mut self, now: Moment) -> Vec<Join> {
        let due = self.postponed.take_if(|(at, _)| *at <= now);
        due.map(|(_, joins)| joins).unwrap_or_default()
    }

    /// Whether the client is to be asked for a sign of its own now.
    pub fn check(&mut self, now: Moment) -> Option<CheckDue> {
        let (at, interval) = (self.next_check?, self.dialect().check_interval?);
        if at > now {
            return None;
        }
        self.next_check = Some(now + interval);
        let missed = self.checked.take().is_some();
        Some(CheckDue { missed })
    }

    /// The client was asked.
    pub fn checked(&mut self, now: Moment) {
        self.checked = Some(now);
    }

    /// The client answered the last check, if one is awaited; when it was asked.
    pub fn check_answered(&mut self) -> Option<Moment> {
        self.checked.take()
    }

    /// A publication in the words of `voice`, else of the connection's own, as it has to be after what was
    /// told before; and whether it tells another status.
    pub(crate) fn tell(
        &mut self,
        voice: Option<&Arc<Voice>>,
        publication: &Publication,
        replayed: bool,
        wrap: fn(Vec<Vec<u8>>) -> Bytes,
    ) -> (Bytes, bool) {
        let (told, voice) = (&mut self.told, voice.unwrap_or(&self.endpoint.voice));
        let tracks = voice.dialect.tracks_status && publication.is_state();
        let known = told.iter_mut().find(|(key, _)| *key == publication.key);
        let status = match &known {
            Some((_, status)) => Some(*status),
            None if tracks => {
                let returned = self.returned.take_if(|(job, _)| *job == publication.job);
                returned.map(|(_, status)| status)
            }
            None => None,
        };
        let before = match status {
            Some(status) => Before::Told(status),
            None if replayed => Before::Snapshot,
            None => Before::New,
        };
        let encoded = voice.encode(publication, before, wrap);
        if tracks {
            match known {
                Some((_, status)) => *status = encoded.tag,
                None => {
                    if told.len() == MAX_TOLD {
                        told.remove(0);
                    }
                    told.push((publication.key, encoded.tag));
                }
            }
        }
        (encoded.bytes, tracks && status != Some(encoded.tag))
    }

    /// The status a job was last told with.
    pub(crate) fn told_of(&self, key: JobKey) -> Option<u8> {
        let told = self.told.iter().find(|(told, _)| *told == key);
        told.map(|(_, status)| *status)
    }

    /// Something was told: how long the connection has still to live. `jobs` are the topics it watches.
    pub fn note(&mut self, publication: &Publication, jobs: usize, now: Moment) {
        self.last_traffic = now;
        if publication.is_state() && jobs == 1 {
            let grace = self.dialect().after_ending;
            let grace = grace.filter(|_| publication.is_terminal());
            self.ends_at = grace.map(|grace| now + grace);
        }
    }

    /// The client said something.
    pub(crate) fn heard(&mut self, now: Moment) {
        self.last_traffic = now;
    }

    /// A text message of the client. `say` makes bytes of ready-made answers.
    pub(crate) fn hear(
        &mut self,
        text: &str,
        about: &About<'_>,
        now: Moment,
        say: impl FnMut(Vec<u8>) -> Bytes,
    ) -> Heard {
        self.heard(now);
        // serde_json is stricter than jq, and says more about what is wrong.
        let message = serde_json::from_str::<Value>(text)
            .map_err(|error| error.to_string())
            .and_then(|_| Input::parse(text.as_bytes()).map_err(|error| error.to_string()));
        match message {
            Ok(message) => {
                let instructions = self.instructions(&message, about);
                understood(instructions, ReplyTo::Nobody, say)
            }
            Err(error) => Heard::Rejected(
                Rejected {
                    code: "bad_json",
                    message: format!("the message is not JSON: {error}"),
                },
                ReplyTo::Nobody,
            ),
        }
    }

    fn instructions(&self, message: &Input, about: &About<'_>) -> Option<Vec<Instruction>> {
        let Some(context) = context(&self.endpoint, &self.params, about) else {
            return Some(Vec::new());
        };
        self.dialect().instructions(message, &context)
    }

    /// Anything the dialect may have words for, as texts.
    pub(crate) fn words(
        &self,
        kind: Frame,
        input: &impl Serialize,
        about: &About<'_>,
    ) -> Vec<Vec<u8>> {
        words(&self.endpoint, &self.params, kind, input, about)
    }

    /// What a worker's answer asks for besides being told.
    pub(crate) fn instructed(
        &self,
        outcome: &impl Serialize,
        about: &About<'_>,
    ) -> Vec<Instruction> {
        let outcome = Input::of(outcome).ok();
        match outcome.zip(context(&self.endpoint, &self.params, about)) {
            Some((outcome, context)) => self.dialect().answered(&outcome, &context),
            None => Vec::new(),
        }
    }
}

/// What a mapping made of a message; `None` where it failed on it.
pub(crate) fn understood(
    instructions: Option<Vec<Instruction>>,
    reply_to: ReplyTo,
    say: impl FnMut(Vec<u8>) -> Bytes,
) -> Heard {
    match instructions {
        Some(instructions) => Heard::Asked(asks(instructions, say), reply_to),
        None => Heard::Rejected(
            Rejected {
                code: "bad_message",
                message: "the message is not understood here".to_owned(),
            },
            reply_to,
        ),
    }
}

/// Anything a dialect may have words for, on one of its endpoints.
pub(crate) fn words(
    endpoint: &Endpoint,
    params: &Params,
    kind: Frame,
    input: &impl Serialize,
    about: &About<'_>,
) -> Vec<Vec<u8>> {
    let dialect = &endpoint.voice.dialect;
    if !dialect.speaks(kind) {
        return Vec::new();
    }
    let input = Input::of(input).ok();
    match input.zip(context(endpoint, params, about)) {
        Some((input, context)) => dialect.map(kind, &input, &context),
        None => Vec::new(),
    }
}

/// What a dialect's mapping made of a message, as things to do. `say` makes bytes of its ready-made answers.
pub(crate) fn asks(
    instructions: Vec<Instruction>,
    mut say: impl FnMut(Vec<u8>) -> Bytes,
) -> Vec<Ask> {
    let ask = |instruction| match instruction {
        Instruction::Subscribe(topic) => Ask::Command(Command::Subscribe {
            topic,
            cursor: None,
            ack: false,
            // A dialect's client brings no cursor itself, and may no longer show what it had of the topic.
            again: Again::State,
        }),
        Instruction::Unsubscribe(topic) => Ask::Command(Command::Unsubscribe { topic }),
        Instruction::Auth(token) => Ask::Command(Command::Auth { token }),
        Instruction::Reply(text) => Ask::Say(say(text)),
        Instruction::Error { code, message } => Ask::Error { code, message },
        Instruction::RoundTrip => Ask::RoundTrip,
        Instruction::Request { name, data } => Ask::Worker { name, data },
    };
    instructions.into_iter().map(ask).collect()
}

/// What mappings are told about the connection they speak on.
pub(crate) fn context(endpoint: &Endpoint, params: &Params, about: &About<'_>) -> Option<Input> {
    let params: serde_json::Map<String, Value> = params
        .0
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect();
    let context = json!({
        "transport": endpoint.voice.carrier.as_str(),
        "view": endpoint.voice.view,
        "params": params,
        "user": about.user.map(Name::as_str),
        "at": about.now.to_rfc3339(),
        "ms": about.now.as_unix_micros() / 1000,
    });
    Input::of(&context).ok()
}
