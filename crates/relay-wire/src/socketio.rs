//! Socket.IO (protocol v5) over [Engine.IO](crate::engineio): packets of events, in namespaces.
//!
//! Written by hand and small, because the outbox must decide what waits for a client and what is superseded; a
//! library's own packet buffer would take that decision away. What an event means is a dialect's affair.

pub mod client;
pub mod namespace;
pub mod offset;
mod packet;
pub mod protocol;
