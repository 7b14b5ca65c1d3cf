//! The operators' listener: metrics, liveness, readiness, status, and the updates that were refused last.
//!
//! It runs on the main thread, so a busy shard does not make the process look dead.
//!
//! Invariant: a socket keeps its place for [`SERVED_FOR`] and [`ANSWERED_WITHIN`] at most, whatever its client does.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::map_response;
use axum::routing::get;
use http::{Response, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use relay_core::limits::Resource;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::answer::{self, NO_SNIFF};
use crate::node::Node;

/// How long a request's head may take, and a socket rest between two requests.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// After this long a socket takes no further request.
const SERVED_FOR: Duration = Duration::from_secs(60);
/// How long the last answer on it may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

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

impl Listener {
    /// Answers by `router`, until the future is dropped.
    pub(crate) async fn serve(mut self, router: Router) {
        let mut sockets = JoinSet::new();
        loop {
            tokio::select! {
                socket = self.accept() => {
                    sockets.spawn(serve_socket(socket, router.clone()));
                }
                Some(ended) = sockets.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a request of an operator was not answered");
                    }
                }
            }
        }
    }

    async fn accept(&mut self) -> Seated {
        // The semaphore is never closed.
        let seat = self.seats.clone().acquire_owned().await.ok();
        let (socket, _) = axum::serve::Listener::accept(&mut self.listener).await;
        Seated {
            socket,
            _seat: seat,
        }
    }
}

/// Answers requests on one socket for a while: whoever goes on connects anew, and whoever says or reads nothing makes
/// room for others.
async fn serve_socket(socket: Seated, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = sleep(SERVED_FOR) => {
            served.as_mut().graceful_shutdown();
            timeout(ANSWERED_WITHIN, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the operators' listener ended");
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

fn count(amount: u64) -> usize {
    usize::try_from(amount).unwrap_or(usize::MAX)
}

async fn metrics(State(admin): State<Admin>) -> Response<Body> {
    let telemetry = &admin.node.telemetry;
    let hub = admin.node.hub.stats();
    for what in Resource::ALL {
        let used = admin.node.admissions.used(what);
        let limit = match what {
            Resource::Sockets => admin.node.sockets.most(),
            _ => count(admin.node.admissions.bounds(what).per_node),
        };
        telemetry.bound(what.as_str(), count(used), limit);
    }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Time is paused: what is waited for comes at once, or never.
    #[tokio::test(start_paused = true)]
    async fn operators_who_say_nothing_make_room_for_others() {
        for says in [
            "",
            "GET /",
            "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n",
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let listener = Listener::new(listener, 1);
            let router = Router::new().route("/", get(async || "here"));
            let mut tasks = JoinSet::new();
            tasks.spawn(listener.serve(router));
            let mut mute = TcpStream::connect(address).await.unwrap();
            mute.write_all(says.as_bytes()).await.unwrap();
            let mut other = TcpStream::connect(address).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            other.write_all(request).await.unwrap();
            let mut answer = String::new();
            other.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("here"), "{says:?}: {answer}");
        }
    }
}
