//! Connection state recovery: a Socket.IO client that returns says how far it was told.
//!
//! What a server appends to events as their last argument, the client's library (4.6 and later) keeps and
//! sends as `offset` when it connects again, beside the `pid` that came with the answer to its CONNECT.
//! Here an offset is a cursor, and a pid contains one that says where the client began. So nothing is kept for
//! a client that is away, and any relay takes it back.
//!
//! A pid is never given twice: the library takes the same one as the sign that the server knows what was
//! subscribed, and pages would not subscribe again.
//!
//! It does not know rooms, or what the bus has.

use relay_core::cursor::Cursor;
use relay_core::job::Again;
use relay_core::publication::Publication;
use relay_core::topic::Topic;
use serde_json::Value;

/// Between the parts of a pid, and of an offset; in none of them.
const SEPARATOR: char = '.';

/// The pid of a client that is known as `socket_id`, and returns with `cursor` until it is told another.
pub fn pid(socket_id: &str, cursor: &Cursor) -> String {
    format!("{socket_id}{SEPARATOR}{cursor}")
}

/// Where a client comes from that was here before.
#[derive(Debug)]
pub struct Return {
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
    pub fn of(auth: Option<&Value>) -> Option<Self> {
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
    pub fn told(&self) -> Option<&Cursor> {
        self.told.as_ref()
    }

    /// The status of the job that the client was told of last.
    pub fn status(&self) -> Option<u8> {
        self.status
    }

    /// Every cursor it has, the newer first.
    pub fn cursors(&self) -> impl Iterator<Item = &Cursor> {
        self.told.iter().chain(&self.began)
    }

    /// The cursor that speaks for a topic, and what is told again of it.
    pub fn to(&self, topic: &Topic) -> Option<(&Cursor, Again)> {
        let cursor = self.cursors().find(|it| it.may_speak_for(topic))?;
        let again = match self.told.as_ref() == Some(cursor) {
            true => Again::Nothing,
            false => Again::Snapshot,
        };
        Some((cursor, again))
    }
}

/// What a namespace's events have appended.
#[derive(Debug)]
pub(super) struct Offset {
    /// Nothing where the dialect does without recovery.
    text: Option<Box<str>>,
    /// Whether it does not speak for all topics that are told.
    lacks_topics: bool,
}

impl Offset {
    /// For a client that was told nothing yet. It is not a cursor: a client that returns with it begins where
    /// its pid says.
    pub(super) fn at_first(pid: Option<&str>) -> Self {
        Self {
            text: pid.map(Into::into),
            lacks_topics: true,
        }
    }

    /// Another topic is told from here on.
    pub(super) fn add_topic(&mut self) {
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
