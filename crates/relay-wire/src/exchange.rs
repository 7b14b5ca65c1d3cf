//! What passes between a client's front end and its driver: what a message means, where its answer goes,
//! and how something is told.
//!
//! Each front end makes these of its own bytes; nobody beyond it has to know which front end it was.

use bytes::Bytes;
use relay_core::id::Name;
use relay_core::moment::WallTime;
use relay_core::position::Seq;
use relay_core::watcher::outbox::SubscriptionId;
use relay_core::watcher::session::Command;
use serde_json::Value;

/// Where an answer goes: what the client is to know by what it asked that is answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ReplyTo {
    /// It gave nothing to know it by.
    #[default]
    Nobody,
    /// The `id` of a native message.
    Id(Value),
    /// The text by which a dialect's page knows a subscription.
    Named(Box<str>),
    /// A namespace of Socket.IO, and the number of the acknowledgement that is wanted, if one is.
    Event {
        /// The namespace.
        namespace: Box<str>,
        /// The number of the acknowledgement.
        ack: Option<u64>,
        /// The text by which the page knows a subscription, if it gave one.
        name: Option<Box<str>>,
    },
}

impl ReplyTo {
    /// The `id` a native answer carries.
    pub fn id(&self) -> Option<&Value> {
        match self {
            Self::Id(id) => Some(id),
            Self::Nobody | Self::Named(_) | Self::Event { .. } => None,
        }
    }

    /// The text by which a dialect's page knows the subscription that is answered for.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Event { name, .. } => name.as_deref(),
            Self::Nobody | Self::Id(_) => None,
        }
    }

    /// The same for a subscription that a dialect's page knows by this text.
    pub fn named(self, text: Box<str>) -> Self {
        match self {
            Self::Event { namespace, ack, .. } => Self::Event {
                namespace,
                ack,
                name: Some(text),
            },
            Self::Nobody | Self::Id(_) | Self::Named(_) => Self::Named(text),
        }
    }

    /// What came without an id is answered to nobody in particular.
    pub(crate) fn of_id(id: Option<Value>) -> Self {
        id.map_or(Self::Nobody, Self::Id)
    }
}

/// What a client's message means.
#[derive(Debug)]
pub enum Heard {
    /// Nothing is to be done.
    Nothing,
    /// The client answered a ping.
    Pong,
    /// These bytes are the whole answer.
    Answer(Bytes),
    /// The client leaves. The bytes go first.
    Leave(Bytes),
    /// It asks for something.
    Asked(Vec<Ask>, ReplyTo),
    /// What it asks cannot be understood.
    Rejected(Rejected, ReplyTo),
    /// It joins a namespace, with what it proves itself by.
    Connect(String, Option<Value>),
    /// It leaves a namespace.
    Disconnect(String),
    /// It broke the rules of its transport and has to go; why.
    Broken(String),
}

/// Why a message is not understood.
#[derive(Debug)]
pub struct Rejected {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// One thing a client asks for.
#[derive(Debug)]
pub enum Ask {
    /// What follows is answered under a text of the page's own.
    Named(Box<str>, Box<Ask>),
    /// A command to its session.
    Command(Command),
    /// To be told just this.
    Say(Bytes),
    /// To be told that something was not done.
    Error {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// Nothing: it answers the last check.
    RoundTrip,
    /// A question for a worker.
    Worker {
        /// Which of the dialect's `[requests]`.
        name: String,
        /// What to send.
        data: Vec<u8>,
    },
}

/// What is known of a client besides what it watches.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The user it is.
    pub user: Option<&'a Name>,
    /// What time it is.
    pub now: WallTime,
}

/// How a publication is told.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// Under which subscription.
    pub via: SubscriptionId,
    /// Where the client's cursor then stands.
    pub at: Seq,
    /// Whether it is what a subscription begins with, not news.
    pub replayed: bool,
}

/// Why a request that waits is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// A topic turned out to be somebody else's.
    Forbidden,
    /// A topic means several, and does not say whose.
    Ambiguous,
    /// The relay is going away, and there is nothing to say before.
    Draining,
    /// The bus did not answer.
    BusUnavailable,
}

/// Why a request that waits is to be answered soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hurry {
    /// The time for news is over: it is answered as soon as each of its topics has had its first word.
    Time,
    /// The bus does not answer: it is answered with what there is.
    Lookup,
    /// The relay is going away.
    Drain,
}

/// What a request that waits is answered with.
pub type Body = Result<Vec<u8>, Unanswered>;
