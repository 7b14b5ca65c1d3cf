//! Tokens for tests: the claims a relay reads, and the compact form of a JWT, good or forged.
//!
//! Knows no cryptography: whoever wants a signature passes the function that makes it, so that a test
//! can sign with the wrong key, the wrong algorithm or not at all.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

/// What a token says.
#[derive(Debug, Clone)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// A token of `user`, good for an hour.
    pub fn of(user: &str) -> Self {
        let claims = Self(Map::new());
        claims
            .set("sub", json!(user))
            .set("exp", json!(now() + 3600))
    }

    /// Sets any claim.
    #[must_use]
    pub fn set(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// The topics it may watch besides its own jobs.
    #[must_use]
    pub fn topics(self, topics: &[&str]) -> Self {
        self.set("topics", json!(topics))
    }

    /// The owners it may publish for over HTTP.
    #[must_use]
    pub fn publish(self, owners: &[&str]) -> Self {
        self.set("publish", json!(owners))
    }

    /// The moment it ends, from now on.
    #[must_use]
    pub fn expires_in(self, duration: Duration) -> Self {
        self.set("exp", json!(now() + duration.as_secs()))
    }

    /// A moment in the past at which it ended.
    #[must_use]
    pub fn expired_since(self, duration: Duration) -> Self {
        self.set("exp", json!(now() - duration.as_secs()))
    }

    /// The claims as JSON.
    pub fn json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// The compact form: `sign` gets the signing input and gives the signature's bytes.
    pub fn signed(&self, algorithm: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(self.json().to_string())
        );
        let signature = URL_SAFE_NO_PAD.encode(sign(input.as_bytes()));
        format!("{input}.{signature}")
    }

    /// The forgery with `"alg":"none"` and no signature.
    pub fn unsigned(&self) -> String {
        self.signed("none", |_| Vec::new())
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts_and_says_its_claims() {
        let token = Claims::of("alice")
            .topics(&["job:x"])
            .signed("HS256", |input| input[..2].to_vec());
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(parts.len(), 3);
        let claims = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["sub"], "alice");
        assert_eq!(claims["topics"], json!(["job:x"]));
        assert!(Claims::of("alice").unsigned().ends_with('.'));
    }
}
