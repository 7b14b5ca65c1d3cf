//! The seam between the hub and the place updates come from.
//!
//! A mode (embedded, nats, jetstream) hands what it reads to the hub as [`Incoming`]; a mode with a
//! store behind it also answers the hub's questions through [`Store`]. The hub knows nothing of NATS,
//! a mode knows nothing of clients.

mod failure;
pub(crate) mod refusal;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use relay_core::id::{JobId, JobName, Name, Named, Owner};
use relay_core::job::Finality;
use relay_core::moment::WallTime;
use relay_core::position::{Epoch, Seq};

pub use failure::{Rejection, Reused, StoreError, Unreachable};
pub(crate) use refusal::About;
pub use refusal::{Outcome, RefusedUpdate};

/// Which of a job's two kinds of message this is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// The complete current state: the subject's last token is `state`.
    State,
    /// A named event: the subject's last token is its name.
    Milestone(Name),
    /// The store let go of the subject's last message (an expiry marker): the job is gone.
    Gone,
}

/// One update as a mode read it, before anyone has believed it.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Whose and which, from the subject, never from the body.
    pub job: JobName,
    /// State or milestone.
    pub what: What,
    /// The worker's bytes.
    pub payload: Bytes,
    /// The bus's number for it: one order over all jobs.
    pub seq: Seq,
    /// The number of the message before it on the same subject, where the bus says so; 0 = none stored.
    pub previous: Option<Seq>,
    /// When the bus took it in.
    pub stored_at: WallTime,
    /// Where the same stood first, if this is an ending that a relay has stored once more.
    pub first: Option<First>,
}

/// Where an ending stood before it was stored once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    /// Its number then.
    pub seq: Seq,
    /// When the bus took it in.
    pub stored_at: WallTime,
}

impl fmt::Display for Incoming {
    /// As its subject reads behind the prefix: for log lines, which never show a payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            What::Milestone(name) => name.as_str(),
            What::State | What::Gone => "state",
        };
        write!(f, "{}.{}.{what}", self.job.owner, self.job.id)
    }
}

/// An update to be published, already checked.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The job.
    pub job: JobName,
    /// State or milestone.
    pub what: What,
    /// The body, as the worker sent it.
    pub payload: Bytes,
    /// What a store keeps of the job beside it: an ending, or that it was removed, is kept alone.
    pub finality: Finality,
    /// What the request is recognised by when it comes again, where its caller gave it a key.
    pub stamp: Option<Stamp>,
    /// Publish only if the subject's last number is still this; `None` = always.
    pub expected_last: Option<Seq>,
    /// Where it stood first, if it is an ending that is stored already, and is stored once more.
    pub first: Option<First>,
}

/// What a request is recognised by when it comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// A digest of the caller, the job, the kind of request and the caller's key.
    pub id: u128,
    /// A digest of the body: another one under the same id is another request.
    pub content: u128,
}

/// A job as the hub holds it, for asking whether the store knows more.
#[derive(Debug, Clone)]
pub struct Held {
    /// The job; without an owner whatever is called so, which costs the store a walk over all owners.
    pub job: Named,
    /// The highest number the hub knows of it; 0 = none.
    pub seq: Seq,
}

/// What a store has of one job.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In ascending `seq`, with `previous` = the number of the message before it on its subject *within the answer*
    /// (0 for the first).
    pub updates: Vec<Incoming>,
    /// All of the job is as of this number; what came later comes live.
    pub up_to: Seq,
    /// Up to here there was more than a node reads of one job; 0 if there was not.
    pub left_out_to: Seq,
}

/// What a mode with memory of its own can be asked. Answers are complete: in ascending `seq`, at least
/// as fresh as `at_least`, with nothing left out between the first and the last.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Everything still stored about one job.
    fn load_job(&self, job: JobName, at_least: Seq) -> BoxFuture<'_, Result<History, StoreError>>;

    /// The owners of whom anything is stored under a job's id, and as of which number that is said.
    fn load_owners(
        &self,
        id: JobId,
        at_least: Seq,
    ) -> BoxFuture<'_, Result<(Vec<Owner>, Seq), StoreError>>;

    /// The last state of each job of one owner, or of everybody (`None`), at most `limit` jobs
    /// (the most recent ones), ascending by `seq`. `previous` is 0 where it is all that is stored on its subject,
    /// and `None` where nobody can say.
    fn load_last_states(
        &self,
        owner: Option<Owner>,
        at_least: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Incoming>, StoreError>>;

    /// Of the jobs given, those for which the store has something newer than the hub.
    fn changed(&self, jobs: Vec<Held>) -> BoxFuture<'_, Result<Vec<Named>, StoreError>>;

    /// Asks whoever answers `subject`. A mode that cannot ask refuses.
    fn ask(
        &self,
        subject: String,
        _payload: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        std::future::ready(Err(Rejection::NoQuestions { subject }.into())).boxed()
    }

    /// How many messages are kept of a subject; `None` where that has no bound, or nobody can say.
    fn kept_per_subject(&self) -> Option<u64> {
        None
    }

    /// Publishes, and answers with the bus's number once it is stored.
    fn publish(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<Seq, StoreError>>;
}

/// What a mode tells the hub. Implemented by the hub; a mode calls nothing else.
pub trait Intake: Send + Sync + 'static {
    /// Hands over updates in their order, all that came together, and leaves the list empty. Never blocks:
    /// it checks and hands on, and wakes each shard that watches once.
    fn ingest(&self, updates: &mut Vec<Incoming>);

    /// The mode reads live messages from now on, in the given epoch, and everything numbered above
    /// `from_seq` will come through [`Intake::ingest`] unless a hole shows. Called at the first connection
    /// and after every reconnect, when the subscription is known to be in place (barrier passed). The hub
    /// then checks what it holds against the store, and only then calls its state fresh.
    fn live(&self, epoch: Epoch, from_seq: Seq);

    /// Messages above `after` have not come and are being fetched: nothing newer is told until
    /// [`Intake::found`] or [`Intake::live`].
    fn missing(&self, after: Seq);

    /// What was missing has been handed over.
    fn found(&self);

    /// The bus is gone: what the hub holds may be stale until [`Intake::live`] is called again.
    fn lost(&self, reason: &str);

    /// A message was dropped on the way, for no fault of its own; `reason` is a metric label.
    fn dropped(&self, reason: &'static str);

    /// A message came that cannot be an update.
    fn refused(&self, update: RefusedUpdate);
}
