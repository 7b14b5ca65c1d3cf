//! From a message of the stream to an update, trusting only what the server wrote.
//!
//! A publisher can put any `Nats-…` header on its message; the server appends its own value behind it
//! (measured on nats-server 2.15), so the last value counts and the first never does. What no header can
//! protect is a message that did not come through the stream: nobody but the server may be allowed to
//! publish under the live prefix.
//!
//! Invariant: a message that cannot be read costs no other one; neither does one that makes the reading panic.

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_LAST_SEQUENCE, NATS_SEQUENCE, NATS_STREAM, NATS_SUBJECT, NATS_TIME_STAMP,
};
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use relay_core::moment::WallTime;
use relay_core::position::Seq;

use crate::poison;
use crate::seam::{First, Incoming, What};
use crate::subject::{Address, SubjectError, Subjects};

/// On an ending that a relay has stored once more: the number and the time that it had first. A worker may write it
/// too; what it says is believed of an ending alone, and makes that one older, not newer.
pub(super) const FIRST: &str = "Relay-First";

/// On a message the server wrote when a subject's last message expired or was removed.
const MARKER: &str = "Nats-Marker-Reason";

/// One message of the stream.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) subject: String,
    pub(super) seq: Seq,
    /// `None` if it says nothing about a job: the marker of an expired milestone, or a subject that is
    /// not one of a job's.
    pub(super) update: Option<Incoming>,
}

impl Stored {
    pub(super) fn bytes(&self) -> usize {
        self.subject.len()
            + self
                .update
                .as_ref()
                .map_or(0, |update| update.payload.len())
    }

    fn standing_first(mut self, first: Option<First>) -> Self {
        if let Some(update) = &mut self.update {
            update.first = first;
        }
        self
    }

    pub(super) fn is_state(&self) -> bool {
        let what = self.update.as_ref().map(|update| &update.what);
        matches!(what, Some(What::State | What::Gone))
    }
}

/// Why a message is not an update; the label counts it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Flaw {
    #[error(
        "the message was published under the live prefix, where only the stream may publish; publish under the prefix"
    )]
    NotFromStream,
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error("reading it panicked")]
    Panicked,
}

impl Flaw {
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::NotFromStream => "not_from_stream",
            Self::Subject(error) => error.code(),
            Self::Panicked => poison::PANICKED,
        }
    }
}

/// The stream's number of a live message, if the stream wrote one.
pub(super) fn live_seq(stream: &str, message: &async_nats::Message) -> Result<Seq, Flaw> {
    let seq = poison::read(&message.subject, None, || {
        let headers = message.headers.as_ref()?;
        let from = headers.get_last(NATS_STREAM)?;
        (from.as_str() == stream)
            .then(|| sequence(headers))
            .flatten()
    });
    seq.ok_or(Flaw::Panicked)?.ok_or(Flaw::NotFromStream)
}

/// A republished message. The job is read from its subject alone. `Ok(None)`: nothing about a job.
pub(super) fn live(
    subjects: &Subjects,
    seq: Seq,
    message: &async_nats::Message,
) -> Result<Option<Incoming>, Flaw> {
    let update = poison::read(&message.subject, Some(seq), || {
        let headers = message.headers.as_ref().ok_or(Flaw::NotFromStream)?;
        let stored_at = time(headers).ok_or(Flaw::NotFromStream)?;
        let address = subjects.parse_live(&message.subject)?;
        #[cfg(test)]
        poison::fault("panics-when-decoded", address.job.id.as_str());
        let previous = number(headers, NATS_LAST_SEQUENCE).map(Seq::new);
        let is_marker = is_marker(headers, &message.payload);
        let first = first(headers, seq);
        let payload = message.payload.clone();
        let update = update(address, is_marker, payload, seq, stored_at);
        Ok(update.map(|update| Incoming {
            previous,
            first,
            ..update
        }))
    });
    update.unwrap_or(Err(Flaw::Panicked))
}

/// A message of a direct get's answer.
pub(super) fn direct(subjects: &Subjects, message: async_nats::Message) -> Option<Stored> {
    let headers = message.headers.as_ref()?;
    let subject = headers.get_last(NATS_SUBJECT)?.as_str();
    let seq = sequence(headers)?;
    let read = poison::read(&subject, Some(seq), || {
        let stored_at = time(headers)?;
        let is_marker = is_marker(headers, &message.payload);
        let payload = message.payload.clone();
        let stored = stored(subjects, subject, is_marker, payload, seq, stored_at);
        Some(stored.standing_first(first(headers, seq)))
    });
    read.flatten()
}

/// A message as the leader gives it.
pub(super) fn from_leader(subjects: &Subjects, message: StreamMessage) -> Stored {
    let seq = Seq::new(message.sequence);
    let read = poison::read(&message.subject, Some(seq), || {
        let micros = message.time.unix_timestamp_nanos() / 1000;
        // As from a direct get, a message whose time cannot be read says nothing.
        let stored_at = i64::try_from(micros).ok().map(WallTime::from_unix_micros)?;
        let is_marker = is_marker(&message.headers, &message.payload);
        let payload = message.payload.clone();
        let stored = stored(
            subjects,
            &message.subject,
            is_marker,
            payload,
            seq,
            stored_at,
        );
        Some(stored.standing_first(first(&message.headers, seq)))
    });
    read.flatten().unwrap_or_else(|| Stored {
        subject: message.subject.to_string(),
        seq,
        update: None,
    })
}

fn stored(
    subjects: &Subjects,
    subject: &str,
    is_marker: bool,
    payload: Bytes,
    seq: Seq,
    stored_at: WallTime,
) -> Stored {
    let address = subjects.parse(subject).ok();
    #[cfg(test)]
    if let Some(address) = &address {
        poison::fault("panics-when-decoded", address.job.id.as_str());
    }
    let update = address.and_then(|address| update(address, is_marker, payload, seq, stored_at));
    Stored {
        subject: subject.to_owned(),
        seq,
        update,
    }
}

fn update(
    address: Address,
    is_marker: bool,
    payload: Bytes,
    seq: Seq,
    stored_at: WallTime,
) -> Option<Incoming> {
    let what = match (is_marker, address.what) {
        (false, what) => what,
        (true, What::State | What::Gone) => What::Gone,
        // A milestone that expired says nothing about its job.
        (true, What::Milestone(_)) => return None,
    };
    Some(Incoming {
        job: address.job,
        what,
        payload,
        seq,
        previous: None,
        stored_at,
        first: None,
    })
}

fn is_marker(headers: &HeaderMap, payload: &Bytes) -> bool {
    payload.is_empty() && headers.get_last(MARKER).is_some()
}

/// The header [`FIRST`] as it is written: the number, and the time in microseconds since 1970.
pub(super) fn first_text(first: &First) -> String {
    format!("{} {}", first.seq, first.stored_at.as_unix_micros())
}

fn first(headers: &HeaderMap, seq: Seq) -> Option<First> {
    let (number, time) = headers.get_last(FIRST)?.as_str().split_once(' ')?;
    let first = First {
        seq: Seq::new(number.parse().ok()?),
        stored_at: WallTime::from_unix_micros(time.parse().ok()?),
    };
    (Seq::ZERO < first.seq && first.seq < seq).then_some(first)
}

fn time(headers: &HeaderMap) -> Option<WallTime> {
    WallTime::parse_rfc3339(headers.get_last(NATS_TIME_STAMP)?.as_str())
}

/// The message's number in the stream. A server counts from 1, and none has come to the end.
fn sequence(headers: &HeaderMap) -> Option<Seq> {
    let seq = number(headers, NATS_SEQUENCE).map(Seq::new)?;
    (Seq::ZERO < seq && seq < Seq::MAX).then_some(seq)
}

pub(super) fn number(headers: &HeaderMap, name: async_nats::HeaderName) -> Option<u64> {
    headers.get_last(name)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(
        subject: &str,
        headers: &[(&str, &str)],
        payload: &'static str,
    ) -> async_nats::Message {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        async_nats::Message {
            subject: subject.into(),
            reply: None,
            payload: payload.into(),
            headers: Some(map),
            status: None,
            description: None,
            length: 0,
        }
    }

    const AT: (&str, &str) = ("Nats-Time-Stamp", "2026-11-21T10:00:00.123456789Z");

    #[test]
    fn of_each_header_the_last_value_counts() {
        let subjects = Subjects::new("progress", "live").unwrap();
        let message = message(
            "live.progress.u.j.state",
            &[
                ("Nats-Stream", "EVIL"),
                ("Nats-Sequence", "99999"),
                ("Nats-Last-Sequence", "99998"),
                ("Nats-Subject", "progress.evil.evil.state"),
                ("Nats-Time-Stamp", "1999-01-01T00:00:00Z"),
                ("Nats-Stream", "PROGRESS"),
                ("Nats-Sequence", "6"),
                ("Nats-Last-Sequence", "4"),
                ("Nats-Subject", "progress.u.j.state"),
                AT,
            ],
            "{}",
        );
        let seq = live_seq("PROGRESS", &message).unwrap();
        let update = live(&subjects, seq, &message).unwrap().unwrap();
        assert_eq!(
            (update.seq, update.previous),
            (Seq::new(6), Some(Seq::new(4)))
        );
        assert_eq!(update.job.to_string(), "u/j");
        let stored_at = update.stored_at.to_rfc3339();
        assert_eq!(stored_at.as_deref(), Some("2026-11-21T10:00:00.123Z"));
        let stored = direct(&subjects, message).unwrap();
        assert_eq!(
            (stored.seq.get(), &*stored.subject),
            (6, "progress.u.j.state")
        );
    }

    #[test]
    fn a_message_without_the_streams_headers_is_none_of_its() {
        let none = message("live.progress.u.j.state", &[], "{}");
        assert!(live_seq("PROGRESS", &none).is_err());
        let other = message(
            "x",
            &[("Nats-Stream", "OTHER"), ("Nats-Sequence", "1")],
            "{}",
        );
        assert!(live_seq("PROGRESS", &other).is_err());
    }

    #[test]
    fn a_number_that_no_server_gives_is_none() {
        for forged in ["0", "18446744073709551615", "-1", "x", ""] {
            let headers = [("Nats-Stream", "PROGRESS"), ("Nats-Sequence", forged)];
            let forged = message("live.progress.u.j.state", &headers, "{}");
            assert!(live_seq("PROGRESS", &forged).is_err());
        }
    }

    #[test]
    fn where_an_ending_stood_first_is_read_as_it_is_written_and_never_ahead_of_itself() {
        let subjects = Subjects::new("progress", "live").unwrap();
        let first = First {
            seq: Seq::new(3),
            stored_at: WallTime::parse_rfc3339("2026-11-21T09:00:00Z").unwrap(),
        };
        let read = |text: &str| {
            let message = message("live.progress.u.j.state", &[AT, (FIRST, text)], "{}");
            live(&subjects, Seq::new(7), &message)
                .unwrap()
                .unwrap()
                .first
        };
        assert_eq!(read(&first_text(&first)), Some(first));
        for bad in [
            "",
            "3",
            "3 x",
            "7 1",
            "0 1",
            "-1 1",
            "3 1 1",
            "3 99999999999999999999",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_message_that_makes_the_decoding_panic_is_skipped() {
        let subjects = Subjects::new("progress", "live").unwrap();
        let live_message = message("live.progress.u.panics-when-decoded.state", &[AT], "{}");
        let flaw = live(&subjects, Seq::new(7), &live_message).unwrap_err();
        assert_eq!(flaw.label(), "panicked");
        let subject = "progress.u.panics-when-decoded.state";
        let headers = [AT, ("Nats-Sequence", "7"), ("Nats-Subject", subject)];
        assert!(direct(&subjects, message("_INBOX.x", &headers, "{}")).is_none());
        let from_leader = from_leader(
            &subjects,
            StreamMessage {
                subject: subject.into(),
                sequence: 7,
                headers: HeaderMap::new(),
                payload: "{}".into(),
                time: time::OffsetDateTime::UNIX_EPOCH,
            },
        );
        assert_eq!(from_leader.seq, Seq::new(7));
        assert!(from_leader.update.is_none());
    }

    #[test]
    fn an_expiry_marker_means_gone_for_a_state_and_nothing_for_a_milestone() {
        let subjects = Subjects::new("progress", "live").unwrap();
        let headers = [AT, (MARKER, "MaxAge")];
        let what = |subject: &str, payload| {
            let update =
                live(&subjects, Seq::new(1), &message(subject, &headers, payload)).unwrap();
            update.map(|update| update.what)
        };
        assert_eq!(what("live.progress.u.j.state", ""), Some(What::Gone));
        assert_eq!(what("live.progress.u.j.clip", ""), None);
        // Not a marker: a server's has no body.
        assert_eq!(what("live.progress.u.j.state", "{}"), Some(What::State));
    }
}
