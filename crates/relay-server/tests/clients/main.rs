//! Clients that behave badly, each with the answer it must get, and a neighbour who must not notice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agree;
mod behind;
mod browser;
mod crash;
mod door;
mod greed;
mod half_closed;
mod identity;
mod leaving;
mod libraries;
mod limits;
mod neighbour;
mod nonsense;
mod owners;
mod proxies;
mod publishing;
mod random;
mod readers;
mod reload;
mod removal;
mod requests;
mod room;
mod secure;
mod shares;
mod taken;
mod topics;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use relay_testkit::relay::{RelayServer, Settings};

/// How long anything that must happen may take.
const SOON: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_relay"))
}

/// A relay that is started by a shell, after it has done something. The script is in `directory`.
fn in_a_shell(first: &str, directory: &Path) -> Settings {
    let script = directory.join("relay");
    let relay = env!("CARGO_BIN_EXE_relay");
    let text = format!("#!/bin/sh\n{first}\nexec '{relay}' \"$@\"\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    Settings::new(script)
}

/// How many streams are open now.
async fn open_connections(relay: &RelayServer) -> f64 {
    relay.metrics().await.unwrap().sum("relay_connections", "")
}
