//! The hub: one per node, between the bus and the shards.
//!
//! Updates come in through [`Intake`](crate::seam::Intake), are numbered, checked and remembered under one lock, and each
//! accepted one is handed, once, to every shard with a watcher for it. Joins are answered under the same
//! lock and through the same inboxes, so what a client is told first and what follows meet without a race.
//!
//! It knows shards by number and connections by a number the shard gave. It does not know NATS, HTTP or
//! frames.
//!
//! A panic under the lock ends the process if anybody has changed the table since the lock was taken: the
//! lock does not poison, and a table that is half changed must not be seen by anybody. What reads the bytes of
//! a message runs apart (`poison`), and its panic costs that message alone.
//!
//! Invariant: a shard's inbox holds publications and answers in the order in which the table saw them.

mod ahead;
mod endings;
mod history;
mod intake;
mod join;
mod keys;
mod listed;
mod load;
mod named;
mod past;
mod publish;
mod rebuild;
mod request;
mod table;
mod tally;
mod trial;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use relay_core::id::JobName;
use relay_core::job::JobBounds;
use relay_core::kind::Kinds;
use relay_core::position::{Epoch, Position, Seq};
use relay_core::publication::Publication;
use tokio::sync::{Notify, oneshot};

pub use history::{History, Remembered};
pub use keys::{ClaimedBatch, RequestKey};
pub use publish::{PublishError, PublishRequest, Published, Verb};
pub use request::{JoinRequest, Lookup, Survey};
pub use trial::{Trial, Tried};

use crate::clock::Clock;
use crate::connection::Seldom;
use crate::inbox::{Inbox, InboxStats, Message};
use crate::refused::{Ledger, Refusals};
use crate::seam::Store;
use keys::Keys;
use table::{Shards, Table, TableBounds};

/// Jobs in the snapshot of an owner or a group: the most recently updated ones.
pub const SNAPSHOT_JOBS: usize = 1000;

/// How a hub is set up.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// Shards, at most 64.
    pub shards: usize,
    /// Milestones kept per job (`history.per_job`).
    pub per_job: usize,
    /// Jobs kept (`history.jobs`).
    pub max_jobs: usize,
    /// Bytes of payload kept (`history.bytes`).
    pub max_bytes: usize,
    /// Bytes of one update (`limits.update_bytes`).
    pub update_bytes: usize,
    /// What the subjects of updates begin with, with the dot behind it (`nats.prefix`): for people to read.
    pub subject_stem: String,
    /// How long an ended job is kept (`history.terminal_ttl`).
    pub terminal_ttl: Duration,
    /// How long a silent job is kept (`history.idle_ttl`).
    pub idle_ttl: Duration,
    /// What kinds of jobs declare (`kinds`).
    pub kinds: Arc<Kinds>,
    /// How often watched jobs are compared with the store (`nats.resync_interval`).
    pub resync_interval: Duration,
}

/// What lies behind the hub.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Nothing: updates are published straight into the table, which is all there is.
    Embedded,
    /// A bus that carries and forgets: the table is all there is, publishing goes through the bus.
    Passing(Arc<dyn Store>),
    /// A bus that remembers: the table is a bounded copy.
    Stored(Arc<dyn Store>),
}

impl Backing {
    fn store(&self) -> Option<&Arc<dyn Store>> {
        match self {
            Self::Embedded => None,
            Self::Passing(store) | Self::Stored(store) => Some(store),
        }
    }

    /// The store, if it can be asked for what the table does not hold.
    fn memory(&self) -> Option<&Arc<dyn Store>> {
        match self {
            Self::Stored(store) => Some(store),
            Self::Embedded | Self::Passing(_) => None,
        }
    }
}

/// Figures for operators.
#[derive(Debug, Clone, Default)]
pub struct HubStats {
    /// Jobs in memory.
    pub jobs: usize,
    /// Bytes of their payloads.
    pub bytes: usize,
    /// The highest number seen.
    pub high: Seq,
    /// Jobs being repaired.
    pub repairs: usize,
    /// Repairs that are over, by what came of them.
    pub repaired: Vec<(&'static str, u64)>,
    /// Endings that were stored again because their worker went on, by what came of it.
    pub endings: Vec<(&'static str, u64)>,
    /// Jobs evicted since the start.
    pub evicted: u64,
    /// How long the last update took from the bus to here, as far as the two clocks agree.
    pub lag: Duration,
    /// Whether the bus is away.
    pub stale: bool,
    /// Updates by what became of them.
    pub counts: Vec<(&'static str, u64)>,
    /// Updates that were refused without an answer to their worker.
    pub refused: u64,
    /// Of each shard's inbox, in the order of the shards.
    pub inboxes: Vec<InboxStats>,
}

/// The hub. Shared by the bus's reader, the shards and the HTTP handlers.
#[derive(Debug)]
pub struct Hub {
    settings: HubSettings,
    backing: Backing,
    clock: Clock,
    /// Everything remembered. Held for microseconds, never across an await.
    table: Mutex<Table>,
    inboxes: Vec<Arc<Inbox>>,
    /// What was refused without an answer. Its lock is taken under the table's, never the other way.
    refusals: Ledger,
    /// Requests that were published lately, by their callers' keys.
    keys: Keys,
    /// When the log last said that NATS rejected an update. Held for a look.
    rejected: Mutex<Seldom>,
    /// Wakes [`Hub::run`] when there is something to load or to compare.
    work: Notify,
    /// Told when [`Hub::run`] shall compare watched jobs with the store.
    resync: Mutex<bool>,
    /// When it was logged last that an ending could not be stored again.
    endings_told: Mutex<Seldom>,
}

impl Hub {
    /// A hub with an empty memory. `epoch` counts until the bus says another.
    pub fn new(settings: HubSettings, backing: Backing, clock: Clock, epoch: Epoch) -> Arc<Self> {
        let bounds = TableBounds {
            job: JobBounds {
                history: settings.per_job,
                update_bytes: settings.update_bytes,
                kinds: settings.kinds.clone(),
            },
            jobs: settings.max_jobs,
            bytes: settings.max_bytes,
        };
        let is_stale = !matches!(backing, Backing::Embedded);
        let remembers = backing.memory().is_some();
        let table = Table::new(bounds, epoch, is_stale, remembers);
        let inboxes = (0..settings.shards).map(|_| Arc::default()).collect();
        Arc::new(Self {
            settings,
            backing,
            clock,
            table: Mutex::new(table),
            inboxes,
            refusals: Ledger::default(),
            keys: Keys::default(),
            rejected: Mutex::default(),
            work: Notify::new(),
            resync: Mutex::new(false),
            endings_told: Mutex::default(),
        })
    }

    /// The inbox of one shard.
    pub fn inbox(&self, shard: usize) -> Arc<Inbox> {
        self.inboxes[shard].clone()
    }

    /// The clocks everything on this node is timed by.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Which life of the bus numbers belong to.
    pub fn epoch(&self) -> Epoch {
        self.table().epoch()
    }

    /// Which life of the bus this is, and the highest number seen in it.
    pub fn place(&self) -> Position {
        self.table().position()
    }

    /// Whether the bus is away, so that what is known may be out of date.
    pub fn is_stale(&self) -> bool {
        self.table().is_stale()
    }

    /// The latest state of a job; waits for the store if it has to be asked.
    pub async fn lookup(&self, job: &JobName) -> Lookup {
        match self.lookup_or_wait(job) {
            Ok(found) => found,
            // The sender is dropped only with the hub.
            Err(waiting) => waiting.await.unwrap_or(Lookup::unknown(true)),
        }
    }

    fn lookup_or_wait(&self, job: &JobName) -> Result<Lookup, oneshot::Receiver<Lookup>> {
        let mut table = self.table();
        let stale = table.is_stale();
        let entry = table.get(job);
        let known = entry.is_some_and(|entry| {
            let is_whole = entry.job.is_some() && entry.repair.is_none() && !entry.partial;
            // That there is nothing to be told is known as well.
            is_whole || entry.is_read()
        });
        if known || self.backing.memory().is_none() {
            return Ok(Lookup::of(entry, stale));
        }
        if table.loads.is_full() {
            return Ok(Lookup::unknown(true));
        }
        let (answer, waiting) = oneshot::channel();
        let repair = table.start_repair(job, self.clock.now());
        // Whoever asks over and over while the store is away has stopped waiting for the earlier answers.
        if repair.lookups.len().is_power_of_two() {
            repair.lookups.retain(|answer| !answer.is_closed());
        }
        repair.lookups.push(answer);
        drop(table);
        self.work.notify_one();
        Err(waiting)
    }

    /// The updates refused last without an answer to their worker.
    pub fn refusals(&self) -> Refusals {
        self.refusals.list()
    }

    /// Figures for operators.
    pub fn stats(&self) -> HubStats {
        let table = self.table();
        let mut counts: Vec<_> = table.counts().collect();
        counts.sort_unstable();
        HubStats {
            jobs: table.len(),
            bytes: table.bytes(),
            high: table.high(),
            repairs: table.repairs(),
            repaired: table.repaired().collect(),
            endings: table.endings().collect(),
            evicted: table.evicted(),
            lag: table.lag(),
            stale: table.is_stale(),
            counts,
            refused: self.refusals.total(),
            inboxes: self.inboxes.iter().map(|inbox| inbox.stats()).collect(),
        }
    }

    fn table(&self) -> Locked<'_> {
        Locked {
            table: self.table.lock(),
            is_changed: false,
            // A connection's task that panicked says goodbye on its way: that is not a panic in here.
            was_panicking: std::thread::panicking(),
            _wakes: Wakes(&self.inboxes),
        }
    }

    fn tell(&self, shards: Shards, message: impl Fn() -> Message) {
        for (shard, inbox) in self.inboxes.iter().enumerate() {
            if shards & (1 << shard) != 0 {
                inbox.push(message());
            }
        }
    }

    fn tell_all(&self, message: impl Fn() -> Message) {
        self.tell(Shards::MAX, message);
    }

    fn publish_to(&self, shards: Shards, publication: &Arc<Publication>) {
        self.tell(shards, || Message::Publish(publication.clone()));
    }
}

/// The table for as long as nobody else has it. Shards that were told something meanwhile are woken once,
/// after the lock is gone: they find all of it at once, and have nobody to wait for.
///
/// Dropped by a panic, it ends the process if the table may be half changed. That is known by the only way to
/// change it: [`DerefMut`]. Whoever has only read leaves it as it was, and the panic is its own affair.
struct Locked<'a> {
    table: MutexGuard<'a, Table>,
    /// Whether anybody may have changed the table under this lock.
    is_changed: bool,
    /// Whether this thread was unwinding already when it took the lock.
    was_panicking: bool,
    /// Dropped after the lock, as fields are in their order.
    _wakes: Wakes<'a>,
}

impl Deref for Locked<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        self.is_changed = true;
        &mut self.table
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_changed && !self.was_panicking && std::thread::panicking() {
            tracing::error!(
                "the relay panicked while it changed what it knows of jobs; see the panic above. It ends, because what it knows may be wrong now"
            );
            // The lock is still held: nobody sees the table again.
            std::process::exit(1);
        }
        if self.is_changed && !std::thread::panicking() {
            self.table.check();
        }
    }
}

struct Wakes<'a>(&'a [Arc<Inbox>]);

impl Drop for Wakes<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|inbox| inbox.wake());
    }
}

#[cfg(test)]
mod tests;
