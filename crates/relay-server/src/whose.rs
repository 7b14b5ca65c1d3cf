//! Which job or group a request means: its client's own, or the only one that it may see.
//!
//! An id belongs to its owner, so several may be called the same. Knows the hub and who asks, and nothing of how the
//! answer is told.
//!
//! Invariant: of what the client may not see it learns no more than that it is not its own.

use std::time::Duration;

use relay_bus::hub::{Hub, Lookup};
use relay_core::id::{JobName, Name, Named};
use relay_core::topic::Topic;
use relay_core::watcher::sight::{Sight, Viewer as _};
use tokio::time::timeout;

use crate::answer::ApiError;
use crate::identity::Identity;

/// What is known of the job that is meant.
#[derive(Debug)]
pub(crate) enum Meant {
    /// This one, and what is known of it, which may be nothing but its name.
    Job(JobName, Lookup),
    /// None that is called so is known; whether the bus is away, so that there may be one.
    Unknown {
        /// Whether the bus is away.
        stale: bool,
    },
}

impl Meant {
    /// What is known, if it is known what is meant.
    pub(crate) fn lookup(&self) -> Option<&Lookup> {
        match self {
            Self::Job(_, lookup) => Some(lookup),
            Self::Unknown { .. } => None,
        }
    }
}

/// The job that is meant, for somebody who waits for it no longer than `wait`.
///
/// # Errors
/// 403 where what is called so is not the client's to see, 409 where several are, 503 when the bus does not say.
pub(crate) async fn job(
    hub: &Hub,
    named: &Named,
    identity: &Identity,
    wait: Duration,
) -> Result<Meant, ApiError> {
    let topic = Topic::Job(named.clone());
    if identity.sight(&topic) == Sight::No {
        return Err(ApiError::forbidden_topic(&topic));
    }
    let found = timeout(wait, find(hub, &topic, identity)).await;
    found.map_err(|_| ApiError::bus_unavailable())?
}

async fn find(hub: &Hub, topic: &Topic, identity: &Identity) -> Result<Meant, ApiError> {
    let owners = hub.owners(topic, identity.own()).await;
    let owners = owners.ok_or_else(ApiError::bus_unavailable)?;
    let (mut seen, mut hidden) = (None, false);
    for owner in owners {
        let name = JobName::new(owner, topic.id().clone());
        let lookup = hub.lookup(&name).await;
        match lookup.last_word() {
            None if topic.is_bare() => {}
            None => return Ok(Meant::Job(name, lookup)),
            Some(last) => {
                let may = identity.may_watch(topic, Some(&name.owner), last.parent.as_ref());
                match may {
                    true if seen.is_some() => return Err(ApiError::ambiguous()),
                    true => seen = Some(Meant::Job(name, lookup)),
                    false => hidden = true,
                }
            }
        }
    }
    match seen {
        Some(meant) => Ok(meant),
        None if hidden => Err(ApiError::forbidden_topic(topic)),
        None => {
            let stale = hub.is_stale();
            Ok(Meant::Unknown { stale })
        }
    }
}

/// The topic with the owner that it means: of a group the client's own, or the only one that it may see.
///
/// # Errors
/// 403 where what is called so is not the client's to see, 409 where several are, 503 when the bus does not say.
pub(crate) async fn group(
    hub: &Hub,
    topic: &Topic,
    identity: &Identity,
    wait: Duration,
) -> Result<Topic, ApiError> {
    if !topic.is_bare() {
        return Ok(topic.clone());
    }
    let owners = timeout(wait, hub.owners(topic, identity.own())).await;
    let owners = owners.ok().flatten();
    let owners = owners.ok_or_else(ApiError::bus_unavailable)?;
    let is_hidden = !owners.is_empty();
    let may = |owner: &Name| identity.may_watch(topic, Some(owner), None);
    let mut owners = owners.into_iter().filter(may);
    match (owners.next(), owners.next()) {
        (Some(owner), None) => Ok(topic.of(&owner)),
        (Some(_), Some(_)) => Err(ApiError::ambiguous()),
        (None, _) if is_hidden => Err(ApiError::forbidden_topic(topic)),
        // Nothing is called so yet; what is to come is its own.
        (None, _) => Ok(topic.of(identity.own().unwrap_or(&Name::nobody()))),
    }
}
