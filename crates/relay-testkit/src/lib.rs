//! Starts real servers for tests and drives them as a user would. Never shipped.
//!
//! [`nats`] and [`relay`] start the real things on free ports and end them when dropped; [`client`] watches
//! as a browser would, on each transport; [`outside`] is a server for the relay to ask; [`journey`] holds what a watcher saw against what was published;
//! [`random`] plays clients that do anything at any moment.
//! Nothing here knows the relay's insides: a test that needs them is not a test for this crate.

pub mod client;
pub mod http;
pub mod journey;
pub mod nats;
pub mod outside;
pub mod ports;
pub mod process;
pub mod random;
pub mod relay;
pub mod token;
pub mod tools;
pub mod wait;
