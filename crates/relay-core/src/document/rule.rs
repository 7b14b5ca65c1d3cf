//! Which values are taken: one rule for everything that is sent on, so that every reader reads it alike.
//!
//! JSON allows what readers do not agree on: half a surrogate pair, a number that no double holds, a name
//! twice. One reader rejects it, another makes something else of it, and each loses the document it stands in.
//! What it gets is JSON already and not too deep; which field a value belongs to it is told for messages.
//!
//! Invariant: what is written here is one line, and serde_json, jq and the parsers of JavaScript, Python and Go
//! read it without an error and to the same effect.

use std::borrow::Cow;
use std::fmt::Write as _;

use hashbrown::HashSet;
use smallvec::SmallVec;

use super::refusal::{Problem, Quoted, Refusal};
use super::text::{check_json, string_end, unescape};

/// Characters of a path in a message.
const MAX_PATH_CHARS: usize = 120;
/// A number of fewer characters and without an exponent is below what a double holds.
const SURELY_FINITE: usize = 300;
/// In place of half a surrogate pair.
const REPLACEMENT: &str = "\\ufffd";

/// Appends the JSON value `raw` of `field` without the white space between its tokens.
///
/// # Errors
/// When not every reader can read it.
pub(super) fn push_valid(out: &mut String, field: &str, raw: &str) -> Result<(), Refusal> {
    if is_plain(raw) {
        out.push_str(raw);
        return Ok(());
    }
    Writer::new(out, field, raw, None).write()
}

/// As [`push_valid`], but what is wrong is replaced: half a surrogate pair by U+FFFD, a number by null, and of
/// two members of one name the first is left out. `lost` is told.
pub(super) fn push_mended(out: &mut String, field: &str, raw: &str, lost: &mut dyn FnMut(Refusal)) {
    if is_plain(raw) {
        out.push_str(raw);
        return;
    }
    let written = Writer::new(out, field, raw, Some(lost)).write();
    debug_assert!(written.is_ok(), "what is wrong is replaced");
}

/// A JSON text as every reader can read it, for a reader of what an older version sent: what is wrong is replaced
/// as in an ending. `None`: it is not JSON.
pub fn readable(text: &str) -> Option<String> {
    let raw = check_json(text).ok()?;
    let mut out = String::with_capacity(raw.len());
    push_mended(&mut out, "", raw, &mut |_| {});
    Some(out)
}

/// Whether every reader reads the number `raw`. The largest double itself is too much for some when it is
/// written with more digits than it has.
pub(super) fn is_finite(raw: &str) -> bool {
    let surely = raw.len() < SURELY_FINITE && !raw.contains(['e', 'E']);
    surely
        || raw
            .parse::<f64>()
            .is_ok_and(|number| number.abs() < f64::MAX || serde_json::from_str::<f64>(raw).is_ok())
}

/// Whether there is nothing in the value to look at.
fn is_plain(raw: &str) -> bool {
    match raw.as_bytes().first() {
        Some(b'"') => !raw.contains('\\'),
        Some(b'{' | b'[') => false,
        Some(b't' | b'f' | b'n') => true,
        _ => is_finite(raw),
    }
}

/// An object or a list that is being written.
enum Open {
    /// Where its members begin among all.
    Object { from: usize },
    /// Which element is being written.
    List { at: usize },
}

/// A member of an open object.
struct Written<'r> {
    key: &'r str,
    name: Cow<'r, str>,
    /// Where it begins in what is written.
    start: usize,
}

struct Writer<'w, 'r> {
    out: &'w mut String,
    field: &'w str,
    raw: &'r str,
    /// Up to where `raw` is written, or left out.
    kept: usize,
    open: SmallVec<[Open; 8]>,
    members: SmallVec<[Written<'r>; 8]>,
    expects_name: bool,
    /// Who is told of what is replaced; where nobody is, nothing is.
    lost: Option<&'w mut dyn FnMut(Refusal)>,
}

impl<'w, 'r> Writer<'w, 'r> {
    fn new(
        out: &'w mut String,
        field: &'w str,
        raw: &'r str,
        lost: Option<&'w mut dyn FnMut(Refusal)>,
    ) -> Self {
        Self {
            out,
            field,
            raw,
            kept: 0,
            open: SmallVec::new(),
            members: SmallVec::new(),
            expects_name: false,
            lost,
        }
    }

    fn write(&mut self) -> Result<(), Refusal> {
        let bytes = self.raw.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    at = self.text(at)?;
                    continue;
                }
                b'-' | b'0'..=b'9' => {
                    at = self.number(at)?;
                    continue;
                }
                b' ' | b'\n' | b'\r' | b'\t' => {
                    self.flush(at);
                    self.kept = at + 1;
                }
                b'{' => {
                    let from = self.members.len();
                    self.open.push(Open::Object { from });
                    self.expects_name = true;
                }
                b'[' => self.open.push(Open::List { at: 0 }),
                b'}' | b']' => self.close(at)?,
                b',' => match self.open.last_mut() {
                    Some(Open::List { at }) => *at += 1,
                    Some(Open::Object { .. }) => self.expects_name = true,
                    None => {}
                },
                _ => {}
            }
            at += 1;
        }
        self.flush(at);
        Ok(())
    }

    /// Writes what was read up to `at`.
    fn flush(&mut self, at: usize) {
        self.out.push_str(&self.raw[self.kept..at]);
        self.kept = at;
    }

    /// Takes the string that opens at `at`; where it ends.
    fn text(&mut self, at: usize) -> Result<usize, Refusal> {
        let end = string_end(self.raw.as_bytes(), at);
        let text = &self.raw[at..end];
        let is_name = std::mem::take(&mut self.expects_name);
        let start = self.out.len() + at - self.kept;
        let mended = Some(text)
            .filter(|text| text.contains('\\'))
            .and_then(mended);
        let name = match &mended {
            None if is_name => unescape(text),
            Some(mended) if is_name => unescape(mended).map(|name| Cow::Owned(name.into_owned())),
            _ => None,
        };
        if let Some(name) = name {
            self.members.push(Written {
                key: text,
                name,
                start,
            });
        }
        if let Some(mended) = mended {
            self.found(Problem::BrokenText {
                found: Quoted::new(text),
            })?;
            self.flush(at);
            self.out.push_str(&mended);
            self.kept = end;
        }
        Ok(end)
    }

    /// Takes the number that begins at `at`; where it ends.
    fn number(&mut self, at: usize) -> Result<usize, Refusal> {
        let rest = &self.raw[at..];
        let is_digit = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
        let end = at + rest.find(|c| !is_digit(c)).unwrap_or(rest.len());
        let number = &self.raw[at..end];
        if !is_finite(number) {
            self.found(Problem::BeyondDouble {
                found: Quoted::new(number),
            })?;
            self.flush(at);
            self.out.push_str("null");
            self.kept = end;
        }
        Ok(end)
    }

    /// Takes the bracket at `at`, which closes something.
    fn close(&mut self, at: usize) -> Result<(), Refusal> {
        if let Some(Open::Object { from }) = self.open.last() {
            let from = *from;
            if let Some(repeated) = repeated(&self.members[from..]) {
                let repeated = from + repeated;
                if self.lost.is_none() {
                    let field = self.path_to(repeated).into();
                    return Err(Refusal::DuplicateField { field });
                }
                self.flush(at);
                self.keep_last_of_each(from);
            }
            self.members.truncate(from);
        }
        self.open.pop();
        self.expects_name = false;
        Ok(())
    }

    /// Writes the members of the innermost object anew, each name once.
    fn keep_last_of_each(&mut self, from: usize) {
        let members = &self.members[from..];
        let Some(start) = members.first().map(|first| first.start) else {
            return;
        };
        let mut seen = HashSet::with_capacity(members.len());
        let mut end = self.out.len();
        let (mut kept, mut twice) = (Vec::new(), Vec::new());
        for (at, member) in members.iter().enumerate().rev() {
            if seen.insert(&*member.name) {
                kept.push(&self.out[member.start..end]);
            } else {
                twice.push(from + at);
            }
            // Behind a comma.
            end = member.start.saturating_sub(1);
        }
        kept.reverse();
        let anew = kept.join(",");
        let twice: Vec<_> = twice.into_iter().rev().map(|at| self.path_to(at)).collect();
        self.out.truncate(start);
        self.out.push_str(&anew);
        if let Some(lost) = &mut self.lost {
            for field in twice {
                lost(Refusal::DuplicateField {
                    field: field.into(),
                });
            }
        }
    }

    /// Something is wrong with what stands here.
    fn found(&mut self, problem: Problem) -> Result<(), Refusal> {
        let refusal = Refusal::field_problem(self.path(), problem);
        match &mut self.lost {
            None => Err(refusal),
            Some(lost) => {
                lost(refusal);
                Ok(())
            }
        }
    }

    /// Where the writer is, such as `meta.a[2].b`.
    fn path(&self) -> String {
        self.path_to(self.members.len().saturating_sub(1))
    }

    /// As [`Self::path`], but with this member in the innermost object.
    fn path_to(&self, member: usize) -> String {
        let mut path = self.field.to_owned();
        for (depth, open) in self.open.iter().enumerate() {
            let written = match open {
                Open::List { at } => write!(path, "[{at}]"),
                Open::Object { from } => {
                    let next = self.open[depth + 1..].iter().find_map(|inner| match inner {
                        Open::Object { from } => Some(*from),
                        Open::List { .. } => None,
                    });
                    let current = next.map_or(member, |next| next.saturating_sub(1));
                    match self.members.get(current).filter(|_| current >= *from) {
                        Some(member) => write!(path, ".{}", shown(member.key)),
                        None => Ok(()),
                    }
                }
            };
            debug_assert!(written.is_ok(), "a text takes all it is given");
        }
        match path.char_indices().nth(MAX_PATH_CHARS) {
            Some((cut, _)) => format!("{}…", &path[..cut]),
            None => path,
        }
    }
}

/// A name for a message, from what was sent: short, and with its escapes, so that it cannot break a line.
pub(super) fn shown(key: &str) -> Quoted {
    let name = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    Quoted::new(name.unwrap_or(key))
}

/// A member whose name an earlier one has as well.
fn repeated(members: &[Written<'_>]) -> Option<usize> {
    // A handful of names is compared faster than hashed; a payload of thousands must not cost a square.
    if members.len() <= 24 {
        let repeats = |at: &usize| {
            let (before, member) = (&members[..*at], &members[*at]);
            before.iter().any(|other| other.name == member.name)
        };
        return (1..members.len()).find(repeats);
    }
    let mut seen = HashSet::with_capacity(members.len());
    members
        .iter()
        .position(|member| !seen.insert(&*member.name))
}

/// The JSON string `raw` without halves of surrogate pairs; `None` if it has none.
fn mended(raw: &str) -> Option<String> {
    let bytes = raw.as_bytes();
    let unit = |at: usize| {
        let hex = raw.get(at + 2..at + 6)?;
        let is_unit = bytes.get(at) == Some(&b'\\') && bytes.get(at + 1) == Some(&b'u');
        u16::from_str_radix(hex, 16).ok().filter(|_| is_unit)
    };
    let mut mended: Option<String> = None;
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        at += found;
        let (length, is_half) = match (unit(at), unit(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (12, false),
            (Some(0xD800..=0xDFFF), _) => (6, true),
            (Some(_), _) => (6, false),
            (None, _) => (2, false),
        };
        if is_half {
            let mended = mended.get_or_insert_default();
            mended.push_str(&raw[kept..at]);
            mended.push_str(REPLACEMENT);
            kept = at + length;
        }
        at = (at + length).min(bytes.len());
    }
    let mut mended = mended?;
    mended.push_str(&raw[kept..]);
    Some(mended)
}

#[cfg(test)]
mod tests;
