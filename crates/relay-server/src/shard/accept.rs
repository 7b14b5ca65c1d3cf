//! The way in: sockets accepted, requests read by hyper, streams taken back from it.
//!
//! Every connection starts as HTTP/1.1 under hyper. A request for a stream never gets an answer from
//! hyper: its handler leaves a [`Takeover`] and the socket is taken out of hyper's hands, so that a
//! WebSocket or an event stream costs neither hyper's buffers nor a second task. Everything that is
//! refused, and everything that is no stream, is answered the ordinary way.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_bus::inbox::ConnectionId;
use relay_wire::engineio::request::is_engine_io;
use relay_wire::websocket;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

use super::engineio::{Answered, Upgrade};
use super::watch::Stream;
use super::{Opening, Shard, Transport};

/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;
/// hyper's own bound on a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a closed connection is still read, so that what was said last arrives.
const LINGER: Duration = Duration::from_secs(2);
/// What a closed connection may still send.
const LINGER_BYTES: usize = 256 * 1024;
/// After this long without acknowledgement the kernel gives a peer up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Opens a listening socket that shares its port with the other shards'.
///
/// # Errors
/// When the port is taken or may not be opened.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
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

/// A socket taken back from hyper, and what becomes of it.
pub(super) struct Takeover {
    /// The answer's head, written before anything else.
    pub(super) head: Bytes,
    /// What the connection is from now on.
    pub(super) stream: Stream,
    /// Bytes that came behind the request.
    pub(super) early: Bytes,
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

impl Departure {
    /// Where bytes go that came behind the request.
    fn put_early(&mut self, bytes: Bytes) {
        match self {
            Self::Begin(takeover) => takeover.early = bytes,
            Self::Upgrade(upgrade) => upgrade.early = bytes,
            Self::Decline(..) => {}
        }
    }
}

type Left = Rc<RefCell<Option<Departure>>>;

impl Shard {
    /// Accepts connections until the drain begins. `router` answers what is no stream.
    pub async fn serve(
        self: Rc<Self>,
        listener: TcpListener,
        router: Router,
        mut drain: channel::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        let shard = self.clone();
                        let (router, drain) = (router.clone(), drain.clone());
                        connections.spawn_local(shard.serve_socket(socket, peer.ip(), router, drain));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: others must go before more can come.
                        self.common.telemetry.refused("accept");
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(Duration::from_millis(50)).await;
                    }
                },
                _ = drain.changed() => break,
                Some(_) = connections.join_next() => {}
            }
        }
        // Nobody new from here on; a successor may have the port already.
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn serve_socket(
        self: Rc<Self>,
        socket: TcpStream,
        peer: IpAddr,
        router: Router,
        drain: channel::Receiver<bool>,
    ) {
        // What is held as long as a stream lives must be small, so hyper's parts and the takeover are boxed.
        let http = Box::pin(self.clone().serve_http(socket, peer, router, drain));
        let Some((socket, departure)) = http.await else {
            return;
        };
        let begun = match departure {
            Departure::Begin(takeover) => {
                let socket = Rc::new(socket);
                let id = self.begin(&socket, takeover);
                Some((socket, id))
            }
            Departure::Upgrade(upgrade) => Box::pin(self.take_over(socket, *upgrade)).await,
            Departure::Decline(head, reason) => {
                let close = websocket::close_frame(websocket::close::PROTOCOL, reason);
                let said = Bytes::from([head, close].concat());
                write_head(&socket, said).await;
                Box::pin(linger(&socket)).await;
                None
            }
        };
        let Some((socket, id)) = begun else {
            return;
        };
        poll_fn(|cx| self.attend(id, &socket, cx)).await;
        Box::pin(linger(&socket)).await;
    }

    /// Lets hyper answer requests until the peer leaves or a stream begins.
    async fn serve_http(
        self: Rc<Self>,
        socket: TcpStream,
        peer: IpAddr,
        router: Router,
        mut drain: channel::Receiver<bool>,
    ) -> Option<(TcpStream, Departure)> {
        let left: Left = Rc::default();
        let shard = self.clone();
        let slot = left.clone();
        let service = service_fn(move |request| {
            Box::pin(
                shard
                    .clone()
                    .answer(request, peer, router.clone(), slot.clone()),
            ) as LocalBoxFuture<'static, Result<Response<Body>, Infallible>>
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.common.http.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(socket), service);
        let mut draining = false;
        loop {
            let served = poll_fn(|cx| {
                let polled = connection.poll_without_shutdown(cx);
                // A handler that takes the socket over leaves word and never answers.
                match left.borrow_mut().take() {
                    Some(departure) => Poll::Ready(Some(departure)),
                    None => polled.map(|_| None),
                }
            });
            tokio::select! {
                served = served => {
                    let parts = connection.into_parts();
                    let mut socket = parts.io.into_inner();
                    let Some(mut departure) = served else {
                        let socket = (socket.shutdown().await.is_ok()).then_some(socket)?;
                        linger(&socket).await;
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

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        peer: IpAddr,
        router: Router,
        left: Left,
    ) -> Result<Response<Body>, Infallible> {
        // Each in a box of its own: a poll that hangs must not be as large as the widest of them.
        if super::watch::is_watch_route(request.uri().path()) {
            return match Box::pin(self.watch(request.map(|_| ()), peer)).await {
                Ok(super::watch::Watched::Answer(response)) => Ok(response),
                Ok(super::watch::Watched::Stream(takeover)) => {
                    *left.borrow_mut() = Some(Departure::Begin(takeover));
                    std::future::pending().await
                }
                Err(response) => Ok(*response),
            };
        }
        if let Some(found) = self.common.dialects.routes.find(request.uri().path()) {
            let query = request.uri().query().unwrap_or("");
            let answers = found.poll.is_some() || found.health.is_some();
            let alone = found.websocket.is_none() && !answers;
            if !found.socketio.is_empty() && (alone || is_engine_io(query)) {
                return match Box::pin(self.engine_io(request, peer, &found)).await {
                    Answered::Answer(response) => Ok(response),
                    Answered::Leave(departure) => {
                        *left.borrow_mut() = Some(departure);
                        std::future::pending().await
                    }
                };
            }
            let request = request.map(|_| ());
            return match Box::pin(self.watch_foreign(&request, peer, &found)).await {
                super::watch::Watched::Answer(response) => Ok(response),
                super::watch::Watched::Stream(takeover) => {
                    *left.borrow_mut() = Some(Departure::Begin(takeover));
                    std::future::pending().await
                }
            };
        }
        // The router cannot fail; its error type has no values.
        Box::pin(router.oneshot(request.map(Body::new))).await
    }

    /// Puts a taken-over socket into the slab, its answer's head first.
    fn begin(&self, socket: &Rc<TcpStream>, takeover: Box<Takeover>) -> ConnectionId {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let Takeover {
            head,
            stream,
            early,
        } = *takeover;
        let greets = matches!(stream.transport, Transport::WebSocket(_));
        let opening = Opening {
            transport: stream.transport,
            stream: Some(socket.clone()),
            identity: stream.identity,
            admission: stream.admission,
            authenticated: stream.authenticated,
            speech: stream.dialect.map(|(endpoint, params)| {
                Box::new(super::speech::Speech::new(endpoint, params, now))
            }),
        };
        let (slot, id) = self.open(&mut state, opening, now);
        self.guarded(&mut state, slot, |shard, state| {
            shard.reply(state, slot, head);
            if let Some(packet) = shard.open_packet(state, slot) {
                shard.reply(state, slot, relay_wire::websocket::text(packet.as_bytes()));
            }
            if greets {
                shard.greet(state, slot);
            }
            if stream.authenticated {
                shard.watch_topics(state, slot, stream.topics, stream.cursor);
            } else if !stream.topics.is_empty() {
                let awaited = Box::new((stream.topics, stream.cursor));
                state.connections[slot].extras().awaited = Some(awaited);
            }
            if !early.is_empty() {
                shard.received(state, slot, &early, now);
            }
        });
        // What the hub could answer at once is in the inbox, and the turn that takes it is due: head, greeting
        // and first word then leave in one write. A write costs more than all the rest of a connection.
        if self.inbox.is_empty() || state.draining || !Self::is_open(&state, slot) {
            self.flush_dirty(&mut state, now);
        }
        // Draining began while the request was under way.
        if state.draining {
            self.end(&mut state, slot, relay_core::session::CloseReason::Drain);
            self.flush_dirty(&mut state, now);
        }
        id
    }
}

/// Writes a few bytes into a socket that nobody else writes to yet. `None`: the peer is gone.
pub(super) async fn write_head(socket: &TcpStream, mut head: Bytes) -> Option<()> {
    while !head.is_empty() {
        match socket.try_write(&head) {
            Ok(sent) => head = head.slice(sent..),
            // An empty socket without room: the peer is not reading at all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable().await.ok()?;
            }
            Err(_) => return None,
        }
    }
    Some(())
}

/// Ends a socket so that what was written last arrives: closing one with unread bytes would reset it.
pub(super) async fn linger(socket: &TcpStream) {
    if SockRef::from(socket)
        .shutdown(std::net::Shutdown::Write)
        .is_err()
    {
        return;
    }
    let drain = async {
        let mut left = LINGER_BYTES;
        let mut bytes = [0; 1024];
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut bytes) {
                Ok(0) => return,
                Ok(read) if read < left => left -= read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    // Past the deadline the peer has had its time.
    drop(timeout(LINGER, drain).await);
}
