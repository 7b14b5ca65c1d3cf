//! A client's socket while hyper reads and writes it, and whether the client still sends.
//!
//! A client may close its sending side and wait for the answer (`shutdown(SHUT_WR)`), which looks the same as a
//! client that went away. hyper answers both. Only a request that would wait for news looks here, and does not
//! wait.
//!
//! Invariant: bytes are taken from the socket by hyper alone; here they are only looked at.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::Socket;

/// The other end of a socket.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// hyper holds the other clone; what it reads and writes is its own affair.
    pub(super) socket: Rc<Socket>,
}

impl Peer {
    /// Ends when the peer sends nothing more.
    pub(super) async fn hung_up(&self) {
        self.socket.hung_up().await;
    }
}

/// A socket as hyper reads and writes it, shared with those who look whether its peer is there.
#[derive(Debug)]
pub(super) struct SharedSocket(pub(super) Rc<Socket>);

impl AsyncRead for SharedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, into)
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
