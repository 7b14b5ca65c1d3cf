//! What a progress message means, with no socket, no HTTP, no NATS, no runtime and no clock.
//!
//! Read the modules in this order: a worker's words ([`document`], checked by [`guard`]) become numbered
//! facts ([`job`], [`publication`]), of which each client, a [`watcher`], is sent what it is owed; [`cursor`] says how
//! far it has come.

pub mod backoff;
pub mod cursor;
pub mod document;
pub mod eta;
mod frames;
pub mod guard;
pub mod id;
pub mod job;
pub mod kind;
pub mod latency;
pub mod limits;
pub mod moment;
pub mod position;
pub mod publication;
pub mod quality;
pub mod tally;
pub mod topic;
pub mod watcher;
