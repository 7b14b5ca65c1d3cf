//! A WebSocket client of the native protocol.
//!
//! Follows [`Watch`] on its own ([`WebSocketClient::watch`]) or sends what it is told to, sense or nonsense.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{self, Message};

use super::Watch;
use super::frame::{self, Frame, Heard, Refused};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// One WebSocket.
#[derive(Debug)]
pub struct WebSocketClient {
    socket: WebSocketStream<TcpStream>,
    cursor: Option<String>,
}

impl WebSocketClient {
    /// Connects and names the topics in the URL.
    ///
    /// # Errors
    /// When the relay refuses ([`Refused`]) or is not there.
    pub async fn watch(address: &str, watch: Watch) -> Result<Self> {
        let path = format!("/v1/ws{}", watch.query());
        let mut headers = Vec::new();
        if let Some(token) = &watch.token {
            headers.push(("authorization", format!("Bearer {token}")));
        }
        let mut client = Self::open(address, &path, &headers).await?;
        client.cursor = watch.cursor;
        Ok(client)
    }

    /// Connects and watches nothing yet.
    ///
    /// # Errors
    /// When the relay refuses ([`Refused`]) or is not there.
    pub async fn connect(address: &str, token: Option<&str>) -> Result<Self> {
        let headers: Vec<_> = token
            .map(|token| ("authorization", format!("Bearer {token}")))
            .into_iter()
            .collect();
        Self::open(address, "/v1/ws", &headers).await
    }

    /// Connects to any path with any headers.
    ///
    /// # Errors
    /// When the relay refuses ([`Refused`]) or is not there.
    pub async fn open(address: &str, path: &str, headers: &[(&str, String)]) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, address, path, headers).await
    }

    /// Connects with a small receive buffer, for a client that is going to be slow.
    ///
    /// # Errors
    /// As [`WebSocketClient::open`].
    pub async fn open_narrow(
        address: &str,
        path: &str,
        headers: &[(&str, String)],
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // before connecting, or the window is already agreed on
        socket.set_recv_buffer_size(4096)?;
        let stream = socket.connect(address.parse()?).await?;
        Self::over(stream, address, path, headers).await
    }

    async fn over(
        stream: TcpStream,
        address: &str,
        path: &str,
        headers: &[(&str, String)],
    ) -> Result<Self> {
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        for (name, value) in headers {
            let name = tungstenite::http::HeaderName::from_bytes(name.as_bytes())?;
            request.headers_mut().append(name, value.parse()?);
        }
        let handshake = timeout(HANDSHAKE_WITHIN, client_async(request, stream));
        match handshake.await.context("no handshake in time")? {
            Ok((socket, _)) => Ok(Self {
                socket,
                cursor: None,
            }),
            Err(tungstenite::Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                Err(Refused {
                    status: answer.status().as_u16(),
                    body: String::from_utf8_lossy(body).into_owned(),
                }
                .into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a JSON frame.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(frame.to_string()).await
    }

    /// Sends any text.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<()> {
        Ok(self.socket.send(Message::text(text.into())).await?)
    }

    /// Sends the same text many times, as fast as it goes. A relay that hangs up meanwhile is no error:
    /// see [`WebSocketClient::until_closed`] for what it said.
    pub async fn flood(&mut self, text: &str, count: usize) {
        for _ in 0..count {
            if self.socket.feed(Message::text(text)).await.is_err() {
                return;
            }
        }
        drop(self.socket.flush().await);
    }

    /// Sends a binary message.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_binary(&mut self, bytes: &'static [u8]) -> Result<()> {
        Ok(self.socket.send(Message::binary(bytes)).await?)
    }

    /// Subscribes to one topic, from a cursor if there is one.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn subscribe(&mut self, topic: &str, cursor: Option<&str>) -> Result<()> {
        let mut frame = json!({"type": "subscribe", "id": topic, "topic": topic});
        if let Some(cursor) = cursor {
            frame["cursor"] = json!(cursor);
        }
        self.send(&frame).await
    }

    /// The next frame, or that there was none within the time, or that the relay has closed.
    pub async fn next(&mut self, within: Duration) -> Heard {
        match timeout(within, self.hear()).await {
            Ok(heard) => heard,
            Err(_) => Heard::Quiet,
        }
    }

    async fn hear(&mut self) -> Heard {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Heard::lost(error),
                None => return Heard::lost("end of stream"),
            };
            match message {
                Message::Text(text) => {
                    return match serde_json::from_str(&text) {
                        Ok(value) => Heard::Frame(self.note(Frame(value))),
                        Err(error) => Heard::lost(format!("not JSON ({error}): {text}")),
                    };
                }
                Message::Close(close) => {
                    return Heard::Closed {
                        code: close.as_ref().map(|close| close.code.into()),
                        reason: close.map_or_else(String::new, |close| close.reason.to_string()),
                    };
                }
                Message::Binary(bytes) => {
                    return Heard::lost(format!("{} bytes of binary", bytes.len()));
                }
                // tungstenite answers pings by itself, at its next read or write
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    fn note(&mut self, frame: Frame) -> Frame {
        if let Some(cursor) = frame.cursor() {
            self.cursor = Some(cursor.to_owned());
        }
        frame
    }

    /// Reads on until a frame is `wanted`; what came before it is dropped.
    ///
    /// # Errors
    /// When it does not come within the time, or the relay closes.
    pub async fn until(
        &mut self,
        within: Duration,
        what: &str,
        wanted: impl FnMut(&Frame) -> bool,
    ) -> Result<Frame> {
        frame::until(within, what, wanted, async |left| self.next(left).await).await
    }

    /// Reads on until the relay closes, and says how.
    ///
    /// # Errors
    /// When it has not closed within the time.
    pub async fn until_closed(&mut self, within: Duration) -> Result<(Option<u16>, String)> {
        let read = async {
            loop {
                if let Heard::Closed { code, reason } = self.hear().await {
                    return (code, reason);
                }
            }
        };
        timeout(within, read)
            .await
            .context("the relay has not closed")
    }

    /// The cursor of the last frame that had one; before any, the one it came with.
    pub fn cursor(&self) -> Option<String> {
        self.cursor.clone()
    }

    /// Says goodbye and waits a moment for the answer.
    pub async fn close(mut self) {
        let goodbye = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        if self.socket.close(Some(goodbye)).await.is_ok() {
            let rest = async { while let Some(Ok(_)) = self.socket.next().await {} };
            // a relay that does not answer the goodbye is not this client's trouble
            drop(timeout(Duration::from_secs(1), rest).await);
        }
    }

    /// Leaves with a reset and no goodbye.
    pub fn vanish(self) {
        // a socket that cannot be set is already dead, which is all that is wanted
        drop(self.socket.get_ref().set_zero_linger());
    }
}
