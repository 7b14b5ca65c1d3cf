//! The first word about a topic: a join was answered, or refused.
//!
//! What a client was told already, under another topic or by another node, is not told again.

use std::collections::{HashMap, HashSet};

use relay_bus::inbox::ConnectionId;
use relay_core::cursor::Print;
use relay_core::moment::Moment;
use relay_core::outbox::GapReason;
use relay_core::position::Seq;
use relay_core::publication::JobKey;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::Joined;
use relay_wire::native::frame::Notice;
use serde_json::Value;

use super::connection::{Answered, Transport};
use super::deliver::{ceiling, cursor_of};
use super::fanout::{Seen, seen_by};
use super::registry::Watcher;
use super::{Shard, State, speech};
use crate::identity::Sight;

impl Shard {
    /// A join was answered: the subscription is live, and what it starts with goes out at once.
    pub(super) fn on_joined(
        &self,
        state: &mut State,
        connection: ConnectionId,
        mut joined: Joined,
        now: Moment,
    ) {
        state.frontier = state.frontier.max(joined.high);
        state.registry.answered(&joined.topic);
        let slot = Self::find(state, connection);
        let since = joined.since.filter(|_| joined.recovered);
        let live = slot.filter(|slot| {
            let connection = &mut state.connections[*slot];
            let known = connection.known(state.epoch);
            let from = known.complete_from(&joined.topic, since, joined.high);
            let since = since.unwrap_or_default();
            connection.session.joined(joined.subscription, since, from)
        });
        let Some(slot) = live else {
            // It left while the hub was asked; the hub still counts the shard in.
            if !state.registry.is_wanted(&joined.topic) {
                self.common.hub.leave(&joined.topic, self.number);
            }
            return;
        };
        let watcher = Watcher {
            slot,
            subscription: joined.subscription,
        };
        let connection = &mut state.connections[slot];
        if connection.identity.sight(&joined.topic) == Sight::WhenKnown {
            connection.extras().unproven.push(joined.subscription);
        }
        if let (Topic::Job(_), Some(owner)) = (&joined.topic, &joined.owner)
            && !connection
                .identity
                .may_watch(&joined.topic, Some(owner), joined.parent.as_ref())
        {
            self.refuse_subscription(state, watcher);
            return;
        }
        joined
            .publications
            .retain(|publication| seen_by(connection, &watcher, publication) == Seen::Yes);
        if let Some(within) = speech::endings_within(connection, &joined.topic) {
            let wall = self.clock.wall();
            // Also where milestones are lost: what ended since is news.
            speech::leave_out_ended(&mut joined.publications, joined.since, within, wall);
        }
        let seen: HashSet<JobKey> = joined.publications.iter().map(|each| each.key).collect();
        joined.left_out.retain(|each| seen.contains(&each.key));
        state.registry.add(&joined.topic, watcher);
        let topic = joined.topic.clone();
        let connection = &mut state.connections[slot];
        if let Transport::SocketIo(link) = &mut connection.transport
            && let Some(at) = link.room_of(joined.subscription)
        {
            link.rooms[at].offset.add_topic();
        }
        self.welcome(state, slot, joined, now);
        self.begin_tally(state, watcher, &topic);
        self.mark(state, slot);
    }

    fn welcome(&self, state: &mut State, slot: usize, mut joined: Joined, now: Moment) {
        let connection = &mut state.connections[slot];
        let ceiling = ceiling(&state.holds, connection);
        let answered = connection
            .extras
            .as_mut()
            .map_or_else(Answered::default, |extras| {
                extras.answered(joined.subscription)
            });
        if answered.resumes {
            self.common.telemetry.resume(joined.recovered);
        }
        if let Some(since) = joined.since.filter(|_| joined.recovered) {
            // Of another topic that is being repaired the client has not been told that far.
            connection.outbox.resume(since.min(ceiling));
        }
        let goes_on = answered.resumes && joined.recovered;
        let begins_with_others = answered.together && !answered.resumes;
        if goes_on || begins_with_others {
            // What is told under one topic is told. Who asks for a single one without a cursor, or has to
            // start anew, wants the snapshot.
            let id = joined.subscription;
            let states = joined.publications.iter().filter(|each| each.is_state());
            let latest: HashMap<JobKey, Seq> = states.map(|state| (state.key, state.seq)).collect();
            let mut told = Vec::new();
            joined.publications.retain(|publication| {
                let state = latest.get(&publication.key);
                let newest = state.is_none_or(|state| publication.seq >= *state);
                let (owner, parent) = (Some(&publication.owner), publication.parent.as_ref());
                let may_watch = |topic: &Topic| connection.identity.may_watch(topic, owner, parent);
                let known = connection.known(publication.epoch);
                let is_told = known.is_told(publication, id, newest, may_watch);
                told.extend(is_told.then_some((publication.key, publication.seq)));
                !is_told
            });
            for (key, seq) in told {
                connection.outbox.share(key, seq, id);
            }
        }
        for left_out in joined.left_out {
            let who = (left_out.key, left_out.job);
            let (reason, via) = (GapReason::History, joined.subscription);
            let outbox = &mut connection.outbox;
            outbox.announce_gap(who, left_out.seq, reason, via, now);
            self.common.telemetry.gap(reason.as_str());
        }
        for publication in &joined.publications {
            let bounds = &self.common.outbox;
            connection
                .outbox
                .owe(publication, joined.subscription, now, bounds);
        }
        connection.outbox.advance(joined.high.min(ceiling));
        let jobs: HashSet<JobKey> = joined
            .publications
            .iter()
            .filter(|publication| publication.is_state())
            .map(|publication| publication.key)
            .collect();
        if let Some(extras) = &mut connection.extras {
            let print = Print::of(&joined.topic);
            extras.carried.told.retain(|told| told.print != print);
            if extras.is_empty() {
                connection.extras = None;
            }
        }
        let cursor = cursor_of(connection, state.epoch);
        let notice = Notice::Subscribed {
            id: answered.id.as_ref(),
            topic: joined.topic.to_string(),
            recovered: joined.recovered,
            jobs: jobs.len(),
            cursor: cursor.clone(),
            stale: state.stale,
        };
        let frame = self.frame_of(&state.connections[slot], &notice, Some(&cursor));
        let connection = &mut state.connections[slot];
        if let Transport::Poll(Some(poll)) = &mut connection.transport {
            poll.waiting = poll.waiting.saturating_sub(1);
            poll.recovered &= joined.recovered;
        } else {
            self.reply(state, slot, frame);
        }
    }

    /// Ends a subscription its client may not have, and says so.
    pub(super) fn refuse_subscription(&self, state: &mut State, watcher: Watcher) {
        let connection = &mut state.connections[watcher.slot];
        let Some(topic) = connection.session.leave(watcher.subscription) else {
            return;
        };
        connection.outbox.forget(watcher.subscription);
        let id = connection.extras.as_mut().and_then(|extras| {
            let id = extras.take_id(watcher.subscription);
            extras.forget(watcher.subscription);
            id
        });
        self.unwatch(&mut state.registry, &topic, watcher);
        if let Transport::Poll(Some(poll)) = &mut state.connections[watcher.slot].transport {
            poll.waiting = poll.waiting.saturating_sub(1);
            poll.forbidden = true;
        }
        self.refuse_topic(state, watcher.slot, id.as_ref(), &topic);
        self.mark(state, watcher.slot);
    }

    /// Says that a topic is not the client's to watch.
    pub(super) fn refuse_topic(
        &self,
        state: &mut State,
        slot: usize,
        id: Option<&Value>,
        topic: &Topic,
    ) {
        self.common.telemetry.client_error("forbidden");
        let transport = &state.connections[slot].transport;
        if matches!(transport, Transport::Poll(_)) {
            return;
        }
        let notice = Notice::Error {
            id,
            code: "forbidden",
            message: "this belongs to another user, and your token's topics do not grant it",
            topic: Some(topic.to_string()),
        };
        let frame = self.frame_of(&state.connections[slot], &notice, None);
        self.reply(state, slot, frame);
    }
}
