//! One node: what the threads of a relay share.
//!
//! Made once by `serve`, from the configuration; shards, the API and the operators' listener read it. What only
//! shards need, such as the way from one to another, is theirs.
//!
//! Invariant: nothing here is changed after the start but by the parts themselves, which are made for many
//! threads, and by a reload, which exchanges whole values.

use std::sync::Arc;

use relay_bus::hub::Hub;
use relay_core::watcher::WatcherBounds;
use relay_wire::dialect::Dialects;
use rustls::ServerConfig;

use crate::admission::Admissions;
use crate::config::{Delivery, Drain, Http, Limits};
use crate::departures::Departures;
use crate::exchanged::Exchanged;
use crate::hosts::Hosts;
use crate::identity;
use crate::logging::Seldom;
use crate::origin;
use crate::poll_limits::PollLimits;
use crate::proxies::Proxies;
use crate::rates::Rates;
use crate::readiness::Readiness;
use crate::sockets::Sockets;
use crate::telemetry::Telemetry;

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where updates come from.
    pub hub: Arc<Hub>,
    /// How clients are identified.
    pub identity: identity::Authority,
    /// `auth.cookie`; the rest of `[auth]` is in [`Node::identity`], and its secrets nowhere else.
    pub cookie: String,
    /// What is shown to clients that come over TLS; none where the listener speaks plain HTTP.
    pub certificate: Exchanged<Option<Arc<ServerConfig>>>,
    /// Who may come in.
    pub rules: Exchanged<Rules>,
    /// Which user and which address has how many connections.
    pub admissions: Admissions,
    /// How many sockets clients have open.
    pub sockets: Sockets,
    /// How often users and addresses come.
    pub rates: Rates,
    /// What the log has said lately of clients that are turned away.
    pub told: Told,
    /// Whether the node is fit for clients.
    pub readiness: Readiness,
    /// Metrics.
    pub telemetry: Telemetry,
    /// The dialects spoken besides the native protocol.
    pub dialects: Dialects,
    /// Requests that polling clients of dialects have left.
    pub polls: PollLimits,
    /// Clients of dialects that left, for when they return.
    pub departures: Departures,
    /// Bounds of native clients' watchers.
    pub bounds: WatcherBounds,
    /// `[http]`.
    pub http: Http,
    /// `[limits]`, with no more connections than there are file descriptors for.
    pub limits: Limits,
    /// `[delivery]`.
    pub delivery: Delivery,
    /// `[drain]`.
    pub drain: Drain,
}

/// Who may come in, as it is configured now.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Which proxies are believed about their clients.
    pub proxies: Proxies,
    /// Under which names clients may ask.
    pub hosts: Hosts,
    /// Which pages may connect.
    pub origins: origin::Policy,
}

/// What many clients may run into at once, and the log says of it once a minute.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// An address has as many connections as it may.
    pub address: Seldom,
    /// The node has as many connections as it takes.
    pub full: Seldom,
    /// Bytes of requests or answers are as many as there may be.
    pub bytes: Seldom,
    /// A socket could not be accepted.
    pub accept: Seldom,
    /// A connection did not begin as one of a proxy has to.
    pub introduction: Seldom,
    /// A trusted proxy says in another way for whom it asks.
    pub forwarding: Seldom,
}
