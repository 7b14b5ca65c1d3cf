//! What was encoded, kept beside what it was encoded from, so that each shape is encoded once.
//!
//! It does not know what a frame looks like: whoever encodes says which slot it goes to.
//!
//! Invariant: a slot is filled once and never changes.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;

/// How many differently shaped frames of the native protocol one publication can keep.
pub const FRAME_SLOTS: usize = 9;

/// What a publication is in the words of one dialect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ready-made bytes; none where the dialect has nothing to say.
    pub bytes: Bytes,
    /// What the encoder wants to know of it again, without reading the bytes.
    pub tag: u8,
}

/// The frames encoded from a publication so far; nothing is allocated for jobs nobody watches.
#[derive(Default)]
pub struct Frames {
    native: OnceLock<Box<[OnceLock<Bytes>; FRAME_SLOTS]>>,
    dialects: OnceLock<Box<[OnceLock<Encoded>]>>,
}

impl Frames {
    /// The native frame kept in `slot`, made by `encode` if this is the first to ask.
    pub fn native(&self, slot: usize, encode: impl FnOnce() -> Bytes) -> &Bytes {
        let frames = self.native.get_or_init(Box::default);
        frames[slot].get_or_init(encode)
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
