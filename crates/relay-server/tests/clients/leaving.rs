//! A relay that is asked to go, by each signal, once and twice, and with nobody to read its log.

use std::time::Duration;

use relay_testkit::client::{Transport, Watch, Watcher};
use relay_testkit::http::{self, StatusCode};
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{SOON, in_a_shell, settings};

#[tokio::test]
async fn every_signal_to_go_says_goodbye_to_clients() {
    for signal in ["TERM", "INT"] {
        let mut relay = RelayServer::start(settings()).await.unwrap();
        let watch = Watch::topics(["user:u"]);
        let mut watcher = Watcher::connect(Transport::Sse, &relay.address(), watch)
            .await
            .unwrap();
        relay.signal(signal).unwrap();
        let goodbye = watcher
            .until(SOON, "a goodbye", |frame| frame.kind() == "server_shutdown")
            .await;
        assert!(goodbye.is_ok(), "{signal}: {goodbye:?}");
        let status = relay.end(SOON).await.unwrap();
        assert!(status.success(), "{signal}: {status}");
        assert!(
            relay.logs().contains(&format!("SIG{signal}")),
            "{}",
            relay.logs()
        );
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    for second in ["TERM", "INT"] {
        let settings = settings()
            .set("drain.deadline", "1h")
            .set("drain.spread", "30m");
        let mut relay = RelayServer::start(settings).await.unwrap();
        // A request that does not end keeps the drain waiting, far longer than this test may take.
        let mut slow = TcpStream::connect(relay.address()).await.unwrap();
        let head = "POST /v1/jobs/a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
        slow.write_all(head.as_bytes()).await.unwrap();
        let mut body_is_wanted = [0; 12];
        slow.read_exact(&mut body_is_wanted).await.unwrap();
        assert_eq!(&body_is_wanted, b"HTTP/1.1 100");
        relay.signal("TERM").unwrap();
        let admin = relay.admin_address();
        wait::until_some(SOON, "the drain", async || {
            let answer = http::get(&admin, "/readyz").await.ok()?;
            (answer.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
        })
        .await
        .unwrap();
        relay.signal(second).unwrap();
        let status = relay.end(Duration::from_secs(5)).await.unwrap();
        assert!(status.success(), "{second}: {status}");
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let settings = in_a_shell("exec 2>/dev/full", directory.path());
    let mut relay = RelayServer::start(settings).await.unwrap();
    let watch = Watch::topics(["user:u"]);
    Watcher::connect(Transport::WebSocket, &relay.address(), watch)
        .await
        .unwrap();
    let status = relay.terminate(SOON).await.unwrap();
    assert!(status.success(), "{status}");
}
