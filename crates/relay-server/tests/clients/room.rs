//! Clients for whom there is no room: too many for the file descriptors, or too many from one address.

use relay_testkit::http::{self, StatusCode};
use relay_testkit::relay::RelayServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{SOON, in_a_shell, settings};

/// Opens a stream and says with what status it was answered; the socket is kept open.
async fn stream(address: String) -> (String, TcpStream) {
    let mut socket = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /v1/sse?topic=job:a HTTP/1.1\r\nhost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    let read = timeout(SOON, socket.read_exact(&mut head)).await;
    read.expect("an answer, not silence").unwrap();
    let status = String::from_utf8_lossy(&head[9..]).into_owned();
    (status, socket)
}

#[tokio::test]
async fn a_process_with_few_descriptors_answers_every_client_and_its_operators() {
    let directory = tempfile::tempdir().unwrap();
    let settings = in_a_shell("ulimit -n 200", directory.path())
        .set("limits.connections_per_address", 100_000);
    let relay = RelayServer::start(settings.set("http.shards", 2))
        .await
        .unwrap();
    let mut clients = JoinSet::new();
    for _ in 0..300 {
        clients.spawn(stream(relay.address()));
    }
    let mut open = Vec::new();
    let mut turned_away = 0;
    while let Some(client) = clients.join_next().await {
        let (status, socket) = client.unwrap();
        match status.as_str() {
            "200" => open.push(socket),
            "429" => turned_away += 1,
            other => panic!("{other}"),
        }
        if turned_away % 50 == 0 {
            for path in ["/readyz", "/metrics"] {
                let answer = http::get(&relay.admin_address(), path).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "{path}");
            }
        }
    }
    // 40 for itself, and an eighth each for operators, requests and sockets too many.
    assert_eq!((open.len(), turned_away), (200 - 40 - 3 * 25, 300 - 85));
    let metrics = relay.metrics().await.unwrap();
    assert_eq!(
        metrics.sum("relay_connections_refused_total", "node_limit"),
        215.0
    );
    assert_eq!(metrics.sum("relay_limit", "connections"), 85.0);
    let lines = relay.logs();
    let said = lines.lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(said, 2, "one at the start and one for all of them: {lines}");

    drop(open);
    let (status, _socket) = loop {
        let again = stream(relay.address()).await;
        if again.0 != "429" {
            break again;
        }
    };
    assert_eq!(status, "200");
}

#[tokio::test]
async fn an_address_with_as_many_connections_as_it_may_have_is_named_in_the_log_once() {
    let settings = settings().set("limits.connections_per_address", 2);
    let relay = RelayServer::start(settings).await.unwrap();
    let mut kept = Vec::new();
    for expected in ["200", "200", "429", "429", "429"] {
        let (status, socket) = stream(relay.address()).await;
        assert_eq!(status, expected);
        kept.push(socket);
    }
    let logs = relay.logs();
    let lines: Vec<_> = logs
        .lines()
        .filter(|line| line.contains("if this is a proxy"))
        .collect();
    assert_eq!(lines.len(), 1, "{logs}");
    assert!(lines[0].contains("127.0.0.1"), "{logs}");
}
