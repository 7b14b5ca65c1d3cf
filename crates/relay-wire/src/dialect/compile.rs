//! From files to dialects: every mistake found, each with its file and line.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use relay_core::watcher::session::CloseReason;
use toml::Spanned;

use super::file::{self, Carrier, DialectFile, HealthFile, PollFile, RouteFile};
use super::jq::Mapping;
use super::routes::{Endpoint, Health, Poll, Template, params_of};
use super::{Dialect, Dialects, Meters, Request, Voice, WatcherBounds, Words};
use crate::Frame;

/// Words one dialect may have for statuses: each is a slot in every publication.
const MAX_WORDS: usize = 24;
/// How long a worker may take to answer, where the file does not say.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Paths that are the native protocol's.
const RESERVED: &str = "/v1/";
/// The text of a dialect, its name, and where it stands.
#[derive(Debug, Clone)]
pub struct Source {
    /// The dialect's name.
    pub name: String,
    /// Where the text was found, for people.
    pub path: PathBuf,
    /// The text.
    pub text: Cow<'static, str>,
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
            path: &source.path,
            text: &source.text,
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
    path: &'a Path,
    text: &'a str,
    meters: Meters<'a>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reading<'_> {
    fn refuse(&mut self, offset: usize, key: &str, message: impl Into<String>) {
        let (line, column) = file::place(self.text, offset);
        self.mistakes.push(Mistake {
            path: self.path.to_owned(),
            line,
            column,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    fn dialect(&mut self, defaults: WatcherBounds, into: &mut Dialects) {
        let file: DialectFile = match toml::from_str(self.text) {
            Ok(file) => file,
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                return self.refuse(offset, "", error.message().to_owned());
            }
        };
        if let Some(definitions) = &file.definitions
            && !self.check_definitions(definitions)
        {
            // What the mappings make of broken definitions says nothing.
            return;
        }
        let words = self.words(&file);
        let frames = self.frames(&file);
        let definitions = file.definitions.as_ref();
        let command = self.mapping(
            "messages.command",
            definitions,
            file.messages.command.as_ref(),
        );
        let answered = self.mapping(
            "messages.answer",
            definitions,
            file.messages.answer.as_ref(),
        );
        let refusal = self.mapping("http.refusal", definitions, file.http.refusal.as_ref());
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
            tracks_status: file.delivery.tracks_status,
            recovery: self.recovery(&file),
            requests: self.requests(&file),
            codes: self.codes(&file),
            command,
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
            self.poll(poll, definitions, &dialect, into);
        }
        for health in &file.health {
            self.health(health, definitions, &dialect, into);
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
            self.refuse(0, "status.details", message);
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
            if let Some(mapping) = self.mapping(&name, file.definitions.as_ref(), code.as_ref()) {
                frames.insert(frame, mapping);
            }
        }
        frames
    }

    fn mapping(
        &mut self,
        name: &str,
        definitions: Option<&Spanned<String>>,
        code: Option<&Spanned<String>>,
    ) -> Option<Mapping> {
        let code = code?;
        let before = definitions.map_or("", |text| text.get_ref().as_str());
        let meter = (self.meters)(self.name, name);
        match Mapping::compile(name, before, code.get_ref(), meter) {
            Ok(mapping) => Some(mapping),
            Err(complaints) => {
                let start = file::content_start(self.text, &code.span());
                for each in complaints {
                    // The definitions are right by themselves, so it is the mapping's own.
                    let offset = each.offset.saturating_sub(before.len() + 1);
                    self.refuse(start + offset, name, format!("jq: {}", each.message));
                }
                None
            }
        }
    }

    /// Whether the definitions are right by themselves.
    fn check_definitions(&mut self, definitions: &Spanned<String>) -> bool {
        let text = definitions.get_ref();
        let Err(complaints) = Mapping::compile("definitions", text, ".", Box::new(())) else {
            return true;
        };
        let start = file::content_start(self.text, &definitions.span());
        for each in complaints {
            let offset = each.offset.min(text.trim_end().len());
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
                0,
                "heartbeat.dead_after",
                "must be at least one and a half times heartbeat.ping_interval, which must not be 0",
            );
        }
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
                self.refuse(0, key, "is too little; use at least 100ms");
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
                self.refuse(0, key, format!("needs {frame}, or nothing would be sent"));
            }
        }
    }

    fn route(&mut self, route: &RouteFile, voice: Arc<Voice>, into: &mut Dialects) {
        let at = route.path.span().start;
        let path = route.path.get_ref();
        if !self.path_is_free(at, "routes.path", path) {
            return;
        }
        let mut params = params_of(path);
        let namespace = route.namespace.as_ref().map(Spanned::get_ref);
        match (route.transport, namespace) {
            (Carrier::WebSocket, Some(_)) => {
                let message = "only a route with transport = \"socketio\" has namespaces";
                return self.refuse(at, "routes.namespace", message);
            }
            (Carrier::SocketIo, Some(namespace)) if !namespace.starts_with('/') => {
                return self.refuse(at, "routes.namespace", "must begin with /");
            }
            (_, namespace) => params.extend(namespace.iter().flat_map(|text| params_of(text))),
        }
        let mut topics = Vec::new();
        for topic in &route.topics {
            match Template::parse(topic.get_ref(), &params) {
                Ok(template) => topics.push(template),
                Err(error) => {
                    let message = format!("{:?} is not a valid topic: {error}", topic.get_ref());
                    self.refuse(topic.span().start, "routes.topics", message);
                }
            }
        }
        let endpoint = Endpoint {
            path: path.clone(),
            namespace: match route.transport {
                Carrier::WebSocket => None,
                Carrier::SocketIo => Some(namespace.map_or("/", String::as_str).to_owned()),
            },
            voice,
            topics,
        };
        if let Err(error) = into.routes.add_endpoint(endpoint) {
            self.refuse(at, "routes.path", error.to_string());
        }
    }

    fn poll(
        &mut self,
        poll: &PollFile,
        definitions: Option<&Spanned<String>>,
        dialect: &Arc<Dialect>,
        into: &mut Dialects,
    ) {
        let at = poll.path.span().start;
        let path = poll.path.get_ref();
        let body = self.mapping("polls.body", definitions, Some(&poll.body));
        if !self.path_is_free(at, "polls.path", path) {
            return;
        }
        let params = params_of(path);
        let topic = match &poll.topic {
            Some(topic) => match Template::parse(topic.get_ref(), &params) {
                Ok(template) => template,
                Err(error) => {
                    let message = format!("{:?} is not a valid topic: {error}", topic.get_ref());
                    return self.refuse(topic.span().start, "polls.topic", message);
                }
            },
            None if params == ["job"] => Template::of_job(),
            None => {
                let message =
                    "a polled path has one parameter, {job}, or polls.topic names what it watches";
                return self.refuse(at, "polls.path", message);
            }
        };
        let Some(body) = body else {
            return;
        };
        let slot = into.take_slots(1);
        let added = into.routes.add_poll(Poll {
            path: path.clone(),
            topic,
            dialect: dialect.clone(),
            per_minute: poll.per_minute,
            interval: poll.interval.map(|time| time.0),
            view: poll.view.clone(),
            body,
            slot,
            slots: into.slots.clone(),
        });
        if let Err(error) = added {
            self.refuse(at, "polls.path", error.to_string());
        }
    }

    fn health(
        &mut self,
        health: &HealthFile,
        definitions: Option<&Spanned<String>>,
        dialect: &Arc<Dialect>,
        into: &mut Dialects,
    ) {
        let at = health.path.span().start;
        let path = health.path.get_ref();
        let body = self.mapping("health.body", definitions, Some(&health.body));
        if !self.path_is_free(at, "health.path", path) {
            return;
        }
        if !params_of(path).is_empty() {
            let message =
                "the relay's health is the same for everybody; leave out the path's parameters";
            return self.refuse(at, "health.path", message);
        }
        let Some(body) = body else {
            return;
        };
        let added = into.routes.add_health(Health {
            path: path.clone(),
            dialect: dialect.clone(),
            body,
        });
        if let Err(error) = added {
            self.refuse(at, "health.path", error.to_string());
        }
    }

    fn path_is_free(&mut self, at: usize, key: &str, path: &str) -> bool {
        let message = if !path.starts_with('/') || path == "/" {
            "must begin with / and have something behind it"
        } else if path.starts_with(RESERVED) {
            "paths below /v1/ are the native protocol's"
        } else {
            return true;
        };
        self.refuse(at, key, message);
        false
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
