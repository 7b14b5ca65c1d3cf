//! The demo's page in a real browser.

use std::process::Command;
use std::time::Duration;

use relay_testkit::process::Process;
use relay_testkit::tools;

/// A browser's start, four starts of the relay, and twenty things to wait for.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn the_demo_page_survives_a_killed_relay_on_every_transport() {
    let directory = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/demo.mjs");
    let mut command = Command::new(tools::node().unwrap());
    command
        .arg(script)
        // A demo keeps its jobs in a folder for temporary files.
        .env("TMPDIR", directory.path())
        .env("RELAY", env!("CARGO_BIN_EXE_relay"))
        .env("CHROMIUM", tools::chromium().unwrap());
    let mut visit = Process::spawn(&mut command, &directory.path().join("log")).unwrap();
    let status = visit.end(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", visit.logs());
}
