//! Updates put into the stream, and what the stream's answer to one means.
//!
//! A request that comes again is recognised by its stamp: the id is the message's `Nats-Msg-Id`, and the digest of
//! its body is a header of its own. When the stream says that it has such a message, the message is looked into: ids
//! are one name space for all who publish, over NATS too, and only the same request counts as the same.
//!
//! Invariant: what is answered with a number is stored under it.

use async_nats::HeaderMap;
use async_nats::header::{
    HeaderName, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID,
    NATS_MESSAGE_TTL, NATS_ROLLUP,
};
use relay_core::job::Finality;
use relay_core::position::Seq;
use serde::Deserialize;

use super::JetStreamSettings;
use super::ask::{AskError, Asker};
use super::decode::{self, FIRST};
use crate::clock::Clock;
use crate::seam::{Outgoing, Rejection, Reused, Stamp, StoreError, What};

/// The digest of the body a message was published with; of a patch, the patch's own.
const CONTENT: HeaderName = HeaderName::from_static("Relay-Content");

#[derive(Debug, Deserialize)]
struct Stored {
    seq: Seq,
    #[serde(default)]
    duplicate: bool,
}

/// What lies under the number of a message that has the id already.
enum Earlier {
    /// The same request.
    Same,
    /// Another request of the same caller.
    Other,
    /// Somebody else's message.
    Foreign,
    Gone,
}

/// Publishes one update on `subject`, and answers with its number.
pub(super) async fn publish(
    asker: &Asker,
    settings: &JetStreamSettings,
    subject: String,
    outgoing: Outgoing,
) -> Result<Seq, StoreError> {
    let Some(stamp) = outgoing.stamp else {
        let stored = send(asker, settings, &subject, &outgoing, &fresh_id()).await?;
        return Ok(stored.seq);
    };
    let stored = send(asker, settings, &subject, &outgoing, &id_of(stamp)).await?;
    if !stored.duplicate {
        return Ok(stored.seq);
    }
    match earlier(asker, stored.seq, &subject, stamp).await? {
        Earlier::Same => Ok(stored.seq),
        Earlier::Other => Err(Reused::OtherBody.into()),
        Earlier::Gone => Err(Reused::NoLongerStored.into()),
        Earlier::Foreign => {
            tracing::warn!(%subject, seq = stored.seq.get(), "somebody published another update over NATS with the message id of this one; it is stored under another id");
            let stored = send(asker, settings, &subject, &outgoing, &fresh_id()).await?;
            Ok(stored.seq)
        }
    }
}

/// The client may send twice what was under way when the connection was lost.
fn fresh_id() -> String {
    format!("relay-{:032x}", fastrand::u128(..))
}

fn id_of(stamp: Stamp) -> String {
    format!("relay-key-{:032x}", stamp.id)
}

async fn send(
    asker: &Asker,
    settings: &JetStreamSettings,
    subject: &str,
    outgoing: &Outgoing,
    id: &str,
) -> Result<Stored, StoreError> {
    let headers = headers(settings, outgoing, id);
    let sent = asker.publish(subject.to_owned(), headers, outgoing.payload.clone());
    sent.await.map_err(meaning)
}

fn headers(settings: &JetStreamSettings, outgoing: &Outgoing, id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_STREAM, settings.stream.as_str());
    headers.insert(NATS_MESSAGE_ID, id);
    if let Some(stamp) = outgoing.stamp {
        headers.insert(CONTENT, content(stamp));
    }
    if let Some(last) = outgoing.expected_last {
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last.to_string());
    }
    if outgoing.finality != Finality::Open && outgoing.what == What::State {
        // Without the roll-up, the state before the ending would be the last again when the ending
        // expires: a finished job would come back as running.
        headers.insert(NATS_ROLLUP, "sub");
    }
    if let Some(first) = &outgoing.first {
        headers.insert(FIRST, decode::first_text(first));
    }
    // A removal is kept for as long as the stream keeps anything: milestones from before it, which it hides, must
    // not outlive it.
    if outgoing.finality == Finality::Ending && outgoing.what == What::State {
        let mut ttl = settings.terminal_ttl;
        if let Some(first) = &outgoing.first {
            // It stands no longer than it would have.
            ttl = ttl.saturating_sub(Clock::start().age_of(first.stored_at));
        }
        headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)));
    }
    headers
}

fn content(stamp: Stamp) -> String {
    format!("{:032x}", stamp.content)
}

async fn earlier(
    asker: &Asker,
    seq: Seq,
    subject: &str,
    stamp: Stamp,
) -> Result<Earlier, StoreError> {
    let Some(message) = asker.leader_at(seq).await? else {
        return Ok(Earlier::Gone);
    };
    if message.subject.as_str() != subject {
        return Ok(Earlier::Foreign);
    }
    let said = message.headers.get_last(CONTENT);
    Ok(match said.map(async_nats::HeaderValue::as_str) {
        None => Earlier::Foreign,
        Some(said) if said == content(stamp) => Earlier::Same,
        Some(_) => Earlier::Other,
    })
}

/// What becomes of an update that the stream did not store: passing, final, or a conflict.
fn meaning(error: AskError) -> StoreError {
    let AskError::Refused { code, text, .. } = &error else {
        return error.into();
    };
    let words = || error.to_string();
    match code {
        // The message, or its headers, exceed what the stream accepts.
        10054 | 10097 => Rejection::TooLarge { words: words() }.into(),
        // The subject's last number is not the expected one.
        10071 | 10164 => StoreError::Conflict,
        // The stream with `discard: new` is full; any other failure to store passes.
        10077 if text.contains("maximum") => Rejection::Full { words: words() }.into(),
        // The account, the server or its disk has no room.
        10002 | 10023 | 10028 | 10047 | 10053 | 10120 | 10122 => {
            Rejection::Full { words: words() }.into()
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64, status: u64, text: &str) -> StoreError {
        meaning(AskError::refused(
            "publishing",
            status,
            code,
            text.to_owned(),
        ))
    }

    #[test]
    fn every_error_a_publication_can_get_is_passing_or_final() {
        for (code, status, text) in [
            (10008, 503, "JetStream system temporarily unavailable"),
            (10009, 500, "JetStream cluster can not handle request"),
            (10039, 503, "JetStream not enabled for account"),
            (10077, 503, "write /data/1.blk: no space left on device"),
            (10118, 500, "stream is offline"),
            (10158, 409, "duplicate message id is in process"),
            (
                10163,
                503,
                "expected last sequence per subject temporarily unavailable",
            ),
            (10167, 429, "too many requests"),
            (10194, 500, "stream is offline: unsupported"),
        ] {
            let meant = refused(code, status, text);
            assert!(
                matches!(meant, StoreError::Unreachable(_)),
                "{code}: {meant}"
            );
        }
        for (code, status, text) in [
            (10056, 400, "stream name in subject does not match request"),
            (10060, 400, "expected stream does not match"),
            (10109, 400, "invalid operation on sealed stream"),
            (10111, 500, "rollup not permitted"),
            (10165, 400, "invalid per-message TTL"),
            (10166, 400, "per-message TTL is disabled"),
            (10169, 400, "message counter increment is missing"),
            (19999, 400, "something new"),
        ] {
            let meant = refused(code, status, text);
            assert!(
                matches!(&meant, StoreError::Refused(Rejection::NotTaken(_))),
                "{code}: {meant}"
            );
            assert!(meant.to_string().contains(text), "{meant}");
        }
        for (code, status, text) in [
            (10002, 400, "resource limits exceeded for account"),
            (10023, 503, "insufficient resources"),
            (10047, 500, "insufficient storage resources available"),
            (10077, 503, "maximum messages exceeded"),
            (10077, 503, "maximum bytes exceeded"),
            (10077, 503, "maximum messages per subject exceeded"),
        ] {
            let meant = refused(code, status, text);
            assert!(
                matches!(&meant, StoreError::Refused(Rejection::Full { .. })),
                "{code}: {meant}"
            );
        }
        for code in [10054, 10097] {
            let meant = refused(code, 400, "message size exceeds maximum allowed");
            assert!(
                matches!(&meant, StoreError::Refused(Rejection::TooLarge { .. })),
                "{code}: {meant}"
            );
        }
        assert!(matches!(refused(10164, 400, ""), StoreError::Conflict));
    }
}
