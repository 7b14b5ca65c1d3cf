//! Shares: signed words of the relay's own by which somebody without a user may watch one job.
//!
//! How many watch by one share is counted here; which address they come from is the ledger's to count.
//!
//! Invariant: a share is of one owner's job, so another owner's job of the same id is not shown by it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::id::{JobId, Name, NameError, Owner};
use relay_core::moment::WallTime;
use serde::{Deserialize, Serialize};

use super::own_key::OwnKey;
use crate::refused::Refused;

/// What a share says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShareClaims {
    /// Its id, by which it can be revoked.
    pub jti: String,
    /// `job:<owner>/<id>`.
    pub topic: String,
    /// Seconds since 1970.
    pub iat: i64,
    /// Seconds since 1970.
    pub exp: i64,
}

/// The job of a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedJob {
    pub owner: Owner,
    pub job: JobId,
}

/// Why a text is not the job of a share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SharedJobError {
    /// Not `job:<owner>/<id>`.
    #[error(
        "is not job:<owner>/<id>, such as job:alice/clip-42; a share names the owner (- for nobody's), so that it shows no other owner's job of the same id"
    )]
    Form,
    /// One of the names is none.
    #[error("has the {part} {text:?}, which {source}")]
    Name {
        part: &'static str,
        text: String,
        source: NameError,
    },
}

impl SharedJob {
    /// Reads `job:<owner>/<id>`.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, SharedJobError> {
        let names = text
            .strip_prefix("job:")
            .and_then(|rest| rest.split_once('/'));
        let (owner, job) = names.ok_or(SharedJobError::Form)?;
        let name = |part, text: &str| {
            Name::parse(text).map_err(|source| SharedJobError::Name {
                part,
                text: text.chars().take(64).collect(),
                source,
            })
        };
        Ok(Self {
            owner: name("owner", owner)?,
            job: name("job id", job)?,
        })
    }
}

impl std::fmt::Display for SharedJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job:{}/{}", self.owner, self.job)
    }
}

/// Who watches by which share.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    taken: Arc<Mutex<HashMap<Box<str>, usize>>>,
}

/// One of those who watch by a share; dropped, it is one less.
#[derive(Debug)]
pub(crate) struct Seat {
    taken: Arc<Mutex<HashMap<Box<str>, usize>>>,
    id: Box<str>,
}

impl Seats {
    /// One more watches by the share `id`, if fewer than `most` do.
    fn take(&self, id: &str, most: usize) -> Option<Seat> {
        let mut taken = self.taken.lock();
        let count = taken.entry(id.into()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Seat {
            taken: self.taken.clone(),
            id: id.into(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.id);
            }
        }
    }
}

/// What somebody may by a share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub job: SharedJob,
    /// Its place among those who watch by the same share.
    _seat: Arc<Seat>,
}

impl Shared {
    /// Whether this job of this owner is the one.
    pub(crate) fn is(&self, job: &JobId, owner: &Owner) -> bool {
        self.job.job == *job && self.job.owner == *owner
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.job == other.job
    }
}

impl Eq for Shared {}

/// What shares are checked with.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    key: OwnKey,
    /// How many may watch by one share.
    most: usize,
    seats: Arc<Seats>,
}

impl Shares {
    pub(crate) fn new(key: OwnKey, most: usize, seats: Arc<Seats>) -> Self {
        Self { key, most, seats }
    }

    /// What somebody may who shows this share `now`, by which id it is known, and until when.
    ///
    /// # Errors
    /// 401: it is not a share, or not good any more. 429: too many watch by it.
    pub(crate) fn open(
        &self,
        token: &str,
        now: WallTime,
    ) -> Result<(Shared, Box<str>, WallTime), Refused> {
        let claims: ShareClaims = self.key.open(token).ok_or_else(|| {
            Refused::unauthorized(
                "token_bad_signature",
                "The share's signature is wrong: it was made with another key than this relay's (auth.share_key), or changed on the way.",
            )
        })?;
        let ends = WallTime::from_unix_micros(claims.exp.saturating_mul(1_000_000));
        if ends <= now {
            return Err(Refused::unauthorized(
                "token_expired",
                "The share has ended; ask the person who shared the job for a new one.",
            ));
        }
        let job = SharedJob::parse(&claims.topic).map_err(|error| {
            Refused::unauthorized(
                "token_malformed",
                format!("The share is of {:?}, which {error}.", claims.topic),
            )
        })?;
        let seat = self.seats.take(&claims.jti, self.most).ok_or_else(|| {
            Refused::too_many(
                "share_limit",
                format!("{} people watch by this share already, the limit of one share (limits.connections_per_share). Try again later.", self.most),
            )
        })?;
        let shared = Shared {
            job,
            _seat: Arc::new(seat),
        };
        Ok((shared, claims.jti.into(), ends))
    }

    /// A share of `job` by the id `jti`, from `now` until `ends`.
    pub(crate) fn make(
        &self,
        job: &SharedJob,
        jti: &str,
        (now, ends): (i64, i64),
    ) -> Option<String> {
        self.key.sign(&ShareClaims {
            jti: jti.to_owned(),
            topic: job.to_string(),
            iat: now,
            exp: ends,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::own_key::Purpose;

    const NOW: WallTime = WallTime::from_unix_micros(1_000_000_000);

    fn shares(most: usize) -> Shares {
        let key = OwnKey::derive(b"secret", Purpose::Share).unwrap();
        Shares::new(key, most, Arc::default())
    }

    fn job(text: &str) -> SharedJob {
        SharedJob::parse(text).unwrap()
    }

    #[test]
    fn a_share_names_its_owner() {
        assert_eq!(job("job:alice/clip-42").to_string(), "job:alice/clip-42");
        assert_eq!(job("job:-/x").owner, Name::nobody());
        for bad in [
            "job:clip-42",
            "clip-42",
            "user:alice",
            "group:a/b",
            "",
            "job:",
        ] {
            assert_eq!(SharedJob::parse(bad), Err(SharedJobError::Form), "{bad}");
        }
        for bad in [
            "job:/x",
            "job:a/",
            "job:a/b/c",
            "job:a/*",
            "job:*/b",
            "job:a.b/c",
        ] {
            let error = SharedJob::parse(bad).unwrap_err();
            assert!(
                matches!(error, SharedJobError::Name { .. }),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_share_is_good_for_its_job_until_it_ends() {
        let shares = shares(9);
        let token = shares
            .make(&job("job:alice/j"), "s1", (900, 1_010))
            .unwrap();
        let (shared, id, ends) = shares.open(&token, NOW).unwrap();
        assert_eq!((shared.job, &*id), (job("job:alice/j"), "s1"));
        assert_eq!(ends, WallTime::from_unix_micros(1_010_000_000));
        assert_eq!(shares.open(&token, ends).unwrap_err().code, "token_expired");
        let forged = shares.open(&token[1..], NOW).unwrap_err();
        assert_eq!(forged.code, "token_bad_signature");
    }

    #[test]
    fn as_many_watch_by_a_share_as_may_and_no_more() {
        let shares = shares(2);
        let token = |id| shares.make(&job("job:alice/j"), id, (0, 2_000)).unwrap();
        let (one, two) = (token("one"), token("two"));
        let first = shares.open(&one, NOW).unwrap();
        let _second = shares.open(&one, NOW).unwrap();
        let refused = shares.open(&one, NOW).unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (429, "share_limit")
        );
        let _other = shares.open(&two, NOW).unwrap();
        drop(first);
        drop(shares.open(&one, NOW).unwrap());
        drop((_second, _other));
        assert!(shares.seats.taken.lock().is_empty());
    }
}
