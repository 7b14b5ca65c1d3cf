//! HTTP answers: JSON bodies, and errors a person understands.
//!
//! Every error has the same shape, `{"error":{"code","message",…}}`: a word for programs, a sentence for
//! people. One table from what went wrong to a status is here.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use relay_bus::hub::{Lookup, PublishError};
use relay_bus::seam::{Rejection, StoreError};
use relay_core::id::Name;
use relay_core::job::Declined;
use relay_core::topic::Topic;
use relay_core::watcher::session::AMBIGUOUS;
use relay_core::watcher::sight::Viewer as _;
use serde::Serialize;

use crate::admission::Admission;
use crate::hosts::Hosts;
use crate::identity::Identity;
use crate::rates::TooOften;
use crate::refused::Refused;

/// On every answer: its type is what it says, and no browser guesses another one.
pub(crate) const NO_SNIFF: (HeaderName, HeaderValue) = (
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderValue::from_static("nosniff"),
);

/// An error as a client sees it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    message: String,
    /// Seconds until it is worth asking again.
    #[serde(skip)]
    retry_after: Option<u32>,
    #[serde(skip)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: &'a ApiError,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            field: None,
            message: message.into(),
            retry_after: None,
            headers: Vec::new(),
        }
    }

    /// The same with one more header.
    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Seconds until it is worth asking again.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// The word for programs.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// The sentence for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// 400: the request itself is wrong.
    pub(crate) fn bad_request(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 403: a topic the client may not watch.
    pub(crate) fn forbidden_topic(topic: &Topic) -> Self {
        let message =
            format!("{topic} belongs to another user, and your token's topics do not grant it");
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 409: a topic or a path that means several jobs or groups that the client may see.
    pub(crate) fn ambiguous() -> Self {
        Self::new(StatusCode::CONFLICT, "ambiguous_owner", AMBIGUOUS)
    }

    /// 403: one of several topics.
    pub(crate) fn forbidden() -> Self {
        let message =
            "one of the topics belongs to another user, and your token's topics do not grant it";
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 403: an owner the client may not publish for.
    pub(crate) fn may_not_publish(owner: &str) -> Self {
        let message = format!(
            "your token does not let you publish jobs of owner {owner:?}; its claim \"publish\" has to list that owner, or *"
        );
        Self::new(StatusCode::FORBIDDEN, "may_not_publish", message)
    }

    /// 403: a client that may publish for nobody.
    pub(crate) fn may_publish_nothing() -> Self {
        let message = "your token does not let you publish; its claim \"publish\" has to list the owners whose jobs you publish, or *";
        Self::new(StatusCode::FORBIDDEN, "may_not_publish", message)
    }

    /// 404: a path that leads nowhere.
    pub(crate) fn no_route() -> Self {
        let message = "there is nothing here; the relay serves /v1/ws, /v1/sse, /v1/poll, /v1/jobs/{id} and /v1/publish";
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 404: no state of the job is known.
    pub(crate) fn unknown_job(job: &str) -> Self {
        let mut error = Self::new(
            StatusCode::NOT_FOUND,
            "unknown_job",
            format!(
                "no state of job {job} is known yet; it may not have begun, or it ended long ago"
            ),
        );
        error.retry_after = Some(3);
        error
    }

    /// 404: nobody may see a state of the job, because there is none for this client.
    pub(crate) fn no_state(lookup: &Lookup, topic: &Topic, identity: &Identity) -> Self {
        let job = topic.id();
        match &lookup.removed {
            _ if lookup.stale => Self::bus_unavailable(),
            None => Self::unknown_job(job.as_str()),
            Some(removed) => {
                let (owner, parent) = (Some(&removed.owner), removed.parent.as_ref());
                match identity.may_watch(topic, owner, parent) {
                    true => Self::removed(job.as_str()),
                    false => Self::forbidden_topic(topic),
                }
            }
        }
    }

    /// 404: the job was removed.
    fn removed(job: &str) -> Self {
        let message = format!("job {job} was removed; only a higher attempt begins it anew");
        Self::new(StatusCode::NOT_FOUND, "removed", message)
    }

    /// 405.
    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        let message = format!("this path accepts {allow}");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
        .with(header::ALLOW, allow)
    }

    /// 415: a body that would have to be unpacked.
    pub(crate) fn unsupported_encoding(encoding: &str) -> Self {
        let shown: String = encoding.chars().take(40).collect();
        let message = format!(
            "the body is encoded as {shown:?} (Content-Encoding); the relay reads bodies only as they are, so send it without"
        );
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            message,
        )
        .with(header::ACCEPT_ENCODING, "identity")
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes (limits.update_bytes)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 426: a WebSocket path asked without a handshake.
    pub(crate) fn upgrade_required() -> Self {
        let message = "this path speaks WebSocket; without it use /v1/sse or /v1/poll";
        Self::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
            .with(header::UPGRADE, "websocket")
            .with(header::CONNECTION, "upgrade")
    }

    /// 400: a handshake of another version of the WebSocket protocol.
    pub(crate) fn bad_websocket_version() -> Self {
        let message = "this relay speaks version 13 of the WebSocket protocol";
        Self::bad_request("bad_handshake", message).with(header::SEC_WEBSOCKET_VERSION, "13")
    }

    /// 429: a bound on requests, over until `seconds` have passed.
    pub(crate) fn rate_limited(per_minute: u32, seconds: u32) -> Self {
        let message = format!("more than {per_minute} requests in a minute");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message);
        error.retry_after = Some(seconds);
        error
    }

    /// 429: something comes too often.
    pub(crate) fn too_often(refused: &TooOften) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut error = Self::new(status, "rate_limited", refused.to_string());
        error.retry_after = Some(refused.retry_after());
        error
    }

    /// 429: a bound on connections.
    pub(crate) fn limit(code: &'static str, message: &str) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, code, message);
        error.retry_after = Some(5);
        error
    }

    /// 500: the dialect's mapping gave no body.
    pub(crate) fn mapping_failed() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "mapping_failed",
            "the job's state could not be put into this answer's shape; the relay's log says why",
        )
    }

    /// 503: the relay is going away.
    pub(crate) fn draining() -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "the relay is restarting; come back in a moment",
        );
        error.retry_after = Some(2);
        error
    }

    /// 413: a payload of a Socket.IO client.
    pub(crate) fn payload_too_large(limit: usize) -> Self {
        let message = format!("the payload is larger than {limit} bytes (limits.message_bytes)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 503: more requests at once than are passed on.
    pub(crate) fn busy() -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too much is going on at the moment; try again",
        );
        error.retry_after = Some(2);
        error
    }

    /// 503: nobody can say now.
    pub(crate) fn bus_unavailable() -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "bus_unavailable",
            "the bus does not answer at the moment; try again",
        );
        error.retry_after = Some(2);
        error
    }

    /// 4xx: bytes that are not a request.
    pub(crate) fn unreadable(status: StatusCode) -> Self {
        let error = match status {
            StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Self::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                "the request's line and headers are larger than 16 KiB, or more than 100",
            ),
            _ => Self::new(
                StatusCode::BAD_REQUEST,
                "bad_request",
                "these bytes are not an HTTP/1.1 request; its line or one of its headers cannot be read",
            ),
        };
        Self { status, ..error }
    }

    /// The answer's bytes.
    pub(crate) fn into_answer(self) -> Response<Body> {
        let (parts, body) = self.into_parts();
        Response::from_parts(parts, Body::from(body))
    }

    /// The answer's head, and its body.
    pub(crate) fn into_parts(self) -> (http::response::Parts, Vec<u8>) {
        let body = serde_json::to_vec(&Envelope { error: &self }).unwrap_or_default();
        let mut response = json_head(self.status);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        headers.extend(self.headers);
        // Invariant: a refusal has the headers that a client needs of one with its status.
        debug_assert!(
            demanded(response.status())
                .iter()
                .all(|name| response.headers().contains_key(name)),
            "{response:?}"
        );
        (response.into_parts().0, body)
    }
}

/// The headers that an answer with this status has to have.
fn demanded(status: StatusCode) -> &'static [HeaderName] {
    match status {
        StatusCode::UNAUTHORIZED => &[header::WWW_AUTHENTICATE],
        StatusCode::METHOD_NOT_ALLOWED => &[header::ALLOW],
        StatusCode::UNSUPPORTED_MEDIA_TYPE => &[header::ACCEPT_ENCODING],
        StatusCode::UPGRADE_REQUIRED => &[header::UPGRADE, header::CONNECTION],
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => &[header::RETRY_AFTER],
        _ => &[],
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        self.into_answer()
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let header = refused.www_authenticate();
        let header = header.map(|value| (header::WWW_AUTHENTICATE, value));
        Self {
            headers: header.into_iter().collect(),
            retry_after: refused.retry_after(),
            ..Self::new(refused.status, refused.code, refused.message)
        }
    }
}

impl From<Declined> for ApiError {
    fn from(declined: Declined) -> Self {
        let (code, message) = (declined.code(), declined.to_string());
        match declined {
            Declined::Refused(refusal) => Self {
                field: refusal.field().map(str::to_owned),
                ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
            },
            Declined::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, message),
            Declined::Panicked => Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message),
            _ => Self::new(StatusCode::CONFLICT, code, message),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Declined(declined) => declined.into(),
            PublishError::MayNot { owner } => Self::may_not_publish(owner.as_str()),
            PublishError::Ambiguous(_) => Self::new(
                StatusCode::CONFLICT,
                "ambiguous_owner",
                format!("{error}: ?owner=<owner>, or \"owner\" in a line of a batch"),
            ),
            PublishError::UnknownJob(_) | PublishError::NothingToRemove(_) => {
                Self::new(StatusCode::NOT_FOUND, "unknown_job", error.to_string())
            }
            PublishError::Bus(error) => error.into(),
            _ => Self::bus_unavailable(),
        }
    }
}

impl From<StoreError> for ApiError {
    /// What passes is a 503 and worth another try; what does not is neither.
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Reused(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", message)
            }
            StoreError::Conflict => Self::new(StatusCode::CONFLICT, "conflict", message),
            StoreError::Refused(Rejection::TooLarge { .. }) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            StoreError::Refused(Rejection::Full { .. }) => {
                Self::new(StatusCode::CONFLICT, "stream_full", message)
            }
            StoreError::Refused(_) => Self::new(StatusCode::CONFLICT, "bus_rejected", message),
            _ => Self::bus_unavailable(),
        }
    }
}

/// These routes, for requests that ask under one of these names.
pub(crate) fn under(hosts: Hosts, routes: Router) -> Router {
    let hosts = Arc::new(hosts);
    routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let checked = hosts.check(request.uri(), request.headers());
        async move {
            match checked {
                Ok(()) => next.run(request).await,
                Err(refused) => ApiError::from(refused).into_answer(),
            }
        }
    }))
}

/// What goes with an answer until its last byte is written: an extension of the answer, which the door takes out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Escort {
    /// Whom the bytes are counted against, besides the address.
    pub(crate) user: Option<Name>,
    /// The place of the connection that ends with the answer.
    pub(crate) admission: Option<Admission>,
}

impl Escort {
    /// Of the answer to a user's request.
    pub(crate) fn of(identity: &Identity) -> Self {
        Self {
            user: identity.user.clone(),
            admission: None,
        }
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    json_head(status).map(|()| Body::from(body))
}

fn json_head(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
