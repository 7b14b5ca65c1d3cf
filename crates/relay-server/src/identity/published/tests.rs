//! Keys from a server that rotates, lies, hangs, redirects and sends more than anybody reads.

use relay_testkit::outside::{Outside, Says};
use serde_json::{Value, json};

use super::*;
use crate::identity::test_keys;

fn set(keys: &[Value]) -> Says {
    Says::Json(json!({ "keys": keys }).to_string())
}

fn of(place: Place) -> Published {
    Published::new(place, Vec::new())
}

fn at(server: &Outside, path: &str) -> Published {
    of(Place::Set(Url::parse(&server.url(path)).unwrap()))
}

/// What the log says of the next fetch.
async fn said(published: &Published) -> String {
    let mut said = None;
    published.renew(&mut said).await;
    said.unwrap()
}

#[tokio::test]
async fn keys_stay_whatever_becomes_of_the_place_they_came_from() {
    let server = Outside::start().await.unwrap();
    let published = at(&server, "/jwks");
    let (old, new) = (test_keys::ec(), test_keys::rsa());
    server.says("/jwks", set(&[old.jwk("old")]));
    said(&published).await;
    assert_eq!(published.keys().len(), 1);
    let elsewhere = server.url("/elsewhere");
    server.says("/elsewhere", set(&[new.jwk("new")]));
    for (says, why) in [
        (
            Says::Html(200, "<html>Sign in</html>".to_owned()),
            "begins with \"<html>Sign in",
        ),
        (Says::Html(500, "{\"keys\":[]}".to_owned()), "answered 500"),
        (Says::Html(404, String::new()), "answered 404"),
        (Says::Redirect(elsewhere), "redirects to"),
        (
            Says::Bytes(b"SSH-2.0-OpenSSH\r\n".to_vec()),
            "does not answer as an HTTP server",
        ),
        (Says::Nothing, "does not answer as an HTTP server"),
        (
            Says::Endless(100 * 1024 * 1024),
            "sent more than 1048576 bytes",
        ),
        (set(&[]), "it is empty"),
        (set(&[json!({"kty": "oct", "k": "AAAA"})]), "shared secret"),
        (
            Says::Json("{\"keys\":[".to_owned()),
            "is not a JSON Web Key Set",
        ),
    ] {
        server.says("/jwks", says);
        let text = said(&published).await;
        assert!(text.contains(why), "{text}");
        assert!(text.len() < 400, "{text}");
        assert_eq!(
            published
                .keys()
                .candidates(Algorithm::ES256, Some("old"))
                .len(),
            1
        );
    }
    assert_eq!(server.count("/elsewhere"), 0);
    server.says("/jwks", set(&[new.jwk("new")]));
    said(&published).await;
    assert!(
        published
            .keys()
            .candidates(Algorithm::ES256, Some("old"))
            .is_empty()
    );
    let (succeeded, failed, last) = published.counts().read();
    assert_eq!((succeeded, failed), (2, 10));
    assert!(last > 1_600_000_000);
}

#[tokio::test]
async fn a_server_that_hangs_or_is_not_there_costs_the_deadline_and_no_more() {
    let server = Outside::start().await.unwrap();
    let published = at(&server, "/jwks");
    server.says("/jwks", Says::Hangs);
    tokio::time::pause();
    let text = said(&published).await;
    assert!(text.contains("did not answer within 5s"), "{text}");
    tokio::time::resume();
    let gone = server.url("/jwks");
    drop(server);
    let published = of(Place::Set(Url::parse(&gone).unwrap()));
    let text = said(&published).await;
    assert!(text.contains("cannot be reached"), "{text}");
}

#[tokio::test]
async fn an_openid_provider_says_where_its_keys_are() {
    const CONFIGURATION: &str = "/realm/.well-known/openid-configuration";
    let server = Outside::start().await.unwrap();
    let issuer = server.url("/realm");
    let published = of(Place::Issuer(issuer.clone()));
    server.says("/keys", set(&[test_keys::ec().jwk("a")]));
    let provider = |issuer: &str, keys: &str| {
        Says::Json(json!({ "issuer": issuer, "jwks_uri": keys, "more": 1 }).to_string())
    };
    let keys = server.url("/keys");
    for (says, why) in [
        (
            provider("https://evil.example", &keys),
            "they have to be the same",
        ),
        (
            provider(&format!("{issuer}/"), &keys),
            "they have to be the same",
        ),
        (
            provider(&issuer, "http://keys.example/"),
            "plain http to another machine",
        ),
        (provider(&issuer, "file:///etc/passwd"), "is not an address"),
        (provider(&issuer, &"x".repeat(100_000)), "is not an address"),
        (
            Says::Html(200, "<html>".to_owned()),
            "is not the configuration of an OpenID provider",
        ),
        (Says::Redirect(keys.clone()), "redirects to"),
    ] {
        server.says(CONFIGURATION, says);
        let text = said(&published).await;
        assert!(text.contains(why), "{text}");
        assert_eq!(published.keys().len(), 0);
    }
    assert_eq!(server.count("/keys"), 0);
    server.says(CONFIGURATION, provider(&issuer, &keys));
    said(&published).await;
    assert_eq!(published.keys().len(), 1);
}

/// Many clients with keys that are not there cause one fetch, and then none until the least time is over.
#[tokio::test(start_paused = true)]
async fn unknown_keys_cause_one_fetch_in_a_while_however_many_ask() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |keys: &[Value]| {
        std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();
    };
    write(&[test_keys::ec().jwk("a")]);
    let published = of(Place::File(file.path().to_owned()));
    let fetches = || published.counts().read().0;
    let begun = Instant::now();
    let asked = async {
        assert_eq!(published.seen(), Seen(None));
        published.news(published.seen()).await.unwrap();
        assert_eq!(fetches(), 1);
        for round in 0..3 {
            let seen = published.seen();
            let waits = (0..50).map(|_| published.news(seen));
            let waited = futures_util::future::join_all(waits).await;
            assert!(waited.iter().all(Result::is_ok));
            assert_eq!(fetches(), 2 + round);
        }
        assert!(begun.elapsed() >= LEAST_INTERVAL * 3);
        write(&[]);
        assert!(published.news(published.seen()).await.is_err());
        assert_eq!(published.keys().len(), 1);
        let waits = (0..MAX_WAITING + 10).map(|_| published.news(published.seen()));
        let turned_away = futures_util::future::join_all(waits).await;
        assert!(turned_away.iter().all(Result::is_err));
        assert_eq!(published.waiting.load(Ordering::Relaxed), 0);
    };
    tokio::select! {
        () = published.keep() => {}
        () = asked => {}
    }
}
