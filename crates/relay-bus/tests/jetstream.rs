//! JetStream mode against a real nats-server: what is read, what is loaded, and what happens when
//! servers and streams go away.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "jetstream/bytes.rs"]
mod bytes;
#[path = "jetstream/cluster.rs"]
mod cluster;
#[path = "jetstream/domains.rs"]
mod domains;
#[path = "jetstream/faults.rs"]
mod faults;
#[path = "jetstream/loads.rs"]
mod loads;
#[path = "jetstream/publishing.rs"]
mod publishing;
#[path = "jetstream/reading.rs"]
mod reading;
#[path = "jetstream/streams.rs"]
mod streams;
#[path = "jetstream/support.rs"]
mod support;
#[path = "jetstream/tenants.rs"]
mod tenants;
