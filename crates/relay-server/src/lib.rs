//! The edge between NATS and the watchers of jobs: HTTP, WebSocket, SSE, long-poll and the command line.
//!
//! Read the modules in this order: [`config`] says what may be, [`identity`] and [`origin`] who may come
//! in; [`serve`] puts a relay together; [`shard`] is where connections live, [`frame`] and [`websocket`]
//! what they are sent, [`dialect`] what other front ends are sent, [`socketio`] another protocol they may
//! speak; [`node`] is what all of them share; [`api`] is everything that is no stream; [`cli`] what a person can ask for.

pub mod admin;
pub mod admission;
pub mod answer;
pub mod api;
pub mod cli;
pub mod command;
pub mod config;
pub mod demo;
pub mod dialect;
mod duration;
pub mod frame;
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
pub mod socketio;
pub mod telemetry;
pub mod websocket;
