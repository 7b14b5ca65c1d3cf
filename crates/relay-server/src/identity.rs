//! The user a client is, and what that user may watch and publish.
//!
//! Everything here comes from the credential; no field a client fills in elsewhere is looked at. Connections,
//! topics' content and when to ask again are the callers' affair.
//!
//! Invariant: nothing of a token but its claims' names and the words that were wrong is ever shown.

pub(crate) mod authority;
pub(crate) mod credential;
pub(crate) mod grants;
pub(crate) mod jwks;
pub(crate) mod key;
pub(crate) mod keyring;
pub(crate) mod own_key;
pub(crate) mod published;
pub(crate) mod revoked;
pub(crate) mod share;
pub(crate) mod signing;
pub(crate) mod ticket;
pub(crate) mod verifier;
pub(crate) mod webhook;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use relay_core::id::{JobId, Name};
use relay_core::moment::WallTime;
use relay_core::topic::Topic;
use relay_core::watcher::sight::{Sight, Viewer};

pub(crate) use authority::{Authority, Basis, Later};
pub(crate) use credential::{Credential, Source, credential};
pub(crate) use grants::{GrantError, Grants};
pub(crate) use key::{Algorithm, KeyError};
use own_key::Purpose;
use published::Published;
use revoked::Revoked;
use share::{Shared, Shares};
pub(crate) use verifier::Verifier;
use webhook::Webhook;

use crate::refused::Refused;

/// What the relay gives out and takes back itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    /// What shares are checked with; none where the relay has no key for them.
    pub shares: Option<Shares>,
    /// Credentials that were taken back.
    pub revoked: Revoked,
}

/// How clients are identified.
#[derive(Debug, Clone)]
pub(crate) enum Mode {
    /// Not at all; a credential that comes anyway is not looked at.
    Anonymous,
    /// By a signed token.
    Jwt(Verifier, Own),
    /// By an application that is asked.
    Url(Arc<Webhook>, Own),
}

impl Mode {
    /// Whether clients are asked who they are. Where they are not, no credential is looked at, good or bad.
    pub(crate) fn asks(&self) -> bool {
        !matches!(self, Self::Anonymous)
    }

    /// The keys that others publish, where tokens are checked with such.
    fn published(&self) -> Option<&Arc<Published>> {
        match self {
            Self::Anonymous | Self::Url(..) => None,
            Self::Jwt(verifier, _) => verifier.published(),
        }
    }

    /// Whether the credential of this identity was taken back.
    fn revokes(&self, identity: &Identity) -> bool {
        match (self, &identity.token_id) {
            (Self::Jwt(_, own) | Self::Url(_, own), Some(id)) => own.revoked.has(id),
            _ => false,
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
        match (self, credential) {
            (Self::Anonymous, _) => Ok(Identity::anonymous()),
            (Self::Url(..), None) => Err(Refused::unauthorized(
                "unauthenticated",
                "The relay does not know who this is: log in at the application, whose session is sent with the request (auth.forward).",
            )),
            (Self::Jwt(..), None) => Err(Refused::no_credential()),
            (Self::Jwt(_, own) | Self::Url(_, own), Some(credential)) => {
                let token = credential.token();
                let identity = match Purpose::of_token(token) {
                    Some(Purpose::Share) => own.by_share(token, now)?,
                    Some(Purpose::Ticket) => {
                        return Err(Refused::unauthorized(
                            "ticket_not_good",
                            "A ticket opens a connection, and is good for nothing else; send a token.",
                        ));
                    }
                    None => match self {
                        Self::Jwt(verifier, _) => verifier.verify(token, now)?,
                        Self::Url(application, _) => {
                            application.known(&webhook::as_shown(token), now)?
                        }
                        Self::Anonymous => Identity::anonymous(),
                    },
                };
                match self.revokes(&identity) {
                    true => Err(Refused::unauthorized(
                        "token_revoked",
                        "The token, or the share, was taken back before its time; get a new one.",
                    )),
                    false => Ok(identity),
                }
            }
        }
    }
}

impl Own {
    fn by_share(&self, token: &str, now: WallTime) -> Result<Identity, Refused> {
        let shares = self.shares.as_ref().ok_or_else(|| {
            Refused::unauthorized(
                "token_bad_signature",
                "This relay has no key for shares (auth.share_key).",
            )
        })?;
        let (shared, id, ends) = shares.open(token, now)?;
        Ok(Identity {
            token_id: Some(id),
            shared: Some(shared),
            expires_at: Some(ends),
            ..Identity::nobody()
        })
    }
}

/// One client's identity: who it is and what it was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user, from the token's `sub`; none in anonymous mode.
    pub user: Option<Name>,
    /// What the token grants beyond the user's own jobs.
    pub grants: Grants,
    /// When the token is no longer good, the leeway for clocks included. A connection must end then.
    pub expires_at: Option<WallTime>,
    /// Everything is allowed, because nobody is identified.
    pub anonymous: bool,
    /// The id of the credential (`jti`), by which it can be taken back.
    pub token_id: Option<Box<str>>,
    /// The one job that may be watched, by a share.
    pub shared: Option<Shared>,
}

impl Identity {
    /// Itself, to be kept by a connection. Where nobody is identified, all are the same one.
    pub(crate) fn shared(self) -> Arc<Self> {
        static ANYBODY: LazyLock<Arc<Identity>> = LazyLock::new(|| Arc::new(Identity::anonymous()));
        if self == **ANYBODY {
            return ANYBODY.clone();
        }
        Arc::new(self)
    }

    /// The identity of everybody in anonymous mode.
    pub(crate) fn anonymous() -> Self {
        Self {
            user: None,
            grants: Grants::default(),
            expires_at: None,
            anonymous: true,
            token_id: None,
            shared: None,
        }
    }

    /// An identity that may do nothing yet: of a client that will say later who it is.
    pub(crate) fn nobody() -> Self {
        Self {
            anonymous: false,
            ..Self::anonymous()
        }
    }

    /// Whether a job of this `owner` and `parent` may be shown, under whichever topic it was found.
    pub(crate) fn may_see(&self, job: &JobId, owner: &Name, parent: Option<&Name>) -> bool {
        if let Some(shared) = &self.shared {
            return shared.is(job, owner);
        }
        self.anonymous
            || self.is_own(owner)
            || self.grants.watches_user(owner)
            || self.grants.watches_job(Some(owner), job)
            || parent.is_some_and(|parent| self.grants.watches_group(Some(owner), parent))
    }

    /// Whether jobs of `owner` may be published over HTTP. A user's own are not implied: a browser that
    /// watches jobs must not be able to forge their progress.
    pub(crate) fn may_publish(&self, owner: &Name) -> bool {
        self.anonymous || self.grants.publishes(owner)
    }

    /// Whether jobs of anybody may be published over HTTP.
    pub(crate) fn may_publish_some(&self) -> bool {
        self.anonymous || self.grants.publishes_some()
    }

    /// Whether the credential is past its end.
    pub(crate) fn is_expired(&self, now: WallTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// How long the credential is good yet, where it ends.
    pub(crate) fn left(&self, now: WallTime) -> Option<Duration> {
        let end = self.expires_at?.as_unix_micros();
        let left = end.saturating_sub(now.as_unix_micros());
        Some(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
    }

    /// Whose jobs a name without an owner means first: the client's own, or that of what is shared with it.
    pub(crate) fn own(&self) -> Option<&Name> {
        let shared = self.shared.as_ref().map(|shared| &shared.job.owner);
        shared.or(self.user.as_ref().filter(|user| !user.is_nobody()))
    }

    fn is_own(&self, owner: &Name) -> bool {
        self.is(owner) && !owner.is_nobody()
    }

    fn is(&self, user: &Name) -> bool {
        self.user.as_ref() == Some(user)
    }
}

impl Viewer for Identity {
    /// Whether `topic` may be subscribed to, before anything is known of the jobs in it.
    ///
    /// [`Sight::WhenKnown`] means: let the subscription stand, and ask [`Identity::may_see`] for each job
    /// before it is sent. That way a client can wait for its job before the worker's first update.
    fn sight(&self, topic: &Topic) -> Sight {
        if self.anonymous || self.grants.watches(topic) {
            return Sight::Yes;
        }
        if let Some(shared) = &self.shared {
            return match topic {
                Topic::Job(named) if named.id == shared.job.job => match &named.owner {
                    // Whose job it is has to be known.
                    None => Sight::WhenKnown,
                    Some(owner) if *owner == shared.job.owner => Sight::Yes,
                    Some(_) => Sight::No,
                },
                _ => Sight::No,
            };
        }
        let (owner, is_job) = match topic {
            Topic::User(user) if self.is(user) => return Sight::Yes,
            Topic::User(_) => return Sight::No,
            Topic::Job(named) => (named.owner.as_ref(), true),
            Topic::Group(named) => (named.owner.as_ref(), false),
        };
        match owner {
            // Whose it is will be seen.
            None => Sight::WhenKnown,
            Some(owner) if self.is_own(owner) || self.grants.watches_user(owner) => Sight::Yes,
            // It may be in a group that is granted.
            Some(_) if is_job && self.grants.has_groups() => Sight::WhenKnown,
            Some(_) => Sight::No,
        }
    }

    /// Whether `topic` may be watched, given what is known of the job that is about to be shown under it.
    ///
    /// With `owner` unknown, a job or group may be waited for; ask again when it is known. Under a group the
    /// job itself is not named here: [`Identity::may_see`] weighs grants for single jobs too.
    fn may_watch(&self, topic: &Topic, owner: Option<&Name>, parent: Option<&Name>) -> bool {
        match (self.sight(topic), owner) {
            (Sight::Yes, _) => true,
            (Sight::No, _) => false,
            (Sight::WhenKnown, None) => true,
            (Sight::WhenKnown, Some(owner)) => match topic {
                Topic::Job(job) => {
                    job.owner.as_ref().is_none_or(|named| named == owner)
                        && self.may_see(&job.id, owner, parent)
                }
                Topic::Group(group) => {
                    self.is_own(owner)
                        || self.grants.watches_user(owner)
                        || self.grants.watches_group(Some(owner), &group.id)
                }
                Topic::User(_) => false,
            },
        }
    }
}

#[cfg(test)]
pub(crate) mod test_keys;
#[cfg(test)]
mod tests;
