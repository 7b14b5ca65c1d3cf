//! A client's socket, plain or under TLS: while hyper has it, and as the link of a connection.
//!
//! It knows neither what the bytes say nor who waits for them. A plain socket that has become a link is the bare
//! socket: what it costs to write to one does not depend on what else there is.
//!
//! Invariant: what was accepted as sent has left this process, under TLS too.

use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::tls::{Secured, Session};

/// What takes bytes: a socket, or what stands in for one.
pub(crate) trait Sink {
    /// Takes as much as there is room for; less than all means that there is none, and that whoever waits for
    /// room will be woken.
    ///
    /// # Errors
    /// When the peer is gone.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl Sink for TcpStream {
    /// The socket is written to directly: asking tokio's readiness first costs a twentieth of a delivery, and the
    /// kernel says the same. Only when it has no room is tokio told, so that it watches for it.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket = SockRef::from(self);
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match socket.send(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(some) => sent += some,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Room may have come in between; then all goes on.
                    match self.try_write(rest) {
                        Ok(some) => sent += some,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

/// What a connection reads from and writes to.
pub(crate) trait Link: Sink {
    /// Ready when there may be something to read.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when there may be room.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads what there is; nothing is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has come.
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize>;

    /// Sends nothing more, and says so.
    ///
    /// # Errors
    /// When the peer is gone.
    fn finish(&self) -> io::Result<()>;
}

impl Link for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, into)
    }

    fn finish(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }
}

impl Sink for Secured {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::send(self, bytes)
    }
}

impl Link for Secured {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, into)
    }

    fn finish(&self) -> io::Result<()> {
        self.say_goodbye();
        self.tcp().finish()
    }
}

/// A socket that is nobody's link yet.
#[derive(Debug)]
pub(crate) enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Secure(Secured),
}

/// A socket on its way to another thread.
#[derive(Debug)]
pub(crate) struct Moved {
    socket: std::net::TcpStream,
    session: Option<Session>,
}

impl Moved {
    /// The socket, on the thread that it came to.
    ///
    /// # Errors
    /// When the thread cannot watch it.
    pub(crate) fn arrive(self) -> io::Result<Socket> {
        let tcp = TcpStream::from_std(self.socket)?;
        Ok(match self.session {
            None => Socket::Plain(tcp),
            Some(session) => Socket::Secure(Secured::from_parts(tcp, session)),
        })
    }
}

impl Socket {
    /// Takes it from this thread.
    ///
    /// # Errors
    /// When it cannot be let go.
    pub(crate) fn leave(self) -> io::Result<Moved> {
        let (tcp, session) = match self {
            Self::Plain(tcp) => (tcp, None),
            Self::Secure(secured) => {
                let (tcp, session) = secured.into_parts();
                (tcp, Some(session))
            }
        };
        let socket = tcp.into_std()?;
        Ok(Moved { socket, session })
    }

    /// The link that it becomes.
    pub(crate) fn into_link(self) -> Rc<dyn Link> {
        match self {
            Self::Plain(tcp) => Rc::new(tcp),
            Self::Secure(secured) => Rc::new(secured),
        }
    }

    /// Ends when the peer sends nothing more: it has closed its sending side, or is gone. A peer that has sent its
    /// next request already is there.
    pub(crate) async fn hung_up(&self) {
        match self {
            Self::Plain(tcp) => match tcp.peek(&mut [0]).await {
                Ok(0) | Err(_) => {}
                Ok(_) => std::future::pending().await,
            },
            Self::Secure(secured) => secured.hung_up().await,
        }
    }

    /// Reads what there is, once there is something.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let read = match self {
                Self::Plain(tcp) => {
                    ready!(tcp.poll_read_ready(cx))?;
                    tcp.try_read_buf(into).map(|_| ())
                }
                Self::Secure(secured) => {
                    ready!(secured.poll_read_ready(cx))?;
                    let read = secured.try_read(into.initialize_unfilled());
                    read.map(|read| into.advance(read))
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    /// Sends what there is room for, once there is some.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => loop {
                ready!(tcp.poll_write_ready(cx))?;
                match tcp.try_write_vectored(parts) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => return Poll::Ready(sent),
                }
            },
            Self::Secure(secured) => {
                let part = parts.iter().find(|part| !part.is_empty());
                secured.poll_write(cx, part.map_or(&[], |part| part))
            }
        }
    }

    /// Whether it takes several parts at a time.
    pub(crate) fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Sends nothing more, once all that was taken has left.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Poll::Ready(match self {
            Self::Plain(tcp) => tcp.finish(),
            Self::Secure(secured) => secured.finish(),
        })
    }

    /// Ready when all that was taken has left.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Secure(secured) => secured.poll_flush(cx),
        }
    }
}
