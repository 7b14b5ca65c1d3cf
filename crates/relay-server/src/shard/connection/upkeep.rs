//! What time brings: deadlines of writes, pings, checks, endings sent again, and the moment to go.

use std::time::Duration;

use relay_bus::inbox::ConnectionId;
use relay_core::moment::{Moment, WallTime};
use relay_core::watcher::session::{Action, CloseReason};
use relay_wire::exchange::{Hurry, ReplyTo};
use relay_wire::native::frame::Notice;

use super::{Connection, Desk, Errand, bounds};
use crate::shard::outlet::Written;

/// A client comes back at a random time within this after it was let go.
const RETRY_MS: std::ops::Range<u64> = 200..2_000;

impl Connection {
    /// Its time has come.
    pub(crate) fn tick(&mut self, desk: &mut Desk<'_>) {
        self.due = true;
        if self.leaves_at().is_some_and(|at| desk.now >= at) {
            return self.end(CloseReason::Drain);
        }
        let deadline = self.outlet.deadline(desk.node.delivery.write_timeout);
        if deadline.is_some_and(|deadline| desk.now >= deadline) {
            desk.node.telemetry.write_failures.inc();
            if self.outlet.fail(desk.now) >= desk.node.delivery.max_failures {
                return self.end(CloseReason::Slow);
            }
        }
        let speech = self.speaker.speech();
        if let Some(over) = speech.and_then(|speech| speech.is_over(desk.now)) {
            return self.end(over);
        }
        let limits = bounds(&self.speaker, desk.node);
        for action in self.watcher.tick(desk.now, limits) {
            match action {
                Action::Close(reason) => self.end(reason),
                Action::ExpiresSoon => self.warn_of_expiry(desk),
                // Time asks for nothing else.
                _ => self.ping(desk),
            }
        }
        self.join_postponed(desk);
        self.check(desk);
        self.send_endings_again(desk);
    }

    /// Tells the client that its token ends soon, so that it can show a new one before.
    fn warn_of_expiry(&mut self, desk: &mut Desk<'_>) {
        let Some(left) = self.identity.left(desk.wall()) else {
            return;
        };
        let notice = Notice::TokenExpiring {
            expires_at: self.identity.expires_at.and_then(WallTime::to_rfc3339),
            expires_in_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        self.say(&notice, &ReplyTo::Nobody, desk);
    }

    /// Joins what was to wait until now.
    fn join_postponed(&mut self, desk: &mut Desk<'_>) {
        let speech = self.speaker.speech_mut();
        let due = speech.map(|speech| speech.postponed(desk.now));
        for join in due.unwrap_or_default() {
            if self.watcher.subscription(join.subscription).is_some() {
                desk.tools.errands.push(Errand::Join(join));
            }
        }
    }

    /// Sends again the endings that were not acknowledged in time.
    fn send_endings_again(&mut self, desk: &mut Desk<'_>) {
        let limits = bounds(&self.speaker, desk.node);
        for taken in self.watcher.endings_due(desk.now, limits) {
            desk.node.telemetry.endings_reoffered.inc();
            let frame = self.tell(&taken, desk);
            self.reply(frame, desk);
        }
    }

    /// The relay is going away: the client is told, and has to leave within `window`.
    pub(crate) fn let_go(&mut self, window: Duration, desk: &mut Desk<'_>) {
        self.due = true;
        if self.speaker.ends_with_answer() {
            return self.speaker.hurry(Hurry::Drain);
        }
        let retry_ms = fastrand::u64(RETRY_MS);
        let notice = Notice::ServerShutdown { retry_ms };
        self.say(&notice, &ReplyTo::Nobody, desk);
        let speech = self.speaker.speech();
        let within = speech.and_then(|speech| speech.dialect().drain_within);
        let window = within.map_or(window, |within| within.min(window));
        self.rare().leaves_at = Some(desk.now + window.mul_f64(fastrand::f64()));
    }

    /// The relay went away while the client came: it is sent what there is, and let go.
    pub(crate) fn drain_at_once(&mut self, desk: &mut Desk<'_>) {
        self.flush(desk);
        self.end(CloseReason::Drain);
    }

    /// The socket may have room again.
    pub(crate) fn resume(&mut self, desk: &mut Desk<'_>) {
        match self.outlet.resume(desk.now) {
            Written::All => {
                self.due = true;
                self.tell_owed(desk);
            }
            Written::Blocked => {}
            Written::Gone => self.end(CloseReason::Client),
        }
    }

    /// Sets its timer to the earliest moment anything of it is due; the timer, if it is sooner than before.
    ///
    /// Invariant: what is due already has a timer, or was done: one that has come up as it is set would come up for ever.
    pub(crate) fn set_timer(&mut self, desk: &Desk<'_>) -> Option<(Moment, ConnectionId)> {
        let next = self.next_tick(desk)?;
        if self.timer.is_some_and(|current| current <= next) {
            return None;
        }
        debug_assert!(
            next > desk.now || !self.goes_on(),
            "due, and not done: {self:?}"
        );
        self.timer = Some(next);
        Some((next, self.id))
    }

    /// Whether what is due can leave. Between two requests of a client it cannot, and the next request, not time,
    /// changes that.
    fn takes_news(&self) -> bool {
        !self.speaker.is_polling() || self.outlet.has_request() && self.speaker.may_answer(true)
    }

    fn next_tick(&self, desk: &Desk<'_>) -> Option<Moment> {
        let limits = bounds(&self.speaker, desk.node);
        let heartbeat = self.speaker.has_heartbeat();
        let waits = match self.outlet.deadline(desk.node.delivery.write_timeout) {
            Some(deadline) => Some(deadline),
            None if self.takes_news() => self
                .watcher
                .next_due(self.watcher.ceiling(&desk.tools.horizon)),
            None => None,
        };
        [
            heartbeat.then(|| self.watcher.next_tick(limits)),
            waits,
            self.leaves_at(),
            self.speaker.speech().and_then(|speech| speech.next()),
            self.watcher.next_ending(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
