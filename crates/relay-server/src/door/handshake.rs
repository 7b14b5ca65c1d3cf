//! The head of the answer to a WebSocket handshake (RFC 6455 section 4.2.2).
//!
//! It knows headers alone: no routes, no sockets, no identities.
//!
//! Invariant: a token that came as a subprotocol is never repeated.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use relay_wire::websocket;

use crate::answer::ApiError;

/// The head of the answer, in one of these subprotocols if the client offers one, with the request's id where it has one.
///
/// # Errors
/// 426 for a request that is not a handshake, 400 for one that is broken.
pub(super) fn answer(
    headers: &HeaderMap,
    subprotocols: &[String],
    request_id: Option<&HeaderValue>,
) -> Result<Bytes, ApiError> {
    let has = |name, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| {
                value
                    .split(',')
                    .any(|each| each.trim().eq_ignore_ascii_case(token))
            })
    };
    if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
        return Err(ApiError::upgrade_required());
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(ApiError::bad_request(
            "bad_handshake",
            "this relay speaks version 13 of the WebSocket protocol",
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
    if let Some(protocol) = subprotocol(headers, subprotocols) {
        head.extend_from_slice(format!("Sec-WebSocket-Protocol: {protocol}\r\n").as_bytes());
    }
    if let Some(id) = request_id {
        head.extend_from_slice(&[b"x-request-id: ", id.as_bytes(), b"\r\n"].concat());
    }
    head.extend_from_slice(b"\r\n");
    Ok(head.into())
}

/// The subprotocol to agree on: the client's first that is spoken here, which a token never is. A browser that
/// offered some and is answered none closes the connection.
fn subprotocol<'a>(headers: &HeaderMap, own: &'a [String]) -> Option<&'a str> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut names = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    names.find_map(|name| {
        let mut spoken = own.iter().map(String::as_str).chain(["relay.v1"]);
        spoken.find(|each| *each == name.trim())
    })
}
