//! Each dialect's own page in a real browser: the client its document describes, with the relay killed under it.

use std::process::Command;
use std::time::Duration;

use relay_testkit::process::Process;
use relay_testkit::tools;

/// A browser's start, two starts of the relay, and some forty things to wait for.
const PATIENCE: Duration = Duration::from_secs(110);

async fn visit(dialect: &str) {
    let directory = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/dialect-pages.mjs");
    let mut command = Command::new(tools::node().unwrap());
    command
        .args([script, dialect])
        .env("RELAY", env!("CARGO_BIN_EXE_relay"))
        .env("CHROMIUM", tools::chromium().unwrap());
    let mut visit = Process::spawn(&mut command, &directory.path().join("log")).unwrap();
    let status = visit.end(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", visit.logs());
}

#[tokio::test]
async fn the_file_conversion_page_backs_off_polls_and_reaches_its_ending() {
    visit("file-conversion").await;
}

#[tokio::test]
async fn the_upload_notes_page_polls_until_it_is_back_and_reaches_its_ending() {
    visit("upload-notes").await;
}

#[tokio::test]
async fn the_media_conversion_page_polls_until_it_is_back_and_reaches_its_ending() {
    visit("media-conversion").await;
}

#[tokio::test]
async fn the_video_generation_page_backs_off_polls_and_reaches_its_ending() {
    visit("video-generation").await;
}

#[tokio::test]
async fn the_event_dashboard_page_polls_until_it_is_back_and_reaches_its_ending() {
    visit("event-dashboard").await;
}
