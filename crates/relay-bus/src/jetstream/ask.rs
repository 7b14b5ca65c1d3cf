//! Questions to the stream: the API, direct gets from any replica, single gets from the leader.
//!
//! Knows the wire of each question and nothing of what it is asked for. Replicas answer direct gets from
//! what they have, which may be old: whoever asks checks.
//!
//! Invariant: every question has a time limit.

use std::time::Duration;

use async_nats::client::Request;
use async_nats::header::{HeaderName, NATS_EXPECTED_STREAM, NATS_LAST_SEQUENCE, NATS_SEQUENCE};
use async_nats::jetstream::stream::RawMessageErrorKind;
use async_nats::{HeaderMap, Message, RequestErrorKind, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use relay_core::position::Seq;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::decode::number;
use crate::connection::Link;
use crate::seam::{Rejection, StoreError, Unreachable};
use crate::subject::PROBE;

/// How long any one question may take.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long a replica may be silent: it may have stopped while requests are still sent to it.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);
const EOB: u16 = 204;
const TOO_MANY: u16 = 413;

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no reply to {what} in time")]
    TimedOut { what: &'static str },
    #[error(
        "no reply to {what}: is JetStream enabled, and does the stream have a leader? If it is in another JetStream domain, set nats.domain"
    )]
    NoResponders { what: &'static str },
    #[error("{refusal}")]
    Forbidden { refusal: String },
    #[error("{what} was rejected: {text} ({code})")]
    Refused {
        what: &'static str,
        /// JetStream's error code.
        code: u64,
        text: String,
        /// Whether it may be different soon.
        passing: bool,
    },
    #[error(
        "{what} was rejected: the message is larger than the NATS server's max_payload, {max_payload} bytes"
    )]
    TooLarge {
        what: &'static str,
        max_payload: usize,
    },
    #[error("could not parse the reply to {what}")]
    Unreadable {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what} could not be sent: {source}")]
    Unsent {
        what: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{what} could not be sent: the connection closed")]
    Closed { what: &'static str },
    #[error("no replica of the stream has caught up with message {at_least}")]
    Stale { at_least: Seq },
}

impl AskError {
    /// The API's, a leader's or a stream's error. Codes say more than the status: many are 500 that pass.
    pub(super) fn refused(what: &'static str, status: u64, code: u64, text: String) -> Self {
        const PASSING: [u64; 6] = [10007, 10009, 10041, 10118, 10158, 10194];
        Self::Refused {
            what,
            code,
            text,
            passing: status == 503 || status == 429 || PASSING.contains(&code),
        }
    }

    fn unsent(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let source = Box::new(source);
        Self::Unsent { what, source }
    }
}

impl From<AskError> for StoreError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused { passing: false, .. } | AskError::Forbidden { .. } => {
                Rejection::NotTaken(error.into()).into()
            }
            AskError::TooLarge { .. } => {
                let words = error.to_string();
                Rejection::TooLarge { words }.into()
            }
            AskError::TimedOut { .. }
            | AskError::NoResponders { .. }
            | AskError::Refused { .. }
            | AskError::Unreadable { .. }
            | AskError::Unsent { .. }
            | AskError::Closed { .. }
            | AskError::Stale { .. } => Unreachable::Unanswered(error.into()).into(),
        }
    }
}

/// A direct get. Without `multi_last` it asks for what follows `seq` on `next_by_subj`.
#[derive(Debug, Default, Serialize)]
pub(super) struct DirectGet<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seq: Option<Seq>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) multi_last: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,
    /// The server stops behind the message that reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_bytes: Option<usize>,
}

/// The answer to a direct get.
#[derive(Debug)]
pub(super) enum DirectAnswer {
    Batch(Batch),
    /// Nothing matches, as far as this replica knows.
    Nothing,
    /// More subjects match than a server answers for at once (1024).
    TooMany,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) messages: Vec<Message>,
    /// How many more match behind these.
    pub(super) pending: u64,
    /// The last number in the batch.
    pub(super) last: Seq,
    /// The last number this replica has; only with `multi_last`.
    pub(super) up_to: Seq,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply<T> {
    Refused { error: Refusal },
    Answer(T),
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Asks one stream over one connection.
#[derive(Debug)]
pub(super) struct Asker {
    link: Link,
    stream: String,
    /// What the API's subjects begin with: `$JS.API`, or another domain's.
    api: String,
    context: async_nats::jetstream::Context,
}

impl Asker {
    pub(super) fn new(link: Link, stream: &str, domain: Option<&str>) -> Self {
        let client = link.client().clone();
        let (api, mut context) = match domain {
            Some(domain) => (
                format!("$JS.{domain}.API"),
                async_nats::jetstream::with_domain(client, domain),
            ),
            None => ("$JS.API".to_owned(), async_nats::jetstream::new(client)),
        };
        context.set_timeout(ASK_LIMIT);
        Self {
            stream: stream.to_owned(),
            api,
            context,
            link,
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Asks the API; `verb` such as `STREAM.INFO` is followed by the stream's name.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        self.api_within(ASK_LIMIT, verb, body).await
    }

    /// The same, for a question that is asked again if there is no leader to answer it.
    pub(super) async fn api_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        verb: &'static str,
        body: &impl Serialize,
    ) -> Result<T, AskError> {
        let body = serde_json::to_vec(body)
            .map_err(|source| AskError::Unreadable { what: verb, source })?;
        let subject = format!("{}.{verb}.{}", self.api, self.stream);
        // With an inbox of its own nothing is left behind in the client when no answer comes.
        let request = Request::new()
            .payload(body.into())
            .inbox(self.link.client().new_inbox());
        self.request(limit, verb, subject, request).await
    }

    /// Publishes and waits for the stream's word that it is stored.
    pub(super) async fn publish<T: DeserializeOwned>(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<T, AskError> {
        let request = Request::new().headers(headers).payload(payload);
        self.request(ASK_LIMIT, "publishing", subject, request)
            .await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        limit: Duration,
        what: &'static str,
        subject: String,
        request: Request,
    ) -> Result<T, AskError> {
        let mark = self.link.refusals();
        let asked = self
            .link
            .client()
            .send_request(subject.clone(), request.timeout(Some(limit)));
        let reply = tokio::time::timeout(limit, asked).await;
        let message = match reply {
            Ok(Ok(message)) => message,
            Err(_) => return Err(self.timed_out(what, mark, &subject)),
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    RequestErrorKind::TimedOut => self.timed_out(what, mark, &subject),
                    RequestErrorKind::NoResponders => AskError::NoResponders { what },
                    RequestErrorKind::MaxPayloadExceeded => AskError::TooLarge {
                        what,
                        max_payload: self.link.client().max_payload(),
                    },
                    RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                        AskError::Unsent {
                            what,
                            source: error.into(),
                        }
                    }
                });
            }
        };
        match serde_json::from_slice(&message.payload) {
            Ok(Reply::Answer(answer)) => Ok(answer),
            Ok(Reply::Refused { error }) => {
                let (status, code) = (error.code, error.err_code);
                Err(AskError::refused(what, status, code, error.description))
            }
            Err(source) => Err(AskError::Unreadable { what, source }),
        }
    }

    /// A server does not answer what it forbids; it says so on the side.
    fn timed_out(&self, what: &'static str, mark: u64, subject: &str) -> AskError {
        match self.link.refusal_since(mark, subject) {
            Some(refusal) => AskError::Forbidden { refusal },
            None => AskError::TimedOut { what },
        }
    }

    /// Which streams capture `subject`, wherever they are, as far as they say so within a time; always takes that
    /// long. A publication that names another stream is stored by none, and each says who it is.
    pub(super) async fn capturing(&self, subject: String, within: Duration) -> Vec<String> {
        #[derive(Deserialize)]
        struct Capturing {
            stream: String,
        }
        let mut streams = Vec::new();
        let asking = async {
            let client = self.link.client();
            let inbox = client.new_inbox();
            let mut replies = client.subscribe(inbox.clone()).await.ok()?;
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_STREAM, PROBE);
            headers.insert(PROBE, "1");
            let asked =
                client.publish_with_reply_and_headers(subject, inbox, headers, Bytes::new());
            asked.await.ok()?;
            while let Some(reply) = replies.next().await {
                let found = serde_json::from_slice::<Capturing>(&reply.payload);
                streams.extend(found.map(|found| found.stream));
            }
            Some(())
        };
        // To run out of time is the ordinary end; after any other there is still the time to wait.
        let deadline = tokio::time::Instant::now() + within;
        drop(tokio::time::timeout_at(deadline, asking).await);
        tokio::time::sleep_until(deadline).await;
        streams
    }

    /// Asks any replica. One that stops answering is given up, whatever it has said so far.
    pub(super) async fn direct(&self, get: &DirectGet<'_>) -> Result<DirectAnswer, AskError> {
        let what = "a direct get";
        let mark = self.link.refusals();
        let body =
            serde_json::to_vec(get).map_err(|source| AskError::Unreadable { what, source })?;
        let client = self.link.client();
        let inbox = client.new_inbox();
        let mut replies = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| AskError::unsent(what, error))?;
        let subject = format!("{}.DIRECT.GET.{}", self.api, self.stream);
        client
            .publish_with_reply(subject.clone(), inbox, body.into())
            .await
            .map_err(|error| AskError::unsent(what, error))?;
        let mut messages = Vec::new();
        loop {
            let next = tokio::time::timeout(SILENCE_LIMIT, replies.next()).await;
            let Some(message) = next.map_err(|_| self.timed_out(what, mark, &subject))? else {
                return Err(AskError::Closed { what });
            };
            let Some(status) = verdict(&message) else {
                messages.push(message);
                continue;
            };
            return match status {
                StatusCode::NOT_FOUND => Ok(DirectAnswer::Nothing),
                StatusCode::NO_RESPONDERS => Err(AskError::NoResponders { what }),
                _ if u16::from(status) == TOO_MANY => Ok(DirectAnswer::TooMany),
                _ if u16::from(status) == EOB => Ok(DirectAnswer::Batch(batch(messages, &message))),
                _ => Err(AskError::Refused {
                    what,
                    code: u16::from(status).into(),
                    text: message.description.unwrap_or_default(),
                    passing: false,
                }),
            };
        }
    }

    /// Asks the leader for the first message from `seq` on that matches, in any number of subjects.
    pub(super) async fn leader_next(
        &self,
        filter: &str,
        seq: Seq,
    ) -> Result<Option<async_nats::jetstream::message::StreamMessage>, AskError> {
        self.leader(|get| get.next_by_subject(filter).sequence(seq.get()))
            .await
    }

    /// Asks the leader for the message of one number.
    pub(super) async fn leader_at(
        &self,
        seq: Seq,
    ) -> Result<Option<async_nats::jetstream::message::StreamMessage>, AskError> {
        self.leader(|get| get.sequence(seq.get())).await
    }

    /// Asks the leader for the last message that matches.
    pub(super) async fn leader_last(
        &self,
        filter: &str,
    ) -> Result<Option<async_nats::jetstream::message::StreamMessage>, AskError> {
        self.leader(|get| get.last_by_subject(filter)).await
    }

    async fn leader(
        &self,
        about: impl FnOnce(LeaderGet) -> LeaderGet,
    ) -> Result<Option<async_nats::jetstream::message::StreamMessage>, AskError> {
        let what = "a get from the leader";
        let mark = self.link.refusals();
        let asked = async {
            // No request goes out for the handle.
            let stream = self.context.get_stream_no_info(&self.stream).await;
            let stream = stream.map_err(|error| AskError::unsent(what, error))?;
            about(stream.raw_message_builder())
                .send()
                .await
                .map_or_else(
                    |error| match error.kind() {
                        RawMessageErrorKind::NoMessageFound => Ok(None),
                        RawMessageErrorKind::JetStream(refused) => {
                            let status = refused.code().try_into().unwrap_or_default();
                            let code = refused.error_code().0;
                            Err(AskError::refused(what, status, code, refused.to_string()))
                        }
                        RawMessageErrorKind::InvalidSubject | RawMessageErrorKind::Other => {
                            Err(AskError::unsent(what, error))
                        }
                    },
                    |message| Ok(Some(message)),
                )
        };
        match tokio::time::timeout(ASK_LIMIT, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                let subject = format!("{}.STREAM.MSG.GET.{}", self.api, self.stream);
                Err(self.timed_out(what, mark, &subject))
            }
        }
    }
}

type LeaderGet = async_nats::jetstream::stream::RawMessageBuilder;

/// The server's last word on a direct get. A stored message may carry a status line too, if its
/// publisher wrote one; but it carries the number the server put behind it.
fn verdict(message: &Message) -> Option<StatusCode> {
    let is_stored = message
        .headers
        .as_ref()
        .is_some_and(|headers| headers.get_last(NATS_SEQUENCE).is_some());
    message.status.filter(|_| !is_stored)
}

fn batch(messages: Vec<Message>, end: &Message) -> Batch {
    let number = |name| {
        end.headers
            .as_ref()
            .and_then(|headers| number(headers, name))
            .unwrap_or(0)
    };
    Batch {
        messages,
        pending: number(HeaderName::from_static("Nats-Num-Pending")),
        last: Seq::new(number(NATS_LAST_SEQUENCE)),
        up_to: Seq::new(number(HeaderName::from_static("Nats-UpTo-Sequence"))),
    }
}
