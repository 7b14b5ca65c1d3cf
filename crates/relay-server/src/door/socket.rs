//! A socket's first and last bytes, while no connection writes to it.
//!
//! It knows neither connections nor what the bytes say.
//!
//! Invariant: a socket that is read to its end here is closed within [`LINGER`].

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::link::Link;

/// How long a closed connection is still read, so that what was said last arrives.
const LINGER: Duration = Duration::from_secs(2);
/// What a closed connection may still send.
const LINGER_BYTES: usize = 256 * 1024;

/// Writes a few bytes into a socket that nobody else writes to yet. `None`: the peer is gone.
pub(super) async fn write_head(link: &dyn Link, mut head: Bytes) -> Option<()> {
    loop {
        let sent = link.send(&head).ok()?;
        head = head.slice(sent..);
        if head.is_empty() {
            return Some(());
        }
        // An empty socket without room: the peer is not reading at all.
        poll_fn(|cx| link.poll_write_ready(cx)).await.ok()?;
    }
}

/// Ends a socket so that what was written last arrives: closing one with unread bytes would reset it.
pub(super) async fn linger(link: &dyn Link) {
    if link.finish().is_err() {
        return;
    }
    let drain = async {
        let mut left = LINGER_BYTES;
        let mut bytes = [0; 1024];
        while poll_fn(|cx| link.poll_read_ready(cx)).await.is_ok() {
            match link.try_read(&mut bytes) {
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
