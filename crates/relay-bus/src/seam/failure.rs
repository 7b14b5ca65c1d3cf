//! Why a bus did not do what it was asked: it was not there, or it would not.
//!
//! Knows reasons, and not who met them.
//!
//! Invariant: what may be different soon is [`Unreachable`], and what will not be is a [`Rejection`].

use std::time::Duration;

/// Why a mode could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bus is not reachable now, or did not answer in time.
    #[error("the bus is not reachable: {0}")]
    Unreachable(#[source] Unreachable),
    /// The bus answered, and rejected what was asked.
    #[error("the bus rejected the request: {0}")]
    Refused(#[source] Rejection),
    /// The caller's key stands for another request.
    #[error(transparent)]
    Reused(#[from] Reused),
    /// Somebody else published to the subject first (`expected_last`).
    #[error("the job was updated by somebody else at the same time")]
    Conflict,
    /// The answer would be larger than a node may hold.
    #[error("more than {0} jobs match")]
    TooMany(usize),
}

/// Why the bus is not reachable; it may be soon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unreachable {
    /// It never was, since the relay started.
    #[error("the relay has not connected to NATS yet")]
    NotYet,
    /// It was, or cannot be.
    #[error("{reason}")]
    Away {
        /// What the connection, or its reader, says of that.
        reason: String,
    },
    /// It is slower than anybody waits.
    #[error("the stream took longer than {} s", .limit.as_secs())]
    Slow {
        /// How long was waited.
        limit: Duration,
    },
    /// What was published did not come by again, so nobody knows its number.
    #[error("NATS did not hand back what was published")]
    NotHandedBack,
    /// A question was not answered, or not with an answer.
    #[error("{0}")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why the bus rejects something; asking again will not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// Nobody may publish that a job is gone.
    #[error("that a job is gone is for the bus to say")]
    Gone,
    /// It is larger than the server or the stream accepts.
    #[error("{words}")]
    TooLarge {
        /// In their words.
        words: String,
    },
    /// The stream is full, and is set up to reject what is new rather than to drop what is old.
    #[error("{words}")]
    Full {
        /// In the server's words.
        words: String,
    },
    /// This bus carries no questions.
    #[error("this bus cannot carry requests, so nothing answers {subject}")]
    NoQuestions {
        /// Where the question should have gone.
        subject: String,
    },
    /// There is nobody to answer the question.
    #[error("nobody listens on {subject}")]
    NoListener {
        /// Where it went.
        subject: String,
    },
    /// The server does not let this user.
    #[error("{refusal}")]
    Forbidden {
        /// In the server's words.
        refusal: String,
    },
    /// The client or the stream does not take it.
    #[error("{0}")]
    NotTaken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a key that was used before does not count for this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reused {
    /// Then with another body.
    #[error("this Idempotency-Key was used with another body; use a new key for a new request")]
    OtherBody,
    /// What was published then is not stored any more, so nobody can tell whether it was this.
    #[error(
        "this Idempotency-Key was used for an update that the stream no longer holds; use a new key for a new request"
    )]
    NoLongerStored,
}

impl From<Unreachable> for StoreError {
    fn from(unreachable: Unreachable) -> Self {
        Self::Unreachable(unreachable)
    }
}

impl From<Rejection> for StoreError {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection)
    }
}
