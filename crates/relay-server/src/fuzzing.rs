//! What the fuzz targets reach that is private: tokens, and the heads of requests.
//!
//! Built for them and for tests only; it is no part of what the relay does. `fuzz/` says what is fuzzed, `scripts/fuzz`
//! runs it.
//!
//! Invariant: each function panics where the relay is wrong, and nowhere else.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use relay_core::moment::WallTime;

use crate::forwarded::X_FORWARDED_FOR;
use crate::identity::jwks;
use crate::identity::key::KeyMaterial;
use crate::identity::keyring::Keyring;
use crate::identity::signing::SigningKey;
use crate::identity::verifier::Expected;
use crate::identity::{Algorithm, Verifier, credential};
use crate::origin::{AllowedOrigin, Origin, Policy, Standing};
use crate::proxies::{Forwarding, Network, Proxies};

const SECRET: &str = "a secret that is known to these functions alone, and long enough";
/// 2026, in microseconds.
const NOW: WallTime = WallTime::from_unix_micros(1_770_000_000_000_000);

#[allow(clippy::unwrap_used, reason = "the key is written above")]
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let material = KeyMaterial::read(Some(SECRET), None).unwrap();
    let keys = Keyring::new(&material, &[Algorithm::HS256]).unwrap();
    let expected = Expected {
        leeway: Duration::from_secs(60),
        ..Expected::default()
    };
    Verifier::new(keys, None, expected)
});

/// A token nobody signed is refused; claims that are signed, whatever they are, let in only a user with a name, and
/// not for ever.
pub fn token(text: &str) {
    assert!(
        VERIFIER.verify(text, NOW).is_err(),
        "a token that nobody signed is taken: {text}"
    );
    let Ok(claims) = serde_json::from_str::<serde_json::Value>(text) else {
        return;
    };
    let Ok(key) = SigningKey::new(SECRET.as_bytes(), Some(Algorithm::HS256)) else {
        return;
    };
    let Ok(signed) = key.sign(&claims) else {
        return;
    };
    if let Ok(identity) = VERIFIER.verify(&signed, NOW) {
        assert!(identity.user.is_some(), "{claims}");
        assert!(claims["sub"].is_string(), "{claims}");
        assert!(identity.expires_at.is_some_and(|end| end > NOW), "{claims}");
        assert!(claims.get("aud").is_none(), "{claims}");
    }
}

/// A set of keys as an issuer publishes it: none is of no use, and none serves for more than its kind.
pub fn key_set(bytes: &[u8]) {
    for listed in [&[][..], &[Algorithm::RS256, Algorithm::ES256]] {
        if let Ok(taken) = jwks::read(bytes, listed) {
            let algorithms = taken.keys.algorithms();
            assert!(taken.keys.len() > 0 && !algorithms.is_empty());
            // Whoever publishes a set signs with private keys.
            assert!(!algorithms.contains(&Algorithm::HS256));
            assert!(listed.is_empty() || algorithms.iter().all(|each| listed.contains(each)));
        }
    }
}

/// The names that headers get in turn.
const NAMES: [HeaderName; 9] = [
    header::ORIGIN,
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::ACCESS_CONTROL_REQUEST_HEADERS,
    header::FORWARDED,
    X_FORWARDED_FOR,
    HeaderName::from_static("x-forwarded-proto"),
];

/// The head of a request, of headers by number: a page of another origin is not let in, and no credential is made of
/// what is none.
pub fn request(target: &str, lines: &[(u8, &[u8])]) {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(NAMES[usize::from(*name) % NAMES.len()].clone(), value);
        }
    }
    let uri: Uri = target.parse().unwrap_or_default();
    for cookie in [Some("relay_token"), None] {
        if let Ok(Some(found)) = credential(&headers, &uri, cookie) {
            assert!(!found.token().is_empty());
        }
    }
    let listen = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let allowed: Vec<AllowedOrigin> = "https://app.example".parse().into_iter().collect();
    let policy = Policy::new(&allowed, listen);
    for is_secure in [None, Some(true), Some(false)] {
        stands(&policy, &uri, &headers, is_secure);
    }
    passed_on(&headers);
    let answer = crate::origin::preflight(&headers);
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

/// A page stands as its own, as listed, or not at all.
fn stands(policy: &Policy, uri: &Uri, headers: &HeaderMap, is_secure: Option<bool>) {
    if let Ok(standing) = policy.check(uri, headers, is_secure) {
        let origin = headers.get(header::ORIGIN).and_then(|it| it.to_str().ok());
        match standing {
            Standing::None => assert_eq!(origin, None),
            Standing::Listed => {
                let named = origin.and_then(|it| Origin::parse(it).ok());
                assert_eq!(named, Origin::parse("https://app.example").ok());
            }
            Standing::Own => assert!(headers.contains_key(header::HOST) || uri.host().is_some()),
            Standing::Loopback | Standing::Anyone => panic!("{origin:?} stands as {standing:?}"),
        }
        let answered = policy.response_headers(standing, headers).count();
        assert!(answered > 0);
    }
}

/// What proxies write counts from trusted ones alone, and nobody passes as one of them.
fn passed_on(headers: &HeaderMap) {
    let trusted: Vec<Network> = "192.0.2.0/24".parse().into_iter().collect();
    let proxy = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let stranger = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    for by in [Forwarding::XForwardedFor, Forwarding::Forwarded] {
        let proxies = Proxies::new(&trusted, Some(by));
        let socket = proxies.peer(stranger);
        assert_eq!(proxies.client(socket, headers), socket);
        let client = proxies.client(proxies.peer(proxy), headers);
        let is_proxy = matches!(client.address, IpAddr::V4(it) if it.octets()[..3] == [192, 0, 2]);
        assert!(client.counted().is_some() || is_proxy, "{client:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_passes_what_is_fuzzed() {
        token("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.x");
        token(r#"{"sub":"alice","exp":1800000000,"publish":["alice"]}"#);
        token(r#"{"sub":"alice","exp":1800000000,"aud":5}"#);
        request(
            "/v1/ws?token=a.b.c",
            &[
                (0, b"https://app.example"),
                (1, b"relay.example"),
                (2, b"Bearer a.b.c"),
                (3, b"relay_token=a.b.c; other=1"),
                (4, b"relay.v1, relay.token.a.b.c"),
                (
                    6,
                    b"for=198.51.100.1;proto=https, for=\"[2001:db8::1]:8080\"",
                ),
                (7, b"198.51.100.1, 192.0.2.7"),
                (8, b"https"),
            ],
        );
        key_set(br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#);
        key_set(br#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#);
        request("*", &[(0, b"https://evil.example"), (1, b"relay.example")]);
    }
}
