//! Keys that others publish: a JSON Web Key Set in a file or at a URL, or where an OpenID provider says it is.
//!
//! One task fetches ([`Published::keep`]): at intervals, and when a token names a key that is not there. So a fetch
//! is never under way twice, and a client that makes up names of keys causes one every [`LEAST_INTERVAL`] at most.
//! Clients whose key is there are never kept waiting.
//!
//! Invariant: the keys of the last fetch that succeeded stay until another one succeeds.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::jwks::{self, JwksError, beginning};
use super::key::Algorithm;
use super::keyring::Keyring;
use crate::fetch::{Ask, FetchError, Patience, Url, fetch};

/// How often keys are fetched when nobody asks for news.
const INTERVAL: Duration = Duration::from_secs(300);
/// The least time from the beginning of one fetch to that of the next.
const LEAST_INTERVAL: Duration = Duration::from_secs(10);
/// How much of an answer is waited for.
const PATIENCE: Patience = Patience {
    time: Duration::from_secs(5),
    bytes: 1024 * 1024,
};
/// The longest that a client waits for a fetch: for the least time to be over, and for the fetch itself.
const WAIT: Duration = Duration::from_secs(30);
/// Clients that wait for a fetch; further ones are told to come again.
const MAX_WAITING: usize = 256;

/// Where keys are published.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file with a set.
    File(PathBuf),
    /// A set.
    Set(Url),
    /// An OpenID provider, by its issuer; its configuration says where the set is.
    Issuer(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Set(url) => url.fmt(f),
            Self::Issuer(issuer) => f.write_str(issuer),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum PublishedError {
    #[error("{at} {source}")]
    Fetch { at: String, source: FetchError },
    #[error("{at} answered {status}")]
    Status { at: String, status: u16 },
    #[error("{at} {source}")]
    Set { at: String, source: JwksError },
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{at} is not the configuration of an OpenID provider: it begins with {begins:?}")]
    NotAProvider { at: String, begins: String },
    #[error(
        "{at} is the configuration of the issuer {is:?}, and auth.issuer is {expected:?}; they have to be the same"
    )]
    OtherIssuer {
        at: String,
        is: String,
        expected: String,
    },
    #[error("{at} names {uri:?} as the place of its keys, which {source}")]
    BadKeysUrl {
        at: String,
        uri: String,
        source: crate::fetch::UrlError,
    },
}

/// The last fetch that ended.
#[derive(Debug, Clone, Copy)]
struct Fetched {
    begun: Instant,
    succeeded: bool,
}

/// What is counted of fetches, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Seconds since 1970.
    last_success: AtomicI64,
}

impl Counts {
    /// Fetches that succeeded and that failed, and when the last one succeeded, in seconds since 1970.
    pub(crate) fn read(&self) -> (u64, u64, i64) {
        (
            self.succeeded.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
            self.last_success.load(Ordering::Relaxed),
        )
    }
}

/// Keys that others publish.
pub(crate) struct Published {
    place: Place,
    listed: Vec<Algorithm>,
    keys: ArcSwap<Keyring>,
    /// Told when a token names a key that is not there. Heard by [`Published::keep`].
    wanted: Notify,
    /// The last fetch that ended. Sent by [`Published::keep`], and heard by clients that wait.
    fetched: watch::Sender<Option<Fetched>>,
    waiting: AtomicUsize,
    counts: Counts,
}

/// There is no news: keys cannot be fetched, or too many wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoNews;

impl Published {
    pub(crate) fn new(place: Place, listed: Vec<Algorithm>) -> Self {
        Self {
            place,
            listed,
            keys: ArcSwap::default(),
            wanted: Notify::new(),
            fetched: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
            counts: Counts::default(),
        }
    }

    /// The keys that are there.
    pub(crate) fn keys(&self) -> Arc<Keyring> {
        self.keys.load_full()
    }

    /// The file, where it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Set(_) | Place::Issuer(_) => None,
        }
    }

    /// What keys may be published here for, if not now then later.
    pub(crate) fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        let public = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        let listed = |each: &Algorithm| self.listed.is_empty() || self.listed.contains(each);
        public.into_iter().filter(move |each| listed(each))
    }

    /// Whether keys for this algorithm may be published here.
    pub(crate) fn may_have(&self, algorithm: Algorithm) -> bool {
        self.algorithms().any(|each| each == algorithm)
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes over what `other` has, if that is published in the same place.
    #[allow(dead_code, reason = "as for `Authority::replace`")]
    pub(crate) fn take_over(&self, other: &Self) {
        if self.place == other.place && self.listed == other.listed {
            self.keys.store(other.keys());
        }
    }

    /// Fetches keys, again and again. Does not end.
    pub(crate) async fn keep(&self) {
        let mut said = None;
        loop {
            let begun = Instant::now();
            let succeeded = self.renew(&mut said).await;
            self.fetched
                .send_replace(Some(Fetched { begun, succeeded }));
            let next = if succeeded { INTERVAL } else { LEAST_INTERVAL };
            let asked = async {
                self.wanted.notified().await;
                sleep_until(begun + LEAST_INTERVAL).await;
            };
            tokio::select! {
                () = sleep(next) => {}
                () = asked => {}
            }
        }
    }

    /// Fetches once. `said` is what the log last said of it.
    async fn renew(&self, said: &mut Option<String>) -> bool {
        let place = &self.place;
        match self.fetch().await {
            Ok(taken) => {
                let text = format!("{:?} {:?}", taken.keys, taken.left_out);
                if said.as_ref() != Some(&text) {
                    let (keys, left_out) = (taken.keys.len(), taken.left_out.join("; "));
                    tracing::info!(%place, keys, left_out, "the keys that tokens are checked with were fetched");
                }
                *said = Some(text);
                self.keys.store(Arc::new(taken.keys));
                self.counts.succeeded.fetch_add(1, Ordering::Relaxed);
                let now = std::time::SystemTime::now();
                let now = now
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                self.counts.last_success.store(now, Ordering::Relaxed);
                true
            }
            Err(error) => {
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    let kept = self.keys().len();
                    tracing::warn!(%place, error = text, kept, "the keys that tokens are checked with cannot be fetched; those that are there stay, and it is tried again every few seconds");
                }
                *said = Some(text);
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    async fn fetch(&self) -> Result<jwks::Taken, PublishedError> {
        let (at, bytes) = match &self.place {
            Place::File(path) => (path.display().to_string(), read_file(path).await?),
            Place::Set(url) => (url.to_string(), document(url).await?),
            Place::Issuer(issuer) => {
                let url = discover(issuer).await?;
                (url.to_string(), document(&url).await?)
            }
        };
        let taken = jwks::read(&bytes, &self.listed);
        taken.map_err(|source| PublishedError::Set { at, source })
    }

    /// Waits for news, if there may be some: for a fetch that has ended since `last` was seen. Whether that fetch began
    /// since this was asked for, so that another one would bring nothing more.
    pub(crate) async fn news(&self, last: Seen) -> Result<bool, NoNews> {
        let asked = Instant::now();
        let _waits = Waiting::begin(&self.waiting).ok_or(NoNews)?;
        let mut fetched = self.fetched.subscribe();
        self.wanted.notify_one();
        let newer = fetched.wait_for(|each| each.map(|each| each.begun) != last.0);
        match timeout(WAIT, newer).await {
            Ok(Ok(fetched)) => match *fetched {
                Some(fetched) if fetched.succeeded => Ok(fetched.begun >= asked),
                _ => Err(NoNews),
            },
            _ => Err(NoNews),
        }
    }

    /// Asks for a fetch, and does not wait for it.
    pub(crate) fn renew_soon(&self) {
        self.wanted.notify_one();
    }

    /// Which fetch has been seen, for [`Published::news`]. To be taken before the keys are looked at.
    pub(crate) fn seen(&self) -> Seen {
        Seen(self.fetched.borrow().map(|fetched| fetched.begun))
    }
}

/// A fetch that has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen(Option<Instant>);

/// One of those who wait; dropped, it is one less.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let waiting = Self(count);
        (before < MAX_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published")
            .field("place", &self.place)
            .field("keys", &self.keys.load())
            .finish_non_exhaustive()
    }
}

/// The place of an OpenID provider's keys.
async fn discover(issuer: &str) -> Result<Url, PublishedError> {
    #[derive(Deserialize)]
    struct Provider {
        issuer: String,
        jwks_uri: String,
    }
    let at = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let url = Url::parse(&at).map_err(|source| PublishedError::BadKeysUrl {
        at: issuer.to_owned(),
        uri: at.clone(),
        source,
    })?;
    let bytes = document(&url).await?;
    let provider: Provider =
        serde_json::from_slice(&bytes).map_err(|_| PublishedError::NotAProvider {
            at: at.clone(),
            begins: beginning(&bytes),
        })?;
    if provider.issuer != issuer {
        return Err(PublishedError::OtherIssuer {
            at,
            is: provider.issuer.chars().take(200).collect(),
            expected: issuer.to_owned(),
        });
    }
    let uri: String = provider.jwks_uri.chars().take(2048).collect();
    Url::parse(&uri).map_err(|source| PublishedError::BadKeysUrl { at, uri, source })
}

async fn document(url: &Url) -> Result<Vec<u8>, PublishedError> {
    let at = url.to_string();
    match fetch(url, Ask::default(), PATIENCE).await {
        Ok(answer) if answer.status.is_success() => Ok(answer.body.to_vec()),
        Ok(answer) => Err(PublishedError::Status {
            at,
            status: answer.status.as_u16(),
        }),
        Err(source) => Err(PublishedError::Fetch { at, source }),
    }
}

async fn read_file(path: &Path) -> Result<Vec<u8>, PublishedError> {
    let failed = |source| PublishedError::File {
        path: path.to_owned(),
        source,
    };
    let (file, most) = (path.to_owned(), PATIENCE.bytes);
    let read = tokio::task::spawn_blocking(move || {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        std::fs::File::open(file)?
            .take(most)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let lost = |error| Err(io::Error::other(error));
    read.await.unwrap_or_else(lost).map_err(failed)
}

#[cfg(test)]
mod tests;
