//! From polling to WebSocket: a socket probes, takes over, and is the connection's from then on.
//!
//! Until the client's last word on it the session goes on polling as if the socket were not there; the
//! change itself is one synchronous call, so nothing falls between the two.

use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use relay_bus::inbox::ConnectionId;
use relay_wire::engineio::sid::Sid;
use relay_wire::engineio::{PROBE, PROBED, Packet};
use relay_wire::socketio::protocol::UPGRADE_TIMEOUT;
use relay_wire::websocket::{self, Decoder, Inbound};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Door;
use super::accept::note_panic;
use super::socket::{linger, write_head};
use crate::link::{Link, Socket};
use crate::shard::{Mail, Mailbox};
use crate::sockets::Seat;

/// Messages and pings of a WebSocket before it takes over; a client needs two.
const PROBES: usize = 16;
/// One read of a WebSocket that is about to take over.
const PROBE_BYTES: usize = 1024;

/// A WebSocket that may take a session over.
#[derive(Debug)]
pub(super) struct Upgrade {
    sid: Sid,
    head: Bytes,
    /// Bytes that came behind the request.
    pub(super) early: Bytes,
}

impl Upgrade {
    /// A WebSocket whose request is answered with `head`.
    pub(super) fn new(sid: Sid, head: Bytes) -> Self {
        Self {
            sid,
            head,
            early: Bytes::new(),
        }
    }
}

impl Door {
    /// Reads the letters for this shard's sessions until the shard has drained.
    pub(crate) async fn read_mail(self: Rc<Self>, mut mailbox: Mailbox) {
        let mut sockets = JoinSet::new();
        loop {
            tokio::select! {
                Some(mail) = mailbox.recv() => match mail {
                    Mail::Socket(sid, (socket, seat), head, early) => {
                        let upgrade = Upgrade { sid, head, early };
                        match socket.arrive() {
                            Ok(socket) => {
                                let socket = (socket, seat);
                                sockets.spawn_local(self.clone().serve_upgrade(socket, upgrade));
                            }
                            Err(error) => tracing::warn!(%error, "a socket cannot be moved"),
                        }
                    }
                    mail => self.shard.deliver(mail),
                },
                Some(ended) = sockets.join_next() => note_panic(&ended),
                () = self.shard.drained() => break,
            }
        }
        while let Some(ended) = sockets.join_next().await {
            note_panic(&ended);
        }
    }

    /// Serves a socket that came to take over a session of this shard.
    async fn serve_upgrade(self: Rc<Self>, socket: (Socket, Seat), upgrade: Upgrade) {
        let Some((link, id, _seat)) = Box::pin(self.take_over(socket, upgrade)).await else {
            return;
        };
        poll_fn(|cx| self.shard.attend(id, &*link, cx)).await;
        Box::pin(linger(&*link)).await;
    }

    /// Brings a socket to the shard whose session it may take over, and there through the takeover.
    pub(super) async fn take_over(
        &self,
        (socket, seat): (Socket, Seat),
        upgrade: Upgrade,
    ) -> Option<(Rc<dyn Link>, ConnectionId, Seat)> {
        let shard = upgrade.sid.shard;
        if usize::from(shard) != self.shard.number() {
            let socket = socket.leave().ok()?;
            let socket = (socket, seat);
            let mail = Mail::Socket(upgrade.sid, socket, upgrade.head, upgrade.early);
            self.shard.post(shard, mail);
            return None;
        }
        let link = socket.into_link();
        let taken = timeout(UPGRADE_TIMEOUT, self.probe(&link, &upgrade)).await;
        if let Ok(Some(id)) = taken {
            return Some((link, id, seat));
        }
        // The session goes on by polling.
        self.shard.unprobe(upgrade.sid);
        linger(&*link).await;
        None
    }

    /// Answers the probe, lets the waiting poll go, and waits for the word that ends polling.
    async fn probe(&self, link: &Rc<dyn Link>, upgrade: &Upgrade) -> Option<ConnectionId> {
        write_head(&**link, upgrade.head.clone()).await?;
        let mut decoder = Decoder::default();
        let mut buffer = Vec::from(upgrade.early.clone());
        let mut left = PROBES;
        loop {
            if buffer.is_empty() {
                read_some(&**link, &mut buffer).await?;
            }
            let mut inbound = Vec::new();
            let limit = self.node.limits.message_bytes;
            let fed = decoder.feed(&buffer, limit, |each| inbound.push(each));
            buffer.clear();
            fed.ok()?;
            let mut inbound = inbound.into_iter();
            while let Some(each) = inbound.next() {
                left = left.checked_sub(1)?;
                let text = match each {
                    Inbound::Text(text) => text,
                    Inbound::Ping(payload) => {
                        write_head(&**link, websocket::pong(&payload)).await?;
                        continue;
                    }
                    Inbound::Pong => continue,
                    Inbound::Binary | Inbound::Close(_) => return None,
                };
                match Packet::parse(&text) {
                    Ok(Packet::Ping(PROBE)) => {
                        write_head(&**link, websocket::text(PROBED.as_bytes())).await?;
                        self.shard.let_poll_go(upgrade.sid)?;
                    }
                    Ok(Packet::Upgrade) => {
                        return self.shard.upgrade(upgrade.sid, link, decoder, inbound);
                    }
                    Ok(_) | Err(_) => return None,
                }
            }
        }
    }
}

/// Reads what there is. `None`: the peer is gone.
async fn read_some(link: &dyn Link, into: &mut Vec<u8>) -> Option<()> {
    loop {
        poll_fn(|cx| link.poll_read_ready(cx)).await.ok()?;
        into.resize(PROBE_BYTES, 0);
        match link.try_read(into) {
            Ok(0) => return None,
            Ok(read) => {
                into.truncate(read);
                return Some(());
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}
