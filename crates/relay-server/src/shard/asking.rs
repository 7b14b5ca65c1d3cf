//! Questions of clients that are under way to workers.
//!
//! The shard waits for no answer: each question is a task of its own, and what comes of it comes in as any
//! other event of the shard does. Whose question it is, and what is said of the answer, is not known here.
//!
//! Invariant: as many questions are under way as a shard may have, and no more.

use std::sync::Arc;

use bytes::Bytes;
use relay_bus::hub::Hub;
use relay_bus::inbox::ConnectionId;
use relay_bus::seam::StoreError;
use relay_wire::dialect::Request;
use relay_wire::exchange::ReplyTo;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Questions of one shard's clients under way.
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

/// What came of a question.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) connection: ConnectionId,
    pub(super) name: String,
    pub(super) reply_to: ReplyTo,
    pub(super) answered: Result<Bytes, StoreError>,
}

/// A shard's questions.
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
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() >= MAX_ASKED {
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
            let outcome = Outcome {
                connection,
                name,
                reply_to,
                answered: asked.await,
            };
            // Without a shard nobody is left to be told.
            drop(outcomes.send(outcome).await);
        });
        true
    }
}
