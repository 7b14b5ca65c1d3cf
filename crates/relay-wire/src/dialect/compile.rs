//! From files to dialects: every mistake found, each with its file and line.

mod paths;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use relay_core::id::Name;
use relay_core::watcher::session::CloseReason;
use toml::Spanned;

use super::file::{self, Carrier, DialectFile};
use super::jq::Mapping;
use super::layers::Layers;
use super::{Dialect, Dialects, Meters, Request, Voice, WatcherBounds, Words};
use crate::Frame;

/// Words one dialect may have for statuses: each is a slot in every publication.
const MAX_WORDS: usize = 24;
/// How long a worker may take to answer, where the file does not say.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The text of a dialect, its name, and where it stands.
#[derive(Debug, Clone)]
pub struct Source {
    /// The dialect's name.
    pub name: String,
    /// Where the text was found, for people.
    pub path: PathBuf,
    /// The text.
    pub text: Cow<'static, str>,
    /// The dialect that it extends, where [`extended`](super::extended) names one.
    pub base: Option<Box<Source>>,
}

/// One thing that is wrong with a dialect's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// [`Source::path`].
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1.
    pub column: usize,
    /// The key in the file; empty when the whole file is meant.
    pub key: String,
    /// What is wrong and how to put it right, in one sentence.
    pub message: String,
}

/// Reads all of `sources`.
pub(super) fn load(
    sources: &[Source],
    defaults: WatcherBounds,
    meters: Meters<'_>,
) -> Result<Dialects, Vec<Mistake>> {
    let mut dialects = Dialects::default();
    let mut mistakes = Vec::new();
    for source in sources {
        let mut reading = Reading {
            name: &source.name,
            layers: &Layers::of(source),
            definitions: String::new(),
            meters,
            mistakes: &mut mistakes,
        };
        reading.dialect(defaults, &mut dialects);
    }
    if mistakes.is_empty() {
        Ok(dialects)
    } else {
        Err(mistakes)
    }
}

/// One file being read.
struct Reading<'a> {
    name: &'a str,
    /// Its text, and that of what it extends.
    layers: &'a Layers,
    /// The jq definitions of all of them.
    definitions: String,
    meters: Meters<'a>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reading<'_> {
    fn refuse(&mut self, offset: usize, key: &str, message: impl Into<String>) {
        let (path, line, column) = self.layers.place(offset);
        self.mistakes.push(Mistake {
            path: path.to_owned(),
            line,
            column,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    fn dialect(&mut self, defaults: WatcherBounds, into: &mut Dialects) {
        let (file, definitions) = match self.layers.read() {
            Ok(read) => read,
            Err(wrong) => return self.refuse(wrong.offset, "", wrong.message),
        };
        if !definitions.iter().all(|each| self.define(each)) {
            // What the mappings make of broken definitions says nothing.
            return;
        }
        let words = self.words(&file);
        let frames = self.frames(&file);
        let messages = &file.messages;
        let command = self.mapping("messages.command", messages.command.as_ref());
        let text = self.mapping("messages.text", messages.text.as_ref());
        let answered = self.mapping("messages.answer", messages.answer.as_ref());
        let refusal = self.mapping("http.refusal", file.http.refusal.as_ref());
        let dialect = Arc::new(Dialect {
            name: self.name.to_owned(),
            words,
            cookie: file.identity.cookie.clone(),
            bounds: bounds(&file, defaults),
            idle_after: file.heartbeat.idle_after.map(|time| time.0),
            check_interval: file.heartbeat.check_interval.map(|time| time.0),
            after_ending: file.close.after_ending.map(|time| time.0),
            drain_within: file.close.drain_within.map(|time| time.0),
            request_id: file.http.request_id,
            authenticates_by_message: file.identity.message,
            returns_within: file.delivery.returns_within.map(|time| time.0),
            tracks_status: file.delivery.tracks_status,
            recovery: self.recovery(&file),
            requests: self.requests(&file),
            codes: self.codes(&file),
            command,
            text,
            answered,
            refusal,
            frames,
        });
        self.check_times(&file, &dialect);
        let mut voices: HashMap<(Carrier, String), Arc<Voice>> = HashMap::new();
        for route in &file.routes {
            let key = (route.transport, route.view.clone());
            let voice = voices.entry(key).or_insert_with(|| {
                Arc::new(Voice {
                    dialect: dialect.clone(),
                    carrier: route.transport,
                    view: route.view.clone(),
                    first_slot: into.take_slots(Voice::slots_of(&dialect)),
                    slots: into.slots.clone(),
                })
            });
            self.route(route, voice.clone(), into);
        }
        for poll in &file.polls {
            self.poll(poll, &dialect, into);
        }
        for health in &file.health {
            self.health(health, &dialect, into);
        }
        for (name, kind) in &file.kinds {
            let mut names = |list: &str, texts: &[Spanned<String>]| -> Vec<Name> {
                let key = format!("kinds.{name}.{list}");
                let parse = |text: &Spanned<String>| match Name::parse(text.get_ref()) {
                    Ok(name) => Some(name),
                    Err(error) => {
                        let message = format!("{:?} {error}", text.get_ref());
                        self.refuse(text.span().start, &key, message);
                        None
                    }
                };
                texts.iter().filter_map(parse).collect()
            };
            let after = names("milestones_after_ending", &kind.milestones_after_ending);
            let removed = names("removed_by", &kind.removed_by);
            let all = into.kinds.entry(name.clone()).or_default();
            all.after_ending.extend(after);
            all.removed_by.extend(removed);
        }
    }

    fn words(&mut self, file: &DialectFile) -> Words {
        let status = &file.status;
        let mut words = vec![
            status.queued.clone(),
            status.running.clone(),
            status.completed.clone(),
            status.failed.clone(),
            status.cancelled.clone(),
        ];
        words.extend(status.details.iter().cloned());
        if words.len() > MAX_WORDS {
            let message = format!("{} words for statuses; at most {MAX_WORDS}", words.len());
            self.refuse(self.layers.own(), "status.details", message);
        }
        Words(words)
    }

    fn frames(&mut self, file: &DialectFile) -> HashMap<Frame, Mapping> {
        let from = &file.frames;
        let all = [
            (Frame::State, &from.state),
            (Frame::Milestone, &from.milestone),
            (Frame::Gone, &from.gone),
            (Frame::Gap, &from.gap),
            (Frame::Hello, &from.hello),
            (Frame::Authenticated, &from.authenticated),
            (Frame::Subscribed, &from.subscribed),
            (Frame::Unknown, &from.unknown),
            (Frame::Unsubscribed, &from.unsubscribed),
            (Frame::Error, &from.error),
            (Frame::ServerShutdown, &from.server_shutdown),
            (Frame::Aggregate, &from.aggregate),
            (Frame::Quality, &from.quality),
            (Frame::Check, &from.check),
            (Frame::Answer, &from.answer),
        ];
        let mut frames = HashMap::new();
        for (frame, code) in all {
            let name = format!("frames.{}", frame.as_str());
            if let Some(mapping) = self.mapping(&name, code.as_ref()) {
                frames.insert(frame, mapping);
            }
        }
        frames
    }

    fn mapping(&mut self, name: &str, code: Option<&Spanned<String>>) -> Option<Mapping> {
        let code = code?;
        let meter = (self.meters)(self.name, name);
        match Mapping::compile(name, &self.definitions, code.get_ref(), meter) {
            Ok(mapping) => Some(mapping),
            Err(complaints) => {
                let start = file::content_start(&self.layers.text, &code.span());
                for each in complaints {
                    // The definitions are right by themselves, so it is the mapping's own.
                    let offset = each.offset.saturating_sub(self.definitions.len() + 1);
                    self.refuse(start + offset, name, format!("jq: {}", each.message));
                }
                None
            }
        }
    }

    /// Adds a file's definitions to those of what it extends. Whether they are right by themselves.
    fn define(&mut self, definitions: &Spanned<String>) -> bool {
        let before = self.definitions.len();
        let text = definitions.get_ref();
        self.definitions.push_str(text);
        self.definitions.push('\n');
        let compiled = Mapping::compile("definitions", &self.definitions, ".", Box::new(()));
        let Err(complaints) = compiled else {
            return true;
        };
        let start = file::content_start(&self.layers.text, &definitions.span());
        for each in complaints {
            let offset = each.offset.saturating_sub(before);
            let offset = offset.min(text.trim_end().len());
            let message = format!("jq: {}", each.message);
            self.refuse(start + offset, "definitions", message);
        }
        false
    }

    fn recovery(&mut self, file: &DialectFile) -> bool {
        let Some(recovery) = file.delivery.recovery.as_ref().filter(|it| *it.get_ref()) else {
            return false;
        };
        let mut routes = file.routes.iter();
        if !routes.any(|route| route.transport == Carrier::SocketIo) {
            let message = "is Socket.IO's, and no route has transport = \"socketio\"";
            self.refuse(recovery.span().start, "delivery.recovery", message);
        }
        true
    }

    fn requests(&mut self, file: &DialectFile) -> HashMap<String, Request> {
        let mut requests = HashMap::new();
        for (name, request) in &file.requests {
            let subject = request.subject.get_ref();
            let is_token = |token: &str| {
                !token.is_empty()
                    && token
                        .chars()
                        .all(|c| c.is_ascii_graphic() && !matches!(c, '*' | '>'))
            };
            if !subject.split('.').all(is_token) || subject.starts_with('$') {
                let message = format!(
                    "{subject:?} is not a valid subject for requests; write words with dots between them, without wildcards"
                );
                self.refuse(request.subject.span().start, "requests", message);
            }
            let timeout = request.timeout.map_or(REQUEST_TIMEOUT, |time| time.0);
            let request = Request {
                subject: subject.clone(),
                timeout,
            };
            requests.insert(name.clone(), request);
        }
        requests
    }

    fn codes(&mut self, file: &DialectFile) -> HashMap<&'static str, u16> {
        let mut codes = HashMap::new();
        for (reason, code) in &file.close.codes {
            // A client that left is sent nothing any more.
            let reasons = || {
                CloseReason::ALL
                    .iter()
                    .filter(|each| **each != CloseReason::Client)
            };
            let known = reasons().find(|each| each.as_str() == reason);
            let at = code.span().start;
            let Some(known) = known else {
                let all: Vec<_> = reasons().map(|each| each.as_str()).collect();
                let message = format!(
                    "{reason:?} is not a close reason; use one of {}",
                    all.join(", ")
                );
                self.refuse(at, "close.codes", message);
                continue;
            };
            let code = *code.get_ref();
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                let message =
                    format!("{code} is not a close code that may be sent (RFC 6455, 7.4)");
                self.refuse(at, "close.codes", message);
            }
            codes.insert(known.as_str(), code);
        }
        codes
    }

    fn check_times(&mut self, file: &DialectFile, dialect: &Dialect) {
        let (ping, dead) = (
            dialect.bounds.session.ping_interval,
            dialect.bounds.session.dead_after,
        );
        if ping.is_zero() || dead < ping.mul_f64(1.5) {
            self.refuse(
                self.layers.own(),
                "heartbeat.dead_after",
                "must be at least one and a half times heartbeat.ping_interval, which must not be 0",
            );
        }
        self.check_sockets(file);
        let least = Duration::from_millis(100);
        let mut times = vec![
            ("heartbeat.idle_after", file.heartbeat.idle_after),
            ("heartbeat.check_interval", file.heartbeat.check_interval),
        ];
        times.extend(
            file.polls
                .iter()
                .map(|poll| ("polls.interval", poll.interval)),
        );
        for (key, time) in times {
            if time.is_some_and(|time| time.0 < least) {
                self.refuse(self.layers.own(), key, "is too little; use at least 100ms");
            }
        }
        let needs = [
            (
                dialect.check_interval.is_some() && !dialect.speaks(Frame::Check),
                "heartbeat.check_interval",
                "frames.check",
            ),
            (
                !dialect.requests.is_empty() && !dialect.speaks(Frame::Answer),
                "requests",
                "frames.answer",
            ),
            (
                dialect.answered.is_some() && !dialect.speaks(Frame::Answer),
                "messages.answer",
                "frames.answer",
            ),
        ];
        for (missing, key, frame) in needs {
            if missing {
                self.refuse(
                    self.layers.own(),
                    key,
                    format!("needs {frame}, or nothing would be sent"),
                );
            }
        }
    }

    /// Whether there is a WebSocket where the file says what only one has.
    fn check_sockets(&mut self, file: &DialectFile) {
        let mut routes = file.routes.iter();
        if routes.any(|route| route.transport == Carrier::WebSocket) {
            return;
        }
        let own = self.layers.own();
        let text = file.messages.text.as_ref();
        let only = [
            (text.map(|text| text.span().start), "messages.text"),
            (file.identity.message.then_some(own), "identity.message"),
            (
                file.delivery.returns_within.map(|_| own),
                "delivery.returns_within",
            ),
        ];
        for (at, key) in only {
            if let Some(at) = at {
                let message = "is for WebSockets, and no route has transport = \"websocket\"";
                self.refuse(at, key, message);
            }
        }
    }
}

/// The bounds of watchers: what the file says, else the defaults.
fn bounds(file: &DialectFile, defaults: WatcherBounds) -> WatcherBounds {
    let mut bounds = defaults;
    let (session, outbox) = (&mut bounds.session, &mut bounds.outbox);
    if let Some(time) = file.heartbeat.ping_interval {
        session.ping_interval = time.0;
    }
    if let Some(time) = file.heartbeat.dead_after {
        session.dead_after = time.0;
    }
    if let Some(milestones) = file.delivery.milestones {
        outbox.milestones = milestones.max(1);
    }
    if let Some(per_second) = file.delivery.updates_per_second.filter(|rate| *rate > 0) {
        outbox.interval = Duration::from_secs(1) / per_second;
    }
    bounds.endings_within = file.delivery.endings_within.map(|time| time.0);
    bounds
}
