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
        ..Identity::nobody()
    }
}

fn jwt() -> Mode {
    let secret = "a-secret-of-more-than-32-bytes-for-tests";
    let keys = KeyMaterial::read(Some(secret), None).unwrap();
    let keys = Keyring::new(&keys, &[]).unwrap();
    Mode::Jwt(
        Verifier::new(keys, None, Expected::default()),
        Own::default(),
    )
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

const SECRET: &str = "a-secret-of-more-than-32-bytes-for-tests";

fn with_shares(revoked: &[&str]) -> (Mode, Shares) {
    let Mode::Jwt(verifier, _) = jwt() else {
        panic!("not by tokens")
    };
    let key = own_key::OwnKey::derive(SECRET.as_bytes(), Purpose::Share).unwrap();
    let shares = Shares::new(key, 10, Arc::default());
    let revoked: Vec<String> = revoked.iter().map(ToString::to_string).collect();
    let own = Own {
        shares: Some(shares.clone()),
        revoked: Revoked::read(&revoked, None).unwrap(),
    };
    (Mode::Jwt(verifier, own), shares)
}

fn shown(mode: &Mode, token: &str) -> Result<Identity, Refused> {
    mode.identify(Some(&Credential::new(token, Source::Query).unwrap()), NOW)
}

#[test]
fn a_share_shows_the_one_job_and_nothing_else() {
    let (mode, shares) = with_shares(&[]);
    let job = share::SharedJob::parse("job:alice/j1").unwrap();
    let token = shares.make(&job, "s1", (1, 1_900_000_000)).unwrap();
    let viewer = shown(&mode, &token).unwrap();
    assert_eq!((viewer.user.as_ref(), viewer.anonymous), (None, false));
    let (j1, j2) = (name("j1"), name("j2"));
    for (job, owner, sees) in [
        (&j1, "alice", true),
        (&j1, "bob", false),
        (&j1, "-", false),
        (&j2, "alice", false),
    ] {
        assert_eq!(viewer.may_see(job, &name(owner), None), sees);
        assert_eq!(viewer.may_see(job, &name(owner), Some(&j1)), sees);
        let topic = Topic::Job(relay_core::id::Named::bare(job.clone()));
        assert_eq!(viewer.may_watch(&topic, Some(&name(owner)), None), sees);
    }
    assert_eq!(viewer.sight(&topic("job:j1")), Sight::WhenKnown);
    for other in ["job:j2", "user:alice", "user:-", "group:j1"] {
        assert_eq!(viewer.sight(&topic(other)), Sight::No, "{other}");
        assert!(!viewer.may_watch(&topic(other), Some(&name("alice")), None));
    }
    assert!(!viewer.may_publish(&name("alice")) && !viewer.may_publish(&Name::nobody()));
}

#[test]
fn neither_a_share_nor_a_users_token_passes_for_the_other() {
    let (mode, shares) = with_shares(&[]);
    let job = share::SharedJob::parse("job:alice/j1").unwrap();
    let share = shares.make(&job, "s1", (1, 1_900_000_000)).unwrap();
    // A share's claims under a user's header, and the other way round, with the same secret.
    let claims = serde_json::json!({
        "sub": "alice", "exp": 1_900_000_000, "iat": 1, "jti": "s1", "topic": "job:alice/j1", "topics": ["*"],
    });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let signed = |typ: &str| {
        let header = jsonwebtoken::Header {
            typ: Some(typ.to_owned()),
            ..Default::default()
        };
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    };
    assert!(shown(&mode, &signed("JWT")).unwrap().shared.is_none());
    for typ in ["relay-share+jwt", "RELAY-Share+JWT"] {
        let refused = shown(&mode, &signed(typ)).unwrap_err();
        assert_eq!(refused.code, "token_bad_signature", "{typ}");
    }
    let parts: Vec<&str> = share.split('.').collect();
    let user = signed("JWT");
    let header = user.split('.').next().unwrap();
    let forged = format!("{header}.{}.{}", parts[1], parts[2]);
    let refused = shown(&mode, &forged).unwrap_err();
    assert_eq!(refused.code, "token_bad_signature");
    // Where the relay has no key for shares none is good.
    assert!(shown(&jwt(), &share).is_err());
}

#[test]
fn what_was_taken_back_is_refused_share_or_token() {
    let (mode, shares) = with_shares(&["s1", "t1"]);
    let job = share::SharedJob::parse("job:alice/j1").unwrap();
    let share = |id| shares.make(&job, id, (1, 1_900_000_000)).unwrap();
    assert_eq!(
        shown(&mode, &share("s1")).unwrap_err().code,
        "token_revoked"
    );
    assert!(shown(&mode, &share("s2")).is_ok());
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = |id: &str| {
        let claims = serde_json::json!({ "sub": "alice", "exp": 1_900_000_000, "jti": id });
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    assert_eq!(
        shown(&mode, &token("t1")).unwrap_err().code,
        "token_revoked"
    );
    let good = shown(&mode, &token("t2")).unwrap();
    assert!(!mode.revokes(&good) && with_shares(&["t2"]).0.revokes(&good));
}
