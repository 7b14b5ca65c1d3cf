//! Tokens as the command line makes them, checked as a relay would.

use clap::Parser;

use relay_core::id::Name;

use super::*;
use crate::identity::test_keys;
use relay_core::topic::Topic;
use relay_core::watcher::sight::Viewer as _;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: TokenArgs,
}

fn token(line: &str, env: &[(&str, &str)]) -> Result<String, TokenError> {
    made(line, env).map(|made| made.token)
}

fn made(line: &str, env: &[(&str, &str)]) -> Result<Made, TokenError> {
    let words = std::iter::once("token").chain(line.split_ascii_whitespace());
    let args = Line::try_parse_from(words).unwrap().args;
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    make(&args, env)
}

const SECRET: &str = "a-secret-of-more-than-32-bytes-for-tests";

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

fn jwt_config(auth: &str) -> tempfile::NamedTempFile {
    file(&format!("[auth]\nmode = \"jwt\"\n{auth}\n"))
}

#[test]
fn a_token_signed_with_the_configured_secret_is_good_there() {
    let config = jwt_config(&format!(
        "key = \"{SECRET}\"\naudience = \"relay\"\nissuer = \"me\""
    ));
    let line = format!(
        "--sub alice --topic job:* --topic user:bob,group:g --publish * --ttl 10m --config {}",
        config.path().display()
    );
    let token = token(&line, &[]).unwrap();
    let config = Config::load(Some(config.path()), std::iter::empty()).unwrap();
    let identity = config
        .auth
        .verifier(None)
        .unwrap()
        .verify(&token, Clock::start().wall())
        .unwrap();
    assert_eq!(identity.user, Some(Name::parse("alice").unwrap()));
    assert!(identity.may_watch(&Topic::parse("user:bob").unwrap(), None, None));
    assert!(identity.may_publish(&Name::nobody()));
}

#[test]
fn each_kind_of_private_key_signs_for_its_public_key() {
    for (pair, algorithm) in [
        (test_keys::rsa(), "RS256"),
        (test_keys::ec(), "ES256"),
        (test_keys::ed(), "EdDSA"),
    ] {
        let (private, public) = (file(&pair.private), file(&pair.public));
        let config = jwt_config(&format!(
            "algorithms = [\"{algorithm}\"]\nkey_file = \"{}\"",
            public.path().display()
        ));
        let key = private.path().display();
        // `make` checks the token against the configuration itself.
        let line = format!(
            "--sub alice --key-file {key} --config {}",
            config.path().display()
        );
        assert!(token(&line, &[]).is_ok(), "{algorithm}");
        let without_config = format!("--sub alice --key-file {key} --alg {algorithm}");
        assert!(token(&without_config, &[]).is_ok(), "{algorithm}");
    }
}

#[test]
fn a_public_key_in_the_configuration_is_explained() {
    let public = file(&test_keys::ec().public);
    let config = jwt_config(&format!(
        "algorithms = [\"ES256\"]\nkey_file = \"{}\"",
        public.path().display()
    ));
    let line = format!("--sub alice --config {}", config.path().display());
    let error = token(&line, &[]).unwrap_err().to_string();
    assert!(
        error.contains("only a public key (auth.key_file)"),
        "{error}"
    );
    assert!(error.contains("--key-file private.pem"), "{error}");
}

#[test]
fn a_token_the_relay_would_refuse_is_not_printed() {
    let config = jwt_config(&format!("key = \"{SECRET}\"\naudience = \"relay\""));
    let config = config.path().display();
    for (line, says) in [
        ("--key another-secret", "signature is wrong"),
        ("--audience elsewhere", "another audience"),
        ("--alg HS512", "HS512"),
    ] {
        let line = format!("--sub alice {line} --config {config}");
        let error = token(&line, &[]).unwrap_err().to_string();
        assert!(
            error.contains("would reject") && error.contains(says),
            "{error}"
        );
        assert!(!error.contains(SECRET), "{error}");
    }
}

#[test]
fn what_cannot_be_signed_is_told_why() {
    for (line, says) in [
        ("--sub alice", "no key to sign with"),
        ("--sub - --key s", "stands for nobody"),
        ("--sub alice --key s --topic jobs:1", "write job:<id>"),
        ("--sub alice --key s --publish a.b", "contains '.'"),
        ("--sub alice --key s --ttl 0s", "--ttl"),
        ("--sub alice --key s --alg ES256", "leave out --alg"),
        (
            "--sub alice --key-file /does/not/exist",
            "cannot read /does/not/exist",
        ),
        (
            "--sub alice --config /does/not/exist",
            "cannot read the configuration",
        ),
    ] {
        let error = token(line, &[]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_secret_from_the_environment_signs_too() {
    let env = [("RELAY__AUTH__MODE", "jwt"), ("RELAY__AUTH__KEY", SECRET)];
    assert!(token("--sub alice", &env).is_ok());
}

#[test]
fn arguments_never_print_the_secret() {
    let line = Line::try_parse_from(["token", "--sub", "a", "--key", SECRET]).unwrap();
    assert!(!format!("{:?}", line.args).contains(SECRET));
}

#[test]
fn a_share_is_good_at_a_relay_with_the_same_key_and_its_id_is_told() {
    let line = "--share job:alice/clip-42 --for 2h";
    for env in [
        vec![("RELAY__AUTH__MODE", "jwt"), ("RELAY__AUTH__KEY", SECRET)],
        vec![
            ("RELAY__AUTH__MODE", "jwt"),
            ("RELAY__AUTH__KEY", SECRET),
            (
                "RELAY__AUTH__SHARE_KEY",
                "another-secret-of-more-than-32-bytes",
            ),
        ],
    ] {
        let share = made(line, &env).unwrap();
        let vars = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let config = Config::load(None, vars).unwrap();
        let shares = config.auth.shares(1, &Arc::default()).unwrap().unwrap();
        let (shared, id, _) = shares.open(&share.token, Clock::start().wall()).unwrap();
        assert_eq!(shared.job.to_string(), "job:alice/clip-42");
        assert_eq!(Some(&*id), share.id.as_deref());
    }
    for (line, env, says) in [
        (line, vec![], "no key to sign shares with"),
        (
            "--share job:clip-42",
            vec![("RELAY__AUTH__SHARE_KEY", SECRET)],
            "a share names the owner",
        ),
        (
            "--share job:a/b --for 0s",
            vec![("RELAY__AUTH__SHARE_KEY", SECRET)],
            "at least a second",
        ),
    ] {
        let error = made(line, &env).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
