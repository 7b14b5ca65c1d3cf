//! Dialects: other front ends' wire shapes, as files say them.
//!
//! A dialect's file names routes, words and jq mappings; here it is checked, compiled, and put beside the
//! others in one table of routes. Mappings get what a native client would get (PROTOCOL.md) and give what
//! this front end wants instead; what a client sends, they turn into commands. The dialect knows frames,
//! messages and the bounds its clients are held to; it does not know sockets, or what a client is still owed.
//!
//! Invariant: a mapping runs once for a publication and a `Voice` (and what its clients were told before,
//! where the file asks to know), however many watch.

mod builtin;
mod compile;
pub(crate) mod events;
mod file;
mod jq;
mod layers;
mod meter;
mod past;
mod poll;
mod reserved;
mod routes;
pub(crate) mod speech;
mod template;
mod voice;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use relay_core::document::Status;
use relay_core::kind::Kind;
use relay_core::watcher::WatcherBounds;
use relay_core::watcher::session::CloseReason;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Frame;
use jq::Mapping;

pub use builtin::BUILT_IN;
pub use compile::{Mistake, Source};
pub use file::Carrier;
pub use jq::{Failure, Input};
pub use layers::extended;
pub use meter::{Meter, Meters};
pub use past::Past;
pub use poll::{Health, Poll};
pub use reserved::OWN_PATHS;
pub use routes::{Answering, Endpoint, Found, Params, Routes};
pub use speech::Parting;
pub use template::{BadTopic, NoTopic};
pub(crate) use voice::{Before, Hearing, Voice};

/// One front end's language.
#[derive(Debug)]
pub struct Dialect {
    /// Its file's name.
    pub name: String,
    /// Its words for statuses.
    pub words: Words,
    /// The cookie the token comes in, where it has one of its own.
    pub cookie: Option<String>,
    /// Bounds of its clients' watchers.
    pub bounds: WatcherBounds,
    /// Close when nothing was said in either direction for this long.
    pub idle_after: Option<Duration>,
    /// How often [`Frame::Check`] is sent.
    pub check_interval: Option<Duration>,
    /// How long after the ending of its only job a connection is closed.
    pub after_ending: Option<Duration>,
    /// The longest a drain lets its clients stay.
    pub drain_within: Option<Duration>,
    /// Whether `X-Request-ID` is taken, made and echoed.
    pub request_id: bool,
    /// For how long it is kept how far a client was told that left.
    pub returns_within: Option<Duration>,
    /// Whether a client may show who it is by its first message.
    pub authenticates_by_message: bool,
    /// Whether mappings know what a client was told before.
    pub tracks_status: bool,
    /// Whether Socket.IO clients that return are sent what they missed.
    pub recovery: bool,
    /// What clients may ask workers for, by name.
    pub requests: HashMap<String, Request>,
    codes: HashMap<&'static str, u16>,
    /// What a client's message asks for.
    command: Option<Mapping>,
    /// What a message that is not JSON asks for.
    text: Option<Mapping>,
    answered: Option<Mapping>,
    refusal: Option<Mapping>,
    frames: HashMap<Frame, Mapping>,
}

/// A request to NATS that a client may cause.
#[derive(Debug, Clone)]
pub struct Request {
    /// The subject; a client has no say in it.
    pub subject: String,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// A front end's words for statuses: the five, then the finer ones it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(Vec<String>);

impl Words {
    /// Which word a status has; `detail` is the worker's own word, used where the front end knows it.
    fn index(&self, status: Status, detail: Option<&str>) -> u8 {
        let fine = detail.filter(|_| !status.is_terminal()).and_then(|detail| {
            let words = self.0.iter().enumerate().skip(Status::ALL.len());
            let mut known = words.filter(|(_, word)| word.eq_ignore_ascii_case(detail));
            known.next().map(|(at, _)| at)
        });
        let at = fine.or_else(|| Status::ALL.iter().position(|each| *each == status));
        u8::try_from(at.unwrap_or_default()).unwrap_or_default()
    }

    /// The word.
    fn get(&self, index: u8) -> Option<&str> {
        self.0.get(usize::from(index)).map(String::as_str)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The longest text of its own by which a page may know a subscription, in bytes.
const MAX_IDENTIFIER: usize = 1024;

/// What a client's message asks, as the dialect's mapping says it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// What.
    pub(crate) order: Order,
    /// The text by which the page knows what it asks for, to be given back with the answer.
    pub(crate) identifier: Option<Box<str>>,
}

/// One thing a mapping can say that a message asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Watch a topic.
    Subscribe(String),
    /// Watch it no longer.
    Unsubscribe(String),
    /// Say this JSON, as it is.
    Reply(Vec<u8>),
    /// Say this text, as it is.
    Text(String),
    /// Say that something was not done.
    Error {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// Here is a token.
    Auth(String),
    /// This answers the last check.
    RoundTrip,
    /// Ask a worker.
    Request {
        /// Which of `[requests]`.
        name: String,
        /// What to send.
        data: Vec<u8>,
    },
}

impl Dialect {
    /// Whether the dialect has a word for something.
    pub(crate) fn speaks(&self, frame: Frame) -> bool {
        self.frames.contains_key(&frame)
    }

    /// Whether a client that begins with a state is to be told of the job's milestones with it.
    pub fn tells_of_the_past(&self) -> bool {
        let state = self.frames.get(&Frame::State);
        state.is_some_and(Mapping::reads_milestones)
    }

    /// Whether the words for something are the page's own, by the text it knows the subscription by.
    pub(crate) fn reads_identifier(&self, frame: Frame) -> bool {
        let mapping = self.frames.get(&frame);
        mapping.is_some_and(Mapping::reads_identifier)
    }

    /// The close code for a reason, where it is not the native one.
    pub(crate) fn close_code(&self, reason: CloseReason) -> Option<u16> {
        self.codes.get(reason.as_str()).copied()
    }

    /// Runs the mapping of a frame; nothing where the dialect has no word for it, or the mapping fails.
    pub(crate) fn map(&self, frame: Frame, input: &Input, relay: &Input) -> Vec<Vec<u8>> {
        match self.frames.get(&frame) {
            Some(mapping) => self.run(mapping, input, relay).unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// Counts that a frame is not sent, because what it is about cannot be read.
    pub(crate) fn unmapped(&self, frame: Frame, failure: &Failure) {
        if let Some(mapping) = self.frames.get(&frame) {
            mapping.failed(failure);
        }
    }

    /// What a client's message asks. `None`: the mapping failed on it.
    pub(crate) fn instructions(
        &self,
        carrier: Carrier,
        message: &Input,
        relay: &Input,
    ) -> Option<Vec<Instruction>> {
        match &self.command {
            Some(mapping) => self.heard(mapping, message, relay, |it| carrier.carries(it)),
            None => Some(Vec::new()),
        }
    }

    /// What a message that is not JSON asks. Not understood, if the dialect has no word for such.
    pub(crate) fn instructions_of_text(
        &self,
        text: &str,
        relay: &Input,
    ) -> Option<Option<Vec<Instruction>>> {
        let mapping = self.text.as_ref()?;
        let instructions = Input::of(&text).ok();
        Some(instructions.and_then(|text| self.heard(mapping, &text, relay, |_| true)))
    }

    /// What a client's own words ask: that a mapping cannot read them is the client's mistake.
    fn heard(
        &self,
        mapping: &Mapping,
        said: &Input,
        relay: &Input,
        allowed: impl Fn(&Instruction) -> bool,
    ) -> Option<Vec<Instruction>> {
        match mapping.run(said, relay) {
            Ok(texts) => Some(instructions(mapping, texts, allowed)),
            Err(failure) => {
                mapping.failed(&failure.of_client());
                None
            }
        }
    }

    /// What a worker's answer to a client's request asks for besides being told.
    pub(crate) fn answered(
        &self,
        carrier: Carrier,
        outcome: &Input,
        relay: &Input,
    ) -> Vec<Instruction> {
        let Some(mapping) = &self.answered else {
            return Vec::new();
        };
        // An answer that asks again could go on for ever.
        let ends =
            |it: &Instruction| carrier.carries(it) && !matches!(it.order, Order::Request { .. });
        match self.run(mapping, outcome, relay) {
            Some(texts) => instructions(mapping, texts, ends),
            None => Vec::new(),
        }
    }

    /// The body of an answer that refuses, where the dialect has its own.
    pub fn refusal(&self, input: &Input, relay: &Input) -> Option<Vec<u8>> {
        let mapping = self.refusal.as_ref()?;
        self.run(mapping, input, relay)?.into_iter().next()
    }

    /// Runs any mapping of the dialect, and counts what becomes of it.
    fn run(&self, mapping: &Mapping, input: &Input, relay: &Input) -> Option<Vec<Vec<u8>>> {
        mapping
            .run(input, relay)
            .inspect_err(|failure| mapping.failed(failure))
            .ok()
    }
}

impl Carrier {
    /// Whether what an instruction says can be said: Socket.IO has events and no bare texts.
    fn carries(self, instruction: &Instruction) -> bool {
        self == Self::WebSocket || !matches!(instruction.order, Order::Text(_))
    }
}

/// Reads what a mapping gave; what is not a valid instruction is the mapping's failure.
fn instructions(
    mapping: &Mapping,
    texts: Vec<Vec<u8>>,
    allowed: impl Fn(&Instruction) -> bool,
) -> Vec<Instruction> {
    let mut instructions = Vec::with_capacity(texts.len());
    for text in texts {
        match instruction(&text).filter(&allowed) {
            Some(instruction) => instructions.push(instruction),
            None => mapping.failed(&Failure::NotAnInstruction(
                String::from_utf8_lossy(text.get(..80).unwrap_or(&text)).into_owned(),
            )),
        }
    }
    instructions
}

/// Reads one output of the command mapping.
fn instruction(text: &[u8]) -> Option<Instruction> {
    // Cut out of the text, not written anew: the order of members is the mapping's.
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(text).ok()?;
    let identifier = match members.remove("identifier").map(RawValue::get) {
        None | Some("null") => None,
        Some(raw) => Some(serde_json::from_str::<Box<str>>(raw).ok()?),
    };
    if identifier
        .as_ref()
        .is_some_and(|text| text.len() > MAX_IDENTIFIER)
    {
        // It is the client's text: a sentence for the client, and not a failure of the mapping.
        return Some(Instruction {
            order: Order::Error {
                code: "bad_message".to_owned(),
                message: format!("the identifier is longer than {MAX_IDENTIFIER} bytes"),
            },
            identifier: None,
        });
    }
    let order = order(&members)?;
    Some(Instruction { order, identifier })
}

fn order(members: &BTreeMap<String, &RawValue>) -> Option<Order> {
    let text_of = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
    let (request, data) = (members.get("request"), members.get("data"));
    if let (2, Some(name), Some(data)) = (members.len(), request, data) {
        return Some(Order::Request {
            name: text_of(name)?,
            data: data.get().as_bytes().to_vec(),
        });
    }
    let (key, raw) = members.first_key_value().filter(|_| members.len() == 1)?;
    Some(match key.as_str() {
        "subscribe" => Order::Subscribe(text_of(raw)?),
        "unsubscribe" => Order::Unsubscribe(text_of(raw)?),
        "auth" => Order::Auth(text_of(raw)?),
        "round_trip" => Order::RoundTrip,
        "error" => {
            let error: Mistaken = serde_json::from_str(raw.get()).ok()?;
            Order::Error {
                code: error.code,
                message: error.message,
            }
        }
        "reply" => Order::Reply(raw.get().as_bytes().to_vec()),
        "text" => Order::Text(text_of(raw)?),
        _ => return None,
    })
}

/// What `{error: …}` holds.
#[derive(Deserialize)]
struct Mistaken {
    code: String,
    message: String,
}

/// Every dialect a node speaks, and where.
#[derive(Debug, Default)]
pub struct Dialects {
    /// By path.
    pub routes: Routes,
    /// What kinds of jobs declare by the files of all dialects.
    pub kinds: HashMap<String, Kind>,
    /// How many slots publications keep for frames of all voices; complete when all files are read.
    slots: Arc<AtomicUsize>,
}

impl Dialects {
    /// Checks and compiles the dialects of `sources`; `defaults` hold where a file says nothing. Each mapping is counted on a meter of its own.
    ///
    /// # Errors
    /// All that is wrong in all of them, each with its place.
    pub fn load(
        sources: &[Source],
        defaults: WatcherBounds,
        meters: Meters<'_>,
    ) -> Result<Self, Vec<Mistake>> {
        compile::load(sources, defaults, meters)
    }

    /// Sets slots aside in every publication; the number of the first.
    fn take_slots(&mut self, count: usize) -> usize {
        self.slots.fetch_add(count, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
