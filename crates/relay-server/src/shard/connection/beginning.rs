//! How a connection and its subscriptions begin: its greeting, what its URL names, and the first words.

use bytes::Bytes;
use relay_core::id::Name;
use relay_core::job::Again;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::{Beginning, Joined};
use relay_core::watcher::outbox::{GapReason, SubscriptionId};
use relay_core::watcher::session::{AMBIGUOUS, Command, FORBIDDEN};
use relay_core::watcher::sight::{Sight, Viewer as _};
use relay_wire::Frame;
use relay_wire::exchange::ReplyTo;
use relay_wire::native::frame::Notice;
use relay_wire::speaker::Transport;
use relay_wire::websocket;
use serde_json::json;

use super::{Connection, Desk, Errand, bounds};
use crate::departures::Whence;
use crate::poll_limits::Caller;

impl Connection {
    /// It begins: the answer to its request, a greeting, and what its URL names.
    pub(crate) fn open(&mut self, head: Bytes, authenticated: bool, desk: &mut Desk<'_>) {
        self.reply(head, desk);
        match self.speaker.transport() {
            // A session that polls has its packet in the answer; in each namespace it is greeted anew.
            Transport::SocketIoWebSocket => {
                let packet = self.open_packet(desk).unwrap_or_default();
                self.reply(websocket::text(packet.as_bytes()), desk);
            }
            Transport::WebSocket => self.say_hello(&ReplyTo::Nobody, desk),
            // Natively nobody is greeted on an event stream.
            Transport::EventStream if self.speaker.speech().is_some() => {
                self.say_hello(&ReplyTo::Nobody, desk);
            }
            Transport::EventStream | Transport::Poll | Transport::SocketIoPolling => {}
        }
        if authenticated {
            self.start(desk);
        }
    }

    pub(super) fn say_hello(&mut self, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        let interval = bounds(&self.speaker, desk.node).session.ping_interval;
        // A dialect's own interval is for its Socket.IO clients, who are told it again when they join.
        let interval = match self.speaker.socketio() {
            Some(_) => interval,
            None => desk.node.bounds.session.ping_interval,
        };
        let identity = self.identity.clone();
        let notice = Notice::Hello {
            version: env!("CARGO_PKG_VERSION"),
            session: &format!("{}-{:x}", desk.shard, self.id.0),
            user: identity.user.as_ref().map(Name::as_str),
            ping_interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        };
        self.say(&notice, reply_to, desk);
    }

    /// Subscribes to what the URL names, once it is known who the client is. What is not its to watch by then
    /// is refused; where it was known before, the request was.
    pub(crate) fn start(&mut self, desk: &mut Desk<'_>) {
        self.name_topics(desk);
        let returns = self.recall(desk);
        let Some((topics, cursor)) = self.rare.as_mut().and_then(|rare| rare.awaited.take()) else {
            return;
        };
        self.tidy();
        let identity = self.identity.clone();
        let (may, may_not): (Vec<_>, Vec<_>) = topics
            .into_iter()
            .partition(|topic| identity.sight(topic) != Sight::No);
        for topic in may_not {
            self.refuse(&topic.to_string(), "forbidden", &ReplyTo::Nobody, desk);
        }
        if returns {
            return self.watch_again(may, desk);
        }
        let limits = bounds(&self.speaker, desk.node);
        let joins = self
            .watcher
            .watch(may, cursor.as_ref(), &desk.tools.horizon, limits);
        desk.tools
            .errands
            .extend(joins.into_iter().map(Errand::Join));
    }

    /// A client of a dialect has shown who it is by a message: what its request names depended on that.
    fn name_topics(&mut self, desk: &mut Desk<'_>) {
        let Some(speech) = self.speaker.speech_mut() else {
            return;
        };
        let Some(query) = speech.authenticated() else {
            return;
        };
        let user = self.identity.user.as_ref();
        match speech.endpoint.topics(&speech.params, &query, user) {
            Ok(topics) if topics.is_empty() => {}
            Ok(topics) => self.rare().awaited = Some((topics, None)),
            Err(error) => {
                self.reject("bad_topic", &error.to_string(), &ReplyTo::Nobody, desk);
            }
        }
    }

    /// Whether the client was here before; what it was told then is told as known.
    fn recall(&mut self, desk: &Desk<'_>) -> bool {
        let Some(whence) = self.whence() else {
            return false;
        };
        let Some(speech) = self.speaker.speech_mut() else {
            return false;
        };
        if !speech.recalls() {
            return false;
        }
        let Some(parting) = desk.node.departures.take(&whence, desk.now) else {
            return false;
        };
        let epoch = desk.tools.horizon.epoch();
        self.watcher.carry(parting.cursor(), epoch);
        speech.returns(parting);
        true
    }

    /// By what a client whose dialect wants to know it again is known.
    pub(super) fn whence(&self) -> Option<Whence> {
        let speech = self.speaker.speech()?;
        speech.dialect().returns_within?;
        Some(Whence {
            path: speech.endpoint.path.clone(),
            params: speech.params.clone(),
            caller: match &self.identity.user {
                Some(user) => Caller::User(user.clone()),
                None => Caller::Address(self.admission.address()),
            },
        })
    }

    /// Subscribes a client that is back to what its URL names: it may no longer show what it had.
    fn watch_again(&mut self, topics: Vec<Topic>, desk: &mut Desk<'_>) {
        for topic in topics {
            let command = Command::Subscribe {
                topic: topic.to_string(),
                cursor: None,
                ack: false,
                again: Again::State,
            };
            self.on_command(command, &ReplyTo::Nobody, desk);
        }
    }

    /// A join was answered. Whether the subscription is live from here on.
    pub(crate) fn begin(&mut self, joined: Joined, desk: &mut Desk<'_>) -> bool {
        let via = joined.subscription;
        let asked = self.watcher.subscription(via);
        // In the client's words, whatever it turns out to mean.
        let spelled = asked
            .map(|each| each.spelled().to_string())
            .unwrap_or_default();
        let limits = bounds(&self.speaker, desk.node);
        let is_gone = joined.publications.iter().any(|each| each.is_removal());
        let (now, wall) = (desk.now, desk.wall());
        let begun = match self.watcher.begin(
            joined,
            &*self.identity,
            &desk.tools.horizon,
            now,
            wall,
            limits,
        ) {
            Beginning::Left => return false,
            Beginning::Forbidden => return self.not_begun(via, &spelled, "forbidden", desk),
            Beginning::Ambiguous => return self.not_begun(via, &spelled, "ambiguous_owner", desk),
            Beginning::Again(join) => {
                desk.tools.errands.push(Errand::Join(join));
                return false;
            }
            Beginning::Live(begun) => begun,
        };
        let meant = self.watcher.subscription(via);
        let Some(topic) = meant.map(|each| each.topic.clone()) else {
            return false;
        };
        let reply_to = self.take_asked(via);
        let telemetry = &desk.node.telemetry;
        if begun.resumes {
            telemetry.resume(begun.recovered);
        }
        for _ in 0..begun.gaps {
            telemetry.gap(GapReason::History.as_str());
        }
        if let Some(client) = self.speaker.socketio_mut() {
            client.begun(via);
        }
        let notice = Notice::Subscribed {
            id: reply_to.id(),
            topic: spelled.clone(),
            recovered: begun.recovered,
            jobs: begun.jobs,
            cursor: begun.cursor.to_string(),
            stale: desk.tools.horizon.is_stale(),
        };
        self.say(&notice, &reply_to, desk);
        if let Topic::Job(job) = &topic
            && begun.jobs == 0
            && !begun.recovered
            && !is_gone
            && self.speaker.speech().is_some()
        {
            let input = json!({"type": "unknown", "topic": spelled, "job_id": job.id.as_str()});
            let about = Self::about(&self.identity, desk);
            let frame = self
                .speaker
                .say_as(Frame::Unknown, &input, &reply_to, &about);
            self.reply(frame, desk);
        }
        self.due = true;
        true
    }

    /// A subscription cannot begin, and its client is told why.
    fn not_begun(
        &mut self,
        via: SubscriptionId,
        topic: &str,
        code: &'static str,
        desk: &mut Desk<'_>,
    ) -> bool {
        let reply_to = self.take_asked(via);
        self.forget_name(via);
        self.refuse(topic, code, &reply_to, desk);
        self.due = true;
        false
    }

    /// The client has another token, or none of before: what it may not watch any more ends.
    pub(super) fn judge_again(&mut self, desk: &mut Desk<'_>) {
        let identity = self.identity.clone();
        for via in self.watcher.outlawed(&*identity) {
            self.refuse_subscription(via, desk);
        }
    }

    /// Ends a subscription its client may not have, and says so.
    pub(crate) fn refuse_subscription(&mut self, via: SubscriptionId, desk: &mut Desk<'_>) {
        let asked = self.watcher.subscription(via);
        let spelled = asked
            .map(|each| each.spelled().to_string())
            .unwrap_or_default();
        let Some(topic) = self.watcher.leave(via) else {
            return;
        };
        let reply_to = match self.take_asked(via) {
            ReplyTo::Nobody => self.speaker.place_of(via),
            asked => asked,
        };
        self.forget_name(via);
        self.refuse(&spelled, "forbidden", &reply_to, desk);
        self.due = true;
        desk.tools.errands.push(Errand::Leave(via, topic));
    }

    /// Says that a topic is not the client's to watch, or that it means several.
    fn refuse(&mut self, topic: &str, code: &'static str, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        desk.node.telemetry.client_error(code);
        let notice = Notice::Error {
            id: reply_to.id(),
            code,
            message: match code {
                "forbidden" => FORBIDDEN,
                _ => AMBIGUOUS,
            },
            topic: Some(topic.to_owned()),
        };
        self.say(&notice, reply_to, desk);
    }
}
