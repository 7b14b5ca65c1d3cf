//! Engine.IO over HTTP: sessions opened, polls and posts, and the request that changes from one to the other.
//!
//! A session lives on the shard its id names, so most requests become a letter to that shard and wait for its
//! answer. What is in a payload is not known here.
//!
//! Invariant: a request that is dropped while a session counts on it says so to the session.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use relay_core::limits::Resource;
use relay_wire::dialect::{Endpoint, Found};
use relay_wire::engineio::request::{self, Purpose};
use relay_wire::engineio::sid::{self, Sid};
use relay_wire::engineio::{ErrorCode, RequestError};
use relay_wire::socketio::client::Visitor;
use relay_wire::socketio::protocol::Protocol;
use relay_wire::speaker::Speaker;
use relay_wire::target;
use tokio::sync::oneshot;

use super::accept::Departure;
use super::gate::{Arrival, ENGINE_IO, Guest, Head, Rejection, Route, Visit};
use super::peer::Peer;
use super::upgrade::Upgrade;
use super::{Door, Outcome, handshake};
use crate::answer::ApiError;
use crate::bodies::{self, Unread};
use crate::headers::{asks_for_websocket, content_encoding};
use crate::identity::Identity;
use crate::rates::Rate;
use crate::shard::Opening;
use crate::shard::{Identified, MISMATCH, Mail, Shard, Taken};

/// How often the log says that sessions of other processes are asked for.
const ELSEWHERE_INTERVAL: Duration = Duration::from_secs(60);

const ELSEWHERE: RequestError = RequestError::new(
    ErrorCode::SessionUnknown,
    "another relay process has this session: either the relay was restarted, and the client opens a new session by itself; or a load balancer spreads one client's requests over several relays. Engine.IO polling needs sticky sessions there; transports: [\"websocket\"] in the client needs none",
);
const HUNG_UP: RequestError = RequestError::new(
    ErrorCode::SessionUnknown,
    "the client closed its sending side while it polled, which ends the session",
);
const NO_SESSION: RequestError = RequestError::new(
    ErrorCode::SessionUnknown,
    "sid= is not a session id of a relay",
);

/// An answer that refuses.
#[derive(Debug)]
enum Rejected {
    /// In Engine.IO's shape.
    Engine(RequestError),
    /// In the relay's own, for what is not about the protocol.
    Api(ApiError),
}

impl From<RequestError> for Rejected {
    fn from(error: RequestError) -> Self {
        Self::Engine(error)
    }
}

impl From<ApiError> for Rejected {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Rejection for Rejected {
    fn label(&self) -> &'static str {
        match self {
            Self::Engine(error) if *error == ELSEWHERE => "engineio_session_elsewhere",
            Self::Engine(error) => error.code.label(),
            Self::Api(error) => error.code(),
        }
    }
}

impl Rejected {
    fn into_answer(self) -> Response<Body> {
        match self {
            Self::Engine(error) => text(status(error.code), "application/json", error.body()),
            Self::Api(error) => error.into_answer(),
        }
    }
}

impl Door {
    /// Answers a request on a path of Socket.IO.
    pub(super) async fn engine_io(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        found: &Found<'_>,
    ) -> Outcome {
        let path = found.socketio.first().map_or("other", |each| &each.path);
        let wants_id = |each: &Arc<Endpoint>| each.voice.dialect.request_id;
        let route = Route::engine_io(path, found.socketio.iter().any(wants_id));
        let (visit, guest) = match self.gate.receive(Head::of(&request), route) {
            Arrival::Preflight(answer) => return Outcome::Answer(answer),
            Arrival::Visit(visit, guest) => (visit, guest),
        };
        let answered = match guest {
            Ok(guest) => self.engine_io_as(request, peer, guest, &visit, found).await,
            Err(refused) => Err(refused.into()),
        };
        self.gate.conclude(visit, answered, Rejected::into_answer)
    }

    async fn engine_io_as(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        guest: Guest,
        visit: &Visit<'_>,
        found: &Found<'_>,
    ) -> Result<Outcome, Rejected> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err(ApiError::method_not_allowed(ENGINE_IO).into());
        }
        let query = request.uri().query().unwrap_or("");
        let is_upgrade = asks_for_websocket(request.headers());
        match request::parse(request.method().as_str(), query, is_upgrade)? {
            Purpose::OpenPolling => {
                let protocol = Protocol::polling();
                self.prepare_all(Head::of(&request), guest, found).await?;
                let opening = self.opening(Head::of(&request), guest, found, protocol)?;
                let (_, packet) = self.shard.begin_polling(opening, None);
                Ok(Outcome::Answer(plain(
                    packet.unwrap_or_default().into_bytes(),
                )))
            }
            Purpose::OpenWebSocket => {
                let answer = handshake::answer(Head::of(&request), &[], visit.request_id())?;
                let protocol = Protocol::websocket();
                self.prepare_all(Head::of(&request), guest, found).await?;
                let opening = self.opening(Head::of(&request), guest, found, protocol)?;
                Ok(Outcome::Leave(Departure::begin(answer, opening)))
            }
            Purpose::Upgrade(sid) => {
                let head = handshake::answer(Head::of(&request), &[], visit.request_id())?;
                let sid = self.whose(&sid)?;
                let probed = self.send_mail(sid, Mail::Probe).await;
                if let Err(Rejected::Engine(MISMATCH)) = probed {
                    // The reference server opens a second WebSocket of a session, and closes it.
                    return Ok(Outcome::Leave(Departure::Decline(head, MISMATCH.reason)));
                }
                probed?;
                let upgrade = Upgrade::new(sid, head);
                Ok(Outcome::Leave(Departure::Upgrade(Box::new(upgrade))))
            }
            Purpose::Poll(sid) => {
                // A poll may hang for long; what it does not need again goes before.
                drop(request);
                let sid = self.whose(&sid)?;
                self.hang(sid, peer).await.map(Outcome::Answer)
            }
            Purpose::Post(sid) => {
                let sid = self.whose(&sid)?;
                let posted = Box::pin(self.take_post(sid, request));
                posted.await.map(Outcome::Answer)
            }
        }
    }

    /// Waits until who the client may be can be looked at.
    async fn prepare_all(
        &self,
        head: Head<'_>,
        guest: Guest,
        found: &Found<'_>,
    ) -> Result<(), ApiError> {
        for endpoint in found.socketio {
            let cookie = endpoint.voice.dialect.cookie.as_deref();
            self.gate.prepare(guest, head, cookie).await?;
        }
        Ok(())
    }

    /// A new session's beginnings: who it may be and whether there is room for it.
    fn opening(
        &self,
        head: Head<'_>,
        guest: Guest,
        found: &Found<'_>,
        protocol: Protocol,
    ) -> Result<Opening, ApiError> {
        if self.shard.is_draining() {
            return Err(ApiError::draining());
        }
        let cookies = found.socketio.iter();
        let cookies = cookies.map(|endpoint| endpoint.voice.dialect.cookie.as_deref());
        let identities: Vec<Identified> = self.gate.identify_by_each(guest, head, cookies);
        let known = identities.iter().filter_map(|(_, each)| each.as_ref().ok());
        let user = known.filter_map(|identity| identity.user.as_ref()).next();
        // Refused here the client's own backoff grows, and the answer says why.
        self.gate.allow(guest, Rate::Connections, user)?;
        let admission = self.gate.admit(guest, user)?;
        let query = head.uri().query().unwrap_or("");
        let ours = ["EIO", "transport", "t", "b64", "token", "ticket"];
        let visitor = Visitor {
            path: head.uri().path().to_owned(),
            query: target::pairs(query)
                .filter(|(key, _)| !ours.contains(&&**key))
                .map(|(key, value)| (key.into_owned(), value.into_owned()))
                .collect(),
        };
        // Whoever the client is, it is heard once it has joined a namespace.
        let nobody = Arc::new(Identity::nobody());
        let opening = Opening::new(Speaker::socket_io(protocol, visitor), nobody, admission);
        Ok(opening.unauthenticated().identified_by(identities))
    }

    /// The session an id names, as far as the id says.
    fn whose(&self, sid: &str) -> Result<Sid, RequestError> {
        match Sid::parse(sid) {
            sid::Whereabouts::Here(sid) if self.shard.mailboxes().has(sid.shard) => Ok(sid),
            sid::Whereabouts::Here(_) | sid::Whereabouts::Nonsense => Err(NO_SESSION),
            sid::Whereabouts::Elsewhere => {
                self.say_elsewhere();
                Err(ELSEWHERE)
            }
        }
    }

    fn say_elsewhere(&self) {
        let now = self.clock.now();
        let said = self.elsewhere_said.get();
        if said.is_none_or(|said| now - said >= ELSEWHERE_INTERVAL) {
            self.elsewhere_said.set(Some(now));
            tracing::warn!(
                "a Socket.IO client asked for a session of another relay process; if that goes on after a restart, the load balancer needs sticky sessions for polling clients (docs/explanation/socket-io.md)"
            );
        }
    }

    /// Gives a session's shard a letter.
    fn post_mail(&self, shard: u8, mail: Mail) -> Result<(), ApiError> {
        match self.shard.post(shard, mail) {
            true => Ok(()),
            false => Err(ApiError::busy()),
        }
    }

    async fn send_mail(
        &self,
        sid: Sid,
        mail: impl FnOnce(Sid, Taken) -> Mail,
    ) -> Result<(), Rejected> {
        let (taken, answered) = Taken::new();
        self.post_mail(sid.shard, mail(sid, taken))?;
        let answer = answered.await.map_err(|_| ApiError::draining())?;
        Ok(answer?)
    }

    /// Waits for the next payload of a session. A client that sends nothing more while it waits counts as gone: what
    /// it were given would be lost, if it is.
    async fn hang(&self, sid: Sid, peer: &Peer) -> Result<Response<Body>, Rejected> {
        let (request, answered) = oneshot::channel();
        self.send_mail(sid, |sid, taken| Mail::Poll(sid, taken, request))
            .await?;
        // Dropped while it waits, it tells the session that its client went away.
        let gone = SendOnDrop::new(&self.shard, sid, Mail::PollGone(sid));
        let payload = tokio::select! {
            // What is there already goes out.
            biased;
            payload = answered => payload,
            () = peer.hung_up() => return Err(HUNG_UP.into()),
        };
        gone.call_off();
        // A session refuses a poll when it comes, or answers it.
        let payload = payload.ok().and_then(Result::ok);
        Ok(plain(payload.ok_or_else(ApiError::draining)?))
    }

    async fn take_post(
        &self,
        sid: Sid,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Rejected> {
        self.send_mail(sid, Mail::Post).await?;
        let nothing = Mail::Posted(sid, None, Taken::nobody());
        let broke_off = SendOnDrop::new(&self.shard, sid, nothing);
        let binary = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes() == b"application/octet-stream");
        if binary {
            let reason = "polling carries text; binary has to be base64 in a packet of its own";
            return Err(RequestError::new(ErrorCode::BadRequest, reason).into());
        }
        if let Some(encoding) = content_encoding(request.headers()) {
            return Err(ApiError::unsupported_encoding(&encoding).into());
        }
        let limit = self.node.limits.message_bytes;
        // Whose session it is stands in the ledger with its connection.
        let from = Head::of(&request).client();
        let share = self
            .node
            .admissions
            .take(Resource::BodyBytes, 0, None, from);
        let mut share = share.map_err(|refusal| self.gate.over_limit(refusal, from))?;
        let body = match bodies::read(request.into_body(), limit, &mut share).await {
            Ok(body) => body,
            Err(Unread::TooLarge) => return Err(ApiError::payload_too_large(limit).into()),
            Err(Unread::Over(refusal)) => return Err(self.gate.over_limit(refusal, from).into()),
            Err(Unread::BrokeOff | Unread::Slow) => {
                let reason = "the body ended before it was complete, or took longer than 30 s";
                return Err(RequestError::new(ErrorCode::BadRequest, reason).into());
            }
        };
        broke_off.call_off();
        self.send_mail(sid, |sid, taken| Mail::Posted(sid, Some(body), taken))
            .await?;
        Ok(text(StatusCode::OK, "text/html", b"ok".to_vec()))
    }
}

/// Sends a letter to the shard of a session when it is dropped, unless that was called off.
struct SendOnDrop<'a> {
    shard: &'a Shard,
    mail: Option<(u8, Mail)>,
}

impl<'a> SendOnDrop<'a> {
    fn new(shard: &'a Shard, sid: Sid, mail: Mail) -> Self {
        let mail = Some((sid.shard, mail));
        Self { shard, mail }
    }

    fn call_off(mut self) {
        self.mail = None;
    }
}

impl Drop for SendOnDrop<'_> {
    fn drop(&mut self) {
        if let Some((shard, mail)) = self.mail.take() {
            // A full mailbox keeps the session until it has been silent for too long.
            self.shard.post(shard, mail);
        }
    }
}

fn plain(body: Vec<u8>) -> Response<Body> {
    text(StatusCode::OK, "text/plain; charset=UTF-8", body)
}

fn status(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::BAD_REQUEST)
}

fn text(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
