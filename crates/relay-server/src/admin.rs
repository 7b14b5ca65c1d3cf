//! The operators' listener: metrics, liveness, readiness, status, and the updates that were refused last.
//!
//! It runs on the main thread, so a busy shard does not make the process look dead.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::map_response;
use axum::routing::get;
use http::{Response, StatusCode, header};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::answer::{self, NO_SNIFF};
use crate::node::Node;

/// What the operators' listener looks at.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    /// The node.
    pub node: Arc<Node>,
    /// The bus's mode, for people.
    pub bus: &'static str,
    /// When the relay started.
    pub started: Instant,
    /// `history.jobs`.
    pub job_limit: usize,
}

/// What `/status` and `/readyz` say.
#[derive(Debug, Serialize)]
struct Status {
    ready: bool,
    version: &'static str,
    uptime_seconds: u64,
    bus: &'static str,
    bus_up: bool,
    draining: bool,
    connections: usize,
    jobs: usize,
    bus_sequence: u64,
}

/// Accepts operators' sockets, at most so many at a time: they come from descriptors kept for them.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    /// One each open socket.
    seats: Arc<Semaphore>,
}

impl Listener {
    /// At most `most` at a time; more wait.
    pub(crate) fn new(listener: TcpListener, most: usize) -> Self {
        Self {
            listener,
            seats: Arc::new(Semaphore::new(most)),
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Seated;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Seated, SocketAddr) {
        // The semaphore is never closed.
        let seat = self.seats.clone().acquire_owned().await.ok();
        let (socket, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (
            Seated {
                socket,
                _seat: seat,
            },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A socket with its place, which is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Seated {
    socket: TcpStream,
    _seat: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// The routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        // The name that many a load balancer asks by default.
        .route("/healthz", get(readyz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/refused", get(refused))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "this listener has /metrics /livez /readyz /status /refused\n",
            )
        })
        .layer(map_response(async |mut answer: Response<Body>| {
            answer.headers_mut().extend([NO_SNIFF]);
            answer
        }))
        .with_state(admin)
}

impl Admin {
    fn status(&self) -> Status {
        let hub = self.node.hub.stats();
        Status {
            ready: self.node.readiness.is_ready(&hub),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            bus: self.bus,
            bus_up: !hub.stale,
            draining: self.node.readiness.is_draining(),
            connections: self.node.admissions.total(),
            jobs: hub.jobs,
            bus_sequence: hub.high.get(),
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response<Body> {
    let telemetry = &admin.node.telemetry;
    let hub = admin.node.hub.stats();
    telemetry.bound(
        "connections",
        admin.node.admissions.total(),
        admin.node.limits.connections,
    );
    telemetry.bound("jobs", hub.jobs, admin.job_limit);
    telemetry
        .draining
        .set(i64::from(admin.node.readiness.is_draining()));
    if let Some(counts) = admin.node.identity.fetches() {
        telemetry.keys_fetched(counts);
    }
    match telemetry.scrape(&hub) {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            answer::json(StatusCode::INTERNAL_SERVER_ERROR, b"{}".to_vec())
        }
    }
}

async fn readyz(State(admin): State<Admin>) -> Response<Body> {
    let status = admin.status();
    let code = match status.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer::json(code, serde_json::to_vec(&status).unwrap_or_default())
}

async fn status(State(admin): State<Admin>) -> Response<Body> {
    answer::json(
        StatusCode::OK,
        serde_json::to_vec(&admin.status()).unwrap_or_default(),
    )
}

/// `GET /refused`: what workers who get no answer did wrong.
async fn refused(State(admin): State<Admin>) -> Response<Body> {
    answer::json(
        StatusCode::OK,
        serde_json::to_vec(&admin.node.hub.refusals()).unwrap_or_default(),
    )
}
