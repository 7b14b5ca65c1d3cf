//! What a milestone carries: any JSON value, free for the worker to choose.
//!
//! Knows nothing of the milestone's name or job; those come with the subject or URL.
//!
//! Invariant: the value is valid JSON on one line.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::moment::WallTime;

use super::refusal::Refusal;
use super::rule::{push_mended, push_valid};
use super::text::{check_json, read_members, text_of};
use super::value;

/// The data of a milestone, as its worker wrote it but for white space between tokens.
///
/// Serialises as the value itself.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct MilestoneData {
    data: Box<RawValue>,
    #[serde(skip)]
    ts: Option<WallTime>,
}

impl MilestoneData {
    /// Takes any JSON value; nothing at all is `null`.
    ///
    /// # Errors
    /// When the payload is not JSON in UTF-8, nested deeper than 64 levels, or not what every reader can read.
    pub fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        if payload.trim_ascii().is_empty() {
            return Self::from_json("null");
        }
        Self::from_json(check_json(text_of(payload)?)?)
    }

    /// Takes what was accepted before, be it by an older version that took more.
    ///
    /// # Errors
    /// When the payload is not JSON.
    pub fn restore(payload: &[u8]) -> Result<Self, Refusal> {
        Self::parse(payload).or_else(|_| {
            let raw = check_json(text_of(payload)?)?;
            let mut line = String::with_capacity(raw.len());
            push_mended(&mut line, "data", raw, &mut |_| {});
            Self::from_line(raw, line)
        })
    }

    fn from_json(raw: &str) -> Result<Self, Refusal> {
        let mut line = String::with_capacity(raw.len());
        push_valid(&mut line, "data", raw)?;
        Self::from_line(raw, line)
    }

    fn from_line(raw: &str, line: String) -> Result<Self, Refusal> {
        Ok(Self {
            ts: worker_time(raw),
            data: RawValue::from_string(line).map_err(Refusal::not_json)?,
        })
    }

    /// The value as JSON text, on one line.
    #[cfg(test)]
    pub(crate) fn as_json(&self) -> &str {
        self.data.get()
    }

    /// The value as JSON text, where the milestone is not needed any more.
    pub fn into_json(self) -> String {
        Box::<str>::from(self.data).into()
    }

    /// The worker's clock at publishing: the member `ts` if the value is an object with an RFC 3339 one.
    /// Anything else called `ts` is the worker's own affair.
    pub fn ts(&self) -> Option<WallTime> {
        self.ts
    }
}

fn worker_time(raw: &str) -> Option<WallTime> {
    if !raw.starts_with('{') {
        return None;
    }
    let members = read_members(raw).ok()?;
    let ts = members.iter().find(|member| member.name == "ts")?;
    value::time(ts.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(payload: &str) -> String {
        let data = MilestoneData::parse(payload.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&data).unwrap(), data.as_json());
        data.as_json().to_owned()
    }

    #[test]
    fn any_json_value_is_a_milestone_and_nothing_is_null() {
        assert_eq!(json(""), "null");
        assert_eq!(json(" \n"), "null");
        assert_eq!(json(" 1.0 "), "1.0");
        assert_eq!(
            json("{ \"clip\":\n 3, \"n\": 1e2 }"),
            r#"{"clip":3,"n":1e2}"#
        );
        assert_eq!(json("\"a b\""), "\"a b\"");
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for (payload, code) in [
            ("{", "bad_json"),
            ("1 2", "bad_json"),
            ("nope", "bad_json"),
            (&"[".repeat(65), "too_deep"),
            (r#"{"a":["\udc00"]}"#, "bad_field"),
            (r#"{"a":{"b":1e400}}"#, "bad_field"),
            (r#"{"a":{"b":1,"\u0062":2}}"#, "duplicate_field"),
            ("1e400", "bad_field"),
        ] {
            assert_eq!(
                MilestoneData::parse(payload.as_bytes()).unwrap_err().code(),
                code
            );
        }
        assert_eq!(
            MilestoneData::parse(b"\xff").unwrap_err().code(),
            "bad_json"
        );
    }

    #[test]
    fn what_an_older_version_took_is_restored_with_what_is_wrong_replaced() {
        let restored = MilestoneData::restore(br#"{"a":"\ud83d","n":[1e400]}"#).unwrap();
        assert_eq!(restored.as_json(), r#"{"a":"\ufffd","n":[null]}"#);
    }

    #[test]
    fn the_worker_clock_is_read_where_there_is_one() {
        let at = |payload: &str| MilestoneData::parse(payload.as_bytes()).unwrap().ts();
        assert_eq!(
            at(r#"{"ts":"2026-11-21T10:00:00Z"}"#),
            WallTime::parse_rfc3339("2026-11-21T10:00:00Z")
        );
        assert_eq!(at(r#"{"ts":17}"#), None);
        assert_eq!(at(r#"["ts"]"#), None);
    }
}
