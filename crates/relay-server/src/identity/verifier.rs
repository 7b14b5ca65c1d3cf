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
use jsonwebtoken::{DecodingKey, Validation};
use relay_core::id::Name;
use relay_core::moment::WallTime;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::key::{Algorithm, KeyError, KeyMaterial, library_algorithm};
use super::{Grants, Identity};
use crate::refused::Refused;

/// Checks tokens by one key. Cheap to clone, so that each shard has its own.
#[derive(Clone)]
pub(crate) struct Verifier(Arc<Rules>);

/// What a token must be, besides signed with the right key.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// The signatures that are accepted, all of the key's kind.
    pub algorithms: Vec<Algorithm>,
    /// What `aud` must be or contain. `None`: a token that names an audience is refused.
    pub audience: Option<String>,
    /// What `iss` must be. `None`: any.
    pub issuer: Option<String>,
    /// How far clocks may be apart.
    pub leeway: Duration,
}

struct Rules {
    key: DecodingKey,
    validation: Validation,
    leeway: Duration,
    algorithms: String,
    audience: Option<String>,
    issuer: Option<String>,
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
}

impl Verifier {
    /// Checks tokens with the key of `material`, as `expected` says.
    ///
    /// # Errors
    /// When the algorithms do not belong to the key's kind, or the key is damaged.
    pub(crate) fn new(material: &KeyMaterial, expected: Expected) -> Result<Self, KeyError> {
        let key = material.decoding_key(&expected.algorithms)?;
        let mut required = Vec::new();
        let mut validation = Validation {
            algorithms: expected
                .algorithms
                .iter()
                .map(|algorithm| library_algorithm(*algorithm))
                .collect(),
            leeway: expected.leeway.as_secs(),
            // It compares whole seconds and takes a token up to one second too long, and takes a time before 1970
            // for none; see `Rules::end`.
            validate_exp: false,
            validate_nbf: false,
            ..Validation::default()
        };
        if let Some(audience) = &expected.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &expected.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        let algorithms = expected.algorithms.iter().map(ToString::to_string);
        let algorithms: Vec<String> = algorithms.collect();
        Ok(Self(Arc::new(Rules {
            key,
            validation,
            leeway: expected.leeway,
            algorithms: algorithms.join(", "),
            audience: expected.audience,
            issuer: expected.issuer,
        })))
    }

    /// The identity of the bearer of `token`, `now`.
    ///
    /// # Errors
    /// 401 with a code and a sentence for each thing that can be wrong with it.
    pub(crate) fn verify(&self, token: &str, now: WallTime) -> Result<Identity, Refused> {
        let rules = &self.0;
        rules.check_header(token)?;
        let data = jsonwebtoken::decode::<Claims>(token, &rules.key, &rules.validation)
            .map_err(|error| rules.refuse(error.kind()))?;
        // An extension that must be understood (RFC 7515, 4.1.11); the relay understands none.
        if data.header.crit.is_some() {
            return Err(malformed(
                "it demands extensions (crit) that the relay does not know",
            ));
        }
        let claims = data.claims;
        // The library passes over an audience that is neither a text nor a list, and takes an issuer out of a list.
        if rules.audience.is_none() && claims.aud {
            return Err(rules.refuse(&ErrorKind::InvalidAudience));
        }
        if rules.issuer.is_some() && !claims.iss.is_string() {
            return Err(rules.refuse(&ErrorKind::InvalidIssuer));
        }
        if rules.begin(&claims.nbf)?.is_some_and(|begin| begin > now) {
            return Err(Refused::unauthorized(
                "token_not_yet_valid",
                "The token is not valid yet (nbf); check the clocks of its issuer and of the relay.",
            ));
        }
        let end = rules.end(&claims.exp)?;
        if end <= now {
            return Err(Refused::unauthorized(
                "token_expired",
                "The token has expired; get a new one.",
            ));
        }
        let user = subject(&claims.sub)?;
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
        })
    }
}

impl Rules {
    /// Says early and plainly what the library would call malformed: another algorithm, `none` among them.
    fn check_header(&self, token: &str) -> Result<(), Refused> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
        }
        let parts: Vec<&str> = token.splitn(4, '.').collect();
        let [header, _, _] = parts.as_slice() else {
            return Err(malformed("it is not three parts with dots between"));
        };
        let header: Header = URL_SAFE_NO_PAD
            .decode(header)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(|| malformed("its header is not JSON with an alg"))?;
        let known = self
            .validation
            .algorithms
            .iter()
            .any(|a| format!("{a:?}") == header.alg);
        if known {
            return Ok(());
        }
        let named: String = header.alg.chars().take(16).collect();
        Err(Refused::unauthorized(
            "token_bad_algorithm",
            format!(
                "The token is signed with {named:?}; this relay accepts {} (auth.algorithms).",
                self.algorithms
            ),
        ))
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
        i64::try_from(self.leeway.as_micros()).unwrap_or(i64::MAX)
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
                format!("The token is meant for another audience (aud); this relay's is {} (auth.audience).", or_any(&self.audience)),
            ),
            ErrorKind::InvalidIssuer => (
                "token_bad_issuer",
                format!("The token is from another issuer (iss); this relay trusts {} (auth.issuer).", or_any(&self.issuer)),
            ),
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "aud" => ("token_bad_audience", format!("The token names no audience (aud); this relay's is {} (auth.audience).", or_any(&self.audience))),
                _ => ("token_bad_issuer", format!("The token names no issuer (iss); this relay trusts {} (auth.issuer).", or_any(&self.issuer))),
            },
            ErrorKind::InvalidClaimFormat(claim) => return malformed(&format!("its claim {claim} is not of the type it has to be")),
            ErrorKind::InvalidAlgorithm => (
                "token_bad_algorithm",
                format!("The token is signed in another way than this relay accepts: {} (auth.algorithms).", self.algorithms),
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
            .field("algorithms", &self.0.algorithms)
            .field("audience", &self.0.audience)
            .field("issuer", &self.0.issuer)
            .finish_non_exhaustive()
    }
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

fn malformed(why: &str) -> Refused {
    Refused::unauthorized(
        "token_malformed",
        format!("The token is not a usable JWT: {why}."),
    )
}

fn subject(sub: &Value) -> Result<Name, Refused> {
    let bad = |why: String| Refused::unauthorized("token_bad_subject", why);
    let text = match sub {
        Value::Null => {
            return Err(bad(
                "The token does not say whose it is: its claim sub is missing.".to_owned(),
            ));
        }
        sub => sub
            .as_str()
            .ok_or_else(|| bad("The token's claim sub must be a text.".to_owned()))?,
    };
    let user = Name::parse(text).map_err(|error| {
        bad(format!(
            "The token's claim sub is not a valid user id: it {error}."
        ))
    })?;
    // `-` is the owner of jobs that belong to nobody; nobody must not be somebody.
    if user.is_nobody() {
        return Err(bad(
            "The token's claim sub is \"-\", which stands for nobody.".to_owned(),
        ));
    }
    Ok(user)
}

#[cfg(test)]
mod tests;
