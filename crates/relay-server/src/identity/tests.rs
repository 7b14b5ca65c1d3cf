//! What each user may see and publish.

use super::*;
use crate::identity::key::KeyMaterial;
use crate::identity::keyring::Keyring;
use crate::identity::verifier::Expected;

const NOW: WallTime = WallTime::from_unix_micros(1_800_000_000_000_000);

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap()
}

fn identity(topics: &[&str], publish: &[&str]) -> Identity {
    Identity {
        user: Some(name("alice")),
        grants: Grants::new(topics.iter().copied(), publish.iter().copied()).unwrap(),
        expires_at: None,
        anonymous: false,
    }
}

fn jwt() -> Mode {
    let secret = "a-secret-of-more-than-32-bytes-for-tests";
    let keys = KeyMaterial::read(Some(secret), None).unwrap();
    let keys = Keyring::new(&keys, &[]).unwrap();
    Mode::Jwt(Verifier::new(keys, None, Expected::default()))
}

#[test]
fn a_user_sees_the_own_jobs_and_nobody_elses() {
    let alice = identity(&[], &[]);
    assert!(alice.may_see(&name("j1"), &name("alice"), None));
    assert!(!alice.may_see(&name("j1"), &name("bob"), None));
    assert!(!alice.may_see(&name("j1"), &Name::nobody(), None));
    assert_eq!(alice.sight(&topic("user:alice")), Sight::Yes);
    assert_eq!(alice.sight(&topic("user:bob")), Sight::No);
    assert_eq!(alice.sight(&topic("user:-")), Sight::No);
}

#[test]
fn a_job_whose_owner_is_unknown_may_be_waited_for_and_is_decided_later() {
    let alice = identity(&[], &[]);
    let job = topic("job:j1");
    assert_eq!(alice.sight(&job), Sight::WhenKnown);
    assert!(alice.may_watch(&job, None, None));
    assert!(alice.may_watch(&job, Some(&name("alice")), None));
    assert!(!alice.may_watch(&job, Some(&name("bob")), None));
    assert!(!alice.may_watch(&job, Some(&Name::nobody()), None));
    let group = topic("group:g1");
    assert!(alice.may_watch(&group, None, None));
    assert!(alice.may_watch(&group, Some(&name("alice")), Some(&name("g1"))));
    assert!(!alice.may_watch(&group, Some(&name("bob")), Some(&name("g1"))));
}

#[test]
fn grants_open_jobs_users_and_groups() {
    let (job, bob) = (name("j1"), name("bob"));
    for (grant, sees) in [
        ("job:j1", true),
        ("job:j*", true),
        ("job:*", true),
        ("user:bob", true),
        ("group:g1", true),
        ("*", true),
        ("job:j2", false),
        ("user:bo", false),
        ("group:g2", false),
    ] {
        let alice = identity(&[grant], &[]);
        assert_eq!(
            alice.may_see(&job, &bob, Some(&name("g1"))),
            sees,
            "{grant}"
        );
        let told = alice.may_watch(&topic("job:j1"), Some(&bob), Some(&name("g1")));
        assert_eq!(told, sees, "{grant}");
    }
    assert_eq!(
        identity(&["user:b*"], &[]).sight(&topic("user:bob")),
        Sight::Yes
    );
    assert_eq!(
        identity(&["group:g1"], &[]).sight(&topic("group:g1")),
        Sight::Yes
    );
    assert_eq!(
        identity(&["job:*"], &[]).sight(&topic("user:bob")),
        Sight::No
    );
}

#[test]
fn jobs_of_nobody_need_a_grant() {
    for (grant, sees) in [
        ("job:j1", true),
        ("user:-", true),
        ("*", true),
        ("user:alice", false),
    ] {
        let alice = identity(&[grant], &[]);
        assert_eq!(
            alice.may_see(&name("j1"), &Name::nobody(), None),
            sees,
            "{grant}"
        );
    }
}

#[test]
fn publishing_needs_a_grant_even_for_the_own_jobs() {
    assert!(!identity(&["*"], &[]).may_publish(&name("alice")));
    assert!(identity(&[], &["alice"]).may_publish(&name("alice")));
    assert!(!identity(&[], &["alice"]).may_publish(&name("bob")));
    assert!(!identity(&[], &["alice"]).may_publish(&Name::nobody()));
    assert!(identity(&[], &["*"]).may_publish(&Name::nobody()));
}

#[test]
fn in_anonymous_mode_everything_is_allowed_and_a_token_is_not_looked_at() {
    let credential = Credential::new("rubbish", Source::Query).unwrap();
    let everybody = Mode::Anonymous.identify(Some(&credential), NOW).unwrap();
    assert_eq!(everybody.user, None);
    assert!(everybody.may_watch(&topic("user:bob"), None, None));
    assert!(everybody.may_see(&name("j"), &name("bob"), None));
    assert!(everybody.may_publish(&name("bob")));
    assert!(!everybody.is_expired(WallTime::from_unix_micros(i64::MAX)));
}

#[test]
fn without_a_credential_one_is_asked_for() {
    let refused = jwt().identify(None, NOW).unwrap_err();
    assert_eq!(
        (refused.status.as_u16(), refused.code),
        (401, "unauthenticated")
    );
    assert_eq!(
        refused.www_authenticate().unwrap(),
        "Bearer realm=\"relay\""
    );
    let credential = Credential::new("rubbish", Source::Query).unwrap();
    let refused = jwt().identify(Some(&credential), NOW).unwrap_err();
    let header = refused.www_authenticate().unwrap();
    assert!(header.to_str().unwrap().contains("invalid_token"));
}
