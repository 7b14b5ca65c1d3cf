//! Connection state recovery: a Socket.IO client that comes back says how far it was told.
//!
//! What a server appends to events as their last argument, the client's library (4.6 and later) keeps and
//! sends as `offset` when it connects again, beside the `pid` that came with the answer to its CONNECT.
//! Here an offset is a cursor, and a pid has one in it that says where the client began. So nothing is kept
//! for who is away, and any relay takes it back.
//!
//! A pid is never given twice: the library takes the same one for the word that the server knows what was
//! subscribed, and pages would not subscribe again.

use std::time::Duration;

use relay_core::cursor::{Cursor, Print};
use relay_core::job::Again;
use relay_core::moment::Moment;
use relay_core::outbox::SubscriptionId;
use relay_core::position::Position;
use relay_core::publication::Publication;
use relay_core::topic::Topic;
use relay_wire::dialect::Endpoint;
use serde_json::Value;

use crate::shard::connection::Connection;
use crate::shard::{Join, Shard, State};

/// Between the parts of a pid, and of an offset; in none of them.
const SEPARATOR: char = '.';
/// How long a client that comes back to a user or a group has for asking by name for jobs it watched. What is
/// told by name is not told again; the other way round, who asks by name always gets the snapshot.
const ASKS_AGAIN_WITHIN: Duration = Duration::from_secs(1);

/// Where a client comes from that was here before.
#[derive(Debug)]
pub(super) struct Return {
    /// How far it was told, if it was told anything that said so.
    told: Option<Cursor>,
    /// The status it was told last, of the job that said so.
    status: Option<u8>,
    /// Where it began; it may not have got the snapshot of then.
    began: Option<Cursor>,
}

impl Return {
    /// What a CONNECT packet says of it. What is not the relay's counts as nothing, as a session that it
    /// does not know does for the official server.
    pub(super) fn of(auth: Option<&Value>) -> Option<Self> {
        let text = |key| auth?.get(key)?.as_str();
        let (_, began) = text("pid")?.split_once(SEPARATOR)?;
        let offset = text("offset").unwrap_or_default();
        let (told, status) = match offset.split_once(SEPARATOR) {
            Some((told, status)) => (told, status.parse().ok()),
            None => (offset, None),
        };
        Some(Self {
            told: Cursor::parse(told).ok(),
            status,
            began: Cursor::parse(began).ok(),
        })
    }

    /// How far the client was told, as far as it says.
    pub(super) fn told(&self) -> Option<&Cursor> {
        self.told.as_ref()
    }

    fn cursors(&self) -> impl Iterator<Item = &Cursor> {
        self.told.iter().chain(&self.began)
    }

    /// The cursor that speaks for a topic, and what is told again of it.
    fn to(&self, topic: &Topic) -> Option<(&Cursor, Again)> {
        let cursor = self.cursors().find(|it| it.since(topic).is_some())?;
        let again = match self.told.as_ref() == Some(cursor) {
            true => Again::Nothing,
            false => Again::Snapshot,
        };
        Some((cursor, again))
    }
}

/// What a namespace's events have appended.
#[derive(Debug)]
pub(in crate::shard) struct Offset {
    /// Nothing where the dialect does without recovery.
    text: Option<Box<str>>,
    /// Whether it does not speak for all topics that are told.
    lacks_topics: bool,
}

impl Offset {
    /// For a client that was told nothing yet. It is no cursor: whoever comes back with it begins where its
    /// pid says.
    pub(super) fn at_first(pid: Option<&str>) -> Self {
        Self {
            text: pid.map(Into::into),
            lacks_topics: true,
        }
    }

    /// Another topic is told from here on.
    pub(in crate::shard) fn add_topic(&mut self) {
        self.lacks_topics = true;
    }

    /// What is appended to an event that moves nobody's place. The library takes any text at an event's end
    /// for an offset, its name included where it has no argument: ours has to follow it.
    pub(super) fn after(&self, event: &[u8]) -> Option<&str> {
        self.text.as_deref().filter(|_| ends_with_text(event))
    }

    /// Whether the events of a publication are to say where their client stands now: what must not be told
    /// twice does, and the first of a topic. Most states do not, so they are the same bytes for everybody.
    pub(super) fn is_wanted(
        &self,
        publication: &Publication,
        is_change: bool,
        events: &[u8],
    ) -> bool {
        let is_once = is_change || !publication.is_state() || publication.is_terminal();
        let is_due = is_once || self.lacks_topics || ends_with_text(events);
        self.text.is_some() && !events.is_empty() && is_due
    }

    /// The client stands at `cursor` once it has been told what this is appended to, and knows the job by
    /// this status.
    pub(super) fn advance(&mut self, cursor: &Cursor, status: Option<u8>) -> &str {
        // Of several topics nobody could say which of them the status is of.
        let status = status.filter(|_| cursor.told().len() == 1);
        let offset = match status {
            Some(status) => format!("{cursor}{SEPARATOR}{status}"),
            None => cursor.to_string(),
        };
        self.lacks_topics = false;
        self.text.insert(offset.into())
    }
}

fn ends_with_text(event: &[u8]) -> bool {
    event.ends_with(b"\"]")
}

impl Shard {
    /// The pid of a client that joins a namespace with these topics, perhaps coming from where it was before;
    /// `None` where the dialect does without recovery.
    pub(super) fn pid(
        &self,
        state: &State,
        endpoint: &Endpoint,
        socket_id: &str,
        topics: &[Topic],
        returns: Option<&Return>,
    ) -> Option<String> {
        if !endpoint.voice.dialect.recovery {
            return None;
        }
        // While a client is told nothing, where it was before stays all that is known of it.
        let mut known = returns.into_iter().flat_map(Return::cursors);
        let known = known.find(|cursor| {
            let means_something = state.stale || cursor.position.epoch == state.epoch;
            means_something && topics.iter().all(|topic| cursor.since(topic).is_some())
        });
        let cursor = known
            .cloned()
            .unwrap_or_else(|| Cursor::at(self.common.hub.place(), topics));
        Some(format!("{socket_id}{SEPARATOR}{cursor}"))
    }

    /// Joins a topic a client comes back to with its namespace.
    pub(super) fn rejoin(
        &self,
        state: &mut State,
        slot: usize,
        (subscription, topic): (SubscriptionId, Topic),
        returns: &Return,
        now: Moment,
    ) {
        let Some((cursor, again)) = returns.to(&topic) else {
            return self.join(state, slot, Join::anew(subscription, topic));
        };
        let connection = &mut state.connections[slot];
        connection.extras().resuming.push(subscription);
        if let (Topic::Job(job), Some(speech)) = (&topic, &mut connection.speech) {
            let words = speech.dialect().words.len();
            let known = returns
                .status
                .filter(|it| again == Again::Nothing && usize::from(*it) < words);
            speech.returned = known.map(|status| (job.clone(), status));
        }
        let join = Join {
            subscription,
            cursor: Some(cursor.clone()),
            again,
            topic,
        };
        match (&join.topic, &mut connection.speech) {
            (Topic::User(_) | Topic::Group(_), Some(speech)) => {
                let at = now + ASKS_AGAIN_WITHIN;
                let (_, joins) = speech.postponed.get_or_insert_with(|| (at, Vec::new()));
                joins.push(join);
                self.reschedule(state, slot);
            }
            _ => self.join(state, slot, join),
        }
    }

    /// Joins what was to wait until now.
    pub(in crate::shard) fn join_postponed(&self, state: &mut State, slot: usize, now: Moment) {
        let connection = &mut state.connections[slot];
        let postponed = connection.speech.as_mut().map(|it| &mut it.postponed);
        let due = postponed.and_then(|it| it.take_if(|(at, _)| *at <= now));
        for join in due.into_iter().flat_map(|(_, joins)| joins) {
            let session = &state.connections[slot].session;
            if session.subscription(join.subscription).is_some() {
                self.join(state, slot, join);
            }
        }
    }
}

/// The cursor a client brought, for a topic that it asks for again by message.
pub(in crate::shard) fn cursor_for(connection: &Connection, topic: &str) -> Option<String> {
    let carried = &connection.extras.as_ref()?.carried;
    let print = Print::of(&Topic::parse(topic).ok()?);
    let told = carried.told.iter().find(|told| told.print == print)?;
    Some(Cursor::new(Position::new(carried.epoch, told.seq), [*told]).to_string())
}
