//! Engine.IO packets, and the opening handshake.
//!
//! A packet is one character that says what it is, and its text. What a packet of the upper layer means is
//! not known here.

use std::time::Duration;

use serde::Serialize;

/// A packet as a client sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// `1`: the client leaves.
    Close,
    /// `2`: only ever a probe, on a WebSocket that is to take over.
    Ping(&'a str),
    /// `3`: the answer to a ping of ours.
    Pong,
    /// `4`: a packet of the upper layer.
    Message(&'a str),
    /// `5`: this WebSocket takes over from polling.
    Upgrade,
    /// `6`: nothing.
    Noop,
    /// `b` and base64 in a payload, or a binary frame.
    Binary,
}

/// Text that is not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Engine.IO packet of a client")]
pub struct NoPacket;

impl<'a> Packet<'a> {
    /// Reads one packet.
    ///
    /// # Errors
    /// When it is empty, of an unknown kind, or of a kind that only servers send.
    pub fn parse(text: &'a str) -> Result<Self, NoPacket> {
        let mut rest = text.chars();
        let kind = rest.next().ok_or(NoPacket)?;
        let rest = rest.as_str();
        match (kind, rest) {
            ('1', "") => Ok(Self::Close),
            ('2', probe) => Ok(Self::Ping(probe)),
            ('3', _) => Ok(Self::Pong),
            ('4', message) => Ok(Self::Message(message)),
            ('5', "") => Ok(Self::Upgrade),
            ('6', "") => Ok(Self::Noop),
            ('b', _) => Ok(Self::Binary),
            _ => Err(NoPacket),
        }
    }
}

/// The server's ping.
pub(crate) const PING: &str = "2";
/// Ends a session; a Socket.IO client comes back by itself after it.
pub(crate) const CLOSE: &str = "1";
/// Says nothing; it ends a poll whose client wants to go on over WebSocket.
pub const NOOP: &str = "6";
/// What a client asks on a WebSocket that is to take over.
pub const PROBE: &str = "probe";
/// The answer to the probe.
pub const PROBED: &str = "3probe";

/// The packet that opens a session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Open<'a> {
    /// The session's id.
    sid: &'a str,
    /// Transports the client may change to.
    upgrades: &'static [&'static str],
    /// Milliseconds between two pings.
    ping_interval: u64,
    /// Milliseconds a client may take to answer one.
    ping_timeout: u64,
    /// Bytes one payload of the client may have.
    max_payload: usize,
}

impl<'a> Open<'a> {
    /// The packet for a session that counts as dead `dead_after` after its last sign of life.
    pub fn new(
        sid: &'a str,
        is_polling: bool,
        ping_interval: Duration,
        dead_after: Duration,
        max_payload: usize,
    ) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            sid,
            upgrades: if is_polling { &["websocket"] } else { &[] },
            ping_interval: ms(ping_interval),
            ping_timeout: ms(dead_after.saturating_sub(ping_interval)),
            max_payload,
        }
    }

    /// The packet's text.
    pub fn encode(&self) -> String {
        // A struct of strings and numbers cannot fail to serialize.
        format!("0{}", serde_json::to_string(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_packet_of_a_client_is_read() {
        for (text, packet) in [
            ("1", Packet::Close),
            ("2probe", Packet::Ping("probe")),
            ("3", Packet::Pong),
            ("40/jobs,", Packet::Message("0/jobs,")),
            ("5", Packet::Upgrade),
            ("6", Packet::Noop),
            ("bAQIDBA==", Packet::Binary),
        ] {
            assert_eq!(Packet::parse(text), Ok(packet), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_packet_of_a_client_is_refused() {
        for text in ["", "abc", "0{}", "7", "1x", "5x", "é", " 3"] {
            assert_eq!(Packet::parse(text), Err(NoPacket), "{text:?}");
        }
    }

    #[test]
    fn a_session_is_opened_with_the_five_fields_clients_want() {
        let (interval, dead) = (Duration::from_secs(25), Duration::from_secs(45));
        assert_eq!(
            Open::new("abc", true, interval, dead, 1000).encode(),
            r#"0{"sid":"abc","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000}"#
        );
        let websocket = Open::new("abc", false, interval, dead, 1000).encode();
        assert!(websocket.contains(r#""upgrades":[]"#), "{websocket}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_packet_or_refused(text in ".*") {
            let parsed = Packet::parse(&text);
            prop_assert!(parsed.is_err() || text.starts_with(['1', '2', '3', '4', '5', '6', 'b']));
        }
    }
}
