//! A voice: a dialect over one carrier and with one view, for which a publication is encoded once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use relay_core::moment::WallTime;
use relay_core::publication::{Body, Encoded, Publication};
use relay_core::tally::Aggregate;
use serde_json::json;

use super::jq::Input;
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
    /// `wrap` runs once with the mapping, so it must do the same for every client.
    pub(crate) fn encode(
        &self,
        publication: &Publication,
        before: Before,
        wrap: impl FnOnce(Vec<Vec<u8>>) -> Bytes,
    ) -> Encoded {
        let (before, offset) = match before {
            // What is not a state is the same for everybody.
            _ if !self.dialect.tracks_status || !publication.is_state() => (Before::New, 0),
            Before::New => (before, 0),
            Before::Snapshot => (before, 1),
            Before::Told(index) => (before, 2 + usize::from(index)),
        };
        let slot = self.first_slot + offset;
        publication.encoded(self.slots.load(Ordering::Relaxed), slot, |publication| {
            let (texts, tag) = self.texts(publication, before);
            Encoded {
                bytes: wrap(texts),
                tag,
            }
        })
    }

    /// How the jobs of a topic stand, as this voice's clients get it.
    pub(crate) fn encode_aggregate(
        &self,
        aggregate: &Aggregate,
        at: WallTime,
        wrap: impl FnOnce(Vec<Vec<u8>>) -> Bytes,
    ) -> Bytes {
        let slots = self.slots.load(Ordering::Relaxed);
        let make = || {
            let input = Input::of(&frame::standing(&aggregate.topic, &aggregate.tally));
            let relay = Input::of(&json!({
                "transport": self.carrier.as_str(),
                "view": self.view,
                "at": at.to_rfc3339(),
                "ms": at.as_unix_micros() / 1000,
            }));
            let texts = match (input, relay) {
                (Ok(input), Ok(relay)) => self.dialect.map(Frame::Aggregate, &input, &relay),
                _ => Vec::new(),
            };
            Encoded {
                bytes: wrap(texts),
                tag: 0,
            }
        };
        aggregate.frames.encoded(slots, self.first_slot, make).bytes
    }

    /// Runs the mapping; the texts of its frames, and the index of the status.
    fn texts(&self, publication: &Publication, before: Before) -> (Vec<Vec<u8>>, u8) {
        let dialect = &self.dialect;
        let frame = frame::kind_of(publication);
        if !dialect.speaks(frame) && frame != Frame::State {
            return (Vec::new(), 0);
        }
        let json = frame::without_place(publication);
        let input = match Input::parse(&json) {
            Ok(input) => input,
            // What the relay accepted is JSON and not too deep.
            Err(_) => return (Vec::new(), 0),
        };
        let index = match &publication.body {
            Body::State { status, .. } => {
                let detail = input
                    .member("job")
                    .and_then(|job| job.text("status_detail"));
                dialect.words.index(*status, detail.as_deref())
            }
            Body::Milestone { .. } | Body::Gone => 0,
        };
        let at = publication.worker_at.unwrap_or(publication.stored_at);
        let relay = Input::of(&json!({
            "status": matches!(frame, Frame::State).then(|| dialect.words.get(index)),
            "from": match before {
                Before::Told(index) => dialect.words.get(index),
                Before::New | Before::Snapshot => None,
            },
            "snapshot": before == Before::Snapshot,
            "transport": self.carrier.as_str(),
            "view": self.view,
            "at": at.to_rfc3339(),
            "ms": at.as_unix_micros() / 1000,
        }));
        match relay {
            Ok(relay) => (dialect.map(frame, &input, &relay), index),
            Err(_) => (Vec::new(), index),
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
