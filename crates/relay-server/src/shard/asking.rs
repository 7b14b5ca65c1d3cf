//! What a shard's clients wait for from elsewhere: answers of workers, and keys that tokens are checked with.
//!
//! The shard waits for neither: each is a task of its own, and what comes of it comes in as any other event of the
//! shard does. Whose it is, and what is made of it, is not known here.
//!
//! Invariant: as many are under way as a shard may have, and no more.

use std::sync::Arc;

use bytes::Bytes;
use relay_bus::hub::Hub;
use relay_bus::inbox::ConnectionId;
use relay_bus::seam::StoreError;
use relay_wire::dialect::Request;
use relay_wire::exchange::ReplyTo;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::identity::Later;
use crate::refused::Refused;

/// What one shard's clients wait for.
const MAX_ASKED: usize = 256;

/// A question on its way to a worker.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) connection: ConnectionId,
    /// What the client calls it.
    pub(super) name: String,
    /// Where the answer goes.
    pub(super) reply_to: ReplyTo,
    /// Where and how it is sent.
    pub(super) request: Request,
    /// What is sent.
    pub(super) data: Vec<u8>,
}

/// A message with a token that cannot be looked at yet.
#[derive(Debug)]
pub(super) enum Shown {
    /// `auth`, and where the answer goes.
    Auth(String, ReplyTo),
    /// A client of Socket.IO joins a namespace.
    Connect(String, Option<Value>),
}

/// What came of something that was waited for.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) connection: ConnectionId,
    pub(super) came: Came,
}

/// What came.
#[derive(Debug)]
pub(super) enum Came {
    /// An answer to a question, or none.
    Answer(Answered),
    /// The token in a message can be looked at now, or cannot.
    Token(Shown, Result<(), Refused>),
}

/// What came of a question.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) name: String,
    pub(super) reply_to: ReplyTo,
    pub(super) answered: Result<Bytes, StoreError>,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Asking {
    /// Dropped with the shard, which ends the tasks.
    tasks: JoinSet<()>,
    /// Where tasks put outcomes; has room for all that may be under way, so none waits.
    outcomes: mpsc::Sender<Outcome>,
}

impl Asking {
    /// No questions yet, and where their outcomes will come out.
    pub(super) fn new() -> (Self, mpsc::Receiver<Outcome>) {
        let (outcomes, received) = mpsc::channel(MAX_ASKED);
        let tasks = JoinSet::new();
        (Self { tasks, outcomes }, received)
    }

    /// Sends a question. False if too many are under way.
    pub(super) fn ask(&mut self, question: Question, hub: &Arc<Hub>) -> bool {
        if !self.has_room() {
            return false;
        }
        let (hub, outcomes) = (hub.clone(), self.outcomes.clone());
        self.tasks.spawn_local(async move {
            let Question {
                connection,
                name,
                reply_to,
                request,
                data,
            } = question;
            let asked = hub.ask(request.subject, data.into(), request.timeout);
            let answered = Answered {
                name,
                reply_to,
                answered: asked.await,
            };
            let came = Came::Answer(answered);
            // Without a shard nobody is left to be told.
            drop(outcomes.send(Outcome { connection, came }).await);
        });
        true
    }

    /// Waits until the token in a message can be looked at. Gives the message back if too much is under way.
    pub(super) fn prepare(
        &mut self,
        connection: ConnectionId,
        later: Later,
        shown: Shown,
    ) -> Result<(), Shown> {
        if !self.has_room() {
            return Err(shown);
        }
        let outcomes = self.outcomes.clone();
        self.tasks.spawn_local(async move {
            let came = Came::Token(shown, later.news().await.map(|_| ()));
            // Without a shard nobody is left to be told.
            drop(outcomes.send(Outcome { connection, came }).await);
        });
        Ok(())
    }

    fn has_room(&mut self) -> bool {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.len() < MAX_ASKED
    }
}
