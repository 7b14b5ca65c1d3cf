//! Endings that a client wants to acknowledge: sent again until it does, each time after twice as long.
//!
//! It does not know frames, or who is slow. What is given up here still reaches a client that returns: its
//! cursor is from before.
//!
//! Invariant: every ending that waits belongs to a subscription that wants acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use crate::moment::Moment;
use crate::position::Seq;
use crate::publication::Publication;
use crate::watcher::outbox::SubscriptionId;

/// How often an ending is sent that nobody acknowledges.
const MAX_OFFERS: u32 = 6;

/// The endings of one client; most clients want no acknowledgements and have none.
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// Subscriptions whose endings want an acknowledgement.
    wanted: Vec<SubscriptionId>,
    /// Endings sent and not acknowledged.
    waiting: Vec<Unacknowledged>,
}

#[derive(Debug)]
struct Unacknowledged {
    via: SubscriptionId,
    publication: Arc<Publication>,
    next: Moment,
    tries: u32,
}

impl Endings {
    /// The endings of a subscription want an acknowledgement.
    pub(super) fn want(&mut self, via: SubscriptionId) {
        self.wanted.push(via);
    }

    /// A publication goes out.
    pub(super) fn note(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        now: Moment,
        timeout: Duration,
    ) {
        let is_removal = publication.is_removal();
        if is_removal {
            // An ending of what is not there any more is not sent again.
            self.waiting
                .retain(|each| each.publication.key != publication.key);
        }
        let known = |each: &Unacknowledged| each.publication.seq == publication.seq;
        if (publication.is_terminal() || is_removal)
            && self.wanted.contains(&via)
            && !self.waiting.iter().any(known)
        {
            self.waiting.push(Unacknowledged {
                via,
                publication: publication.clone(),
                next: now + timeout,
                tries: 1,
            });
        }
    }

    /// The client has everything of a subscription up to `seq`.
    pub(super) fn acknowledge(&mut self, via: SubscriptionId, seq: Seq) {
        self.waiting
            .retain(|each| each.via != via || each.publication.seq > seq);
    }

    /// Those that were not acknowledged in time. After the last try an ending waits no longer.
    pub(super) fn due(
        &mut self,
        now: Moment,
        timeout: Duration,
    ) -> Vec<(SubscriptionId, Arc<Publication>)> {
        let mut due = Vec::new();
        self.waiting.retain_mut(|each| {
            if each.next > now {
                return true;
            }
            each.tries += 1;
            each.next = now + timeout * (1 << each.tries.min(MAX_OFFERS));
            due.push((each.via, each.publication.clone()));
            each.tries < MAX_OFFERS
        });
        due
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Moment> {
        self.waiting.iter().map(|each| each.next).min()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A subscription ended.
    pub(super) fn forget(&mut self, via: SubscriptionId) {
        self.wanted.retain(|each| *each != via);
        self.waiting.retain(|each| each.via != via);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.waiting.is_empty()
    }

    /// The subscriptions that are named here, for a check.
    pub(super) fn subscriptions(&self) -> impl Iterator<Item = SubscriptionId> {
        let waiting = self.waiting.iter().map(|each| each.via);
        self.wanted.iter().copied().chain(waiting)
    }
}
