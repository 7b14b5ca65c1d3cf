//! A socket's first and last bytes, while no connection writes to it.
//!
//! It knows neither connections nor what the bytes say.
//!
//! Invariant: a socket that is read to its end here is closed within [`LINGER`].

use std::io;
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a closed connection is still read, so that what was said last arrives.
const LINGER: Duration = Duration::from_secs(2);
/// What a closed connection may still send.
const LINGER_BYTES: usize = 256 * 1024;

/// Writes a few bytes into a socket that nobody else writes to yet. `None`: the peer is gone.
pub(super) async fn write_head(socket: &TcpStream, mut head: Bytes) -> Option<()> {
    while !head.is_empty() {
        match socket.try_write(&head) {
            Ok(sent) => head = head.slice(sent..),
            // An empty socket without room: the peer is not reading at all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable().await.ok()?;
            }
            Err(_) => return None,
        }
    }
    Some(())
}

/// Ends a socket so that what was written last arrives: closing one with unread bytes would reset it.
pub(super) async fn linger(socket: &TcpStream) {
    if SockRef::from(socket)
        .shutdown(std::net::Shutdown::Write)
        .is_err()
    {
        return;
    }
    let drain = async {
        let mut left = LINGER_BYTES;
        let mut bytes = [0; 1024];
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut bytes) {
                Ok(0) => return,
                Ok(read) if read < left => left -= read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    // Past the deadline the peer has had its time.
    drop(timeout(LINGER, drain).await);
}
