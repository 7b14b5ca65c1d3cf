//! What a proxy says of its client: before the first request, or in each.
//!
//! It reads and asks whom to believe; what is then counted against whom is not known here.
//!
//! Invariant: where the PROXY protocol is spoken, no byte of a request is read before its header is whole.

use std::io;

use http::Request;
use relay_wire::introduction::{self, NotIntroduced, Step};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Door;
use crate::proxies::Client;

/// Why a connection does not begin as it has to.
#[derive(Debug, thiserror::Error)]
enum Nameless {
    #[error("its address is not in http.trusted_proxies")]
    NotTrusted,
    #[error(transparent)]
    NotIntroduced(#[from] NotIntroduced),
    #[error("the header of the PROXY protocol did not come within http.header_timeout")]
    TooLate,
    /// It left, which is nobody's mistake.
    #[error("it was closed: {0}")]
    Gone(#[from] io::Error),
}

impl Door {
    /// Whom a new socket is from. `None`: it has to say so, and does not; it is to be closed without a word, since
    /// nobody knows in which protocol.
    pub(super) async fn introduced(&self, socket: &TcpStream, peer: Client) -> Option<Client> {
        let rules = self.node.rules.now();
        let proxies = &rules.proxies;
        if !proxies.introduce() {
            return Some(peer);
        }
        let within = self.node.http.header_timeout;
        let read = match peer.counted() {
            // Whoever is not trusted may not say who it is, nor be asked.
            Some(_) => Err(Nameless::NotTrusted),
            None => timeout(within, read(socket))
                .await
                .unwrap_or(Err(Nameless::TooLate)),
        };
        let error = match read {
            Ok(introduced) => return Some(proxies.introduced(peer, introduced)),
            Err(error) => error,
        };
        self.gate.refused("introduction");
        if !matches!(error, Nameless::Gone(_))
            && let Some(more) = self.node.told.introduction.allow()
        {
            tracing::warn!(
                address = %peer.address,
                %error,
                more,
                "a connection was closed, because http.forwarded = \"proxy\" demands of each that a trusted proxy introduces it"
            );
        }
        None
    }

    /// Leaves word in a request of whom it is from.
    pub(super) fn leave_client<B>(&self, socket: Client, request: &mut Request<B>) {
        let rules = self.node.rules.now();
        let proxies = &rules.proxies;
        let client = proxies.client(socket, request.headers());
        if proxies.says_it_otherwise(socket, request.headers())
            && let Some(more) = self.node.told.forwarding.allow()
        {
            tracing::warn!(
                address = %socket.address,
                more,
                "a trusted proxy passes requests on without saying for whom in the way that http.forwarded names, and says it in another; that is ignored, and no bound of an address holds for its clients"
            );
        }
        request.extensions_mut().insert(client);
    }
}

/// Takes a header from a socket, and nothing behind it.
async fn read(socket: &TcpStream) -> Result<introduction::Introduced, Nameless> {
    let mut bytes = Vec::new();
    loop {
        let more = match introduction::step(&bytes)? {
            Step::Done(introduced) => return Ok(introduced),
            Step::More(more) => more,
        };
        let (begin, end) = (bytes.len(), bytes.len() + more);
        bytes.resize(end, 0);
        let mut filled = begin;
        while filled < end {
            socket.readable().await?;
            match socket.try_read(bytes.get_mut(filled..end).unwrap_or_default()) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
