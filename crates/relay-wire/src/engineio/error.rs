//! Why an Engine.IO request is turned away, in the words and numbers its clients know.
//!
//! It does not know requests; those who read them say what is wrong.
//!
//! Invariant: numbers, words and statuses are those of the official server.

use serde::Serialize;

/// Why a request is turned away, in the words and numbers Engine.IO clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// `transport=` names neither polling nor websocket.
    TransportUnknown,
    /// No session of this process has that id.
    SessionUnknown,
    /// A session is opened with GET.
    BadHandshakeMethod,
    /// Against the rules of the protocol.
    BadRequest,
    /// Not for this client.
    Forbidden,
    /// Another version than 4.
    UnsupportedVersion,
}

/// A request that is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RequestError {
    /// For programs.
    pub code: ErrorCode,
    /// A sentence for people; clients do not look at it.
    pub reason: &'static str,
}

impl RequestError {
    /// Turns a request away.
    pub const fn new(code: ErrorCode, reason: &'static str) -> Self {
        Self { code, reason }
    }

    /// The answer's body.
    pub fn body(self) -> Vec<u8> {
        self.code.body(self.reason)
    }
}

impl ErrorCode {
    /// Engine.IO's number for it.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::TransportUnknown => 0,
            Self::SessionUnknown => 1,
            Self::BadHandshakeMethod => 2,
            Self::BadRequest => 3,
            Self::Forbidden => 4,
            Self::UnsupportedVersion => 5,
        }
    }

    /// Engine.IO's words for it.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::TransportUnknown => "Transport unknown",
            Self::SessionUnknown => "Session ID unknown",
            Self::BadHandshakeMethod => "Bad handshake method",
            Self::BadRequest => "Bad request",
            Self::Forbidden => "Forbidden",
            Self::UnsupportedVersion => "Unsupported protocol version",
        }
    }

    /// The word in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::TransportUnknown => "engineio_transport_unknown",
            Self::SessionUnknown => "engineio_session_unknown",
            Self::BadHandshakeMethod => "engineio_bad_handshake_method",
            Self::BadRequest => "engineio_bad_request",
            Self::Forbidden => "engineio_forbidden",
            Self::UnsupportedVersion => "engineio_unsupported_version",
        }
    }

    /// The number of the HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Forbidden => 403,
            Self::TransportUnknown
            | Self::SessionUnknown
            | Self::BadHandshakeMethod
            | Self::BadRequest
            | Self::UnsupportedVersion => 400,
        }
    }

    /// The answer's body; `reason` is for people, clients do not look at it.
    fn body(self, reason: &str) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            code: u8,
            message: &'a str,
            reason: &'a str,
        }
        let (code, message) = (self.number(), self.message());
        let body = Body {
            code,
            message,
            reason,
        };
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_number_and_the_words_clients_know() {
        let body = RequestError::new(ErrorCode::SessionUnknown, "why").body();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"code":1,"message":"Session ID unknown","reason":"why"}"#
        );
        assert_eq!(ErrorCode::Forbidden.status(), 403);
        assert_eq!(ErrorCode::UnsupportedVersion.status(), 400);
    }
}
