//! Finds the credential in a request: header, cookie, query or subprotocol.
//!
//! Does not look inside the token; `Verifier` does.
//!
//! Invariant: two credentials that disagree are refused, so nobody can choose which one is believed.

use std::fmt;

use http::Uri;
use http::header::{self, HeaderMap};
use relay_wire::target;

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
    /// The headers that an application is asked with.
    Headers,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "the Authorization header",
            Self::Cookie => "the cookie",
            Self::Query => "?token=",
            Self::Subprotocol => "the subprotocol",
            Self::Message => "the auth message",
            Self::Headers => "the headers",
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

    /// What an application is asked with.
    pub(crate) fn forwarded(shown: String) -> Self {
        Self {
            token: shown,
            source: Source::Headers,
        }
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

/// The credential of a request, if it has one. One that is empty is none.
///
/// `cookie` is the name of the cookie to look for; `None` where cookies do not count, see
/// [`Standing::may_use_cookie`](crate::origin::Standing::may_use_cookie).
///
/// # Errors
/// 401 when a credential is too long or no text, or when two disagree.
pub(crate) fn credential(
    headers: &HeaderMap,
    uri: &Uri,
    cookie: Option<&str>,
) -> Result<Option<Credential>, Refused> {
    let mut found: Option<Credential> = None;
    let mut add = |token: &[u8], source| {
        if token.is_empty() {
            return Ok(());
        }
        let one = Credential::new(text(token, source)?, source)?;
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
    // Headers are read as bytes: what stands beside the token belongs to others, and may be anything.
    for value in headers.get_all(header::AUTHORIZATION) {
        if let Some(token) = bearer(value.as_bytes()) {
            add(token, Source::Header)?;
        }
    }
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        for protocol in value.as_bytes().split(|byte| *byte == b',') {
            if let Some(token) = protocol
                .trim_ascii()
                .strip_prefix(SUBPROTOCOL_PREFIX.as_bytes())
            {
                add(token, Source::Subprotocol)?;
            }
        }
    }
    for (key, token) in target::pairs(uri.query().unwrap_or_default()) {
        // A ticket by either name: what it is, it says itself.
        if key == "token" || key == "ticket" {
            add(token.as_bytes(), Source::Query)?;
        }
    }
    if let Some(name) = cookie {
        for value in headers.get_all(header::COOKIE) {
            for pair in value.as_bytes().split(|byte| *byte == b';') {
                if let Some(token) = cookie_value(pair, name) {
                    add(token, Source::Cookie)?;
                }
            }
        }
    }
    Ok(found)
}

fn text(token: &[u8], source: Source) -> Result<&str, Refused> {
    std::str::from_utf8(token).map_err(|_| {
        Refused::unauthorized(
            "token_malformed",
            format!("The token in {source} is not text."),
        )
    })
}

/// The token of an `Authorization`. Other schemes are for others, such as a proxy's own password.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace);
    let (scheme, token) = value.split_at(end.unwrap_or(value.len()));
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then(|| token.trim_ascii())
}

/// The value of one `name=value` of a `Cookie`, if it has that name; with or without quotes.
fn cookie_value<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?;
    let value = value.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    let quoted = value.strip_prefix(b"\"");
    Some(
        quoted
            .and_then(|it| it.strip_suffix(b"\""))
            .unwrap_or(value),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
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
            (vec![], "/v1/sse?token=a%2Eb%2ec", Source::Query),
            (vec![], "/v1/sse?x=%ff&%74oken=a.b.%63", Source::Query),
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

    /// What a browser, a proxy or another application puts beside the token is theirs.
    #[test]
    fn a_token_is_found_beside_what_is_not_ours() {
        let not_text = "\u{e9}\u{2603}";
        for (name, value) in [
            ("cookie", format!("name={not_text}; relay_token=a.b.c")),
            ("cookie", format!("relay_token=a.b.c; {not_text}=1; x")),
            ("cookie", format!("{not_text};relay_token = \"a.b.c\" ;=")),
            (
                "sec-websocket-protocol",
                format!("{not_text}, relay.token.a.b.c"),
            ),
        ] {
            let found = find(&[(name, &value)], "/").unwrap().unwrap();
            assert_eq!(found.token(), "a.b.c", "{value}");
        }
        for (name, value) in [
            ("authorization", "Basic é"),
            ("authorization", "é"),
            ("authorization", "Bearer\ta.b.c"),
            ("sec-websocket-protocol", "é"),
            ("cookie", "é"),
            ("cookie", "é=é"),
        ] {
            let list = [(name, value), ("authorization", "Bearer a.b.c")];
            let found = find(&list, "/").unwrap().unwrap();
            assert_eq!(found.token(), "a.b.c", "{value}");
        }
    }

    #[test]
    fn an_empty_token_is_none() {
        for (list, uri) in [
            (vec![("authorization", "Bearer")], "/"),
            (vec![("authorization", "Bearer  ")], "/"),
            (vec![("cookie", "relay_token=")], "/"),
            (vec![("cookie", "relay_token=\"\"; x=1")], "/"),
            (vec![("sec-websocket-protocol", "relay.token.")], "/"),
            (vec![], "/?token="),
            (vec![], "/?token"),
        ] {
            assert_eq!(find(&list, uri), Ok(None), "{list:?} {uri}");
            let good = [list, vec![("authorization", "Bearer a")]].concat();
            let found = find(&good, uri).unwrap().unwrap();
            assert_eq!((found.token(), found.source), ("a", Source::Header));
        }
    }

    #[test]
    fn a_token_that_is_endless_or_not_text_is_refused() {
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
        let refused = find(&[("authorization", &long)], "/").unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (401, "token_too_long")
        );
        let mut headers = HeaderMap::new();
        let bytes = HeaderValue::from_bytes(b"relay_token=\xff").unwrap();
        headers.insert("cookie", bytes);
        let refused = credential(&headers, &"/".parse().unwrap(), Some("relay_token"));
        assert_eq!(refused.unwrap_err().code, "token_malformed");
    }

    #[test]
    fn a_credential_is_never_printed() {
        let one = Credential::new("s3cret.s3cret.s3cret", Source::Query).unwrap();
        assert!(!format!("{one:?}").contains("s3cret"));
    }
}
