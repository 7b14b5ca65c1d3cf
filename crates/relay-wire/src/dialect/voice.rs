//! A voice: a dialect over one carrier and with one view, for which a publication is encoded once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use relay_core::moment::WallTime;
use relay_core::publication::{Body, Encoded, Publication};
use relay_core::tally::Aggregate;
use serde::Serialize;
use serde_json::json;

use super::jq::Input;
use super::past::{Milestone, Past};
use super::{Carrier, Dialect};
use crate::Frame;
use crate::native::frame;

/// What all routes share whose clients get the same bytes.
pub struct Voice {
    /// The dialect.
    pub dialect: Arc<Dialect>,
    /// How frames travel.
    pub carrier: Carrier,
    /// The file's own word for this kind of route.
    pub view: String,
    /// The first of its slots in every publication.
    pub(super) first_slot: usize,
    /// The slots of all voices of the node.
    pub(super) slots: Arc<AtomicUsize>,
}

/// What a client was told of a job before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing, and this is the beginning of its subscription.
    Snapshot,
    /// Nothing: the job is new.
    New,
    /// The status with this index in the dialect's words.
    Told(u8),
}

/// How one client hears a publication.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hearing<'a> {
    /// What it was told of the job before.
    pub(crate) before: Before,
    /// The text by which its page knows the subscription.
    pub(crate) identifier: Option<&'a str>,
    /// What happened in the job before, for a client that begins with this state.
    pub(crate) past: Option<&'a Past>,
}

/// What mappings of publications know besides their input.
#[derive(Serialize)]
struct Context<'a> {
    status: Option<&'a str>,
    from: Option<&'a str>,
    snapshot: bool,
    transport: &'static str,
    view: &'a str,
    identifier: Option<&'a str>,
    first_at: Option<String>,
    at: Option<String>,
    ms: i64,
    milestones: Vec<Milestone<'a>>,
    milestones_lost: bool,
}

impl Voice {
    /// How many slots a dialect's voice needs.
    pub(super) fn slots_of(dialect: &Dialect) -> usize {
        match dialect.tracks_status {
            true => 2 + dialect.words.len(),
            false => 1,
        }
    }

    /// The publication as this voice's clients get it; `wrap` makes bytes of the texts of all its frames.
    /// The tag is the index of the status told, for [`Before::Told`] the next time.
    ///
    /// `wrap` runs once with the mapping, so it must do the same for every client. Where the mapping looks at what is
    /// a client's own, the first client's is kept: pages of one kind mostly know a job by the same text.
    pub(crate) fn encode(
        &self,
        publication: &Publication,
        mut hearing: Hearing<'_>,
        wrap: fn(Vec<Vec<u8>>) -> Bytes,
    ) -> Encoded {
        let before = hearing.before;
        let (before, offset) = match before {
            // What is not a state is the same for everybody.
            _ if !self.dialect.tracks_status || !publication.is_state() => (Before::New, 0),
            Before::New => (before, 0),
            Before::Snapshot => (before, 1),
            Before::Told(index) => (before, 2 + usize::from(index)),
        };
        let slot = self.first_slot + offset;
        hearing.before = before;
        if !self.dialect.reads_identifier(frame::kind_of(publication)) {
            hearing.identifier = None;
        }
        let make = |publication: &Publication| {
            let (texts, tag) = self.texts(publication, hearing);
            Encoded {
                bytes: wrap(texts),
                tag,
                of: hearing.identifier.map(Into::into),
            }
        };
        if hearing.past.is_some() {
            return make(publication);
        }
        let kept = publication.encoded(self.slots.load(Ordering::Relaxed), slot, make);
        match kept.of.as_deref() == hearing.identifier {
            true => kept,
            false => make(publication),
        }
    }

    /// How the jobs of a topic stand, as this voice's clients get it.
    pub(crate) fn encode_aggregate(
        &self,
        aggregate: &Aggregate,
        identifier: Option<&str>,
        at: WallTime,
        wrap: fn(Vec<Vec<u8>>) -> Bytes,
    ) -> Bytes {
        let slots = self.slots.load(Ordering::Relaxed);
        let identifier = identifier.filter(|_| self.dialect.reads_identifier(Frame::Aggregate));
        let make = || {
            let input = Input::of(&frame::standing(&aggregate.topic, &aggregate.tally));
            let relay = Input::of(&json!({
                "transport": self.carrier.as_str(),
                "view": self.view,
                "identifier": identifier,
                "at": at.to_rfc3339(),
                "ms": at.as_unix_micros() / 1000,
            }));
            let texts = match (input, relay) {
                (Ok(input), Ok(relay)) => self.dialect.map(Frame::Aggregate, &input, &relay),
                (Err(failure), _) | (_, Err(failure)) => {
                    self.dialect.unmapped(Frame::Aggregate, &failure);
                    Vec::new()
                }
            };
            Encoded {
                bytes: wrap(texts),
                tag: 0,
                of: identifier.map(Into::into),
            }
        };
        let kept = aggregate.frames.encoded(slots, self.first_slot, make);
        match kept.of.as_deref() == identifier {
            true => kept.bytes,
            false => make().bytes,
        }
    }

    /// Runs the mapping; the texts of its frames, and the index of the status.
    fn texts(&self, publication: &Publication, hearing: Hearing<'_>) -> (Vec<Vec<u8>>, u8) {
        let Hearing {
            before,
            identifier,
            past,
        } = hearing;
        let dialect = &self.dialect;
        let frame = frame::kind_of(publication);
        if !dialect.speaks(frame) && frame != Frame::State {
            return (Vec::new(), 0);
        }
        let json = frame::without_place(publication);
        let input = match Input::parse(&json) {
            Ok(input) => input,
            Err(failure) => {
                dialect.unmapped(frame, &failure);
                return (Vec::new(), 0);
            }
        };
        let index = match &publication.body {
            Body::State { status, .. } => {
                let detail = input
                    .member("job")
                    .and_then(|job| job.text("status_detail"));
                dialect.words.index(*status, detail.as_deref())
            }
            Body::Milestone { .. } | Body::Gone(_) => 0,
        };
        let at = publication.worker_at.unwrap_or(publication.stored_at);
        let status = match frame {
            Frame::State => dialect.words.get(index),
            _ => None,
        };
        let relay = Input::of(&Context {
            status,
            from: match before {
                Before::Told(index) => dialect.words.get(index),
                Before::New | Before::Snapshot => None,
            },
            snapshot: before == Before::Snapshot,
            transport: self.carrier.as_str(),
            view: &self.view,
            identifier,
            first_at: publication.first_at.to_rfc3339(),
            at: at.to_rfc3339(),
            ms: at.as_unix_micros() / 1000,
            milestones: past.map(Past::milestones).unwrap_or_default(),
            milestones_lost: past.is_some_and(Past::is_cut),
        });
        match relay {
            Ok(relay) => (dialect.map(frame, &input, &relay), index),
            Err(failure) => {
                dialect.unmapped(frame, &failure);
                (Vec::new(), index)
            }
        }
    }
}

impl fmt::Debug for Voice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.dialect.name,
            self.carrier.as_str(),
            self.view
        )
    }
}
