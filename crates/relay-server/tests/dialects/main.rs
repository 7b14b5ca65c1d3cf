//! Every dialect against its transcript: what its client sends, and what it gets, to the byte.
//!
//! A transcript is a text of commands, one a line; `transcript.rs` says which. Times that are the relay's
//! own clock are written `<ms>` and `<time>`, and ids and offsets of Socket.IO `<offset>`; every other byte
//! is as it stands.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod actioncable;
mod behaviour;
mod browser;
mod capabilities;
mod identity;
mod requests;
mod transcript;

use relay_testkit::relay::{RelayServer, Settings};

fn settings() -> Settings {
    let built_in = "event-dashboard,file-conversion,media-conversion,upload-notes,video-generation";
    Settings::new(env!("CARGO_BIN_EXE_relay"))
        .set("limits.connections_per_user", "50")
        .set("dialects.enabled", built_in)
}

async fn follow(settings: Settings, text: &str) {
    let mut relay = RelayServer::start(settings).await.unwrap();
    transcript::follow(&mut relay, text).await;
}

#[tokio::test]
async fn file_conversion_is_spoken_as_its_page_expects() {
    follow(settings(), include_str!("file-conversion.txt")).await;
}

#[tokio::test]
async fn media_conversion_is_spoken_as_its_page_expects() {
    follow(settings(), include_str!("media-conversion.txt")).await;
}

#[tokio::test]
async fn event_dashboard_is_spoken_as_its_page_expects() {
    follow(settings(), include_str!("event-dashboard.txt")).await;
}

#[tokio::test]
async fn video_generation_is_spoken_as_its_page_expects() {
    follow(settings(), include_str!("video-generation.txt")).await;
}

#[tokio::test]
async fn upload_notes_is_spoken_as_its_page_expects() {
    follow(settings(), include_str!("upload-notes.txt")).await;
}
