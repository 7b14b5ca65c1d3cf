//! What a shard counts, kept to itself until it is published.
//!
//! Counters are shared by all shards, and a shared counter costs each delivery as much as the rest of the
//! shard's own work once two threads count on it. So shards count in private and add up when a turn is over.

use prometheus::local::LocalIntCounter;

use super::connection::Transport;
use crate::telemetry::{ClassMetrics, Telemetry, TransportMetrics};

pub(super) struct Metrics {
    websocket: TransportMetrics,
    sse: TransportMetrics,
    poll: TransportMetrics,
    pub(super) socketio_websocket: TransportMetrics,
    pub(super) socketio_polling: TransportMetrics,
    pub(super) state: ClassMetrics,
    pub(super) milestone: ClassMetrics,
    pub(super) ending: ClassMetrics,
    /// States a newer state took the place of.
    pub(super) conflated: LocalIntCounter,
    /// Bytes handed to the kernel.
    pub(super) written_bytes: LocalIntCounter,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        Self {
            websocket: telemetry.transport("websocket"),
            sse: telemetry.transport("sse"),
            poll: telemetry.transport("poll"),
            socketio_websocket: telemetry.transport("socketio_websocket"),
            socketio_polling: telemetry.transport("socketio_polling"),
            state: telemetry.class("state"),
            milestone: telemetry.class("milestone"),
            ending: telemetry.class("ending"),
            conflated: telemetry.conflated.local(),
            written_bytes: telemetry.written_bytes.local(),
        }
    }

    pub(super) fn of(&self, transport: &Transport) -> &TransportMetrics {
        match transport {
            Transport::WebSocket(_) => &self.websocket,
            Transport::EventStream => &self.sse,
            Transport::Poll(_) => &self.poll,
            Transport::SocketIo(link) if link.protocol.is_polling() => &self.socketio_polling,
            Transport::SocketIo(_) => &self.socketio_websocket,
        }
    }

    /// Adds what was counted to what everybody sees.
    pub(super) fn publish(&self) {
        for transport in [
            &self.websocket,
            &self.sse,
            &self.poll,
            &self.socketio_websocket,
            &self.socketio_polling,
        ] {
            transport.deliveries.flush();
        }
        for class in [&self.state, &self.milestone, &self.ending] {
            class.delivery.flush();
            class.end_to_end.flush();
        }
        self.conflated.flush();
        self.written_bytes.flush();
    }
}
