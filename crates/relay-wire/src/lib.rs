//! Between bytes on the wire and what they mean.
//!
//! Everything here is given bytes and says what they ask, or is given what happened and makes the bytes for it. It
//! knows `relay-core` alone: no sockets, no runtime, no clock, no metrics, and not who watches what. Of HTTP it knows
//! words and numbers: paths, queries, methods and statuses.
//!
//! Read the modules in this order: [`Frame`] names what can be sent to a client; [`native`] has the relay's own
//! words for it, [`dialect`] those of other front ends, as files say them. [`websocket`] frames texts on a
//! socket of its own; [`socketio`] and below it [`engineio`] are another way for texts to travel. [`target`] reads
//! paths and queries, [`introduction`] what a proxy says before all that.
//!
//! Invariant: nothing a client sends makes anything here panic, or take more memory than a bound says.

pub mod dialect;
pub mod duration;
pub mod engineio;
pub mod exchange;
pub mod introduction;
mod kind;
pub mod native;
pub mod socketio;
pub mod speaker;
pub mod target;
pub mod websocket;

pub use kind::Frame;
