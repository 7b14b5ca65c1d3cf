//! What somebody writes in an afternoon instead of a relay: axum, a broadcast channel a job, a task a watcher.
//!
//! It keeps the one line such a program mostly lacks: tungstenite's read buffer of 128 KiB is turned down,
//! without which it costs four times as much. No history, no identity, no limits; a slow watcher loses
//! messages and is not told.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{SinkExt, stream};
use hyper::{StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::sync::broadcast::{Receiver, Sender, channel, error::RecvError};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Messages a watcher may be behind.
const BEHIND: usize = 64;
const READ_BUFFER_BYTES: usize = 1024;

type Jobs = Arc<Mutex<HashMap<String, Sender<Utf8Bytes>>>>;
type Job = Query<HashMap<String, String>>;

fn sender(jobs: &Jobs, job: &Job) -> Sender<Utf8Bytes> {
    let name = job.get("job").cloned().unwrap_or_default();
    let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    jobs.entry(name)
        .or_insert_with(|| channel(BEHIND).0)
        .clone()
}

async fn publish(State(jobs): State<Jobs>, job: Job, body: String) -> StatusCode {
    // Nobody watching is no failure.
    drop(sender(&jobs, &job).send(body.into()));
    StatusCode::ACCEPTED
}

async fn next(receiver: &mut Receiver<Utf8Bytes>) -> Option<Utf8Bytes> {
    loop {
        match receiver.recv().await {
            Ok(message) => return Some(message),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "as it is written in an afternoon: a task a watcher, owned by nobody"
)]
async fn websocket(State(jobs): State<Jobs>, job: Job, mut request: Request) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return StatusCode::UPGRADE_REQUIRED.into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    let mut receiver = sender(&jobs, &job).subscribe();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                .await;
        while let Some(message) = next(&mut receiver).await {
            if socket.send(Message::Text(message)).await.is_err() {
                return;
            }
        }
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn events(State(jobs): State<Jobs>, job: Job) -> impl IntoResponse {
    let receiver = sender(&jobs, &job).subscribe();
    Sse::new(stream::unfold(receiver, |mut receiver| async {
        let message = next(&mut receiver).await?;
        let event = Event::default().data(message.as_str());
        Some((Ok::<_, Infallible>(event), receiver))
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("where to listen?")?;
    let router = Router::new()
        .route("/ws", get(websocket))
        .route("/sse", get(events))
        .route("/publish", post(publish))
        .with_state(Jobs::default());
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).await?;
    Ok(())
}
