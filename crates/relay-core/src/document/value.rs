//! What each kind of field may hold: readers from raw JSON to a checked value.
//!
//! Knows kinds of values, not which field they belong to; the caller names the field.
//!
//! Invariant: a number handed out is finite.

use std::borrow::Cow;

use crate::id::Name;
use crate::moment::WallTime;

use super::refusal::{Problem, Quoted, Refusal};
use super::rule::is_finite;
use super::status::Status;
use super::text::{Member, push_compact, read_elements, read_members, unescape};

const PERCENT: &str = "a number from 0 to 100";

/// The text in the JSON string `raw`.
pub(super) fn string<'a>(raw: &'a str, meant: &'static str) -> Result<Cow<'a, str>, Problem> {
    if !raw.starts_with('"') {
        return Err(Problem::kind(raw, meant));
    }
    unescape(raw).ok_or_else(|| Problem::BrokenText {
        found: Quoted::new(raw),
    })
}

/// The finite number `raw`.
pub(super) fn number(raw: &str, meant: &'static str) -> Result<f64, Problem> {
    if !raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Err(Problem::kind(raw, meant));
    }
    match raw.parse::<f64>() {
        // Adding zero turns -0 into 0, so that nobody sees a sign.
        Ok(number) if is_finite(raw) => Ok(number + 0.0),
        _ => Err(Problem::BeyondDouble {
            found: Quoted::new(raw),
        }),
    }
}

/// A number from 0 to 100.
pub(super) fn percent(raw: &str) -> Result<f64, Problem> {
    let percent = number(raw, PERCENT)?;
    if (0.0..=100.0).contains(&percent) {
        return Ok(percent);
    }
    Err(Problem::Range {
        found: Quoted::new(raw),
        range: "0 to 100",
    })
}

/// A number that is not negative.
pub(super) fn amount(raw: &str) -> Result<f64, Problem> {
    let amount = number(raw, "a number that is not negative")?;
    if amount >= 0.0 {
        return Ok(amount);
    }
    Err(Problem::Range {
        found: Quoted::new(raw),
        range: "0 and above",
    })
}

/// An attempt: an integer from 1. `2.0` is an integer in JSON.
pub(super) fn attempt(raw: &str) -> Result<u32, Problem> {
    let attempt = number(raw, "an integer from 1")?;
    if (1.0..=f64::from(u32::MAX)).contains(&attempt) && attempt.fract() == 0.0 {
        return Ok(attempt as u32);
    }
    Err(Problem::Range {
        found: Quoted::new(raw),
        range: "the integers from 1 to 4294967295",
    })
}

/// A truth value.
pub(super) fn boolean(raw: &str) -> Result<(), Problem> {
    match raw {
        "true" | "false" => Ok(()),
        _ => Err(Problem::kind(raw, "true or false")),
    }
}

/// An RFC 3339 time.
pub(super) fn time(raw: &str) -> Result<WallTime, Problem> {
    let text = string(raw, "an RFC 3339 time")?;
    WallTime::parse_rfc3339(&text).ok_or_else(|| Problem::NotATime {
        found: Quoted::new(raw),
    })
}

/// A name.
pub(super) fn name(raw: &str) -> Result<Name, Problem> {
    let text = string(raw, "a name")?;
    Name::parse(&text).map_err(|source| Problem::NotAName {
        found: Quoted::new(raw),
        source,
    })
}

/// An object, whatever is in it.
pub(super) fn object(raw: &str) -> Result<(), Problem> {
    if raw.starts_with('{') {
        return Ok(());
    }
    Err(Problem::kind(raw, "an object"))
}

/// A status, and whether the worker's word for it was another.
pub(super) fn status(raw: &str) -> Result<(Status, bool), Problem> {
    const MEANT: &str = "one of queued, running, completed, failed, cancelled";
    let word = string(raw, MEANT)?;
    match Status::from_word(&word) {
        Some(status) => Ok((status, word != status.as_str())),
        None => Err(Problem::UnknownStatus {
            found: Quoted::new(raw),
        }),
    }
}

/// Takes an `error`: an object, or a plain string, which becomes its `message`.
pub(super) fn error(raw: &str) -> Result<Cow<'_, str>, Refusal> {
    let refuse = |field: &'static str| move |problem| Refusal::field_problem(field, problem);
    if raw.starts_with('"') {
        string(raw, "a string").map_err(refuse("error"))?;
        return Ok(Cow::Owned(format!("{{\"message\":{raw}}}")));
    }
    if !raw.starts_with('{') {
        let meant = "an object with code, message, recoverable, or a string";
        return Err(refuse("error")(Problem::kind(raw, meant)));
    }
    for part in read_members(raw)? {
        if part.value != "null" {
            let checked = error_part(&part.name, part.value);
            let named = |problem| Refusal::field_problem(format!("error.{}", part.name), problem);
            checked.map_err(named)?;
        }
    }
    Ok(Cow::Borrowed(raw))
}

/// Checks a member of an `error`.
pub(super) fn error_part(name: &str, raw: &str) -> Result<(), Problem> {
    match name {
        // Many workers know their failure by a number; an ending is not refused over that.
        "code" if !raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            string(raw, "a string or a number").map(drop)
        }
        "message" => string(raw, "a string").map(drop),
        "recoverable" => boolean(raw),
        _ => Ok(()),
    }
}

/// Checks a member of a task.
pub(super) fn task_part(name: &str, raw: &str) -> Result<(), Problem> {
    match name {
        "name" | "message" => string(raw, "a string").map(drop),
        "status" => status(raw).map(drop),
        "progress" => percent(raw).map(drop),
        _ => Ok(()),
    }
}

/// Checks one element of `tasks`.
pub(super) fn check_task(raw: &str, at: usize) -> Result<(), Refusal> {
    Task::read(raw, at).map(drop)
}

/// Takes `tasks`: an array of objects with a `name`. Status words are mapped as the job's own are, the
/// original kept in the task's `status_detail`; all else stays as it came.
pub(super) fn tasks(raw: &str) -> Result<Cow<'_, str>, Refusal> {
    if !raw.starts_with('[') {
        let problem = Problem::kind(raw, "an array of tasks");
        return Err(Refusal::field_problem("tasks", problem));
    }
    let mut tasks = Vec::new();
    let mut any_mapped = false;
    for (at, raw) in read_elements(raw)?.into_iter().enumerate() {
        let task = Task::read(raw.get(), at)?;
        any_mapped |= task.mapped.is_some();
        tasks.push(task);
    }
    if !any_mapped {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len() + 32 * tasks.len());
    for task in &tasks {
        out.push(if out.is_empty() { '[' } else { ',' });
        task.write(&mut out);
    }
    out.push(']');
    Ok(Cow::Owned(out))
}

/// One element of `tasks`.
struct Task<'a> {
    raw: &'a str,
    members: Vec<Member<'a>>,
    /// The status that the worker had another word for.
    mapped: Option<Status>,
}

impl<'a> Task<'a> {
    fn read(raw: &'a str, at: usize) -> Result<Self, Refusal> {
        let refuse =
            |part: &str, problem| Refusal::field_problem(format!("tasks[{at}]{part}"), problem);
        if !raw.starts_with('{') {
            return Err(refuse("", Problem::kind(raw, "an object with a name")));
        }
        let members = read_members(raw)?;
        let (mut named, mut mapped) = (false, None);
        for part in members.iter().filter(|part| part.value != "null") {
            task_part(&part.name, part.value)
                .map_err(|problem| refuse(&format!(".{}", part.name), problem))?;
            match &*part.name {
                "name" => named = true,
                "status" => {
                    let read = status(part.value).ok();
                    mapped = read.and_then(|(status, other)| other.then_some(status));
                }
                _ => {}
            }
        }
        if !named {
            let meant = "a string to call the task by";
            return Err(refuse(".name", Problem::Missing { meant }));
        }
        Ok(Self {
            raw,
            members,
            mapped,
        })
    }

    fn write(&self, out: &mut String) {
        let Some(status) = self.mapped else {
            push_compact(out, self.raw);
            return;
        };
        let has_detail = self.members.iter().any(|m| m.name == "status_detail");
        let mut separator = '{';
        for part in &self.members {
            out.push(separator);
            separator = ',';
            out.push_str(part.key);
            out.push(':');
            if part.name != "status" {
                push_compact(out, part.value);
                continue;
            }
            out.push('"');
            out.push_str(status.as_str());
            out.push('"');
            if !has_detail {
                out.push_str(",\"status_detail\":");
                out.push_str(part.value);
            }
        }
        out.push('}');
    }
}
