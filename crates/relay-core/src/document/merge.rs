//! A JSON merge patch (RFC 7396) onto a job's last state.
//!
//! Works on text, so numbers and unknown members keep their spelling. The result is a payload like any
//! other: it is still to be parsed and guarded.
//!
//! Invariant: what the relay itself had derived for the last state is not taken for the worker's word.

use hashbrown::HashMap;

use super::refusal::Refusal;
use super::rule::push_valid;
use super::status::Status;
use super::text::{Member, push_compact, read_members, read_object, text_of};
use super::value;

/// Merges `patch`, an object, into `last_state_json` as RFC 7396 has it: `null` takes a member away.
///
/// What no longer holds after the patch is taken from the last state first: an estimated `eta_seconds`
/// always; `status_detail` when the patch has a `status`; `progress` when the patch gives none but
/// completes the job or moves `current` or `total`; `progress` and `current` when the patch begins
/// another `attempt`.
///
/// # Errors
/// When either is not a JSON object, or the patch is not what every reader can read.
pub fn merge_patch(last_state_json: &[u8], patch: &[u8]) -> Result<Vec<u8>, Refusal> {
    let patch = read_object(text_of(patch)?, "a merge patch")?;
    for member in &patch {
        // Of a name that is there twice a merge would leave one, and nobody would know which.
        push_valid(
            &mut String::new(),
            member.key.trim_matches('"'),
            member.value,
        )?;
    }
    let mut last = read_object(text_of(last_state_json)?, "a state")?;
    let outdated = outdated(&last, &patch);
    last.retain(|member| !outdated.contains(&&*member.name));
    let mut out = String::with_capacity(last_state_json.len() + 64);
    merge_objects(&mut out, &last, &patch)?;
    Ok(out.into_bytes())
}

/// Names of members of the last state that the patch makes untrue.
fn outdated(last: &[Member<'_>], patch: &[Member<'_>]) -> Vec<&'static str> {
    let patched = |name: &str| value_of(patch, name);
    let mut names = Vec::new();
    if value_of(last, "eta_estimated") == Some("true") {
        names.extend(["eta_seconds", "eta_estimated"]);
    }
    if patched("status").is_some() {
        names.push("status_detail");
    }
    let attempt = |members| value_of(members, "attempt").and_then(|raw| value::attempt(raw).ok());
    let begins = attempt(patch).is_some_and(|next| next != attempt(last).unwrap_or(1));
    if begins {
        names.push("current");
    }
    let completes = patched("status")
        .and_then(|raw| value::status(raw).ok())
        .is_some_and(|(status, _)| status == Status::Completed);
    let counted = |name| patched(name).or_else(|| value_of(last, name)).is_some();
    let moves = (patched("current").is_some() || patched("total").is_some())
        && counted("current")
        && counted("total");
    if patched("progress").is_none() && (begins || completes || moves) {
        names.push("progress");
    }
    names
}

fn value_of<'a>(members: &[Member<'a>], name: &str) -> Option<&'a str> {
    let member = members.iter().find(|member| member.name == name)?;
    Some(member.value)
}

fn merge_objects(
    out: &mut String,
    base: &[Member<'_>],
    patch: &[Member<'_>],
) -> Result<(), Refusal> {
    let places: HashMap<&str, usize> = (patch.iter().enumerate())
        .map(|(at, member)| (&*member.name, at))
        .collect();
    let mut merged = vec![false; patch.len()];
    let mut object = ObjectWriter::open(out);
    for member in base {
        match places.get(&*member.name) {
            None => push_compact(object.value_of(member.key), member.value),
            Some(&at) if merged[at] || patch[at].value == "null" => merged[at] = true,
            Some(&at) => {
                merged[at] = true;
                merge_value(
                    object.value_of(member.key),
                    Some(member.value),
                    patch[at].value,
                )?;
            }
        }
    }
    for (at, member) in patch.iter().enumerate() {
        if !merged[at] && places[&*member.name] == at && member.value != "null" {
            merge_value(object.value_of(member.key), None, member.value)?;
        }
    }
    object.close();
    Ok(())
}

fn merge_value(out: &mut String, base: Option<&str>, patch: &str) -> Result<(), Refusal> {
    if !patch.starts_with('{') {
        push_compact(out, patch);
        return Ok(());
    }
    let base = match base.filter(|base| base.starts_with('{')) {
        Some(base) => read_members(base)?,
        None => Vec::new(),
    };
    merge_objects(out, &base, &read_members(patch)?)
}

/// Writes members with the commas between them.
struct ObjectWriter<'o> {
    out: &'o mut String,
    next: char,
}

impl<'o> ObjectWriter<'o> {
    fn open(out: &'o mut String) -> Self {
        Self { out, next: '{' }
    }

    /// Writes the quoted `key`; its value goes into what is returned.
    fn value_of(&mut self, key: &str) -> &mut String {
        self.out.push(self.next);
        self.next = ',';
        self.out.push_str(key);
        self.out.push(':');
        self.out
    }

    fn close(self) {
        if self.next == '{' {
            self.out.push('{');
        }
        self.out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(last: &str, patch: &str) -> String {
        String::from_utf8(merge_patch(last.as_bytes(), patch.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_7396_hold() {
        for (base, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (
                r#"{}"#,
                r#"{"a":{"bb":{"ccc":null}}}"#,
                r#"{"a":{"bb":{}}}"#,
            ),
        ] {
            assert_eq!(merge(base, patch), result, "{base} + {patch}");
        }
    }

    #[test]
    fn spelling_survives_a_merge() {
        assert_eq!(
            merge(
                r#"{"n":1.0,"big":123456789012345678901234567890,"x":{"y":1e2,"z":1}}"#,
                r#"{"x":{"z":2.50}}"#
            ),
            r#"{"n":1.0,"big":123456789012345678901234567890,"x":{"y":1e2,"z":2.50}}"#
        );
    }

    #[test]
    fn what_the_relay_derived_goes_when_it_no_longer_holds() {
        for (last, patch, result) in [
            (
                r#"{"status":"running","status_detail":"encoding","eta_seconds":3,"eta_estimated":true}"#,
                r#"{"status":"done"}"#,
                r#"{"status":"done"}"#,
            ),
            (
                r#"{"status":"running","status_detail":"encoding","eta_seconds":3}"#,
                r#"{"message":"m"}"#,
                r#"{"status":"running","status_detail":"encoding","eta_seconds":3,"message":"m"}"#,
            ),
            (
                r#"{"status":"running","progress":25,"current":1,"total":4}"#,
                r#"{"current":2}"#,
                r#"{"status":"running","current":2,"total":4}"#,
            ),
            (
                r#"{"status":"running","progress":25}"#,
                r#"{"status":"success"}"#,
                r#"{"status":"success"}"#,
            ),
            (
                r#"{"status":"running","progress":25}"#,
                r#"{"current":2}"#,
                r#"{"status":"running","progress":25,"current":2}"#,
            ),
            (
                r#"{"status":"failed","progress":25,"current":1,"total":4}"#,
                r#"{"status":"queued","attempt":2}"#,
                r#"{"status":"queued","total":4,"attempt":2}"#,
            ),
            (
                r#"{"status":"running","progress":25,"attempt":2}"#,
                r#"{"attempt":2}"#,
                r#"{"status":"running","progress":25,"attempt":2}"#,
            ),
        ] {
            assert_eq!(merge(last, patch), result, "{last} + {patch}");
        }
    }

    #[test]
    fn a_patch_is_an_object_with_each_name_once() {
        let refused = |patch: &str| merge_patch(b"{}", patch.as_bytes()).unwrap_err().code();
        assert_eq!(refused("[1]"), "not_an_object");
        assert_eq!(refused("3"), "not_an_object");
        assert_eq!(refused(r#"{"a":1,"a":2}"#), "duplicate_field");
        assert_eq!(refused("{"), "bad_json");
        assert_eq!(refused(r#"{"a":{"b":2,"b":3}}"#), "duplicate_field");
        assert_eq!(refused(r#"{"a":["\ud83d"]}"#), "bad_field");
    }
}
