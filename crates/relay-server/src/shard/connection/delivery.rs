//! From what is due to bytes on their way.
//!
//! A connection that has something due gets one write, of as many frames as are due. While its socket is full
//! nothing is taken for it, so what it gets then is fresh. It does not know what the frames say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_core::position::Seq;
use relay_core::publication::Publication;
use relay_core::watcher::Seen;
use relay_core::watcher::outbox::{Offered, SubscriptionId, Taken, Telling};
use relay_core::watcher::session::CloseReason;
use relay_wire::dialect::Past;
use relay_wire::exchange::{Delivery, ReplyTo};
use relay_wire::native::frame::Notice;

use super::{Connection, Desk, bounds};
use crate::shard::outlet::Written;

/// Bytes gathered for one write. More would only copy what the kernel will not take.
const WRITE_BYTES: usize = 64 * 1024;

/// How a publication comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Occasion {
    /// Nothing else came with it that had better leave in the same write.
    pub(crate) alone: bool,
    /// Nothing newer came before it.
    pub(crate) is_news: bool,
}

impl Connection {
    /// Offers what was just published. False if the subscription is about another's job: it has to end.
    pub(crate) fn offer(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        occasion: Occasion,
        desk: &mut Desk<'_>,
    ) -> bool {
        match self
            .watcher
            .sees(publication, via, occasion.is_news, &*self.identity)
        {
            Seen::Yes => {}
            Seen::No => return true,
            Seen::Forbidden => return false,
        }
        let idle = occasion.alone && !self.due && self.outlet.is_open();
        if !(idle && self.pass(publication, via, desk)) {
            self.queue(publication, via, desk);
        }
        true
    }

    fn queue(&mut self, publication: &Arc<Publication>, via: SubscriptionId, desk: &Desk<'_>) {
        let limits = bounds(&self.speaker, desk.node);
        match self.watcher.offer(publication, via, desk.now, limits) {
            Offered::Queued => {}
            Offered::Duplicate => return,
            Offered::Conflated => desk.tools.metrics.conflated.inc(),
            Offered::Shed(_) => desk.node.telemetry.gap("outbox"),
            Offered::Overflow => return self.end(CloseReason::Overflow),
        }
        self.due |= !self.is_paced(desk.now);
    }

    /// Writes a publication where nothing else waits. False if something does, and nothing has changed.
    ///
    /// Queueing it first would mean to come back to each connection after the others have pushed it out of
    /// the caches: walking once instead of twice, with no refcount taken, is a twentieth of a delivery.
    fn pass(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        desk: &mut Desk<'_>,
    ) -> bool {
        let limits = bounds(&self.speaker, desk.node);
        let at = self
            .watcher
            .pass(publication, via, &desk.tools.horizon, desk.now, limits);
        let Some(at) = at else {
            return false;
        };
        let told = Delivery {
            via,
            at,
            replayed: false,
        };
        let horizon = &desk.tools.horizon;
        let frame = self
            .speaker
            .tell(publication, (told, None), &self.watcher, horizon);
        let written = match frame.is_empty() {
            true => Written::All,
            false => write(&mut self.outlet, &frame, desk),
        };
        self.account(publication, false, desk);
        match written {
            Written::All => {
                self.note_written(desk);
                // An acknowledgement, or a grace, may have begun.
                self.due = publication.is_terminal();
            }
            Written::Blocked => {
                desk.node.telemetry.writes_blocked.inc();
                self.due = true;
            }
            Written::Gone => self.end(CloseReason::Client),
        }
        true
    }

    /// A stream's reader says nothing; that the kernel takes bytes is the only sign there is.
    fn note_written(&mut self, desk: &Desk<'_>) {
        if !self.speaker.can_answer() {
            self.sign_of_life(desk);
        }
    }

    /// Bytes of any kind arrived.
    pub(crate) fn sign_of_life(&mut self, desk: &Desk<'_>) {
        let limits = bounds(&self.speaker, desk.node);
        self.watcher.sign_of_life(desk.now, limits);
    }

    /// Sends a notice in the client's words.
    pub(super) fn say(&mut self, notice: &Notice<'_>, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        let about = Self::about(&self.identity, desk);
        let frame = self.speaker.say(notice, reply_to, &about);
        self.reply(frame, desk);
    }

    /// Queues a reply; ends a client that does not read its replies.
    pub(super) fn reply(&mut self, frame: Bytes, desk: &mut Desk<'_>) {
        if frame.is_empty() || !self.goes_on() {
            return;
        }
        let most = desk.node.delivery.outbox_bytes;
        if self.outlet.is_full(most) && self.outlet.is_open() {
            // Many replies in one turn say nothing of the reader; replies the kernel does not take do.
            desk.tools.buffers.frames.clear();
            self.outlet.take_replies(&mut desk.tools.buffers.frames);
            if self.write_frames(desk) == Written::Gone {
                return self.end(CloseReason::Client);
            }
        }
        if self.outlet.is_full(most) {
            return self.end(CloseReason::Slow);
        }
        self.outlet.reply(frame);
        self.due = true;
    }

    /// Writes all that is due, as far as the way out takes it.
    pub(crate) fn flush(&mut self, desk: &mut Desk<'_>) {
        if self.speaker.is_polling() {
            return self.answer_request(desk);
        }
        while self.outlet.is_open() {
            self.gather(desk, usize::MAX, WRITE_BYTES);
            if desk.tools.buffers.frames.is_empty() {
                return;
            }
            match self.write_frames(desk) {
                Written::All => {}
                Written::Blocked => {
                    desk.node.telemetry.writes_blocked.inc();
                    return;
                }
                Written::Gone => return self.end(CloseReason::Client),
            }
        }
    }

    /// Answers the request that waits with what is due, if that is an answer.
    fn answer_request(&mut self, desk: &mut Desk<'_>) {
        if !self.outlet.has_request() {
            return;
        }
        if self.outlet.is_abandoned() {
            return self.end(CloseReason::Client);
        }
        let ceiling = self.watcher.ceiling(&desk.tools.horizon);
        if !self
            .speaker
            .may_answer(self.watcher.has_due(desk.now, ceiling))
        {
            return;
        }
        let frames = self.speaker.answer_frames();
        let bytes = match self.speaker.ends_with_answer() {
            true => desk.node.delivery.outbox_bytes,
            false => WRITE_BYTES,
        };
        self.gather(desk, frames, bytes);
        let at = self.watcher.cursor(desk.tools.horizon.epoch());
        let frames = &desk.tools.buffers.frames;
        let Some(body) = self
            .speaker
            .answer(frames, &at, &desk.tools.horizon, desk.now)
        else {
            return;
        };
        if let (Ok(body), true) = (&body, !self.speaker.ends_with_answer()) {
            desk.tools.metrics.written_bytes.inc_by(body.len() as u64);
        }
        if !self.outlet.answer(body) || self.speaker.ends_with_answer() {
            self.end(CloseReason::Client);
        }
    }

    /// Takes what is due, replies first, as much as one write should have: so many frames, and about so many
    /// bytes.
    fn gather(&mut self, desk: &mut Desk<'_>, frames: usize, bytes: usize) {
        let gathered = &mut desk.tools.buffers.frames;
        gathered.clear();
        self.outlet.take_replies(gathered);
        let ceiling = self.watcher.ceiling(&desk.tools.horizon);
        let mut size: usize = gathered.iter().map(Bytes::len).sum();
        while size < bytes && desk.tools.buffers.frames.len() < frames {
            let limits = bounds(&self.speaker, desk.node);
            let Some(taken) = self.watcher.next(desk.now, ceiling, limits) else {
                self.watcher.settle(&desk.tools.horizon, ceiling);
                return;
            };
            let frame = self.tell(&taken, desk);
            size += frame.len();
            if !frame.is_empty() {
                desk.tools.buffers.frames.push(frame);
            }
            if let Telling::Publication(publication) = &taken.telling {
                self.account(publication, taken.replayed, desk);
            }
        }
    }

    /// The frame of what was taken.
    pub(super) fn tell(&mut self, taken: &Taken, desk: &Desk<'_>) -> Bytes {
        match &taken.telling {
            Telling::Publication(publication) => {
                let told = Delivery {
                    via: taken.via,
                    at: taken.position,
                    replayed: taken.replayed,
                };
                let past = self.past_of(publication, told, desk);
                let (told, horizon) = ((told, past.as_ref()), &desk.tools.horizon);
                let frame = self.speaker.tell(publication, told, &self.watcher, horizon);
                frame.into_owned()
            }
            Telling::Gap { job, reason } => {
                let Some(subscription) = self.watcher.subscription(taken.via) else {
                    return Bytes::new();
                };
                let notice = Notice::Gap {
                    topic: subscription.spelled().to_string(),
                    job_id: job.as_str(),
                    reason: reason.as_str(),
                };
                let about = Self::about(&self.identity, desk);
                let place = self.speaker.place_of(taken.via);
                self.speaker.say(&notice, &place, &about)
            }
        }
    }

    /// What happened in a job before the state that a subscription begins with, where its client's dialect tells of
    /// it. A client that goes on from where it was has been told, or is told one by one.
    fn past_of(&self, publication: &Publication, told: Delivery, desk: &Desk<'_>) -> Option<Past> {
        if !self.speaker.wants_past(publication, told) {
            return None;
        }
        let begins = self.watcher.subscription(told.via)?.since == Seq::ZERO;
        let (mut milestones, is_cut) = match begins {
            true => desk.node.hub.milestones(&publication.name()),
            false => (Vec::new(), false),
        };
        // What is newer than the state is told after it.
        milestones.retain(|each| each.seq < publication.seq);
        Some(Past::new(milestones, is_cut))
    }

    fn write_frames(&mut self, desk: &mut Desk<'_>) -> Written {
        let frames = std::mem::take(&mut desk.tools.buffers.frames);
        let written = match frames.as_slice() {
            [frame] => write(&mut self.outlet, frame, desk),
            frames => {
                // Copying a few hundred bytes is cheaper than a second system call, or a vectored one.
                let mut batch = std::mem::take(&mut desk.tools.buffers.batch);
                batch.clear();
                frames
                    .iter()
                    .for_each(|frame| batch.extend_from_slice(frame));
                let written = write(&mut self.outlet, &batch, desk);
                desk.tools.buffers.batch = batch;
                written
            }
        };
        desk.tools.buffers.frames = frames;
        if written == Written::All {
            self.note_written(desk);
        }
        written
    }

    /// Counts a delivery.
    fn account(&mut self, publication: &Publication, replayed: bool, desk: &Desk<'_>) {
        let (metrics, now) = (&desk.tools.metrics, desk.now);
        let topics = self.watcher.subscriptions().len();
        if let Some(speech) = self.speaker.speech_mut() {
            speech.note(publication, topics, now);
        }
        metrics.of(self.speaker.transport()).deliveries.inc();
        if replayed {
            return;
        }
        let class = metrics.class(publication);
        let since = now - publication.received_at;
        class.delivery.observe(since.as_secs_f64());
        if let Some(worker_at) = publication.worker_at {
            // The worker's clock at publishing, ours at taking in, and how long it took from there.
            let travelled = publication.stored_at.as_unix_micros() - worker_at.as_unix_micros();
            let travelled = Duration::from_micros(u64::try_from(travelled).unwrap_or(0));
            class.end_to_end.observe((travelled + since).as_secs_f64());
        }
    }

    /// Says what there is to say before the connection is removed.
    pub(crate) fn say_goodbye(&mut self, reason: CloseReason, desk: &mut Desk<'_>) {
        self.part(desk);
        let undecodable = self.rare.as_ref().and_then(|rare| rare.undecodable);
        let goodbye = self.speaker.goodbye(reason, undecodable);
        if goodbye.is_empty() {
            return;
        }
        let frames = &mut desk.tools.buffers.frames;
        frames.clear();
        if self.outlet.has_request() {
            self.outlet.take_replies(frames);
            frames.push(goodbye);
            let at = self.watcher.cursor(desk.tools.horizon.epoch());
            let body = self
                .speaker
                .answer(frames, &at, &desk.tools.horizon, desk.now);
            if let Some(body) = body {
                // It is leaving either way; whether the goodbye arrives changes nothing.
                self.outlet.answer(body);
            }
        } else if self.outlet.is_open() {
            self.outlet.take_replies(frames);
            frames.push(goodbye);
            self.write_frames(desk);
        }
    }
}

impl Connection {
    /// Leaves word where the client stands, where its dialect wants to know it again.
    fn part(&self, desk: &Desk<'_>) {
        let Some((whence, speech)) = self.whence().zip(self.speaker.speech()) else {
            return;
        };
        let cursor = self.watcher.cursor(desk.tools.horizon.epoch());
        if let Some(within) = speech.dialect().returns_within
            && !cursor.told().is_empty()
        {
            let departures = &desk.node.departures;
            let forgotten = departures.keep(whence, speech.parts(cursor), desk.now, within);
            desk.node.telemetry.departures_forgotten.inc_by(forgotten);
        }
    }
}

/// Writes bytes that follow all that was written to the connection before.
fn write(outlet: &mut crate::shard::outlet::Outlet, bytes: &[u8], desk: &Desk<'_>) -> Written {
    desk.tools.metrics.written_bytes.inc_by(bytes.len() as u64);
    outlet.write(bytes, desk.now)
}
