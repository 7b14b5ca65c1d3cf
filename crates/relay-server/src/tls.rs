//! TLS in this process: the certificate that the relay shows, and what a client's socket is under it.
//!
//! It knows bytes in the clear and bytes under TLS; no HTTP, no connections of the shard.
//!
//! Invariant: a certificate is exchanged whole and with its own key, or not at all; sockets that are open keep the
//! one they began with.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{IoState, ServerConfig, ServerConnection};
use tokio::net::TcpStream;

/// Bytes in the clear that go under TLS at a time: one record's.
const RECORD: usize = 16 * 1024;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The file of the certificate.
    #[error("cannot read certificates from {}: {source}; it is to be PEM, the server's own first", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// There is nothing in it.
    #[error("{} has no certificate in it; it is to be PEM, the server's own first", file.display())]
    NoCertificate {
        /// The file.
        file: PathBuf,
    },
    /// The file of the key.
    #[error("cannot read a private key from {}: {source}; it is to be PEM, and not encrypted", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// They cannot be used together.
    #[error("{} and {} cannot be used together: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

impl TlsError {
    /// Whether the key's file is at fault, rather than the certificate's.
    pub(crate) fn is_of_key(&self) -> bool {
        matches!(self, Self::Key { .. })
    }
}

/// What a server shows and speaks: a certificate, with TLS 1.2 and 1.3.
///
/// # Errors
/// When the files cannot be read, or do not belong together.
pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = certificates.map_err(|source| TlsError::Certificate {
        file: certificate.to_owned(),
        source,
    })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate {
            file: certificate.to_owned(),
        });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Key {
        file: key.to_owned(),
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, private)
        });
    let mut config = config.map_err(|source| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A socket under TLS, after its handshake.
pub(crate) struct Secured {
    tcp: TcpStream,
    session: RefCell<Session>,
}

/// What a socket under TLS has, besides the socket.
pub(crate) struct Session {
    tls: Box<ServerConnection>,
    /// Bytes in the clear that wait to be read.
    waiting: usize,
    /// Of the bytes to be sent next, so many are under TLS already, but not all of that has left: they do not count
    /// as sent before it has.
    held: usize,
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").finish_non_exhaustive()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A socket as rustls reads and writes it.
struct Bytes<'a>(&'a TcpStream);

impl io::Read for Bytes<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl io::Write for Bytes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_blocked<T>(result: &io::Result<T>) -> bool {
    let kind = result.as_ref().err().map(io::Error::kind);
    kind == Some(io::ErrorKind::WouldBlock)
}

impl Session {
    /// Sends what is under TLS already. False if there is no room for all of it.
    fn flush(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Bytes(tcp)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                blocked if is_blocked(&blocked) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Takes what has come in once. Nothing came, for good, where that is 0.
    fn take(&mut self, tcp: &TcpStream) -> io::Result<(usize, IoState)> {
        let taken = self.tls.read_tls(&mut Bytes(tcp))?;
        match self.tls.process_new_packets() {
            Ok(state) => {
                self.waiting = state.plaintext_bytes_to_read();
                // Answers of the protocol's own; what has no room now goes with the next bytes.
                self.flush(tcp)?;
                Ok((taken, state))
            }
            Err(error) => {
                // Says why, if there is room for it.
                drop(self.flush(tcp));
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }
}

impl Secured {
    /// Lets a client begin TLS on a socket.
    ///
    /// # Errors
    /// When it does not, or they cannot agree.
    pub(crate) async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut session = Session {
            tls: Box::new(tls),
            waiting: 0,
            held: 0,
        };
        while session.tls.is_handshaking() {
            tcp.readable().await?;
            match session.take(&tcp) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                blocked if is_blocked(&blocked) => {}
                Err(error) => return Err(error),
            }
            while !session.flush(&tcp)? {
                tcp.writable().await?;
            }
        }
        Ok(Self {
            tcp,
            session: RefCell::new(session),
        })
    }

    /// The socket and the rest, to be put together on another thread.
    pub(crate) fn into_parts(self) -> (TcpStream, Session) {
        (self.tcp, self.session.into_inner())
    }

    /// What was taken apart.
    pub(crate) fn from_parts(tcp: TcpStream, session: Session) -> Self {
        Self {
            tcp,
            session: RefCell::new(session),
        }
    }

    /// Sends as much as there is room for, record by record.
    ///
    /// # Errors
    /// When the peer is gone.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session.borrow_mut();
        let mut sent = 0;
        loop {
            if !session.flush(&self.tcp)? {
                return Ok(sent);
            }
            sent += std::mem::take(&mut session.held);
            let rest = bytes.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(sent.min(bytes.len()));
            }
            let record = rest.get(..RECORD).unwrap_or(rest);
            session.held = session.tls.writer().write(record)?;
        }
    }

    /// Reads what there is in the clear; nothing is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has come, and else when the peer is gone or does not speak TLS any more.
    pub(crate) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session.borrow_mut();
        loop {
            match session.tls.reader().read(into) {
                Ok(read) => {
                    session.waiting = session.waiting.saturating_sub(read);
                    return Ok(read);
                }
                blocked if is_blocked(&blocked) => {}
                // It ended without the goodbye of TLS, as many clients do.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
            session.take(&self.tcp)?;
        }
    }

    /// Ready when there may be something to read.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.session.borrow().waiting {
            0 => self.tcp.poll_read_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ready when there may be room.
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    /// Puts bytes under TLS once all before them have left, as many as one record takes.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let mut session = self.session.borrow_mut();
        let record = bytes.get(..RECORD).unwrap_or(bytes);
        let written = session.tls.writer().write(record)?;
        session.flush(&self.tcp)?;
        Poll::Ready(Ok(written))
    }

    /// Ready when all that is under TLS has left.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.session.borrow_mut().flush(&self.tcp)? {
                return Poll::Ready(Ok(()));
            }
            ready!(self.tcp.poll_write_ready(cx))?;
        }
    }

    /// Says the goodbye of TLS, if there is room for it.
    pub(crate) fn say_goodbye(&self) {
        let mut session = self.session.borrow_mut();
        session.tls.send_close_notify();
        // Whoever does not read has no room for a goodbye.
        drop(session.flush(&self.tcp));
    }

    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ends when the peer sends nothing more. What it sends meanwhile waits to be read.
    pub(crate) async fn hung_up(&self) {
        loop {
            if self.session.borrow().waiting > 0 {
                return std::future::pending().await;
            }
            if self.tcp.readable().await.is_err() {
                return;
            }
            let taken = self.session.borrow_mut().take(&self.tcp);
            match taken {
                Ok((0, _)) => return,
                Ok((_, state)) if state.peer_has_closed() => return,
                Ok(_) => {}
                blocked if is_blocked(&blocked) => {}
                Err(_) => return,
            }
        }
    }
}
