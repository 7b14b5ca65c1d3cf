//! The beginning of TLS on a new socket.
//!
//! It knows deadlines and what a client is told that does not speak TLS; the certificate and the records are
//! `tls`'s.
//!
//! Invariant: a handshake ends, one way or the other, within `http.header_timeout`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Door;
use super::socket::{linger, write_head};
use crate::answer::ApiError;
use crate::link::Socket;
use crate::tls::Secured;

impl Door {
    /// Lets a client begin TLS. `None`: it has not.
    pub(super) async fn secured(
        &self,
        socket: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Option<Socket> {
        let handshake = async {
            if speaks_plainly(&socket).await? {
                say_that_it_is_tls(&socket).await;
                return Err(io::Error::other("it speaks HTTP without TLS"));
            }
            Secured::accept(socket, config).await
        };
        let within = self.node.http.header_timeout;
        match timeout(within, handshake).await {
            Ok(Ok(secured)) => return Some(Socket::Secure(secured)),
            Ok(Err(error)) => tracing::debug!(%error, "a client does not begin TLS"),
            Err(_) => {
                tracing::debug!("a client takes longer than http.header_timeout to begin TLS")
            }
        }
        self.gate.refused("tls_handshake");
        None
    }
}

/// Whether the first byte is the beginning of a method, which no record of TLS has.
async fn speaks_plainly(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    socket.peek(&mut first).await?;
    let [first] = first;
    Ok(first.is_ascii_uppercase())
}

/// Answers a request that came without TLS. It is not read: it may have a token in it.
async fn say_that_it_is_tls(socket: &TcpStream) {
    let message = "this port speaks https and wss; use one of these in the address";
    let (head, body) = ApiError::bad_request("tls_required", message).into_parts();
    let mut answer = format!("HTTP/1.1 {}\r\nConnection: close\r\n", head.status);
    for (name, value) in &head.headers {
        answer += &format!("{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    answer += &format!("content-length: {}\r\n\r\n", body.len());
    let answer = [answer.into_bytes(), body].concat();
    write_head(socket, Bytes::from(answer)).await;
    linger(socket).await;
}
