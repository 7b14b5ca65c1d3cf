//! Finds the credential in a request: header, cookie, query or subprotocol.
//!
//! Does not look inside the token; `Verifier` does.
//!
//! Invariant: two credentials that disagree are refused, so nobody can choose which one is believed.

use std::fmt;

use http::Uri;
use http::header::{self, HeaderMap};

use crate::refused::Refused;

/// In front of the token in a `Sec-WebSocket-Protocol`.
pub(crate) const SUBPROTOCOL_PREFIX: &str = "relay.token.";

/// The longest token that is looked at.
pub(crate) const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Where a credential was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// `Authorization: Bearer`.
    Header,
    /// The cookie that `auth.cookie` names.
    Cookie,
    /// `?token=`.
    Query,
    /// `Sec-WebSocket-Protocol: relay.token.<token>`.
    Subprotocol,
    /// An `auth` message on an open connection.
    Message,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "the Authorization header",
            Self::Cookie => "the cookie",
            Self::Query => "?token=",
            Self::Subprotocol => "the subprotocol",
            Self::Message => "the auth message",
        })
    }
}

/// A token somebody sent. Its text is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    token: String,
    source: Source,
}

impl Credential {
    /// A token from `source`.
    ///
    /// # Errors
    /// 401 when it is empty or longer than [`MAX_TOKEN_BYTES`].
    pub(crate) fn new(token: &str, source: Source) -> Result<Self, Refused> {
        if token.is_empty() {
            return Err(Refused::unauthorized(
                "token_malformed",
                format!("The token in {source} is empty."),
            ));
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refused::unauthorized(
                "token_too_long",
                format!("The token in {source} is longer than {MAX_TOKEN_BYTES} bytes."),
            ));
        }
        Ok(Self {
            token: token.to_owned(),
            source,
        })
    }

    /// The token's text. Not to be printed.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential([redacted] from {})", self.source)
    }
}

/// The credential of a request, if it has one.
///
/// `cookie` is the name of the cookie to look for; `None` where cookies do not count, see
/// [`Standing::may_use_cookie`](crate::origin::Standing::may_use_cookie).
///
/// # Errors
/// 401 when a credential is empty, too long or no text, or when two disagree.
pub(crate) fn credential(
    headers: &HeaderMap,
    uri: &Uri,
    cookie: Option<&str>,
) -> Result<Option<Credential>, Refused> {
    let mut found: Option<Credential> = None;
    let mut add = |token: &str, source| {
        let one = Credential::new(token, source)?;
        match &found {
            None => found = Some(one),
            Some(other) if other.token == one.token => {}
            Some(other) => {
                return Err(Refused::unauthorized(
                    "credentials_disagree",
                    format!(
                        "The request has different tokens in {} and {}; send one.",
                        other.source, one.source
                    ),
                ));
            }
        }
        Ok(())
    };
    for value in headers.get_all(header::AUTHORIZATION) {
        // Other schemes are for others, such as a proxy's own password.
        if let Some(token) = bearer(text(value, Source::Header)?) {
            add(token, Source::Header)?;
        }
    }
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        for protocol in text(value, Source::Subprotocol)?.split(',') {
            if let Some(token) = protocol.trim().strip_prefix(SUBPROTOCOL_PREFIX) {
                add(token, Source::Subprotocol)?;
            }
        }
    }
    for pair in uri.query().unwrap_or_default().split('&') {
        if let Some(token) = pair.strip_prefix("token=") {
            add(token, Source::Query)?;
        }
    }
    if let Some(name) = cookie {
        for value in headers.get_all(header::COOKIE) {
            // Another site's cookie that is not text does not make the request a bad one.
            for pair in value.to_str().unwrap_or_default().split(';') {
                match pair.trim().split_once('=') {
                    Some((n, token)) if n == name => add(token.trim_matches('"'), Source::Cookie)?,
                    _ => {}
                }
            }
        }
    }
    Ok(found)
}

fn text(value: &http::HeaderValue, source: Source) -> Result<&str, Refused> {
    value.to_str().map_err(|_| {
        Refused::unauthorized(
            "token_malformed",
            format!("The token in {source} is not text."),
        )
    })
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn find(list: &[(&'static str, &str)], uri: &str) -> Result<Option<Credential>, Refused> {
        credential(&headers(list), &uri.parse().unwrap(), Some("relay_token"))
    }

    #[test]
    fn a_credential_is_found_in_each_of_its_places() {
        for (list, uri, source) in [
            (vec![("authorization", "Bearer a.b.c")], "/", Source::Header),
            (
                vec![("authorization", "bearer  a.b.c ")],
                "/",
                Source::Header,
            ),
            (
                vec![("cookie", "x=1; relay_token=a.b.c; y=2")],
                "/",
                Source::Cookie,
            ),
            (
                vec![("cookie", "relay_token=\"a.b.c\"")],
                "/",
                Source::Cookie,
            ),
            (vec![], "/v1/sse?topic=job:j&token=a.b.c", Source::Query),
            (
                vec![("sec-websocket-protocol", "relay.v1, relay.token.a.b.c")],
                "/",
                Source::Subprotocol,
            ),
        ] {
            let found = find(&list, uri).unwrap().unwrap();
            assert_eq!((found.token(), found.source), ("a.b.c", source), "{list:?}");
        }
    }

    #[test]
    fn what_is_no_credential_is_not_taken_for_one() {
        for (list, uri) in [
            (vec![], "/"),
            (vec![("authorization", "Basic YTpi")], "/"),
            (vec![("cookie", "my_relay_token=a; other=b")], "/"),
            (vec![("sec-websocket-protocol", "relay.v1")], "/"),
            (vec![], "/?mytoken=a&x=token=b"),
        ] {
            assert_eq!(find(&list, uri), Ok(None), "{list:?} {uri}");
        }
    }

    #[test]
    fn a_cookie_does_not_count_where_it_must_not() {
        let cookie = headers(&[("cookie", "relay_token=a.b.c")]);
        assert_eq!(credential(&cookie, &"/".parse().unwrap(), None), Ok(None));
    }

    #[test]
    fn the_same_token_in_two_places_is_one_credential() {
        let list = [("authorization", "Bearer a"), ("cookie", "relay_token=a")];
        assert_eq!(find(&list, "/?token=a").unwrap().unwrap().token(), "a");
    }

    #[test]
    fn tokens_that_disagree_are_refused_and_named_by_place() {
        for (list, uri) in [
            (vec![("authorization", "Bearer aaa")], "/?token=bbb"),
            (vec![("cookie", "relay_token=aaa")], "/?token=bbb"),
            (vec![], "/?token=aaa&token=bbb"),
            (
                vec![
                    ("authorization", "Bearer aaa"),
                    ("authorization", "Bearer bbb"),
                ],
                "/",
            ),
        ] {
            let refused = find(&list, uri).unwrap_err();
            assert_eq!(refused.code, "credentials_disagree");
            assert!(!refused.message.contains("aaa"), "{refused}");
        }
    }

    #[test]
    fn an_empty_or_endless_token_is_refused() {
        let refused = find(&[("authorization", "Bearer")], "/").unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (401, "token_malformed")
        );
        assert_eq!(find(&[], "/?token=").unwrap_err().code, "token_malformed");
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
        let refused = find(&[("authorization", &long)], "/").unwrap_err();
        assert_eq!(refused.code, "token_too_long");
    }

    #[test]
    fn a_credential_is_never_printed() {
        let one = Credential::new("s3cret.s3cret.s3cret", Source::Query).unwrap();
        assert!(!format!("{one:?}").contains("s3cret"));
    }
}
