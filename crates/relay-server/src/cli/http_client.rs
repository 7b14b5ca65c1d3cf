//! A small HTTP/1.1 client for the command line: one request a connection, no redirects, with or without TLS.
//!
//! It owns how the commands name a server ([`ServerArgs`]), how long they wait for it, and how the
//! server's own sentence is read out of a refusal. It knows none of the paths.
//!
//! Invariant: no call outlasts the time it was given, and no answer is held beyond [`MAX_ANSWER_BYTES`].

mod tls;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use tls::hint;
pub(crate) use tls::{RootsError, Stream};

/// The largest answer taken in.
pub(crate) const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// Which server a command speaks to, and as whom.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerArgs {
    /// The relay's public address
    #[arg(
        long,
        env = "RELAY_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub(crate) url: ServerUrl,
    /// A token that says who you are; `relay token` makes one for tests
    #[arg(long, env = "RELAY_TOKEN", hide_env_values = true, value_name = "JWT")]
    pub(crate) token: Option<String>,
    /// A file with the token in it, read again at every connection; wins over --token
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust an https server by, instead of the system's
    #[arg(long, env = "RELAY_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

impl ServerArgs {
    /// The server, and by what it is trusted.
    pub(crate) fn server(&self) -> ServerUrl {
        self.url.clone().trusting(self.ca.clone())
    }

    /// The token to show, if one was given.
    ///
    /// # Errors
    /// When the token's file cannot be read, or what was given cannot be part of a header.
    pub(crate) fn token(&self) -> Result<Option<Token>, TokenError> {
        let text = match (&self.token_file, &self.token) {
            (Some(path), _) => {
                std::fs::read_to_string(path).map_err(|source| TokenError::File {
                    path: path.clone(),
                    source,
                })?
            }
            (None, Some(token)) => token.clone(),
            (None, None) => return Ok(None),
        };
        match text.trim_start_matches('\u{feff}').trim() {
            "" => Err(TokenError::Empty),
            token => Token::new(token).map(Some),
        }
    }
}

/// A bearer token, ready to be a header; never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(HeaderValue);

impl Token {
    fn new(token: &str) -> Result<Self, TokenError> {
        let mut value =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| TokenError::NotAHeader)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why there is no token to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TokenError {
    /// `--token-file` names something that cannot be read.
    #[error("cannot read the token from {path}: {source}; check --token-file", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing but white space.
    #[error("the token is empty; check --token, --token-file or RELAY_TOKEN")]
    Empty,
    /// Line breaks or other characters a header cannot carry.
    #[error("the token has characters that cannot be sent in a header; is it the right file?")]
    NotAHeader,
}

/// Where a server listens: `http://host:port` or `https://host:port`, with a path in front of the relay's own if it
/// sits behind one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    host: String,
    port: u16,
    /// Whether it is spoken to over TLS.
    is_secure: bool,
    /// Certificates to trust it by, instead of the system's.
    ca: Option<PathBuf>,
    /// Without a trailing slash.
    base: String,
}

/// Why a text is not a [`ServerUrl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServerUrlError {
    /// Not a URL, or not one of a web server.
    #[error("is not an address like http://127.0.0.1:8080")]
    NotAUrl,
}

impl ServerUrl {
    /// The same, trusted by these certificates instead of the system's.
    pub(crate) fn trusting(mut self, ca: Option<PathBuf>) -> Self {
        self.ca = ca;
        self
    }

    /// The URL of `path` (which starts with a slash) on this server.
    fn target(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let uri: Uri = with_scheme.parse().map_err(|_| ServerUrlError::NotAUrl)?;
        let is_secure = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(ServerUrlError::NotAUrl),
        };
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or(ServerUrlError::NotAUrl)?;
        Ok(Self {
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 }),
            is_secure,
            ca: None,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base)
    }
}

/// One request, before it has a server.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// GET, POST, …
    pub(crate) method: Method,
    /// Path and query, already escaped.
    pub(crate) path: String,
    /// Shown as `Authorization: Bearer`.
    pub(crate) token: Option<Token>,
    /// A JSON body, or empty.
    pub(crate) body: Bytes,
}

impl Call {
    /// A GET of `path`.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            token: None,
            body: Bytes::new(),
        }
    }

    fn into_request(self, server: &ServerUrl) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(server.target(&self.path))
            .header(HOST, server.authority())
            .header(USER_AGENT, concat!("relay/", env!("CARGO_PKG_VERSION")));
        if let Some(Token(value)) = self.token {
            request = request.header(AUTHORIZATION, value);
        }
        if !self.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(self.body))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CallError {
    /// Nobody listens there, or the way is cut.
    #[error("cannot reach {server}: {source}; is the relay running, and is --url right?")]
    Unreachable {
        /// Where we tried.
        server: ServerUrl,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be trusted, or does not speak TLS.
    #[error("cannot speak TLS with {server}: {source}{}", hint(source))]
    Tls {
        /// Where we tried.
        server: ServerUrl,
        /// What is wrong.
        source: io::Error,
    },
    /// The certificates to trust cannot be read.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// No answer in time.
    #[error("{server} did not answer within {}", humantime::format_duration(*within))]
    TooLate {
        /// Where we tried.
        server: ServerUrl,
        /// How long.
        within: Duration,
    },
    /// The connection ended or the answer was no HTTP.
    #[error("{server} does not answer as an HTTP server should: {source}; is --url right?")]
    NotHttp {
        /// Where we tried.
        server: ServerUrl,
        /// What is wrong.
        source: hyper::Error,
    },
    /// The answer's body broke off or is too long.
    #[error("the answer of {server} could not be read: {source}")]
    Body {
        /// Where we tried.
        server: ServerUrl,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request could not be put together.
    #[error("the request could not be made: {0}")]
    Request(#[from] http::Error),
}

impl CallError {
    /// Whether it will be the same next time: the server is not trusted, or nobody can be.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Roots(_) => true,
            Self::Tls { source, .. } => tls::is_mistrust(source),
            _ => false,
        }
    }
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body, whole.
    pub(crate) body: Bytes,
}

/// What the relay says when it refuses: `{"error":{"code","field","message"}}`.
#[derive(Debug, Default, serde::Deserialize)]
struct Refusal {
    #[serde(default)]
    error: RefusalWords,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct RefusalWords {
    code: String,
    field: Option<String>,
    message: String,
}

impl Answer {
    /// Why the server refused, in its own words, and which field it is about.
    pub(crate) fn sentence(&self) -> String {
        let words = serde_json::from_slice::<Refusal>(&self.body)
            .unwrap_or_default()
            .error;
        let status = self.status;
        match (words.field, words.message) {
            (Some(field), message) if !message.is_empty() && !message.contains(&field) => {
                format!("{field}: {message}")
            }
            (_, message) if !message.is_empty() => message,
            _ if !words.code.is_empty() => format!("{} ({status})", words.code),
            _ => match self.first_line() {
                Some(line) if status.is_success() => line,
                Some(line) => format!("{line} ({status})"),
                None => format!("the server answered {status}"),
            },
        }
    }

    /// The refusal's code, for programs; empty if there is none.
    pub(crate) fn code(&self) -> String {
        let refusal = serde_json::from_slice::<Refusal>(&self.body);
        refusal.unwrap_or_default().error.code
    }

    /// The first line of the body that is not blank, cut to a length fit for one line of a terminal.
    pub(crate) fn first_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.body);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(200).collect())
    }

    /// When the server asks to be called again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self
            .headers
            .get(RETRY_AFTER)?
            .to_str()
            .ok()?
            .trim()
            .parse()
            .ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// Makes one call and takes the whole answer.
///
/// # Errors
/// When no complete answer came within `within`; an answer that refuses is an answer.
pub(crate) async fn call(
    server: &ServerUrl,
    call: Call,
    within: Duration,
) -> Result<Answer, CallError> {
    let request = call.into_request(server)?;
    let mut link = JoinSet::new();
    let exchange = async {
        let response = send(server, request, &mut link).await?;
        collect(server, response).await
    };
    in_time(server, within, exchange).await
}

/// What came of asking for another protocol.
#[derive(Debug)]
pub(crate) enum Upgrade {
    /// The server agreed: its headers, the socket, and what came in on it after the headers.
    Switched(HeaderMap, Stream, Bytes),
    /// The server refused, and said why.
    Refused(Answer),
}

/// Asks the server to switch protocols on this connection.
///
/// Unlike the handshake of a WebSocket crate this reads the whole body of a refusal, which is where the
/// reason is.
///
/// # Errors
/// As [`call`].
pub(crate) async fn upgrade(
    server: &ServerUrl,
    call: Call,
    headers: &[(HeaderName, HeaderValue)],
    within: Duration,
) -> Result<Upgrade, CallError> {
    let mut request = call.into_request(server)?;
    request.headers_mut().extend(headers.iter().cloned());
    let mut link = JoinSet::new();
    let exchange = async {
        let response = send(server, request, &mut link).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return collect(server, response).await.map(Upgrade::Refused);
        }
        let headers = response.headers().clone();
        let not_http = |source| CallError::NotHttp {
            server: server.clone(),
            source,
        };
        let upgraded = hyper::upgrade::on(response).await.map_err(not_http)?;
        match upgraded.downcast::<TokioIo<Stream>>() {
            Ok(parts) => Ok(Upgrade::Switched(
                headers,
                parts.io.into_inner(),
                parts.read_buf,
            )),
            Err(_) => Err(CallError::Unreachable {
                server: server.clone(),
                source: io::Error::other("the connection is not a TCP connection"),
            }),
        }
    };
    in_time(server, within, exchange).await
}

async fn in_time<T>(
    server: &ServerUrl,
    within: Duration,
    exchange: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(within, exchange)
        .await
        .unwrap_or_else(|_| {
            Err(CallError::TooLate {
                server: server.clone(),
                within,
            })
        })
}

/// Connects, sends, and returns the answer's head. `link` drives the connection and must outlive the body.
async fn send(
    server: &ServerUrl,
    request: Request<Full<Bytes>>,
    link: &mut JoinSet<()>,
) -> Result<http::Response<Incoming>, CallError> {
    let not_http = |source| CallError::NotHttp {
        server: server.clone(),
        source,
    };
    let stream = tls::connect(server).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(not_http)?;
    link.spawn(async move {
        // What ends the connection is told to whoever waits for the answer.
        drop(connection.with_upgrades().await);
    });
    sender.send_request(request).await.map_err(not_http)
}

async fn collect(
    server: &ServerUrl,
    response: http::Response<Incoming>,
) -> Result<Answer, CallError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|source| CallError::Body {
            server: server.clone(),
            source,
        })?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: body.to_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SECOND: Duration = Duration::from_secs(1);

    /// A server that answers one request, head and body in two pieces, and closes.
    async fn answering(head: &'static str, body: &'static str) -> (ServerUrl, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            assert!(socket.read(&mut request).await.unwrap() > 0);
            let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(head.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
            socket.write_all(body.as_bytes()).await.unwrap();
        });
        (url, server)
    }

    #[test]
    fn a_server_url_may_leave_out_what_is_usual() {
        let shown = |text: &str| text.parse::<ServerUrl>().map(|url| url.to_string());
        assert_eq!(shown("localhost:8080").unwrap(), "http://localhost:8080");
        assert_eq!(shown("http://relay/").unwrap(), "http://relay:80");
        assert_eq!(shown("http://edge/relay/").unwrap(), "http://edge:80/relay");
        assert_eq!(shown("ws://[::1]:8080").unwrap(), "http://[::1]:8080");
        assert_eq!(shown("https://relay").unwrap(), "https://relay:443");
        assert_eq!(
            shown("wss://relay:8443/x/").unwrap(),
            "https://relay:8443/x"
        );
        assert_eq!(shown("ftp://relay"), Err(ServerUrlError::NotAUrl));
        assert_eq!(shown("http://"), Err(ServerUrlError::NotAUrl));
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_servers_words() {
        let (url, _server) = answering(
            "422 Unprocessable Entity",
            r#"{"error":{"code":"bad_value","field":"progress","message":"is above 100; use 0-100"}}"#,
        )
        .await;
        let answer = call(&url, Call::get("/v1/jobs/a"), SECOND).await.unwrap();
        assert_eq!(answer.sentence(), "progress: is above 100; use 0-100");
    }

    #[tokio::test]
    async fn the_whole_body_of_a_refused_upgrade_is_read() {
        let (url, _server) = answering(
            "503 Service Unavailable\r\nretry-after: 7",
            r#"{"error":{"code":"draining","message":"come back soon"}}"#,
        )
        .await;
        match upgrade(&url, Call::get("/v1/ws"), &[], SECOND)
            .await
            .unwrap()
        {
            Upgrade::Refused(answer) => {
                assert_eq!(answer.sentence(), "come back soon");
                assert_eq!(answer.retry_after(), Some(Duration::from_secs(7)));
            }
            Upgrade::Switched(..) => panic!("was refused"),
        }
    }

    #[tokio::test]
    async fn bytes_that_follow_the_switch_are_kept() {
        let (url, _server) = answering(
            "101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket",
            "early",
        )
        .await;
        match upgrade(&url, Call::get("/v1/ws"), &[], SECOND)
            .await
            .unwrap()
        {
            Upgrade::Switched(headers, mut socket, mut early) => {
                assert_eq!(headers["upgrade"], "websocket");
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).await.unwrap();
                early = [early, Bytes::from(rest)].concat().into();
                assert_eq!(&early[..], b"early");
            }
            Upgrade::Refused(answer) => panic!("{}", answer.sentence()),
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_apart_from_one_that_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: ServerUrl = listener.local_addr().unwrap().to_string().parse().unwrap();
        let silent = call(&url, Call::get("/"), Duration::from_millis(20)).await;
        assert!(
            matches!(silent, Err(CallError::TooLate { .. })),
            "{silent:?}"
        );
        drop(listener);
        let absent = call(&url, Call::get("/"), SECOND).await;
        assert!(
            matches!(absent, Err(CallError::Unreachable { .. })),
            "{absent:?}"
        );
    }

    #[test]
    fn a_token_never_shows_in_debug_output() {
        assert_eq!(format!("{:?}", Token::new("secret").unwrap()), "Token(…)");
        assert!(matches!(Token::new("a\nb"), Err(TokenError::NotAHeader)));
    }
}
