//! The job document: what workers publish and what native clients receive.
//!
//! A document is read, checked and put into one canonical text here, once; after that it is copied, never
//! read again. Which document may follow which is the guard's business, and where it goes is the outbox's.
//!
//! Invariant: the text of a [`JobDocument`] is one line of valid JSON with a `job_id`, an `owner` and a
//! canonical `status`, no name twice at the top, and reads back as the same document.

mod field;
mod merge;
mod milestone;
mod refusal;
mod removal;
mod rule;
mod salvage;
#[cfg(test)]
mod schema;
mod status;
mod text;
mod value;

use std::borrow::Cow;
use std::ops::Range;

use crate::id::{JobId, Name, Owner};
use crate::moment::WallTime;

pub use merge::merge_patch;
pub use milestone::MilestoneData;
pub use refusal::{Problem, Quoted, Refusal};
pub use removal::Removal;
pub use rule::readable;
pub(crate) use salvage::Known;
pub use status::Status;

use field::Field;
use rule::push_valid;
use text::{Member, read_members, read_object, text_of};

/// The deepest nesting taken. serde_json's own limit does not count inside raw values.
pub(crate) const MAX_DEPTH: usize = 64;

/// The complete state of one job, accepted and normalised.
///
/// Only `status` must be there. Synonyms of the five statuses are mapped and the worker's word kept in
/// `status_detail`; `null` in a known field counts as absence; a plain string in `error` becomes its
/// `message`. Fields the relay does not know keep their order and, but for white space between tokens,
/// their bytes.
///
/// Without a `progress` there is one all the same if it can be known: 100 when the job is completed,
/// else `current` of `total`, rounded down to hundredths and at most 100, else what the attempt had come to.
#[derive(Debug, Clone, PartialEq)]
pub struct JobDocument {
    /// The canonical text.
    json: String,
    /// Where in the text a `progress` goes that is taken over.
    progress_place: usize,
    /// Where in the text an estimated `eta_seconds` goes.
    eta_place: usize,
    /// Where in the text the value of `created_at` stands; empty, where the member goes.
    created_at: Range<usize>,
    status: Status,
    attempt: u32,
    progress: Option<f64>,
    eta_seconds: Option<f64>,
    parent_id: Option<Name>,
    weight: Option<f64>,
    ts: Option<WallTime>,
}

impl JobDocument {
    /// Reads what a worker published for `job` of `owner`.
    ///
    /// # Errors
    /// Says which field is wrong and what was meant, so that the worker's author can mend it.
    pub fn parse(payload: &[u8], job: &JobId, owner: &Owner) -> Result<Self, Refusal> {
        let text = text_of(payload)?;
        let members = read_object(text, "a state")?;
        let mut sent = Sent::sort(&members);
        sent.agrees("job_id", Field::JobId, job)?;
        sent.agrees("owner", Field::Owner, owner)?;
        Draft::check(&mut sent)?.write(&sent, job, owner, text.len())
    }

    /// Where the job stands.
    pub(crate) fn status(&self) -> Status {
        self.status
    }

    /// From 0 to 100, if it is known.
    pub(crate) fn progress(&self) -> Option<f64> {
        self.progress
    }

    /// Which try at the job this is, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The job this one is a part of.
    pub fn parent_id(&self) -> Option<&Name> {
        self.parent_id.as_ref()
    }

    /// How much this job counts among its parent's.
    pub(crate) fn weight(&self) -> Option<f64> {
        self.weight
    }

    /// The worker's clock at publishing.
    pub fn ts(&self) -> Option<WallTime> {
        self.ts
    }

    /// Seconds left, as the worker or an estimate has it.
    #[cfg(test)]
    pub(crate) fn eta_seconds(&self) -> Option<f64> {
        self.eta_seconds
    }

    /// Adds the relay's estimate of the seconds left, to a tenth, marked `eta_estimated`.
    ///
    /// Does nothing when there is an `eta_seconds` already, when the job has ended, or when `seconds` is
    /// not a number of seconds.
    pub(crate) fn estimate_eta(&mut self, seconds: f64) {
        let sensible = seconds.is_finite() && seconds >= 0.0;
        if self.eta_seconds.is_some() || self.status.is_terminal() || !sensible {
            return;
        }
        let seconds = (seconds * 10.0).round() / 10.0;
        let text = format!(",\"eta_seconds\":{seconds},\"eta_estimated\":true");
        self.json.insert_str(self.eta_place, &text);
        self.created_at.start += text.len();
        self.created_at.end += text.len();
        self.eta_seconds = Some(seconds);
    }

    /// The `created_at` as it is written, with its quotes.
    pub(crate) fn created_at(&self) -> Option<&str> {
        let text = self.json.get(self.created_at.clone())?;
        Some(text).filter(|text| !text.is_empty())
    }

    /// Takes over what earlier states of the attempt said: `progress` where this one has none, and `created_at`
    /// in any case.
    pub(crate) fn carry(&mut self, progress: Option<f64>, created_at: Option<&str>) {
        if let Some(first) = created_at
            && self.created_at() != Some(first)
        {
            let Range { start, end } = self.created_at;
            let key = match start == end {
                true => ",\"created_at\":",
                false => "",
            };
            self.json
                .replace_range(start..end, &format!("{key}{first}"));
            let start = start + key.len();
            self.created_at = start..start + first.len();
        }
        if let Some(progress) = progress
            && self.progress.is_none()
        {
            let text = format!(",\"progress\":{progress}");
            self.json.insert_str(self.progress_place, &text);
            self.eta_place += text.len();
            self.created_at.start += text.len();
            self.created_at.end += text.len();
            self.progress = Some(progress);
        }
    }

    /// The kind a canonical document names.
    pub(crate) fn kind_in(json: &[u8]) -> Option<String> {
        let members = read_members(std::str::from_utf8(json).ok()?).ok()?;
        let kind = members.iter().find(|member| member.name == "kind")?;
        let kind = value::string(kind.value, "a string").ok()?;
        Some(kind.into_owned())
    }

    /// The document as canonical JSON on one line: `job_id` and `owner`, the known fields in the order of
    /// the schema, then the others in the order they came.
    pub(crate) fn as_json(&self) -> &str {
        &self.json
    }

    /// The canonical text itself, where the document is not needed any more.
    pub fn into_json(self) -> Vec<u8> {
        self.json.into_bytes()
    }
}

/// What was sent, known fields by their place; `null` in one of them is as good as nothing.
struct Sent<'a> {
    known: [Option<&'a str>; Field::ALL.len()],
    unknown: Vec<&'a Member<'a>>,
    /// What is wrong in it and was left out; `None` where it is refused instead.
    dropped: Option<Vec<Refusal>>,
}

impl<'a> Sent<'a> {
    fn sort(members: &'a [Member<'a>]) -> Self {
        let mut sent = Self {
            known: [None; Field::ALL.len()],
            unknown: Vec::new(),
            dropped: None,
        };
        for member in members {
            match Field::named(&member.name) {
                None => sent.unknown.push(member),
                Some(field) if member.value != "null" => {
                    sent.known[field as usize] = Some(member.value);
                }
                Some(_) => {}
            }
        }
        sent
    }

    fn raw(&self, field: Field) -> Option<&'a str> {
        self.known[field as usize]
    }

    /// Checks the field with `read` if it is there.
    fn read<T>(
        &mut self,
        field: Field,
        read: impl FnOnce(&'a str) -> Result<T, Problem>,
    ) -> Result<Option<T>, Refusal> {
        match self.raw(field).map(read).transpose() {
            Ok(read) => Ok(read),
            Err(problem) => {
                self.refuse(field, Refusal::field_problem(field.as_str(), problem))?;
                Ok(None)
            }
        }
    }

    /// Leaves a field out that is not as it should be, where it may be left out.
    fn refuse(&mut self, field: Field, refusal: Refusal) -> Result<(), Refusal> {
        match &mut self.dropped {
            None => Err(refusal),
            Some(dropped) => {
                dropped.push(refusal);
                self.known[field as usize] = None;
                Ok(())
            }
        }
    }

    fn text(&mut self, field: Field) -> Result<Option<Cow<'a, str>>, Refusal> {
        self.read(field, |raw| value::string(raw, "a string"))
    }

    /// Checks a field that has fields of its own, and names these itself.
    fn part<T>(
        &mut self,
        field: Field,
        read: impl FnOnce(&'a str) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        match self.raw(field).map(read).transpose() {
            Ok(read) => Ok(read),
            Err(refusal) => {
                self.refuse(field, refusal)?;
                Ok(None)
            }
        }
    }

    fn agrees(&mut self, name: &'static str, field: Field, given: &Name) -> Result<(), Refusal> {
        match self.text(field)? {
            Some(said) if said != given.as_str() => {
                let contradiction = Refusal::Contradiction {
                    field: name,
                    said: Quoted::new(self.raw(field).unwrap_or_default()),
                    given: given.clone(),
                };
                self.refuse(field, contradiction)
            }
            _ => Ok(()),
        }
    }
}

/// A checked document that has no text yet.
struct Draft<'a> {
    document: JobDocument,
    /// The worker's word for the status, if it is not ours.
    synonym: Option<&'a str>,
    tasks: Option<Cow<'a, str>>,
    error: Option<Cow<'a, str>>,
}

impl<'a> Draft<'a> {
    fn check(sent: &mut Sent<'a>) -> Result<Self, Refusal> {
        let (status, mapped) = sent
            .read(Field::Status, value::status)?
            .ok_or(Refusal::MissingStatus)?;
        let attempt = sent.read(Field::Attempt, value::attempt)?.unwrap_or(1);
        let progress = progress(sent, status)?;
        // Checked and not kept: they leave as they came, and nothing here reads them.
        for field in [Field::Kind, Field::Stage, Field::Message] {
            sent.text(field)?;
        }
        let document = JobDocument {
            json: String::new(),
            progress_place: 0,
            eta_place: 0,
            created_at: 0..0,
            status,
            attempt,
            progress,
            eta_seconds: sent.read(Field::EtaSeconds, value::amount)?,
            parent_id: sent.read(Field::ParentId, value::name)?,
            weight: sent.read(Field::Weight, value::amount)?,
            ts: sent.read(Field::Ts, value::time)?,
        };
        sent.text(Field::StatusDetail)?;
        sent.text(Field::Unit)?;
        sent.text(Field::ResultUrl)?;
        sent.read(Field::EtaEstimated, value::boolean)?;
        sent.read(Field::CreatedAt, value::time)?;
        sent.read(Field::UpdatedAt, value::time)?;
        sent.read(Field::Meta, value::object)?;
        Ok(Self {
            document,
            synonym: sent.raw(Field::Status).filter(|_| mapped),
            tasks: sent.part(Field::Tasks, value::tasks)?,
            error: sent.part(Field::Error, value::error)?,
        })
    }

    fn write(
        mut self,
        sent: &Sent<'a>,
        job: &JobId,
        owner: &Owner,
        sent_bytes: usize,
    ) -> Result<JobDocument, Refusal> {
        let mut out = String::with_capacity(sent_bytes + 160);
        for field in Field::ALL {
            self.write_field(&mut out, *field, sent, job, owner)?;
            let written = out.len();
            match field {
                Field::Progress => self.document.progress_place = written,
                Field::EtaEstimated => self.document.eta_place = written,
                Field::CreatedAt => {
                    let length = sent.raw(Field::CreatedAt).map_or(0, str::len);
                    self.document.created_at = written - length..written;
                }
                _ => {}
            }
        }
        for member in &sent.unknown {
            out.push(',');
            out.push_str(member.key);
            out.push(':');
            push_valid(&mut out, member.key.trim_matches('"'), member.value)?;
        }
        out.push('}');
        self.document.json = out;
        Ok(self.document)
    }

    fn write_field(
        &self,
        out: &mut String,
        field: Field,
        sent: &Sent<'_>,
        job: &JobId,
        owner: &Owner,
    ) -> Result<(), Refusal> {
        let raw = sent.raw(field);
        match field {
            Field::JobId => push_name(out, '{', field, job.as_str()),
            Field::Owner => push_name(out, ',', field, owner.as_str()),
            Field::Status => push_name(out, ',', field, self.document.status.as_str()),
            Field::StatusDetail => push_field(out, field, raw.or(self.synonym))?,
            Field::Attempt if raw.is_some() || self.document.attempt != 1 => {
                push_field(out, field, Some(&self.document.attempt.to_string()))?;
            }
            Field::Progress => match (raw, self.document.progress) {
                (None, Some(derived)) => push_field(out, field, Some(&derived.to_string()))?,
                _ => push_field(out, field, raw)?,
            },
            // Without a number of seconds it says nothing, and an estimate would bring its own.
            Field::EtaEstimated if self.document.eta_seconds.is_none() => {}
            Field::ParentId => {
                if let Some(parent) = &self.document.parent_id {
                    push_name(out, ',', field, parent.as_str());
                }
            }
            Field::Tasks => push_field(out, field, self.tasks.as_deref())?,
            Field::Error => push_field(out, field, self.error.as_deref())?,
            _ => push_field(out, field, raw)?,
        }
        Ok(())
    }
}

/// The worker's progress, or what can be known of it.
fn progress(sent: &mut Sent<'_>, status: Status) -> Result<Option<f64>, Refusal> {
    let given = sent.read(Field::Progress, value::percent)?;
    let current = sent.read(Field::Current, value::amount)?;
    let total = sent.read(Field::Total, value::amount)?;
    if given.is_some() {
        return Ok(given);
    }
    if status == Status::Completed {
        return Ok(Some(100.0));
    }
    Ok(match (current, total) {
        (Some(current), Some(total)) if total > 0.0 => Some(percentage(current, total)),
        _ => None,
    })
}

/// Rounded down to hundredths: nobody is to read 100 before it is.
fn percentage(current: f64, total: f64) -> f64 {
    if current >= total {
        return 100.0;
    }
    // The little extra keeps 29 of 100 from becoming 28.99.
    let hundredths = (current / total * 10_000.0 + 1e-9).floor();
    hundredths.min(9_999.0) / 100.0
}

fn push_name(out: &mut String, separator: char, field: Field, text: &str) {
    out.push(separator);
    push_key(out, field);
    out.push('"');
    out.push_str(text);
    out.push('"');
}

fn push_field(out: &mut String, field: Field, raw: Option<&str>) -> Result<(), Refusal> {
    let Some(raw) = raw else {
        return Ok(());
    };
    out.push(',');
    push_key(out, field);
    push_valid(out, field.as_str(), raw)
}

fn push_key(out: &mut String, field: Field) {
    out.push('"');
    out.push_str(field.as_str());
    out.push_str("\":");
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
