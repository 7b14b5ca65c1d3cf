//! Questions of clients that are for workers: sent to the subject the dialect names, answered when a
//! worker answers.
//!
//! The shard waits for no answer: each question is a task of its own, and what comes of it comes in as any
//! other event of the shard does.
//!
//! Invariant: as many questions are under way as the shard and the connection may have, and no more.

use bytes::Bytes;
use relay_bus::inbox::ConnectionId;
use relay_bus::seam::StoreError;
use relay_wire::Frame;
use relay_wire::dialect::{Input, Instruction};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::connection::{Connection, Transport};
use super::speech::Speech;
use super::{Shard, State};

/// Questions of one shard's clients under way.
const MAX_ASKED: usize = 256;
/// Questions of one connection under way.
const MAX_OWN: u8 = 4;

/// What came of a question.
#[derive(Debug)]
pub(super) struct Answer {
    connection: ConnectionId,
    name: String,
    /// What the client is to know the answer by, if it gave something.
    id: Option<Value>,
    answered: Result<Bytes, StoreError>,
}

/// What a dialect's mapping is told of it. The worker's answer is passed on as it came.
#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    request: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// A shard's questions.
#[derive(Debug)]
pub(super) struct Asking {
    /// Dropped with the shard, which ends the tasks.
    tasks: JoinSet<()>,
    /// Where tasks put answers; has room for all that may be under way, so none waits.
    answers: mpsc::Sender<Answer>,
}

impl Asking {
    /// No questions yet, and where their answers will come out.
    pub(super) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (answers, received) = mpsc::channel(MAX_ASKED);
        let tasks = JoinSet::new();
        (Self { tasks, answers }, received)
    }
}

impl Shard {
    /// Passes a client's question on.
    pub(super) fn ask(
        &self,
        state: &mut State,
        slot: usize,
        (name, data): (&str, Vec<u8>),
        id: Option<&Value>,
    ) {
        let connection = &mut state.connections[slot];
        let Some(speech) = &mut connection.speech else {
            return;
        };
        let Some(request) = speech.dialect().requests.get(name).cloned() else {
            let message = format!("{name} is not for the relay, which only reports progress");
            return self.refuse(state, slot, id, "not_served", &message);
        };
        while state.asking.tasks.try_join_next().is_some() {}
        if speech.asking >= MAX_OWN || state.asking.tasks.len() >= MAX_ASKED {
            let message = "too many requests are under way; try again in a moment";
            return self.refuse(state, slot, id, "busy", message);
        }
        speech.asking += 1;
        let (connection, name, id) = (connection.id, name.to_owned(), id.cloned());
        let (hub, answers) = (self.common.hub.clone(), state.asking.answers.clone());
        state.asking.tasks.spawn_local(async move {
            let asked = hub.ask(request.subject, data.into(), request.timeout);
            let answer = Answer {
                connection,
                name,
                id,
                answered: asked.await,
            };
            // Without a shard nobody is left to be told.
            drop(answers.send(answer).await);
        });
    }

    /// A worker has answered, or has not.
    pub(super) fn on_answer(&self, answer: &Answer) {
        let mut state = self.state.borrow_mut();
        if let Some(slot) = Self::find(&state, answer.connection) {
            self.guarded(&mut state, slot, |shard, state| {
                shard.pass_answer_on(state, slot, answer);
            });
        }
        self.flush_dirty(&mut state, self.clock.now());
    }

    fn pass_answer_on(&self, state: &mut State, slot: usize, answer: &Answer) {
        let connection = &mut state.connections[slot];
        let Some(speech) = &mut connection.speech else {
            return;
        };
        speech.asking = speech.asking.saturating_sub(1);
        let said;
        let outcome = match &answer.answered {
            Ok(bytes) => {
                let read = serde_json::from_slice::<&RawValue>(bytes);
                read.map_err(|_| "the answer is not JSON")
            }
            Err(error) => {
                said = error.to_string();
                Err(said.as_str())
            }
        };
        let message = outcome.as_ref().err().map(|why| {
            self.common.telemetry.client_error("unanswered");
            tracing::debug!(
                request = answer.name,
                why,
                "a client's request was not answered"
            );
            format!("{} cannot be done at the moment: {why}", answer.name)
        });
        let input = Outcome {
            kind: "answer",
            request: &answer.name,
            ok: message.is_none(),
            data: outcome.ok(),
            message,
        };
        let connection = &state.connections[slot];
        let Some(speech) = &connection.speech else {
            return;
        };
        let frame = match connection.transport {
            Transport::SocketIo(_) => {
                self.say_called(connection, Frame::Answer, &input, answer.id.as_ref())
            }
            _ => self.say_foreign(connection, speech, Frame::Answer, &input),
        };
        let now = self.clock.now();
        let instructions = self.instructed(connection, speech, &input);
        self.reply(state, slot, frame);
        for instruction in instructions {
            if Self::is_open(state, slot) {
                self.carry_out(state, slot, instruction, answer.id.as_ref(), now);
            }
        }
    }

    /// What a worker's answer asks for besides being told.
    fn instructed(
        &self,
        connection: &Connection,
        speech: &Speech,
        outcome: &Outcome<'_>,
    ) -> Vec<Instruction> {
        let context = self.context(connection, &speech.endpoint, &speech.params);
        match (Input::of(outcome), Input::of(&context)) {
            (Ok(outcome), Ok(relay)) => speech.dialect().answered(&outcome, &relay),
            _ => Vec::new(),
        }
    }
}
