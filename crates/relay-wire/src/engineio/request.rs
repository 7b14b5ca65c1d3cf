//! What the query of an Engine.IO request says, checked in the order the official server checks it.

use std::borrow::Cow;

use super::{ErrorCode, RequestError};
use crate::target::pairs;

const GET: &str = "GET";
const POST: &str = "POST";

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A new session over polling.
    OpenPolling,
    /// A new session over WebSocket.
    OpenWebSocket,
    /// The next payload for a session.
    Poll(String),
    /// A payload from a session's client.
    Post(String),
    /// A WebSocket that is to take over from polling.
    Upgrade(String),
}

/// Whether a request speaks Engine.IO at all, on a path that other protocols share.
pub fn is_engine_io(query: &str) -> bool {
    pairs(query).any(|(key, _)| key == "EIO")
}

/// Reads a request.
///
/// # Errors
/// Says what is wrong in the words Engine.IO clients know.
pub fn parse(method: &str, query: &str, is_upgrade: bool) -> Result<Purpose, RequestError> {
    let value = |wanted: &str| {
        pairs(query)
            .find(|(key, _)| key == wanted)
            .map(|(_, value)| value)
    };
    let is_websocket = match value("transport").as_deref() {
        Some("polling") => false,
        Some("websocket") => true,
        Some(_) | None => {
            return Err(RequestError::new(
                ErrorCode::TransportUnknown,
                "transport= must be polling or websocket",
            ));
        }
    };
    if value("j").is_some() {
        return Err(RequestError::new(
            ErrorCode::BadRequest,
            "JSONP polling is not supported",
        ));
    }
    // The official server too takes an empty one for none.
    let sid = value("sid")
        .filter(|sid| !sid.is_empty())
        .map(Cow::into_owned);
    if sid.is_none() && method != GET {
        return Err(RequestError::new(
            ErrorCode::BadHandshakeMethod,
            "a session is opened with GET; a POST needs the sid= of one",
        ));
    }
    if value("EIO").as_deref() != Some("4") {
        return Err(RequestError::new(
            ErrorCode::UnsupportedVersion,
            "this server speaks EIO=4, which is socket.io-client 3 and 4; upgrade clients of version 2",
        ));
    }
    match (is_websocket, sid) {
        (true, _) if !is_upgrade => Err(RequestError::new(
            ErrorCode::BadRequest,
            "transport=websocket without a WebSocket handshake; does a proxy on the way drop the Upgrade header?",
        )),
        (false, _) if is_upgrade => Err(RequestError::new(
            ErrorCode::BadRequest,
            "a WebSocket handshake with transport=polling",
        )),
        (true, None) => Ok(Purpose::OpenWebSocket),
        (true, Some(sid)) => Ok(Purpose::Upgrade(sid)),
        (false, None) => Ok(Purpose::OpenPolling),
        (false, Some(sid)) if method == GET => Ok(Purpose::Poll(sid)),
        (false, Some(sid)) if method == POST => Ok(Purpose::Post(sid)),
        (false, Some(_)) => Err(RequestError::new(
            ErrorCode::BadRequest,
            "a session takes GET and POST",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(method: &str, query: &str, is_upgrade: bool) -> u8 {
        parse(method, query, is_upgrade).unwrap_err().code.number()
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let sid = || "abc".to_owned();
        for (method, query, is_upgrade, wanted) in [
            (GET, "EIO=4&transport=polling", false, Purpose::OpenPolling),
            (
                GET,
                "EIO=4&transport=websocket",
                true,
                Purpose::OpenWebSocket,
            ),
            (
                GET,
                "EIO=4&transport=polling&sid=",
                false,
                Purpose::OpenPolling,
            ),
            (
                GET,
                "%45IO=%34&transport=polling&t=x&sid=%61bc",
                false,
                Purpose::Poll(sid()),
            ),
            (
                POST,
                "EIO=4&transport=polling&sid=abc",
                false,
                Purpose::Post(sid()),
            ),
            (
                GET,
                "EIO=4&transport=websocket&sid=abc",
                true,
                Purpose::Upgrade(sid()),
            ),
        ] {
            assert_eq!(parse(method, query, is_upgrade), Ok(wanted), "{query}");
        }
    }

    #[test]
    fn what_is_wrong_has_the_official_number() {
        let get = GET;
        assert_eq!(code(get, "EIO=4", false), 0);
        assert_eq!(code(get, "EIO=4&transport=tobi", false), 0);
        assert_eq!(code(get, "EIO=4&transport=constructor", false), 0);
        assert_eq!(code(POST, "EIO=4&transport=polling", false), 2);
        assert_eq!(code("PUT", "EIO=4&transport=polling", false), 2);
        assert_eq!(code(get, "EIO=4&transport=websocket", false), 3);
        assert_eq!(code("PUT", "EIO=4&transport=polling&sid=a", false), 3);
        assert_eq!(code(get, "EIO=4&transport=polling&j=0", false), 3);
        for version in ["", "EIO=3&", "EIO=abc&", "EIO=5&", "EIO=%ff&"] {
            let query = format!("{version}transport=polling");
            assert_eq!(code(get, &query, false), 5, "{query}");
        }
    }

    #[test]
    fn a_request_of_another_protocol_is_not_taken_for_one() {
        assert!(is_engine_io("EIO=4&transport=websocket"));
        assert!(is_engine_io("EIO=3"));
        assert!(!is_engine_io("token=x"));
        assert!(!is_engine_io(""));
    }
}
