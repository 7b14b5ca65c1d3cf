//! The fan-out: from a publication to bytes on sockets.
//!
//! A publication is offered to the outbox of everybody who watches it; then each connection that has
//! something due gets one write, of as many frames as are due. A frame is encoded once for all who are
//! in step. A connection whose socket is full takes nothing from its outbox until there is room, so what
//! it gets then is fresh.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_bus::inbox::{Joined, LostMilestones, Repairing};
use relay_core::cursor::{Cursor, Print, Told};
use relay_core::moment::Moment;
use relay_core::outbox::{GapReason, Offered, SubscriptionId, Taken, Telling};
use relay_core::publication::{JobKey, Publication};
use relay_core::session::CloseReason;
use relay_core::topic::Topic;
use serde_json::Value;

use super::connection::{Answered, Connection, PollAnswer, Transport, Unacknowledged, Written};
use super::holds::{Holds, Released};
use super::registry::Watcher;
use super::{Shard, State, speech};
use crate::frame::{self, Notice, Wire};
use crate::identity::Sight;
use crate::websocket;

/// Bytes gathered for one write. More would only copy what the kernel will not take.
const WRITE_BYTES: usize = 64 * 1024;
/// How often an ending is offered that nobody acknowledges.
const MAX_OFFERS: u32 = 6;

impl Shard {
    /// Offers a publication to everybody on this shard who watches it.
    pub(super) fn offer(&self, state: &mut State, publication: &Arc<Publication>, now: Moment) {
        let is_repair = publication.seq <= state.frontier;
        state.frontier = state.frontier.max(publication.seq);
        let mut lost = Vec::new();
        for watcher in state.registry.watchers_of(publication) {
            let connection = &mut state.connections[watcher.slot];
            match seen_by(connection, watcher, publication) {
                Seen::Yes => {}
                Seen::Hidden => continue,
                Seen::Forbidden => {
                    lost.push((*watcher, Loss::Forbidden));
                    continue;
                }
            }
            if is_repair && is_before(connection, watcher, publication.seq) {
                continue;
            }
            let bounds = speech::outbox_bounds(&connection.speech, &self.common);
            let outbox = &mut connection.outbox;
            match outbox.offer(publication, watcher.subscription, now, bounds) {
                Offered::Queued => {}
                Offered::Duplicate => continue,
                Offered::Conflated => self.common.telemetry.conflated.inc(),
                Offered::Shed(_) => self.common.telemetry.gap("outbox"),
                Offered::Overflow => {
                    lost.push((*watcher, Loss::Overflow));
                    continue;
                }
            }
            if !connection.dirty {
                connection.dirty = true;
                state.dirty.push(watcher.slot);
            }
        }
        for (watcher, loss) in lost {
            match loss {
                Loss::Forbidden => self.refuse_subscription(state, watcher),
                Loss::Overflow => self.end(state, watcher.slot, CloseReason::Overflow),
            }
        }
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
                let job = (lost.key, lost.job.clone());
                let outbox = &mut connection.outbox;
                outbox.announce_gap(job, lost.seq, lost.reason, watcher.subscription, now);
                self.common.telemetry.gap(lost.reason.as_str());
                self.mark(state, watcher.slot);
            }
        }
    }

    /// A join was answered: the subscription is live, and what it starts with goes out at once.
    pub(super) fn on_joined(&self, state: &mut State, mut joined: Joined, now: Moment) {
        state.frontier = state.frontier.max(joined.high);
        state.registry.answered(&joined.topic);
        let slot = Self::find(state, joined.connection);
        let since = joined.since.filter(|_| joined.recovered).unwrap_or(0);
        let live = slot.filter(|slot| {
            let connection = &mut state.connections[*slot];
            let from = complete_from(connection, &joined);
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
        let seen: HashSet<JobKey> = joined.publications.iter().map(|each| each.key).collect();
        joined.left_out.retain(|each| seen.contains(&each.key));
        state.registry.add(&joined.topic, watcher);
        let topic = joined.topic.clone();
        let id = state.connections[slot].id;
        self.welcome(state, slot, joined, now);
        // A client that reads nothing may have been ended by its welcome.
        if Self::find(state, id).is_some() {
            self.begin_tally(state, watcher, &topic);
        }
        self.mark(state, slot);
    }

    fn welcome(&self, state: &mut State, slot: usize, mut joined: Joined, now: Moment) {
        let connection = &mut state.connections[slot];
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
            connection.outbox.resume(since);
        }
        let goes_on = answered.resumes && joined.recovered;
        let begins_with_others = answered.together && !answered.resumes;
        if goes_on || begins_with_others {
            // What is told under one topic is told. Who asks for a single one without a cursor, or has to
            // start anew, wants the snapshot.
            let id = joined.subscription;
            let states = joined.publications.iter().filter(|each| each.is_state());
            let latest: HashMap<JobKey, u64> = states.map(|state| (state.key, state.seq)).collect();
            let mut told = Vec::new();
            joined.publications.retain(|publication| {
                let state = latest.get(&publication.key);
                let in_snapshot = state.is_none_or(|state| publication.seq >= *state);
                let is_told = is_told(connection, id, publication, in_snapshot);
                told.extend(is_told.then_some(publication.seq));
                !is_told
            });
            for seq in told {
                connection.outbox.share(seq, id);
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
        connection
            .outbox
            .advance(joined.high.min(ceiling(&state.holds, connection)));
        let jobs: HashSet<JobKey> = joined
            .publications
            .iter()
            .filter(|publication| publication.is_state())
            .map(|publication| publication.key)
            .collect();
        if let Some(extras) = &mut connection.extras {
            let print = Print::of(&joined.topic);
            extras.carried.retain(|told| told.print != print);
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

    /// Queues a reply; ends a client that does not read its replies.
    pub(super) fn reply(&self, state: &mut State, slot: usize, frame: Bytes) {
        if frame.is_empty() {
            // A dialect that has no word for it.
            return;
        }
        let Some(connection) = state.connections.get_mut(slot) else {
            return;
        };
        if connection.writer.replies_full()
            && connection.writer.has_socket()
            && !connection.writer.is_blocked()
        {
            // Many replies in one turn say nothing of the reader; replies the kernel does not take do.
            state.frames.clear();
            connection.writer.take_replies(&mut state.frames);
            if self.write_frames(state, slot, self.clock.now()) == Written::Gone {
                return self.end(state, slot, CloseReason::Client);
            }
        }
        let writer = &mut state.connections[slot].writer;
        if writer.replies_full() {
            return self.end(state, slot, CloseReason::Slow);
        }
        writer.reply(frame);
        self.mark(state, slot);
    }

    /// Writes to every connection that has something to write.
    pub(super) fn flush_dirty(&self, state: &mut State, now: Moment) {
        while let Some(slot) = state.dirty.pop() {
            // A slot may have been emptied, or filled anew, since it was marked.
            let Some(connection) = state.connections.get_mut(slot) else {
                continue;
            };
            if std::mem::take(&mut connection.dirty) {
                self.flush(state, slot, now);
            }
        }
    }

    /// Writes all that is due on one connection, as far as its socket takes it.
    fn flush(&self, state: &mut State, slot: usize, now: Moment) {
        match &state.connections[slot].transport {
            Transport::Poll(_) => return self.answer_poll(state, slot, now),
            Transport::SocketIo(link) if link.protocol.is_polling() => {
                return self.flush_polling(state, slot, now);
            }
            Transport::WebSocket(_) | Transport::EventStream | Transport::SocketIo(_) => {}
        }
        loop {
            if state.connections[slot].writer.is_blocked() {
                break;
            }
            self.gather(state, slot, now);
            if state.frames.is_empty() {
                break;
            }
            match self.write_frames(state, slot, now) {
                Written::All => {}
                Written::Blocked => {
                    self.common.telemetry.writes_blocked.inc();
                    break;
                }
                Written::Gone => {
                    self.end(state, slot, CloseReason::Client);
                    return;
                }
            }
        }
        self.reschedule(state, slot);
    }

    /// Takes what is due on one connection, replies first, as much as one write should have.
    pub(super) fn gather(&self, state: &mut State, slot: usize, now: Moment) {
        let connection = &mut state.connections[slot];
        state.frames.clear();
        connection.writer.take_replies(&mut state.frames);
        let ceiling = ceiling(&state.holds, connection);
        let mut bytes: usize = state.frames.iter().map(Bytes::len).sum();
        while bytes < WRITE_BYTES
            && let Some(taken) = connection.outbox.take(
                now,
                ceiling,
                speech::outbox_bounds(&connection.speech, &self.common),
            )
        {
            let frame = match connection.speech {
                None => render(connection, &taken, state.epoch, state.stale),
                Some(_) => self.render_foreign(connection, &taken),
            };
            bytes += frame.len();
            if !frame.is_empty() {
                state.frames.push(frame);
            }
            self.account(connection, &state.metrics, taken, now);
        }
        if state.frames.is_empty() {
            let seen = state.frontier.min(ceiling);
            connection.outbox.advance(seen);
        }
    }

    fn write_frames(&self, state: &mut State, slot: usize, now: Moment) -> Written {
        let connection = &mut state.connections[slot];
        let bytes: &[u8] = match state.frames.as_slice() {
            [frame] => frame,
            frames => {
                // Copying a few hundred bytes is cheaper than a second system call, or a vectored one.
                state.batch.clear();
                frames
                    .iter()
                    .for_each(|frame| state.batch.extend_from_slice(frame));
                &state.batch
            }
        };
        self.common
            .telemetry
            .written_bytes
            .inc_by(bytes.len() as u64);
        let written = connection.writer.write(bytes, now);
        if written == Written::All && matches!(connection.transport, Transport::EventStream) {
            // A stream's reader says nothing; that the kernel takes bytes is the only sign there is.
            let event = relay_core::session::Event::SignOfLife;
            connection.session.handle(event, now, &self.common.session);
        }
        written
    }

    /// Counts a delivery, and remembers an ending whose client wants to acknowledge it.
    fn account(
        &self,
        connection: &mut Connection,
        metrics: &super::Metrics,
        taken: Taken,
        now: Moment,
    ) {
        let Telling::Publication(publication) = taken.telling else {
            return;
        };
        if let Some(speech) = &mut connection.speech {
            let jobs = connection.session.subscriptions().len();
            speech.note(&publication, jobs, now);
        }
        metrics.of(&connection.transport).deliveries.inc();
        let class = match (publication.is_terminal(), publication.is_state()) {
            (true, _) => &metrics.ending,
            (false, true) => &metrics.state,
            (false, false) => &metrics.milestone,
        };
        if !taken.replayed {
            class
                .delivery
                .observe((now - publication.received_at).as_secs_f64());
        }
        if let Some(worker_at) = publication.worker_at.filter(|_| !taken.replayed) {
            // The worker's clock at publishing, ours at taking in, and how long it took from there.
            let travelled = publication.stored_at.as_unix_micros() - worker_at.as_unix_micros();
            let travelled = Duration::from_micros(u64::try_from(travelled).unwrap_or(0));
            class
                .end_to_end
                .observe((travelled + (now - publication.received_at)).as_secs_f64());
        }
        let Some(extras) = &mut connection.extras else {
            return;
        };
        let known = extras
            .unacknowledged
            .iter()
            .any(|each| each.publication.seq == publication.seq);
        if publication.is_terminal() && extras.acks.contains(&taken.via) && !known {
            extras.unacknowledged.push(Unacknowledged {
                subscription: taken.via,
                publication,
                next: now + self.common.ack_timeout,
                tries: 1,
            });
        }
    }

    /// Offers again the endings that were not acknowledged in time.
    pub(super) fn reoffer(&self, state: &mut State, slot: usize, now: Moment) {
        let (epoch, stale) = (state.epoch, state.stale);
        let connection = &mut state.connections[slot];
        let Some(mut extras) = connection.extras.take() else {
            return;
        };
        let mut frames = Vec::new();
        extras.unacknowledged.retain_mut(|each| {
            if each.next > now {
                return true;
            }
            each.tries += 1;
            each.next = now + self.common.ack_timeout * (1 << each.tries.min(MAX_OFFERS));
            let again = Taken {
                telling: Telling::Publication(each.publication.clone()),
                via: each.subscription,
                position: connection.outbox.position(),
                replayed: true,
            };
            frames.push(render(connection, &again, epoch, stale));
            self.common.telemetry.endings_reoffered.inc();
            each.tries < MAX_OFFERS
        });
        connection.extras = Some(extras);
        for frame in frames {
            if Self::find(state, state.connections[slot].id).is_some() {
                self.reply(state, slot, frame);
            }
        }
    }

    /// Answers a poll once every topic has joined and there is news.
    pub(super) fn answer_poll(&self, state: &mut State, slot: usize, now: Moment) {
        let connection = &mut state.connections[slot];
        let Transport::Poll(Some(poll)) = &connection.transport else {
            return;
        };
        let ceiling = ceiling(&state.holds, connection);
        let news = poll.forbidden || poll.hurried || connection.outbox.has_due(now, ceiling);
        if poll.waiting > 0 || !news {
            self.reschedule(state, slot);
            return;
        }
        self.finish_poll(state, slot, now, false);
    }

    /// Answers a poll with what there is, and ends it.
    pub(super) fn finish_poll(&self, state: &mut State, slot: usize, now: Moment, shutdown: bool) {
        let (epoch, stale) = (state.epoch, state.stale);
        let connection = &mut state.connections[slot];
        let ceiling = ceiling(&state.holds, connection);
        let seen = state.frontier.min(ceiling);
        let mut frames = Vec::new();
        while frames.len() < super::watch::MAX_POLL_FRAMES
            && let Some(taken) = connection.outbox.take(now, ceiling, &self.common.outbox)
        {
            frames.push(render(connection, &taken, epoch, stale));
            self.account(connection, &state.metrics, taken, now);
        }
        connection.outbox.advance(seen);
        let cursor = cursor_of(connection, epoch);
        if let Transport::Poll(poll) = &mut connection.transport
            && let Some(poll) = poll.take()
        {
            let answer = PollAnswer {
                frames,
                cursor,
                recovered: poll.recovered,
                joined: poll.waiting == 0,
                forbidden: poll.forbidden,
                stale,
                shutdown,
            };
            // Whoever polled may have gone.
            drop(poll.answer.send(answer));
        }
        self.end(state, slot, CloseReason::Client);
    }

    /// Says what there is to say before a connection ends.
    pub(super) fn say_goodbye(&self, state: &mut State, slot: usize, reason: CloseReason) {
        let now = self.clock.now();
        let connection = &mut state.connections[slot];
        match &connection.transport {
            Transport::WebSocket(_) if !connection.writer.is_blocked() => {}
            Transport::SocketIo(link) if link.protocol.is_polling() => {
                return Self::say_engine_goodbye(state, slot);
            }
            Transport::SocketIo(_) if !connection.writer.is_blocked() => {}
            _ => return,
        }
        let Some((code, words)) = close_words(reason) else {
            return;
        };
        let speech = connection.speech.as_ref();
        let code = speech
            .and_then(|speech| speech.dialect().close_code(reason))
            .unwrap_or(code);
        state.frames.clear();
        connection.writer.take_replies(&mut state.frames);
        state.frames.push(websocket::close_frame(code, words));
        // It is leaving either way; whether the goodbye arrives changes nothing.
        self.write_frames(state, slot, now);
    }
}

/// Whether another node told the client a number before it came here, where that was missing.
fn is_before(connection: &Connection, watcher: &Watcher, seq: u64) -> bool {
    let subscription = connection.session.subscription(watcher.subscription);
    subscription.is_some_and(|subscription| seq <= subscription.since)
}

/// From which number on a subscription whose join was answered is told everything.
fn complete_from(connection: &Connection, joined: &Joined) -> u64 {
    let Some(since) = joined.since.filter(|_| joined.recovered) else {
        return joined.high;
    };
    let print = Print::of(&joined.topic);
    let mut carried = connection.carried().iter();
    let told = carried.find(|told| told.print == print && told.seq == since);
    told.map_or(since, |told| told.from)
}

/// Whether a client has been told a publication, or will be, under another topic than that of `via`: one
/// that is live on the connection, or that the cursor it brought speaks for. A topic that began with a
/// snapshot had what a snapshot has, and everything since.
fn is_told(
    connection: &Connection,
    via: SubscriptionId,
    publication: &Publication,
    in_snapshot: bool,
) -> bool {
    let (owner, parent) = (Some(&publication.owner), publication.parent.as_ref());
    let told_from = |from: u64| in_snapshot || publication.seq > from;
    publication.topics().any(|topic| {
        let live = connection.session.subscription_to(&topic);
        let live = live.filter(|other| other.id != via && other.live);
        let print = Print::of(&topic);
        let carried = |told: &Told| {
            told.print == print && told.seq >= publication.seq && told_from(told.from)
        };
        (live.is_some_and(|other| told_from(other.complete_from))
            || connection.carried().iter().any(carried))
            && connection.identity.may_watch(&topic, owner, parent)
    })
}

/// What a connection may be told up to while jobs it watches are being repaired.
pub(super) fn ceiling(holds: &Holds, connection: &Connection) -> u64 {
    let subscriptions = connection.session.subscriptions().iter();
    holds.ceiling(subscriptions.map(|each| &each.topic))
}

enum Loss {
    Forbidden,
    Overflow,
}

/// Whether a connection may see a publication, where that could not be said when it subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Yes,
    /// One job of a group is another's: it is left out.
    Hidden,
    /// The one job it watches is another's: the subscription ends.
    Forbidden,
}

fn seen_by(connection: &mut Connection, watcher: &Watcher, publication: &Publication) -> Seen {
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

/// The frame for one connection.
fn render(connection: &Connection, taken: &Taken, epoch: u64, stale: bool) -> Bytes {
    let wire = connection.transport.wire();
    let subscriptions = connection.session.subscriptions();
    let found = subscriptions.iter().find(|each| each.id == taken.via);
    let Some(subscription) = found else {
        return Bytes::new();
    };
    let topic = &subscription.topic;
    let publication = match &taken.telling {
        Telling::Publication(publication) => publication,
        Telling::Gap { job, reason } => return frame::gap(job, topic, *reason, wire),
    };
    let in_step = subscriptions.len() == 1
        && taken.position == publication.seq
        && !stale
        && wire != Wire::Json
        && connection.carried().is_empty()
        && connection.outbox.behind(taken.via).is_none();
    if in_step {
        return frame::in_step(publication, topic, wire);
    }
    let cursor = cursor_at(connection, (epoch, taken.position));
    frame::at_cursor(publication, topic, &cursor, wire, stale)
}

fn cursor_at(connection: &Connection, place: (u64, u64)) -> Cursor {
    let behind = |id| connection.outbox.behind(id);
    connection
        .session
        .cursor(place, behind, connection.carried())
}

/// Where a connection stands now.
pub(super) fn cursor_of(connection: &Connection, epoch: u64) -> String {
    cursor_at(connection, (epoch, connection.outbox.position())).to_string()
}

/// The close code and sentence for a reason; `None` where the client is past hearing.
fn close_words(reason: CloseReason) -> Option<(u16, &'static str)> {
    use websocket::close;
    Some(match reason {
        CloseReason::Client => return None,
        CloseReason::Dead => (close::DEAD, "no sign of life, not even a pong"),
        CloseReason::Slow | CloseReason::Overflow => {
            (close::TRY_AGAIN, "too slow; reconnect with the last cursor")
        }
        CloseReason::Expired => (
            close::UNAUTHENTICATED,
            "the token ran out; reconnect with a new one",
        ),
        CloseReason::Unauthenticated => (close::UNAUTHENTICATED, "no valid token came in time"),
        CloseReason::TooLarge => (
            close::TOO_LARGE,
            "the message is above limits.message_bytes",
        ),
        CloseReason::TooFrequent => (
            close::TOO_FREQUENT,
            "far more messages than limits.messages_per_second",
        ),
        CloseReason::Protocol => (close::PROTOCOL, "broken WebSocket framing"),
        CloseReason::Drain => (
            close::RESTART,
            "the relay restarts; reconnect with the last cursor",
        ),
        CloseReason::Ended => (close::NORMAL, "the job has ended"),
        CloseReason::Idle => (close::GOING_AWAY, "nothing was said for too long"),
    })
}
