//! The fan-out: a publication reaches everybody on this shard who watches it.
//!
//! Who has nothing else to be told gets it at once; for everybody else it goes into the outbox and out with
//! what else is due. What may not be seen, or not yet, is kept back here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use relay_bus::inbox::LostMilestones;
use relay_core::moment::Moment;
use relay_core::outbox::{Offered, SubscriptionId};
use relay_core::publication::Publication;
use relay_core::session::CloseReason;
use relay_core::topic::Topic;

use super::connection::{Connection, Written};
use super::deliver::{Place, ceiling, render};
use super::metrics::Metrics;
use super::registry::Watcher;
use super::{Shard, State, speech};
use relay_core::watcher::holds::{Holds, Released, Repairing};

/// What everybody's delivery of one publication has in common.
struct Occasion<'a> {
    publication: &'a Arc<Publication>,
    holds: &'a Holds,
    metrics: &'a Metrics,
    place: Place,
    /// Whether it comes late, from a repair.
    is_repair: bool,
    now: Moment,
}

impl Shard {
    /// Offers a publication to everybody on this shard who watches it. `alone` if nothing else came with it
    /// that had better leave in the same write.
    pub(super) fn offer(
        &self,
        state: &mut State,
        publication: &Arc<Publication>,
        alone: bool,
        now: Moment,
    ) {
        let is_repair = publication.seq <= state.frontier;
        state.frontier = state.frontier.max(publication.seq);
        let occasion = Occasion {
            publication,
            place: Place::of(state),
            holds: &state.holds,
            metrics: &state.metrics,
            is_repair,
            now,
        };
        let mut after = Vec::new();
        let mut watchers = state.registry.watchers_of(publication);
        let (connections, dirty) = (&mut state.connections, &mut state.dirty);
        let mut current = None;
        loop {
            let walked = catch_unwind(AssertUnwindSafe(|| {
                for watcher in watchers.by_ref() {
                    current = Some(*watcher);
                    let connection = &mut connections[watcher.slot];
                    if let Some(then) = self.offer_to(connection, *watcher, alone, &occasion) {
                        match then {
                            After::Mark => dirty.push(watcher.slot),
                            then => after.push((*watcher, then)),
                        }
                    }
                }
            }));
            match (walked, current) {
                // It costs the one whose turn it was; the others still get theirs.
                (Err(_), Some(watcher)) => after.push((watcher, After::Panicked)),
                _ => break,
            }
        }
        drop(watchers);
        for (watcher, then) in after {
            match then {
                After::Refuse => self.guarded(state, watcher.slot, |shard, state| {
                    shard.refuse_subscription(state, watcher);
                }),
                After::Mark => self.mark(state, watcher.slot),
                After::Reschedule => self.reschedule(state, watcher.slot),
                After::End(reason) => self.end(state, watcher.slot, reason),
                After::Panicked => self.on_panic(state, watcher.slot),
            }
        }
    }

    /// Offers a publication to one watcher; what is left to be done when all had theirs.
    fn offer_to(
        &self,
        connection: &mut Connection,
        watcher: Watcher,
        alone: bool,
        occasion: &Occasion<'_>,
    ) -> Option<After> {
        let (publication, now) = (occasion.publication, occasion.now);
        if connection.ends.is_some() {
            return None;
        }
        match seen_by(connection, &watcher, publication) {
            Seen::Yes => {}
            Seen::Hidden => return None,
            Seen::Forbidden => return Some(After::Refuse),
        }
        let known = connection.known(publication.epoch);
        if (occasion.is_repair || !known.carried.is_empty())
            && known.was_told(publication, watcher.subscription)
        {
            return None;
        }
        if alone && let Some(written) = self.pass(connection, watcher.subscription, occasion) {
            return match written {
                Written::All if publication.is_terminal() => Some(After::Reschedule),
                Written::All => None,
                Written::Blocked => {
                    self.common.telemetry.writes_blocked.inc();
                    Some(After::Reschedule)
                }
                Written::Gone => Some(After::End(CloseReason::Client)),
            };
        }
        let bounds = speech::outbox_bounds(&connection.speech, &self.common);
        let outbox = &mut connection.outbox;
        match outbox.offer(publication, watcher.subscription, now, bounds) {
            Offered::Queued => {}
            Offered::Duplicate => return None,
            Offered::Conflated => occasion.metrics.conflated.inc(),
            Offered::Shed(_) => self.common.telemetry.gap("outbox"),
            Offered::Overflow => return Some(After::End(CloseReason::Overflow)),
        }
        if connection.dirty || connection.is_paced(now) {
            return None;
        }
        connection.dirty = true;
        Some(After::Mark)
    }

    /// Writes a publication to a connection that has nothing else to be told; `None` if it has.
    ///
    /// Queueing it first would mean to come back to each connection after the others have pushed it out of
    /// the caches: walking once instead of twice, with no refcount taken, is a twentieth of a delivery.
    fn pass(
        &self,
        connection: &mut Connection,
        via: SubscriptionId,
        occasion: &Occasion<'_>,
    ) -> Option<Written> {
        let &Occasion {
            publication,
            holds,
            metrics,
            place,
            now,
            ..
        } = occasion;
        if connection.dirty || !connection.is_writable() {
            return None;
        }
        let ceiling = ceiling(holds, connection);
        let bounds = speech::outbox_bounds(&connection.speech, &self.common);
        let position = connection.outbox.pass(publication, now, ceiling, bounds)?;
        let written = if connection.speech.is_some() {
            let frame = self.tell_foreign(connection, publication, (via, position), false);
            if frame.is_empty() {
                Written::All
            } else {
                self.write(connection, metrics, &frame, now)
            }
        } else {
            let frame = render(connection, publication, (via, position), place);
            self.write(connection, metrics, &frame, now)
        };
        self.account(connection, metrics, publication, (via, false), now);
        Some(written)
    }

    /// A repair began: who watches the job waits. It ended: they go on.
    pub(super) fn on_repair(&self, state: &mut State, repairing: Repairing) {
        let released = state.holds.take(repairing);
        let may_go_on = |connection: &Connection| match &released {
            Released::Nobody => false,
            Released::Everybody => true,
            Released::Watchers(hold) => {
                let mut topics = connection.session.subscriptions().iter();
                topics.any(|each| hold.concerns(&each.topic))
            }
        };
        if matches!(released, Released::Nobody) {
            return;
        }
        let waited = state
            .connections
            .iter()
            .filter(|(_, connection)| !connection.outbox.is_empty() && may_go_on(connection));
        for slot in waited.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.mark(state, slot);
        }
    }

    /// Milestones were lost before they reached this shard: everybody who watches the job is told.
    pub(super) fn on_lost(&self, state: &mut State, lost: &LostMilestones, now: Moment) {
        let owner = lost.topics.iter().find_map(|topic| match topic {
            Topic::User(owner) => Some(owner),
            Topic::Job(_) | Topic::Group(_) => None,
        });
        let parent = lost.topics.iter().find_map(|topic| match topic {
            Topic::Group(parent) => Some(parent),
            Topic::Job(_) | Topic::User(_) => None,
        });
        for topic in &lost.topics {
            for at in 0..state.registry.watchers(topic).len() {
                let watcher = state.registry.watchers(topic)[at];
                let connection = &mut state.connections[watcher.slot];
                // Also that a job exists is not for everybody.
                if !connection.identity.may_watch(topic, owner, parent) {
                    continue;
                }
                let job = (lost.what.key, lost.what.job.clone());
                let outbox = &mut connection.outbox;
                outbox.announce_gap(job, lost.what.seq, lost.reason, watcher.subscription, now);
                self.common.telemetry.gap(lost.reason.as_str());
                self.mark(state, watcher.slot);
            }
        }
    }
}

/// What an offer led to that cannot be done while others are still offered.
enum After {
    /// It has something to write.
    Mark,
    /// The subscription is not its client's.
    Refuse,
    /// A deadline of the write, an acknowledgement or a grace has begun.
    Reschedule,
    End(CloseReason),
    /// Its turn ended in a panic.
    Panicked,
}

/// Whether a connection may see a publication, where that could not be said when it subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Yes,
    /// One job of a group is another's: it is left out.
    Hidden,
    /// The one job it watches is another's: the subscription ends.
    Forbidden,
}

pub(super) fn seen_by(
    connection: &mut Connection,
    watcher: &Watcher,
    publication: &Publication,
) -> Seen {
    let Some(extras) = &mut connection.extras else {
        return Seen::Yes;
    };
    let Some(at) = extras
        .unproven
        .iter()
        .position(|each| *each == watcher.subscription)
    else {
        return Seen::Yes;
    };
    let Some(subscription) = connection.session.subscription(watcher.subscription) else {
        return Seen::Hidden;
    };
    let (owner, parent) = (Some(&publication.owner), publication.parent.as_ref());
    let allowed = connection
        .identity
        .may_watch(&subscription.topic, owner, parent);
    match (&subscription.topic, allowed) {
        (Topic::Job(_), true) => {
            // A job has one owner; it need not be asked again.
            extras.unproven.swap_remove(at);
            Seen::Yes
        }
        (Topic::Job(_), false) => Seen::Forbidden,
        (Topic::User(_) | Topic::Group(_), true) => Seen::Yes,
        (Topic::User(_) | Topic::Group(_), false) => Seen::Hidden,
    }
}
