//! The door: from a socket to a connection, or to a refusal.
//!
//! One door a shard. It accepts sockets, lets hyper read their requests, and leads each through the gate to the
//! route it is for; what comes of it is an answer, or a socket that becomes a connection of the shard. Beyond that
//! moment it knows nothing of a connection, and the shard knows nothing of it.
//!
//! Invariant: no request becomes a connection without having passed the gate.

mod accept;
mod dialect;
mod engineio;
pub(crate) mod gate;
mod handshake;
mod introduction;
mod patience;
mod peer;
mod poll;
mod resume;
mod secure;
mod socket;
mod unread;
mod upgrade;
mod watch;
mod weight;

pub(crate) use accept::listen;

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{Request, Uri};
use hyper::body::Incoming;
use relay_bus::clock::Clock;
use relay_core::moment::Moment;
use relay_wire::engineio::request::is_engine_io;
use relay_wire::target::normal_path;
use tower::ServiceExt as _;

use crate::node::Node;
use crate::shard::Shard;
use accept::Departure;
use dialect::Target;
use gate::{Gate, Head};
use peer::Peer;
use watch::Native;

/// How a request at the door ends.
type Outcome = gate::Outcome<Departure>;

/// One shard's door. Lives on the shard's thread.
pub(crate) struct Door {
    shard: Rc<Shard>,
    node: Arc<Node>,
    gate: Gate,
    clock: Clock,
    /// Answers what is neither a stream nor a dialect's.
    router: Router,
    /// When the log last said that sessions of other processes are asked for.
    elsewhere_said: Cell<Option<Moment>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("shard", &self.shard)
            .finish_non_exhaustive()
    }
}

impl Door {
    /// The door of a shard. `router` answers what does not watch, and passes the gate by itself.
    pub(crate) fn new(shard: Rc<Shard>, router: Router) -> Rc<Self> {
        let node = shard.node().clone();
        Rc::new(Self {
            shard,
            gate: Gate::new(node.clone()),
            clock: node.hub.clock(),
            node,
            router,
            elsewhere_said: Cell::new(None),
        })
    }

    /// Leads a request to the route it is for.
    async fn answer(&self, mut request: Request<Incoming>, peer: &Peer) -> Outcome {
        if let Some(answer) = self.gate.turn_back(Head::of(&request)) {
            return Outcome::Answer(answer);
        }
        if let Some(normal) = normal_uri(request.uri()) {
            *request.uri_mut() = normal;
        }
        // Each in a box of its own: a poll that hangs must not be as large as the widest of them.
        if let Some(native) = Native::of(request.uri().path()) {
            return Box::pin(self.watch(native, request.map(|_| ()), peer)).await;
        }
        if let Some(found) = self.node.dialects.routes.find(request.uri().path()) {
            let query = request.uri().query().unwrap_or("");
            let alone = found.websocket.is_none() && found.answer.is_none();
            if !found.socketio.is_empty() && (alone || is_engine_io(query)) {
                return Box::pin(self.engine_io(request, peer, &found)).await;
            }
            if let Some(asked) = Target::of(request.headers(), &found) {
                let request = request.map(|_| ());
                return Box::pin(self.dialect(&request, asked, &found)).await;
            }
        }
        // The router cannot fail; its error type has no values.
        let Ok(answer) = Box::pin(self.router.clone().oneshot(request.map(Body::new))).await;
        Outcome::Answer(answer)
    }
}

/// The one spelling of where a request goes; `None` where it has that. A slash at the end of a path of the relay's
/// own makes no difference, as it makes none for dialects.
fn normal_uri(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let normal = normal_path(path);
    let bare = normal.strip_suffix('/');
    let normal = bare
        .filter(|bare| bare.starts_with("/v1/"))
        .unwrap_or(&normal);
    if normal == path {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}"));
    let target = [normal, &query.unwrap_or_default()].concat();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = target.parse().ok();
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_where_its_other_spellings_go() {
        for (uri, normal) in [
            ("/v1/sse/", Some("/v1/sse")),
            ("/v1/%73se?topic=job%3Aa", Some("/v1/sse?topic=job%3Aa")),
            ("/v1/jobs/a/?", Some("/v1/jobs/a?")),
            ("http://h/v1/jobs/%61%2F", Some("http://h/v1/jobs/a%2F")),
            ("/v1/sse?x=%73", None),
            ("/socket.io/", None),
            ("/%E4/", None),
            ("/%", None),
            ("/v1/", None),
            ("*", None),
        ] {
            let read = normal_uri(&uri.parse().unwrap());
            let read = read.map(|uri| uri.to_string());
            assert_eq!(read.as_deref(), normal, "{uri}");
        }
    }
}
