//! Keys that are added, removed and broken while the relay runs.

use std::path::Path;

use relay_bus::clock::Clock;
use serde_json::json;

use super::*;
use crate::identity::key::KeyMaterial;
use crate::identity::keyring::Keyring;
use crate::identity::own_key::OwnKey;
use crate::identity::published::{Place, Published};
use crate::identity::signing::SigningKey;
use crate::identity::test_keys;
use crate::identity::verifier::{Expected, Verifier};
use crate::identity::{Own, Source};

fn basis_of(file: &Path) -> Basis {
    let path = file.to_owned();
    let made = move || {
        let keys = KeyMaterial::read_named(None, &path)?;
        let keys = Keyring::new(&keys, &[])?;
        Ok(Mode::Jwt(
            Verifier::new(keys, None, Expected::default()),
            Own::default(),
        ))
    };
    Basis::new(vec![file.to_owned()], Arc::new(made)).unwrap()
}

fn tickets() -> Tickets {
    Tickets::new(OwnKey::derive(b"secret", Purpose::Ticket).unwrap())
}

fn is_good(authority: &Authority, secret: &str) -> bool {
    let now = Clock::start().wall();
    let claims = json!({ "sub": "alice", "exp": now.as_unix_micros() / 1_000_000 + 60 });
    let key = SigningKey::new(secret.as_bytes(), None).unwrap();
    let token = Credential::new(&key.sign(&claims).unwrap(), Source::Header).unwrap();
    authority.identify(Some(&token), now).is_ok()
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_one_that_breaks_is_not_used() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "the first secret").unwrap();
    let authority = Authority::new(basis_of(file.path()), tickets());
    let mut failed = None;
    authority.look(&mut failed).await;
    assert!(is_good(&authority, "the first secret"));

    std::fs::write(file.path(), "the second secret, which is longer").unwrap();
    assert!(is_good(&authority, "the first secret"));
    authority.look(&mut failed).await;
    assert!(is_good(&authority, "the second secret, which is longer"));
    assert!(!is_good(&authority, "the first secret"));

    std::fs::write(file.path(), "").unwrap();
    authority.look(&mut failed).await;
    assert!(
        failed
            .as_ref()
            .unwrap()
            .ends_with("is empty; put the shared secret or the public key (PEM) there")
    );
    assert!(is_good(&authority, "the second secret, which is longer"));
    std::fs::remove_file(file.path()).unwrap();
    authority.look(&mut failed).await;
    assert!(failed.as_ref().unwrap().contains("cannot read"));
    assert!(is_good(&authority, "the second secret, which is longer"));

    std::fs::write(file.path(), "the third secret").unwrap();
    authority.look(&mut failed).await;
    assert!(is_good(&authority, "the third secret"));
    assert_eq!(failed, None);
}

#[tokio::test]
async fn a_configuration_that_was_put_in_place_is_the_one_that_counts() {
    let (old, new) = (
        tempfile::NamedTempFile::new(),
        tempfile::NamedTempFile::new(),
    );
    let (old, new) = (old.unwrap(), new.unwrap());
    std::fs::write(old.path(), "the old secret").unwrap();
    std::fs::write(new.path(), "the new secret").unwrap();
    let authority = Authority::new(basis_of(old.path()), tickets());
    authority.replace(basis_of(new.path()));
    std::fs::write(old.path(), "the old secret, changed").unwrap();
    authority.look(&mut None).await;
    assert!(is_good(&authority, "the new secret"));
    assert!(!is_good(&authority, "the old secret, changed"));
}

fn write_set(file: &Path, keys: &[serde_json::Value]) {
    std::fs::write(file, json!({ "keys": keys }).to_string()).unwrap();
}

fn signed(kid: &str, pair: &test_keys::Pair) -> Credential {
    let now = Clock::start().wall().as_unix_micros() / 1_000_000;
    let claims = json!({ "sub": "auth0|alice", "exp": now + 600 });
    let key = SigningKey::new(pair.private.as_bytes(), None).unwrap();
    let token = key.called(Some(kid)).sign(&claims).unwrap();
    Credential::new(&token, Source::Header).unwrap()
}

/// A provider changes its key while its old one is still good.
#[tokio::test(start_paused = true)]
async fn a_key_that_was_published_a_moment_ago_lets_in_and_known_ones_do_not_wait_for_it() {
    let (old, new) = (test_keys::ec(), test_keys::ed());
    let file = tempfile::NamedTempFile::new().unwrap();
    write_set(file.path(), &[old.jwk("old")]);
    let place = Place::File(file.path().to_owned());
    let published = Arc::new(Published::new(place, Vec::new()));
    let made = move || {
        let verifier = Verifier::new(
            Keyring::default(),
            Some(published.clone()),
            Expected::default(),
        );
        Ok(Mode::Jwt(verifier, Own::default()))
    };
    let authority = Authority::new(Basis::new(Vec::new(), Arc::new(made)).unwrap(), tickets());
    let clock = Clock::start();
    let enter = async |kid: &str, pair: &test_keys::Pair| {
        let token = signed(kid, pair);
        authority.prepare(token.token(), clock).await?;
        authority.identify(Some(&token), clock.wall())
    };
    let played = async {
        // Before the first fetch has ended it waits for that.
        let alice = enter("old", &old).await.unwrap().user.unwrap();
        assert_eq!(alice.as_str(), "u--auth0_7Calice");
        write_set(file.path(), &[old.jwk("old"), new.jwk("new")]);
        let begun = tokio::time::Instant::now();
        let known = signed("old", &old);
        assert!(authority.later(known.token(), clock.wall()).is_none());
        assert!(enter("new", &new).await.is_ok());
        assert!(begun.elapsed() <= Duration::from_secs(10));
        let refused = enter("made-up", &new).await.unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (401, "token_unknown_key")
        );
        std::fs::write(file.path(), "<html>").unwrap();
        let refused = enter("newer", &new).await.unwrap_err();
        assert_eq!(
            (refused.status.as_u16(), refused.code),
            (503, "identity_unavailable")
        );
        assert!(enter("old", &old).await.is_ok() && enter("new", &new).await.is_ok());
        write_set(file.path(), &[new.jwk("new")]);
        assert!(enter("newer", &new).await.is_err());
        let refused = enter("old", &old).await.unwrap_err();
        assert_eq!(refused.code, "token_unknown_key");
        let (succeeded, failed, _) = authority.fetches().unwrap();
        assert!(succeeded >= 3 && failed >= 1);
    };
    tokio::select! {
        () = authority.keep() => {}
        () = played => {}
    }
}

#[tokio::test]
async fn a_ticket_opens_a_connection_and_is_good_for_nothing_else() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a secret").unwrap();
    let authority = Authority::new(basis_of(file.path()), tickets());
    let now = Clock::start().wall();
    let alice = Identity {
        user: Some(relay_core::id::Name::parse("alice").unwrap()),
        ..Identity::nobody()
    };
    let ticket = authority.ticket(&alice, now).unwrap();
    let ticket = Credential::new(&ticket, Source::Query).unwrap();
    let refused = authority.identify(Some(&ticket), now).unwrap_err();
    assert_eq!(refused.code, "ticket_not_good");
    assert_eq!(
        authority.identify_opening(Some(&ticket), now),
        Ok(alice.clone())
    );
    let again = authority.identify_opening(Some(&ticket), now).unwrap_err();
    assert_eq!(
        (again.status.as_u16(), again.code),
        (401, "ticket_not_good")
    );
    let ended = Identity {
        expires_at: Some(WallTime::from_unix_micros(now.as_unix_micros() + 1)),
        ..alice
    };
    let ticket = authority.ticket(&ended, now).unwrap();
    let ticket = Credential::new(&ticket, Source::Query).unwrap();
    let later = WallTime::from_unix_micros(now.as_unix_micros() + 2);
    let refused = authority
        .identify_opening(Some(&ticket), later)
        .unwrap_err();
    assert_eq!(refused.code, "token_expired");
    let nobody = authority.ticket(&Identity::nobody(), now).unwrap_err();
    assert_eq!(nobody.status.as_u16(), 403);
}
