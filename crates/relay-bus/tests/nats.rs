//! Core NATS mode, and every way to connect, against a real nats-server.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "nats/bytes.rs"]
mod bytes;
#[path = "nats/connecting.rs"]
mod connecting;
#[path = "nats/core.rs"]
mod core;
#[path = "nats/permissions.rs"]
mod permissions;
#[path = "jetstream/support.rs"]
#[allow(dead_code, reason = "shared with the tests of JetStream mode")]
mod support;
