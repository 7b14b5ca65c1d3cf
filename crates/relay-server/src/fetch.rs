//! Small JSON documents from other servers: keys that tokens are checked with, and decisions on who may come in.
//!
//! One request a connection, over TLS by rustls, or in plain text within this machine. What is asked for, and what an
//! answer means, is not known here.
//!
//! Invariant: an answer is bounded in time and bytes, no redirect is followed, and an error repeats nothing of what
//! was sent.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// Where a document is: `https://…`, or `http://…` of this machine.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    uri: Uri,
    host: String,
    port: u16,
    is_tls: bool,
}

/// Why a text is not a [`Url`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlError {
    /// Not a URL at all.
    #[error("is not an address like https://login.example.com/keys")]
    NotAUrl,
    /// Whoever is on the way could answer.
    #[error(
        "is plain http to another machine, where anybody on the way could answer; use https (http is for 127.0.0.1, ::1 and localhost)"
    )]
    Plain,
    /// A name or a password in front of the host.
    #[error("has a user or a password before the host; leave them out")]
    UserInfo,
}

impl Url {
    /// Checks a text and takes it as an address.
    ///
    /// # Errors
    /// Says what is wrong, without repeating the text.
    pub(crate) fn parse(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.trim().parse().map_err(|_| UrlError::NotAUrl)?;
        let authority = uri.authority().ok_or(UrlError::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        let host = authority.host();
        let host = host.strip_prefix('[').unwrap_or(host);
        let host = host.strip_suffix(']').unwrap_or(host).to_owned();
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(UrlError::NotAUrl),
        };
        if host.is_empty() || (authority.as_str().ends_with(':')) {
            return Err(UrlError::NotAUrl);
        }
        if !is_tls && !is_this_machine(&host) {
            return Err(UrlError::Plain);
        }
        let port = authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self {
            uri,
            host,
            port,
            is_tls,
        })
    }

    /// Host and port, as `Host` has them.
    fn authority(&self) -> &str {
        self.uri
            .authority()
            .map_or("", |authority| authority.as_str())
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = host.eq_ignore_ascii_case("localhost");
    name || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

/// What is asked.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    /// Headers besides those that every request has.
    pub headers: HeaderMap,
    /// A JSON document that is sent; without one it is a GET.
    pub body: Option<Bytes>,
}

/// How much is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until the answer is there as a whole.
    pub time: Duration,
    /// Of the answer's body.
    pub bytes: usize,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FetchError {
    /// Nobody listens there, or the way is cut.
    #[error("cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// The certificate is not trusted, among others.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// There is nothing to check certificates by.
    #[error(
        "the system has no certificates to check servers by: {0}; install ca-certificates, or set SSL_CERT_FILE"
    )]
    NoRoots(String),
    /// No answer in time.
    #[error("did not answer within {}", humantime::format_duration(*.0))]
    TooLate(Duration),
    /// The answer was not HTTP, or broke off.
    #[error("does not answer as an HTTP server should: {0}")]
    NotHttp(#[source] hyper::Error),
    /// The answer is too long.
    #[error("sent more than {0} bytes")]
    TooLarge(usize),
    /// The answer broke off.
    #[error("the answer broke off: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is elsewhere, where nobody has said that it may be.
    #[error(
        "redirects to {to:?} ({status}), which is not followed; configure that address if it is the right one"
    )]
    Redirect {
        /// Any of the 3xx.
        status: StatusCode,
        /// Where to, cut short.
        to: String,
    },
    /// The request could not be put together.
    #[error("the request could not be made: {0}")]
    Request(#[from] http::Error),
}

/// Asks for a document.
///
/// # Errors
/// Says why there is no answer. An answer that refuses is one.
pub(crate) async fn fetch(url: &Url, ask: Ask, patience: Patience) -> Result<Answer, FetchError> {
    let asked = Box::pin(exchange(url, ask, patience.bytes));
    let answer = timeout(patience.time, asked).await;
    let answer = answer.unwrap_or(Err(FetchError::TooLate(patience.time)))?;
    if answer.status.is_redirection() {
        let to = answer.headers.get(LOCATION);
        let to = to.map_or(String::new(), |to| {
            String::from_utf8_lossy(to.as_bytes()).into()
        });
        return Err(FetchError::Redirect {
            status: answer.status,
            to: to.chars().take(200).collect(),
        });
    }
    Ok(answer)
}

async fn exchange(url: &Url, ask: Ask, bytes: usize) -> Result<Answer, FetchError> {
    let stream = TcpStream::connect((url.host.as_str(), url.port)).await;
    let stream = stream.map_err(FetchError::Unreachable)?;
    let request = request(url, ask)?;
    if !url.is_tls {
        return speak(stream, request, bytes).await;
    }
    let name = ServerName::try_from(url.host.clone());
    let name = name.map_err(|error| FetchError::Tls(io::Error::other(error)))?;
    let connector = TlsConnector::from(tls()?);
    let stream = connector.connect(name, stream).await;
    speak(stream.map_err(FetchError::Tls)?, request, bytes).await
}

fn request(url: &Url, ask: Ask) -> Result<Request<Full<Bytes>>, http::Error> {
    let target = url
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let method = match ask.body {
        Some(_) => Method::POST,
        None => Method::GET,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("relay/", env!("CARGO_PKG_VERSION")));
    if let Some(headers) = request.headers_mut() {
        headers.extend(ask.headers);
        if ask.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
    }
    request.body(Full::new(ask.body.unwrap_or_default()))
}

async fn speak<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    bytes: usize,
) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(FetchError::NotHttp)?;
    // Dropped with this request, whatever becomes of it.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender.send_request(request).await;
    let (head, body) = answer.map_err(FetchError::NotHttp)?.into_parts();
    let body = Limited::new(body, bytes).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => FetchError::TooLarge(bytes),
        false => FetchError::Body(error),
    })?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: body.to_bytes(),
    })
}

/// How servers are known: by the certificates that the system trusts, or those of `SSL_CERT_FILE`.
fn tls() -> Result<Arc<ClientConfig>, FetchError> {
    static MADE: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(made) = MADE.get() {
        return Ok(made.clone());
    }
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(ToString::to_string);
        return Err(FetchError::NoRoots(
            why.unwrap_or_else(|| "none were found".to_owned()),
        ));
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| FetchError::Tls(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MADE.get_or_init(|| Arc::new(config)).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_on_the_way_can_answer_is_an_address() {
        for good in [
            "https://login.example.com",
            "https://login.example.com:8443/a?b=c",
            "http://127.0.0.1:9/jwks",
            "http://[::1]:9/",
            "http://localhost/x",
            " https://10.0.0.1/ ",
        ] {
            let url = Url::parse(good).unwrap();
            assert_eq!(Url::parse(&url.to_string()), Ok(url));
        }
        for (bad, why) in [
            ("", UrlError::NotAUrl),
            ("/etc/jwks.json", UrlError::NotAUrl),
            ("login.example.com", UrlError::NotAUrl),
            ("ftp://h/", UrlError::NotAUrl),
            ("file:///etc/passwd", UrlError::NotAUrl),
            ("https://", UrlError::NotAUrl),
            ("https://h:/", UrlError::NotAUrl),
            ("http://10.0.0.1/", UrlError::Plain),
            ("http://localhost.evil.example/", UrlError::Plain),
            ("http://127.0.0.1.evil.example/", UrlError::Plain),
            ("https://u:p@h/", UrlError::UserInfo),
            ("http://127.0.0.1@evil.example/", UrlError::UserInfo),
        ] {
            assert_eq!(Url::parse(bad), Err(why), "{bad}");
        }
    }
}
