//! The edge between NATS and the watchers of jobs: HTTP, WebSocket, SSE, long-poll and the command line.
//!
//! Read the modules in this order: `config` says what may be, `identity` and `origin` who may come
//! in; `serve` puts a relay together, `node` is what its threads share; `door` is where requests become
//! connections, `shard` where these live, and `relay-wire` what they send and are sent; `api` is everything that
//! is not a stream; `cli` what a person can ask for.

mod admin;
mod admission;
mod answer;
mod api;
mod bodies;
pub mod cli;
mod config;
mod demo;
mod departures;
mod door;
mod exchanged;
mod fetch;
mod forwarded;
#[cfg(any(feature = "fuzzing", test))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod hosts;
mod identity;
mod link;
mod logging;
mod node;
mod origin;
mod poll_limits;
mod proxies;
mod rates;
mod readiness;
#[cfg(test)]
mod reference;
mod refused;
mod serve;
mod shard;
mod sockets;
mod telemetry;
mod tls;
mod whose;
