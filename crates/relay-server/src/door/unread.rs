//! What hyper itself refuses, because it is not a request, in the shape that all refusals have.
//!
//! hyper answers such bytes by a bare head of its own and closes; nobody else sees them. Here that head is replaced
//! on its way out. What is in it but its status is not looked at.
//!
//! Invariant: bytes of answers that are not hyper's own pass as they are.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::answer::{ApiError, NO_SNIFF};

/// A way out on which hyper's own refusals have a body.
#[derive(Debug)]
pub(super) struct Explained<S> {
    pub(super) socket: S,
    /// What is written in hyper's stead, and has not been taken yet.
    pending: Bytes,
}

impl<S> Explained<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            pending: Bytes::new(),
        }
    }
}

/// What is said in place of a head of hyper's own; `None` for anything else. Every refusal of ours has a type.
fn explained(bytes: &[u8]) -> Option<Bytes> {
    let rest = bytes.strip_prefix(b"HTTP/1.1 4")?;
    let head = rest.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&rest[..head]).to_ascii_lowercase();
    if head.contains("\r\ncontent-type:") {
        return None;
    }
    let status = format!("4{}", head.get(..2)?);
    let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
    let (parts, body) = ApiError::unreadable(status).into_parts();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let length = body.len();
    let mut said = format!(
        "HTTP/1.1 {status}\r\ndate: {date}\r\nconnection: close\r\ncontent-length: {length}\r\n"
    )
    .into_bytes();
    for (name, value) in parts.headers.iter().chain([(&NO_SNIFF.0, &NO_SNIFF.1)]) {
        said.extend_from_slice(name.as_str().as_bytes());
        said.extend_from_slice(b": ");
        said.extend_from_slice(value.as_bytes());
        said.extend_from_slice(b"\r\n");
    }
    said.extend_from_slice(b"\r\n");
    said.extend_from_slice(&body);
    Some(said.into())
}

impl<S: AsyncWrite + Unpin> Explained<S> {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.pending))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending = self.pending.slice(sent..);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes bytes that begin a refusal of hyper's own, and how many they are.
    fn replace(&mut self, bytes: &[u8]) -> Option<usize> {
        self.pending = explained(bytes)?;
        Some(bytes.len())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        match self.replace(bytes) {
            Some(taken) => Poll::Ready(Ok(taken)),
            None => Pin::new(&mut self.socket).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        match parts.first().and_then(|first| self.replace(first)) {
            Some(taken) => Poll::Ready(Ok(taken)),
            None => Pin::new(&mut self.socket).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_refusal_is_explained_and_nothing_else_is_touched() {
        for (line, code) in [
            ("400 Bad Request", "bad_request"),
            ("431 Request Header Fields Too Large", "head_too_large"),
            ("414 URI Too Long", "head_too_large"),
        ] {
            let bare = format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n");
            let said = explained(bare.as_bytes()).unwrap();
            let said = std::str::from_utf8(&said).unwrap();
            assert!(said.starts_with(&format!("HTTP/1.1 {line}\r\n")), "{said}");
            let (head, body) = said.split_once("\r\n\r\n").unwrap();
            assert!(body.contains(&format!("\"code\":\"{code}\"")), "{said}");
            let length = format!("content-length: {}\r\n", body.len());
            assert!(head.contains(&length), "{said}");
            assert!(head.contains("content-type: application/json"), "{said}");
            assert!(head.contains("x-content-type-options: nosniff"), "{said}");
        }
        for other in [
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 4",
            "{\"a\":\"HTTP/1.1 400 Bad Request\\r\\n\\r\\n\"}",
            "",
        ] {
            assert_eq!(explained(other.as_bytes()), None, "{other}");
        }
    }
}
