//! The key of the relay's own, by which it signs what it gives out itself: shares and tickets.
//!
//! It is given, or derived from the shared secret that users' tokens are signed with; and from it a key is derived
//! for each purpose. What is signed says its purpose in its header (`typ`) too.
//!
//! Invariant: what was signed for one purpose is good for no other, and a user's token for none.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const ALGORITHM: jsonwebtoken::Algorithm = jsonwebtoken::Algorithm::HS256;

/// What the relay signs something for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To watch one job.
    Share,
    /// To open one connection.
    Ticket,
}

impl Purpose {
    /// The `typ` of what is signed for it.
    pub(crate) fn typ(self) -> &'static str {
        match self {
            Self::Share => "relay-share+jwt",
            Self::Ticket => "relay-ticket+jwt",
        }
    }

    /// What a token says it was made for; `None` for a user's token, and for what is no token.
    pub(crate) fn of_token(token: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Header {
            typ: String,
        }
        let header = token.split('.').next()?;
        let header = URL_SAFE_NO_PAD.decode(header).ok()?;
        let header: Header = serde_json::from_slice(&header).ok()?;
        Self::of(&header.typ)
    }

    /// The purpose that a `typ` says. Its case makes no difference (RFC 7515, 4.1.9).
    fn of(typ: &str) -> Option<Self> {
        let all = [Self::Share, Self::Ticket];
        all.into_iter()
            .find(|each| each.typ().eq_ignore_ascii_case(typ))
    }
}

/// The key for one purpose.
#[derive(Clone)]
pub(crate) struct OwnKey {
    purpose: Purpose,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl OwnKey {
    /// The key that is derived from `secret` for `purpose`; `None` if it cannot be, which the library does not say
    /// of any text.
    pub(crate) fn derive(secret: &[u8], purpose: Purpose) -> Option<Self> {
        let context = format!("relay own key v1: {}", purpose.typ());
        let secret = EncodingKey::from_secret(secret);
        let derived = sign(context.as_bytes(), &secret, ALGORITHM).ok()?;
        Some(Self {
            purpose,
            encoding: EncodingKey::from_secret(derived.as_bytes()),
            decoding: DecodingKey::from_secret(derived.as_bytes()),
        })
    }

    /// Signs claims for its purpose.
    pub(crate) fn sign(&self, claims: &impl Serialize) -> Option<String> {
        let header = Header {
            typ: Some(self.purpose.typ().to_owned()),
            ..Header::new(ALGORITHM)
        };
        jsonwebtoken::encode(&header, claims, &self.encoding).ok()
    }

    /// The claims of something that was signed with this key, for its purpose. Whether it is good still is the
    /// caller's to see.
    pub(crate) fn open<T: DeserializeOwned>(&self, token: &str) -> Option<T> {
        let mut validation = Validation::new(ALGORITHM);
        validation.validate_exp = false;
        validation.set_required_spec_claims::<&str>(&[]);
        let data = jsonwebtoken::decode::<T>(token, &self.decoding, &validation).ok()?;
        let typ = data.header.typ.as_deref().and_then(Purpose::of);
        (typ == Some(self.purpose) && data.header.crit.is_none()).then_some(data.claims)
    }
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnKey")
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SECRET: &[u8] = b"a-secret-of-more-than-32-bytes-for-tests";

    fn key(secret: &[u8], purpose: Purpose) -> OwnKey {
        OwnKey::derive(secret, purpose).unwrap()
    }

    #[test]
    fn what_was_signed_is_opened_by_the_key_of_its_purpose_alone() {
        let share = key(SECRET, Purpose::Share);
        let token = share.sign(&json!({ "a": 1 })).unwrap();
        assert_eq!(share.open::<Value>(&token), Some(json!({ "a": 1 })));
        assert_eq!(key(SECRET, Purpose::Ticket).open::<Value>(&token), None);
        assert_eq!(key(b"another", Purpose::Share).open::<Value>(&token), None);
        for bad in ["", "a.b.c", &token[..token.len() - 1], &format!("{token}A")] {
            assert_eq!(share.open::<Value>(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_users_token_is_nothing_of_the_relays_own() {
        let share = key(SECRET, Purpose::Share);
        for typ in [
            None,
            Some("JWT"),
            Some("relay-share+jwt"),
            Some("relay-ticket+jwt"),
        ] {
            let header = Header {
                typ: typ.map(str::to_owned),
                ..Header::new(ALGORITHM)
            };
            let secret = EncodingKey::from_secret(SECRET);
            let token = jsonwebtoken::encode(&header, &json!({}), &secret).unwrap();
            assert_eq!(share.open::<Value>(&token), None, "{typ:?}");
            // Not even with the right key, under another name.
            let token = jsonwebtoken::encode(&header, &json!({}), &share.encoding).unwrap();
            let opened = share.open::<Value>(&token).is_some();
            assert_eq!(opened, typ == Some("relay-share+jwt"), "{typ:?}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let printed = format!("{:?}", key(SECRET, Purpose::Share));
        assert_eq!(printed, "OwnKey { purpose: Share, .. }");
    }
}
