//! A whole watch against a scripted server on loopback.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: WatchArgs,
}

/// A listener, and the arguments of a quiet watch of it.
async fn listener(words: &str) -> (TcpListener, Watch) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let words = ["watch", "--url", &url].into_iter().chain(words.split(' '));
    let args = Line::try_parse_from(words).unwrap().args;
    let until_ended = args.until_ended.then_some(true);
    let board = Board::new(&args.topics, until_ended);
    let watch = Watch {
        topics: args.topics,
        server: args.server,
        timeout: args.timeout,
        cursor: args.cursor.map(Cursor::Given),
        shown_token: None,
        refused_token: None,
        view: view(Wanted::Quiet, &board),
        board,
    };
    (listener, watch)
}

/// The server's end of one connection, and what was asked for in the URL.
struct Peer(WebSocketStream<TcpStream>, String);

impl Peer {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        #[expect(clippy::result_large_err, reason = "the callback's signature")]
        let note = |request: &Request, response: Response| {
            asked = request.uri().to_string();
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, note)
            .await
            .unwrap();
        Self(socket, asked)
    }

    async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    async fn state(&mut self, job: &str, status: &str, cursor: &str) {
        let job = json!({"job_id": job, "status": status});
        self.say(json!({"type": "state", "cursor": cursor, "job": job}))
            .await;
    }

    async fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        self.0.close(Some(frame)).await.unwrap();
        while let Some(Ok(_)) = self.0.next().await {}
    }
}

/// Answers one HTTP request with `answer`.
async fn answer(listener: &TcpListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = vec![0; 4096];
    let n = stream.read(&mut request).await.unwrap();
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8_lossy(&request[..n]).into_owned()
}

#[tokio::test]
async fn a_watch_ends_with_its_job() {
    let (listener, mut watch) = listener("job:a").await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        assert_eq!(peer.1, "/v1/ws?topic=job:a");
        peer.state("a", "running", "c1").await;
        peer.state("a", "completed", "c2").await;
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Ended(Ending::Completed));
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lost_connection_goes_on_from_the_last_cursor() {
    let (listener, mut watch) = listener("job:a").await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        peer.state("a", "running", "c1").await;
        peer.say(json!({"type": "server_shutdown", "retry_ms": 1}))
            .await;
        let peer = Peer::accept(&listener).await;
        assert_eq!(peer.1, "/v1/ws?topic=job:a&cursor=c1");
        drop(peer);
        let mut peer = Peer::accept(&listener).await;
        assert_eq!(peer.1, "/v1/ws?topic=job:a&cursor=c1");
        peer.state("a", "failed", "c2").await;
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Ended(Ending::Failed));
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cursor_of_ours_that_is_no_good_any_more_is_given_up() {
    let (listener, mut watch) = listener("job:a").await;
    watch.cursor = Some(Cursor::Seen("old".to_owned()));
    let mut server = JoinSet::new();
    server.spawn(async move {
        let body = r#"{"error":{"code":"bad_cursor","message":"not one of mine"}}"#;
        let refusal = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let request = answer(&listener, &refusal).await;
        assert!(
            request.starts_with("GET /v1/ws?topic=job:a&cursor=old "),
            "{request}"
        );
        let mut peer = Peer::accept(&listener).await;
        assert_eq!(peer.1, "/v1/ws?topic=job:a");
        peer.state("a", "cancelled", "c2").await;
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Ended(Ending::Cancelled));
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frame_that_cannot_be_read_is_asked_for_anew() {
    let (listener, mut watch) = listener("job:a").await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        peer.state("a", "running", "c1").await;
        let job = json!({"job_id": "a", "status": "failed", "message": 7});
        peer.say(json!({"type": "state", "cursor": "c2", "job": job}))
            .await;
        let mut peer = Peer::accept(&listener).await;
        assert_eq!(peer.1, "/v1/ws?topic=job:a", "as a snapshot");
        peer.state("a", "failed", "c2").await;
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Ended(Ending::Failed));
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_watch_ends_with_a_job_whose_document_not_every_reader_can_read() {
    for (fields, ending) in [
        (
            r#""status":"completed","meta":{"n":1e400}"#,
            Ending::Completed,
        ),
        (
            r#""status":"failed","error":{"message":"x","message":"y"}"#,
            Ending::Failed,
        ),
    ] {
        let (listener, mut watch) = listener("job:a").await;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut peer = Peer::accept(&listener).await;
            let text = format!(
                "{{\"type\":\"state\",\"cursor\":\"c\",\"job\":{{\"job_id\":\"a\",{fields}}}}}"
            );
            peer.0.send(Message::text(text)).await.unwrap();
            while let Some(Ok(_)) = peer.0.next().await {}
        });
        assert_eq!(watch.run().await, Outcome::Ended(ending));
        server.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_ending_before_the_given_cursor_is_asked_for() {
    let (listener, mut watch) = listener("job:a --cursor c9").await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        peer.say(json!({"type": "subscribed", "topic": "job:a", "recovered": true, "jobs": 0, "cursor": "c9"})).await;
        let body = r#"{"cursor":"c9","frames":[{"type":"state","cursor":"c9","job":{"job_id":"a","status":"failed"}}]}"#;
        let ok = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let request = answer(&listener, &ok).await;
        assert!(request.starts_with("GET /v1/poll?topic=job:a&wait=2 "), "{request}");
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Ended(Ending::Failed));
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_upgrade_tells_the_servers_sentence() {
    let (listener, mut watch) = listener("job:a").await;
    let body = r#"{"error":{"code":"forbidden","message":"your token grants no job:a"}}"#;
    let refusal = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (outcome, _) = tokio::join!(watch.run(), answer(&listener, &refusal));
    assert_eq!(
        outcome,
        Outcome::Refused("your token grants no job:a".to_owned())
    );
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let (listener, mut watch) = listener("job:a").await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let busy =
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";
        answer(&listener, busy).await;
        let mut peer = Peer::accept(&listener).await;
        peer.state("a", "completed", "c2").await;
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Ended(Ending::Completed));
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_topic_that_is_refused_ends_the_watch() {
    let (listener, mut watch) = listener("job:a job:b").await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        peer.say(
            json!({"type": "error", "topic": "job:b", "code": "forbidden", "message": "not yours"}),
        )
        .await;
        while let Some(Ok(_)) = peer.0.next().await {}
    });
    assert_eq!(watch.run().await, Outcome::Refused("not yours".to_owned()));
}

#[tokio::test]
async fn an_expired_token_ends_the_watch_and_a_renewed_file_does_not() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\n").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let (listener, mut watch) = listener(&format!("job:a --token-file {path}")).await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let peer = Peer::accept(&listener).await;
        std::fs::write(&path, "second\n").unwrap();
        peer.close(4401, "token expired").await;
        let peer = Peer::accept(&listener).await;
        peer.close(4401, "token expired again").await;
    });
    assert_eq!(
        watch.run().await,
        Outcome::Refused("token expired again".to_owned())
    );
    server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_given_up_after_the_timeout() {
    let (listener, mut watch) = listener("job:a --timeout 300ms").await;
    drop(listener);
    assert!(matches!(watch.run().await, Outcome::Unreachable(_)));
}

#[test]
fn a_bare_id_is_a_job() {
    assert_eq!(
        topic("clip-42").unwrap(),
        Topic::parse("job:clip-42").unwrap()
    );
    assert_eq!(topic("user:u").unwrap(), Topic::parse("user:u").unwrap());
    assert!(topic("a.b").is_err());
    assert!(topic("jobs:1").is_err());
}
