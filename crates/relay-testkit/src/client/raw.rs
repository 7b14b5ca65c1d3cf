//! A bare socket, for bytes that no client library would send.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// One TCP connection.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl From<TcpStream> for Raw {
    fn from(socket: TcpStream) -> Self {
        Self(socket)
    }
}

impl Raw {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(address: &str) -> Result<Self> {
        Ok(Self(TcpStream::connect(address).await?))
    }

    /// Connects with a receive buffer of a few kilobytes, for a client that never reads.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect_narrow(address: &str) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        Ok(Self(socket.connect(address.parse()?).await?))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.0.write_all(bytes.as_ref()).await?)
    }

    /// Says that nothing more will be sent (`SHUT_WR`); what comes can still be read.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn stop_sending(&mut self) -> Result<()> {
        Ok(self.0.shutdown().await?)
    }

    /// Reads until `wanted` is in what was read, the other side closes, or the time is over; gives all
    /// that was read.
    pub async fn read_until(&mut self, wanted: &str, within: Duration) -> String {
        let mut seen = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            loop {
                match self.0.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => seen.extend_from_slice(&chunk[..count]),
                }
                if String::from_utf8_lossy(&seen).contains(wanted) {
                    return;
                }
            }
        };
        // running out of time is an answer too: what was read by then
        drop(timeout(within, read).await);
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Closes its own side, and goes on listening.
    pub async fn finish(&mut self) {
        // one that is gone already has no side to close
        drop(self.0.shutdown().await);
    }

    /// Reads once, at most so many bytes: what there is, or what comes first within the time; nothing if nothing
    /// does.
    pub async fn read_some(&mut self, most: usize, within: Duration) -> String {
        let mut chunk = vec![0; most];
        let read = timeout(within, self.0.read(&mut chunk)).await;
        let count = read.ok().and_then(Result::ok).unwrap_or(0);
        String::from_utf8_lossy(&chunk[..count]).into_owned()
    }

    /// Reads until the other side closes; `None` when it does not within the time.
    pub async fn read_to_end(&mut self, within: Duration) -> Option<Vec<u8>> {
        let mut seen = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = self.0.read(&mut chunk).await {
                seen.extend_from_slice(&chunk[..count]);
            }
        };
        timeout(within, read).await.ok()?;
        Some(seen)
    }

    /// Whether the other side closes within the time; what it still sends is thrown away.
    pub async fn closes(&mut self, within: Duration) -> bool {
        self.read_to_end(within).await.is_some()
    }

    /// Leaves with a reset and no goodbye.
    pub fn vanish(self) {
        // a socket that cannot be set is already dead, which is all that is wanted
        drop(self.0.set_zero_linger());
    }
}
