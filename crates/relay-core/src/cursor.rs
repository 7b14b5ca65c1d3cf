//! A place in history, as an opaque string a client can carry to any transport and any node.
//!
//! A cursor is the bus's epoch and sequence, and its [`Scope`]: the topics it speaks for. Everything up
//! to the sequence that concerns those topics has been told to whoever holds the cursor; a topic that is
//! behind the others has its own, lower sequence. A topic outside the scope is new to its holder and
//! starts with a snapshot, wherever the sequence stands.
//!
//! Wire form: base64url without padding of `version, epoch (8 bytes), sequence (8 bytes), scope`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use crate::topic::Topic;

/// Scopes of up to this many topics list each one; larger ones are a single fingerprint.
const MAX_LISTED: usize = 8;
/// All topics stand at the cursor's sequence.
const VERSION_LISTED: u8 = 1;
/// One fingerprint of the whole set.
const VERSION_MANY: u8 = 2;
/// Each topic with a sequence of its own.
const VERSION_APART: u8 = 3;
/// Characters of the longest cursor: eight topics apart.
const MAX_CHARS: usize = (FIXED_BYTES + 12 * MAX_LISTED).div_ceil(3) * 4;
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
        if text.len() > MAX_CHARS {
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

    /// Up to which number its holder has been told of `topic`, when the topics of `asked` are asked for
    /// together; `None` if the topic is new to the holder.
    ///
    /// A set of more than eight topics answers for all of them when it is asked for unchanged, and for
    /// none otherwise: a snapshot too many is harmless, a state never sent is not.
    pub fn since(&self, topic: &Topic, asked: &Scope) -> Option<u64> {
        match &self.scope {
            Scope::Listed(told) => {
                let print = short(fingerprint(topic));
                let told = told.iter().find(|told| told.print == print)?;
                Some(told.behind.unwrap_or(self.seq))
            }
            Scope::Many(_) => (self.scope == *asked).then_some(self.seq),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes: SmallVec<[u8; 64]> = SmallVec::new();
        bytes.push(self.scope.version());
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        self.scope.encode(&mut bytes);
        let mut text = [0; MAX_CHARS];
        let length = URL_SAFE_NO_PAD
            .encode_slice(&bytes, &mut text)
            .map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text[..length]).map_err(|_| fmt::Error)?)
    }
}

/// A topic a cursor speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// The topic's 32-bit fingerprint.
    print: u32,
    /// How far the holder was told of it, where that is less than the cursor's sequence.
    behind: Option<u64>,
}

impl Told {
    /// A topic told as far as the cursor's sequence, or as far as `behind`.
    pub fn new(topic: &Topic, behind: Option<u64>) -> Self {
        Self {
            print: short(fingerprint(topic)),
            behind,
        }
    }

    /// Whether this is about `topic`.
    pub fn is(&self, topic: &Topic) -> bool {
        self.print == short(fingerprint(topic))
    }

    /// The same topic as a cursor at `seq` told of it.
    pub fn at(self, seq: u64) -> Self {
        Self {
            behind: Some(self.behind.unwrap_or(seq)),
            ..self
        }
    }
}

/// A set of topics, small enough to travel in every cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Up to eight topics, ascending by fingerprint.
    Listed(SmallVec<[Told; 1]>),
    /// More than eight: one fingerprint of the whole set, which answers only "the same set?".
    Many(u64),
}

impl Scope {
    /// The scope of a cursor that speaks for nothing.
    pub const fn empty() -> Self {
        Self::Listed(SmallVec::new_const())
    }

    /// The scope of a set of topics, all told equally far; order and repetition do not matter.
    pub fn of<'a>(topics: impl IntoIterator<Item = &'a Topic>) -> Self {
        let mut prints: SmallVec<[u64; 8]> = topics.into_iter().map(fingerprint).collect();
        prints.sort_unstable();
        prints.dedup();
        if prints.len() > MAX_LISTED {
            return Self::Many(prints.iter().fold(0, |sum, print| sum.wrapping_add(*print)));
        }
        Self::told(prints.into_iter().map(|print| Told {
            print: short(print),
            behind: None,
        }))
    }

    /// The scope of topics told unequally far; those past the eighth are left out, and start anew.
    pub fn told(topics: impl IntoIterator<Item = Told>) -> Self {
        let mut told: SmallVec<[Told; 1]> = topics.into_iter().take(MAX_LISTED).collect();
        told.sort_unstable();
        told.dedup_by_key(|told| told.print);
        Self::Listed(told)
    }

    fn version(&self) -> u8 {
        match self {
            Self::Listed(told) if told.iter().any(|told| told.behind.is_some()) => VERSION_APART,
            Self::Listed(_) => VERSION_LISTED,
            Self::Many(_) => VERSION_MANY,
        }
    }

    fn encode(&self, bytes: &mut impl Extend<u8>) {
        let apart = self.version() == VERSION_APART;
        match self {
            Self::Listed(topics) => {
                for told in topics {
                    bytes.extend(told.print.to_be_bytes());
                    if apart {
                        // The highest number stands for "as far as the cursor".
                        bytes.extend(told.behind.unwrap_or(u64::MAX).to_be_bytes());
                    }
                }
            }
            Self::Many(print) => bytes.extend(print.to_be_bytes()),
        }
    }

    fn decode(version: u8, bytes: &[u8]) -> Result<Self, CursorError> {
        let listed = match version {
            VERSION_LISTED => listed::<4>(bytes, |_| None)?,
            VERSION_APART => listed::<12>(bytes, |told| {
                let seq = told.last_chunk::<8>().map(|seq| u64::from_be_bytes(*seq));
                seq.filter(|seq| *seq != u64::MAX)
            })?,
            VERSION_MANY => {
                let eight = bytes.try_into().map_err(|_| CursorError)?;
                return Ok(Self::Many(u64::from_be_bytes(eight)));
            }
            _ => return Err(CursorError),
        };
        let scope = Self::Listed(listed);
        // One set has one spelling.
        if scope.version() == version {
            Ok(scope)
        } else {
            Err(CursorError)
        }
    }
}

fn listed<const N: usize>(
    bytes: &[u8],
    behind: impl Fn(&[u8; N]) -> Option<u64>,
) -> Result<SmallVec<[Told; 1]>, CursorError> {
    let (topics, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() || topics.len() > MAX_LISTED {
        return Err(CursorError);
    }
    let told = topics.iter().map(|told| Told {
        print: told
            .first_chunk::<4>()
            .map_or(0, |print| u32::from_be_bytes(*print)),
        behind: behind(told),
    });
    let told: SmallVec<[Told; 1]> = told.collect();
    if told.is_sorted_by(|a, b| a.print < b.print) {
        Ok(told)
    } else {
        Err(CursorError)
    }
}

/// FNV-1a (64 bit): the same on every node and in every version, which a hasher's default is not.
fn fingerprint(topic: &Topic) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let kind = topic.kind().as_bytes();
    for byte in kind
        .iter()
        .chain(b":")
        .chain(topic.id().as_str().as_bytes())
    {
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

    fn at(seq: u64, scope: Scope) -> Cursor {
        Cursor {
            epoch: 1,
            seq,
            scope,
        }
    }

    #[test]
    fn a_cursor_speaks_for_its_topics_and_for_no_other() {
        let (a, b) = (topic(1), topic(2));
        let asked = Scope::of([&a, &b]);
        let held = at(7, Scope::of([&a]));
        assert_eq!(held.since(&a, &asked), Some(7));
        assert_eq!(held.since(&b, &asked), None);
        assert_eq!(at(7, Scope::empty()).since(&a, &asked), None);
    }

    #[test]
    fn a_topic_that_is_behind_keeps_its_own_number() {
        let (a, b) = (topic(1), topic(2));
        let held = at(
            120,
            Scope::told([Told::new(&a, None), Told::new(&b, Some(80))]),
        );
        let held = Cursor::parse(&held.to_string()).unwrap();
        assert_eq!(held.since(&a, &Scope::empty()), Some(120));
        assert_eq!(held.since(&b, &Scope::empty()), Some(80));
    }

    #[test]
    fn a_large_set_speaks_for_itself_unchanged_only() {
        let topics: Vec<Topic> = (0..20).map(topic).collect();
        let held = at(7, Scope::of(&topics));
        assert_eq!(
            held.since(&topics[3], &Scope::of(topics.iter().rev())),
            Some(7)
        );
        assert_eq!(held.since(&topics[3], &Scope::of(&topics[..19])), None);
    }

    #[test]
    fn garbage_is_not_a_cursor() {
        for text in [
            "",
            "x",
            "AQ",
            "====",
            &"A".repeat(MAX_CHARS),
            &"A".repeat(500),
            "ünïcode",
        ] {
            assert_eq!(Cursor::parse(text), Err(CursorError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_what_it_writes(epoch: u64, seq: u64, topics in 0..30usize, behind: Option<u32>) {
            let topics: Vec<Topic> = (0..topics).map(topic).collect();
            let scope = match behind {
                None => Scope::of(&topics),
                Some(seq) => Scope::told(topics.iter().map(|each| Told::new(each, Some(seq.into())))),
            };
            let cursor = Cursor { epoch, seq, scope };
            let text = cursor.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(Cursor::parse(&text), Ok(cursor));
        }

        #[test]
        fn any_text_is_a_cursor_or_an_error_but_never_a_panic(text in "[A-Za-z0-9_-]{0,160}") {
            if let Ok(cursor) = Cursor::parse(&text) {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
