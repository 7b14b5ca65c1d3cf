//! The keys of a JSON Web Key Set (RFC 7517), as far as tokens can be checked with them.
//!
//! A key that is of no use here (for encryption, of another algorithm, damaged) is left out and counted; the others
//! are taken. Where a set comes from is not known here.
//!
//! Invariant: no shared secret is ever taken out of a set, and a key is used for algorithms of its own kind alone.

use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::Value;

use super::key::{Algorithm, Kind, check_usable};
use super::keyring::{Key, Keyring};

/// The most keys in a set.
const MAX_SET: usize = 128;
/// Characters of an RSA modulus in base64: from 2048 to 8192 bits.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 340..=1368;

/// Why a set gives no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwksError {
    /// Not JSON, or not an object with `keys`.
    #[error("is not a JSON Web Key Set ({{\"keys\": […]}}): it begins with {0:?}")]
    NotASet(String),
    /// More than anybody needs.
    #[error("has {0} keys; at most {MAX_SET} are looked at")]
    TooMany(usize),
    /// None of use.
    #[error("has no key that tokens can be checked with: {0}")]
    NoneUsable(String),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// What was taken from a set.
#[derive(Debug)]
pub(crate) struct Taken {
    pub keys: Keyring,
    /// Why others were left out, a sentence for each.
    pub left_out: Vec<String>,
}

/// Takes the keys that can be used for one of the `listed` algorithms; for the usual one of each where none are
/// listed.
///
/// # Errors
/// Says why there are none.
pub(crate) fn read(bytes: &[u8], listed: &[Algorithm]) -> Result<Taken, JwksError> {
    let set: Set =
        serde_json::from_slice(bytes).map_err(|_| JwksError::NotASet(beginning(bytes)))?;
    if set.keys.len() > MAX_SET {
        return Err(JwksError::TooMany(set.keys.len()));
    }
    let (mut keys, mut left_out) = (Vec::new(), Vec::new());
    for jwk in &set.keys {
        match key(jwk, listed) {
            Ok(key) => keys.push(key),
            Err(why) => left_out.push(format!("{:?} {why}", shown_id(jwk))),
        }
    }
    if keys.is_empty() {
        let why = match left_out.first() {
            Some(first) => format!("{first} ({} keys in all)", left_out.len()),
            None => "it is empty".to_owned(),
        };
        return Err(JwksError::NoneUsable(why));
    }
    Ok(Taken {
        keys: Keyring::of(keys),
        left_out,
    })
}

fn key(jwk: &Value, listed: &[Algorithm]) -> Result<Key, &'static str> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return Err("is not for signatures");
    }
    let operations = jwk.get("key_ops").and_then(Value::as_array);
    if operations.is_some_and(|all| !all.iter().any(|each| each == "verify")) {
        return Err("is not for checking signatures");
    }
    if jwk.get("d").is_some() {
        return Err("is a private key, which nobody but its owner should have");
    }
    let part = |name| text(name).ok_or("is not complete");
    let (kind, key) = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => {
            let modulus = part("n")?;
            if !RSA_MODULUS.contains(&modulus.trim_end_matches('=').len()) {
                return Err("is an RSA key of fewer than 2048 or more than 8192 bits");
            }
            (
                Kind::Rsa,
                DecodingKey::from_rsa_components(modulus, part("e")?),
            )
        }
        (Some("EC"), Some("P-256")) => (
            Kind::Ec,
            DecodingKey::from_ec_components(part("x")?, part("y")?),
        ),
        (Some("OKP"), Some("Ed25519")) => (Kind::Ed, DecodingKey::from_ed_components(part("x")?)),
        (Some("oct"), _) => return Err("is a shared secret, which is never taken from a set"),
        _ => return Err("is not an RSA, EC P-256 or Ed25519 key"),
    };
    let key = key.map_err(|_| "is damaged")?;
    let own = |algorithm: &Algorithm| Kind::of(*algorithm) == kind;
    let usual = [kind.usual()];
    let allowed = if listed.is_empty() { &usual } else { listed };
    let named = text("alg");
    let fits = |each: &&Algorithm| own(each) && named.is_none_or(|alg| alg == each.to_string());
    let algorithms: Vec<Algorithm> = allowed.iter().filter(fits).copied().collect();
    let Some(first) = algorithms.first() else {
        return Err("is for an algorithm that is not accepted (auth.algorithms)");
    };
    check_usable(&key, *first).map_err(|_| "is damaged")?;
    Ok(Key {
        id: text("kid").map(Box::from),
        algorithms: algorithms.into(),
        key,
    })
}

fn shown_id(jwk: &Value) -> String {
    let id = jwk.get("kid").and_then(Value::as_str).unwrap_or("");
    id.chars().take(64).collect()
}

/// The beginning of what is not what it should be, fit for a line of a log.
pub(super) fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned();
    text.trim_start().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::test_keys;
    use serde_json::json;

    fn read_set(keys: &Value, listed: &[Algorithm]) -> Result<Taken, JwksError> {
        read(json!({ "keys": keys }).to_string().as_bytes(), listed)
    }

    #[test]
    fn keys_of_all_kinds_are_taken_for_what_they_are_for() {
        let set = json!([
            test_keys::rsa().jwk("r"),
            test_keys::ec().jwk("e"),
            test_keys::ed().jwk("d"),
        ]);
        let taken = read_set(&set, &[]).unwrap();
        assert_eq!(taken.keys.len(), 3);
        let all = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        assert_eq!(taken.keys.algorithms(), all);
        for (algorithm, kid, found) in [
            (Algorithm::RS256, Some("r"), 1),
            (Algorithm::ES256, Some("r"), 0),
            (Algorithm::ES256, Some("x"), 0),
            (Algorithm::HS256, Some("r"), 0),
            (Algorithm::ES256, None, 1),
        ] {
            let candidates = taken.keys.candidates(algorithm, kid);
            assert_eq!(candidates.len(), found, "{algorithm} {kid:?}");
        }
        let taken = read_set(&set, &[Algorithm::ES256]).unwrap();
        assert_eq!((taken.keys.len(), taken.left_out.len()), (1, 2));
    }

    #[test]
    fn what_is_of_no_use_is_left_out_with_the_reason() {
        let rsa = test_keys::rsa();
        let with = |name: &str, value: Value| {
            let mut jwk = rsa.jwk("k");
            jwk[name] = value;
            jwk
        };
        for (jwk, why) in [
            (with("use", json!("enc")), "not for signatures"),
            (with("key_ops", json!(["encrypt"])), "not for checking"),
            (with("d", json!("AQAB")), "private key"),
            (with("alg", json!("PS256")), "not accepted"),
            (with("alg", json!("HS256")), "not accepted"),
            (with("n", json!("AQAB")), "fewer than 2048"),
            (with("n", json!("A".repeat(400_000))), "more than 8192"),
            (with("n", json!("!".repeat(342))), "damaged"),
            (with("n", json!(7)), "not complete"),
            (with("kty", json!("oct")), "shared secret"),
            (with("kty", json!(null)), "not an RSA"),
            (
                json!({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}),
                "not an RSA",
            ),
            (
                json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
                "damaged",
            ),
            (json!(null), "not an RSA"),
            (json!([]), "not an RSA"),
        ] {
            let error = read_set(&json!([jwk]), &[]).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.to_string().len() < 300, "{error}");
            let taken = read_set(&json!([jwk, rsa.jwk("k")]), &[]).unwrap();
            assert_eq!((taken.keys.len(), taken.left_out.len()), (1, 1));
        }
    }

    #[test]
    fn what_is_not_a_set_is_said_by_its_beginning() {
        for text in [
            "<!DOCTYPE html><title>Sign in</title>",
            "",
            "[]",
            "{}",
            "{\"keys\":{}}",
            "\u{0}\u{1}",
        ] {
            let error = read(text.as_bytes(), &[]).unwrap_err();
            assert!(matches!(error, JwksError::NotASet(_)), "{error}");
        }
        assert!(read(b"\xff\xfe", &[]).is_err());
        let html = read(b"  <html><body>Sign in</body></html>", &[]).unwrap_err();
        assert!(
            html.to_string().contains("begins with \"<html><body>"),
            "{html}"
        );
        let error = read_set(&json!(vec![json!({}); 129]), &[]).unwrap_err();
        assert_eq!(error, JwksError::TooMany(129));
        let error = read_set(&json!([]), &[]).unwrap_err();
        assert!(error.to_string().ends_with("it is empty"), "{error}");
    }
}
