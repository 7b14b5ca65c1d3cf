//! Socket.IO against the real binary: the cases of the official protocol suites, written anew, and the
//! official client in the ways its users set it up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod balancer;
mod clients;
mod deaf;
mod engine;
mod packets;
mod recovery;
mod upgrade;
mod wire;

use std::path::Path;
use std::time::Duration;

use relay_testkit::relay::Settings;

/// How long anything that must happen may take.
const SOON: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_millis(300);
const PING_TIMEOUT: Duration = Duration::from_millis(200);

fn settings() -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_relay"))
        .set("http.shards", 3)
        .set("dialects.enabled", "upload-notes,video-generation")
}

/// A relay that speaks what the suites want to hear, with their short heartbeat where `hurried`.
fn suite(hurried: bool) -> Settings {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/socketio");
    let settings = settings()
        .set("dialects.enabled", "suite")
        .set("dialects.directory", here.display());
    if !hurried {
        return settings;
    }
    let ms = |time: Duration| format!("{}ms", time.as_millis());
    settings
        .set("delivery.ping_interval", ms(PING_INTERVAL))
        .set("delivery.dead_after", ms(PING_INTERVAL + PING_TIMEOUT))
}
