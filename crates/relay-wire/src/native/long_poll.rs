//! A long poll: native frames as a list, in the answer to a request that waits for its first news.
//!
//! It does not know how long it waits, or what sends the answer.
//!
//! Invariant: it is answered only when every topic it named has had its first word, or the time is over.

use bytes::Bytes;
use relay_core::cursor::Cursor;

use crate::exchange::{Body, Hurry, Unanswered};
use crate::native::frame::Notice;

/// Frames in one answer; what is left comes with the next.
pub(crate) const MAX_FRAMES: usize = 1000;

/// What is known of a poll until it is answered.
#[derive(Debug)]
pub struct LongPoll {
    /// Topics whose join is not answered yet.
    waiting: usize,
    /// Whether every join until now recovered.
    recovered: bool,
    /// How long it still waits.
    patience: Patience,
    /// Whether a topic turned out to be somebody else's, or one of several.
    refused: Option<Unanswered>,
}

/// What a poll waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// News.
    News,
    /// The first word about each topic.
    FirstWords,
    /// Nothing more; whether that is so because the relay is going away.
    Over { drains: bool },
}

impl LongPoll {
    /// One that names so many topics.
    pub(crate) fn new(topics: usize) -> Self {
        Self {
            waiting: topics,
            recovered: true,
            patience: Patience::News,
            refused: None,
        }
    }

    pub(crate) fn hurry(&mut self, why: Hurry) {
        self.patience = match (why, self.patience) {
            (Hurry::Time, Patience::News) => Patience::FirstWords,
            (Hurry::Time, patience) => patience,
            (Hurry::Lookup, _) => Patience::Over { drains: false },
            (Hurry::Drain, _) => Patience::Over { drains: true },
        };
    }

    /// A topic is not the client's to watch, or it does not say which.
    fn refuse(&mut self, why: Unanswered) {
        self.waiting = self.waiting.saturating_sub(1);
        self.refused = Some(why);
    }

    /// Takes what other clients are told as a frame of its own.
    pub(crate) fn note(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Subscribed { recovered, .. } => {
                self.waiting = self.waiting.saturating_sub(1);
                self.recovered &= recovered;
            }
            Notice::Error {
                code: "forbidden", ..
            } => self.refuse(Unanswered::Forbidden),
            Notice::Error {
                code: "ambiguous_owner",
                ..
            } => self.refuse(Unanswered::Ambiguous),
            _ => {}
        }
    }

    pub(crate) fn may_answer(&self, has_news: bool) -> bool {
        match self.patience {
            Patience::Over { .. } => true,
            Patience::FirstWords => self.waiting == 0,
            Patience::News => self.waiting == 0 && (has_news || self.refused.is_some()),
        }
    }

    pub(crate) fn answer(&self, frames: &[Bytes], at: &Cursor, stale: bool) -> Body {
        let drains = self.patience == Patience::Over { drains: true };
        if let Some(why) = self.refused {
            return Err(why);
        }
        if drains && frames.is_empty() {
            return Err(Unanswered::Draining);
        }
        if self.waiting > 0 {
            return Err(Unanswered::BusUnavailable);
        }
        let mut body = Vec::with_capacity(128 + frames.iter().map(Bytes::len).sum::<usize>());
        let head = format!(r#"{{"cursor":"{at}","recovered":{}"#, self.recovered);
        body.extend_from_slice(head.as_bytes());
        if stale {
            body.extend_from_slice(br#","stale":true"#);
        }
        body.extend_from_slice(br#","frames":["#);
        for (at, frame) in frames.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            body.extend_from_slice(frame);
        }
        body.extend_from_slice(b"]}");
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribed(recovered: bool) -> Notice<'static> {
        Notice::Subscribed {
            id: None,
            topic: "job:j1".to_owned(),
            recovered,
            jobs: 0,
            cursor: String::new(),
            stale: false,
        }
    }

    fn body(poll: &LongPoll, frames: &[&'static [u8]]) -> Result<String, Unanswered> {
        let frames: Vec<Bytes> = frames.iter().map(|each| Bytes::from_static(each)).collect();
        let at = Cursor::parse("AQAAAAAAAAAAAAAAAAAAAAA").unwrap();
        let body = poll.answer(&frames, &at, false);
        body.map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn it_waits_for_the_first_word_about_every_topic_and_then_for_news() {
        let mut poll = LongPoll::new(2);
        poll.note(&subscribed(true));
        assert!(!poll.may_answer(true));
        poll.note(&subscribed(false));
        assert!(!poll.may_answer(false));
        assert!(poll.may_answer(true));
        let body = body(&poll, &[b"{}", b"[]"]).unwrap();
        assert!(
            body.ends_with(r#""recovered":false,"frames":[{},[]]}"#),
            "{body}"
        );
    }

    #[test]
    fn in_a_hurry_it_still_waits_for_the_first_words() {
        let mut poll = LongPoll::new(1);
        poll.hurry(Hurry::Time);
        assert!(!poll.may_answer(false));
        poll.note(&subscribed(true));
        assert!(poll.may_answer(false));
    }

    #[test]
    fn what_is_stopped_is_answered_with_the_reason() {
        let mut poll = LongPoll::new(1);
        poll.hurry(Hurry::Lookup);
        assert!(poll.may_answer(false));
        assert_eq!(body(&poll, &[]), Err(Unanswered::BusUnavailable));
        let mut poll = LongPoll::new(0);
        poll.hurry(Hurry::Drain);
        assert_eq!(body(&poll, &[]), Err(Unanswered::Draining));
        assert!(body(&poll, &[b"{}"]).is_ok());
    }
}
