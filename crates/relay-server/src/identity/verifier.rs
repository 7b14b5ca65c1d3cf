//! Checks a token and makes an [`Identity`] of it.
//!
//! Signature and registered claims are the token library's work; here stand the relay's own claims and the
//! sentences a person is told.
//!
//! Invariant: no refusal repeats the token, and none says more about it after its signature failed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{TokenData, Validation};
use relay_core::id::Name;
use relay_core::id::user::user_name;
use relay_core::moment::WallTime;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::key::{Algorithm, library_algorithm};
use super::keyring::Keyring;
use super::published::{Published, Seen};
use super::{Grants, Identity};
use crate::refused::Refused;

/// The claim that a user's id is in by default.
const SUBJECT: &str = "sub";
/// A claim that is worth nothing unless its issuer has verified it.
const EMAIL: &str = "email";

/// Checks tokens by the keys it has. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Verifier(Arc<Rules>);

/// What a token must be, besides signed with the right key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// What `aud` must be or contain. `None`: a token that names an audience is refused.
    pub audience: Option<String>,
    /// What `iss` must be. `None`: any.
    pub issuer: Option<String>,
    /// How far clocks may be apart.
    pub leeway: Duration,
    /// The claim that the user's id is in. `None`: `sub`.
    pub user_claim: Option<String>,
}

struct Rules {
    /// The keys of the configuration.
    keys: Keyring,
    /// Keys that others publish.
    published: Option<Arc<Published>>,
    expected: Expected,
}

/// Why a token is not good.
#[derive(Debug)]
enum Unverified {
    /// It is not, and that is final.
    Refused(Refused),
    /// It is of a key that is not there. It may be when keys are fetched again.
    NoKey(Refused, Later),
}

impl From<Refused> for Unverified {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// News of published keys that a token waits for.
#[derive(Debug, Clone)]
pub(crate) struct Later {
    published: Arc<Published>,
    seen: Seen,
}

impl Later {
    /// Waits for the news. Whether they are all there is.
    ///
    /// # Errors
    /// 503: they do not come.
    pub(crate) async fn news(&self) -> Result<bool, Refused> {
        let news = self.published.news(self.seen).await;
        news.map_err(|_| {
            Refused::unavailable(
                "identity_unavailable",
                "The token is signed with a key that this relay does not have, and the keys of its issuer cannot be fetched at the moment. Try again in some seconds.",
            )
        })
    }
}

/// What the header of a token says, as far as it is asked for before the signature is checked.
#[derive(Debug)]
pub(super) struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
}

/// The claims the relay reads. Untyped, so that a wrong type gets a sentence of its own.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Value,
    #[serde(default)]
    exp: Value,
    #[serde(default)]
    nbf: Value,
    /// Whether the token names an audience, of whatever type.
    #[serde(default, deserialize_with = "present")]
    aud: bool,
    #[serde(default)]
    iss: Value,
    topics: Option<Value>,
    publish: Option<Value>,
    #[serde(default)]
    jti: Value,
    /// What the issuer knows of the claim `email`.
    #[serde(default, deserialize_with = "yes_or_no")]
    email_verified: Option<bool>,
}

impl Verifier {
    /// Checks tokens with `keys`, as `expected` says.
    pub(crate) fn new(
        keys: Keyring,
        published: Option<Arc<Published>>,
        expected: Expected,
    ) -> Self {
        Self(Arc::new(Rules {
            keys,
            published,
            expected,
        }))
    }

    /// The keys that others publish.
    pub(crate) fn published(&self) -> Option<&Arc<Published>> {
        self.0.published.as_ref()
    }

    /// The identity of the bearer of `token`, `now`.
    ///
    /// # Errors
    /// 401 with a code and a sentence for each thing that can be wrong with it.
    pub(crate) fn verify(&self, token: &str, now: WallTime) -> Result<Identity, Refused> {
        self.check(token, now)
            .map_err(|unverified| match unverified {
                Unverified::Refused(refused) | Unverified::NoKey(refused, _) => refused,
            })
    }

    /// What is to be waited for before `token` is verified: its key may be there then.
    pub(crate) fn later(&self, token: &str, now: WallTime) -> Option<Later> {
        let published = self.0.published.as_ref()?;
        let header = self.0.header(token).ok()?;
        let known = header.kid.is_some_and(|kid| published.keys().has(&kid));
        match (!known).then(|| self.check(token, now))? {
            Err(Unverified::NoKey(_, later)) => Some(later),
            Ok(_) | Err(Unverified::Refused(_)) => None,
        }
    }

    fn check(&self, token: &str, now: WallTime) -> Result<Identity, Unverified> {
        let rules = &self.0;
        let header = rules.header(token)?;
        let data = rules.decode(token, &header)?;
        // An extension that must be understood (RFC 7515, 4.1.11); the relay understands none.
        if data.header.crit.is_some() {
            return Err(
                malformed("it demands extensions (crit) that the relay does not know").into(),
            );
        }
        let claims = data.claims;
        // The library passes over an audience that is neither a text nor a list, and takes an issuer out of a list.
        if rules.expected.audience.is_none() && claims.aud {
            return Err(rules.refuse(&ErrorKind::InvalidAudience).into());
        }
        if rules.expected.issuer.is_some() && !claims.iss.is_string() {
            return Err(rules.refuse(&ErrorKind::InvalidIssuer).into());
        }
        if rules.begin(&claims.nbf)?.is_some_and(|begin| begin > now) {
            return Err(Refused::unauthorized(
                "token_not_yet_valid",
                "The token is not valid yet (nbf); check the clocks of its issuer and of the relay.",
            )
            .into());
        }
        let end = rules.end(&claims.exp)?;
        if end <= now {
            return Err(Refused::unauthorized(
                "token_expired",
                "The token has expired; get a new one.",
            )
            .into());
        }
        let user = match rules.expected.user_claim.as_deref() {
            None | Some(SUBJECT) => subject(SUBJECT, &claims.sub)?,
            Some(EMAIL) if claims.email_verified == Some(false) => {
                return Err(Refused::unauthorized(
                    "token_bad_subject",
                    "The token's e-mail address is not verified (email_verified), so it says nothing about who the user is.",
                )
                .into());
            }
            Some(name) => subject(name, &claim(token, name)?)?,
        };
        let grants = Grants::from_claims(claims.topics.as_ref(), claims.publish.as_ref()).map_err(
            |error| {
                Refused::unauthorized(
                    "token_bad_grants",
                    format!("The token is rejected: {error}."),
                )
            },
        )?;
        Ok(Identity {
            user: Some(user),
            grants,
            expires_at: Some(end),
            anonymous: false,
            token_id: claims.jti.as_str().map(Box::from),
            shared: None,
        })
    }
}

impl Rules {
    /// Says early and plainly what the library would call malformed: another algorithm, `none` among them.
    fn header(&self, token: &str) -> Result<Header, Refused> {
        #[derive(Deserialize)]
        struct Written {
            alg: String,
            kid: Option<String>,
        }
        let parts: Vec<&str> = token.splitn(4, '.').collect();
        let [header, _, _] = parts.as_slice() else {
            return Err(malformed("it is not three parts with dots between"));
        };
        let written: Written = URL_SAFE_NO_PAD
            .decode(header)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(|| malformed("its header is not JSON with an alg"))?;
        let accepted = self.accepted();
        let known = accepted.iter().find(|each| each.to_string() == written.alg);
        if let Some(algorithm) = known {
            return Ok(Header {
                algorithm: *algorithm,
                kid: written.kid,
            });
        }
        Err(Refused::unauthorized(
            "token_bad_algorithm",
            format!(
                "The token is signed with {:?}; this relay accepts {} (auth.algorithms).",
                shortened(&written.alg, 16),
                self.accepted_names()
            ),
        ))
    }

    /// What tokens may be signed with, if not now then when the keys for it are published.
    fn accepted(&self) -> Vec<Algorithm> {
        let mut all = self.keys.algorithms();
        let published = self.published.iter().flat_map(|each| each.algorithms());
        all.extend(published.filter(|each| !self.keys.algorithms().contains(each)));
        all
    }

    fn accepted_names(&self) -> String {
        let names = self.accepted();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.join(", ")
    }

    /// Checks the signature by each key that the token may mean, and the claims that the library knows.
    fn decode(&self, token: &str, header: &Header) -> Result<TokenData<Claims>, Unverified> {
        let validation = self.validation(header.algorithm);
        let kid = header.kid.as_deref();
        // Before the keys are looked at: what is fetched from here on is news.
        let later = self.published.as_ref().map(|published| Later {
            published: published.clone(),
            seen: published.seen(),
        });
        let published = later.as_ref().map(|later| later.published.keys());
        let rings = [Some(&self.keys), published.as_deref()];
        let mut refusal = None;
        for ring in rings.into_iter().flatten() {
            for key in ring.candidates(header.algorithm, kid) {
                match jsonwebtoken::decode::<Claims>(token, key, &validation) {
                    Ok(data) => return Ok(data),
                    Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                        refusal = Some(self.refuse(error.kind()));
                    }
                    Err(error) => return Err(self.refuse(error.kind()).into()),
                }
            }
        }
        let refusal = refusal.unwrap_or_else(|| unknown_key(kid));
        let known = rings
            .iter()
            .flatten()
            .any(|ring| kid.is_some_and(|kid| ring.has(kid)));
        match later.filter(|later| !known && later.published.may_have(header.algorithm)) {
            Some(later) => Err(Unverified::NoKey(refusal, later)),
            None => Err(refusal.into()),
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut required = Vec::new();
        let mut validation = Validation {
            algorithms: vec![library_algorithm(algorithm)],
            leeway: self.expected.leeway.as_secs(),
            // It compares whole seconds and takes a token up to one second too long, and takes a time before 1970
            // for none; see `Rules::end`.
            validate_exp: false,
            validate_nbf: false,
            ..Validation::default()
        };
        if let Some(audience) = &self.expected.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &self.expected.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    /// From when on the token is good for nothing: "on or after" its `exp` (RFC 7519, 4.1.4), and the leeway.
    /// Connections on it end then, and no new one is let in.
    fn end(&self, exp: &Value) -> Result<WallTime, Refused> {
        // A fraction is cut off: the token ends no later for it.
        let seconds = seconds("exp", exp, f64::floor)?.ok_or_else(|| {
            Refused::unauthorized(
                "token_no_expiry",
                "The token has no expiry time (exp, in seconds since 1970); the relay accepts no token that never expires.",
            )
        })?;
        let micros = seconds.saturating_mul(1_000_000);
        Ok(WallTime::from_unix_micros(
            micros.saturating_add(self.leeway()),
        ))
    }

    /// From when on the token is good (RFC 7519, 4.1.5), less the leeway, where it says so.
    fn begin(&self, nbf: &Value) -> Result<Option<WallTime>, Refused> {
        let seconds = seconds("nbf", nbf, f64::ceil)?;
        let micros = seconds.map(|seconds| seconds.saturating_mul(1_000_000));
        Ok(micros.map(|micros| WallTime::from_unix_micros(micros.saturating_sub(self.leeway()))))
    }

    fn leeway(&self) -> i64 {
        i64::try_from(self.expected.leeway.as_micros()).unwrap_or(i64::MAX)
    }

    fn refuse(&self, error: &ErrorKind) -> Refused {
        let or_any = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let (code, message) = match error {
            ErrorKind::InvalidSignature => (
                "token_bad_signature",
                "The token's signature is wrong: it was signed with another key than the relay checks with, or changed on the way.".to_owned(),
            ),
            ErrorKind::InvalidAudience => (
                "token_bad_audience",
                format!("The token is meant for another audience (aud); this relay's is {} (auth.audience).", or_any(&self.expected.audience)),
            ),
            ErrorKind::InvalidIssuer => (
                "token_bad_issuer",
                format!("The token is from another issuer (iss); this relay trusts {} (auth.issuer).", or_any(&self.expected.issuer)),
            ),
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "aud" => ("token_bad_audience", format!("The token names no audience (aud); this relay's is {} (auth.audience).", or_any(&self.expected.audience))),
                _ => ("token_bad_issuer", format!("The token names no issuer (iss); this relay trusts {} (auth.issuer).", or_any(&self.expected.issuer))),
            },
            ErrorKind::InvalidClaimFormat(claim) => return malformed(&format!("its claim {claim} is not of the type it has to be")),
            ErrorKind::InvalidAlgorithm => (
                "token_bad_algorithm",
                format!("The token is signed in another way than this relay accepts: {} (auth.algorithms).", self.accepted_names()),
            ),
            ErrorKind::Json(_) => return malformed("its claims are not a JSON object, or hold a number that is out of range"),
            _ => return malformed("it cannot be decoded"),
        };
        Refused::unauthorized(code, message)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.0.keys)
            .field("expected", &self.0.expected)
            .finish()
    }
}

/// A claim that is true or false. Some issuers write it as a text; what else it may be is not true.
fn yes_or_no<'de, D: Deserializer<'de>>(claim: D) -> Result<Option<bool>, D::Error> {
    let claim = Value::deserialize(claim)?;
    Ok(Some(claim == true || claim == "true"))
}

/// A claim that is there, whatever its value.
fn present<'de, D: Deserializer<'de>>(claim: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(claim).map(|_| true)
}

/// A claim that is a time, in whole seconds, by `whole` where it has a fraction. One beyond all times that there are
/// is the last of them, or the first.
fn seconds(claim: &str, value: &Value, whole: fn(f64) -> f64) -> Result<Option<i64>, Refused> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value
        .as_i64()
        .or_else(|| value.as_u64().map(|_| i64::MAX))
        .or_else(|| value.as_f64().map(|number| whole(number) as i64));
    let why = || format!("its claim {claim} is not a number of seconds since 1970");
    number.map(Some).ok_or_else(|| malformed(&why()))
}

/// The token names a key that is not there. Ids of keys are public.
fn unknown_key(kid: Option<&str>) -> Refused {
    let named = shortened(kid.unwrap_or_default(), 64);
    Refused::unauthorized(
        "token_unknown_key",
        format!(
            "The token is signed with the key {named:?} (kid), which this relay does not have; get a new token, or give the relay that key."
        ),
    )
}

fn shortened(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

fn malformed(why: &str) -> Refused {
    Refused::unauthorized(
        "token_malformed",
        format!("The token is not a usable JWT: {why}."),
    )
}

/// The user whose id is the claim of this name.
fn subject(name: &str, claim: &Value) -> Result<Name, Refused> {
    let bad = |why: String| Refused::unauthorized("token_bad_subject", why);
    let named = shortened(name, 64);
    let id = match claim {
        Value::Null => {
            return Err(bad(format!(
                "The token does not say whose it is: its claim {named} is missing."
            )));
        }
        // A number is how some applications count their users; `sub` is a text in any case (RFC 7519, 4.1.2).
        Value::Number(number) if name != SUBJECT && (number.is_u64() || number.is_i64()) => {
            number.to_string()
        }
        Value::String(text) => text.clone(),
        _ => return Err(bad(format!("The token's claim {named} must be a text."))),
    };
    user_name(&id).map_err(|error| {
        bad(format!(
            "The token's claim {named} is not a usable user id: it {error}."
        ))
    })
}

/// One claim of a token whose signature has been checked. Twice is not once.
fn claim(token: &str, name: &str) -> Result<Value, Refused> {
    struct Pick<'a>(&'a str);

    impl<'de> DeserializeSeed<'de> for Pick<'_> {
        type Value = Option<Value>;

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_map(self)
        }
    }

    impl<'de> Visitor<'de> for Pick<'_> {
        type Value = Option<Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("claims")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut claims: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(name) = claims.next_key::<String>()? {
                if name != self.0 {
                    claims.next_value::<IgnoredAny>()?;
                } else if found.replace(claims.next_value()?).is_some() {
                    return Err(serde::de::Error::custom("twice"));
                }
            }
            Ok(found)
        }
    }

    let claims = token.split('.').nth(1).unwrap_or_default();
    let claims = URL_SAFE_NO_PAD.decode(claims).unwrap_or_default();
    let mut reader = serde_json::Deserializer::from_slice(&claims);
    let found = Pick(name).deserialize(&mut reader);
    let twice = |_| {
        malformed(&format!(
            "its claim {} is there twice, or not JSON",
            shortened(name, 64)
        ))
    };
    Ok(found.map_err(twice)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
