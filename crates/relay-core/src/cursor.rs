//! A place in history, as an opaque string a client can carry to any transport and any node.
//!
//! A cursor is the bus's epoch and sequence, and its [`Scope`]: the topics it speaks for. Everything up
//! to the sequence that concerns those topics has been told to whoever holds the cursor. A topic outside
//! the scope is new to its holder and starts with a snapshot, wherever the sequence stands.
//!
//! Wire form: base64url without padding of `version, epoch (8 bytes), sequence (8 bytes), scope`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use crate::topic::Topic;

/// Scopes of up to this many topics list each one; larger ones are a single fingerprint.
const MAX_LISTED: usize = 8;
const VERSION_LISTED: u8 = 1;
const VERSION_MANY: u8 = 2;
const FIXED_BYTES: usize = 17;

/// A place in the bus's one order, good for the topics in its scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Which life of the bus the sequence belongs to.
    pub epoch: u64,
    /// The bus's number.
    pub seq: u64,
    /// The topics whose updates up to `seq` the holder has been told.
    pub scope: Scope,
}

/// Why a text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this relay; leave it out to start from a snapshot")]
pub struct CursorError;

impl Cursor {
    /// Reads a cursor.
    ///
    /// # Errors
    /// When `text` was not written by [`fmt::Display`] of a cursor.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        // The longest cursor is 49 bytes, 66 characters; decoding more would be work for nothing.
        if text.len() > 72 {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let (fixed, scope) = bytes
            .split_first_chunk::<FIXED_BYTES>()
            .ok_or(CursorError)?;
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&fixed[at..at + 8]);
            u64::from_be_bytes(eight)
        };
        Ok(Self {
            epoch: number(1),
            seq: number(9),
            scope: Scope::decode(fixed[0], scope)?,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes: SmallVec<[u8; FIXED_BYTES + 4 * MAX_LISTED]> = SmallVec::new();
        bytes.push(self.scope.version());
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        self.scope.encode(&mut bytes);
        let mut text = [0; 72];
        let length = URL_SAFE_NO_PAD
            .encode_slice(&bytes, &mut text)
            .map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text[..length]).map_err(|_| fmt::Error)?)
    }
}

/// A set of topics, small enough to travel in every cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Up to eight topics, each by a 32-bit fingerprint, ascending.
    Listed(SmallVec<[u32; 2]>),
    /// More than eight: one fingerprint of the whole set, which answers only "the same set?".
    Many(u64),
}

impl Scope {
    /// The scope of a cursor that speaks for nothing.
    pub const fn empty() -> Self {
        Self::Listed(SmallVec::new_const())
    }

    /// The scope of a set of topics; order and repetition do not matter.
    pub fn of<'a>(topics: impl IntoIterator<Item = &'a Topic>) -> Self {
        let mut prints: Vec<u64> = topics.into_iter().map(fingerprint).collect();
        prints.sort_unstable();
        prints.dedup();
        if prints.len() > MAX_LISTED {
            return Self::Many(prints.iter().fold(0, |sum, print| sum.wrapping_add(*print)));
        }
        let mut listed: SmallVec<[u32; 2]> = prints.into_iter().map(short).collect();
        listed.sort_unstable();
        Self::Listed(listed)
    }

    /// Whether a holder who now asks for the topics of `asked` was already being told of `topic`.
    ///
    /// A set of more than eight topics answers for all of them when it is asked for unchanged, and for
    /// none otherwise: a snapshot too many is harmless, a state never sent is not.
    pub fn speaks_for(&self, topic: &Topic, asked: &Self) -> bool {
        match self {
            Self::Listed(prints) => prints.contains(&short(fingerprint(topic))),
            Self::Many(_) => self == asked,
        }
    }

    fn version(&self) -> u8 {
        match self {
            Self::Listed(_) => VERSION_LISTED,
            Self::Many(_) => VERSION_MANY,
        }
    }

    fn encode(&self, bytes: &mut impl Extend<u8>) {
        match self {
            Self::Listed(prints) => {
                bytes.extend(prints.iter().flat_map(|print| print.to_be_bytes()));
            }
            Self::Many(print) => bytes.extend(print.to_be_bytes()),
        }
    }

    fn decode(version: u8, bytes: &[u8]) -> Result<Self, CursorError> {
        match version {
            VERSION_LISTED => {
                let (prints, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() || prints.len() > MAX_LISTED {
                    return Err(CursorError);
                }
                Ok(Self::Listed(
                    prints.iter().map(|four| u32::from_be_bytes(*four)).collect(),
                ))
            }
            VERSION_MANY => {
                let eight = bytes.try_into().map_err(|_| CursorError)?;
                Ok(Self::Many(u64::from_be_bytes(eight)))
            }
            _ => Err(CursorError),
        }
    }
}

/// FNV-1a (64 bit): the same on every node and in every version, which a hasher's default is not.
fn fingerprint(topic: &Topic) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let kind = topic.kind().as_bytes();
    for byte in kind.iter().chain(b":").chain(topic.id().as_str().as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

fn short(print: u64) -> u32 {
    let folded = print ^ (print >> 32);
    u32::try_from(folded & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(n: usize) -> Topic {
        Topic::parse(&format!("job:j{n}")).unwrap()
    }

    #[test]
    fn a_cursor_speaks_for_its_topics_and_for_no_other() {
        let (a, b) = (topic(1), topic(2));
        let asked = Scope::of([&a, &b]);
        let held = Scope::of([&a]);
        assert!(held.speaks_for(&a, &asked));
        assert!(!held.speaks_for(&b, &asked));
        assert!(!Scope::empty().speaks_for(&a, &asked));
    }

    #[test]
    fn a_large_set_speaks_for_itself_unchanged_only() {
        let topics: Vec<Topic> = (0..20).map(topic).collect();
        let held = Scope::of(&topics);
        assert!(held.speaks_for(&topics[3], &Scope::of(topics.iter().rev())));
        assert!(!held.speaks_for(&topics[3], &Scope::of(&topics[..19])));
    }

    #[test]
    fn garbage_is_not_a_cursor() {
        for text in ["", "x", "AQ", "====", &"A".repeat(72), &"A".repeat(500), "ünïcode"] {
            assert_eq!(Cursor::parse(text), Err(CursorError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_what_it_writes(epoch: u64, seq: u64, topics in 0..30usize) {
            let topics: Vec<Topic> = (0..topics).map(topic).collect();
            let cursor = Cursor { epoch, seq, scope: Scope::of(&topics) };
            let text = cursor.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(Cursor::parse(&text), Ok(cursor));
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error_but_never_a_panic(text in "[A-Za-z0-9_-]{0,80}") {
            if let Ok(cursor) = Cursor::parse(&text) {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
