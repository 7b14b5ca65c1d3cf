//! Values that cannot be, alone or beside each other, and the sentence each earns.

use crate::config::AuthMode;
use crate::config::tests::{config, load, problem};

fn warnings(file: &str) -> Vec<String> {
    let loaded = load(file, &[]).unwrap();
    loaded.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn values_out_of_range_are_refused_with_the_bound() {
    for (section, line, says) in [
        ("limits", "connections = 0", "0 is too little; at least 1"),
        ("limits", "connections_per_user = 0", "at least 1"),
        (
            "limits",
            "subscriptions_per_connection = 257",
            "at most 256",
        ),
        (
            "limits",
            "message_bytes = \"32MiB\"",
            "32MiB is too much; at most 16MiB",
        ),
        (
            "limits",
            "update_bytes = 10",
            "10B is too little; at least 1KiB",
        ),
        ("limits", "messages_per_second = 0", "at least 1"),
        ("limits", "messages_burst = 0", "at least 1"),
        ("delivery", "updates_per_second = 0", "at least 1"),
        ("delivery", "milestones = 0", "at least 1"),
        ("delivery", "max_failures = 0", "at least 1"),
        (
            "delivery",
            "write_timeout = \"0s\"",
            "0s is too little; at least 10ms",
        ),
        ("delivery", "ack_timeout = \"1h\"", "at most 10m"),
        ("http", "header_timeout = \"1h\"", "at most 5m"),
        ("http", "keep_alive = \"0s\"", "at least 1s"),
        ("http", "shards = 5000", "at most 1024"),
        ("nats", "stream_replicas = 6", "at most 5"),
        ("nats", "resync_interval = \"0s\"", "at least 100ms"),
        ("history", "per_job = 0", "at least 1"),
        ("history", "bytes = 5", "at least 1MiB"),
        ("auth", "leeway = \"1h\"", "at most 5m"),
    ] {
        let found = problem(&format!("[{section}]\n{line}\n"), &[]);
        assert!(found.contains(says), "{found}");
        assert!(
            found.starts_with(&format!("relay.toml:2:1: {section}.")),
            "{found}"
        );
    }
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for (file, says) in [
        ("[delivery]\ndead_after = \"30s\"", "make it 38s or more"),
        (
            "[delivery]\nping_interval = \"60s\"",
            "relay.toml:2:1: delivery.ping_interval: delivery.dead_after 60s is too close",
        ),
        (
            "[delivery]\npoll_wait = \"2m\"",
            "longer than delivery.poll_wait_max 60s",
        ),
        (
            "[delivery]\noutbox_bytes = \"32KiB\"",
            "could not hold one update",
        ),
        (
            "[drain]\nspread = \"15s\"",
            "does not end before drain.deadline 15s",
        ),
        (
            "[http]\nlisten = \"127.0.0.1:9090\"",
            "give one another port",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:8080\"",
            "give one another port",
        ),
        ("[nats]\nlive_prefix = \"progress\"", "overlap"),
        ("[nats]\nlive_prefix = \"progress.live\"", "overlap"),
        ("[nats]\nprefix = \"live.jobs\"", "overlap"),
        ("[nats]\nprefix = \"a.*\"", "not a valid subject prefix"),
        ("[nats]\nprefix = \"a..b\"", "not a valid subject prefix"),
        ("[nats]\nstream = \"a.b\"", "not a valid stream name"),
        ("[nats]\nurl = []", "name at least one server"),
        (
            "[bus]\nmode = \"jetstream\"\n[nats]\nstream_max_age = \"1h\"",
            "at least that long",
        ),
        (
            "[bus]\nmode = \"nats\"\n[history]\nfile = \"h\"",
            "only for bus.mode \"embedded\"",
        ),
        (
            "[history]\nfile = \"/no/such/folder/h\"",
            "its folder cannot be opened: No such file",
        ),
        ("[history]\nfile = \"/\"", "is a folder"),
        ("[log]\nlevel = \"infoo\"", "did you mean \"info\"?"),
        (
            "[log]\nlevel = \"info,relay_bus=loud\"",
            "\"relay_bus=loud\" is not a log level",
        ),
        ("[auth]\ncookie = \"a b\"", "not a valid cookie name"),
        ("[auth]\naudience = \"\"", "is empty"),
    ] {
        let found = problem(file, &[]);
        assert!(found.contains(says), "{found}");
    }
    assert!(load("[log]\nlevel = \"info,relay_bus=debug\"", &[]).is_ok());
}

#[test]
fn regression_a_duration_of_ages_is_out_of_range_like_any_other() {
    let file = "[delivery]\nping_interval = \"18446744073709551615s\"";
    let said = load(file, &[]).unwrap_err().join("\n");
    assert!(said.contains("is too much; at most 1h"), "{said}");
}

#[test]
fn ways_to_log_in_to_nats_must_be_whole_and_only_one() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret\n").unwrap();
    let path = secret.path().display();
    let pem = tempfile::NamedTempFile::new().unwrap();
    let blocks = [
        "NATS USER JWT",
        "USER NKEY SEED",
        "CERTIFICATE",
        "PRIVATE KEY",
    ];
    let blocks = blocks.map(|label| format!("-----BEGIN {label}-----\n"));
    std::fs::write(pem.path(), blocks.concat()).unwrap();
    let pem = pem.path().display();
    for (lines, says) in [
        ("user = \"u\"".to_owned(), "has no password"),
        ("password = \"p\"".to_owned(), "without a user"),
        (
            format!("user = \"u\"\npassword = \"p\"\npassword_file = \"{path}\""),
            "both set",
        ),
        (
            format!("token = \"t\"\ntoken_file = \"{path}\""),
            "both set",
        ),
        (
            format!("token = \"t\"\ncreds_file = \"{pem}\""),
            "(nats.token, nats.creds_file)",
        ),
        (
            "user = \"u\"\npassword = \"p\"\nurl = \"nats://a:b@h\"".to_owned(),
            "(nats.user, nats.url)",
        ),
        ("user = \"\"\npassword = \"p\"".to_owned(), "is empty"),
        (
            "nkey_file = \"/no/key\"".to_owned(),
            "cannot read /no/key: No such file or directory",
        ),
        ("creds_file = \"/\"".to_owned(), "is a folder"),
        (format!("tls_cert_file = \"{pem}\""), "has no private key"),
        (format!("tls_key_file = \"{pem}\""), "has no certificate"),
    ] {
        let found = problem(&format!("[nats]\n{lines}\n"), &[]);
        assert!(found.contains(says), "{found}");
    }
    let good = format!("[bus]\nmode = \"nats\"\n[nats]\nuser = \"u\"\npassword_file = \"{path}\"");
    let nats = config(&good, &[]).nats;
    assert_eq!(nats.password().unwrap().unwrap().expose(), "s3cret");
}

#[test]
fn a_listener_others_can_reach_needs_a_word_about_auth() {
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080"] {
        let found = problem(&format!("[http]\nlisten = \"{listen}\""), &[]);
        assert!(
            found.starts_with("auth.mode: is not set, and http.listen"),
            "{found}"
        );
        let said = format!("[http]\nlisten = \"{listen}\"\n[auth]\nmode = \"anonymous\"");
        assert_eq!(config(&said, &[]).auth_mode(), AuthMode::Anonymous);
    }
    assert!(load("[http]\nlisten = \"[::1]:8080\"", &[]).is_ok());
}

#[test]
fn the_key_must_fit_the_algorithms() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().display();
    for (lines, says) in [
        (String::new(), "relay.toml:2:1: auth.mode: there is no key"),
        ("key = \"k\"\nkey_file = \"/no/key\"".to_owned(), "both set"),
        (
            "key_file = \"/no/key\"".to_owned(),
            "auth.key_file: cannot read /no/key: No such file or directory (os error 2)",
        ),
        (format!("key_file = \"{empty}\""), "auth.key_file: is empty"),
        (
            "key = \"k\"\nalgorithms = [\"HS256\", \"RS256\"]".to_owned(),
            "RS256 needs an RSA public key, but auth.key holds a shared secret",
        ),
        (
            "key = \"k\"\nalgorithms = [\"RS256\", \"ES256\"]".to_owned(),
            "RS256 needs an RSA public key, but auth.key holds a shared secret",
        ),
        (
            "key = \"k\"\nalgorithms = [\"ES256\"]".to_owned(),
            "needs an EC public key, but auth.key holds a shared secret",
        ),
        (
            "key = \"ssh-rsa AAAA\"".to_owned(),
            "looks like a public key",
        ),
    ] {
        let found = problem(&format!("[auth]\nmode = \"jwt\"\n{lines}\n"), &[]);
        assert!(found.contains(says), "{found}");
    }
    let found = problem("[auth]\nkey = \"k\"\n", &[]);
    assert!(
        found.starts_with("auth.mode: is not set although there is a key"),
        "{found}"
    );
}

#[test]
fn what_is_allowed_but_probably_not_meant_is_warned_of() {
    for (file, says) in [
        (
            "[nats]\nurl = \"nats://nats:4222\"",
            "bus.mode: is \"embedded\", so NATS is not used",
        ),
        (
            "[auth]\nmode = \"anonymous\"\nkey = \"k\"",
            "auth.key is not used",
        ),
        (
            "[auth]\nmode = \"jwt\"\nkey = \"short\"",
            "has 5 bytes; a secret shorter than 32",
        ),
        (
            "[http]\nallowed_origins = [\"*\", \"https://a.example\"]",
            "allows every origin already",
        ),
    ] {
        let found = warnings(file);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(says), "{found:?}");
    }
    assert!(warnings("").is_empty());
}
