//! What the client sends: bytes to messages, messages to what they ask, and that carried out.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use governor::clock::{Clock as _, QuantaClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use relay_core::id::Name;
use relay_core::moment::{Moment, WallTime};
use relay_core::watcher::outbox::SubscriptionId;
use relay_core::watcher::session::{Action, CloseReason, Command, CommandError};
use relay_wire::exchange::{Ask, Heard, ReplyTo};
use relay_wire::native::frame::Notice;
use relay_wire::websocket::{DecodeError, Inbound};

use super::{Connection, Desk, Errand, bounds};
use crate::identity::{Credential, Identity, Source};
use crate::refused::Refused;
use crate::shard::asking::{Came, Shown};

/// Messages rejected in a row for coming too fast, after which the connection ends.
const MAX_TOO_FREQUENT: u32 = 100;
/// How much of a topic that is none is given back.
const MAX_SHOWN: usize = 160;

/// The bucket a client's messages are taken from.
#[derive(Debug)]
pub(super) struct MessageLimiter {
    bucket: DefaultDirectRateLimiter,
    rejected: u32,
}

impl MessageLimiter {
    fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        Self {
            bucket: RateLimiter::direct_with_clock(quota, QuantaClock::default()),
            rejected: 0,
        }
    }

    /// `Err` with the milliseconds until the next message would be taken.
    fn admit(&mut self) -> Result<(), u128> {
        match self.bucket.check() {
            Ok(()) => {
                self.rejected = 0;
                Ok(())
            }
            Err(not_until) => {
                self.rejected += 1;
                let wait = not_until.wait_time_from(QuantaClock::default().now());
                Err(wait.as_millis())
            }
        }
    }
}

/// Frames of a client in the second that it is in, of any kind: pongs and pieces of messages cost as well, and are
/// nobody's messages.
#[derive(Debug, Default)]
pub(super) struct FrameCount {
    second: u32,
    frames: u32,
}

/// How many times as many frames as messages a client may send.
const FRAMES_PER_MESSAGE: u32 = 10;

impl FrameCount {
    /// Whether the client's allowance covers so many more.
    fn admit(&mut self, frames: u32, desk: &Desk<'_>) -> bool {
        let limits = &desk.node.limits;
        let now = (desk.now - Moment::default()).as_secs();
        let second = u32::try_from(now).unwrap_or(u32::MAX);
        if self.second != second {
            *self = Self { second, frames: 0 };
        }
        self.frames = self.frames.saturating_add(frames);
        let messages = limits.messages_per_second.max(limits.messages_burst);
        self.frames <= messages.saturating_mul(FRAMES_PER_MESSAGE)
    }
}

impl Connection {
    /// Takes bytes from the client's socket.
    pub(crate) fn received(&mut self, bytes: &[u8], desk: &mut Desk<'_>) {
        #[cfg(test)]
        crate::shard::tests::fault_in_message(bytes);
        let limit = desk.node.limits.message_bytes;
        let (messages, error) = self.speaker.decode(bytes, limit);
        self.sign_of_life(desk);
        if !self.frames.admit(self.speaker.take_frames(), desk) {
            desk.node.telemetry.client_error("rate_limited");
            return self.end(CloseReason::TooFrequent);
        }
        self.take_messages(messages, desk);
        if let (Some(error), true) = (error, self.goes_on()) {
            self.on_undecodable(error, desk);
        }
    }

    /// Takes messages one after the other, until one of them ends the connection.
    pub(crate) fn take_messages(
        &mut self,
        messages: impl IntoIterator<Item = Inbound>,
        desk: &mut Desk<'_>,
    ) {
        for message in messages {
            if !self.goes_on() {
                return;
            }
            let counts = !matches!(message, Inbound::Pong | Inbound::Close(_));
            if counts && !self.admit(&message, desk) {
                continue;
            }
            let about = Self::about(&self.identity, desk);
            let heard = self.speaker.hear(message, &about, desk.now);
            self.act_on(heard, desk);
        }
    }

    /// Whether the client's allowance covers one more message. If not, that message is answered with an
    /// error, so the client knows which one was ignored; a client that goes on regardless is ended.
    fn admit(&mut self, message: &Inbound, desk: &mut Desk<'_>) -> bool {
        let limits = &desk.node.limits;
        let (per_second, burst) = (limits.messages_per_second, limits.messages_burst);
        let limiter = self
            .messages
            .get_or_insert_with(|| Box::new(MessageLimiter::new(per_second, burst)));
        let Err(wait_ms) = limiter.admit() else {
            return true;
        };
        if limiter.rejected > MAX_TOO_FREQUENT {
            self.end(CloseReason::TooFrequent);
            return false;
        }
        let reply_to = self.speaker.id_of(message);
        let sentence = format!(
            "rate limit exceeded: more than {per_second} messages per second (burst {burst}; limits.messages_per_second, limits.messages_burst). This message was ignored; send it again in {wait_ms} ms"
        );
        self.reject("rate_limited", &sentence, &reply_to, desk);
        false
    }

    fn act_on(&mut self, heard: Heard, desk: &mut Desk<'_>) {
        match heard {
            Heard::Nothing => {}
            Heard::Pong => self.on_pong(desk),
            Heard::Answer(bytes) => self.reply(bytes, desk),
            Heard::Leave(bytes) => self.on_leave(bytes, desk),
            Heard::Asked(asks, reply_to) => self.carry_out(asks, &reply_to, desk),
            Heard::Rejected(rejected, reply_to) => {
                self.reject(rejected.code, &rejected.message, &reply_to, desk);
            }
            Heard::Connect(namespace, auth) => {
                self.on_connect(&namespace, auth.as_ref(), desk);
            }
            Heard::Disconnect(namespace) => self.on_disconnect(&namespace, desk),
            Heard::Broken(_) => {
                desk.node.telemetry.client_error("protocol");
                self.end(CloseReason::Protocol);
            }
        }
    }

    /// Does what a message asks for, until that ends the connection.
    pub(super) fn carry_out(&mut self, asks: Vec<Ask>, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        for ask in asks {
            if !self.goes_on() {
                return;
            }
            match ask {
                Ask::Named(name, ask) => {
                    let reply_to = reply_to.clone().named(name);
                    self.carry_out_one(*ask, &reply_to, desk);
                }
                ask => self.carry_out_one(ask, reply_to, desk),
            }
        }
    }

    fn carry_out_one(&mut self, ask: Ask, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        match ask {
            Ask::Command(command) => self.on_command(command, reply_to, desk),
            Ask::Say(bytes) => self.reply(bytes, desk),
            Ask::Error { code, message } => self.reject(&code, &message, reply_to, desk),
            Ask::RoundTrip => self.on_check_answered(desk),
            Ask::Worker { name, data } => self.ask(&name, data, reply_to, desk),
            // A name has no name.
            Ask::Named(..) => {}
        }
    }

    pub(super) fn on_command(&mut self, command: Command, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        let limits = bounds(&self.speaker, desk.node);
        let asked = self.topic_asked(&command);
        let actions = self.watcher.command(
            command,
            &*self.identity,
            &desk.tools.horizon,
            desk.now,
            limits,
        );
        for action in actions {
            match action {
                Action::Join(join) => {
                    self.note_asked(join.subscription, reply_to);
                    desk.tools.errands.push(Errand::Join(join));
                }
                Action::Leave {
                    subscription,
                    topic,
                    watched,
                } => {
                    self.take_asked(subscription);
                    if let Some(speech) = self.speaker.speech_mut() {
                        speech.left();
                    }
                    let known = self.forget_name(subscription);
                    let reply_to = match (reply_to.name(), known) {
                        (None, Some(name)) => &reply_to.clone().named(name),
                        _ => reply_to,
                    };
                    let notice = Notice::Unsubscribed {
                        id: reply_to.id(),
                        topic: topic.to_string(),
                    };
                    self.say(&notice, reply_to, desk);
                    let left = Errand::Leave(subscription, watched);
                    desk.tools.errands.push(left);
                }
                Action::Verify(token) => self.on_auth(&token, reply_to, desk),
                Action::Pong => {
                    let ts = desk.wall().as_unix_micros() / 1000;
                    let id = reply_to.id();
                    self.say(&Notice::Pong { id, ts }, reply_to, desk);
                }
                Action::Refuse(error) => {
                    self.on_refused(&error, asked.as_deref(), reply_to, desk);
                }
                Action::Ping => self.ping(desk),
                Action::Close(reason) => self.end(reason),
                // The watcher has it; and what time brings comes with time.
                Action::Acknowledge { .. } | Action::ExpiresSoon => {}
            }
        }
    }

    /// Notes where the answer to a join goes.
    pub(super) fn note_asked(&mut self, via: SubscriptionId, reply_to: &ReplyTo) {
        if *reply_to != ReplyTo::Nobody {
            self.rare().asked.push((via, reply_to.clone()));
        }
        if let Some(client) = self.speaker.socketio_mut() {
            client.note_subscription(reply_to, via);
        }
        if let (Some(name), Some(speech)) = (reply_to.name(), self.speaker.speech_mut()) {
            speech.name(via, name);
        }
    }

    /// A subscription has ended; the text by which a dialect's page knew it.
    pub(super) fn forget_name(&mut self, via: SubscriptionId) -> Option<Box<str>> {
        self.speaker.speech_mut()?.forget(via)
    }

    /// What a dialect's client asked about, as it wrote it: a native client has its id to know that by.
    fn topic_asked(&self, command: &Command) -> Option<String> {
        self.speaker.speech()?;
        match command {
            Command::Subscribe { topic, .. } | Command::Unsubscribe { topic } => {
                Some(topic.chars().take(MAX_SHOWN).collect())
            }
            Command::Ack { .. } | Command::Ping | Command::Auth { .. } => None,
        }
    }

    fn on_refused(
        &mut self,
        error: &CommandError,
        asked: Option<&str>,
        reply_to: &ReplyTo,
        desk: &mut Desk<'_>,
    ) {
        desk.node.telemetry.client_error(error.code());
        let topic = match error {
            CommandError::Forbidden { topic } => Some(topic.to_string()),
            _ => asked.map(str::to_owned),
        };
        let notice = Notice::Error {
            id: reply_to.id(),
            code: error.code(),
            message: &error.to_string(),
            topic,
        };
        self.say(&notice, reply_to, desk);
    }

    /// The client shows a token. If its key may have to be fetched, it is looked at when that is done.
    fn on_auth(&mut self, token: &str, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        let shown = Shown::Auth(token.to_owned(), reply_to.clone());
        if let Err(shown) = self.prepare(token, shown, desk) {
            self.look_at(shown, desk);
        }
    }

    /// Lets a message wait until the token in it can be looked at. Gives it back if it need not, or cannot, wait: one
    /// message of a connection waits at a time.
    pub(super) fn prepare(
        &mut self,
        token: &str,
        shown: Shown,
        desk: &mut Desk<'_>,
    ) -> Result<(), Shown> {
        let waits = self.rare.as_ref().is_some_and(|rare| rare.preparing);
        let later = desk.node.identity.later(token, desk.wall());
        let Some(later) = later.filter(|_| !waits) else {
            return Err(shown);
        };
        desk.tools.asking.prepare(self.id, later, shown)?;
        self.rare().preparing = true;
        Ok(())
    }

    /// Something that was waited for has come, or has not.
    pub(crate) fn on_outcome(&mut self, came: Came, desk: &mut Desk<'_>) {
        let (shown, prepared) = match came {
            Came::Answer(answered) => return self.on_answered(&answered, desk),
            Came::Token(shown, prepared) => (shown, prepared),
        };
        if let Some(rare) = &mut self.rare {
            rare.preparing = false;
        }
        self.tidy();
        match (prepared, shown) {
            (Ok(()), shown) => self.look_at(shown, desk),
            // The token may be good: the connection goes on as it was, and the client may try again.
            (Err(refused), Shown::Auth(_, reply_to)) => {
                self.reject(refused.code, &refused.message, &reply_to, desk);
            }
            (Err(refused), Shown::Connect(namespace, _)) => {
                self.say_not_joined(&namespace, &refused.into(), desk);
            }
        }
    }

    fn look_at(&mut self, shown: Shown, desk: &mut Desk<'_>) {
        match shown {
            Shown::Auth(token, reply_to) => self.authenticate(&token, &reply_to, desk),
            Shown::Connect(namespace, auth) => self.join_namespace(&namespace, auth.as_ref(), desk),
        }
    }

    fn authenticate(&mut self, token: &str, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        let identity = match verified(token, desk) {
            Ok(identity) => identity,
            Err(refused) => {
                self.reject(refused.code, &refused.message, reply_to, desk);
                return self.end(CloseReason::Unauthenticated);
            }
        };
        if let Some(user) = &self.identity.user
            && identity.user.as_ref() != Some(user)
        {
            let sentence = "this connection belongs to another user; open a new one";
            return self.reject("other_user", sentence, reply_to, desk);
        }
        if let Err(refusal) = self.admission.identify(identity.user.as_ref()) {
            self.reject(refusal.code(), &refusal.to_string(), reply_to, desk);
            return self.end(CloseReason::Unauthenticated);
        }
        let expires_at = identity.expires_at;
        self.identity = Arc::new(identity);
        let until = expires_at.map(|at| desk.moment_of(at));
        let limits = bounds(&self.speaker, desk.node);
        self.watcher.authenticated(until, desk.now, limits);
        let identity = self.identity.clone();
        let notice = Notice::Authenticated {
            user: identity.user.as_ref().map(Name::as_str),
            expires_at: expires_at.and_then(WallTime::to_rfc3339),
        };
        self.say(&notice, reply_to, desk);
        self.judge_again(desk);
        self.start(desk);
    }

    /// The client says goodbye; its last word is answered first.
    fn on_leave(&mut self, answer: Bytes, desk: &mut Desk<'_>) {
        if self.speaker.is_polling() {
            self.outlet.answer(Ok(answer.to_vec()));
        } else {
            self.reply(answer, desk);
            self.flush(desk);
        }
        self.end(CloseReason::Client);
    }

    fn on_undecodable(&mut self, error: DecodeError, desk: &mut Desk<'_>) {
        let (label, reason) = match error {
            DecodeError::TooLarge(_) => ("too_large", CloseReason::TooLarge),
            DecodeError::Protocol(_) | DecodeError::NotUtf8 => ("protocol", CloseReason::Protocol),
        };
        desk.node.telemetry.client_error(label);
        let about = Self::about(&self.identity, desk);
        let answer = self.speaker.reject_bytes(error, &about);
        self.reply(answer, desk);
        self.rare().undecodable = Some(error);
        self.end(reason);
    }

    /// Answers with an error; the connection goes on.
    pub(super) fn reject(
        &mut self,
        code: &str,
        message: &str,
        reply_to: &ReplyTo,
        desk: &mut Desk<'_>,
    ) {
        desk.node.telemetry.client_error(code);
        let notice = Notice::Error {
            id: reply_to.id(),
            code,
            message,
            topic: None,
        };
        self.say(&notice, reply_to, desk);
    }
}

/// Who a token says the client is.
pub(super) fn verified(token: &str, desk: &Desk<'_>) -> Result<Identity, Refused> {
    let identity = &desk.node.identity;
    let credential = match identity.asks() {
        true => Some(Credential::new(token, Source::Message)?),
        false => None,
    };
    identity.identify(credential.as_ref(), desk.wall())
}
