//! What was encoded, kept beside what it was encoded from, so that each shape is encoded once.
//!
//! It does not know what a frame looks like: the encoder says which slot it goes to.
//!
//! Invariant: a slot is filled once and never changes.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::topic::{Spelling, Topic};

/// The ways of wrapping a native frame that are worth keeping, because many watchers share what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapping {
    /// A message by itself.
    Message,
    /// An event of a stream.
    Event,
}

/// Where a native frame is kept: a place for each way a topic is spelled and each wrapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(usize);

impl Slot {
    const COUNT: usize = Self::TOPICS * Self::WRAPPINGS;
    const TOPICS: usize = 5;
    const WRAPPINGS: usize = 2;

    /// The place for what is told under a topic that its client spells so.
    pub fn new(spelling: Spelling<'_>, wrapping: Wrapping) -> Self {
        let topic = match (spelling.topic, spelling.is_bare) {
            (Topic::Job(_), true) => 0,
            (Topic::User(_), _) => 1,
            (Topic::Group(_), true) => 2,
            (Topic::Job(_), false) => 3,
            (Topic::Group(_), false) => 4,
        };
        let wrapping = match wrapping {
            Wrapping::Message => 0,
            Wrapping::Event => 1,
        };
        Self(wrapping * Self::TOPICS + topic)
    }
}

/// What a publication is in the words of one dialect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ready-made bytes; none where the dialect has nothing to say.
    pub bytes: Bytes,
    /// What the encoder wants to know of it again, without reading the bytes.
    pub tag: u8,
    /// The client's own text that it was made for, where it is not for everybody.
    pub of: Option<Box<str>>,
}

/// The frames encoded from a publication so far; nothing is allocated for jobs nobody watches.
#[derive(Default)]
pub struct Frames {
    native: OnceLock<Box<[OnceLock<Bytes>; Slot::COUNT]>>,
    dialects: OnceLock<Box<[OnceLock<Encoded>]>>,
}

impl Frames {
    /// The native frame kept in `slot`, made by `encode` if this is the first to ask.
    pub fn native(&self, slot: Slot, encode: impl FnOnce() -> Bytes) -> &Bytes {
        let frames = self.native.get_or_init(Box::default);
        frames[slot.0].get_or_init(encode)
    }

    /// What is kept in `slot` of the `slots` that all dialects of a node share, made by `encode` if this is the
    /// first to ask. A slot beyond them is encoded and not kept.
    ///
    /// What is in a slot must be the same whoever encodes it, and `slots` the same whoever asks.
    pub fn encoded(&self, slots: usize, slot: usize, encode: impl FnOnce() -> Encoded) -> Encoded {
        let make = || std::iter::repeat_with(OnceLock::new).take(slots).collect();
        let kept = self.dialects.get_or_init(make);
        match kept.get(slot) {
            Some(kept) => kept.get_or_init(encode).clone(),
            None => encode(),
        }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frames")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_topic_and_each_wrapping_has_a_place_of_its_own() {
        let topics = ["job:o/a", "user:a", "group:o/a"].map(|text| Topic::parse(text).unwrap());
        let bare = topics.iter().filter(|it| it.named().is_some());
        let bare = bare.map(|topic| (topic, true));
        let topics = topics.iter().map(|topic| (topic, false)).chain(bare);
        let frames = Frames::default();
        let mut places = Vec::new();
        for (topic, is_bare) in topics {
            let topic = Spelling { topic, is_bare };
            for wrapping in [Wrapping::Message, Wrapping::Event] {
                let slot = Slot::new(topic, wrapping);
                places.push(slot.0);
                let made = Bytes::from(format!("{topic} {wrapping:?}"));
                assert_eq!(frames.native(slot, || made.clone()), &made);
            }
        }
        places.sort_unstable();
        assert_eq!(places, (0..Slot::COUNT).collect::<Vec<_>>());
    }
}
