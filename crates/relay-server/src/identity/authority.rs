//! How clients are identified at this moment: the one place it is read from, and replaced in.
//!
//! Files that keys stand in are looked at every few seconds, so that a key can be added or removed while the relay
//! runs. How identification is made from a configuration is not known here: a [`Basis`] brings that along.
//!
//! Invariant: what was made last stays until something new was made whole.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, StatusCode, Uri};
use relay_bus::clock::Clock;
use relay_core::moment::WallTime;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::own_key::Purpose;
use super::ticket::Tickets;
use super::webhook::{Webhook, as_shown};
use super::{Credential, Identity, KeyError, Mode, credential, verifier};
use crate::refused::Refused;

/// How often files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How many fetches a client waits for: one that was under way, and one that began since.
const MOST_WAITS: u32 = 2;

/// How identification is made anew from the same configuration.
pub(crate) type Remake = Arc<dyn Fn() -> Result<Mode, KeyError> + Send + Sync>;

/// How clients are identified, and what that was made from.
#[derive(Clone)]
pub(crate) struct Basis {
    mode: Mode,
    files: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
    remake: Remake,
}

/// What changes about a file when its contents do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What is to be waited for before a credential is looked at.
#[derive(Debug)]
pub(crate) enum Later {
    /// Keys that are fetched.
    Keys(verifier::Later),
    /// The word of an application, and what it is asked with.
    Word(Arc<Webhook>, String),
}

impl Later {
    /// Waits for it. Whether waiting once more would bring nothing.
    ///
    /// # Errors
    /// 503: it does not come.
    pub(crate) async fn news(&self) -> Result<bool, Refused> {
        match self {
            Self::Keys(later) => later.news().await,
            Self::Word(application, shown) => {
                let asked = application.ask(shown, || Clock::start().wall());
                asked.await.map(|()| true)
            }
        }
    }
}

/// How clients are identified at this moment.
#[derive(Debug)]
pub(crate) struct Authority {
    basis: ArcSwap<Basis>,
    tickets: Tickets,
    /// Told when another configuration was put in place. Heard by [`Authority::keep`].
    replaced: Notify,
    /// Says that something is different. Heard by shards, which end what was taken back.
    changed: watch::Sender<()>,
}

impl Basis {
    /// Makes identification by `remake`, which reads `files`.
    ///
    /// # Errors
    /// As `remake` fails.
    pub(crate) fn new(files: Vec<PathBuf>, remake: Remake) -> Result<Self, KeyError> {
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamps = stamps(&files);
        let mode = remake()?;
        Ok(Self {
            mode,
            files,
            stamps,
            remake,
        })
    }
}

impl fmt::Debug for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basis")
            .field("mode", &self.mode)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Authority {
    pub(crate) fn new(basis: Basis, tickets: Tickets) -> Self {
        Self {
            tickets,
            basis: ArcSwap::from_pointee(basis),
            replaced: Notify::new(),
            changed: watch::Sender::new(()),
        }
    }

    /// From now on clients are identified by `basis`. Keys that were fetched stay, if they are published in the same
    /// place.
    #[allow(
        dead_code,
        reason = "for when a configuration is read again, which only tests do yet"
    )]
    pub(crate) fn replace(&self, basis: Basis) {
        let old = self.basis.load();
        if let (Some(new), Some(old)) = (basis.mode.published(), old.mode.published()) {
            new.take_over(old);
        }
        self.basis.store(Arc::new(basis));
        self.replaced.notify_one();
        self.changed.send_replace(());
    }

    /// Whether clients are asked who they are. Where they are not, no credential is looked at, good or bad.
    pub(crate) fn asks(&self) -> bool {
        self.basis.load().mode.asks()
    }

    /// The credential of a request, if it has one and is asked for one. `cookie` is the name of the cookie to look for;
    /// `None` where cookies do not count.
    ///
    /// # Errors
    /// 401 when a credential is too long or no text, or when two disagree.
    pub(crate) fn credential(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        cookie: Option<&str>,
    ) -> Result<Option<Credential>, Refused> {
        match &self.basis.load().mode {
            Mode::Anonymous => Ok(None),
            Mode::Jwt(..) => credential(headers, uri, cookie),
            Mode::Url(application, _) => {
                let bearer = credential(headers, uri, None)?;
                let token = bearer.as_ref().map(Credential::token);
                if token.and_then(Purpose::of_token).is_some() {
                    return Ok(bearer);
                }
                let shown = application.shown(headers, token, cookie.is_some());
                Ok(shown.map(Credential::forwarded))
            }
        }
    }

    /// The identity of the bearer of `credential`, `now`.
    ///
    /// # Errors
    /// Where tokens are asked for: that there is none, or what is wrong with it.
    pub(crate) fn identify(
        &self,
        credential: Option<&Credential>,
        now: WallTime,
    ) -> Result<Identity, Refused> {
        self.basis.load().mode.identify(credential, now)
    }

    /// Whether the credential of this identity was taken back since it was looked at.
    pub(crate) fn revokes(&self, identity: &Identity) -> bool {
        self.basis.load().mode.revokes(identity)
    }

    /// Says each time that how clients are identified has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The identity of somebody who opens a connection: a ticket is good for that, once.
    ///
    /// # Errors
    /// As [`Authority::identify`]; and 401 for a ticket that is not good.
    pub(crate) fn identify_opening(
        &self,
        credential: Option<&Credential>,
        now: WallTime,
    ) -> Result<Identity, Refused> {
        let is_ticket =
            |each: &&Credential| Purpose::of_token(each.token()) == Some(Purpose::Ticket);
        match credential.filter(is_ticket) {
            Some(ticket) if self.asks() => {
                let identity = self.tickets.take(ticket.token(), now)?;
                match identity.is_expired(now) || self.revokes(&identity) {
                    true => Err(Refused::unauthorized(
                        "token_expired",
                        "The token that the ticket was made with has ended; get a new one.",
                    )),
                    false => Ok(identity),
                }
            }
            _ => self.identify(credential, now),
        }
    }

    /// A ticket for the bearer of this identity.
    ///
    /// # Errors
    /// 403 for somebody without a user, 429 for too many.
    pub(crate) fn ticket(&self, identity: &Identity, now: WallTime) -> Result<String, Refused> {
        match &identity.user {
            Some(_) => self.tickets.make(identity, now),
            None => Err(Refused {
                status: StatusCode::FORBIDDEN,
                code: "no_user",
                message: "A ticket stands for a user, and this request has none: with auth.mode = \"anonymous\" no ticket is needed, and a share goes into the URL itself.".to_owned(),
            }),
        }
    }

    /// What is to be waited for before this token is looked at, if anything.
    pub(crate) fn later(&self, token: &str, now: WallTime) -> Option<Later> {
        match &self.basis.load().mode {
            Mode::Anonymous => None,
            Mode::Jwt(verifier, _) => verifier.later(token, now).map(Later::Keys),
            Mode::Url(..) if Purpose::of_token(token).is_some() => None,
            Mode::Url(application, _) => {
                let shown = as_shown(token);
                let is_new = application.is_new(&shown, now);
                is_new.then(|| Later::Word(application.clone(), shown))
            }
        }
    }

    /// Waits until a token can be looked at, if its key is not there and may be in a moment.
    ///
    /// # Errors
    /// 503 when keys cannot be fetched.
    pub(crate) async fn prepare(&self, token: &str, clock: Clock) -> Result<(), Refused> {
        for _ in 0..MOST_WAITS {
            match self.later(token, clock.wall()) {
                Some(later) if !later.news().await? => {}
                Some(_) | None => break,
            }
        }
        Ok(())
    }

    /// What is counted of fetches of keys, where keys are fetched.
    pub(crate) fn fetches(&self) -> Option<(u64, u64, i64)> {
        let basis = self.basis.load();
        Some(basis.mode.published()?.counts().read())
    }

    /// Fetches keys that others publish, and reads files again when they have changed. Does not end.
    pub(crate) async fn keep(&self) {
        let looking = async {
            let mut failed = None;
            loop {
                sleep(LOOK_INTERVAL).await;
                self.look(&mut failed).await;
            }
        };
        tokio::join!(self.fetch(), looking);
    }

    /// Fetches keys for as long as the configuration says so.
    async fn fetch(&self) {
        loop {
            let published = self.basis.load().mode.published().cloned();
            let fetching = async {
                match published {
                    Some(published) => published.keep().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = fetching => {}
                () = self.replaced.notified() => {}
            }
        }
    }

    /// Looks at the files once. `failed` is what was wrong at the last look.
    async fn look(&self, failed: &mut Option<String>) {
        let basis = self.basis.load_full();
        let before = basis.clone();
        // A file system may take its time.
        let read = tokio::task::spawn_blocking(move || {
            let now = stamps(&before.files);
            (now != before.stamps).then(|| Basis::new(before.files.clone(), before.remake.clone()))
        });
        match read.await {
            Ok(None) | Err(_) => {}
            Ok(Some(Ok(new))) => {
                *failed = None;
                if let Some(published) = new.mode.published() {
                    published.renew_soon();
                }
                tracing::info!(mode = ?new.mode, "the files that tokens are checked by changed, and were read again");
                // Not over a configuration that was put in its place meanwhile.
                self.basis.compare_and_swap(&basis, Arc::new(new));
                self.changed.send_replace(());
            }
            Ok(Some(Err(error))) => {
                let error = error.to_string();
                if failed.as_deref() != Some(&error) {
                    tracing::warn!(%error, "the files that tokens are checked by changed and cannot be used; what was read before stays");
                }
                *failed = Some(error);
            }
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests;
