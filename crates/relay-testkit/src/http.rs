//! A small HTTP/1.1 client: one request, one answer; and a connection that can be kept.
//!
//! Knows nothing of the relay's paths. A connection's driver task lives in its owner's set, so dropping
//! the connection drops the socket.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
pub use hyper::{HeaderMap, Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a test waits for any one answer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What to ask.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Request {
    /// A `GET`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// Any method.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A `POST` of a JSON body.
    pub fn post(path: impl Into<String>, body: &Value) -> Self {
        Self::new(Method::POST, path)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Adds `Authorization: Bearer` when there is a token.
    #[must_use]
    pub fn bearer(self, token: Option<&str>) -> Self {
        match token {
            Some(token) => self.header("authorization", format!("Bearer {token}")),
            None => self,
        }
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, or `null` when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header's value, or the empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// `error.code` of an error answer, or the empty text.
    pub fn error_code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// One connection to one address, kept between requests.
#[derive(Debug)]
pub struct Connection {
    address: String,
    sender: SendRequest<Full<Bytes>>,
    /// Holds the task that moves the bytes; dropping it drops the socket.
    driver: JoinSet<()>,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Self::over(address, stream).await
    }

    /// Speaks HTTP over a socket that is already connected.
    ///
    /// # Errors
    /// When the socket is already dead.
    pub async fn over(address: &str, stream: TcpStream) -> Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // how a connection ended is seen in the answer, or in its absence
            drop(connection.await);
        });
        Ok(Self {
            address: address.to_owned(),
            sender,
            driver,
        })
    }

    /// Whether the other side has closed.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.driver.is_empty()
    }

    /// Sends a request and gives the answer as soon as its head is there, for a body without end.
    ///
    /// # Errors
    /// When the connection breaks or no answer comes.
    pub async fn start(&mut self, request: Request) -> Result<hyper::Response<Incoming>> {
        let mut builder = hyper::Request::builder()
            .method(request.method)
            .uri(request.path);
        let names_host = |(name, _): &(_, _)| AsRef::<str>::as_ref(name) == "host";
        if !request.headers.iter().any(names_host) {
            builder = builder.header("host", &self.address);
        }
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        let request = builder.body(Full::new(request.body))?;
        Ok(self.sender.send_request(request).await?)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not there within [`ANSWER_WITHIN`] and `patience`.
    pub async fn send(&mut self, request: Request, patience: Duration) -> Result<Answer> {
        let whole = async {
            let (head, body) = self.start(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        timeout(ANSWER_WITHIN + patience, whole)
            .await
            .context("no answer in time")?
    }
}

/// One request over a connection of its own.
///
/// # Errors
/// When nobody listens, the connection breaks, or no answer comes.
pub async fn send(address: &str, request: Request) -> Result<Answer> {
    let mut connection = Connection::open(address).await?;
    connection
        .send(request.header("connection", "close"), Duration::ZERO)
        .await
}

/// `GET`, over a connection of its own.
///
/// # Errors
/// As [`send`].
pub async fn get(address: &str, path: &str) -> Result<Answer> {
    send(address, Request::get(path)).await
}
