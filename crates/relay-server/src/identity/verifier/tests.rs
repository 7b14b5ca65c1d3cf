//! Good and bad tokens and keys, as a relay with that configuration would meet them.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use relay_bus::clock::Clock;
use serde_json::json;

use super::*;
use crate::identity::key::{KeyError, KeyMaterial};
use crate::identity::signing::SigningKey;
use crate::identity::test_keys;

const SECRET: &str = "a-secret-of-more-than-32-bytes-for-tests";

fn wall() -> WallTime {
    Clock::start().wall()
}

fn now() -> i64 {
    wall().as_unix_micros() / 1_000_000
}

fn expected(algorithm: Algorithm) -> Asked {
    Asked {
        algorithms: vec![algorithm],
        expected: Expected {
            leeway: Duration::from_secs(30),
            ..Expected::default()
        },
    }
}

/// What a verifier is made for.
struct Asked {
    algorithms: Vec<Algorithm>,
    expected: Expected,
}

fn made(key: &str, asked: Asked) -> Result<Verifier, KeyError> {
    made_of(&KeyMaterial::read(Some(key), None)?, asked)
}

fn made_of(keys: &[KeyMaterial], asked: Asked) -> Result<Verifier, KeyError> {
    let ring = Keyring::new(keys, &asked.algorithms)?;
    ring.check_serves(keys, &asked.algorithms)?;
    Ok(Verifier::new(ring, None, asked.expected))
}

fn made_from_file(file: &Path) -> Result<Verifier, KeyError> {
    let material = KeyMaterial::read(None, Some(file))?;
    made_of(&material, expected(Algorithm::HS256))
}

fn verifier() -> Verifier {
    made(SECRET, expected(Algorithm::HS256)).unwrap()
}

fn sign(key: &str, algorithm: Algorithm, claims: &Value) -> String {
    SigningKey::new(key.as_bytes(), Some(algorithm))
        .unwrap()
        .sign(claims)
        .unwrap()
}

fn hs256(claims: &Value) -> String {
    sign(SECRET, Algorithm::HS256, claims)
}

fn good_claims() -> Value {
    json!({ "sub": "alice", "exp": now() + 3_600 })
}

fn with(claim: &str, value: Value) -> Value {
    let mut claims = good_claims();
    claims[claim] = value;
    claims
}

/// The code of the refusal, after checking what holds for every refusal.
fn refused(verifier: &Verifier, token: &str) -> &'static str {
    let refused = verifier.verify(token, wall()).unwrap_err();
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.message.ends_with('.'), "{refused}");
    for part in token.split('.').filter(|part| part.len() > 8) {
        assert!(!refused.message.contains(part), "{refused}");
    }
    refused.code
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

#[test]
fn every_algorithm_verifies_what_its_key_signed() {
    let (rsa, ec, ed) = (test_keys::rsa(), test_keys::ec(), test_keys::ed());
    for (private, public, algorithm) in [
        (SECRET, SECRET, Algorithm::HS256),
        (SECRET, SECRET, Algorithm::HS384),
        (SECRET, SECRET, Algorithm::HS512),
        (&rsa.private, &rsa.public, Algorithm::RS256),
        (&ec.private, &ec.public, Algorithm::ES256),
        (&ed.private, &ed.public, Algorithm::EdDSA),
    ] {
        let verifier = made(public, expected(algorithm)).unwrap();
        let token = sign(private, algorithm, &good_claims());
        let identity = verifier.verify(&token, wall()).unwrap();
        assert_eq!(identity.user, Some(name("alice")), "{algorithm}");
        let forged = token[..token.len() - 8].to_owned() + "AAAAAAAA";
        assert_eq!(refused(&verifier, &forged), "token_bad_signature");
    }
}

#[test]
fn a_token_of_another_key_is_refused() {
    let other = sign("another-secret", Algorithm::HS256, &good_claims());
    assert_eq!(refused(&verifier(), &other), "token_bad_signature");
    let (one, two) = (test_keys::ec(), test_keys::ec());
    let verifier = made(&one.public, expected(Algorithm::ES256)).unwrap();
    let token = sign(&two.private, Algorithm::ES256, &good_claims());
    assert_eq!(refused(&verifier, &token), "token_bad_signature");
}

#[test]
fn claims_changed_after_signing_are_refused() {
    let token = hs256(&good_claims());
    let parts: Vec<&str> = token.split('.').collect();
    let forged = URL_SAFE_NO_PAD.encode(with("topics", json!(["*"])).to_string());
    let token = format!("{}.{forged}.{}", parts[0], parts[2]);
    assert_eq!(refused(&verifier(), &token), "token_bad_signature");
}

#[test]
fn an_unsigned_token_is_refused_however_none_is_spelled() {
    let claims = URL_SAFE_NO_PAD.encode(good_claims().to_string());
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "typ": "JWT" }).to_string());
        for signature in ["", "AAAA"] {
            let token = format!("{header}.{claims}.{signature}");
            assert_eq!(refused(&verifier(), &token), "token_bad_algorithm", "{alg}");
        }
    }
}

#[test]
fn a_public_key_never_serves_as_a_shared_secret() {
    let rsa = test_keys::rsa();
    // The attack: sign with HS256, with the public key that everybody has as the secret.
    let header = json!({ "alg": "HS256", "typ": "JWT" });
    let forged_by = |secret: &[u8]| {
        let key = jsonwebtoken::EncodingKey::from_secret(secret);
        let header: jsonwebtoken::Header = serde_json::from_value(header.clone()).unwrap();
        jsonwebtoken::encode(&header, &good_claims(), &key).unwrap()
    };
    let verifier = made(&rsa.public, expected(Algorithm::RS256)).unwrap();
    for secret in [rsa.public.clone(), rsa.public.trim().to_owned()] {
        let token = forged_by(secret.as_bytes());
        assert_eq!(refused(&verifier, &token), "token_bad_algorithm");
    }
    // A configuration that would make it work is refused, in whatever form the public key comes.
    let body: String = rsa.public.lines().filter(|l| !l.starts_with('-')).collect();
    let jwk = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" }).to_string();
    for public in [
        rsa.public.as_str(),
        &rsa.public.replace('\n', "\\n"),
        &format!("  \n{}", rsa.public),
        &body,
        &jwk,
        "ssh-rsa AAAAB3NzaC1yc2E me@host",
    ] {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let made = made(public, expected(algorithm));
            assert!(made.is_err(), "{public}");
        }
    }
    let mut both = expected(Algorithm::RS256);
    both.algorithms.push(Algorithm::HS256);
    let error = made(&rsa.public, both).unwrap_err();
    assert!(matches!(error, KeyError::Mismatch { .. }), "{error}");
}

#[test]
fn a_public_key_in_binary_never_serves_as_a_shared_secret() {
    let ed = test_keys::ed();
    let der = test_keys::openssl_bytes(&["pkey", "-pubin", "-outform", "DER"], &ed.public);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), der).unwrap();
    let error = made_from_file(file.path()).unwrap_err();
    assert!(matches!(error, KeyError::PublicNotPem { .. }), "{error}");
}

#[test]
fn a_key_of_the_wrong_kind_is_refused_with_what_to_do() {
    let (rsa, ec, p384) = (test_keys::rsa(), test_keys::ec(), test_keys::ec_on("P-384"));
    let pkcs1 = test_keys::openssl(&["rsa", "-traditional"], &rsa.private);
    for (key, algorithm, says) in [
        (
            rsa.public.as_str(),
            Algorithm::ES256,
            "auth.algorithms = [\"RS256\"]",
        ),
        (
            &ec.public,
            Algorithm::EdDSA,
            "auth.algorithms = [\"ES256\"]",
        ),
        (SECRET, Algorithm::RS256, "holds a shared secret"),
        (&rsa.private, Algorithm::RS256, "-pubout"),
        (&pkcs1, Algorithm::RS256, "-pubout"),
        (&p384.public, Algorithm::ES256, "P-256"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            Algorithm::RS256,
            "x509",
        ),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            Algorithm::RS256,
            "not an RSA, EC or Ed25519 public key",
        ),
        (" \n", Algorithm::HS256, "is empty"),
    ] {
        let error = made(key, expected(algorithm)).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_key_file_may_end_with_a_line_end_that_is_not_part_of_the_secret() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
    let verifier = made_from_file(file.path()).unwrap();
    assert!(verifier.verify(&hs256(&good_claims()), wall()).is_ok());
}

#[test]
fn a_public_key_with_spelled_out_line_ends_is_understood() {
    let ec = test_keys::ec();
    let one_line = ec.public.replace('\n', "\\n");
    let verifier = made(&one_line, expected(Algorithm::ES256)).unwrap();
    let token = sign(&ec.private, Algorithm::ES256, &good_claims());
    assert!(verifier.verify(&token, wall()).is_ok());
}

#[test]
fn another_algorithm_of_the_same_key_is_refused_unless_listed() {
    let token = sign(SECRET, Algorithm::HS512, &good_claims());
    let refusal = verifier().verify(&token, wall()).unwrap_err();
    assert_eq!(refusal.code, "token_bad_algorithm");
    assert!(refusal.message.contains("HS512") && refusal.message.contains("HS256"));
    let mut both = expected(Algorithm::HS256);
    both.algorithms.push(Algorithm::HS512);
    assert!(made(SECRET, both).unwrap().verify(&token, wall()).is_ok());
}

#[test]
fn times_are_checked_with_leeway() {
    let mut asked = expected(Algorithm::HS256);
    asked.expected.leeway = Duration::from_secs(30);
    let verifier = made(SECRET, asked).unwrap();
    for (claims, code) in [
        (with("exp", json!(now() - 60)), Some("token_expired")),
        (with("exp", json!(now() - 10)), None),
        (with("nbf", json!(now() + 60)), Some("token_not_yet_valid")),
        (with("nbf", json!(now() + 10)), None),
        (with("exp", json!(0)), Some("token_expired")),
        (json!({ "sub": "alice" }), Some("token_no_expiry")),
        (with("exp", json!(null)), Some("token_no_expiry")),
        (with("exp", json!("tomorrow")), Some("token_malformed")),
        (with("exp", json!(true)), Some("token_malformed")),
        (with("exp", json!([now() + 60])), Some("token_malformed")),
        (with("exp", json!(-5)), Some("token_expired")),
        (with("exp", json!(-0.5)), Some("token_expired")),
        (with("exp", json!(i64::MIN)), Some("token_expired")),
        (with("exp", json!(-1e300)), Some("token_expired")),
        (with("exp", json!(1e300)), None),
        (with("exp", json!(u64::MAX)), None),
        (with("nbf", json!("now")), Some("token_malformed")),
        (with("nbf", json!(null)), None),
        (with("nbf", json!(-5)), None),
        (with("nbf", json!(-1e300)), None),
        (with("nbf", json!(now() as f64 + 0.5)), None),
        (with("nbf", json!(u64::MAX)), Some("token_not_yet_valid")),
        (with("nbf", json!(1e300)), Some("token_not_yet_valid")),
    ] {
        match code {
            Some(code) => assert_eq!(refused(&verifier, &hs256(&claims)), code, "{claims}"),
            None => assert!(verifier.verify(&hs256(&claims), wall()).is_ok(), "{claims}"),
        }
    }
}

#[test]
fn an_identity_ends_when_its_token_would_no_longer_be_let_in() {
    let exp = now() + 100;
    for exp_claim in [json!(exp), json!(exp as f64 + 0.4)] {
        let identity = verifier()
            .verify(&hs256(&with("exp", exp_claim)), wall())
            .unwrap();
        let end = WallTime::from_unix_micros((exp + 30) * 1_000_000);
        assert_eq!(identity.expires_at, Some(end));
        assert!(!identity.is_expired(WallTime::from_unix_micros(end.as_unix_micros() - 1)));
        assert!(identity.is_expired(end));
    }
    let endless = hs256(&with("exp", json!(u64::MAX)));
    let identity = verifier().verify(&endless, wall()).unwrap();
    assert_eq!(
        identity.expires_at,
        Some(WallTime::from_unix_micros(i64::MAX))
    );
}

#[test]
fn regression_a_token_is_refused_from_the_very_moment_of_its_expiry() {
    let exp = now() + 100;
    let micros = |seconds: i64| WallTime::from_unix_micros(seconds * 1_000_000);
    let just_before = |at: WallTime| WallTime::from_unix_micros(at.as_unix_micros() - 1);
    for leeway in [Duration::ZERO, Duration::from_millis(2_500)] {
        let mut asked = expected(Algorithm::HS256);
        asked.expected.leeway = leeway;
        let verifier = made(SECRET, asked).unwrap();
        let end = WallTime::from_unix_micros(
            micros(exp).as_unix_micros() + i64::try_from(leeway.as_micros()).unwrap(),
        );
        for exp_claim in [json!(exp), json!(exp as f64 + 0.4)] {
            let token = hs256(&with("exp", exp_claim));
            assert!(
                verifier.verify(&token, just_before(end)).is_ok(),
                "{leeway:?}"
            );
            let refused = verifier.verify(&token, end).unwrap_err();
            assert_eq!(refused.code, "token_expired", "{leeway:?}");
        }
    }
}

#[test]
fn a_token_is_good_from_the_very_moment_it_says() {
    let nbf = now() + 100;
    let mut asked = expected(Algorithm::HS256);
    asked.expected.leeway = Duration::from_millis(2_500);
    let verifier = made(SECRET, asked).unwrap();
    let begin = nbf * 1_000_000 - 2_500_000;
    for (claim, begin) in [
        (json!(nbf), begin),
        (json!(nbf as f64 - 0.6), begin),
        (json!(nbf as f64 + 0.4), begin + 1_000_000),
    ] {
        let token = hs256(&with("nbf", claim));
        let at = WallTime::from_unix_micros;
        assert!(verifier.verify(&token, at(begin)).is_ok());
        let refused = verifier.verify(&token, at(begin - 1)).unwrap_err();
        assert_eq!(refused.code, "token_not_yet_valid");
    }
}

#[test]
fn audience_and_issuer_must_be_the_configured_ones() {
    let mut asked = expected(Algorithm::HS256);
    asked.expected.audience = Some("relay".to_owned());
    asked.expected.issuer = Some("https://login.example".to_owned());
    let strict = made(SECRET, asked).unwrap();
    let claims = |aud: Value, iss: Value| {
        let mut claims = good_claims();
        claims["aud"] = aud;
        claims["iss"] = iss;
        hs256(&claims)
    };
    let iss = || json!("https://login.example");
    assert!(
        strict
            .verify(&claims(json!("relay"), iss()), wall())
            .is_ok()
    );
    assert!(
        strict
            .verify(&claims(json!(["x", "relay"]), iss()), wall())
            .is_ok()
    );
    for (aud, iss, code) in [
        (json!("other"), iss(), "token_bad_audience"),
        (json!(["x"]), iss(), "token_bad_audience"),
        (json!([]), iss(), "token_bad_audience"),
        (json!(null), iss(), "token_bad_audience"),
        (
            json!("relay"),
            json!("https://evil.example"),
            "token_bad_issuer",
        ),
        (json!("relay"), json!(null), "token_bad_issuer"),
        (json!("relay"), json!(7), "token_bad_issuer"),
        (
            json!("relay"),
            json!(["https://login.example"]),
            "token_bad_issuer",
        ),
        (json!(5), iss(), "token_bad_audience"),
        (json!({}), iss(), "token_bad_audience"),
    ] {
        assert_eq!(refused(&strict, &claims(aud, iss)), code);
    }
    // Not configured: a token for somebody else is still not for the relay; any issuer will do.
    for aud in [
        json!("x"),
        json!(["x"]),
        json!([]),
        json!(5),
        json!({}),
        json!(null),
    ] {
        let code = refused(&verifier(), &hs256(&with("aud", aud.clone())));
        assert_eq!(code, "token_bad_audience", "{aud}");
    }
    assert!(
        verifier()
            .verify(&hs256(&with("iss", json!("x"))), wall())
            .is_ok()
    );
}

#[test]
fn the_subject_must_be_a_user_id() {
    for sub in [
        json!(null),
        json!(7),
        json!(""),
        json!("-"),
        json!("x".repeat(129)),
        json!("é".repeat(64)),
    ] {
        let token = hs256(&with("sub", sub.clone()));
        assert_eq!(refused(&verifier(), &token), "token_bad_subject", "{sub}");
    }
    let claims = json!({ "exp": now() + 60 });
    assert_eq!(refused(&verifier(), &hs256(&claims)), "token_bad_subject");
}

#[test]
fn a_user_is_known_by_a_name_whatever_characters_the_id_has() {
    for (sub, user) in [
        ("auth0|64f", "u--auth0_7C64f"),
        ("a@b.example", "u--a_40b_2Eexample"),
        ("u--a", "u--u--a"),
        ("*", "u--_2A"),
        (">", "u--_3E"),
        ("a b\0", "u--a_20b_00"),
        ("а", "u--_D0_B0"),
    ] {
        let identity = verifier().verify(&hs256(&with("sub", json!(sub))), wall());
        assert_eq!(identity.unwrap().user, Some(name(user)), "{sub}");
    }
}

#[test]
fn the_user_may_be_in_another_claim() {
    let by = |claim: &str| {
        let mut asked = expected(Algorithm::HS256);
        asked.expected.user_claim = Some(claim.to_owned());
        made(SECRET, asked).unwrap()
    };
    let user = |claim: &str, claims: &Value| by(claim).verify(&hs256(claims), wall()).unwrap().user;
    let id = "https://example.com/id";
    assert_eq!(user(id, &with(id, json!("bob"))), Some(name("bob")));
    assert_eq!(
        user("user_id", &with("user_id", json!(42))),
        Some(name("42"))
    );
    assert_eq!(user("sub", &good_claims()), Some(name("alice")));
    for value in [json!(null), json!(""), json!(1.5), json!({}), json!(true)] {
        let code = refused(&by("user_id"), &hs256(&with("user_id", value)));
        assert_eq!(code, "token_bad_subject");
    }
    assert_eq!(
        refused(&by("user_id"), &hs256(&good_claims())),
        "token_bad_subject"
    );
    // An address that nobody has verified may be anybody's.
    for (verified, good) in [
        (json!(true), true),
        (json!("true"), true),
        (json!(false), false),
        (json!("false"), false),
        (json!(null), false),
        (json!(1), false),
    ] {
        let mut claims = with("email", json!("a@b.example"));
        claims["email_verified"] = verified;
        let verified = by("email").verify(&hs256(&claims), wall());
        assert_eq!(verified.is_ok(), good, "{claims}");
    }
    let unsaid = with("email", json!("a@b.example"));
    assert_eq!(user("email", &unsaid), Some(name("u--a_40b_2Eexample")));
}

#[test]
fn a_claim_that_is_there_twice_is_nobodys() {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let signed = |claims: &str| {
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
        format!("{message}.{}", signature.unwrap())
    };
    let mut asked = expected(Algorithm::HS256);
    asked.expected.user_claim = Some("uid".to_owned());
    let verifier = made(SECRET, asked).unwrap();
    for claims in [
        r#"{"exp":4000000000,"uid":"alice","uid":"bob"}"#,
        r#"{"exp":4000000000,"uid":"alice","u\u0069d":"bob"}"#,
    ] {
        assert_eq!(refused(&verifier, &signed(claims)), "token_malformed");
    }
}

#[test]
fn a_token_with_grants_that_cannot_be_understood_is_refused() {
    for (claim, value) in [
        ("topics", json!("job:x")),
        ("topics", json!(["jobs:x"])),
        ("topics", json!(vec!["job:x"; 257])),
        ("publish", json!([{}])),
        ("publish", json!(["a.b"])),
    ] {
        let token = hs256(&with(claim, value));
        assert_eq!(refused(&verifier(), &token), "token_bad_grants");
    }
}

#[test]
fn what_is_no_token_at_all_is_malformed() {
    let good = hs256(&good_claims());
    let parts: Vec<&str> = good.split('.').collect();
    let not_an_object = {
        let body = URL_SAFE_NO_PAD.encode("[1]");
        let message = format!("{}.{body}", parts[0]);
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
        format!("{message}.{}", signature.unwrap())
    };
    for token in [
        "abc",
        "..",
        "a.b.c.d",
        "....",
        "e30.e30.e30",
        &format!("{}.{}", parts[0], parts[1]),
        &format!("{}.{}.%%%", parts[0], parts[1]),
        &format!(" {good}x.y"),
        &not_an_object,
    ] {
        assert_eq!(refused(&verifier(), token), "token_malformed", "{token}");
    }
}

#[test]
fn a_token_that_demands_unknown_extensions_is_refused() {
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.crit = Some(vec!["exp-in-blocks".to_owned()]);
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&header, &good_claims(), &key).unwrap();
    assert_eq!(refused(&verifier(), &token), "token_malformed");
}

#[test]
fn a_verifier_never_prints_its_key() {
    assert!(!format!("{:?}", verifier()).contains(SECRET));
}

fn signed_by(kid: Option<&str>, pair: &test_keys::Pair, algorithm: Algorithm) -> String {
    let key = SigningKey::new(pair.private.as_bytes(), Some(algorithm)).unwrap();
    key.called(kid).sign(&good_claims()).unwrap()
}

fn file_with(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn while_keys_change_tokens_of_the_old_one_and_of_the_new_one_are_good() {
    let (old, new) = (test_keys::ec(), test_keys::rsa());
    let both = file_with(&format!("old\n{}new\n{}", old.public, new.public));
    let keys = KeyMaterial::read(None, Some(both.path())).unwrap();
    let asked = |algorithms| Asked {
        algorithms,
        expected: Expected::default(),
    };
    for algorithms in [vec![], vec![Algorithm::RS256, Algorithm::ES256]] {
        let verifier = made_of(&keys, asked(algorithms)).unwrap();
        for kid in [None, Some("any")] {
            for token in [
                signed_by(kid, &old, Algorithm::ES256),
                signed_by(kid, &new, Algorithm::RS256),
            ] {
                assert!(verifier.verify(&token, wall()).is_ok(), "{kid:?}");
            }
        }
        let foreign = signed_by(None, &test_keys::ec(), Algorithm::ES256);
        assert_eq!(refused(&verifier, &foreign), "token_bad_signature");
    }
    let error = made_of(&keys, asked(vec![Algorithm::RS256])).unwrap_err();
    assert!(error.to_string().contains("EC public key"), "{error}");
}

#[test]
fn a_token_that_names_its_key_is_checked_by_that_key_alone() {
    let (a, b) = (test_keys::ec(), test_keys::ec());
    let files = [file_with(&a.public), file_with(&b.public)];
    let named = |id, file: &tempfile::NamedTempFile| {
        KeyMaterial::read_named(id, file.path()).unwrap().remove(0)
    };
    let es256 = || expected(Algorithm::ES256);
    let keys = [named(Some("a"), &files[0]), named(Some("b"), &files[1])];
    let verifier = made_of(&keys, es256()).unwrap();
    for (kid, signer, code) in [
        (Some("a"), &a, None),
        (Some("b"), &b, None),
        (None, &a, None),
        (None, &b, None),
        (Some("a"), &b, Some("token_bad_signature")),
        (Some("c"), &a, Some("token_unknown_key")),
        (Some("../../etc/passwd"), &a, Some("token_unknown_key")),
    ] {
        let token = signed_by(kid, signer, Algorithm::ES256);
        match code {
            None => assert!(verifier.verify(&token, wall()).is_ok(), "{kid:?}"),
            Some(code) => assert_eq!(refused(&verifier, &token), code, "{kid:?}"),
        }
    }
    // A key without a name is for tokens with any name that no other key has.
    let keys = [named(Some("a"), &files[0]), named(None, &files[1])];
    let verifier = made_of(&keys, es256()).unwrap();
    let token = signed_by(Some("x"), &b, Algorithm::ES256);
    assert!(verifier.verify(&token, wall()).is_ok());
    let token = signed_by(Some("a"), &b, Algorithm::ES256);
    assert_eq!(refused(&verifier, &token), "token_bad_signature");
}

#[test]
fn a_public_key_beside_a_secret_is_not_taken_for_one() {
    let rsa = test_keys::rsa();
    let file = file_with(&rsa.public);
    let mut keys = KeyMaterial::read(Some(SECRET), None).unwrap();
    keys.extend(KeyMaterial::read_named(None, file.path()).unwrap());
    let asked = Asked {
        algorithms: vec![Algorithm::HS256, Algorithm::RS256],
        expected: Expected::default(),
    };
    let verifier = made_of(&keys, asked).unwrap();
    let key = jsonwebtoken::EncodingKey::from_secret(rsa.public.as_bytes());
    let forged = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &good_claims(), &key);
    assert_eq!(refused(&verifier, &forged.unwrap()), "token_bad_signature");
    let good = sign(&rsa.private, Algorithm::RS256, &good_claims());
    assert!(verifier.verify(&good, wall()).is_ok());
    assert!(verifier.verify(&hs256(&good_claims()), wall()).is_ok());
}

#[test]
fn a_file_of_several_keys_is_refused_where_an_id_names_one_and_by_name() {
    let both = file_with(&(test_keys::ec().public + &test_keys::ec().public));
    let error = KeyMaterial::read_named(Some("a"), both.path()).unwrap_err();
    let path = both.path().display().to_string();
    assert!(
        error
            .to_string()
            .starts_with(&format!("{path} holds 2 PEM blocks")),
        "{error}"
    );
    let many = file_with(&test_keys::ed().public.repeat(33));
    let error = KeyMaterial::read(None, Some(many.path())).unwrap_err();
    assert!(error.to_string().contains("33 keys"), "{error}");
}
