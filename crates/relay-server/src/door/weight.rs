//! The bytes of answers that are under way: counted until the kernel has them.
//!
//! hyper keeps a body for as long as its client does not read it. Here a body's bytes are given an owner that is dropped
//! with the last of them, and with it goes what the answer was counted by. What is in an answer, and why it was given,
//! is not known here.
//!
//! Invariant: an answer's place and its bytes are given back once it is written, or its socket is closed.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use relay_core::limits::Resource;

use super::gate::Gate;
use crate::admission::{Admission, Admissions, Share};
use crate::answer::Escort;
use crate::proxies::Client;

/// Answers up to this size are not counted: a socket has one at a time, and sockets are counted.
const SMALL: u64 = 1024;

/// What an answer was counted by.
#[derive(Debug)]
struct Load {
    _share: Share,
    _admission: Option<Admission>,
}

/// Bytes that keep their load until they are dropped.
struct Laden {
    bytes: Bytes,
    _load: Arc<Load>,
}

impl AsRef<[u8]> for Laden {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Counts an answer for as long as it is under way, or puts a refusal in its place.
pub(super) fn weigh(
    gate: &Gate,
    admissions: &Admissions,
    mut answer: Response<Body>,
    client: Client,
) -> Response<Body> {
    let escort: Escort = answer.extensions_mut().remove().unwrap_or_default();
    let Some(size) = answer.body().size_hint().exact() else {
        return answer;
    };
    if size <= SMALL && escort.admission.is_none() || size == 0 {
        return answer;
    }
    let user = escort.user.as_ref();
    let share = match admissions.take(Resource::AnswerBytes, size, user, client) {
        Ok(share) => share,
        Err(refusal) => {
            let (head, body) = gate.over_limit(refusal, client).into_parts();
            *answer.status_mut() = head.status;
            *answer.body_mut() = Body::from(body);
            // What lets a page read an answer stays.
            answer.headers_mut().remove(header::ETAG);
            answer.headers_mut().extend(head.headers);
            return answer;
        }
    };
    let load = Arc::new(Load {
        _share: share,
        _admission: escort.admission,
    });
    let laden = move |bytes| {
        Bytes::from_owner(Laden {
            bytes,
            _load: load.clone(),
        })
    };
    // A body that is changed on its way does not say how long it is.
    let length = HeaderValue::from(size);
    answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    answer.map(|body| Body::new(body.map_frame(move |frame| frame.map_data(&laden))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::serve::settings::test_node;

    #[tokio::test]
    async fn an_answer_counts_until_its_last_byte_is_gone() {
        let node = test_node(&Config::default());
        let (gate, here) = (Gate::new(node.clone()), Client::NOBODY);
        let admission = node.admissions.admit(None, here).unwrap();
        let mut answer = Response::new(Body::from(vec![b'x'; 5000]));
        answer.extensions_mut().insert(Escort {
            user: None,
            admission: Some(admission),
        });
        let answer = weigh(&gate, &node.admissions, answer, here);
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], "5000");
        let used = || node.admissions.used(Resource::AnswerBytes);
        assert_eq!((used(), node.admissions.total()), (5000, 1));
        let mut bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let rest = bytes.split_off(4999);
        drop(bytes);
        assert_eq!((used(), node.admissions.total()), (5000, 1), "{rest:?}");
        drop(rest);
        assert_eq!((used(), node.admissions.total()), (0, 0));
    }

    #[tokio::test]
    async fn an_answer_beyond_the_bound_is_a_refusal_that_its_page_may_read() {
        let node = test_node(&Config::default());
        let (gate, here) = (Gate::new(node.clone()), Client::NOBODY);
        let most = node.admissions.bounds(Resource::AnswerBytes).per_address;
        let _others = node
            .admissions
            .take(Resource::AnswerBytes, most, None, here)
            .unwrap();
        let mut answer = Response::new(Body::from(vec![b'x'; 5000]));
        let origin = HeaderValue::from_static("*");
        answer
            .headers_mut()
            .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let answer = weigh(&gate, &node.admissions, answer, here);
        assert_eq!(answer.status().as_u16(), 429);
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(answer.headers().contains_key(header::RETRY_AFTER));
    }
}
