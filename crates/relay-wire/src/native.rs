//! The native protocol (PROTOCOL.md): what its clients send, and what they are sent.
//!
//! JSON both ways, on a WebSocket, on an event stream, or in the list that answers a poll.

pub(crate) mod command;
pub mod frame;
pub(crate) mod long_poll;
