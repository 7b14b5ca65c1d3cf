//! Where updates come from: `embedded`, `nats` or `jetstream`, behind one seam.
//!
//! A mode reads and numbers updates and hands them to the hub; the hub checks them, remembers the last
//! of each job, and hands each accepted one, once, to every shard with a watcher for it.

pub mod clock;
pub mod connection;
pub mod history_file;
pub mod hub;
pub mod inbox;
pub mod inspect;
pub mod jetstream;
pub mod nats;
mod poison;
pub mod refused;
pub mod seam;
pub mod subject;
