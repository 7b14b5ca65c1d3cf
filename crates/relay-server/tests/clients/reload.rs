//! A configuration that is changed while the relay runs: SIGHUP reads it again, all of it that can be, or nothing.

use std::path::{Path, PathBuf};

use relay_testkit::client::raw::Raw;
use relay_testkit::http::Request;
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use crate::secure::{Pair, connect, read_until};
use crate::{SOON, in_a_shell};

/// A relay with a configuration of its own in a file.
struct Configured {
    relay: RelayServer,
    file: PathBuf,
    directory: TempDir,
}

impl Configured {
    async fn start(text: impl FnOnce(&Path) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relay.toml");
        std::fs::write(&file, text(directory.path())).unwrap();
        let first = format!("export RELAY_CONFIG='{}'", file.display());
        let relay = RelayServer::start(in_a_shell(&first, directory.path()))
            .await
            .unwrap();
        Self {
            relay,
            file,
            directory,
        }
    }

    /// Sends the signal, and waits until the log has this once more.
    async fn reload(&mut self, says: &str) -> String {
        let times = |logs: &str| logs.matches(says).count();
        let before = times(&self.relay.logs());
        self.relay.signal("HUP").unwrap();
        let relay = &self.relay;
        wait::until(SOON, says, || times(&relay.logs()) > before)
            .await
            .unwrap();
        let logs = self.relay.logs();
        logs.lines()
            .rfind(|line| line.contains(says))
            .unwrap()
            .to_owned()
    }
}

const DONE: &str =
    "the configuration was read again, with the certificate and the keys that it names";
const WRONG: &str = "so nothing has changed";

async fn status(relay: &RelayServer, headers: &[(&str, &str)]) -> u16 {
    let mut request = Request::get("/v1/jobs/j");
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    relay.send(request).await.unwrap().status.as_u16()
}

#[tokio::test]
async fn a_changed_configuration_counts_from_the_signal_on_and_a_wrong_one_changes_nothing() {
    let first = "[auth]\nmode = \"anonymous\"\n";
    let mut configured = Configured::start(|_| first.to_owned()).await;
    let page = ("origin", "https://app.example");
    let name = ("host", "relay.example");
    assert_eq!(status(&configured.relay, &[page]).await, 403);

    let second = format!(
        "{first}[http]\nallowed_origins = [\"https://app.example\"]\nhosts = [\"relay.example\"]\nshards = 3\n[log]\nlevel = \"debug\"\n"
    );
    std::fs::write(&configured.file, &second).unwrap();
    let line = configured.reload(DONE).await;
    let changed = "changed=http.allowed_origins, http.hosts, log.level needs_restart=http.shards";
    assert!(line.contains(changed), "{line}");
    let relay = &configured.relay;
    assert_eq!(status(relay, &[page, name]).await, 404);
    assert_eq!(status(relay, &[]).await, 421);
    // What is said at that level: a stream that has ended.
    let mut stream = Raw::connect(&relay.address()).await.unwrap();
    stream
        .send("GET /v1/sse?topic=job:j HTTP/1.1\r\nhost: relay.example\r\n\r\n")
        .await
        .unwrap();
    stream.read_until("subscribed", SOON).await;
    drop(stream);
    wait::until(SOON, "a line", || relay.logs().contains("DEBUG"))
        .await
        .unwrap();

    // One thing that is wrong keeps back all that is right.
    let third = second
        .replace("https://app.example", "https://other.example")
        .replace("shards = 3", "shards = \"many\"");
    std::fs::write(&configured.file, third).unwrap();
    let line = configured.reload(WRONG).await;
    assert!(line.contains("http.shards"), "{line}");
    let relay = &configured.relay;
    assert_eq!(status(relay, &[page, name]).await, 404);
    std::fs::write(&configured.file, first).unwrap();
    let line = configured.reload(DONE).await;
    assert!(line.contains("needs_restart=nothing"), "{line}");
    assert_eq!(status(&configured.relay, &[page]).await, 403);
    let line = configured.reload(DONE).await;
    assert!(line.contains("changed=nothing"), "{line}");
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_newcomers_and_streams_go_on() {
    let mut configured = Configured::start(|directory| {
        let pair = Pair::in_place(directory);
        format!(
            "[auth]\nmode = \"anonymous\"\n[http]\ntls_cert_file = \"{}\"\ntls_key_file = \"{}\"\n",
            pair.certificate.display(),
            pair.key.display()
        )
    })
    .await;
    let directory = configured.directory.path().to_owned();
    let address = configured.relay.address();
    let both = [&rustls::version::TLS13, &rustls::version::TLS12];
    let first = Pair::of(&directory);
    let old = first.der();
    let mut stream = connect(&address, old.clone(), &both).await.unwrap();
    let opening = "GET /v1/sse?topic=job:j HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(opening.as_bytes()).await.unwrap();
    read_until(&mut stream, "subscribed").await;

    // Half a change: another key beside the old certificate.
    let certificate = std::fs::read(&first.certificate).unwrap();
    let second = Pair::in_place(&directory);
    let new = std::fs::read(&second.certificate).unwrap();
    std::fs::write(&second.certificate, certificate).unwrap();
    let line = configured.reload(WRONG).await;
    assert!(line.contains("cannot be used together"), "{line}");
    connect(&address, old.clone(), &both).await.unwrap();

    std::fs::write(&second.certificate, new).unwrap();
    configured.reload(DONE).await;
    let new = second.der();
    let mut publisher = connect(&address, new, &both).await.unwrap();
    assert!(connect(&address, old, &both).await.is_err());
    let body = "{\"status\":\"running\",\"message\":\"still there\"}";
    let request = format!(
        "POST /v1/jobs/j?owner=o HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    publisher.write_all(request.as_bytes()).await.unwrap();
    let told = read_until(&mut stream, "still there").await;
    assert!(told.contains("event: state"), "{told}");
}
