//! One client's presence: what it may say, what it watches, whether it is alive.
//!
//! A pure state machine. Events go in with the time they happened, actions come out; whoever owns the
//! socket carries them out. It does not know WebSocket, tokens' contents, publications or what a client may
//! see; of JSON it knows one sentence, that of [`CommandError::Unauthenticated`].
//!
//! Invariant: after [`Action::Close`] nothing but silence comes out.

use std::time::Duration;

use smallvec::SmallVec;

use crate::cursor::{Cursor, Print, Told};
use crate::id::{Name, Owner};
use crate::job::Again;
use crate::moment::Moment;
use crate::position::{Position, Seq};
use crate::publication::{JobKey, Publication};
use crate::topic::{Spelling, Topic, TopicError};
use crate::watcher::outbox::SubscriptionId;

/// The times and counts every session is held to.
#[derive(Debug, Clone, Copy)]
pub struct SessionBounds {
    /// Subscriptions at a time.
    pub subscriptions: usize,
    /// How long a client may take to authenticate by message.
    pub auth_timeout: Duration,
    /// Time between two pings of ours.
    pub ping_interval: Duration,
    /// How long without a sign of life until a client counts as gone.
    pub dead_after: Duration,
}

/// What a client asks, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Watch a topic, from a cursor where there is one.
    Subscribe {
        /// The topic as the client wrote it.
        topic: String,
        /// Where it left off.
        cursor: Option<String>,
        /// Whether endings shall be sent again until they are acknowledged.
        ack: bool,
        /// What of the time before its cursor it is sent again.
        again: Again,
    },
    /// Watch it no longer.
    Unsubscribe {
        /// The topic as the client wrote it.
        topic: String,
    },
    /// All up to the cursor has arrived.
    Ack {
        /// The topic as the client wrote it.
        topic: String,
        /// The last cursor seen.
        cursor: String,
    },
    /// Say pong.
    Ping,
    /// Here is a (new) token.
    Auth {
        /// The token, which the session passes on unread.
        token: String,
    },
}

/// What happens to a session.
#[derive(Debug, Clone)]
pub enum Event {
    /// The client sent a command. Whether it may watch the topic is for the shard to decide.
    Command(Command),
    /// The token was good until `expires_at`, or for ever.
    Authenticated {
        /// When it ends.
        expires_at: Option<Moment>,
    },
    /// Any bytes arrived: a frame, a pong.
    SignOfLife,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Join the topic; the first word about it follows when the bus has answered.
    Join(Join),
    /// Leave the topic and say so.
    Leave {
        /// The subscription that ended.
        subscription: SubscriptionId,
        /// The topic as the client wrote it.
        topic: Topic,
        /// What it watched.
        watched: Topic,
    },
    /// Note that the client has everything up to the cursor on this topic.
    Acknowledge {
        /// The subscription.
        subscription: SubscriptionId,
        /// The sequence acknowledged.
        seq: Seq,
    },
    /// Verify this token, and come back with [`Event::Authenticated`] or close.
    Verify(String),
    /// Answer pong.
    Pong,
    /// Send a protocol ping.
    Ping,
    /// Tell the client that its token ends soon.
    ExpiresSoon,
    /// Answer with an error; the session goes on.
    Refuse(CommandError),
    /// End the connection.
    Close(CloseReason),
}

/// A subscription that wants its first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// What it watches.
    pub topic: Topic,
    /// Where the client left off.
    pub cursor: Option<Cursor>,
    /// What of the time before that it is sent again.
    pub again: Again,
}

/// How long before a token ends its client is told so; half of what is left where that is less.
const WARNS_BEFORE: Duration = Duration::from_secs(60);

/// What a client is told of a topic that it may not watch.
pub const FORBIDDEN: &str = "this belongs to another user, and your token's topics do not grant it";

/// What a client is told of a topic without an owner that may mean several.
pub const AMBIGUOUS: &str = "several owners have one with this id that you may watch; say whose: job:<owner>/<id> or group:<owner>/<id>, over HTTP ?owner=<owner>";

/// Why a command did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// Not a topic.
    #[error("{topic:?} is not a valid topic: {source}")]
    BadTopic {
        /// What the client wrote.
        topic: String,
        /// What is wrong with it.
        source: TopicError,
    },
    /// Not a cursor.
    #[error("the cursor is not one of this relay; leave it out to start from a snapshot")]
    BadCursor,
    /// The bound on subscriptions.
    #[error(
        "{limit} subscriptions are open, the limit of one connection (limits.subscriptions_per_connection); unsubscribe from one first"
    )]
    TooManySubscriptions {
        /// The bound.
        limit: usize,
    },
    /// Subscribed already.
    #[error("{topic} is subscribed on this connection already")]
    AlreadySubscribed {
        /// The topic.
        topic: Topic,
    },
    /// Not subscribed.
    #[error("{topic} is not subscribed on this connection")]
    NotSubscribed {
        /// The topic.
        topic: Topic,
    },
    /// Not the client's to watch.
    #[error("{FORBIDDEN}")]
    Forbidden {
        /// The topic.
        topic: Topic,
    },
    /// Several jobs or groups that the client may watch are called so.
    #[error("{AMBIGUOUS}")]
    Ambiguous {
        /// The topic.
        topic: Topic,
    },
    /// Before authentication.
    #[error("send {{\"type\":\"auth\",\"token\":\"…\"}} first")]
    Unauthenticated,
}

impl CommandError {
    /// The word on the wire and in metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadTopic { .. } => "bad_topic",
            Self::BadCursor => "bad_cursor",
            Self::TooManySubscriptions { .. } => "too_many_subscriptions",
            Self::AlreadySubscribed { .. } => "already_subscribed",
            Self::NotSubscribed { .. } => "not_subscribed",
            Self::Forbidden { .. } => "forbidden",
            Self::Ambiguous { .. } => "ambiguous_owner",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

/// Why a connection ends. Each ends up as a close code and as a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client went, politely or not.
    Client,
    /// No sign of life for `delivery.dead_after`.
    Dead,
    /// Writes failed `delivery.max_failures` times in a row.
    Slow,
    /// More waited than an outbox holds.
    Overflow,
    /// The token has expired.
    Expired,
    /// No credential within the time for it, or a bad one.
    Unauthenticated,
    /// A message larger than `limits.message_bytes`.
    TooLarge,
    /// More messages than `limits.messages_per_second`, after a warning.
    TooFrequent,
    /// Broken WebSocket framing.
    Protocol,
    /// The relay is going away.
    Drain,
    /// The job it was opened for has ended, and the grace after that is over.
    Ended,
    /// Nothing was said in either direction for as long as its dialect allows.
    Idle,
    /// Work for it panicked: a bug of the relay, which costs this connection and nobody else.
    InternalError,
}

impl CloseReason {
    /// All there are.
    pub const ALL: [Self; 13] = [
        Self::Client,
        Self::Dead,
        Self::Slow,
        Self::Overflow,
        Self::Expired,
        Self::Unauthenticated,
        Self::TooLarge,
        Self::TooFrequent,
        Self::Protocol,
        Self::Drain,
        Self::Ended,
        Self::Idle,
        Self::InternalError,
    ];

    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Dead => "dead",
            Self::Slow => "slow",
            Self::Overflow => "overflow",
            Self::Expired => "expired",
            Self::Unauthenticated => "unauthenticated",
            Self::TooLarge => "too_large",
            Self::TooFrequent => "too_frequent",
            Self::Protocol => "protocol",
            Self::Drain => "drain",
            Self::Ended => "ended",
            Self::Idle => "idle",
            Self::InternalError => "internal_error",
        }
    }
}

/// One topic a session watches.
#[derive(Debug)]
pub struct Subscription {
    /// Its number on this connection.
    pub id: SubscriptionId,
    /// What it watches. Asked for bare, it is exact as soon as it shows one, and stays with that one's owner.
    pub topic: Topic,
    /// Whether the client named it without its owner.
    pub is_bare: bool,
    /// The topic's fingerprint in cursors.
    pub print: Print,
    /// What it is known to show, where it is about one job.
    shown: Option<Shown>,
    /// Whether the bus has answered and the first word is in the outbox.
    pub live: bool,
    /// What the client had been told of the topic before it came; nothing up to here is news to it.
    pub since: Seq,
    /// From which number on it was told everything; what is older is as a snapshot had it.
    pub complete_from: Seq,
}

/// What a client was allowed to be shown under a job's topic. With another of these it is asked again.
#[derive(Debug)]
struct Shown {
    /// A job that ended and began anew has another.
    key: JobKey,
    /// The group that may be why.
    parent: Option<Name>,
}

impl Subscription {
    /// The topic as its client wrote it.
    pub fn spelled(&self) -> Spelling<'_> {
        Spelling {
            topic: &self.topic,
            is_bare: self.is_bare,
        }
    }

    /// Whether its client asked for `topic` in these words.
    fn was_asked_as(&self, topic: &Topic) -> bool {
        match self.is_bare && topic.is_bare() {
            true => self.topic.bare() == *topic,
            false => !self.is_bare && self.topic == *topic,
        }
    }

    /// Whether it waits to learn whose job or group it is about.
    pub fn is_unbound(&self) -> bool {
        self.topic.is_bare()
    }

    /// From here on it is about what this owner has by that id, and about no other.
    pub(super) fn bind(&mut self, owner: &Owner) {
        if self.is_unbound() {
            self.topic = self.topic.of(owner);
            self.print = Print::of(&self.topic);
        }
    }

    /// Whether the client was allowed to see a publication's job as it stands in it.
    pub(super) fn has_shown(&self, publication: &Publication) -> bool {
        let shown = self.shown.as_ref();
        shown.is_some_and(|it| it.key == publication.key && it.parent == publication.parent)
    }

    /// The client is allowed to see this.
    pub(super) fn show(&mut self, key: JobKey, parent: Option<&Name>) {
        let parent = parent.cloned();
        self.shown = Some(Shown { key, parent });
    }

    /// The group of what it shows.
    pub(super) fn parent(&self) -> Option<&Name> {
        self.shown.as_ref()?.parent.as_ref()
    }

    /// Whether it began with a snapshot on this connection, and nothing that comes is known already.
    pub fn begins_here(&self) -> bool {
        self.complete_from > self.since
    }
}

#[derive(Debug)]
enum Phase {
    /// Nothing but `auth` is heard.
    Unauthenticated { deadline: Moment },
    /// Everything is heard, until the token runs out.
    Open {
        expires_at: Option<Moment>,
        /// When the client is told that it will, until it has been.
        warns_at: Option<Moment>,
    },
    /// Nothing is heard.
    Closed,
}

impl Phase {
    fn open(expires_at: Option<Moment>, now: Moment) -> Self {
        let warns_at = expires_at.map(|at| {
            let left = at - now;
            now + (left - WARNS_BEFORE.min(left / 2))
        });
        Self::Open {
            expires_at,
            warns_at,
        }
    }
}

/// What one event led to; nearly always nothing or one thing.
pub type Actions = SmallVec<[Action; 1]>;

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    phase: Phase,
    subscriptions: SmallVec<[Subscription; 1]>,
    next_subscription: u32,
    last_sign_of_life: Moment,
    next_ping: Moment,
}

impl Session {
    /// A session whose client was authenticated before it began.
    pub(super) fn open(expires_at: Option<Moment>, now: Moment, bounds: &SessionBounds) -> Self {
        Self::new(Phase::open(expires_at, now), now, bounds)
    }

    /// A session whose client will authenticate by its first message.
    pub(super) fn unauthenticated(now: Moment, bounds: &SessionBounds) -> Self {
        let deadline = now + bounds.auth_timeout;
        Self::new(Phase::Unauthenticated { deadline }, now, bounds)
    }

    fn new(phase: Phase, now: Moment, bounds: &SessionBounds) -> Self {
        Self {
            phase,
            subscriptions: SmallVec::new(),
            next_subscription: 0,
            last_sign_of_life: now,
            next_ping: now + bounds.ping_interval,
        }
    }

    /// Takes an event; says what is to be done. Total: any event is fine at any time.
    pub(super) fn handle(&mut self, event: Event, now: Moment, bounds: &SessionBounds) -> Actions {
        if matches!(self.phase, Phase::Closed) {
            return Actions::new();
        }
        match event {
            Event::Command(command) => {
                self.last_sign_of_life = now;
                self.command(command, bounds)
            }
            Event::Authenticated { expires_at } => {
                self.phase = Phase::open(expires_at, now);
                Actions::new()
            }
            Event::SignOfLife => {
                self.last_sign_of_life = now;
                Actions::new()
            }
            Event::Tick => self.tick(now, bounds),
        }
    }

    /// When the next [`Event::Tick`] is wanted, at the latest.
    pub(super) fn next_tick(&self, bounds: &SessionBounds) -> Moment {
        let life = self
            .next_ping
            .min(self.last_sign_of_life + bounds.dead_after);
        match self.phase {
            Phase::Unauthenticated { deadline } => life.min(deadline),
            Phase::Open {
                expires_at: Some(at),
                warns_at,
            } => life.min(warns_at.unwrap_or(at)).min(at),
            Phase::Open {
                expires_at: None, ..
            }
            | Phase::Closed => life,
        }
    }

    /// Whether everything is heard.
    pub(super) fn is_authenticated(&self) -> bool {
        !matches!(self.phase, Phase::Unauthenticated { .. })
    }

    /// What it watches.
    pub(super) fn subscriptions(&self) -> &[Subscription] {
        &self.subscriptions
    }

    /// One subscription, if it has not ended.
    pub(super) fn subscription(&self, id: SubscriptionId) -> Option<&Subscription> {
        self.subscriptions.iter().find(|each| each.id == id)
    }

    /// One subscription, to be changed.
    pub(super) fn subscription_mut(&mut self, id: SubscriptionId) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|each| each.id == id)
    }

    /// The subscription that the client asked for as `topic`.
    pub(super) fn subscription_to(&self, topic: &Topic) -> Option<&Subscription> {
        let mut subscriptions = self.subscriptions.iter();
        subscriptions.find(|each| each.was_asked_as(topic))
    }

    /// The subscriptions that show what `topic` means, however they were asked for: two at most.
    pub(super) fn showing<'a>(
        &'a self,
        topic: &'a Topic,
    ) -> impl Iterator<Item = &'a Subscription> {
        self.subscriptions
            .iter()
            .filter(move |each| each.topic == *topic)
    }

    /// Notes that the bus answered a join of a client that had been told everything up to `since`, and that
    /// is told everything from `complete_from` on. False if the subscription ended meanwhile.
    pub(super) fn joined(&mut self, id: SubscriptionId, since: Seq, complete_from: Seq) -> bool {
        let found = self.subscriptions.iter_mut().find(|each| each.id == id);
        let Some(subscription) = found else {
            return false;
        };
        subscription.live = true;
        subscription.since = since;
        subscription.complete_from = complete_from;
        true
    }

    /// Ends one subscription (refused by the bus, or foreign).
    pub(super) fn leave(&mut self, id: SubscriptionId) -> Option<Topic> {
        let at = self.subscriptions.iter().position(|each| each.id == id)?;
        Some(self.subscriptions.remove(at).topic)
    }

    /// Subscribes without a command, as the URL of a stream does.
    ///
    /// # Errors
    /// As the same command would be refused.
    pub(super) fn subscribe(
        &mut self,
        topic: Topic,
        bounds: &SessionBounds,
    ) -> Result<SubscriptionId, CommandError> {
        if self.subscription_to(&topic).is_some() {
            return Err(CommandError::AlreadySubscribed { topic });
        }
        if self.subscriptions.len() >= bounds.subscriptions {
            let limit = bounds.subscriptions;
            return Err(CommandError::TooManySubscriptions { limit });
        }
        let id = SubscriptionId(self.next_subscription);
        self.next_subscription = self.next_subscription.wrapping_add(1);
        self.subscriptions.push(Subscription {
            id,
            print: Print::of(&topic),
            is_bare: topic.is_bare(),
            topic,
            shown: None,
            live: false,
            since: Seq::ZERO,
            complete_from: Seq::ZERO,
        });
        Ok(id)
    }

    /// The cursor handed out at `at`. `behind` says how far a subscription has been told where that is
    /// not as far; `carried` are topics the client brought a cursor for and has not (again) been told
    /// anything of, so that the cursor still speaks for them. A topic that another node told further than
    /// `at` stays where it was.
    pub(super) fn cursor(
        &self,
        at: Position,
        behind: impl Fn(SubscriptionId) -> Option<Seq>,
        carried: &[Told],
    ) -> Cursor {
        let live = || self.subscriptions.iter().filter(|each| each.live);
        let told = |each: &Subscription| behind(each.id).unwrap_or(at.seq).max(each.since);
        let carried = carried
            .iter()
            .filter(|told| !live().any(|each| each.print == told.print));
        let all = || live().map(told).chain(carried.clone().map(|told| told.seq));
        let (least, most) = all().fold((at.seq, at.seq), |(least, most), told| {
            (least.min(told), most.max(told))
        });
        // What begins on a node that has heard less is further behind than anything was when the cursor was made.
        let begun = live().filter(|each| each.begins_here());
        let begun = begun.map(|each| each.complete_from).min();
        let whole_from = |from: Seq, told: Seq| match from {
            Seq::ZERO if begun.is_some_and(|begun| begun < told) => told,
            from => from,
        };
        let live_told = live().map(|each| Told {
            print: each.print,
            seq: told(each),
            from: match whole_from(each.complete_from, each.since) {
                from if from > least => from,
                _ => Seq::ZERO,
            },
        });
        let carried = carried.map(|carried| Told {
            from: whole_from(carried.from, carried.seq),
            ..*carried
        });
        let at = Position { seq: most, ..at };
        Cursor::new(at, live_told.chain(carried))
    }

    fn command(&mut self, command: Command, bounds: &SessionBounds) -> Actions {
        let action = match (command, &self.phase) {
            (Command::Auth { token }, _) => Action::Verify(token),
            (Command::Ping, _) => Action::Pong,
            (_, Phase::Unauthenticated { .. }) => Action::Refuse(CommandError::Unauthenticated),
            (
                Command::Subscribe {
                    topic,
                    cursor,
                    again,
                    ack: _,
                },
                _,
            ) => self
                .on_subscribe(&topic, cursor.as_deref(), again, bounds)
                .unwrap_or_else(Action::Refuse),
            (Command::Unsubscribe { topic }, _) => {
                self.on_unsubscribe(&topic).unwrap_or_else(Action::Refuse)
            }
            (Command::Ack { topic, cursor }, _) => {
                self.on_ack(&topic, &cursor).unwrap_or_else(Action::Refuse)
            }
        };
        smallvec::smallvec![action]
    }

    fn on_subscribe(
        &mut self,
        topic: &str,
        cursor: Option<&str>,
        again: Again,
        bounds: &SessionBounds,
    ) -> Result<Action, CommandError> {
        let topic = parse_topic(topic)?;
        let cursor = cursor.map(parse_cursor).transpose()?;
        let subscription = self.subscribe(topic.clone(), bounds)?;
        Ok(Action::Join(Join {
            subscription,
            topic,
            cursor,
            again,
        }))
    }

    fn on_unsubscribe(&mut self, topic: &str) -> Result<Action, CommandError> {
        let topic = parse_topic(topic)?;
        let Some(subscription) = self.subscription_to(&topic).map(|each| each.id) else {
            return Err(CommandError::NotSubscribed { topic });
        };
        let watched = self.leave(subscription).unwrap_or_else(|| topic.clone());
        Ok(Action::Leave {
            subscription,
            topic,
            watched,
        })
    }

    fn on_ack(&self, topic: &str, cursor: &str) -> Result<Action, CommandError> {
        let topic = parse_topic(topic)?;
        let cursor = parse_cursor(cursor)?;
        match self.subscription_to(&topic) {
            Some(subscription) => Ok(Action::Acknowledge {
                subscription: subscription.id,
                seq: cursor.position.seq,
            }),
            None => Err(CommandError::NotSubscribed { topic }),
        }
    }

    fn tick(&mut self, now: Moment, bounds: &SessionBounds) -> Actions {
        let ended = match self.phase {
            Phase::Unauthenticated { deadline } if now >= deadline => {
                Some(CloseReason::Unauthenticated)
            }
            Phase::Open {
                expires_at: Some(at),
                ..
            } if now >= at => Some(CloseReason::Expired),
            _ if now - self.last_sign_of_life >= bounds.dead_after => Some(CloseReason::Dead),
            _ => None,
        };
        if let Some(reason) = ended {
            self.phase = Phase::Closed;
            return smallvec::smallvec![Action::Close(reason)];
        }
        let mut actions = Actions::new();
        if let Phase::Open { warns_at, .. } = &mut self.phase
            && warns_at.take_if(|at| now >= *at).is_some()
        {
            actions.push(Action::ExpiresSoon);
        }
        if now >= self.next_ping {
            self.next_ping = now + bounds.ping_interval;
            actions.push(Action::Ping);
        }
        actions
    }
}

fn parse_topic(topic: &str) -> Result<Topic, CommandError> {
    Topic::parse(topic).map_err(|source| CommandError::BadTopic {
        topic: topic.chars().take(160).collect(),
        source,
    })
}

fn parse_cursor(cursor: &str) -> Result<Cursor, CommandError> {
    Cursor::parse(cursor).map_err(|_| CommandError::BadCursor)
}

#[cfg(test)]
mod tests;
