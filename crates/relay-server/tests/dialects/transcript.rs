//! Transcripts: read, and followed against a relay.
//!
//! | Command | Means |
//! |---|---|
//! | `publish JOB OWNER JSON` | a worker publishes a state |
//! | `milestone JOB OWNER NAME JSON` | a worker publishes a milestone |
//! | `connect PATH` | the client opens a WebSocket |
//! | `send TEXT` | the client sends a text frame |
//! | `get TEXT` | the next frame is this |
//! | `skip PREFIX` | frames that begin so are passed over from here on |
//! | `leave` | the client closes its connection, and the relay has seen it |
//! | `quiet` | no frame is waiting: a protocol ping is answered first |
//! | `poll PATH STATUS TEXT` | a request is answered with this status and body |
//! | `terminate` | the relay is told to stop |
//! | `closed CODE` | the relay closes with this code |

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use relay_testkit::http::{Method, Request};
use relay_testkit::relay::RelayServer;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// How long anything that must happen may take.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A client's connection, frame by frame.
pub(crate) struct Socket {
    stream: WebSocketStream<TcpStream>,
    skipped: Option<String>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Text(String),
    Closed(Option<u16>),
    Nothing,
}

impl Socket {
    pub(crate) async fn open(relay: &RelayServer, path: &str) -> Self {
        Self::open_as(relay, path, "").await
    }

    /// The same with cookies.
    pub(crate) async fn open_as(relay: &RelayServer, path: &str, cookies: &str) -> Self {
        let address = relay.address();
        let stream = TcpStream::connect(&address).await.unwrap();
        let mut request = format!("ws://{address}{path}")
            .into_client_request()
            .unwrap();
        if !cookies.is_empty() {
            let cookies = cookies.parse().unwrap();
            request.headers_mut().insert("cookie", cookies);
        }
        let (socket, _) = client_async(request, stream).await.unwrap();
        Self {
            stream: socket,
            skipped: None,
        }
    }

    /// How a handshake with these headers is refused.
    pub(crate) async fn refused(
        relay: &RelayServer,
        path: &str,
        cookie: Option<&str>,
    ) -> (u16, String) {
        let address = relay.address();
        let stream = TcpStream::connect(&address).await.unwrap();
        let mut request = format!("ws://{address}{path}")
            .into_client_request()
            .unwrap();
        if let Some(cookie) = cookie {
            request
                .headers_mut()
                .insert("cookie", cookie.parse().unwrap());
        }
        match client_async(request, stream).await {
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                (
                    answer.status().as_u16(),
                    String::from_utf8_lossy(body).into_owned(),
                )
            }
            Ok(_) => (101, String::new()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.stream.send(Message::text(text)).await.unwrap();
    }

    fn is_skipped(&self, text: &str) -> bool {
        let skipped = self.skipped.as_deref();
        skipped.is_some_and(|prefix| text.starts_with(prefix))
    }

    /// The next text or the end.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            let Ok(came) = timeout(SOON, self.stream.next()).await else {
                return Heard::Nothing;
            };
            match came {
                Some(Ok(Message::Text(text))) if self.is_skipped(&text) => {}
                Some(Ok(Message::Text(text))) => return Heard::Text(text.to_string()),
                Some(Ok(Message::Close(close))) => {
                    return Heard::Closed(close.map(|close| close.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Heard::Closed(None),
            }
        }
    }

    /// What comes before the answer to a ping sent now, which is nothing if nothing was waiting.
    pub(crate) async fn quiet(&mut self) {
        self.stream
            .send(Message::Ping(Bytes::from_static(b"quiet")))
            .await
            .unwrap();
        loop {
            match timeout(SOON, self.stream.next())
                .await
                .expect("no pong")
                .unwrap()
                .unwrap()
            {
                Message::Pong(payload) if payload == "quiet" => return,
                Message::Text(text) if self.is_skipped(&text) => {}
                Message::Text(text) => panic!("not quiet: {text}"),
                _ => {}
            }
        }
    }
}

/// Follows a transcript to its end.
pub(crate) async fn follow(relay: &mut RelayServer, text: &str) {
    let mut socket: Option<Socket> = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let here = format!("line {}: {line}", at + 1);
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "publish" => {
                let [job, owner, state] = words(rest);
                let state: Value = serde_json::from_str(state).expect(&here);
                relay.publish(job, owner, &state).await.expect(&here);
            }
            "milestone" => {
                let [job, owner, rest] = words(rest);
                let (name, data) = rest.split_once(' ').unwrap();
                let data: Value = serde_json::from_str(data).expect(&here);
                relay.milestone(job, owner, name, &data).await.expect(&here);
            }
            "remove" => {
                let [job, owner, _] = words(rest);
                let path = format!("/v1/jobs/{job}?owner={owner}");
                let removed = relay.send(Request::new(Method::DELETE, path)).await;
                assert_eq!(removed.expect(&here).status, 202, "{here}");
            }
            "connect" => socket = Some(Socket::open(relay, rest).await),
            "skip" => socket.as_mut().unwrap().skipped = Some(rest.to_owned()),
            "send" => socket.as_mut().unwrap().send(rest).await,
            "get" => match socket.as_mut().unwrap().next().await {
                Heard::Text(text) => {
                    assert!(matches(rest, &text), "{here}\n       got {text}");
                }
                other => panic!("{here}\n       got {other:?}"),
            },
            "leave" => {
                socket = None;
                gone(relay).await;
            }
            "quiet" => socket.as_mut().unwrap().quiet().await,
            "poll" => {
                let [path, status, body] = words(rest);
                let answer = relay.send(Request::get(path)).await.unwrap();
                let text = answer.text();
                assert_eq!(answer.status.as_str(), status, "{here}\n       got {text}");
                assert!(matches(body, &text), "{here}\n       got {text}");
            }
            "terminate" => relay.signal("TERM").unwrap(),
            "closed" => {
                let heard = socket.as_mut().unwrap().next().await;
                assert_eq!(heard, Heard::Closed(rest.parse().ok()), "{here}");
            }
            other => panic!("no such command: {other}"),
        }
    }
}

/// Waits until the relay has seen that nobody is connected.
async fn gone(relay: &RelayServer) {
    let is_gone = async || {
        let metrics = relay.metrics().await.unwrap();
        metrics.sum("relay_dialect_connections", "dialect") == 0.0
    };
    let seen = async {
        while !is_gone().await {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, seen).await.expect("the relay still has it");
}

fn words(rest: &str) -> [&str; 3] {
    let mut parts = rest.splitn(3, ' ');
    [(); 3].map(|()| parts.next().unwrap_or_default())
}

/// Whether `text` is as expected, with any number for `<ms>`, any RFC 3339 time for `<time>`, any version for
/// `<version>`, any word for `<id>`, and any of Socket.IO's ids, pids and offsets for `<offset>`.
fn matches(expected: &str, text: &str) -> bool {
    let Some(start) = expected.find('<') else {
        return expected == text;
    };
    let Some((place, after)) = expected[start + 1..].split_once('>') else {
        return expected == text;
    };
    let known: fn(char) -> bool = match place {
        "ms" => |c| c.is_ascii_digit(),
        "time" => |c| c.is_ascii_digit() || matches!(c, '-' | ':' | 'T' | '.' | 'Z'),
        "version" => |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '+'),
        "id" => |c| c.is_ascii_alphanumeric(),
        "offset" => |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'),
        _ => return expected == text,
    };
    let Some(rest) = text.strip_prefix(&expected[..start]) else {
        return false;
    };
    let end = rest.find(|c| !known(c)).unwrap_or(rest.len());
    end > 0 && matches(after, &rest[end..])
}
