//! Asking an application who somebody is: for those whose users have sessions in place of tokens.
//!
//! The application gets the headers that it is configured to get, and answers with a user and grants. What it said is
//! kept for seconds, so that a page with several connections is one question.
//!
//! Invariant: nobody is let in whom the application did not let in; as many questions are under way as may be, and
//! none outlasts its deadline. What was forwarded is kept as a digest alone.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::EncodingKey;
use jsonwebtoken::crypto::sign;
use parking_lot::Mutex;
use relay_core::id::Name;
use relay_core::id::user::user_name;
use relay_core::moment::WallTime;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::ticket::random_id;
use super::{Grants, Identity};
use crate::fetch::{Ask, Patience, Url, fetch};
use crate::refused::Refused;

/// How long a client waits until it is its turn to be asked about.
const TURN: Duration = Duration::from_secs(1);
/// How much of an answer is waited for. Longer than for a turn: while nothing is answered, nobody else's turn comes.
const PATIENCE: Patience = Patience {
    time: Duration::from_secs(4),
    bytes: 64 * 1024,
};
/// How often the log says that the application does not answer.
const TOLD: Duration = Duration::from_secs(60);
/// Questions under way.
const UNDER_WAY: usize = 32;
/// Clients that wait for an answer.
const MAX_WAITING: usize = 1024;
/// Answers that are kept.
const MAX_KEPT: usize = 4096;
/// How long a yes is kept, and a no.
const KEPT: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(2)];
/// How long somebody is let in for, where the application does not say it, and at most.
const LASTS: [u64; 2] = [300, 86_400];

/// An application that says who somebody is.
pub(crate) struct Webhook {
    url: Url,
    /// The headers that it gets.
    forward: Vec<HeaderName>,
    /// For digests of what was forwarded; another one after each start.
    salt: EncodingKey,
    kept: Mutex<HashMap<String, Kept>>,
    turns: Semaphore,
    waiting: AtomicUsize,
    /// When the log last said that it does not answer.
    told: Mutex<Option<Instant>>,
}

/// What the application said.
#[derive(Debug, Clone)]
struct Kept {
    until: WallTime,
    said: Result<Said, Refused>,
}

#[derive(Debug, Clone)]
struct Said {
    user: Name,
    grants: Grants,
    ends: WallTime,
}

#[derive(Deserialize)]
struct Words {
    user: String,
    topics: Option<Value>,
    publish: Option<Value>,
    expires_in: Option<u64>,
}

impl Webhook {
    pub(crate) fn new(url: Url, forward: Vec<HeaderName>) -> Self {
        Self {
            url,
            forward,
            salt: EncodingKey::from_secret(random_id().as_bytes()),
            kept: Mutex::default(),
            turns: Semaphore::new(UNDER_WAY),
            waiting: AtomicUsize::new(0),
            told: Mutex::default(),
        }
    }

    /// What of a request the application is asked with, as one text: a header a line, behind an empty one. `None` if
    /// there is nothing. `bearer` is a token that came in another place than a header.
    pub(crate) fn shown(
        &self,
        headers: &HeaderMap,
        bearer: Option<&str>,
        with_cookies: bool,
    ) -> Option<String> {
        let mut shown = String::new();
        let mut add = |name: &HeaderName, value: &str| {
            shown.push_str(&format!("\n{name}: {value}"));
        };
        for name in &self.forward {
            if *name == http::header::COOKIE && !with_cookies {
                continue;
            }
            match bearer.filter(|_| *name == AUTHORIZATION) {
                Some(token) => add(name, &format!("Bearer {token}")),
                None => {
                    for value in headers.get_all(name) {
                        add(name, &String::from_utf8_lossy(value.as_bytes()));
                    }
                }
            }
        }
        (!shown.is_empty()).then_some(shown)
    }

    /// The identity of somebody who showed this, if the application has been asked.
    ///
    /// # Errors
    /// What it said against it; 503 if it has not been asked.
    pub(crate) fn known(&self, shown: &str, now: WallTime) -> Result<Identity, Refused> {
        let kept = self.kept(shown, now).ok_or_else(unavailable)?;
        let said = kept.said?;
        Ok(Identity {
            user: Some(said.user),
            grants: said.grants,
            expires_at: Some(said.ends),
            ..Identity::nobody()
        })
    }

    /// Whether the application has to be asked.
    pub(crate) fn is_new(&self, shown: &str, now: WallTime) -> bool {
        self.kept(shown, now).is_none()
    }

    fn kept(&self, shown: &str, now: WallTime) -> Option<Kept> {
        let kept = self.kept.lock().get(&self.digest(shown)?).cloned();
        kept.filter(|kept| kept.until > now)
    }

    fn digest(&self, shown: &str) -> Option<String> {
        let algorithm = jsonwebtoken::Algorithm::HS256;
        sign(shown.as_bytes(), &self.salt, algorithm).ok()
    }

    /// Asks the application, and keeps what it says. `now` is taken when the answer is there.
    ///
    /// # Errors
    /// 503: it does not answer.
    pub(crate) async fn ask(&self, shown: &str, now: impl Fn() -> WallTime) -> Result<(), Refused> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waiting(&self.waiting);
        if before >= MAX_WAITING {
            return Err(unavailable());
        }
        let turn = timeout(TURN, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(unavailable());
        };
        // Somebody may have asked the same meanwhile.
        match self.is_new(shown, now()) {
            true => self.decide(shown, &now).await,
            false => Ok(()),
        }
    }

    async fn decide(&self, shown: &str, now: &impl Fn() -> WallTime) -> Result<(), Refused> {
        let mut headers = HeaderMap::new();
        for line in shown.lines().filter(|line| !line.is_empty()) {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value);
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
        let body = Some(Bytes::from_static(b"{}"));
        let answer = fetch(&self.url, Ask { headers, body }, PATIENCE).await;
        let said = match &answer {
            Ok(answer) => match answer.status.as_u16() {
                200 => self.read(&answer.body, now()),
                401 | 403 => Ok(Err(Refused::unauthorized(
                    "not_let_in",
                    "The application did not let this client in: its session is not good, or has ended.",
                ))),
                status => Err(format!("answered {status}")),
            },
            Err(error) => Err(error.to_string()),
        };
        match said {
            Ok(said) => {
                self.keep(shown, said, now());
                Ok(())
            }
            Err(error) => {
                let mut told = self.told.lock();
                if told.is_none_or(|told| told.elapsed() >= TOLD) {
                    *told = Some(Instant::now());
                    tracing::warn!(url = %self.url, error, "the application at auth.url does not say who clients are, so nobody new is let in");
                }
                Err(unavailable())
            }
        }
    }

    fn read(&self, body: &[u8], now: WallTime) -> Result<Result<Said, Refused>, String> {
        let words: Words = serde_json::from_slice(body)
            .map_err(|_| "did not answer with {\"user\":\"…\"}".to_owned())?;
        let user = user_name(&words.user).map_err(|error| format!("named a user that {error}"))?;
        let grants = Grants::from_claims(words.topics.as_ref(), words.publish.as_ref())
            .map_err(|error| error.to_string())?;
        let [usual, most] = LASTS;
        let lasts = words.expires_in.unwrap_or(usual).min(most);
        let ends = later(now, Duration::from_secs(lasts));
        Ok(Ok(Said { user, grants, ends }))
    }

    fn keep(&self, shown: &str, said: Result<Said, Refused>, now: WallTime) {
        let [yes, no] = KEPT;
        let until = match &said {
            Ok(said) => later(now, yes).min(said.ends),
            Err(_) => later(now, no),
        };
        let Some(digest) = self.digest(shown) else {
            return;
        };
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, each| each.until > now);
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(digest, Kept { until, said });
    }
}

/// What the application is asked with for a token that came in a message.
pub(crate) fn as_shown(token: &str) -> String {
    match token.starts_with('\n') {
        true => token.to_owned(),
        false => format!("\n{AUTHORIZATION}: Bearer {token}"),
    }
}

fn later(now: WallTime, by: Duration) -> WallTime {
    let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
    WallTime::from_unix_micros(now.as_unix_micros().saturating_add(by))
}

fn unavailable() -> Refused {
    Refused::unavailable(
        "identity_unavailable",
        "The application that says who clients are (auth.url) does not answer at the moment. Try again in some seconds.",
    )
}

/// One of those who wait; dropped, it is one less.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("url", &self.url)
            .field("forward", &self.forward)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
