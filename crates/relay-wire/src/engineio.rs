//! Engine.IO (protocol v4): packets over polls or a WebSocket, and the rules of one session.
//!
//! Read [`Packet`] and [`payload`] for what goes over the wire, [`request`]
//! and [`sid`] for what a request's query says. Statuses and methods of HTTP are numbers and words here; requests,
//! sockets and clocks are the affair of their owner.

mod error;
mod packet;
pub mod payload;
pub mod request;
pub mod sid;

pub use error::{ErrorCode, RequestError};
pub(crate) use packet::{CLOSE, PING};
pub use packet::{NOOP, Open, PROBE, PROBED, Packet};
