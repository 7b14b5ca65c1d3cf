//! What one client of a dialect was told, and what it sends.
//!
//! Words and shapes are the dialect's; when something is sent, and to whom, is decided where it is for
//! everybody. It does not know how texts travel: its callers wrap them.
//!
//! Invariant: it remembers at most `MAX_TOLD` jobs, and one text for each subscription.

use std::sync::Arc;

use bytes::Bytes;
use relay_core::cursor::Cursor;
use relay_core::id::{JobId, Name};
use relay_core::job::Again;
use relay_core::moment::Moment;
use relay_core::position::Seq;
use relay_core::publication::{JobKey, Publication};
use relay_core::watcher::outbox::SubscriptionId;
use relay_core::watcher::session::{CloseReason, Command, Join};
use serde::Serialize;
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::{Before, Dialect, Endpoint, Hearing, Input, Instruction, Order, Params, Past, Voice};
use crate::Frame;
use crate::exchange::{About, Ask, Delivery, Heard, Rejected, ReplyTo};

/// Jobs a connection remembers having been told of; the one told first is forgotten first.
const MAX_TOLD: usize = 1024;

/// Jobs of these that are remembered of a client that left, those told of last.
const MAX_TOLD_AT_PARTING: usize = 256;

/// What was last told of a job.
#[derive(Debug, Clone, Copy)]
struct Told {
    key: JobKey,
    /// The index of the status, in the dialect's words.
    status: u8,
    /// The number of the state; 0 once a subscription has ended, whose client may show nothing of it any more.
    seq: Seq,
}

/// Where a client stood when it left, and what it knew.
#[derive(Debug, Clone)]
pub struct Parting {
    cursor: Cursor,
    told: SmallVec<[Told; 1]>,
}

impl Parting {
    /// Of a client that stood at `cursor`, and of which no more is known.
    pub fn at(cursor: Cursor) -> Self {
        Self {
            cursor,
            told: SmallVec::new(),
        }
    }

    /// How far it was told.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }
}

/// What a connection needs to speak a dialect.
#[derive(Debug)]
pub struct Speech {
    /// What its client hears.
    pub endpoint: Arc<Endpoint>,
    /// What the path says.
    pub params: Params,
    /// What each job was last told with, where the dialect tracks that.
    told: SmallVec<[Told; 1]>,
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
    /// The texts by which the page knows its subscriptions.
    names: Vec<(SubscriptionId, Box<str>)>,
    /// Whether it is still to be seen if its client was here before.
    recalls: bool,
    /// Whether it was.
    has_returned: bool,
    /// What the request's query said, until the client has shown who it is.
    query: Option<Vec<(String, String)>>,
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
        let dialect = &endpoint.voice.dialect;
        let (interval, recalls) = (dialect.check_interval, dialect.returns_within.is_some());
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
            names: Vec::new(),
            recalls,
            has_returned: false,
            query: None,
        }
    }

    /// The client will show who it is by a message; until then the query waits for what it names.
    pub fn authenticates_later(&mut self, query: Vec<(String, String)>) {
        self.query = Some(query);
    }

    /// The query that waited for the client to show who it is.
    pub fn authenticated(&mut self) -> Option<Vec<(String, String)>> {
        self.query.take()
    }

    /// Whether it is to be seen now if the client was here before; said once.
    pub fn recalls(&mut self) -> bool {
        std::mem::take(&mut self.recalls)
    }

    /// The client was here before, and knows what it knew then.
    pub fn returns(&mut self, parting: Parting) {
        self.told = parting.told;
        self.left();
        self.has_returned = true;
    }

    /// How a publication is told to a client that may have been here before, and had been told everything up to
    /// `since`: what is newer is news, though a subscription begins with it.
    pub(crate) fn as_known(
        &self,
        told: Delivery,
        publication: &Publication,
        since: Seq,
    ) -> Delivery {
        let is_news = self.has_returned && since != Seq::ZERO && publication.seq > since;
        Delivery {
            replayed: told.replayed && !is_news,
            ..told
        }
    }

    /// What is kept of a client that leaves, where its dialect wants to know it again.
    pub fn parts(&self, cursor: Cursor) -> Parting {
        let skipped = self.told.len().saturating_sub(MAX_TOLD_AT_PARTING);
        Parting {
            cursor,
            told: self.told.iter().skip(skipped).copied().collect(),
        }
    }

    /// The page knows a subscription by this text.
    pub fn name(&mut self, via: SubscriptionId, text: &str) {
        self.names.push((via, text.into()));
    }

    /// The text by which the page knows a subscription.
    pub fn name_of(&self, via: SubscriptionId) -> Option<&str> {
        let named = self.names.iter().find(|(each, _)| *each == via);
        named.map(|(_, text)| &**text)
    }

    /// A subscription has ended; the text by which the page knew it.
    pub fn forget(&mut self, via: SubscriptionId) -> Option<Box<str>> {
        let at = self.names.iter().position(|(each, _)| *each == via)?;
        Some(self.names.swap_remove(at).1)
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
    /// told before; and whether it tells another status. Where frames do not say under which subscription they come,
    /// what a snapshot has of what was told under another is nothing new.
    pub(crate) fn tell(
        &mut self,
        voice: Option<&Arc<Voice>>,
        publication: &Publication,
        (told_as, past): (Delivery, Option<&Past>),
        wrap: fn(Vec<Vec<u8>>) -> Bytes,
    ) -> (Bytes, bool) {
        let mut names = self.names.iter();
        let identifier = names.find(|(each, _)| *each == told_as.via);
        let identifier = identifier.map(|(_, text)| &**text);
        let (told, voice) = (&mut self.told, voice.unwrap_or(&self.endpoint.voice));
        let tracks = voice.dialect.tracks_status && publication.is_state();
        let known = told.iter_mut().find(|told| told.key == publication.key);
        if let Some(told) = &known
            && tracks
            && told_as.replayed
            && identifier.is_none()
            && publication.seq <= told.seq
        {
            return (Bytes::new(), false);
        }
        let status = match &known {
            Some(told) => Some(told.status),
            None if tracks => {
                let returned = self.returned.take_if(|(job, _)| *job == publication.job);
                returned.map(|(_, status)| status)
            }
            None => None,
        };
        let before = match status {
            Some(status) => Before::Told(status),
            None if told_as.replayed => Before::Snapshot,
            None => Before::New,
        };
        let hearing = Hearing {
            before,
            identifier,
            past,
        };
        let encoded = voice.encode(publication, hearing, wrap);
        if tracks {
            match known {
                Some(told) => (told.status, told.seq) = (encoded.tag, publication.seq),
                None => {
                    if told.len() == MAX_TOLD {
                        told.remove(0);
                    }
                    told.push(Told {
                        key: publication.key,
                        status: encoded.tag,
                        seq: publication.seq,
                    });
                }
            }
        }
        (encoded.bytes, tracks && status != Some(encoded.tag))
    }

    /// The status a job was last told with.
    pub(crate) fn told_of(&self, key: JobKey) -> Option<u8> {
        let told = self.told.iter().find(|told| told.key == key);
        told.map(|told| told.status)
    }

    /// A subscription ended, or the connection before: a client that subscribes again is told again.
    pub fn left(&mut self) {
        for told in &mut self.told {
            told.seq = Seq::ZERO;
        }
    }

    /// Something was told: how long the connection has still to live. `jobs` are the topics it watches.
    pub fn note(&mut self, publication: &Publication, jobs: usize, now: Moment) {
        self.last_traffic = now;
        if !publication.is_milestone() && jobs == 1 {
            let grace = self.dialect().after_ending;
            let grace = grace.filter(|_| publication.is_last());
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
        let instructions = match message {
            Ok(message) => Ok(self.instructions(&message, about)),
            Err(error) => self.instructions_of_text(text, about).ok_or(error),
        };
        match instructions {
            Ok(instructions) => understood(instructions, ReplyTo::Nobody, say),
            Err(error) => Heard::Rejected(
                Rejected {
                    code: "bad_json",
                    message: format!("the message is not JSON: {error}"),
                },
                ReplyTo::Nobody,
            ),
        }
    }

    /// What a message that is not JSON asks; `None` where the dialect has no mapping for such.
    fn instructions_of_text(
        &self,
        text: &str,
        about: &About<'_>,
    ) -> Option<Option<Vec<Instruction>>> {
        let context = context(&self.endpoint, &self.params, about, None)?;
        self.dialect().instructions_of_text(text, &context)
    }

    fn instructions(&self, message: &Input, about: &About<'_>) -> Option<Vec<Instruction>> {
        let Some(context) = context(&self.endpoint, &self.params, about, None) else {
            return Some(Vec::new());
        };
        let carrier = self.endpoint.voice.carrier;
        self.dialect().instructions(carrier, message, &context)
    }

    /// Anything the dialect may have words for, as texts.
    pub(crate) fn words(
        &self,
        kind: Frame,
        input: &impl Serialize,
        name: Option<&str>,
        about: &About<'_>,
    ) -> Vec<Vec<u8>> {
        words(&self.endpoint, &self.params, (kind, input), name, about)
    }

    /// What a worker's answer asks for besides being told.
    pub(crate) fn instructed(
        &self,
        outcome: &impl Serialize,
        about: &About<'_>,
    ) -> Vec<Instruction> {
        let outcome = Input::of(outcome)
            .inspect_err(|failure| self.dialect().unmapped(Frame::Answer, failure))
            .ok();
        match outcome.zip(context(&self.endpoint, &self.params, about, None)) {
            Some((outcome, context)) => {
                let carrier = self.endpoint.voice.carrier;
                self.dialect().answered(carrier, &outcome, &context)
            }
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
    (kind, input): (Frame, &impl Serialize),
    name: Option<&str>,
    about: &About<'_>,
) -> Vec<Vec<u8>> {
    let dialect = &endpoint.voice.dialect;
    if !dialect.speaks(kind) {
        return Vec::new();
    }
    let input = Input::of(input)
        .inspect_err(|failure| dialect.unmapped(kind, failure))
        .ok();
    match input.zip(context(endpoint, params, about, name)) {
        Some((input, context)) => dialect.map(kind, &input, &context),
        None => Vec::new(),
    }
}

/// What a dialect's mapping made of a message, as things to do. `say` makes bytes of its ready-made answers.
pub(crate) fn asks(
    instructions: Vec<Instruction>,
    mut say: impl FnMut(Vec<u8>) -> Bytes,
) -> Vec<Ask> {
    let ask = |Instruction { order, identifier }| {
        let ask = match order {
            Order::Subscribe(topic) => Ask::Command(Command::Subscribe {
                topic,
                cursor: None,
                ack: false,
                // A dialect's client brings no cursor itself, and may no longer show what it had of the topic.
                again: Again::State,
            }),
            Order::Unsubscribe(topic) => Ask::Command(Command::Unsubscribe { topic }),
            Order::Auth(token) => Ask::Command(Command::Auth { token }),
            Order::Reply(text) => Ask::Say(say(text)),
            Order::Text(text) => Ask::Say(say(text.into_bytes())),
            Order::Error { code, message } => Ask::Error { code, message },
            Order::RoundTrip => Ask::RoundTrip,
            Order::Request { name, data } => Ask::Worker { name, data },
        };
        match identifier {
            Some(text) => Ask::Named(text, Box::new(ask)),
            None => ask,
        }
    };
    instructions.into_iter().map(ask).collect()
}

/// What mappings are told about the connection they speak on; `name` is the page's own text for a subscription.
pub(crate) fn context(
    endpoint: &Endpoint,
    params: &Params,
    about: &About<'_>,
    name: Option<&str>,
) -> Option<Input> {
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
        "identifier": name,
        "at": about.now.to_rfc3339(),
        "ms": about.now.as_unix_micros() / 1000,
    });
    Input::of(&context).ok()
}
