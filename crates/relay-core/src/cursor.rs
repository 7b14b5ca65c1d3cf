//! A place in history, as an opaque string a client can carry to any transport and any node.
//!
//! A cursor is the bus's epoch and sequence, and the topics it speaks for: everything up to the sequence
//! that concerns those topics has been told to whoever holds the cursor; a topic that is behind the
//! others has its own, lower sequence. A topic the cursor does not speak for is new to its holder and
//! starts with a snapshot, wherever the sequence stands.
//!
//! Wire form: base64url without padding of `version, epoch (8 bytes), sequence (8 bytes)`, then for each
//! topic, ascending, `fingerprint (4 bytes), how far it is behind the sequence (LEB128)`. A second entry of
//! the same topic, further behind, says from where on its holder was told everything.

use std::fmt;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use crate::position::{Epoch, Position, Seq};
use crate::topic::Topic;

/// Topics a cursor speaks for at most; further ones start anew. No connection may have more subscriptions.
pub const MAX_TOPICS: usize = 256;
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 17;
const PRINT_BYTES: usize = 4;
/// A 64-bit number takes at most ten groups of seven bits.
const LAG_BYTES: usize = 10;
/// Characters of the longest cursor. An ordinary one has 30, and seven more for each further topic.
const MAX_CHARS: usize =
    ((FIXED_BYTES + 2 * (PRINT_BYTES + LAG_BYTES) * MAX_TOPICS) * 4).div_ceil(3);

/// A place in the bus's one order, good for the topics it speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// As far as any of its topics was told.
    pub position: Position,
    /// Ascending by fingerprint, none twice, none ahead of `position`.
    told: SmallVec<[Told; 1]>,
}

/// Why a text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this relay; leave it out to start from a snapshot")]
pub struct CursorError;

impl Cursor {
    /// A cursor at `position` for topics told unequally far. Those past the [`MAX_TOPICS`]th are left out.
    pub fn new(position: Position, told: impl IntoIterator<Item = Told>) -> Self {
        let seq = position.seq;
        let told = told.into_iter().take(MAX_TOPICS).map(|told| Told {
            seq: told.seq.min(seq),
            from: told.from.min(told.seq.min(seq)),
            ..told
        });
        let mut told: SmallVec<[Told; 1]> = told.collect();
        // Of two topics with one fingerprint the one further behind speaks for both.
        told.sort_unstable();
        told.dedup_by_key(|told| told.print);
        Self { position, told }
    }

    /// A cursor at `position` for topics that were all told as far as that.
    pub fn at<'a>(position: Position, topics: impl IntoIterator<Item = &'a Topic>) -> Self {
        let told = topics.into_iter().map(|topic| Told {
            print: Print::of(topic),
            seq: position.seq,
            from: Seq::ZERO,
        });
        Self::new(position, told)
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// When `text` was not written by [`fmt::Display`] of a cursor.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        if text.len() > MAX_CHARS {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let (version, rest) = bytes.split_first().ok_or(CursorError)?;
        if *version != VERSION {
            return Err(CursorError);
        }
        let (epoch, rest) = rest.split_first_chunk().ok_or(CursorError)?;
        let (seq, mut rest) = rest.split_first_chunk().ok_or(CursorError)?;
        let position = Position {
            epoch: Epoch::new(u64::from_be_bytes(*epoch)),
            seq: Seq::new(u64::from_be_bytes(*seq)),
        };
        let mut told: SmallVec<[Told; 1]> = SmallVec::new();
        while let Some((print, after)) = rest.split_first_chunk() {
            let (lag, after) = read_number(after).ok_or(CursorError)?;
            let print = Print(u32::from_be_bytes(*print));
            let at = position.seq.behind_by(lag).ok_or(CursorError)?;
            match told.last_mut() {
                // One that begins at nothing is told everything, and has one entry.
                Some(last)
                    if last.print == print
                        && last.from == Seq::ZERO
                        && Seq::ZERO < at
                        && at <= last.seq =>
                {
                    last.from = at;
                }
                _ => told.push(Told {
                    print,
                    seq: at,
                    from: Seq::ZERO,
                }),
            }
            rest = after;
        }
        // One set has one spelling.
        let ascends = told.is_sorted_by(|a, b| a.print < b.print);
        if !rest.is_empty() || !ascends || told.len() > MAX_TOPICS {
            return Err(CursorError);
        }
        Ok(Self { position, told })
    }

    /// Up to which number its holder has been told of `topic`; `None` if the topic is new to the holder.
    pub fn since(&self, topic: &Topic) -> Option<Seq> {
        let print = Print::of(topic);
        let at = self.told.binary_search_by_key(&print, |told| told.print);
        at.ok()
            .and_then(|at| self.told.get(at))
            .map(|told| told.seq)
    }

    /// Whether its holder was told a snapshot of `topic` and perhaps not the whole of it, so that of nothing below the
    /// topic's number it is known to be told.
    pub fn is_in_snapshot(&self, topic: &Topic) -> bool {
        let print = Print::of(topic);
        let mut told = self.told.iter().filter(|told| told.print == print);
        told.any(|told| told.seq > Seq::ZERO && told.from == told.seq)
    }

    /// Whether it may speak for `topic`. A bare one is known in it by the owner it turned out to have, which is not
    /// known yet.
    pub fn may_speak_for(&self, topic: &Topic) -> bool {
        self.since(topic).is_some() || (topic.is_bare() && !self.told.is_empty())
    }

    /// The topics it speaks for.
    pub fn told(&self) -> &[Told] {
        &self.told
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { epoch, seq } = self.position;
        let mut bytes: SmallVec<[u8; 64]> = SmallVec::new();
        bytes.push(VERSION);
        bytes.extend_from_slice(&epoch.get().to_be_bytes());
        bytes.extend_from_slice(&seq.get().to_be_bytes());
        for told in &self.told {
            bytes.extend_from_slice(&told.print.0.to_be_bytes());
            write_number(seq.since(told.seq), &mut bytes);
            if told.from > Seq::ZERO {
                bytes.extend_from_slice(&told.print.0.to_be_bytes());
                write_number(seq.since(told.from), &mut bytes);
            }
        }
        Base64Display::new(&bytes, &URL_SAFE_NO_PAD).fmt(f)
    }
}

/// How far the holder of a cursor has been told of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// The topic.
    pub print: Print,
    /// The bus's number.
    pub seq: Seq,
    /// From where on: a topic that began with a snapshot was not told the milestones before it. 0 where
    /// nobody needs to know, because no topic of the cursor is further behind.
    pub from: Seq,
}

/// A topic's fingerprint: the same on every node and in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Print(u32);

impl Print {
    /// FNV-1a of 64 bit, folded: a hasher's default changes with the version.
    pub fn of(topic: &Topic) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let (kind, id) = (topic.kind().as_bytes(), topic.id().as_str().as_bytes());
        let owner = topic.named().and_then(|named| named.owner.as_ref());
        let owner = owner.map_or(&b""[..], |owner| owner.as_str().as_bytes());
        let slash = if owner.is_empty() { &b""[..] } else { b"/" };
        // As the topic is spelled.
        for byte in kind.iter().chain(b":").chain(owner).chain(slash).chain(id) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let folded = hash ^ (hash >> 32);
        Self(u32::try_from(folded & 0xffff_ffff).unwrap_or(0))
    }
}

/// LEB128: seven bits a byte, the lowest first, the high bit set on all but the last.
fn write_number(mut number: u64, bytes: &mut impl Extend<u8>) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        if number == 0 {
            return bytes.extend([low]);
        }
        bytes.extend([low | 0x80]);
    }
}

/// A number and what follows it; `None` if it is cut short, too large, or spelled with needless bytes.
fn read_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().take(LAG_BYTES).enumerate() {
        let low = u64::from(byte & 0x7f);
        let shifted = low << (7 * at);
        if shifted >> (7 * at) != low {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            let is_shortest = at == 0 || low != 0;
            return is_shortest.then_some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(n: usize) -> Topic {
        Topic::parse(&format!("job:j{n}")).unwrap()
    }

    fn at(seq: u64) -> Position {
        Position::new(Epoch::new(1), Seq::new(seq))
    }

    fn told(n: usize, seq: u64) -> Told {
        let print = Print::of(&topic(n));
        Told {
            print,
            seq: Seq::new(seq),
            from: Seq::ZERO,
        }
    }

    #[test]
    fn a_cursor_speaks_for_its_topics_and_for_no_other() {
        let held = Cursor::at(at(7), [&topic(1)]);
        assert_eq!(held.since(&topic(1)), Some(Seq::new(7)));
        assert_eq!(held.since(&topic(2)), None);
        assert_eq!(Cursor::at(at(7), []).since(&topic(1)), None);
    }

    #[test]
    fn a_topic_that_is_behind_keeps_its_own_number() {
        let held = Cursor::new(at(120), [told(1, 120), told(2, 80)]);
        let held = Cursor::parse(&held.to_string()).unwrap();
        assert_eq!(held.since(&topic(1)), Some(Seq::new(120)));
        assert_eq!(held.since(&topic(2)), Some(Seq::new(80)));
    }

    #[test]
    fn no_topic_is_ahead_of_its_cursor() {
        let held = Cursor::new(at(50), [told(1, 120)]);
        assert_eq!(held.since(&topic(1)), Some(Seq::new(50)));
    }

    #[test]
    fn topics_past_the_last_that_fits_start_anew() {
        let topics: Vec<Topic> = (0..MAX_TOPICS + 5).map(topic).collect();
        let held = Cursor::at(at(7), &topics);
        let held = Cursor::parse(&held.to_string()).unwrap();
        assert_eq!(held.since(&topics[MAX_TOPICS - 1]), Some(Seq::new(7)));
        assert_eq!(held.since(&topics[MAX_TOPICS]), None);
    }

    #[test]
    fn garbage_is_not_a_cursor() {
        for text in [
            "",
            "x",
            "AQ",
            "====",
            &"A".repeat(MAX_CHARS),
            &"A".repeat(MAX_CHARS + 1),
            "ünïcode",
        ] {
            assert_eq!(Cursor::parse(text), Err(CursorError), "{text}");
        }
    }

    #[test]
    fn a_number_has_one_spelling() {
        assert_eq!(read_number(&[0x80, 0x00]), None, "a needless byte");
        assert_eq!(read_number(&[0x80]), None, "cut short");
        assert_eq!(read_number(&[0xff; 12]), None, "above 64 bits");
        assert_eq!(read_number(&[5, 9]), Some((5, &[9][..])));
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_what_it_writes(epoch: u64, seq: u64, lags in proptest::collection::vec(any::<u64>(), 0..40)) {
            let topics = lags.iter().enumerate().map(|(n, lag)| Told {
                from: Seq::new(if lag % 3 == 0 { lag / 2 } else { 0 }),
                ..told(n, seq.saturating_sub(*lag))
            });
            let cursor = Cursor::new(Position::new(Epoch::new(epoch), Seq::new(seq)), topics);
            let text = cursor.to_string();
            prop_assert!(text.len() <= MAX_CHARS);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(Cursor::parse(&text), Ok(cursor));
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error_but_never_a_panic(text in "[A-Za-z0-9_-]{0,160}") {
            if let Ok(cursor) = Cursor::parse(&text) {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }

        #[test]
        fn any_bytes_after_a_good_beginning_are_a_cursor_or_an_error(rest: Vec<u8>) {
            let mut bytes = vec![VERSION; FIXED_BYTES];
            bytes.extend(rest);
            let text = URL_SAFE_NO_PAD.encode(bytes);
            if let Ok(cursor) = Cursor::parse(&text) {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
