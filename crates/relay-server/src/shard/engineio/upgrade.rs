//! From polling to WebSocket: a socket probes, takes over, and is the connection's from then on.
//!
//! Until the client's last word on it the session goes on polling as if the socket were not there; the
//! change itself is one synchronous call, so nothing falls between the two.

use std::rc::Rc;

use bytes::Bytes;
use relay_bus::inbox::ConnectionId;
use relay_wire::engineio::session::UPGRADE_TIMEOUT;
use relay_wire::engineio::sid::Sid;
use relay_wire::engineio::{self, payload};
use relay_wire::websocket::{self, Decoder, Inbound};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Shard;
use crate::shard::connection::Transport;
use crate::shard::mail::Mail;
use crate::shard::socket::{linger, write_head};
use crate::shard::socketio::wrap;

/// One read of a WebSocket that is about to take over.
const PROBE_BYTES: usize = 1024;

/// A WebSocket that may take a session over.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(super) sid: Sid,
    pub(super) head: Bytes,
    /// Bytes that came behind the request.
    pub(crate) early: Bytes,
}

impl Upgrade {
    /// A WebSocket whose request is answered with `head`.
    pub(crate) fn new(sid: Sid, head: Bytes) -> Self {
        Self {
            sid,
            head,
            early: Bytes::new(),
        }
    }
}

impl Shard {
    /// Serves a socket that came to take over a session of this shard.
    pub(super) async fn serve_upgrade(self: Rc<Self>, socket: TcpStream, upgrade: Upgrade) {
        let Some((socket, id)) = Box::pin(self.take_over(socket, upgrade)).await else {
            return;
        };
        std::future::poll_fn(|cx| self.attend(id, &socket, cx)).await;
        Box::pin(linger(&socket)).await;
    }

    /// Brings a socket to the shard whose session it may take over, and there through the takeover.
    pub(crate) async fn take_over(
        &self,
        socket: TcpStream,
        upgrade: Upgrade,
    ) -> Option<(Rc<TcpStream>, ConnectionId)> {
        if usize::from(upgrade.sid.shard) != self.number {
            let socket = socket.into_std().ok()?;
            let mail = Mail::Socket(upgrade.sid, socket, upgrade.head, upgrade.early);
            self.mailboxes.send(usize::from(upgrade.sid.shard), mail);
            return None;
        }
        let socket = Rc::new(socket);
        let taken = timeout(UPGRADE_TIMEOUT, self.probe(&socket, &upgrade)).await;
        if let Ok(Some(id)) = taken {
            return Some((socket, id));
        }
        self.unprobe(upgrade.sid);
        linger(&socket).await;
        None
    }

    /// The upgrade came to nothing: the session goes on by polling.
    fn unprobe(&self, sid: Sid) {
        let mut state = self.state.borrow_mut();
        if let Some(slot) = Self::locate(&state, sid)
            && let Transport::SocketIo(link) = &mut state.connections[slot].transport
        {
            link.protocol.unprobe();
        }
    }

    /// Answers the probe, lets the waiting poll go, and waits for the word that ends polling.
    async fn probe(&self, socket: &Rc<TcpStream>, upgrade: &Upgrade) -> Option<ConnectionId> {
        write_head(socket, upgrade.head.clone()).await?;
        let mut decoder = Decoder::default();
        let mut buffer = Vec::from(upgrade.early.clone());
        loop {
            if buffer.is_empty() {
                read_some(socket, &mut buffer).await?;
            }
            let mut inbound = Vec::new();
            let limit = self.common.limits.message_bytes;
            let fed = decoder.feed(&buffer, limit, |each| inbound.push(each));
            buffer.clear();
            fed.ok()?;
            let mut inbound = inbound.into_iter();
            while let Some(each) = inbound.next() {
                let text = match each {
                    Inbound::Text(text) => text,
                    Inbound::Ping(payload) => {
                        write_head(socket, websocket::pong(&payload)).await?;
                        continue;
                    }
                    Inbound::Pong => continue,
                    Inbound::Binary | Inbound::Close(_) => return None,
                };
                match engineio::Packet::parse(&text) {
                    Ok(engineio::Packet::Ping(engineio::PROBE)) => {
                        write_head(socket, websocket::text(engineio::PROBED.as_bytes())).await?;
                        self.let_poll_go(upgrade.sid)?;
                    }
                    Ok(engineio::Packet::Upgrade) => {
                        return self.moved(upgrade.sid, socket, decoder, inbound);
                    }
                    Ok(_) | Err(_) => return None,
                }
            }
        }
    }

    fn let_poll_go(&self, sid: Sid) -> Option<()> {
        let mut state = self.state.borrow_mut();
        let slot = Self::locate(&state, sid)?;
        self.mark(&mut state, slot);
        self.flush_dirty(&mut state, self.clock.now());
        Some(())
    }

    /// The WebSocket has the session from here on. `inbound` came behind the word for it.
    fn moved(
        &self,
        sid: Sid,
        socket: &Rc<TcpStream>,
        decoder: Decoder,
        inbound: impl Iterator<Item = Inbound>,
    ) -> Option<ConnectionId> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let now = self.clock.now();
        let slot = Self::locate(state, sid)?;
        let connection = &mut state.connections[slot];
        let id = connection.id;
        let Transport::SocketIo(link) = &mut connection.transport else {
            return None;
        };
        // A client that polls on though it said it would not is let go.
        let poll = link.poll.take();
        if !link.protocol.upgrade(now) {
            link.poll = poll;
            return None;
        }
        if let Some(poll) = poll {
            drop(poll.send(Ok(engineio::NOOP.into())));
        }
        link.decoder = decoder;
        connection.writer.attach(socket.clone(), |payload| {
            let packets = payload.split(|byte| *byte == payload::SEPARATOR as u8);
            wrap(false, packets.map(<[u8]>::to_vec).collect())
        });
        state.metrics.socketio_polling.open.dec();
        state.metrics.socketio_websocket.open.inc();
        self.mark(state, slot);
        self.guarded(state, slot, |shard, state| {
            for each in inbound {
                if Self::is_open(state, slot) {
                    shard.on_inbound(state, slot, each, now);
                }
            }
        });
        self.flush_dirty(state, now);
        Some(id)
    }
}

/// Reads what there is. `None`: the peer is gone.
async fn read_some(socket: &TcpStream, into: &mut Vec<u8>) -> Option<()> {
    loop {
        socket.readable().await.ok()?;
        into.resize(PROBE_BYTES, 0);
        match socket.try_read(into) {
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
