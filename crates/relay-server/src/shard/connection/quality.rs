//! How good a connection is, by how soon its client answers pings and checks.

use std::time::Duration;

use relay_core::moment::Moment;
use relay_core::quality::Grade;
use relay_core::topic::Topic;
use relay_wire::Frame;
use relay_wire::exchange::ReplyTo;
use serde_json::json;

use super::{Connection, Desk};

impl Connection {
    /// Asks whether the client is there.
    pub(super) fn ping(&mut self, desk: &mut Desk<'_>) {
        if self.outlet.is_blocked() {
            return;
        }
        if self.speaker.can_answer() {
            let unanswered = self.pinged.replace(desk.now).is_some();
            if unanswered && self.speaker.is_judged() {
                self.miss_answer(desk);
            }
        }
        let ping = self.speaker.ping();
        self.reply(ping, desk);
    }

    /// The client answered a ping.
    pub(super) fn on_pong(&mut self, desk: &mut Desk<'_>) {
        if let Some(pinged) = self.pinged.take() {
            self.observe_round_trip(pinged, desk);
        }
    }

    /// Asks the client for a sign of its own, where its dialect has a question for that and its time has come.
    pub(super) fn check(&mut self, desk: &mut Desk<'_>) {
        let blocked = self.outlet.is_blocked();
        let Some(speech) = self.speaker.speech_mut() else {
            return;
        };
        let Some(due) = speech.check(desk.now) else {
            return;
        };
        if due.missed {
            // Pongs say more of the connection: a page may have no answer to this question.
            desk.node.telemetry.check("missed");
        }
        if blocked {
            return;
        }
        speech.checked(desk.now);
        let input = json!({"type": "check", "job_id": self.first_job()});
        let about = Self::about(&self.identity, desk);
        let nobody = ReplyTo::Nobody;
        let frame = self.speaker.say_as(Frame::Check, &input, &nobody, &about);
        self.reply(frame, desk);
    }

    /// The client answered a check.
    pub(super) fn on_check_answered(&mut self, desk: &mut Desk<'_>) {
        let speech = self.speaker.speech_mut();
        if let Some(checked) = speech.and_then(|speech| speech.check_answered()) {
            desk.node.telemetry.check("answered");
            self.observe_round_trip(checked, desk);
        }
    }

    fn observe_round_trip(&mut self, since: Moment, desk: &mut Desk<'_>) {
        let took = desk.now - since;
        let histogram = &desk.node.telemetry.round_trip_seconds;
        histogram.observe(took.as_secs_f64());
        let before = self.quality.verdict();
        if let Some(verdict) = self.quality.observe(took) {
            self.on_verdict(before, verdict, desk);
        }
    }

    fn miss_answer(&mut self, desk: &mut Desk<'_>) {
        let before = self.quality.verdict();
        if let Some(verdict) = self.quality.miss() {
            self.on_verdict(before, verdict, desk);
        }
    }

    /// The connection is judged differently from now on.
    fn on_verdict(&mut self, before: Grade, verdict: Grade, desk: &mut Desk<'_>) {
        let telemetry = &desk.node.telemetry;
        telemetry.quality(before).dec();
        telemetry.quality(verdict).inc();
        telemetry.quality_change(verdict);
        if self.speaker.speech().is_none() || self.outlet.is_blocked() {
            return;
        }
        let millis = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
        let latency = self.quality.latency();
        let input = json!({
            "type": "quality",
            "verdict": verdict.as_str(),
            "before": before.as_str(),
            "round_trip_ms": millis(latency.mean()),
            "deviation_ms": millis(latency.deviation()),
            "job_id": self.first_job(),
        });
        let about = Self::about(&self.identity, desk);
        let nobody = ReplyTo::Nobody;
        let frame = self.speaker.say_as(Frame::Quality, &input, &nobody, &about);
        self.reply(frame, desk);
    }

    /// The job it watches, the first if it watches several.
    fn first_job(&self) -> Option<&str> {
        self.watcher.topics().find_map(|topic| match topic {
            Topic::Job(job) => Some(job.id.as_str()),
            Topic::User(_) | Topic::Group(_) => None,
        })
    }
}
