//! Bodies of requests, read up to a bound: of each, of all that one user or one address sends, and of all there are.
//!
//! What is in a body, and in which shape its refusal is said, is the caller's affair.
//!
//! Invariant: no byte of a body is kept that is not counted in the node's ledger, until the request is dealt with.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use relay_core::limits::LimitRefusal;
use tokio::time::timeout;

use crate::admission::Share;

/// How long a client may take to send a body.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is longer than it may be.
    TooLarge,
    /// It ended before it was complete.
    BrokeOff,
    /// It took too long.
    Slow,
    /// Too much is being received.
    Over(LimitRefusal),
}

/// Reads a body of at most `limit` bytes, counted in `share`.
///
/// # Errors
/// Why it was not read to its end.
pub(crate) async fn read<B>(body: B, limit: usize, share: &mut Share) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes> + Unpin,
{
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    if body.size_hint().lower() > most {
        return Err(Unread::TooLarge);
    }
    let reading = read_frames(body, limit, share);
    timeout(BODY_WAIT, reading)
        .await
        .unwrap_or(Err(Unread::Slow))
}

async fn read_frames<B>(mut body: B, limit: usize, share: &mut Share) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unread::BrokeOff)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + all.len() + data.len() > limit {
            return Err(Unread::TooLarge);
        }
        let more = u64::try_from(data.len()).unwrap_or(u64::MAX);
        share.grow(more).map_err(Unread::Over)?;
        // Most bodies come in one piece, which is not copied.
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        all.extend_from_slice(&data);
    }
    match all.is_empty() {
        true => Ok(first),
        false => Ok(all.freeze()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use relay_core::limits::{Bounds, LedgerLimits, Resource, Scope};

    use super::*;
    use crate::admission::Admissions;
    use crate::proxies::Client;

    const HERE: Client = Client::NOBODY;

    fn admissions() -> Admissions {
        let bounds = Bounds {
            per_user: 10,
            per_address: 10,
            per_node: 10,
        };
        Admissions::new(LedgerLimits {
            connections: bounds,
            sockets: bounds,
            answer_bytes: bounds,
            body_bytes: bounds,
        })
    }

    fn body(pieces: &[&'static str]) -> impl Body<Data = Bytes> + Unpin + use<> {
        let frames: Vec<Result<Frame<Bytes>, Infallible>> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))
            .collect();
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn a_body_counts_until_its_request_is_dealt_with() {
        let admissions = admissions();
        let share = || admissions.take(Resource::BodyBytes, 0, None, HERE).unwrap();
        let mut first = share();
        let read_whole = read(body(&["ab", "cd", "ef"]), 8, &mut first).await;
        assert_eq!(read_whole.unwrap(), "abcdef");
        assert_eq!(admissions.used(Resource::BodyBytes), 6);
        let mut second = share();
        let refused = read(body(&["abcd", "e"]), 8, &mut second)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, Unread::Over(refusal) if refusal.scope == Scope::Node),
            "{refused:?}"
        );
        drop((first, second));
        assert_eq!(admissions.used(Resource::BodyBytes), 0);
        let mut third = share();
        let refused = read(body(&["abcd", "efghi"]), 8, &mut third).await;
        assert_eq!(refused.unwrap_err(), Unread::TooLarge);
    }
}
