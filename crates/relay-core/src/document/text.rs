//! JSON as text: members of an object as slices of what was sent, white space taken out, depth measured.
//!
//! Values are never turned into numbers or trees here, so what the relay does not understand leaves it
//! as it came: `1.0` stays `1.0`, and an integer of thirty digits keeps them all.
//!
//! Invariant: every slice handed out is valid JSON, nested at most [`MAX_DEPTH`] deep.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_DEPTH;
use super::refusal::{Problem, Quoted, Refusal, kind_of};
use super::rule::shown;

/// One member of an object.
#[derive(Debug)]
pub(super) struct Member<'a> {
    /// The name, unescaped.
    pub(super) name: Cow<'a, str>,
    /// The name as it was sent, with its quotes.
    pub(super) key: &'a str,
    /// The value as it was sent.
    pub(super) value: &'a str,
}

/// The payload as text, not deeper than it may be. Not yet known to be JSON.
pub(super) fn text_of(payload: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(payload).map_err(|e| Refusal::NotUtf8 {
        offset: e.valid_up_to(),
    })?;
    let text = without_mark(text);
    if text.trim_ascii().is_empty() {
        return Err(Refusal::Empty);
    }
    check_depth(text.as_bytes())?;
    Ok(text)
}

/// `text` without the byte order mark that some editors put in front.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The members of the object `text`, in their order; a name occurs once.
pub(super) fn read_object<'a>(
    text: &'a str,
    wanted: &'static str,
) -> Result<Vec<Member<'a>>, Refusal> {
    if !text.trim_ascii_start().starts_with('{') {
        let raw = check_json(text)?;
        return Err(Refusal::NotAnObject {
            wanted,
            found: kind_of(raw),
        });
    }
    let members = read_members(text)?;
    match first_duplicate(&members) {
        None => Ok(members),
        Some(member) => Err(Refusal::DuplicateField {
            field: shown(member.key).to_string().into(),
        }),
    }
}

/// The members of the object `text`, in their order, names perhaps repeated.
pub(super) fn read_members(text: &str) -> Result<Vec<Member<'_>>, Refusal> {
    let mut members = Vec::with_capacity(16);
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = MemberReader(&mut members)
        .deserialize(&mut reader)
        .and_then(|()| reader.end());
    if let Err(error) = read {
        return Err(explain(text, &members, error));
    }
    for member in &mut members {
        member.name = unescape(member.key).ok_or_else(|| Refusal::broken_name(member.key))?;
    }
    Ok(members)
}

/// The elements of the array `text`, which is known to be JSON.
pub(super) fn read_elements(text: &str) -> Result<Vec<&RawValue>, Refusal> {
    serde_json::from_str(text).map_err(Refusal::not_json)
}

/// `text` without the white space around it, if it is JSON.
pub(super) fn check_json(text: &str) -> Result<&str, Refusal> {
    serde_json::from_str::<&RawValue>(text)
        .map(RawValue::get)
        .map_err(Refusal::not_json)
}

/// The content of the JSON string `raw`; `None` if its escapes make no text.
pub(super) fn unescape(raw: &str) -> Option<Cow<'_, str>> {
    debug_assert!(raw.len() >= 2 && raw.starts_with('"') && raw.ends_with('"'));
    if raw.contains('\\') {
        return serde_json::from_str(raw).ok().map(Cow::Owned);
    }
    raw.get(1..raw.len() - 1).map(Cow::Borrowed)
}

/// Appends the JSON value `raw` without the white space between its tokens.
///
/// So a document is one line whatever its worker wrote, and can stand in a line-based frame.
pub(super) fn push_compact(out: &mut String, raw: &str) {
    let bytes = raw.as_bytes();
    if !matches!(bytes.first(), Some(b'{' | b'[')) {
        out.push_str(raw);
        return;
    }
    let (mut kept, mut at) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b' ' | b'\n' | b'\r' | b'\t' => {
                out.push_str(&raw[kept..at]);
                at += 1;
                kept = at;
            }
            _ => at += 1,
        }
    }
    out.push_str(&raw[kept..]);
}

/// Where the string that opens at `open` ends; the end of `bytes` if it does not.
pub(super) fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// How many brackets and braces open in `bytes`, those within strings too. Counted in bytes that cannot
/// overflow, many at once: 1,600 instructions for a payload of 300 bytes otherwise, a tenth of that so.
fn openings(bytes: &[u8]) -> usize {
    let is_opening = |b: &u8| u8::from(matches!(b, b'{' | b'['));
    let blocks = bytes.chunks(usize::from(u8::MAX));
    blocks
        .map(|block| usize::from(block.iter().map(is_opening).sum::<u8>()))
        .sum()
}

pub(super) fn check_depth(bytes: &[u8]) -> Result<(), Refusal> {
    // Few payloads hold more brackets than the depth they may have; counting them is one fast pass.
    if openings(bytes) <= MAX_DEPTH {
        return Ok(());
    }
    let (mut depth, mut at) = (0usize, 0);
    // The last text of the outermost object, which is the name of the member where it becomes too deep.
    let mut name = 0..0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = string_end(bytes, at);
                if depth == 1 {
                    name = at..end;
                }
                at = end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let name = bytes.get(name).filter(|name| !name.is_empty());
            let name = name.and_then(|name| std::str::from_utf8(name).ok());
            return Err(name.map_or(Refusal::TooDeep, |name| {
                Refusal::field_problem(shown(name).to_string(), Problem::TooDeep)
            }));
        }
        at += 1;
    }
    Ok(())
}

fn first_duplicate<'m, 'a>(members: &'m [Member<'a>]) -> Option<&'m Member<'a>> {
    // A handful of names is compared faster than hashed; a payload of thousands must not cost a square.
    if members.len() <= 24 {
        let repeats = |(at, member): &(usize, &Member<'_>)| {
            members[..*at].iter().any(|m| m.name == member.name)
        };
        return members.iter().enumerate().find(repeats).map(|(_, m)| m);
    }
    let mut seen = hashbrown::HashSet::with_capacity(members.len());
    members.iter().find(|member| !seen.insert(&*member.name))
}

/// Names the field at fault when the stumbling block is a number JSON does not have.
fn explain(text: &str, members: &[Member<'_>], error: serde_json::Error) -> Refusal {
    let word = word_at(text, error.line(), error.column());
    match members.last() {
        Some(open) if open.value.is_empty() && is_not_finite(word) => Refusal::field_problem(
            shown(open.key).to_string(),
            Problem::NotFinite {
                found: Quoted::new(word),
            },
        ),
        _ => Refusal::not_json(error),
    }
}

/// Whether `word` is what some encoders write for a number that JSON does not have.
pub(super) fn is_not_finite(word: &str) -> bool {
    matches!(word, "NaN" | "nan" | "Infinity" | "-Infinity" | "inf")
}

fn word_at(text: &str, line: usize, column: usize) -> &str {
    let line = text.split('\n').nth(line.saturating_sub(1)).unwrap_or("");
    let in_word = |b: &u8| b.is_ascii_alphabetic() || *b == b'-';
    let bytes = line.as_bytes();
    let middle = column.saturating_sub(1).min(bytes.len());
    let start = middle
        - bytes[..middle]
            .iter()
            .rev()
            .take_while(|b| in_word(b))
            .count();
    let end = middle + bytes[middle..].iter().take_while(|b| in_word(b)).count();
    line.get(start..end).unwrap_or("")
}

/// Fills the list as it reads, so that after a mistake its last member, still without a value, says where.
struct MemberReader<'v, 'a>(&'v mut Vec<Member<'a>>);

impl<'a> DeserializeSeed<'a> for MemberReader<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for MemberReader<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<&'a RawValue>()? {
            self.0.push(Member {
                name: Cow::Borrowed(""),
                key: key.get(),
                value: "",
            });
            let value = map.next_value::<&'a RawValue>()?.get();
            if let Some(open) = self.0.last_mut() {
                open.value = value;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact(raw: &str) -> String {
        let mut out = String::new();
        push_compact(&mut out, raw);
        out
    }

    #[test]
    fn white_space_goes_between_tokens_and_stays_in_strings() {
        assert_eq!(
            compact("{ \"a b\" :\n[ 1 ,\t\"x \\\" y\\\\\" ]\r}"),
            r#"{"a b":[1,"x \" y\\"]}"#
        );
        assert_eq!(compact(r#""a b""#), r#""a b""#);
    }

    #[test]
    fn brackets_in_strings_are_not_depth() {
        let text = format!("[\"{}\"]", "[".repeat(200));
        assert!(check_depth(text.as_bytes()).is_ok());
        let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(check_depth(deep.as_bytes()).is_ok());
        assert!(matches!(
            check_depth(format!("[{deep}]").as_bytes()),
            Err(Refusal::TooDeep)
        ));
        let flat = format!("[{}1]", "[],".repeat(200));
        assert!(check_depth(flat.as_bytes()).is_ok());
    }

    #[test]
    fn names_are_compared_unescaped_and_kept_as_sent() {
        let members = read_members(r#" { "\u0061" : 1.0 , "b":[ ] } "#).unwrap();
        assert_eq!(members[0].name, "a");
        assert_eq!(members[0].key, r#""\u0061""#);
        assert_eq!(members[0].value, "1.0");
        let twice = read_object(r#"{"a":1,"\u0061":2}"#, "a state");
        assert!(matches!(twice, Err(Refusal::DuplicateField { field }) if &*field == "\\u0061"));
    }

    #[test]
    fn a_repeated_name_is_found_among_thousands() {
        let many: String = (0..3000).map(|n| format!("\"f{n}\":0,")).collect();
        assert!(read_object(&format!("{{{many}\"last\":0}}"), "a state").is_ok());
        assert!(matches!(
            read_object(&format!("{{{many}\"f7\":0}}"), "a state"),
            Err(Refusal::DuplicateField { .. })
        ));
    }
}
