//! One node: what the threads of a relay share.
//!
//! Made once by `serve`, from the configuration; shards, the API and the operators' listener read it. What only
//! shards need, such as the way from one to another, is theirs.
//!
//! Invariant: nothing here is changed after the start but by the parts themselves, which are made for many
//! threads.

use std::sync::Arc;

use relay_bus::hub::Hub;
use relay_core::watcher::WatcherBounds;
use relay_wire::dialect::Dialects;

use crate::admission::Admissions;
use crate::config::{Delivery, Drain, Http, Limits};
use crate::identity;
use crate::origin;
use crate::poll_limits::PollLimits;
use crate::readiness::Readiness;
use crate::telemetry::Telemetry;

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where updates come from.
    pub hub: Arc<Hub>,
    /// How clients are identified.
    pub identity: identity::Mode,
    /// `auth.cookie`; the rest of `[auth]` is in [`Node::identity`], and its secrets nowhere else.
    pub cookie: String,
    /// Which pages may connect.
    pub origins: origin::Policy,
    /// Which user and which address has how many connections.
    pub admissions: Admissions,
    /// Whether the node is fit for clients.
    pub readiness: Readiness,
    /// Metrics.
    pub telemetry: Telemetry,
    /// The dialects spoken besides the native protocol.
    pub dialects: Dialects,
    /// Requests that polling clients of dialects have left.
    pub polls: PollLimits,
    /// Bounds of native clients' watchers.
    pub bounds: WatcherBounds,
    /// `[http]`.
    pub http: Http,
    /// `[limits]`.
    pub limits: Limits,
    /// `[delivery]`.
    pub delivery: Delivery,
    /// `[drain]`.
    pub drain: Drain,
}
