//! A request that is turned away before anything was done for it, and why.
//!
//! Knows neither credentials nor origins; those who check them make it, and `answer` puts it on the wire.
//!
//! Invariant: a 401 has a `WWW-Authenticate`, anything else has none.

use http::StatusCode;
use http::header::HeaderValue;

/// Why a request is turned away, before anything was done for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    /// 401 when another credential may do, 403 when none will, 429 or 503 when this one may do later.
    pub status: StatusCode,
    /// A word for programs: `token_expired`, `foreign_origin`, …
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Refused {
    /// A refusal that another credential may turn.
    pub(crate) fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code,
            message: message.into(),
        }
    }

    /// A refusal that may pass by itself.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Self::unauthorized(code, message)
        }
    }

    /// A refusal of one more than there may be.
    pub(crate) fn too_many(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..Self::unauthorized(code, message)
        }
    }

    /// In how many seconds the same request may be answered otherwise.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some(5),
            _ => None,
        }
    }

    /// The refusal of somebody who brought no credential where one is needed.
    pub(crate) fn no_credential() -> Self {
        Self::unauthorized(
            "unauthenticated",
            "A token is needed: send it as Authorization: Bearer, in the cookie, as ?token= or as the subprotocol relay.token.<token>.",
        )
    }

    /// The value of `WWW-Authenticate`, which a 401 must have.
    pub(crate) fn www_authenticate(&self) -> Option<HeaderValue> {
        let value = match (self.status, self.code) {
            (StatusCode::UNAUTHORIZED, "unauthenticated") => "Bearer realm=\"relay\"",
            (StatusCode::UNAUTHORIZED, _) => "Bearer realm=\"relay\", error=\"invalid_token\"",
            _ => return None,
        };
        Some(HeaderValue::from_static(value))
    }
}
