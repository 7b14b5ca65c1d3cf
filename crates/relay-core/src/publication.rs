//! An accepted, numbered update: what the fan-out carries.
//!
//! A publication is made once, by the hub, and shared by every shard, outbox and history that holds it.
//! It does not know who watches it or how a frame looks; it only keeps the frames that others encode from it.
//!
//! Invariant: nothing in a publication changes after it was made, but for frames being filled in.

use std::fmt;

use bytes::Bytes;

use crate::document::{JobDocument, Status};
use crate::id::{JobId, JobName, JobNameRef, Name, Owner};
use crate::moment::{Moment, WallTime};
use crate::position::{Epoch, Position, Seq};
use crate::tally::Share;
use crate::topic::Topic;

pub use crate::frames::{Encoded, Frames, Slot, Wrapping};

/// A job's number on this node: shorter to compare than its id, and never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey(pub u64);

/// An accepted update with its place in the bus's order.
pub struct Publication {
    /// The bus's number.
    pub seq: Seq,
    /// Which life of the bus `seq` belongs to.
    pub epoch: Epoch,
    /// The job's number on this node.
    pub key: JobKey,
    /// The job's id.
    pub job: JobId,
    /// The job's owner.
    pub owner: Owner,
    /// The job's parent, which is the group it belongs to.
    pub parent: Option<Name>,
    /// State, milestone, or the end of the job's history.
    pub body: Body,
    /// When the first update of its job was that is known: by its worker's clock, else the bus's.
    pub first_at: WallTime,
    /// When this node took it in.
    pub received_at: Moment,
    /// The worker's clock at publishing, if it said.
    pub worker_at: Option<WallTime>,
    /// When the bus (or this node, where the bus has no clock) took it in.
    pub stored_at: WallTime,
    /// What others have encoded from it.
    pub frames: Frames,
}

/// What a publication says.
#[derive(Debug, Clone)]
pub enum Body {
    /// The complete current state.
    State {
        /// The job document in its canonical form.
        json: Bytes,
        /// Its status.
        status: Status,
        /// Its attempt, from 1.
        attempt: u32,
        /// What it counts for beside others.
        share: Share,
    },
    /// A named event that nothing supersedes.
    Milestone {
        /// Its name.
        name: Name,
        /// Its data, as JSON.
        data: Bytes,
    },
    /// The job is not there any more.
    Gone(Gone),
}

/// Why a job is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It left history: it expired or was purged.
    Expired {
        /// How it stood last.
        last: Option<Status>,
    },
    /// Somebody who may publish it took it away.
    Removed {
        /// The attempt that was taken away, with all before it.
        attempt: u32,
        /// How it stood last, where that is known.
        last: Option<Status>,
    },
}

impl Gone {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired",
            Self::Removed { .. } => "removed",
        }
    }

    /// How the job stood last, where that is known.
    pub fn last(self) -> Option<Status> {
        match self {
            Self::Expired { last } | Self::Removed { last, .. } => last,
        }
    }
}

impl Body {
    /// The state a document describes.
    pub fn state(document: JobDocument) -> Self {
        Self::State {
            status: document.status(),
            attempt: document.attempt(),
            share: Share::of_document(&document),
            json: Bytes::from(document.into_json()),
        }
    }
}

impl Publication {
    /// Where it stands in history.
    pub fn position(&self) -> Position {
        Position::new(self.epoch, self.seq)
    }

    /// Whether this is a state whose status is an ending.
    pub fn is_terminal(&self) -> bool {
        matches!(&self.body, Body::State { status, .. } if status.is_terminal())
    }

    /// Whether the job was taken away.
    pub fn is_removal(&self) -> bool {
        matches!(self.body, Body::Gone(Gone::Removed { .. }))
    }

    /// Whether nothing of the attempt may follow it: an ending, or that the job was taken away.
    pub fn is_last(&self) -> bool {
        self.is_terminal() || self.is_removal()
    }

    /// Whether it is a named event.
    pub fn is_milestone(&self) -> bool {
        matches!(self.body, Body::Milestone { .. })
    }

    /// What a state counts for beside other jobs; nothing for anything else.
    pub fn share(&self) -> Option<Share> {
        match self.body {
            Body::State { share, .. } => Some(share),
            Body::Milestone { .. } | Body::Gone(_) => None,
        }
    }

    /// Whether a newer state of the job makes this one needless.
    pub fn is_state(&self) -> bool {
        matches!(self.body, Body::State { .. })
    }

    /// The size of what it carries, in bytes, without what every publication costs.
    pub fn payload_bytes(&self) -> usize {
        match &self.body {
            Body::State { json, .. } => json.len(),
            Body::Milestone { data, .. } => data.len(),
            Body::Gone(_) => 0,
        }
    }

    /// The exact name of its job.
    pub fn name(&self) -> JobName {
        JobName::new(self.owner.clone(), self.job.clone())
    }

    /// The exact name of its job, to look it up by.
    pub fn name_ref(&self) -> JobNameRef<'_> {
        JobNameRef {
            owner: &self.owner,
            id: &self.job,
        }
    }

    /// The group it belongs to: its owner's, whoever else has one with that id.
    pub fn group(&self) -> Option<JobNameRef<'_>> {
        let id = self.parent.as_ref()?;
        let owner = &self.owner;
        Some(JobNameRef { owner, id })
    }

    /// The exact topics under which a watcher may see it.
    pub fn topics(&self) -> impl Iterator<Item = Topic> {
        let owner = &self.owner;
        let group = self.parent.clone();
        let group = group.map(|id| Topic::group(JobName::new(owner.clone(), id)));
        let own = [Topic::job(self.name()), Topic::User(owner.clone())];
        own.into_iter().chain(group)
    }

    /// The frame kept in `slot`, made by `encode` if this is the first to ask.
    ///
    /// The frame in a slot must be the same whoever encodes it.
    pub fn frame(&self, slot: Slot, encode: impl FnOnce(&Self) -> Bytes) -> &Bytes {
        self.frames.native(slot, || encode(self))
    }

    /// This update in the words of a dialect, made by `encode` if this is the first to ask: see
    /// [`Frames::encoded`].
    pub fn encoded(
        &self,
        slots: usize,
        slot: usize,
        encode: impl FnOnce(&Self) -> Encoded,
    ) -> Encoded {
        self.frames.encoded(slots, slot, || encode(self))
    }
}

impl fmt::Debug for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.body {
            Body::State { status, .. } => status.as_str(),
            Body::Milestone { name, .. } => name.as_str(),
            Body::Gone(gone) => gone.as_str(),
        };
        write!(f, "{}@{} {what}", self.job, self.seq)
    }
}
