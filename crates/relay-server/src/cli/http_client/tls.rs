//! The socket of a call: plain, or under TLS.
//!
//! It knows by what a server is trusted, and nothing of what is sent.
//!
//! Invariant: a server that was named with https is never spoken to in the clear.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{CallError, ServerUrl};

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Secure(Box<TlsStream<TcpStream>>),
}

/// Why there is nothing to trust a server by.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RootsError {
    /// The file cannot be read.
    #[error("cannot read certificates from {}: {source}; check --ca, which is to be PEM", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// There is nothing in it.
    #[error("there is no usable certificate in {}; check --ca, which is to be PEM", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The system has none.
    #[error(
        "this system has no certificates to trust servers by; install ca-certificates, or name some with --ca"
    )]
    NoneHere,
}

/// Whether a server's certificate is at fault.
pub(super) fn is_mistrust(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

/// What to do about a handshake that failed.
pub(super) fn hint(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        // As `openssl req -x509` makes them; the error's type is not to be had here.
        Some(rustls::Error::InvalidCertificate(_))
            if error.to_string().contains("CaUsedAsEndEntity") =>
        {
            "; its certificate is one for signing others (CA:TRUE), and a server needs one with basicConstraints=CA:FALSE"
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            "; if it has a certificate of your own, name with --ca what that was signed by"
        }
        Some(rustls::Error::InvalidMessage(_)) => "; does it speak plain http?",
        _ => "",
    }
}

/// Connects.
///
/// # Errors
/// When nobody listens there, or the server cannot be trusted.
pub(super) async fn connect(server: &ServerUrl) -> Result<Stream, CallError> {
    // Before there is a socket, whose other end waits for the handshake.
    let config = match server.is_secure {
        true => Some(trusting(server.ca.as_deref())?),
        false => None,
    };
    let tcp = TcpStream::connect((server.host.as_str(), server.port)).await;
    let tcp = tcp.map_err(|source| CallError::Unreachable {
        server: server.clone(),
        source,
    })?;
    let Some(config) = config else {
        return Ok(Stream::Plain(tcp));
    };
    let failed = |source| CallError::Tls {
        server: server.clone(),
        source,
    };
    let name = ServerName::try_from(server.host.clone());
    let name = name.map_err(|error| failed(io::Error::other(error)))?;
    let secure = TlsConnector::from(config).connect(name, tcp).await;
    Ok(Stream::Secure(Box::new(secure.map_err(failed)?)))
}

/// What servers are trusted by: the certificates of a file, or the system's.
fn trusting(ca: Option<&Path>) -> Result<Arc<ClientConfig>, RootsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let certificates: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
            let certificates = certificates.map_err(|source| RootsError::File {
                file: file.to_owned(),
                source,
            })?;
            roots.add_parsable_certificates(certificates);
            if roots.is_empty() {
                return Err(RootsError::Empty {
                    file: file.to_owned(),
                });
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(RootsError::NoneHere);
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]);
    // The provider speaks both.
    let config = config.map_err(|_| RootsError::NoneHere)?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Secure(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Secure(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Secure(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Secure(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
