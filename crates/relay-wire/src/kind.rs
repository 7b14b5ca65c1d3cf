//! What can be said to a client, whatever the words.
//!
//! The native protocol and every dialect have their own shape for each; neither has to know the other for it.

/// What a frame is about; also its name on the native wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frame {
    /// A job's complete state.
    State,
    /// A named event.
    Milestone,
    /// The job left history.
    Gone,
    /// Milestones are lost.
    Gap,
    /// First on a connection.
    Hello,
    /// A token was accepted.
    Authenticated,
    /// A subscription stands.
    Subscribed,
    /// Nothing is known of the job that a subscription is about. Natively `subscribed` says it.
    Unknown,
    /// A subscription ended as asked.
    Unsubscribed,
    /// Something was not done.
    Error,
    /// The relay is going away.
    ServerShutdown,
    /// Counts over the jobs of a topic.
    Aggregate,
    /// The connection is judged differently from now on.
    Quality,
    /// A question that only shows whether the client answers.
    Check,
    /// What a worker answered to a client's request.
    Answer,
}

impl Frame {
    /// The `type` of the native frame, and a dialect's key in `[frames]`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Milestone => "milestone",
            Self::Gone => "gone",
            Self::Gap => "gap",
            Self::Hello => "hello",
            Self::Authenticated => "authenticated",
            Self::Subscribed => "subscribed",
            Self::Unknown => "unknown",
            Self::Unsubscribed => "unsubscribed",
            Self::Error => "error",
            Self::ServerShutdown => "server_shutdown",
            Self::Aggregate => "aggregate",
            Self::Quality => "quality",
            Self::Check => "check",
            Self::Answer => "answer",
        }
    }
}
