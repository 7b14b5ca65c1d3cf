//! One WebSocket connection to the relay, from the handshake to its end.
//!
//! It knows how to ask for topics, to stay alive and why it ended; not what the frames mean, nor whether
//! to come back. Topics and cursor go into the URL: the server then answers for all of them at once, and
//! what it refuses it refuses in words before there is a connection.
//!
//! Invariant: [`Link::next`] returns within [`PATIENCE`] of the last sign of life.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use relay_core::topic::Topic;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::cli::http_client::{
    Answer, Call, CallError, ServerUrl, Stream, Token, Upgrade, upgrade,
};

/// How long one attempt to connect may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long silence is borne: half of it, then a sign of life is asked for, and the other half. The
/// server pings every 25 seconds by default, so silence means that something is wrong.
const PATIENCE: Duration = Duration::from_secs(50);
/// The largest frame taken in; job documents are far smaller.
const LARGEST_FRAME: usize = 4 * 1024 * 1024;

/// The close code for "token expired or bad".
const CLOSE_UNAUTHENTICATED: u16 = 4401;
/// The close code for "against the rules", which coming back will not change.
const CLOSE_POLICY: u16 = 1008;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    /// Nobody there, or nobody who speaks the protocol.
    #[error(transparent)]
    Unreachable(#[from] CallError),
    /// The server has no room now, and may say when to come back.
    #[error("{sentence}")]
    Busy {
        /// In the server's words.
        sentence: String,
        /// When the server asks to be called again.
        retry_after: Option<Duration>,
    },
    /// The server knows no such client.
    #[error("{sentence}")]
    Unauthenticated {
        /// In the server's words.
        sentence: String,
    },
    /// The cursor is not one of this server.
    #[error("{sentence}")]
    BadCursor {
        /// In the server's words.
        sentence: String,
    },
    /// The server refuses, and would again.
    #[error("{sentence}")]
    Refused {
        /// In the server's words.
        sentence: String,
    },
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Lost {
    /// The token is not accepted any more.
    #[error("{0}")]
    Unauthenticated(String),
    /// The server ended it for good.
    #[error("{0}")]
    Refused(String),
    /// Anything that may be better next time.
    #[error("{0}")]
    Broken(String),
}

/// A connection that stands.
#[derive(Debug)]
pub(crate) struct Link {
    socket: WebSocketStream<Stream>,
    heard_at: Instant,
    patience: Duration,
    /// Whether a sign of life has been asked for since the last one.
    asked: bool,
}

impl Link {
    /// Connects and asks for `topics`, from `cursor` on if there is one.
    ///
    /// # Errors
    /// Says whether it is worth trying again, and the server's reason when it gave one.
    pub(crate) async fn open(
        server: &ServerUrl,
        token: Option<Token>,
        topics: &[Topic],
        cursor: Option<&str>,
    ) -> Result<Self, OpenError> {
        let mut call = Call::get(path(topics, cursor));
        call.token = token;
        let key = generate_key();
        let headers = handshake_headers(&key);
        match upgrade(server, call, &headers, CONNECT_WITHIN).await? {
            Upgrade::Switched(headers, stream, early) => {
                if !accepts(&headers, &key) {
                    let sentence = format!(
                        "{server} switched to something that is not a WebSocket; is --url right?"
                    );
                    return Err(OpenError::Refused { sentence });
                }
                let config = WebSocketConfig::default()
                    .max_message_size(Some(LARGEST_FRAME))
                    .max_frame_size(Some(LARGEST_FRAME));
                let socket = WebSocketStream::from_partially_read(
                    stream,
                    early.to_vec(),
                    Role::Client,
                    Some(config),
                );
                Ok(Self {
                    socket: socket.await,
                    heard_at: Instant::now(),
                    patience: PATIENCE,
                    asked: false,
                })
            }
            Upgrade::Refused(answer) => Err(refusal(&answer)),
        }
    }

    /// The next text from the server. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// When the connection is over, with the server's reason where it gave one.
    pub(crate) async fn next(&mut self) -> Result<String, Lost> {
        loop {
            let patience = if self.asked {
                self.patience
            } else {
                self.patience / 2
            };
            let Ok(message) =
                tokio::time::timeout_at(self.heard_at + patience, self.socket.next()).await
            else {
                if self.asked {
                    return Err(Lost::Broken("the server has gone silent".to_owned()));
                }
                self.asked = true;
                self.socket
                    .send(Message::Ping(Bytes::new()))
                    .await
                    .map_err(broken)?;
                continue;
            };
            self.heard_at = Instant::now();
            self.asked = false;
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    return Err(match frame {
                        Some(frame) => closed(frame.code.into(), frame.reason.as_str()),
                        None => Lost::Broken("the server closed the connection".to_owned()),
                    });
                }
                // Pings are answered underneath.
                Some(Ok(
                    Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_),
                )) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(Lost::Broken("the connection ended".to_owned())),
            }
        }
    }

    /// Says goodbye; whether it is heard does not matter any more.
    pub(crate) async fn close(mut self) {
        drop(tokio::time::timeout(Duration::from_millis(500), self.socket.close(None)).await);
    }
}

/// Topics, and cursors as the server makes them, are of an alphabet that needs no escaping; a person's
/// cursor may be anything.
fn path(topics: &[Topic], cursor: Option<&str>) -> String {
    let mut path = "/v1/ws".to_owned();
    for (at, topic) in topics.iter().enumerate() {
        path.push(if at == 0 { '?' } else { '&' });
        path += &format!("topic={topic}");
    }
    if let Some(cursor) = cursor {
        path += "&cursor=";
        for byte in cursor.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    path.push(byte.into())
                }
                _ => path += &format!("%{byte:02X}"),
            }
        }
    }
    path
}

fn refusal(answer: &Answer) -> OpenError {
    let sentence = answer.sentence();
    match answer.status {
        StatusCode::UNAUTHORIZED => OpenError::Unauthenticated { sentence },
        status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
            OpenError::Busy {
                sentence,
                retry_after: answer.retry_after(),
            }
        }
        _ if answer.code() == "bad_cursor" => OpenError::BadCursor { sentence },
        _ => OpenError::Refused { sentence },
    }
}

fn handshake_headers(key: &str) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (
            HeaderName::from_static("sec-websocket-version"),
            HeaderValue::from_static("13"),
        ),
    ];
    if let Ok(key) = HeaderValue::from_str(key) {
        headers.push((HeaderName::from_static("sec-websocket-key"), key));
    }
    headers
}

fn accepts(headers: &HeaderMap, key: &str) -> bool {
    let accept = headers.get("sec-websocket-accept");
    accept.is_some_and(|accept| accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes())
}

fn closed(code: u16, reason: &str) -> Lost {
    let or = |otherwise: &str| {
        if reason.is_empty() {
            otherwise.to_owned()
        } else {
            reason.to_owned()
        }
    };
    match code {
        CLOSE_UNAUTHENTICATED => {
            Lost::Unauthenticated(or("the token has expired or is not accepted"))
        }
        CLOSE_POLICY => Lost::Refused(or(
            "the server closed the connection for a breach of its rules",
        )),
        _ => Lost::Broken(or("the server closed the connection")),
    }
}

fn broken(error: WsError) -> Lost {
    Lost::Broken(match error {
        WsError::Io(error) => format!("the connection broke: {error}"),
        WsError::ConnectionClosed | WsError::AlreadyClosed => "the connection ended".to_owned(),
        other => format!("the connection broke: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_server_is_asked_for_a_sign_of_life_and_then_left() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: ServerUrl = listener.local_addr().unwrap().to_string().parse().unwrap();
        let mut server = tokio::task::JoinSet::new();
        server.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut silent = tokio_tungstenite::accept_async(stream).await.unwrap();
            // The answer to a ping goes out when the reader is next polled, which it never is.
            assert!(matches!(silent.next().await, Some(Ok(Message::Ping(_)))));
            std::future::pending::<()>().await;
        });
        let mut link = Link::open(&url, None, &[], None).await.unwrap();
        link.patience = Duration::from_millis(40);
        assert!(matches!(link.next().await, Err(Lost::Broken(_))));
        assert!(link.asked);
    }

    #[test]
    fn topics_and_cursor_are_named_in_the_url() {
        let topics = ["job:a", "user:u"].map(|topic| Topic::parse(topic).unwrap());
        assert_eq!(path(&topics, None), "/v1/ws?topic=job:a&topic=user:u");
        assert_eq!(
            path(&topics[..1], Some("a&b-")),
            "/v1/ws?topic=job:a&cursor=a%26b-"
        );
    }

    #[test]
    fn a_close_code_says_whether_to_come_back() {
        assert!(matches!(closed(4401, ""), Lost::Unauthenticated(_)));
        assert!(matches!(closed(1008, "no"), Lost::Refused(reason) if reason == "no"));
        for code in [1001, 1006, 1009, 1011, 1012, 4408, 4429] {
            assert!(matches!(closed(code, ""), Lost::Broken(_)), "{code}");
        }
    }
}
