//! An ending that is sent on although something in it is wrong.
//!
//! On a bus there is nobody to answer: a worker whose ending is refused never learns of it, and whoever
//! watches waits for ever. So an ending loses what is wrong in it, and names what it lost; it is not refused.
//! What is right with a document is the affair of the reader beside this.
//!
//! Invariant: the document that comes of it is one that the strict reader takes.

use std::borrow::Cow;
use std::cmp::Reverse;

use hashbrown::HashMap;

use crate::id::{JobId, Name, Owner};

use super::field::Field;
use super::refusal::{Problem, Quoted, Refusal};
use super::rule::{push_mended, shown};
use super::status::Status;
use super::text::{
    Member, check_depth, check_json, is_not_finite, read_elements, read_members, string_end,
    unescape, without_mark,
};
use super::{Draft, JobDocument, Sent, value};

/// The largest update that is looked into; NATS itself advises against larger ones.
pub(super) const MAX_BYTES: usize = 8 * 1024 * 1024;
/// How many members are looked into, beside those that the relay knows: more than fit an ordinary limit.
const MAX_MEMBERS: usize = 10_000;
/// How many lost fields are noted, and named in each list.
const MAX_LOST: usize = 64;
const MAX_NAMES: usize = 32;
/// Characters that are left of a text that is too long.
const SHORT_CHARS: usize = 1000;
/// The lists of lost fields in the document.
const DROPPED: &str = "dropped_fields";
const TRUNCATED: &str = "truncated";

/// What is known of a job already, for where its ending says it wrongly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// The attempt under way.
    pub(crate) attempt: u32,
    /// The group the job belongs to.
    pub(crate) parent: Option<&'a Name>,
}

/// An ending without what was wrong in it.
#[derive(Debug)]
pub(crate) struct Salvaged {
    pub(crate) document: JobDocument,
    /// What it lost, each with its field and the reason; the first of them, if they are many.
    pub(crate) dropped: Vec<Refusal>,
}

/// Notes of what is lost, the first of them.
#[derive(Default)]
struct Lost {
    wrong: Vec<Refusal>,
    too_large: Vec<Refusal>,
}

impl Lost {
    fn note(&mut self, key: &str, problem: Problem) {
        self.refuse(|| Refusal::field_problem(shown(key).to_string(), problem));
    }

    fn refuse(&mut self, refusal: impl FnOnce() -> Refusal) {
        if self.wrong.len() < MAX_LOST {
            self.wrong.push(refusal());
        }
    }
}

/// A member of the ending that is kept, with what is kept of its value.
struct Kept<'a> {
    name: Cow<'a, str>,
    key: &'a str,
    value: Cow<'a, str>,
}

impl JobDocument {
    /// Reads an ending that [`JobDocument::parse`] refused, or that is larger than `limit` bytes. `None`: it is
    /// not a whole object with a known final status.
    pub(crate) fn salvage(
        payload: &[u8],
        job: &JobId,
        owner: &Owner,
        known: Known<'_>,
        limit: usize,
    ) -> Option<Salvaged> {
        Self::mend(payload, job, owner, known, limit, Status::is_terminal)
    }

    /// Reads a document that was accepted before, be it by an older version that took more.
    ///
    /// # Errors
    /// When it is not a whole object with a known status.
    pub fn restore(payload: &[u8], job: &JobId, owner: &Owner) -> Result<Self, Refusal> {
        let known = Known {
            attempt: 1,
            parent: None,
        };
        Self::parse(payload, job, owner).or_else(|refusal| {
            let mended = Self::mend(payload, job, owner, known, usize::MAX, |_| true);
            mended.map(|mended| mended.document).ok_or(refusal)
        })
    }

    fn mend(
        payload: &[u8],
        job: &JobId,
        owner: &Owner,
        known: Known<'_>,
        limit: usize,
        is_wanted: impl Fn(Status) -> bool,
    ) -> Option<Salvaged> {
        if payload.len() > MAX_BYTES {
            return None;
        }
        let text = String::from_utf8_lossy(payload);
        let mut lost = Lost::default();
        let mut kept = keep_last_of_each(split(without_mark(&text))?, &mut lost);
        let status = kept.iter().find(|member| member.name == "status")?;
        let (status, _) = value::status(&status.value).ok()?;
        if !is_wanted(status) {
            return None;
        }
        let says = |field: Field| {
            let mut members = kept.iter().filter(|member| member.value != "null");
            members.any(|member| member.name == field.as_str())
        };
        let (says_attempt, says_parent) = (says(Field::Attempt), says(Field::ParentId));
        if matches!(text, Cow::Owned(_)) {
            let replaced = |member: &&Kept<'_>| member.value.contains('\u{fffd}');
            for member in kept.iter().filter(replaced) {
                lost.note(member.key, Problem::NotUtf8);
            }
        }
        kept.retain_mut(|member| clean(member, &mut lost));
        if payload.len() > limit {
            shrink(&mut kept, limit, &mut lost);
        }
        let members: Vec<_> = kept.iter().map(Kept::as_member).collect();
        let mut sent = Sent::sort(&members);
        sent.dropped = Some(Vec::new());
        sent.agrees("job_id", Field::JobId, job).ok()?;
        sent.agrees("owner", Field::Owner, owner).ok()?;
        let mut draft = Draft::check(&mut sent).ok()?;
        if says_attempt && sent.raw(Field::Attempt).is_none() {
            draft.document.attempt = known.attempt.max(1);
        }
        if says_parent && sent.raw(Field::ParentId).is_none() {
            draft.document.parent_id = known.parent.cloned();
        }
        let mut dropped = sent.dropped.take().unwrap_or_default();
        dropped.append(&mut lost.wrong);
        dropped.append(&mut lost.too_large);
        let mut document = draft.write(&sent, job, owner, text.len().min(limit)).ok()?;
        document.name_lost(&dropped);
        Some(Salvaged { document, dropped })
    }

    /// Names in the document what was lost.
    fn name_lost(&mut self, dropped: &[Refusal]) {
        let (too_large, wrong): (Vec<_>, Vec<_>) =
            dropped.iter().partition(|refusal| refusal.is_too_large());
        for (list, lost) in [(DROPPED, wrong), (TRUNCATED, too_large)] {
            let mut names: Vec<_> = lost.into_iter().filter_map(Refusal::field).collect();
            names.dedup();
            names.truncate(MAX_NAMES);
            if names.is_empty() {
                continue;
            }
            // A list of texts can always be written as JSON.
            let names = serde_json::to_string(&names).unwrap_or_default();
            self.json.pop();
            self.json.push_str(&format!(",\"{list}\":{names}}}"));
        }
    }
}

impl Kept<'_> {
    fn as_member(&self) -> Member<'_> {
        Member {
            name: Cow::Borrowed(&self.name),
            key: self.key,
            value: &self.value,
        }
    }
}

/// The members of the object `text`, though their values may not be JSON. `None`: it is not an object, or not
/// a whole one. Of very many only the known ones are given, and the first.
fn split(text: &str) -> Option<Vec<(&str, &str)>> {
    let bytes = text.as_bytes();
    let skip_space = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    };
    let mut members = Vec::new();
    let mut at = skip_space(0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at = skip_space(at + 1);
    let mut closed = bytes.get(at) == Some(&b'}');
    while !closed {
        let key = at;
        if bytes.get(key) != Some(&b'"') {
            return None;
        }
        at = string_end(bytes, key);
        let key = text.get(key..at)?;
        at = skip_space(at);
        if bytes.get(at) != Some(&b':') {
            return None;
        }
        let value = skip_space(at + 1);
        at = value_end(bytes, value);
        let is_known = || key.contains('\\') || Field::named(key.trim_matches('"')).is_some();
        if members.len() <= MAX_MEMBERS || is_known() {
            members.push((key, text.get(value..at)?.trim_ascii_end()));
        }
        at = skip_space(at);
        closed = match bytes.get(at)? {
            b',' => false,
            b'}' => true,
            _ => return None,
        };
        if !closed {
            at = skip_space(at + 1);
        }
    }
    (skip_space(at + 1) == bytes.len()).then_some(members)
}

/// Where the value that begins at `from` ends, be it JSON or not.
fn value_end(bytes: &[u8], from: usize) -> usize {
    let (mut depth, mut at) = (0usize, from);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at = string_end(bytes, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Of members of one name the last counts, as most readers have it.
fn keep_last_of_each<'a>(members: Vec<(&'a str, &'a str)>, lost: &mut Lost) -> Vec<Kept<'a>> {
    let mut kept = Vec::with_capacity(members.len());
    for (key, value) in members {
        match unescape(key) {
            // What is lost is listed anew.
            Some(name) if name == DROPPED || name == TRUNCATED => {}
            Some(name) => kept.push(Kept {
                name,
                key,
                value: Cow::Borrowed(value),
            }),
            None => lost.refuse(|| Refusal::broken_name(key)),
        }
    }
    let last: HashMap<Box<str>, usize> = (kept.iter().enumerate())
        .map(|(at, member)| (Box::from(&*member.name), at))
        .collect();
    let mut at = 0;
    kept.retain(|member| {
        let counts = last[&*member.name] == at;
        at += 1;
        if !counts {
            lost.refuse(|| Refusal::DuplicateField {
                field: shown(member.key).to_string().into(),
            });
        }
        counts
    });
    kept
}

/// Takes out of a value what is wrong in it; false where nothing is left.
fn clean(member: &mut Kept<'_>, lost: &mut Lost) -> bool {
    let raw = &*member.value;
    if check_depth(raw.as_bytes()).is_err() {
        lost.note(member.key, Problem::TooDeep);
        return false;
    }
    if check_json(raw).is_err() {
        let found = Quoted::new(raw);
        let problem = if is_not_finite(raw) {
            Problem::NotFinite { found }
        } else {
            Problem::NotJson { found }
        };
        lost.note(member.key, problem);
        return false;
    }
    let mut line = String::with_capacity(raw.len());
    let field = member.key.trim_matches('"');
    push_mended(&mut line, field, raw, &mut |refusal| {
        lost.refuse(|| refusal)
    });
    let cleaned = match &*member.name {
        "error" => clean_error(&line, lost),
        "tasks" => clean_tasks(&line, lost),
        _ => None,
    };
    member.value = Cow::Owned(cleaned.unwrap_or(line));
    true
}

/// An `error` without the parts that are wrong. What is wrong as a whole stays, for the reader to refuse.
fn clean_error(raw: &str, lost: &mut Lost) -> Option<String> {
    let path = |part: &str| format!("error.{part}");
    let parts = raw.starts_with('{');
    parts.then(|| clean_parts(raw, value::error_part, lost, path))?
}

/// `tasks` without the parts that are wrong; a task that is none at all is left out.
fn clean_tasks(raw: &str, lost: &mut Lost) -> Option<String> {
    let tasks = raw.starts_with('[').then(|| read_elements(raw).ok())??;
    let mut out = String::with_capacity(raw.len());
    for (at, task) in tasks.into_iter().enumerate() {
        let path = |part: &str| format!("tasks[{at}].{part}");
        let parts = task.get().starts_with('{');
        let cleaned = parts.then(|| clean_parts(task.get(), value::task_part, lost, path));
        let cleaned = cleaned.flatten().unwrap_or_else(|| task.get().to_owned());
        match value::check_task(&cleaned, at) {
            Ok(()) => {
                out.push(if out.is_empty() { '[' } else { ',' });
                out.push_str(&cleaned);
            }
            Err(refusal) => lost.refuse(|| refusal),
        }
    }
    if out.is_empty() {
        out.push('[');
    }
    out.push(']');
    Some(out)
}

/// The object `raw` without the members that `check` finds wrong.
fn clean_parts(
    raw: &str,
    check: impl Fn(&str, &str) -> Result<(), Problem>,
    lost: &mut Lost,
    path: impl Fn(&str) -> String,
) -> Option<String> {
    let members = read_members(raw).ok()?;
    let mut out = String::with_capacity(raw.len());
    for part in &members {
        let checked = match part.value {
            "null" => Ok(()),
            value => check(&part.name, value),
        };
        if let Err(problem) = checked {
            lost.refuse(|| Refusal::field_problem(path(&part.name), problem));
            continue;
        }
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(part.key);
        out.push(':');
        out.push_str(part.value);
    }
    if out.is_empty() {
        out.push('{');
    }
    out.push('}');
    Some(out)
}

/// Shortens texts and takes out other values, the largest first, until together they are at most `limit` bytes.
fn shrink(kept: &mut Vec<Kept<'_>>, limit: usize, lost: &mut Lost) {
    let size = |member: &Kept<'_>| member.key.len() + member.value.len() + 2;
    let mut total: usize = kept.iter().map(size).sum();
    let mut by_size: Vec<usize> = (0..kept.len()).collect();
    by_size.sort_by_key(|at| Reverse(size(&kept[*at])));
    for at in by_size {
        if total <= limit {
            break;
        }
        let member = &mut kept[at];
        if member.name == "status" {
            continue;
        }
        let (before, bytes) = (size(member), member.value.len());
        if lost.too_large.len() < MAX_LOST {
            let field = shown(member.key).to_string();
            let problem = Problem::TooLarge { bytes, limit };
            lost.too_large.push(Refusal::field_problem(field, problem));
        }
        let short = match &*member.name {
            "message" => short_text(&member.value),
            "error" => short_error(&member.value),
            _ => None,
        };
        // No value is an empty text.
        member.value = Cow::Owned(short.unwrap_or_default());
        total = total.saturating_sub(before) + size(member);
    }
    kept.retain(|member| !member.value.is_empty());
}

/// The beginning of the JSON string `raw`.
fn short_text(raw: &str) -> Option<String> {
    let text = raw.starts_with('"').then(|| unescape(raw))??;
    let short = match text.char_indices().nth(SHORT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    };
    serde_json::to_string(&short).ok()
}

/// The parts of an `error` that the relay knows, as texts that are not too long.
fn short_error(raw: &str) -> Option<String> {
    if raw.starts_with('"') {
        return short_text(raw);
    }
    let members = read_members(raw).ok()?;
    let mut out = String::new();
    for part in &members {
        let short = match &*part.name {
            "message" => short_text(part.value),
            "code" if part.value.starts_with('"') => short_text(part.value),
            "code" | "recoverable" if part.value.len() <= SHORT_CHARS => {
                Some(part.value.to_owned())
            }
            _ => None,
        };
        if let Some(short) = short {
            out.push(if out.is_empty() { '{' } else { ',' });
            out.push_str(part.key);
            out.push(':');
            out.push_str(&short);
        }
    }
    if out.is_empty() {
        return None;
    }
    out.push('}');
    Some(out)
}

#[cfg(test)]
mod tests;
