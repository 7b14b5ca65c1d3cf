//! The operators' listener: metrics, liveness, readiness, status.
//!
//! It runs on the main thread, so a busy shard does not make the process look dead.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use http::{Response, StatusCode, header};
use serde::Serialize;
use tokio::time::Instant;

use crate::answer;
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

/// The routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        // The name that many a load balancer asks by default.
        .route("/healthz", get(readyz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "this listener has /metrics /livez /readyz /status\n",
            )
        })
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
