//! The head of the answer to a WebSocket handshake (RFC 6455 section 4.2.2).
//!
//! It knows headers alone: no routes, no sockets, no identities.
//!
//! Invariant: a token that came as a subprotocol is never repeated.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Version};
use relay_wire::websocket;

use super::gate::Head;
use crate::answer::ApiError;
use crate::headers::{asks_for_websocket, elements, lists};
use crate::identity::credential::SUBPROTOCOL_PREFIX;

/// The relay's own protocol over a WebSocket.
const PROTOCOL: &str = "relay.v1";

/// The head of the answer, in one of these subprotocols if the client offers one, with the request's id where it has
/// one.
///
/// # Errors
/// 426 for a request that is not a handshake, 400 for one that is broken or cannot be agreed on.
pub(super) fn answer(
    request: Head<'_>,
    subprotocols: &[String],
    request_id: Option<&HeaderValue>,
) -> Result<Bytes, ApiError> {
    let headers = request.headers();
    let upgrades = asks_for_websocket(headers) && lists(headers, header::CONNECTION, "upgrade");
    // An Upgrade in a request of HTTP/1.0 is to be passed over (RFC 9110, 7.8).
    if !upgrades || *request.method() != Method::GET || request.version() < Version::HTTP_11 {
        return Err(ApiError::upgrade_required());
    }
    if !elements(headers, header::SEC_WEBSOCKET_VERSION).eq(["13"]) {
        return Err(ApiError::bad_websocket_version());
    }
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if headers.contains_key(header::TRANSFER_ENCODING) || lengths.into_iter().any(|it| it != "0") {
        // Its bytes would be read as frames.
        return Err(ApiError::bad_request(
            "bad_handshake",
            "a WebSocket handshake has no body",
        ));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key);
    if !decoded.is_ok_and(|key| key.len() == 16) {
        return Err(ApiError::bad_request(
            "bad_handshake",
            "Sec-WebSocket-Key is not 16 bytes in base64",
        ));
    }
    let accept = websocket::accept_key(key);
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    )
    .into_bytes();
    if let Some(protocol) = subprotocol(headers, subprotocols)? {
        head.extend_from_slice(format!("Sec-WebSocket-Protocol: {protocol}\r\n").as_bytes());
    }
    if let Some(id) = request_id {
        head.extend_from_slice(&[b"x-request-id: ", id.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    Ok(head.into())
}

/// The subprotocol to agree on: the client's first that is spoken here.
///
/// # Errors
/// 400 for a client that offers its token and nothing that can be agreed on: a browser that is answered none of
/// what it offered closes the connection, and does not say why.
fn subprotocol<'a>(headers: &HeaderMap, own: &'a [String]) -> Result<Option<&'a str>, ApiError> {
    let offers = || elements(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let agreed = offers().find_map(|name| {
        let mut spoken = own.iter().map(String::as_str).chain([PROTOCOL]);
        spoken.find(|each| *each == name)
    });
    if agreed.is_some() {
        return Ok(agreed);
    }
    if offers().any(|name| name.starts_with(SUBPROTOCOL_PREFIX)) {
        return Err(ApiError::bad_request(
            "bad_handshake",
            "Sec-WebSocket-Protocol has a token and not relay.v1, which is what the relay agrees on: new WebSocket(url, ['relay.v1', 'relay.token.' + token])",
        ));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn handshake(more: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        let headers = request.headers_mut();
        let usual = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in usual.iter().chain(more) {
            if value.is_empty() {
                headers.remove(*name);
            } else {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                headers.append(*name, value);
            }
        }
        request
    }

    #[test]
    fn a_client_that_offers_its_token_alone_is_told_what_else_to_offer() {
        let name = "sec-websocket-protocol";
        let own = ["theirs".to_owned()];
        for (offers, agreed) in [
            (&[][..], Ok(None)),
            (&["chat, theirs, relay.v1"], Ok(Some("theirs"))),
            (&["relay.token.a", "theirs"], Ok(Some("theirs"))),
            (&["relay.v1, relay.token.a"], Ok(Some("relay.v1"))),
            (&["relay.token.a", "é,relay.v1"], Ok(Some("relay.v1"))),
            (&["chat"], Ok(None)),
            (&["relay.token.a"], Err(400)),
            (&["chat, relay.token.a"], Err(400)),
            (&["chat", "relay.token."], Err(400)),
        ] {
            let offers = offers.iter().map(|offer| (name, *offer));
            let request = handshake(&offers.collect::<Vec<_>>());
            let headers = request.headers();
            let answered = subprotocol(headers, &own).map_err(|error| error.status().as_u16());
            assert_eq!(answered, agreed, "{headers:?}");
            let head =
                answer(Head::of(&request), &own, None).map_err(|error| error.status().as_u16());
            let head = head.map(|head| String::from_utf8(head.to_vec()).unwrap());
            let line = |agreed| format!("Sec-WebSocket-Protocol: {agreed}\r\n");
            let said = head.map(|head| match agreed.ok().flatten() {
                Some(agreed) => head.contains(&line(agreed)),
                None => !head.contains("Sec-WebSocket-Protocol"),
            });
            assert_eq!(said, agreed.map(|_| true), "{headers:?}");
        }
    }

    #[test]
    fn a_handshake_that_is_refused_says_what_would_be_taken() {
        for (header, status, demanded) in [
            (("upgrade", ""), 426, "upgrade"),
            (("connection", ""), 426, "connection"),
            (("sec-websocket-version", ""), 400, "sec-websocket-version"),
            (("sec-websocket-version", "8"), 400, "sec-websocket-version"),
            (("content-length", "5"), 400, "content-type"),
            (("transfer-encoding", "chunked"), 400, "content-type"),
        ] {
            let refused = answer(Head::of(&handshake(&[header])), &[], None).unwrap_err();
            let refused = refused.into_answer();
            assert_eq!(refused.status().as_u16(), status);
            assert!(refused.headers().contains_key(demanded), "{header:?}");
        }
        assert!(answer(Head::of(&handshake(&[("content-length", "0")])), &[], None).is_ok());
    }

    #[test]
    fn a_handshake_is_a_get_of_http_1_1() {
        let mut post = handshake(&[]);
        *post.method_mut() = Method::POST;
        let mut old = handshake(&[]);
        *old.version_mut() = Version::HTTP_10;
        for request in [post, old] {
            let refused = answer(Head::of(&request), &[], None).unwrap_err();
            assert_eq!(refused.code(), "upgrade_required", "{request:?}");
        }
    }
}
