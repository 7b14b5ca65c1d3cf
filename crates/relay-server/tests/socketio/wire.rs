//! Engine.IO by hand, so that a test sees and sends exactly what it means to.

use futures_util::{SinkExt as _, StreamExt as _};
use relay_testkit::http::{Answer, Method, Request, StatusCode};
use relay_testkit::relay::RelayServer;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::SOON;

pub(crate) const PATH: &str = "/socket.io/?EIO=4";

/// A session over polling.
pub(crate) struct Polling<'a> {
    relay: &'a RelayServer,
    pub(crate) sid: String,
}

impl<'a> Polling<'a> {
    pub(crate) async fn open(relay: &'a RelayServer) -> Self {
        let request = Request::get(format!("{PATH}&transport=polling"));
        let answer = relay.send(request).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let text = answer.text();
        let open: Value = serde_json::from_str(text.strip_prefix('0').unwrap()).unwrap();
        Self {
            relay,
            sid: open["sid"].as_str().unwrap().to_owned(),
        }
    }

    fn path(&self) -> String {
        format!("{PATH}&transport=polling&sid={}", self.sid)
    }

    pub(crate) async fn get(&self) -> Answer {
        self.relay.send(Request::get(self.path())).await.unwrap()
    }

    pub(crate) async fn post(&self, body: impl Into<String>) -> Answer {
        let request = Request::new(Method::POST, self.path())
            .header("content-type", "text/plain;charset=UTF-8")
            .body(body.into());
        self.relay.send(request).await.unwrap()
    }

    /// Posts what must be taken.
    pub(crate) async fn say(&self, body: &str) {
        let answer = self.post(body).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (StatusCode::OK, "ok")
        );
    }

    /// Polls until `count` packets other than pings came; answers the pings.
    pub(crate) async fn packets(&self, count: usize) -> Vec<String> {
        let mut packets = Vec::new();
        while packets.len() < count {
            let answer = self.get().await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
            for packet in answer.text().split('\x1e') {
                match packet {
                    "2" => self.say("3").await,
                    packet => packets.push(packet.to_owned()),
                }
            }
        }
        packets
    }
}

/// A WebSocket.
pub(crate) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    /// Opens one with this query behind `EIO=4`; the status if it is refused.
    pub(crate) async fn connect(relay: &RelayServer, query: &str) -> Result<Self, (u16, String)> {
        Self::to(relay, &format!("{PATH}&transport=websocket{query}")).await
    }

    /// Opens one whose own side holds little of what it does not read.
    pub(crate) async fn narrow(relay: &RelayServer, query: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        let stream = socket.connect(relay.address().parse().unwrap()).await;
        let path = format!("{PATH}&transport=websocket{query}");
        Self::over(stream.unwrap(), &relay.address(), &path)
            .await
            .unwrap()
    }

    pub(crate) async fn to(relay: &RelayServer, path: &str) -> Result<Self, (u16, String)> {
        let address = relay.address();
        let stream = TcpStream::connect(&address).await.unwrap();
        Self::over(stream, &address, path).await
    }

    async fn over(stream: TcpStream, address: &str, path: &str) -> Result<Self, (u16, String)> {
        let url = format!("ws://{address}{path}");
        match tokio_tungstenite::client_async(url, stream).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(tungstenite::Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                let body = String::from_utf8_lossy(body).into_owned();
                Err((answer.status().as_u16(), body))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Opens a session and reads its first packet.
    pub(crate) async fn open(relay: &RelayServer) -> (Self, Value) {
        let mut socket = Self::connect(relay, "").await.unwrap();
        let open = socket.next().await.unwrap();
        let open = serde_json::from_str(open.strip_prefix('0').unwrap()).unwrap();
        (socket, open)
    }

    /// Opens a session and joins a namespace.
    pub(crate) async fn joined(relay: &RelayServer, connect: &str) -> Self {
        let (mut socket, _) = Self::open(relay).await;
        socket.send(connect).await;
        let answer = socket.packet().await.unwrap();
        assert!(answer.starts_with("40"), "{answer}");
        socket
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn send_binary(&mut self, bytes: &'static [u8]) {
        self.0.send(Message::binary(bytes)).await.unwrap();
    }

    /// The next text; `None` when the relay closed.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let message = timeout(SOON, self.0.next()).await.expect("nothing comes");
            match message {
                Some(Ok(Message::Text(text))) => return Some(text.as_str().to_owned()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next text that is no ping; pings are answered.
    pub(crate) async fn packet(&mut self) -> Option<String> {
        loop {
            match self.next().await?.as_str() {
                "2" => self.send("3").await,
                packet => return Some(packet.to_owned()),
            }
        }
    }

    /// Waits until the relay closes.
    pub(crate) async fn closed(&mut self) {
        while self.next().await.is_some() {}
    }
}
