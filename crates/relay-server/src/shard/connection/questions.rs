//! Questions of clients that are for workers, and what is said of the answers.
//!
//! Who sends them, and waits, is not known here.
//!
//! Invariant: as many of one connection's questions are under way as it may have, and no more.

use relay_core::watcher::session::CommandError;
use relay_wire::Frame;
use relay_wire::exchange::ReplyTo;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Connection, Desk};
use crate::shard::asking::{Answered, Question};

/// Questions of one connection under way.
const MAX_OWN: u8 = 4;

/// What a dialect's mapping is told of it. The worker's answer is passed on as it came.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    request: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Connection {
    /// Passes a client's question on.
    pub(super) fn ask(
        &mut self,
        name: &str,
        data: Vec<u8>,
        reply_to: &ReplyTo,
        desk: &mut Desk<'_>,
    ) {
        if !self.watcher.is_authenticated() {
            let error = CommandError::Unauthenticated;
            return self.reject(error.code(), &error.to_string(), reply_to, desk);
        }
        let Some(speech) = self.speaker.speech_mut() else {
            return;
        };
        let Some(request) = speech.dialect().requests.get(name).cloned() else {
            let sentence = format!("{name} is not for the relay, which only reports progress");
            return self.reject("not_served", &sentence, reply_to, desk);
        };
        if speech.asking >= MAX_OWN {
            return self.on_busy(reply_to, desk);
        }
        let question = Question {
            connection: self.id,
            name: name.to_owned(),
            reply_to: reply_to.clone(),
            request,
            data,
        };
        match desk.tools.asking.ask(question, &desk.node.hub) {
            true => speech.asking += 1,
            false => self.on_busy(reply_to, desk),
        }
    }

    fn on_busy(&mut self, reply_to: &ReplyTo, desk: &mut Desk<'_>) {
        let sentence = "too many requests are under way; try again in a moment";
        self.reject("busy", sentence, reply_to, desk);
    }

    /// A worker has answered, or has not.
    pub(super) fn on_answered(&mut self, outcome: &Answered, desk: &mut Desk<'_>) {
        let Some(speech) = self.speaker.speech_mut() else {
            return;
        };
        speech.asking = speech.asking.saturating_sub(1);
        let read = match &outcome.answered {
            Ok(bytes) => serde_json::from_slice::<&RawValue>(bytes)
                .map_err(|_| "the answer is not JSON".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let message = read.as_ref().err().map(|why| {
            desk.node.telemetry.client_error("unanswered");
            let request = &outcome.name;
            tracing::debug!(request, why, "a client's request was not answered");
            format!("{request} cannot be done at the moment: {why}")
        });
        let report = Report {
            kind: "answer",
            request: &outcome.name,
            ok: message.is_none(),
            data: read.ok(),
            message,
        };
        let about = Self::about(&self.identity, desk);
        let (speaker, reply_to) = (&self.speaker, &outcome.reply_to);
        let frame = speaker.say_as(Frame::Answer, &report, reply_to, &about);
        let asks = speaker.asks_of_answer(&report, reply_to, &about);
        self.reply(frame, desk);
        self.carry_out(asks, reply_to, desk);
    }
}
