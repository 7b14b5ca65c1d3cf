//! Socket.IO (protocol v5) over Engine.IO (protocol v4): what goes over the wire, and its rules.
//!
//! Written by hand and small, because the outbox must decide what waits for a client and what is
//! superseded; a library's own packet buffer would take that decision away. Read [`engine`] and
//! [`payload`] for the lower layer, [`packet`] and [`namespace`] for the upper, [`session`] for what may
//! happen when, [`request`] and [`sid`] for what HTTP requests say.
//! Nothing here knows sockets, HTTP, jobs, dialects or a runtime.

pub mod engine;
pub mod namespace;
pub mod packet;
pub mod payload;
pub mod request;
pub mod session;
pub mod sid;
