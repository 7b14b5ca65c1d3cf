//! Engine.IO connections: sessions opened, polls and posts, and the change from polling to WebSocket.
//!
//! A session is a connection like any other. While it polls it has no socket: a poll that hangs is its room,
//! and while none does, nothing is taken from its outbox, so what waits stays fresh. Taking over, a
//! WebSocket becomes the connection's socket; outbox and subscriptions never notice.

mod upgrade;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use relay_core::moment::Moment;
use relay_core::outbox::SubscriptionId;
use relay_core::session::{CloseReason, Event};
use relay_wire::dialect::Found;
use relay_wire::engineio::payload;
use relay_wire::engineio::request::{self, Wanted};
use relay_wire::engineio::session::{Fault, Session};
use relay_wire::engineio::sid::{self, Secret, Sid};
use relay_wire::engineio::{self, Refusal};
use relay_wire::websocket::Decoder;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::accept::{Departure, Takeover};
use super::connection::Transport;
use super::foreign::{REQUEST_ID, request_id, with_header};
use super::mail::{Mail, Mailbox, Payload, PollAnswer, Taken, Turned};
use super::socketio::Room;
use super::speech::session_bounds;
use super::watch::{Stream, handshake, nobody};
use super::{Opening, Shard, State};
use crate::answer::ApiError;
use crate::identity::{Identity, credential};
use crate::origin::Standing;
use crate::refused::Refused;
pub(super) use upgrade::Upgrade;

/// How long a client may take to send the body of a post.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// How often the log says that sessions of other processes are asked for.
const ELSEWHERE_INTERVAL: Duration = Duration::from_secs(60);

const ENDED: Turned = (
    Refusal::SessionUnknown,
    "the session has ended: the client was silent for too long, broke the protocol or left; it opens a new one",
);
const ELSEWHERE: Turned = (
    Refusal::SessionUnknown,
    "another relay process has this session: either the relay was restarted, and the client opens a new one by itself; or a load balancer spreads one client's requests over several relays. Engine.IO polling needs sticky sessions there; transports: [\"websocket\"] in the client needs none",
);
const NO_SESSION: Turned = (Refusal::SessionUnknown, "sid= is no session id of a relay");
const MISMATCH: Turned = (
    Refusal::BadRequest,
    "the session is on a WebSocket, or one is about to take it over",
);
const OVERLAP: Turned = (
    Refusal::BadRequest,
    "two requests of one kind at a time on one session; it has ended",
);

/// What an Engine.IO connection needs beside what every connection has.
#[derive(Debug)]
pub(super) struct Link {
    /// What the client proves by that the session is its own.
    secret: Secret,
    pub(super) protocol: Session,
    /// What came over its WebSocket and is not yet whole.
    pub(super) decoder: Decoder,
    /// The poll that waits. Whoever polls holds the other end; dropping this one ends that request.
    poll: Option<oneshot::Sender<Payload>>,
    /// The namespaces it is in.
    pub(super) rooms: Vec<Room>,
    pub(super) visitor: Visitor,
}

/// A cookie's name, and who the client is by it.
type Identified = (Option<String>, Result<Arc<Identity>, Refused>);

/// What the request said that opened the session; namespaces are joined later.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) path: String,
    /// The query, without what is Engine.IO's own and without tokens.
    pub(super) query: Vec<(String, String)>,
    /// Who the client is by each cookie that one of the path's dialects looks for; none once it is known.
    pub(super) identities: Vec<Identified>,
}

impl Link {
    /// Which of its namespaces a subscription is told in.
    pub(super) fn room_of(&self, subscription: SubscriptionId) -> Option<usize> {
        let mut rooms = self.rooms.iter();
        rooms.position(|room| room.subscriptions.contains(&subscription))
    }

    fn new(protocol: Session, visitor: Visitor) -> Box<Self> {
        Box::new(Self {
            secret: Secret::new(),
            protocol,
            decoder: Decoder::default(),
            poll: None,
            rooms: Vec::new(),
            visitor,
        })
    }
}

/// How a request is answered.
pub(super) enum Answered {
    Answer(Response<Body>),
    Leave(Departure),
}

/// An answer that refuses.
enum No {
    /// In Engine.IO's shape.
    Engine(Turned),
    /// In the relay's own, for what is not about the protocol.
    Api(ApiError),
}

impl From<Turned> for No {
    fn from(turned: Turned) -> Self {
        Self::Engine(turned)
    }
}

impl From<ApiError> for No {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// One request.
struct Visit<'a> {
    peer: IpAddr,
    standing: Standing,
    found: &'a Found<'a>,
    request_id: Option<HeaderValue>,
}

impl Shard {
    /// Answers a request on a path of Socket.IO.
    pub(super) async fn engine_io(
        self: &Rc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
        found: &Found<'_>,
    ) -> Answered {
        let headers = request.headers().clone();
        let origins = &self.common.origins;
        if *request.method() == Method::OPTIONS {
            let answer = match origins.preflight(&headers) {
                Ok(answer) => answer.map(|()| Body::empty()),
                Err(refused) => ApiError::from(refused).into_answer(),
            };
            return Answered::Answer(answer);
        }
        let wants_id = |each: &Arc<relay_wire::dialect::Endpoint>| each.voice.dialect.request_id;
        let mut visit = Visit {
            peer,
            standing: Standing::None,
            found,
            request_id: found
                .socketio
                .iter()
                .any(wants_id)
                .then(|| request_id(&headers)),
        };
        let checked = origins.check(&headers);
        if let Ok(standing) = checked {
            visit.standing = standing;
        }
        let allow = origins.response_headers(visit.standing, &headers);
        // A poll may hang for long; what it does not need again goes before.
        drop(headers);
        let answered = match checked {
            Ok(_) => self.visit(request, &visit).await,
            Err(refused) => Err(No::Api(refused.into())),
        };
        let mut answer = match answered {
            Ok(Answered::Leave(departure)) => return Answered::Leave(departure),
            Ok(Answered::Answer(answer)) => answer,
            Err(No::Engine((refusal, reason))) => {
                let label = match (refusal, reason) == ELSEWHERE {
                    true => "engineio_session_elsewhere",
                    false => refusal.label(),
                };
                self.common.telemetry.refused(label);
                text(
                    StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST),
                    "application/json",
                    refusal.body(reason),
                )
            }
            Err(No::Api(error)) => {
                self.common.telemetry.refused(error.code());
                error.into_answer()
            }
        };
        let status = answer.status().as_u16();
        let path = found.socketio.first().map_or("other", |each| &each.path);
        self.common.telemetry.request(path, status);
        let headers_out = answer.headers_mut();
        headers_out.extend(allow);
        headers_out.extend(visit.request_id.map(|id| (REQUEST_ID, id)));
        Answered::Answer(answer)
    }

    async fn visit(
        self: &Rc<Self>,
        request: Request<Incoming>,
        visit: &Visit<'_>,
    ) -> Result<Answered, No> {
        let query = request.uri().query().unwrap_or("").to_owned();
        let is_upgrade = request.headers().contains_key(header::UPGRADE);
        match request::parse(request.method().as_str(), &query, is_upgrade)? {
            Wanted::OpenPolling => {
                let stream = self.opening(&request, visit, &query, Session::polling())?;
                let packet = self.open_polling(stream);
                Ok(Answered::Answer(plain(packet.into_bytes())))
            }
            Wanted::OpenWebSocket => {
                let head = handshake(request.headers())?;
                let stream = self.opening(&request, visit, &query, Session::websocket())?;
                Ok(Answered::Leave(Departure::Begin(Box::new(Takeover {
                    head: with_header(&head, visit.request_id.as_ref()),
                    stream,
                    early: Bytes::new(),
                }))))
            }
            Wanted::Upgrade(sid) => {
                let head = handshake(request.headers())?;
                let sid = self.whose(&sid)?;
                let probed = self.send_mail(sid, Mail::Probe).await;
                let head = with_header(&head, visit.request_id.as_ref());
                if let Err(No::Engine(MISMATCH)) = probed {
                    // The reference server opens a second WebSocket of a session, and closes it.
                    return Ok(Answered::Leave(Departure::Decline(head, MISMATCH.1)));
                }
                probed?;
                Ok(Answered::Leave(Departure::Upgrade(Box::new(Upgrade {
                    sid,
                    head,
                    early: Bytes::new(),
                }))))
            }
            Wanted::Poll(sid) => {
                drop((request, query));
                let sid = self.whose(&sid)?;
                self.hang(sid).await.map(Answered::Answer)
            }
            Wanted::Post(sid) => {
                let sid = self.whose(&sid)?;
                let posted = Box::pin(self.take_post(sid, request));
                posted.await.map(Answered::Answer)
            }
        }
    }

    /// A new session's beginnings: who it may be and whether there is room for it.
    fn opening(
        &self,
        request: &Request<Incoming>,
        visit: &Visit<'_>,
        query: &str,
        protocol: Session,
    ) -> Result<Stream, No> {
        if self.state.borrow().draining {
            return Err(ApiError::draining().into());
        }
        let mut identities: Vec<Identified> = Vec::new();
        for endpoint in visit.found.socketio {
            let cookie = &endpoint.voice.dialect.cookie;
            if identities.iter().any(|(known, _)| known == cookie) {
                continue;
            }
            let name = cookie.as_ref().unwrap_or(&self.common.cookie);
            let name = visit.standing.may_use_cookie().then_some(name.as_str());
            let identity = credential(request.headers(), request.uri(), name)
                .and_then(|found| {
                    self.common
                        .identity
                        .identify(found.as_ref(), self.clock.wall())
                })
                .map(Arc::new);
            identities.push((cookie.clone(), identity));
        }
        let known = identities.iter().filter_map(|(_, each)| each.as_ref().ok());
        let user = known.filter_map(|identity| identity.user.as_ref()).next();
        // Refused here the client's own backoff grows, and the answer says why.
        let admitted = self.common.admissions.admit(user, visit.peer);
        let admission =
            admitted.map_err(|refusal| ApiError::limit(refusal.code(), &refusal.to_string()))?;
        let pairs = serde_urlencoded::from_str::<Vec<(String, String)>>(query);
        let ours = ["EIO", "transport", "t", "b64", "token"];
        let visitor = Visitor {
            path: request.uri().path().to_owned(),
            query: pairs
                .unwrap_or_default()
                .into_iter()
                .filter(|(key, _)| !ours.contains(&key.as_str()))
                .collect(),
            identities,
        };
        Ok(Stream {
            transport: Transport::SocketIo(Link::new(protocol, visitor)),
            identity: Arc::new(nobody()),
            admission,
            // Whoever the client is, it is heard once it has joined a namespace.
            authenticated: false,
            topics: Vec::new(),
            cursor: None,
            dialect: None,
        })
    }

    fn open_polling(&self, stream: Stream) -> String {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let opening = Opening {
            transport: stream.transport,
            stream: None,
            identity: stream.identity,
            admission: stream.admission,
            authenticated: stream.authenticated,
            speech: None,
        };
        let (slot, _) = self.open(&mut state, opening, now);
        self.open_packet(&state, slot).unwrap_or_default()
    }

    /// The first packet of a session; `None` for a connection that is no session of Engine.IO.
    pub(super) fn open_packet(&self, state: &State, slot: usize) -> Option<String> {
        let Transport::SocketIo(link) = &state.connections[slot].transport else {
            return None;
        };
        let sid = Sid {
            shard: u8::try_from(self.number).ok()?,
            slot: u32::try_from(slot).ok()?,
            secret: link.secret,
        };
        // Which dialect it will speak is not known yet; the longest times suit all of them.
        let found = self.common.dialects.routes.find(&link.visitor.path)?;
        let bounds = || {
            found
                .socketio
                .iter()
                .map(|each| &each.voice.dialect.session)
        };
        let interval = bounds().map(|each| each.ping_interval).max()?;
        let dead_after = bounds().map(|each| each.dead_after).max()?;
        let limit = self.common.limits.message_bytes;
        let sid = sid.to_string();
        let polling = link.protocol.is_polling();
        Some(engineio::Open::new(&sid, polling, interval, dead_after, limit).encode())
    }

    /// The session an id names, as far as the id says.
    fn whose(&self, sid: &str) -> Result<Sid, Turned> {
        match Sid::parse(sid) {
            sid::Found::Here(sid) if self.mailboxes.has(usize::from(sid.shard)) => Ok(sid),
            sid::Found::Here(_) | sid::Found::Nonsense => Err(NO_SESSION),
            sid::Found::Elsewhere => {
                self.say_elsewhere();
                Err(ELSEWHERE)
            }
        }
    }

    fn say_elsewhere(&self) {
        let now = self.clock.now();
        let mut state = self.state.borrow_mut();
        if state
            .elsewhere_said
            .is_none_or(|said| now - said >= ELSEWHERE_INTERVAL)
        {
            state.elsewhere_said = Some(now);
            tracing::warn!(
                "a Socket.IO client asked for a session of another relay process; if that goes on after a restart, the load balancer needs sticky sessions for polling clients (docs/explanation/socket-io.md)"
            );
        }
    }

    /// Gives a session's shard a letter.
    fn post_mail(&self, shard: u8, mail: Mail) -> Result<(), ApiError> {
        let shard = usize::from(shard);
        if shard == self.number {
            self.deliver_mail(mail);
            return Ok(());
        }
        match self.mailboxes.send(shard, mail) {
            true => Ok(()),
            false => Err(ApiError::busy()),
        }
    }

    async fn send_mail(&self, sid: Sid, mail: impl FnOnce(Sid, Taken) -> Mail) -> Result<(), No> {
        let (answer, answered) = oneshot::channel();
        self.post_mail(sid.shard, mail(sid, Taken(answer)))?;
        let answer = answered.await.map_err(|_| ApiError::draining())?;
        Ok(answer?)
    }

    /// Waits for the next payload of a session.
    async fn hang(&self, sid: Sid) -> Result<Response<Body>, No> {
        let (answer, answered) = oneshot::channel();
        let answer = PollAnswer(answer);
        self.post_mail(sid.shard, Mail::Poll { sid, answer })?;
        // Dropped while it waits, it tells the session that its client went away.
        let mut gone = Unless {
            shard: self,
            mail: Some((sid.shard, Mail::PollGone(sid))),
        };
        let payload = answered.await;
        gone.mail = None;
        let payload = payload.map_err(|_| ApiError::draining())??;
        Ok(plain(payload))
    }

    async fn take_post(&self, sid: Sid, request: Request<Incoming>) -> Result<Response<Body>, No> {
        self.send_mail(sid, Mail::Post).await?;
        let mut broke_off = Unless {
            shard: self,
            mail: Some((sid.shard, Mail::Posted(sid, None, Taken::nobody()))),
        };
        let binary = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes() == b"application/octet-stream");
        if binary {
            let reason = "polling carries text; binary has to be base64 in a packet of its own";
            return Err((Refusal::BadRequest, reason).into());
        }
        let limit = self.common.limits.message_bytes;
        let body = Limited::new(request.into_body(), limit);
        let body = match timeout(BODY_WAIT, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(ApiError::payload_too_large(limit).into());
            }
            Ok(Err(_)) | Err(_) => {
                let reason = "the body ended before it was complete, or took longer than 30 s";
                return Err((Refusal::BadRequest, reason).into());
            }
        };
        broke_off.mail = None;
        self.send_mail(sid, |sid, taken| Mail::Posted(sid, Some(body), taken))
            .await?;
        Ok(text(StatusCode::OK, "text/html", b"ok".to_vec()))
    }

    /// Reads this shard's letters until it has drained.
    pub async fn read_mail(self: Rc<Self>, mut mailbox: Mailbox) {
        let mut sockets = JoinSet::new();
        loop {
            tokio::select! {
                Some(mail) = mailbox.recv() => match mail {
                    Mail::Socket(sid, socket, head, early) => {
                        let upgrade = Upgrade { sid, head, early };
                        match TcpStream::from_std(socket) {
                            Ok(socket) => {
                                sockets.spawn_local(self.clone().serve_upgrade(socket, upgrade));
                            }
                            Err(error) => tracing::warn!(%error, "a socket cannot be moved"),
                        }
                    }
                    mail => self.deliver_mail(mail),
                },
                Some(_) = sockets.join_next() => {}
                () = self.drained.notified() => break,
            }
        }
        while sockets.join_next().await.is_some() {}
    }

    fn deliver_mail(&self, mail: Mail) {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        self.on_mail(&mut state, mail, now);
        self.flush_dirty(&mut state, now);
    }

    fn on_mail(&self, state: &mut State, mail: Mail, now: Moment) {
        match mail {
            Mail::Poll { sid, answer } => self.on_poll(state, sid, answer.0),
            Mail::PollGone(sid) => {
                if let Some(slot) = Self::locate(state, sid) {
                    self.end(state, slot, CloseReason::Client);
                }
            }
            Mail::Post(sid, taken) => {
                let answer = self.requested(state, sid, Session::post);
                taken.send(answer);
            }
            Mail::Posted(sid, body, taken) => {
                let mut answer = Err(ENDED);
                if let Some(slot) = Self::locate(state, sid) {
                    self.guarded(state, slot, |shard, state| {
                        answer = shard.on_posted(state, slot, body, now);
                    });
                }
                taken.send(answer);
            }
            Mail::Probe(sid, taken) => {
                let answer = self.requested(state, sid, |protocol| protocol.probe(now));
                taken.send(answer);
            }
            // Read where tasks can be started.
            Mail::Socket(..) => {}
        }
    }

    /// The slot of a session whose client knows its secret.
    fn locate(state: &State, sid: Sid) -> Option<usize> {
        let slot = usize::try_from(sid.slot).ok()?;
        let connection = state.connections.get(slot)?;
        match &connection.transport {
            Transport::SocketIo(link) if link.secret == sid.secret && connection.ends.is_none() => {
                Some(slot)
            }
            _ => None,
        }
    }

    /// Asks a session whether it takes a request; ends it where the request broke the rules.
    fn requested(
        &self,
        state: &mut State,
        sid: Sid,
        ask: impl FnOnce(&mut Session) -> Result<(), Fault>,
    ) -> Result<(), Turned> {
        let slot = Self::locate(state, sid).ok_or(ENDED)?;
        let Transport::SocketIo(link) = &mut state.connections[slot].transport else {
            return Err(ENDED);
        };
        match ask(&mut link.protocol) {
            Ok(()) => Ok(()),
            Err(Fault::Mismatch) => Err(MISMATCH),
            Err(Fault::Overlap) => {
                self.end(state, slot, CloseReason::Protocol);
                Err(OVERLAP)
            }
        }
    }

    fn on_poll(&self, state: &mut State, sid: Sid, answer: oneshot::Sender<Payload>) {
        if let Err(turned) = self.requested(state, sid, Session::poll) {
            // Whoever asked may have gone.
            drop(answer.send(Err(turned)));
            return;
        }
        if let Some(slot) = Self::locate(state, sid) {
            if let Transport::SocketIo(link) = &mut state.connections[slot].transport {
                link.poll = Some(answer);
            }
            self.mark(state, slot);
        }
    }

    fn on_posted(
        &self,
        state: &mut State,
        slot: usize,
        body: Option<Bytes>,
        now: Moment,
    ) -> Result<(), Turned> {
        let connection = &mut state.connections[slot];
        let id = connection.id;
        if let Transport::SocketIo(link) = &mut connection.transport {
            link.protocol.posted();
        }
        let Some(body) = body else {
            self.end(state, slot, CloseReason::Client);
            return Err(ENDED);
        };
        let bounds = *session_bounds(&connection.speech, &self.common);
        connection.session.handle(Event::SignOfLife, now, &bounds);
        let packets = match payload::split(&body) {
            Ok(packets) => packets,
            Err(_) => {
                self.end(state, slot, CloseReason::Protocol);
                return Err((Refusal::BadRequest, "the body is no payload"));
            }
        };
        for packet in packets {
            let Some(slot) = Self::find(state, id) else {
                return Ok(());
            };
            if self.admit_message(state, slot, None)
                && self.on_packet(state, slot, packet, now).is_err()
            {
                let reason =
                    "the body has a packet that breaks the protocol; the session has ended";
                return Err((Refusal::BadRequest, reason));
            }
        }
        Ok(())
    }

    /// The client leaves by a packet; a poll that waits is let go first.
    pub(super) fn on_engine_leave(&self, state: &mut State, slot: usize) {
        if let Transport::SocketIo(link) = &mut state.connections[slot].transport {
            answer_poll(link, engineio::NOOP.into());
        }
        self.end(state, slot, CloseReason::Client);
    }

    /// Says goodbye to a session that polls.
    pub(super) fn say_engine_goodbye(state: &mut State, slot: usize) {
        let connection = &mut state.connections[slot];
        let Transport::SocketIo(link) = &mut connection.transport else {
            return;
        };
        if link.poll.is_some() {
            state.frames.clear();
            connection.writer.take_replies(&mut state.frames);
            state
                .frames
                .push(Bytes::from_static(engineio::CLOSE.as_bytes()));
            answer_poll(link, payload::join(&state.frames));
        }
    }

    /// Answers the poll that waits with what there is, if there is anything.
    pub(super) fn flush_polling(&self, state: &mut State, slot: usize, now: Moment) {
        if let Transport::SocketIo(link) = &state.connections[slot].transport {
            let Some(answer) = &link.poll else {
                return self.reschedule(state, slot);
            };
            if answer.is_closed() {
                // Its client went away; what would be taken for it would be lost.
                return self.end(state, slot, CloseReason::Client);
            }
        }
        self.gather(state, slot, now);
        let Transport::SocketIo(link) = &mut state.connections[slot].transport else {
            return;
        };
        if state.frames.is_empty() && link.protocol.owes_noop(now) {
            state
                .frames
                .push(Bytes::from_static(engineio::NOOP.as_bytes()));
        }
        if !state.frames.is_empty() {
            let body = payload::join(&state.frames);
            state.metrics.written_bytes.inc_by(body.len() as u64);
            if !answer_poll(link, body) {
                return self.end(state, slot, CloseReason::Client);
            }
        }
        self.reschedule(state, slot);
    }
}

/// Answers the poll that waits. False if nobody waits for the answer any more.
fn answer_poll(link: &mut Link, payload: Vec<u8>) -> bool {
    link.protocol.answered();
    link.poll
        .take()
        .is_none_or(|poll| poll.send(Ok(payload)).is_ok())
}

/// Sends a letter when it is dropped, unless that was called off.
struct Unless<'a> {
    shard: &'a Shard,
    mail: Option<(u8, Mail)>,
}

impl Drop for Unless<'_> {
    fn drop(&mut self) {
        let Some((shard, mail)) = self.mail.take() else {
            return;
        };
        let here = usize::from(shard) == self.shard.number;
        if here && let Ok(mut state) = self.shard.state.try_borrow_mut() {
            let now = self.shard.clock.now();
            self.shard.on_mail(&mut state, mail, now);
            self.shard.flush_dirty(&mut state, now);
            return;
        }
        // A full mailbox keeps the session until it has been silent for too long.
        self.shard.mailboxes.send(usize::from(shard), mail);
    }
}

fn plain(body: Vec<u8>) -> Response<Body> {
    text(StatusCode::OK, "text/plain; charset=UTF-8", body)
}

fn text(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
