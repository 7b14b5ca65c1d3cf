//! What a shard counts, kept to itself until it is published.
//!
//! Counters are shared by all shards, and a shared counter costs each delivery as much as the rest of the
//! shard's own work once two threads count on it. So shards count in private and add up when a turn is over.
//!
//! Invariant: opened minus closed is open, for every transport; for those of Socket.IO together, since a session
//! opened by polling may be closed on a WebSocket.

use prometheus::local::LocalIntCounter;
use relay_core::publication::Publication;
use relay_core::quality::Grade;
use relay_wire::speaker::Transport;

use super::connection::Connection;
use crate::telemetry::{ClassMetrics, Telemetry, TransportMetrics};

pub(super) struct Metrics {
    /// In the order of [`Transport::ALL`].
    transports: [TransportMetrics; 5],
    state: ClassMetrics,
    milestone: ClassMetrics,
    ending: ClassMetrics,
    /// States a newer state took the place of.
    pub(super) conflated: LocalIntCounter,
    /// Bytes handed to the kernel.
    pub(super) written_bytes: LocalIntCounter,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        Self {
            transports: Transport::ALL.map(|transport| telemetry.transport(transport.as_str())),
            state: telemetry.class("state"),
            milestone: telemetry.class("milestone"),
            ending: telemetry.class("ending"),
            conflated: telemetry.conflated.local(),
            written_bytes: telemetry.written_bytes.local(),
        }
    }

    pub(super) fn of(&self, transport: Transport) -> &TransportMetrics {
        &self.transports[transport as usize]
    }

    pub(super) fn class(&self, publication: &Publication) -> &ClassMetrics {
        match (publication.is_terminal(), publication.is_state()) {
            (true, _) => &self.ending,
            (false, true) => &self.state,
            (false, false) => &self.milestone,
        }
    }

    /// A connection begins.
    pub(super) fn opened(&self, connection: &Connection, telemetry: &Telemetry) {
        let metrics = self.of(connection.speaker.transport());
        metrics.open.inc();
        metrics.opened.inc();
        if connection.speaker.is_judged() {
            telemetry.quality(Grade::Good).inc();
        }
        if let Some(speech) = connection.speaker.speech() {
            let dialect = &speech.dialect().name;
            telemetry.dialect_connections(dialect).inc();
        }
    }

    /// A connection has ended.
    pub(super) fn closed(&self, connection: &Connection, telemetry: &Telemetry) {
        self.of(connection.speaker.transport()).open.dec();
        if connection.speaker.is_judged() {
            telemetry.quality(connection.quality.verdict()).dec();
        }
        if let Some(speech) = connection.speaker.speech() {
            let dialect = &speech.dialect().name;
            telemetry.dialect_connections(dialect).dec();
        }
    }

    /// A Socket.IO session goes on over a WebSocket.
    pub(super) fn upgraded(&self) {
        self.of(Transport::SocketIoPolling).open.dec();
        self.of(Transport::SocketIoWebSocket).open.inc();
    }

    /// Adds what was counted to what everybody sees.
    pub(super) fn publish(&self) {
        for transport in &self.transports {
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
