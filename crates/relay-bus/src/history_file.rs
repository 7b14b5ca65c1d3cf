//! The file an embedded bus keeps its jobs in over a restart.
//!
//! JSON lines: a head, then each job followed by its updates. It is written whole, beside the old one, and
//! takes the old one's place in one step, so what is read is always one moment's truth.
//!
//! A file written while the relay stops is complete: the epoch goes on, and with it every cursor. One
//! written on the way may lack the last updates, whose numbers would be given out a second time; so its
//! jobs come back in a new epoch, and cursors from before mean a snapshot.
//!
//! Knows nothing of the table: a [`History`] goes in and comes out.
//!
//! Invariant: an update that makes the reading panic is left out, and its job says that something is missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use relay_core::document::{JobDocument, MilestoneData, Status};
use relay_core::id::{JobId, Name, Owner};
use relay_core::job::JobMemory;
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{Body, Frames, Gone, JobKey, Publication};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use crate::hub::{History, Hub, Remembered};
use crate::poison;

/// The format this version writes, and the only one it reads.
const FORMAT: u32 = 1;
/// How often the file is written while jobs change: what a crash may cost.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// A large history takes a while to write; at most this part of the time is spent on it.
const SAVE_SHARE: u32 = 20;
/// Characters of the longest line: two updates of the largest size a configuration allows.
const MAX_LINE_BYTES: u64 = 64 * 1024 * 1024;

/// Why a history file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryFileError {
    /// It cannot be opened, read or written.
    #[error("history.file {path} cannot be used: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something in it is not what a relay writes.
    #[error(
        "history.file {path} is not a relay history file, or is corrupt: line {line}: {problem}; move it away to start without it",
        path = .path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: Problem,
    },
    /// Another version of the relay wrote it.
    #[error(
        "history.file {path} has format {format}, and this version reads {FORMAT} alone; start the version that wrote it, or move the file away",
        path = .path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it has.
        format: u32,
    },
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file ends where something should follow.
    #[error("the file ends too early")]
    Missing,
    /// Not what should stand there.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A job id, owner or milestone that is none.
    #[error("a name {0}")]
    Name(#[from] relay_core::id::NameError),
    /// A number above the highest that was given out.
    #[error("number {seq} is above the highest there may be, {high}")]
    Number {
        /// The number.
        seq: Seq,
        /// The highest there may be.
        high: Seq,
    },
    /// A state or a milestone that would not be accepted.
    #[error("{0}")]
    Update(#[from] relay_core::document::Refusal),
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    relay_history: u32,
    epoch: Epoch,
    high: Seq,
    known_from: Seq,
    /// Whether nothing came after it was written.
    complete: bool,
    jobs: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct JobLine {
    job: String,
    owner: String,
    known_from: Seq,
    lost_to: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_at: Option<i64>,
    updates: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct UpdateLine {
    seq: Seq,
    stored_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    milestone: Option<String>,
    /// The attempt that was removed, where this says that the job was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removed: Option<u32>,
    /// How it stood then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_status: Option<String>,
    /// The state's document or the milestone's data; `null` where the job was removed.
    body: Box<RawValue>,
}

impl UpdateLine {
    /// What it says, and when its worker says that it was.
    fn body(&self, job: &JobId, owner: &Owner) -> Result<(Body, Option<WallTime>), Problem> {
        #[cfg(test)]
        poison::fault("panics-when-restored", job.as_str());
        if let Some(attempt) = self.removed {
            let last = self.last_status.as_deref().and_then(Status::from_word);
            return Ok((Body::Gone(Gone::Removed { attempt, last }), None));
        }
        let text = self.body.get().as_bytes();
        Ok(match &self.milestone {
            Some(name) => {
                let data = MilestoneData::restore(text)?;
                let (name, ts) = (Name::parse(name)?, data.ts());
                let data = Bytes::from(data.into_json());
                (Body::Milestone { name, data }, ts)
            }
            None => {
                let document = JobDocument::restore(text, job, owner)?;
                let ts = document.ts();
                (Body::state(document), ts)
            }
        })
    }
}

/// A history file. One process has it at a time.
#[derive(Debug)]
pub struct HistoryFile {
    path: PathBuf,
    /// Held while writing; true once the last word is written, after which nothing else is.
    closed: Mutex<bool>,
}

impl HistoryFile {
    /// The file at `path`, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            closed: Mutex::new(false),
        }
    }

    /// Puts the file's jobs into a new hub, and notes in the file that it is in use. `epoch` counts if the
    /// file's own does not go on.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not a relay's.
    pub fn open(&self, hub: &Hub, epoch: Epoch) -> Result<(), HistoryFileError> {
        if let Some(history) = self.read(epoch)? {
            let (jobs, high) = (history.jobs.len(), history.high);
            let restored = hub.restore(history);
            restored.map_err(|refusal| self.broken(1, refusal))?;
            tracing::info!(file = %self.path.display(), jobs, high = high.get(), "the history of before the restart is back");
        }
        self.save(&hub.history(), false)
    }

    /// Writes the file while the hub's jobs change, until the future is dropped.
    pub async fn keep(self: Arc<Self>, hub: Arc<Hub>) {
        let mut saved = hub.stats().high;
        let mut pause = SAVE_INTERVAL;
        loop {
            sleep(pause).await;
            let high = hub.stats().high;
            if high == saved {
                continue;
            }
            let began = Instant::now();
            let (file, from) = (self.clone(), hub.clone());
            let written =
                tokio::task::spawn_blocking(move || file.save(&from.history(), false)).await;
            match written {
                Ok(Ok(())) => saved = high,
                Ok(Err(error)) => tracing::error!(%error, "the history is not kept"),
                Err(error) => tracing::error!(%error, "writing the history failed"),
            }
            pause = SAVE_INTERVAL.max(began.elapsed() * SAVE_SHARE);
        }
    }

    /// Writes the file for the last time, when nothing more will be published.
    ///
    /// # Errors
    /// When it cannot be written; it is as it was before then.
    pub fn close(&self, hub: &Hub) -> Result<(), HistoryFileError> {
        self.save(&hub.history(), true)
    }

    fn save(&self, history: &History, complete: bool) -> Result<(), HistoryFileError> {
        let mut closed = self.closed.lock();
        if *closed {
            return Ok(());
        }
        *closed = complete;
        self.replace(history, complete)
            .map_err(|source| self.io(source))
    }

    fn replace(&self, history: &History, complete: bool) -> io::Result<()> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let beside = Path::new(&beside);
        let file = create_private(beside)?;
        let mut out = BufWriter::new(file);
        write(history, complete, &mut out)?;
        // A power cut must not leave a new name on old bytes.
        out.into_inner()?.sync_all()?;
        fs::rename(beside, &self.path)
    }

    fn read(&self, epoch: Epoch) -> Result<Option<History>, HistoryFileError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(error)),
        };
        Reader {
            file: self,
            lines: BufReader::new(file),
            line: 0,
            next_key: 0,
        }
        .history(epoch)
        .map(Some)
    }

    fn io(&self, source: io::Error) -> HistoryFileError {
        HistoryFileError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn broken(&self, line: usize, problem: impl Into<Problem>) -> HistoryFileError {
        HistoryFileError::Broken {
            path: self.path.clone(),
            line,
            problem: problem.into(),
        }
    }
}

/// A new file that nobody else may read, whatever the process would let others do with its files. One that was left
/// under that name may be somebody's who can.
fn create_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn write(history: &History, complete: bool, out: &mut impl Write) -> io::Result<()> {
    let head = Head {
        relay_history: FORMAT,
        epoch: history.epoch,
        high: history.high,
        known_from: history.known_from,
        complete,
        jobs: history.jobs.len(),
    };
    write_line(&head, out)?;
    for Remembered { id, owner, memory } in &history.jobs {
        let job = JobLine {
            job: id.as_str().to_owned(),
            owner: owner.as_str().to_owned(),
            known_from: memory.known_from,
            lost_to: memory.lost_to,
            first_at: memory.first_at.map(WallTime::as_unix_micros),
            updates: memory.publications.len(),
        };
        write_line(&job, out)?;
        for publication in &memory.publications {
            write_update(publication, out)?;
        }
    }
    Ok(())
}

fn write_update(publication: &Publication, out: &mut impl Write) -> io::Result<()> {
    let (milestone, removed, body): (_, _, &[u8]) = match &publication.body {
        Body::State { json, .. } => (None, None, json),
        Body::Milestone { name, data } => (Some(name.as_str().to_owned()), None, data),
        Body::Gone(Gone::Removed { attempt, last }) => (None, Some((*attempt, *last)), b"null"),
        // No job remembers that it is forgotten.
        Body::Gone(Gone::Expired { .. }) => return Ok(()),
    };
    let (removed, last) = removed.unzip();
    let update = UpdateLine {
        seq: publication.seq,
        stored_at: publication.stored_at.as_unix_micros(),
        parent: publication.parent.as_ref().map(Name::to_string),
        milestone,
        removed,
        last_status: last.flatten().map(|last| last.to_string()),
        body: serde_json::from_slice(body)?,
    };
    write_line(&update, out)
}

fn write_line(line: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Reads a file from its first line to its last.
struct Reader<'a> {
    file: &'a HistoryFile,
    lines: BufReader<File>,
    line: usize,
    next_key: u64,
}

impl Reader<'_> {
    fn history(mut self, epoch: Epoch) -> Result<History, HistoryFileError> {
        let head: Head = self.next()?;
        if head.relay_history != FORMAT {
            return Err(HistoryFileError::Format {
                path: self.file.path.clone(),
                format: head.relay_history,
            });
        }
        if head.high == Seq::MAX {
            // There would be no number for the next update.
            let (seq, high) = (head.high, head.high.before());
            return Err(self.broken(Problem::Number { seq, high }));
        }
        let epoch = if head.complete { head.epoch } else { epoch };
        let mut history = History {
            epoch,
            high: head.high,
            known_from: head.known_from,
            jobs: Vec::new(),
        };
        for _ in 0..head.jobs {
            history.jobs.push(self.job(epoch, head.high)?);
        }
        Ok(history)
    }

    fn job(&mut self, epoch: Epoch, high: Seq) -> Result<Remembered, HistoryFileError> {
        let line: JobLine = self.next()?;
        let job = self.name(&line.job)?;
        let owner = self.name(&line.owner)?;
        let mut memory = JobMemory {
            known_from: line.known_from,
            lost_to: line.lost_to,
            first_at: line.first_at.map(WallTime::from_unix_micros),
            publications: Vec::new(),
        };
        self.next_key += 1;
        for _ in 0..line.updates {
            let update: UpdateLine = self.next()?;
            let seq = update.seq;
            if seq > high {
                return Err(self.broken(Problem::Number { seq, high }));
            }
            match self.publication(update, epoch, &job, &owner)? {
                Some(mut publication) => {
                    let own = publication.worker_at.unwrap_or(publication.stored_at);
                    publication.first_at = *memory.first_at.get_or_insert(own);
                    memory.publications.push(Arc::new(publication));
                }
                None => {
                    memory.known_from = memory.known_from.max(seq);
                    memory.lost_to = memory.lost_to.max(seq);
                }
            }
        }
        Ok(Remembered {
            id: job,
            owner,
            memory,
        })
    }

    fn publication(
        &self,
        update: UpdateLine,
        epoch: Epoch,
        job: &JobId,
        owner: &Owner,
    ) -> Result<Option<Publication>, HistoryFileError> {
        let body = poison::read(job, Some(update.seq), || update.body(job, owner));
        let Some(body) = body else {
            return Ok(None);
        };
        let (body, worker_at) = body.map_err(|problem| self.broken(problem))?;
        Ok(Some(Publication {
            seq: update.seq,
            epoch,
            key: JobKey(self.next_key),
            job: job.clone(),
            owner: owner.clone(),
            parent: update.parent.map(|it| self.name(&it)).transpose()?,
            body,
            first_at: WallTime::default(),
            received_at: Moment::default(),
            worker_at,
            stored_at: WallTime::from_unix_micros(update.stored_at),
            frames: Frames::default(),
        }))
    }

    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, HistoryFileError> {
        self.line += 1;
        let mut text = Vec::new();
        let read = (&mut self.lines)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut text);
        read.map_err(|source| self.file.io(source))?;
        if text.pop() != Some(b'\n') {
            return Err(self.broken(Problem::Missing));
        }
        serde_json::from_slice(&text).map_err(|error| self.broken(error))
    }

    fn name(&self, text: &str) -> Result<Name, HistoryFileError> {
        Name::parse(text).map_err(|error| self.broken(error))
    }

    fn broken(&self, problem: impl Into<Problem>) -> HistoryFileError {
        self.file.broken(self.line, problem)
    }
}

#[cfg(test)]
mod tests;
