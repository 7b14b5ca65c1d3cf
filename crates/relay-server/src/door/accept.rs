//! The way in: sockets accepted, requests read by hyper, streams taken back from it.
//!
//! Every connection starts as HTTP/1.1 under hyper. A request for a stream never gets an answer from
//! hyper: its handler leaves a [`Departure`] and the socket is taken out of hyper's hands, so that a
//! WebSocket or an event stream costs neither hyper's buffers nor a second task. Everything that is
//! refused, and everything that is not a stream, is answered the ordinary way. What a request is for is not
//! known here.
//!
//! Invariant: a socket is read by hyper or by the shard, never by both; bytes that hyper has read too far go with
//! the socket.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use relay_core::limits::{LimitRefusal, Resource, Scope};
use relay_wire::websocket;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch as channel};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::gate::Head;
use super::patience::{Patience, Watched};
use super::peer::{Peer, SharedSocket};
use super::socket::{linger, write_head};
use super::unread::Explained;
use super::upgrade::Upgrade;
use super::weight::weigh;
use super::{Door, Outcome};
use crate::link::Socket as ClientSocket;
use crate::proxies::Client;
use crate::shard::Opening;
use crate::sockets::Seat;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;
/// hyper's own bound on a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// After this long without acknowledgement the kernel gives a peer up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// How long a socket too many may take to read that it is one. Others wait for its place, to be told the same.
const TURNED_AWAY_WITHIN: Duration = Duration::from_millis(250);

/// The answer to a socket too many, before it has said anything.
fn turned_away(refusal: LimitRefusal) -> Bytes {
    let (code, message) = (refusal.code(), refusal.to_string());
    let body = format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#);
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\ncache-control: no-store\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    answer.into()
}

/// Answers a socket too many without waiting for anything: many come at once.
fn turn_away_at_once(socket: &TcpStream, answer: &[u8]) {
    // What was not read would reset the connection, and the answer with it.
    drop(socket.try_read(&mut [0; 1024]));
    drop(socket.try_write(answer));
}

/// Answers a socket too many and closes it.
async fn turn_away(socket: TcpStream, answer: Bytes, _place: (Seat, Option<OwnedSemaphorePermit>)) {
    let told = async {
        write_head(&socket, answer).await;
        linger(&socket).await;
    };
    // Somebody else waits for the place.
    drop(timeout(TURNED_AWAY_WITHIN, told).await);
}

/// Opens a listening socket that shares its port with the other shards'.
///
/// # Errors
/// When the port is taken or may not be opened.
pub(crate) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Every accepted socket starts with its listener's options, so they cost a connection no system call:
    // small writes go at once, and dead peers are noticed by the kernel.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket's task has ended: by a panic, what it served is gone, and nothing else.
pub(super) fn note_panic(ended: &Result<(), JoinError>) {
    if ended.as_ref().is_err_and(JoinError::is_panic) {
        tracing::error!(
            "work for a request panicked, and its socket is closed; this is a bug in the relay, please report it with the panic above"
        );
    }
}

/// How a socket leaves hyper.
pub(super) enum Departure {
    /// It becomes a connection.
    Begin(Box<Takeover>),
    /// It may become the socket of a connection that has none yet.
    Upgrade(Box<Upgrade>),
    /// It is answered with this head and closed for this reason.
    Decline(Bytes, &'static str),
}

/// A socket taken back from hyper, and what becomes of it.
pub(super) struct Takeover {
    /// The answer's head, written before anything else.
    head: Bytes,
    /// What the connection starts as.
    opening: Opening,
    /// Bytes that came behind the request.
    early: Bytes,
}

impl Departure {
    /// The socket becomes a connection, once `head` answers its request.
    pub(super) fn begin(head: Bytes, opening: Opening) -> Self {
        Self::Begin(Box::new(Takeover {
            head,
            opening,
            early: Bytes::new(),
        }))
    }

    /// Where bytes go that came behind the request.
    fn put_early(&mut self, bytes: Bytes) {
        match self {
            Self::Begin(takeover) => takeover.early = bytes,
            Self::Upgrade(upgrade) => upgrade.early = bytes,
            Self::Decline(..) => {}
        }
    }
}

/// Where a handler leaves word that its socket is taken over.
type Handoff = Rc<RefCell<Option<Departure>>>;

impl Door {
    /// Accepts connections until the drain begins.
    pub(crate) async fn serve(
        self: Rc<Self>,
        listener: TcpListener,
        mut drain: channel::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        let mut seat = None;
        let turned_away_now = Arc::new(Semaphore::new(self.node.sockets.aside()));
        loop {
            let next = async {
                // A socket without a place stays in the kernel's queue.
                if seat.is_none() {
                    seat = self.node.sockets.seat().await;
                }
                listener.accept().await
            };
            tokio::select! {
                accepted = next => match accepted {
                    Ok((socket, peer)) => {
                        let Some(taken) = seat.take() else {
                            continue;
                        };
                        let peer = self.node.rules.now().proxies.peer(peer.ip());
                        match self.seat(taken, peer) {
                            Ok(seat) => {
                                let drain = drain.clone();
                                let served = self.clone().serve_socket(socket, peer, seat, drain);
                                connections.spawn_local(served);
                            }
                            Err((taken, refusal)) => {
                                let one = turned_away_now.clone().try_acquire_owned().ok();
                                let answer = turned_away(refusal);
                                // Those for whom the node has no place are as many as there are seats for them.
                                if one.is_some() || refusal.scope == Scope::Node {
                                    connections.spawn_local(turn_away(socket, answer, (taken, one)));
                                } else {
                                    turn_away_at_once(&socket, &answer);
                                }
                            }
                        }
                    }
                    Err(error) => {
                        // The whole system is out of file descriptors, most likely: others must go first.
                        self.gate.refused("accept");
                        if let Some(more) = self.node.told.accept.allow() {
                            tracing::warn!(%error, more, "connections could not be accepted");
                        }
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                _ = drain.changed() => break,
                Some(ended) = connections.join_next() => note_panic(&ended),
            }
        }
        // Nobody new from here on; a successor may have the port already.
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            note_panic(&ended);
        }
    }

    /// Whether a socket is served: there is room on the node, and for its address.
    fn seat(&self, seat: Seat, peer: Client) -> Result<Seat, (Seat, LimitRefusal)> {
        let sockets = &self.node.sockets;
        if sockets.are_full() {
            let limit = u64::try_from(sockets.most()).unwrap_or(u64::MAX);
            let (what, scope) = (Resource::Sockets, Scope::Node);
            return Err((
                seat,
                self.refuse_socket(LimitRefusal { what, scope, limit }, peer),
            ));
        }
        match self.node.admissions.take(Resource::Sockets, 1, None, peer) {
            Ok(share) => Ok(seat.of(share)),
            Err(refusal) => Err((seat, self.refuse_socket(refusal, peer))),
        }
    }

    fn refuse_socket(&self, refusal: LimitRefusal, peer: Client) -> LimitRefusal {
        self.gate.refused(refusal.code());
        drop(self.gate.over_limit(refusal, peer));
        refusal
    }

    /// What comes before the first request: who it is from, and TLS.
    async fn begin_socket(
        &self,
        socket: TcpStream,
        peer: Client,
    ) -> Option<(ClientSocket, Client)> {
        let peer = self.introduced(&socket, peer).await?;
        let Some(config) = &*self.node.certificate.now() else {
            return Some((ClientSocket::Plain(socket), peer));
        };
        let socket = self.secured(socket, config.clone()).await?;
        Some((socket, peer.over_tls()))
    }

    async fn serve_socket(
        self: Rc<Self>,
        socket: TcpStream,
        peer: Client,
        seat: Seat,
        mut drain: channel::Receiver<bool>,
    ) {
        let begun = Box::pin(self.begin_socket(socket, peer));
        let begun = tokio::select! {
            begun = begun => begun,
            // It has asked for nothing yet.
            _ = drain.changed() => None,
        };
        let Some((socket, peer)) = begun else {
            return;
        };
        // What is held as long as a stream lives must be small, so hyper's parts and the takeover are boxed.
        let http = Box::pin(self.clone().serve_http(socket, peer, drain));
        let Some((socket, departure)) = http.await else {
            return;
        };
        let begun = match departure {
            Departure::Begin(takeover) => {
                let link = socket.into_link();
                let Takeover {
                    head,
                    opening,
                    early,
                } = *takeover;
                let id = self.shard.begin(&link, head, opening, &early);
                Some((link, id, seat))
            }
            Departure::Upgrade(upgrade) => Box::pin(self.take_over((socket, seat), *upgrade)).await,
            Departure::Decline(head, reason) => {
                let close = websocket::close_frame(websocket::close::PROTOCOL, reason);
                let said = Bytes::from([head, close].concat());
                let link = socket.into_link();
                write_head(&*link, said).await;
                Box::pin(linger(&*link)).await;
                None
            }
        };
        let Some((link, id, _seat)) = begun else {
            return;
        };
        poll_fn(|cx| self.shard.attend(id, &*link, cx)).await;
        Box::pin(linger(&*link)).await;
    }

    /// Lets hyper answer requests until the peer leaves or a stream begins.
    async fn serve_http(
        self: Rc<Self>,
        socket: ClientSocket,
        from: Client,
        mut drain: channel::Receiver<bool>,
    ) -> Option<(ClientSocket, Departure)> {
        let left: Handoff = Rc::default();
        let http = &self.node.http;
        let delivery = &self.node.delivery;
        let unread = delivery.write_timeout * delivery.max_failures;
        let patience = Patience::new(http.header_timeout, http.keep_alive, unread);
        let (door, leaves, asks) = (self.clone(), left.clone(), patience.clone());
        let socket = Rc::new(socket);
        let peer = Peer {
            socket: socket.clone(),
        };
        let service = service_fn(move |mut request: Request<Incoming>| {
            door.leave_client(from, &mut request);
            let client = Head::of(&request).client();
            let (door, leaves, peer) = (door.clone(), leaves.clone(), peer.clone());
            let asks = asks.clone();
            asks.answering();
            Box::pin(async move {
                match door.answer(request, &peer).await {
                    Outcome::Answer(answer) => {
                        asks.answered();
                        let admissions = &door.node.admissions;
                        Ok(weigh(&door.gate, admissions, answer, client))
                    }
                    Outcome::Leave(departure) => {
                        *leaves.borrow_mut() = Some(departure);
                        std::future::pending().await
                    }
                }
            }) as LocalBoxFuture<'static, Result<Response<Body>, Infallible>>
        });
        let mut connection = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            // A client that has sent all it wants to send may still wait for its answer.
            .half_close(true)
            .serve_connection(
                TokioIo::new(Watched::new(
                    Explained::new(SharedSocket(socket)),
                    patience.clone(),
                )),
                service,
            );
        let (mut draining, mut timer) = (false, None);
        loop {
            let served = poll_fn(|cx| {
                let polled = connection.poll_without_shutdown(cx);
                // A handler that takes the socket over leaves word and never answers.
                match left.borrow_mut().take() {
                    Some(departure) => Poll::Ready(Some(departure)),
                    None if polled.is_ready() => Poll::Ready(None),
                    None => patience.poll_end(&mut timer, cx).map(|()| None),
                }
            });
            tokio::select! {
                served = served => {
                    let parts = connection.into_parts();
                    drop(parts.service);
                    // hyper and its service are gone, and nobody else has a clone.
                    let socket = Rc::into_inner(parts.io.into_inner().socket.socket.0)?;
                    if patience.gave_up_writing() {
                        self.node.telemetry.answers_given_up.inc();
                        return None;
                    }
                    let Some(mut departure) = served else {
                        poll_fn(|cx| socket.poll_flush(cx)).await.ok()?;
                        linger(&*socket.into_link()).await;
                        return None;
                    };
                    departure.put_early(parts.read_buf);
                    return Some((socket, departure));
                }
                _ = drain.changed(), if !draining => {
                    draining = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    }
}
