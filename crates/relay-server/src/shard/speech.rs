//! A connection that speaks a dialect: what it was told, what it is sent, what it says.
//!
//! Everything here is behind one pointer of a connection that native clients do not have. Words and shapes
//! are the dialect's; when something is sent, and to whom, is decided where it is for everybody.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_core::id::JobId;
use relay_core::job::Again;
use relay_core::moment::{Moment, WallTime};
use relay_core::outbox::{OutboxBounds, SubscriptionId, Taken, Telling};
use relay_core::position::Seq;
use relay_core::publication::{Frames, JobKey, Publication};
use relay_core::quality::Verdict;
use relay_core::session::{Action, CloseReason, Command, Event, Join as Joining, SessionBounds};
use relay_core::tally::Aggregate;
use relay_core::topic::Topic;
use relay_wire::Frame;
use relay_wire::dialect::{Before, Dialect, Endpoint, Input, Instruction, Params, Voice};
use relay_wire::native::frame::{self, Notice};
use relay_wire::websocket;
use serde::Serialize;
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::connection::{Connection, Transport};
use super::registry::Watcher;
use super::socketio::{self, Call};
use super::{Join, Shard, State};
use crate::node::Node;

/// Jobs a connection remembers having been told of; the one told first is forgotten first.
const MAX_TOLD: usize = 1024;

/// Jobs, each with the status it was last told with.
type Told = SmallVec<[(JobKey, u8); 1]>;

/// What a connection needs to speak a dialect.
#[derive(Debug)]
pub(super) struct Speech {
    pub(super) endpoint: Arc<Endpoint>,
    /// What the path says.
    pub(super) params: Params,
    /// The status each job was last told with, where the dialect tracks that.
    told: Told,
    /// The job a client came back to, with the status it was told there before.
    pub(super) returned: Option<(JobId, u8)>,
    /// When anything was last said, in either direction.
    pub(super) last_traffic: Moment,
    /// When the connection ends because its job has.
    pub(super) ends_at: Option<Moment>,
    /// When the next check is due.
    pub(super) next_check: Option<Moment>,
    /// The check whose answer is awaited.
    pub(super) checked: Option<Moment>,
    /// Questions to workers that are under way.
    pub(super) asking: u8,
    /// Topics that are joined when the client has had the time to ask for jobs of theirs by name.
    pub(super) postponed: Option<(Moment, Vec<Join>)>,
}

impl Speech {
    pub(super) fn new(endpoint: Arc<Endpoint>, params: Params, now: Moment) -> Self {
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

    pub(super) fn dialect(&self) -> &Arc<Dialect> {
        &self.endpoint.voice.dialect
    }

    /// The next moment something of this is due.
    pub(super) fn next(&self) -> Option<Moment> {
        let idle = self.dialect().idle_after;
        let idle = idle.map(|idle| self.last_traffic + idle);
        let postponed = self.postponed.as_ref().map(|(at, _)| *at);
        [idle, self.ends_at, self.next_check, postponed]
            .into_iter()
            .flatten()
            .min()
    }

    /// Why the connection ends now, if it does.
    pub(super) fn is_over(&self, now: Moment) -> Option<CloseReason> {
        let idle = self.dialect().idle_after;
        if self.ends_at.is_some_and(|at| now >= at) {
            Some(CloseReason::Ended)
        } else if idle.is_some_and(|idle| now >= self.last_traffic + idle) {
            Some(CloseReason::Idle)
        } else {
            None
        }
    }

    /// A publication in the words of `voice`, else of the connection's own, as it has to be after what was
    /// told before; and whether it tells another status.
    pub(super) fn tell(
        &mut self,
        voice: Option<&Arc<Voice>>,
        (publication, replayed): (&Publication, bool),
        wrap: fn(Vec<Vec<u8>>) -> Bytes,
    ) -> (Bytes, bool) {
        let (told, voice) = (&mut self.told, voice.unwrap_or(&self.endpoint.voice));
        let tracks = voice.dialect.tracks_status && publication.is_state();
        let known = told.iter().position(|(key, _)| *key == publication.key);
        let status = match known {
            Some(at) => Some(told[at].1),
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
                Some(at) => told[at].1 = encoded.tag,
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
    pub(super) fn told_of(&self, key: JobKey) -> Option<u8> {
        let told = self.told.iter().find(|(told, _)| *told == key);
        told.map(|(_, status)| *status)
    }

    /// Something was told: how long the connection has still to live.
    pub(super) fn note(&mut self, publication: &Publication, jobs: usize, now: Moment) {
        self.last_traffic = now;
        if publication.is_state() && jobs == 1 {
            let grace = self.dialect().after_ending;
            let grace = grace.filter(|_| publication.is_terminal());
            self.ends_at = grace.map(|grace| now + grace);
        }
    }
}

/// Each text in a WebSocket frame, one behind the other.
fn text_frames(texts: Vec<Vec<u8>>) -> Bytes {
    match texts.as_slice() {
        [] => Bytes::new(),
        [text] => websocket::text(text),
        texts => {
            let frames: Vec<Bytes> = texts.iter().map(|text| websocket::text(text)).collect();
            Bytes::from(frames.concat())
        }
    }
}

/// The bounds of a connection's outbox.
pub(super) fn outbox_bounds<'a>(
    speech: &'a Option<Box<Speech>>,
    common: &'a Node,
) -> &'a OutboxBounds {
    match speech {
        None => &common.outbox,
        Some(speech) => &speech.endpoint.voice.dialect.outbox,
    }
}

/// The bounds of a connection's session.
pub(super) fn session_bounds<'a>(
    speech: &'a Option<Box<Speech>>,
    common: &'a Node,
) -> &'a SessionBounds {
    match speech {
        None => &common.session,
        Some(speech) => &speech.endpoint.voice.dialect.session,
    }
}

/// How long ago jobs may have ended that are told when a topic begins; `None`: however long. Who asks for one
/// job wants its ending; a page that is told of a user's or a group's jobs as they go may take an old ending
/// for the one it waits for.
pub(super) fn endings_within(connection: &Connection, topic: &Topic) -> Option<Duration> {
    match topic {
        Topic::Job(_) => None,
        Topic::User(_) | Topic::Group(_) => connection.speech.as_ref()?.dialect().endings_within,
    }
}

/// Takes jobs that ended longer ago out of what a topic begins with, their milestones too; not what ended
/// after `since`, when its client was there.
pub(super) fn leave_out_ended(
    publications: &mut Vec<Arc<Publication>>,
    since: Option<Seq>,
    within: Duration,
    now: WallTime,
) {
    let is_old = |ending: &Publication| {
        if since.is_some_and(|since| ending.seq > since) {
            return false;
        }
        let ago = now.as_unix_micros() - ending.stored_at.as_unix_micros();
        // The bus has a clock of its own, which may be ahead of ours.
        within.is_zero() || u128::try_from(ago).is_ok_and(|ago| ago > within.as_micros())
    };
    let ended = publications
        .iter()
        .filter(|each| each.is_terminal() && is_old(each));
    let ended: HashSet<JobKey> = ended.map(|each| each.key).collect();
    publications.retain(|each| !ended.contains(&each.key));
}

/// Whether a client is told how the jobs of a topic stand: where its dialect has words for it, and natively
/// for a user and a group. A poll is not: it waits for news of jobs.
fn hears_aggregates(connection: &Connection, topic: &Topic) -> bool {
    match &connection.speech {
        Some(speech) => speech.dialect().speaks(Frame::Aggregate),
        None => {
            !matches!(topic, Topic::Job(_)) && !matches!(connection.transport, Transport::Poll(_))
        }
    }
}

impl Shard {
    /// A publication to a connection that speaks a dialect, which then stands at `position`.
    pub(super) fn tell_foreign(
        &self,
        connection: &mut Connection,
        publication: &Publication,
        (via, position): (SubscriptionId, Seq),
        replayed: bool,
    ) -> Bytes {
        if let Transport::SocketIo(_) = connection.transport {
            return self.tell_in(connection, publication, (via, position), replayed);
        }
        let Some(speech) = &mut connection.speech else {
            return Bytes::new();
        };
        let told = (publication, replayed);
        speech.tell(None, told, text_frames).0
    }

    /// What was taken from the outbox of a connection that speaks a dialect.
    pub(super) fn render_foreign(&self, connection: &mut Connection, taken: &Taken) -> Bytes {
        let (job, reason) = match &taken.telling {
            Telling::Publication(publication) => {
                let place = (taken.via, taken.position);
                return self.tell_foreign(connection, publication, place, taken.replayed);
            }
            Telling::Gap { job, reason } => (job, reason),
        };
        let subscription = connection.session.subscription(taken.via);
        let notice = Notice::Gap {
            topic: subscription.map_or_else(String::new, |each| each.topic.to_string()),
            job_id: job.as_str(),
            reason: reason.as_str(),
        };
        if let Transport::SocketIo(link) = &connection.transport {
            let room = link.room_of(taken.via).map(|at| &link.rooms[at]);
            let namespace = room.map(|room| room.namespace.as_str());
            return namespace.map_or_else(Bytes::new, |namespace| {
                self.notice_in(
                    connection,
                    &notice,
                    &Call {
                        namespace,
                        ack: None,
                    },
                )
            });
        }
        self.frame_of(connection, &notice, None)
    }

    /// A notice in a connection's words; empty where it has none for it. `id` becomes the event's id on an
    /// event stream.
    pub(super) fn frame_of(
        &self,
        connection: &Connection,
        notice: &Notice<'_>,
        id: Option<&str>,
    ) -> Bytes {
        if let Transport::SocketIo(_) = connection.transport {
            let call = Call::of(notice.id(), connection);
            return call.map_or_else(Bytes::new, |call| self.notice_in(connection, notice, &call));
        }
        let Some(speech) = &connection.speech else {
            let wire = connection.transport.wire();
            return match id {
                Some(id) => notice.encode_with_id(wire, id),
                None => notice.encode(wire),
            };
        };
        let Some(frame) = notice.frame() else {
            return Bytes::new();
        };
        self.say_foreign(connection, speech, frame, notice)
    }

    /// Anything a dialect may have words for.
    pub(super) fn say_foreign(
        &self,
        connection: &Connection,
        speech: &Speech,
        frame: Frame,
        input: &impl Serialize,
    ) -> Bytes {
        if let Transport::SocketIo(_) = connection.transport {
            return self.say_called(connection, frame, input, None);
        }
        let dialect = speech.dialect();
        if !dialect.speaks(frame) {
            return Bytes::new();
        }
        let relay = self.context(connection, &speech.endpoint, &speech.params);
        let (Ok(input), Ok(relay)) = (Input::of(input), Input::of(&relay)) else {
            return Bytes::new();
        };
        text_frames(dialect.map(frame, &input, &relay))
    }

    /// What mappings are told about the connection they speak on.
    pub(super) fn context(
        &self,
        connection: &Connection,
        endpoint: &Endpoint,
        params: &Params,
    ) -> Value {
        let now = self.clock.wall();
        let params: serde_json::Map<String, Value> = params
            .0
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect();
        json!({
            "transport": endpoint.voice.carrier.as_str(),
            "view": endpoint.voice.view,
            "params": params,
            "user": connection.user().map(relay_core::id::Name::as_str),
            "at": now.to_rfc3339(),
            "ms": now.as_unix_micros() / 1000,
        })
    }

    /// A text message on a connection that speaks a dialect.
    pub(super) fn on_foreign_text(&self, state: &mut State, slot: usize, text: &str, now: Moment) {
        let connection = &mut state.connections[slot];
        let Some(speech) = &mut connection.speech else {
            return;
        };
        speech.last_traffic = now;
        // serde_json is stricter than jq, and says more about what is wrong.
        let message = serde_json::from_str::<Value>(text)
            .map_err(|error| error.to_string())
            .and_then(|_| Input::parse(text.as_bytes()).map_err(|error| error.to_string()));
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                let sentence = format!("the message is not JSON: {error}");
                return self.refuse(state, slot, None, "bad_json", &sentence);
            }
        };
        let connection = &state.connections[slot];
        let Some(speech) = &connection.speech else {
            return;
        };
        let context = self.context(connection, &speech.endpoint, &speech.params);
        let dialect = speech.dialect().clone();
        self.on_message(state, slot, &dialect, (&message, &context), None, now);
    }

    /// A message of a client, `context` being what mappings are told of the connection; `id` is what the
    /// answers are to carry.
    pub(super) fn on_message(
        &self,
        state: &mut State,
        slot: usize,
        dialect: &Dialect,
        (message, context): (&Input, &Value),
        id: Option<&Value>,
        now: Moment,
    ) {
        let connection = state.connections[slot].id;
        let Ok(relay) = Input::of(context) else {
            return;
        };
        let Some(instructions) = dialect.instructions(message, &relay) else {
            let sentence = "the message is none that is understood here";
            return self.refuse(state, slot, id, "bad_message", sentence);
        };
        for instruction in instructions {
            let Some(slot) = Self::find(state, connection) else {
                return;
            };
            self.carry_out(state, slot, instruction, id, now);
        }
    }

    pub(super) fn carry_out(
        &self,
        state: &mut State,
        slot: usize,
        instruction: Instruction,
        asked: Option<&Value>,
        now: Moment,
    ) {
        let command = match instruction {
            Instruction::Subscribe(topic) => Command::Subscribe {
                cursor: socketio::cursor_for(&state.connections[slot], &topic),
                topic,
                ack: false,
                again: Again::State,
            },
            Instruction::Unsubscribe(topic) => Command::Unsubscribe { topic },
            Instruction::Auth(token) => Command::Auth { token },
            Instruction::Reply(text) => {
                let connection = &state.connections[slot];
                let frame = match Call::of(asked, connection) {
                    Some(call) => socketio::packets(connection, &call, vec![text]),
                    None => text_frames(vec![text]),
                };
                return self.reply(state, slot, frame);
            }
            Instruction::Error { code, message } => {
                return self.refuse(state, slot, asked, &code, &message);
            }
            Instruction::RoundTrip => return self.on_check_answered(state, slot, now),
            Instruction::Request { name, data } => {
                return self.ask(state, slot, (&name, data), asked);
            }
        };
        let bounds = *session_bounds(&state.connections[slot].speech, &self.common);
        let id = state.connections[slot].id;
        let session = &mut state.connections[slot].session;
        let actions = session.handle(Event::Command(command), now, &bounds);
        for action in actions {
            let Some(slot) = Self::find(state, id) else {
                return;
            };
            if let Action::Join(Joining { subscription, .. }) = &action {
                socketio::note_subscription(&mut state.connections[slot], asked, *subscription);
            }
            self.perform(state, slot, action, asked, false, now);
        }
    }

    /// How the jobs of a topic stand has changed.
    pub(super) fn on_aggregate(&self, state: &mut State, aggregate: &Aggregate) {
        for at in 0..state.registry.watchers(&aggregate.topic).len() {
            let Some(watcher) = state.registry.watchers(&aggregate.topic).get(at).copied() else {
                // Somebody before it was ended for not reading.
                return;
            };
            self.guarded(state, watcher.slot, |shard, state| {
                shard.tell_aggregate(state, watcher, aggregate);
            });
        }
    }

    /// A client has begun to watch a topic: it is told how the jobs stand, and whenever that changes.
    pub(super) fn begin_tally(&self, state: &mut State, watcher: Watcher, topic: &Topic) {
        if !hears_aggregates(&state.connections[watcher.slot], topic) {
            return;
        }
        if let Some(tally) = self.common.hub.tally(topic, self.number) {
            let aggregate = Aggregate {
                topic: topic.clone(),
                tally,
                frames: Frames::default(),
            };
            self.tell_aggregate(state, watcher, &aggregate);
        }
    }

    fn tell_aggregate(&self, state: &mut State, watcher: Watcher, aggregate: &Aggregate) {
        let connection = &mut state.connections[watcher.slot];
        let blocked = connection.writer.is_blocked();
        // Where each job has still to be looked at, a count over all would tell of those not shown.
        let extras = connection.extras.as_ref();
        if extras.is_some_and(|extras| extras.unproven.contains(&watcher.subscription)) {
            return;
        }
        if !hears_aggregates(connection, &aggregate.topic) {
            return;
        }
        if blocked {
            let owed = &mut connection.extras().owed;
            if !owed.contains(&aggregate.topic) {
                owed.push(aggregate.topic.clone());
            }
            return;
        }
        let frame = match &connection.speech {
            Some(speech) => {
                let (voice, wall) = (&speech.endpoint.voice, self.clock.wall());
                voice.encode_aggregate(aggregate, wall, text_frames)
            }
            None => frame::aggregate(aggregate, connection.transport.wire()),
        };
        self.reply(state, watcher.slot, frame);
    }

    /// There is room again: the tallies that changed meanwhile.
    pub(super) fn tell_owed(&self, state: &mut State, slot: usize) {
        let connection = &mut state.connections[slot];
        let Some(extras) = &mut connection.extras else {
            return;
        };
        let (owed, id) = (std::mem::take(&mut extras.owed), connection.id);
        for topic in owed {
            let Some(slot) = Self::find(state, id) else {
                return;
            };
            let subscription = state.connections[slot].session.subscription_to(&topic);
            if let Some(subscription) = subscription.map(|each| each.id) {
                self.begin_tally(state, Watcher { slot, subscription }, &topic);
            }
        }
    }

    /// The client answered a check of ours.
    fn on_check_answered(&self, state: &mut State, slot: usize, now: Moment) {
        let Some(speech) = &mut state.connections[slot].speech else {
            return;
        };
        if let Some(checked) = speech.checked.take() {
            self.common.telemetry.check("answered");
            self.observe_round_trip(state, slot, now - checked);
        }
    }

    /// How long a client's answer took.
    pub(super) fn observe_round_trip(&self, state: &mut State, slot: usize, took: Duration) {
        let histogram = &self.common.telemetry.round_trip_seconds;
        histogram.observe(took.as_secs_f64());
        let quality = &mut state.connections[slot].quality;
        let before = quality.verdict();
        if let Some(verdict) = quality.observe(took) {
            self.on_verdict(state, slot, before, verdict);
        }
    }

    /// A client's answer did not come.
    pub(super) fn miss_answer(&self, state: &mut State, slot: usize) {
        let quality = &mut state.connections[slot].quality;
        let before = quality.verdict();
        if let Some(verdict) = quality.miss() {
            self.on_verdict(state, slot, before, verdict);
        }
    }

    /// The connection is judged differently from now on.
    fn on_verdict(&self, state: &mut State, slot: usize, before: Verdict, verdict: Verdict) {
        self.common.telemetry.quality(before).dec();
        self.common.telemetry.quality(verdict).inc();
        self.common.telemetry.quality_change(verdict);
        let connection = &state.connections[slot];
        let Some(speech) = &connection.speech else {
            return;
        };
        if connection.writer.is_blocked() {
            return;
        }
        let millis = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
        let latency = connection.quality.latency();
        let input = json!({
            "type": "quality",
            "verdict": verdict.as_str(),
            "before": before.as_str(),
            "round_trip_ms": millis(latency.mean()),
            "deviation_ms": millis(latency.deviation()),
            "job_id": first_job(connection),
        });
        let frame = self.say_foreign(connection, speech, Frame::Quality, &input);
        self.reply(state, slot, frame);
    }

    /// Asks the client for a sign of its own, where its dialect has a question for that.
    pub(super) fn check(&self, state: &mut State, slot: usize, now: Moment) {
        let connection = &mut state.connections[slot];
        let Some(speech) = &mut connection.speech else {
            return;
        };
        let (Some(at), Some(interval)) = (speech.next_check, speech.dialect().check_interval)
        else {
            return;
        };
        if at > now {
            return;
        }
        speech.next_check = Some(now + interval);
        if speech.checked.take().is_some() {
            self.common.telemetry.check("missed");
            // Pongs say more of the connection: a page may have no answer to this question.
        }
        let connection = &mut state.connections[slot];
        if connection.writer.is_blocked() {
            return;
        }
        if let Some(speech) = &mut connection.speech {
            speech.checked = Some(now);
        }
        let connection = &state.connections[slot];
        let Some(speech) = &connection.speech else {
            return;
        };
        let input = json!({"type": "check", "job_id": first_job(connection)});
        let frame = self.say_foreign(connection, speech, Frame::Check, &input);
        self.reply(state, slot, frame);
    }
}

/// The job a connection watches, the first if it watches several.
pub(super) fn first_job(connection: &Connection) -> Option<&str> {
    let mut topics = connection.session.subscriptions().iter();
    topics.find_map(|each| match &each.topic {
        Topic::Job(job) => Some(job.as_str()),
        Topic::User(_) | Topic::Group(_) => None,
    })
}
