//! Clients that behave badly, each with the answer it must get, and a neighbour who must not notice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod browser;
mod crash;
mod door;
mod greed;
mod identity;
mod libraries;
mod neighbour;
mod nonsense;
mod random;
mod room;
mod topics;

use std::time::Duration;

use relay_testkit::relay::{RelayServer, Settings};

/// How long anything that must happen may take.
const SOON: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_relay"))
}

/// How many streams are open now.
async fn open_connections(relay: &RelayServer) -> f64 {
    relay.metrics().await.unwrap().sum("relay_connections", "")
}
