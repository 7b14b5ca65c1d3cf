//! The edge between NATS and the watchers of jobs: HTTP, WebSocket, SSE, long-poll and the command line.
//!
//! Read the modules in this order: [`config`] says what may be, [`identity`] and [`origin`] who may come
//! in; [`serve`] puts a relay together, [`node`] is what its threads share; [`door`] is where requests become
//! connections, [`shard`] where these live, and `relay-wire` what they send and are sent; [`api`] is everything that
//! is not a stream; [`cli`] what a person can ask for.

pub mod admin;
pub mod admission;
pub mod answer;
pub mod api;
pub mod cli;
pub mod config;
pub mod demo;
pub mod door;
pub mod identity;
pub mod logging;
pub mod node;
pub mod origin;
pub mod readiness;
#[cfg(test)]
mod reference;
pub mod refused;
pub mod serve;
pub mod shard;
pub mod telemetry;
