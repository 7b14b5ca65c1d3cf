//! Which web pages may talk to the relay, by the `Origin` a browser puts on their requests.
//!
//! Guards against pages, not against people: a program can send any origin, and needs a credential like
//! everybody else. The user is not known here.
//!
//! Invariant: a page of a foreign origin is refused before the upgrade, and never served with the cookies
//! of a user who did not allow it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Uri};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::headers::elements;
use crate::hosts::{asked, is_local, is_loopback, split_port};
use crate::refused::Refused;

/// Scheme, host and port of a page, in lower case and with the port that the scheme implies filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// Why a text is not an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OriginError {
    /// No `scheme://`.
    #[error("{0:?} has no scheme; write scheme://host[:port], such as \"https://{0}\"")]
    NoScheme(String),
    /// Something after the host and port.
    #[error("{0:?} has something after the host; leave off everything from the slash on")]
    Path(String),
    /// A star that is not the whole text.
    #[error("{0:?} has a star; name each origin in full, or use \"*\" alone for any")]
    Star(String),
    /// Anything else.
    #[error(
        "{0:?} is not an origin; write scheme://host[:port], such as \"https://app.example.com\""
    )]
    Malformed(String),
}

impl Origin {
    /// Reads `scheme://host[:port]`.
    ///
    /// # Errors
    /// Says what is wrong when it is something else, `null` included.
    pub(crate) fn parse(text: &str) -> Result<Self, OriginError> {
        let malformed = || OriginError::Malformed(text.to_owned());
        let Some((scheme, authority)) = text.split_once("://") else {
            let host = text.contains(['.', ':']) && !text.contains(['/', ' ']);
            return Err(if host {
                OriginError::NoScheme(text.to_owned())
            } else {
                malformed()
            });
        };
        if text.contains('*') {
            return Err(OriginError::Star(text.to_owned()));
        }
        if authority.contains(['/', '?', '#']) {
            return Err(OriginError::Path(text.to_owned()));
        }
        let scheme_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(scheme_char) {
            return Err(malformed());
        }
        let (host, port) = split_port(authority).ok_or_else(malformed)?;
        let scheme = scheme.to_ascii_lowercase();
        Ok(Self {
            port: port.or_else(|| implied_port(&scheme)),
            scheme,
            host: host.to_ascii_lowercase(),
        })
    }

    /// Whether the page came from this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// Whether `host`, as in a `Host` header, names the server this page came from. The scheme counts where the
    /// relay knows its own: behind a proxy that ends TLS and says nothing it cannot.
    fn is_host(&self, host: &str, is_secure: Option<bool>) -> bool {
        // An app's own scheme (capacitor://localhost) is not a page that this host served.
        let Some(implied) = implied_port(&self.scheme) else {
            return false;
        };
        let is_scheme = is_secure.is_none_or(|secure| secure == (self.scheme == "https"));
        split_port(host).is_some_and(|(name, port)| {
            is_scheme
                && name.eq_ignore_ascii_case(&self.host)
                && Some(port.unwrap_or(implied)) == self.port
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if Some(port) != implied_port(&self.scheme) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

fn implied_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// One entry of `http.allowed_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedOrigin {
    /// `*`: any page.
    Any,
    /// The pages of one origin.
    Exactly(Origin),
}

impl FromStr for AllowedOrigin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        match text.trim() {
            "*" => Ok(Self::Any),
            text => Origin::parse(text).map(Self::Exactly),
        }
    }
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exactly(origin) => origin.fmt(f),
        }
    }
}

impl Serialize for AllowedOrigin {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AllowedOrigin {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for AllowedOrigin {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Origin".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "origin" })
    }
}

/// Why a request's origin is let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No `Origin`: not a page of another origin, as browsers always name one there.
    None,
    /// The page came from the relay's own host.
    Own,
    /// The page, the listener and whoever asks are on this machine.
    Loopback,
    /// The origin is in `http.allowed_origins`.
    Listed,
    /// `http.allowed_origins` has `*`.
    Anyone,
}

impl Standing {
    /// Whether a cookie counts as the user's credential. With `*` it does not: the browser adds it to the
    /// requests of any page, and the page would act as the user without having been told a token.
    pub(crate) fn may_use_cookie(self) -> bool {
        self != Self::Anyone
    }
}

/// The rule for origins, made from the configuration once.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    listed: Vec<Origin>,
    anyone: bool,
    loopback: bool,
}

const ALLOW_METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PATCH, DELETE, OPTIONS");
const ALLOW_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Cache-Control, X-Request-ID",
);
const EXPOSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "ETag, Retry-After, Relay-Stale, Allow, Accept-Encoding, WWW-Authenticate, X-Request-ID, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset",
);
/// The longest list of headers that is repeated to a page that asks for it.
const MAX_REQUEST_HEADERS: usize = 1024;
/// Ten minutes: the browser asks once for a page's stay, and a changed configuration is soon seen.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

impl Policy {
    /// The rule by which the pages of `allowed` may connect, and pages of this machine if only it is
    /// listened to.
    pub(crate) fn new(allowed: &[AllowedOrigin], listen: IpAddr) -> Self {
        Self {
            listed: allowed
                .iter()
                .filter_map(|allowed| match allowed {
                    AllowedOrigin::Any => None,
                    AllowedOrigin::Exactly(origin) => Some(origin.clone()),
                })
                .collect(),
            anyone: allowed.contains(&AllowedOrigin::Any),
            loopback: listen.to_canonical().is_loopback(),
        }
    }

    /// Decides on a request by its `Origin`, the host that it goes to, and whether it is known to go there over TLS.
    ///
    /// # Errors
    /// 403 `foreign_origin`, naming the origin and the key to set.
    pub(crate) fn check(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        is_secure: Option<bool>,
    ) -> Result<Standing, Refused> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(value) = origins.next() else {
            return Ok(Standing::None);
        };
        let text = value.to_str().unwrap_or("(not text)");
        let origin = match (origins.next(), Origin::parse(text)) {
            (None, Ok(origin)) => origin,
            _ if self.anyone => return Ok(Standing::Anyone),
            _ => return Err(foreign(text)),
        };
        // Behind a proxy on this machine a page of "localhost" is on its visitor's machine, not on this one.
        let is_ours = !origin.is_loopback() || is_local(uri, headers);
        let asked = asked(uri, headers);
        let is_own = |secure| is_ours && asked.is_some_and(|host| origin.is_host(host, secure));
        if is_own(is_secure) {
            Ok(Standing::Own)
        } else if self.listed.contains(&origin) {
            Ok(Standing::Listed)
        } else if is_ours && self.loopback && origin.is_loopback() {
            Ok(Standing::Loopback)
        } else if self.anyone {
            Ok(Standing::Anyone)
        } else if is_own(None) {
            Err(of_the_other_scheme(text))
        } else {
            Err(foreign(text))
        }
    }

    /// The headers by which a browser lets the page read an answer. To be put on refusals too, or the
    /// page sees only that something failed.
    pub(crate) fn response_headers(
        &self,
        standing: Standing,
        request: &HeaderMap,
    ) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let origin = request.get(header::ORIGIN).cloned();
        let mut answer = Vec::with_capacity(4);
        match (standing, origin) {
            (Standing::Anyone, Some(_)) => {
                // Without Allow-Credentials: the page gets what anybody gets.
                answer.push((
                    header::ACCESS_CONTROL_ALLOW_ORIGIN,
                    HeaderValue::from_static("*"),
                ));
                answer.push((header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSE_HEADERS));
            }
            (Standing::Listed | Standing::Loopback | Standing::Own, Some(origin)) => {
                answer.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
                answer.push((
                    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                    HeaderValue::from_static("true"),
                ));
                answer.push((header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSE_HEADERS));
            }
            (Standing::None, _) | (_, None) => {}
        }
        // Also without an origin: a cache must not hand this answer to a page that has one.
        answer.push((header::VARY, HeaderValue::from_static("Origin")));
        answer.into_iter()
    }
}

/// The answer to a preflight (`OPTIONS` with `Access-Control-Request-Method`) of an origin that passed, without the
/// headers that every answer has.
pub(crate) fn preflight(request: &HeaderMap) -> Response<()> {
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, ALLOW_METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed(request));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    answer
}

/// The headers a page may send: those it asks for. Which page asks is what has been decided; a header of its own
/// that nobody reads here must not cost it the request.
fn allowed(request: &HeaderMap) -> HeaderValue {
    let is_name = |name: &&str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        name.chars().all(known)
    };
    let asked = elements(request, header::ACCESS_CONTROL_REQUEST_HEADERS).filter(is_name);
    let asked = asked.collect::<Vec<_>>().join(", ");
    let asked = Some(asked).filter(|names| (1..=MAX_REQUEST_HEADERS).contains(&names.len()));
    let asked = asked.and_then(|names| HeaderValue::try_from(names).ok());
    asked.unwrap_or(ALLOW_HEADERS)
}

/// The page is of the relay's own host, but by its proxy it was asked over TLS, and the page was not, or the other way
/// round.
fn of_the_other_scheme(origin: &str) -> Refused {
    let shown: String = origin.chars().take(100).collect();
    let mut refused = foreign(origin);
    refused.message = format!(
        "The page is of {shown}, and this request came by the other of http and https, as the proxy says; add that origin to http.allowed_origins if it may use this relay, or let the proxy that ends TLS say \"https\"."
    );
    refused
}

fn foreign(origin: &str) -> Refused {
    // Bounded: the text comes from the client and goes into answers and logs.
    let shown: String = origin.chars().take(100).collect();
    Refused {
        status: StatusCode::FORBIDDEN,
        code: "foreign_origin",
        message: format!(
            "Pages from {shown} may not use this relay; add that origin to http.allowed_origins if they should."
        ),
    }
}

#[cfg(test)]
mod tests;
