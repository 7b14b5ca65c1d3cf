//! Configurations as people write them: good ones, and each mistake with the sentence it earns.

use std::time::Duration;

use super::*;

fn env<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (String, String)> + 'a {
    vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
}

pub(super) fn load(file: &str, vars: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.toml");
    std::fs::write(&path, file).unwrap();
    Loaded::load(Some(&path), env(vars)).map_err(|errors| {
        errors
            .problems()
            .iter()
            .map(|p| p.to_string().replace(path.to_str().unwrap(), "relay.toml"))
            .collect()
    })
}

pub(super) fn config(file: &str, vars: &[(&str, &str)]) -> Config {
    load(file, vars).unwrap().config
}

fn problems(file: &str, vars: &[(&str, &str)]) -> Vec<String> {
    load(file, vars).expect_err("there should be a problem")
}

/// The one problem there is.
pub(super) fn problem(file: &str, vars: &[(&str, &str)]) -> String {
    let found = problems(file, vars);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

#[test]
fn nothing_at_all_is_a_good_configuration() {
    assert_eq!(config("", &[]), Config::default());
    assert_eq!(
        Config::load(None, std::iter::empty()),
        Ok(Config::default())
    );
    assert_eq!(Config::default().validate(), Ok(()));
    assert_eq!(Config::default().auth_mode(), AuthMode::Anonymous);
}

#[test]
fn the_file_goes_before_the_defaults_and_the_environment_before_the_file() {
    let file = "[limits]\nconnections = 7\nmessages_burst = 8\n";
    let vars = [
        ("RELAY__LIMITS__CONNECTIONS", "9"),
        (
            "RELAY__HTTP__ALLOWED_ORIGINS",
            "https://a.example, https://b.example",
        ),
        ("RELAY__NATS__URL", "nats://a:4222,nats://b:4222"),
        ("RELAY__NATS__STREAM_CREATE", "false"),
        ("RELAY__DRAIN__SPREAD", "2s"),
        ("RELAY__HISTORY__BYTES", "2MiB"),
        ("RELAY__LIMITS__UPDATE_BYTES", "2048"),
    ];
    let config = config(file, &vars);
    assert_eq!(config.limits.connections, 9);
    assert_eq!(config.limits.messages_burst, 8);
    assert_eq!(config.http.allowed_origins.len(), 2);
    assert_eq!(config.nats.url.len(), 2);
    assert!(!config.nats.stream_create);
    assert_eq!(config.drain.spread, Duration::from_secs(2));
    assert_eq!(config.history.bytes, 2 << 20);
    assert_eq!(config.limits.update_bytes, 2048);
}

#[test]
fn an_empty_list_goes_over_a_full_one() {
    let file = "[http]\nallowed_origins = [\"https://a.example\"]\n";
    let vars = [("RELAY__HTTP__ALLOWED_ORIGINS", "")];
    assert!(config(file, &vars).http.allowed_origins.is_empty());
    assert_eq!(
        config("[http]\nallowed_origins = []", &[]),
        Config::default()
    );
}

#[test]
fn where_each_value_came_from_is_known() {
    let loaded = load(
        "[bus]\nmode = \"nats\"\n",
        &[("RELAY__DRAIN__SPREAD", "2s")],
    )
    .unwrap();
    assert!(matches!(
        loaded.places["bus.mode"],
        Place::File {
            line: 2,
            column: 1,
            ..
        }
    ));
    assert_eq!(
        loaded.places["drain.spread"],
        Place::Env("RELAY__DRAIN__SPREAD".to_owned())
    );
    assert_eq!(loaded.places.len(), 2);
}

#[test]
fn a_list_may_be_one_text_or_a_list() {
    for url in ["\"nats://a:1\"", "[\"nats://a:1\"]", "\"nats://a:1,\""] {
        let config = config(&format!("[nats]\nurl = {url}"), &[]);
        assert_eq!(config.nats.url, [NatsUrl::parse("nats://a:1").unwrap()]);
    }
}

#[test]
fn a_text_that_looks_like_a_number_stays_text_where_text_is_wanted() {
    let vars = [
        ("RELAY__NATS__USER", "123"),
        ("RELAY__NATS__PASSWORD", "true"),
        ("RELAY__BUS__MODE", "nats"),
    ];
    let nats = config("", &vars).nats;
    assert_eq!(nats.user.as_deref(), Some("123"));
    assert_eq!(nats.password().unwrap().unwrap().expose(), "true");
}

#[test]
fn variables_of_others_are_left_alone() {
    let vars = [
        ("RELAY_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_SERVICE_PORT_HTTP", "8080"),
        ("RELAY_PORT", "tcp://10.0.0.1:8080"),
        ("RELAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("RELAY_HTTP_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_CONFIG", "x"),
        ("RELAY_URL", "x"),
        ("RELAY_TOKEN", "x"),
        ("RELAYER__X", "x"),
        ("PATH", "/bin"),
    ];
    assert_eq!(config("", &vars), Config::default());
}

#[test]
fn an_unknown_key_is_told_with_its_place_and_the_key_meant() {
    for (file, says) in [
        (
            "[nats]\n  urll = 1",
            "relay.toml:2:3: nats.urll: unknown key; did you mean nats.url?",
        ),
        (
            "[natz]\nurl = 1",
            "relay.toml:1:2: natz: unknown section; did you mean [nats]?",
        ),
        (
            "listen = 1",
            "relay.toml:1:1: listen: unknown key; did you mean http.listen?",
        ),
        (
            "[http]\nping_interval = 1",
            "relay.toml:2:1: http.ping_interval: unknown key; did you mean delivery.ping_interval?",
        ),
        (
            "nats.urll = 1",
            "relay.toml:1:6: nats.urll: unknown key; did you mean nats.url?",
        ),
        (
            "[http]\nfrobnicate = 1",
            "relay.toml:2:1: http.frobnicate: unknown key; the keys are in docs/reference/config.md",
        ),
        (
            "[frobnicate]",
            "relay.toml:1:2: frobnicate: unknown section; the sections and keys are in docs/reference/config.md",
        ),
    ] {
        assert_eq!(problem(file, &[]), says);
    }
}

#[test]
fn an_unknown_variable_is_told_by_its_name() {
    for (name, says) in [
        (
            "RELAY__NATS__URLL",
            "env RELAY__NATS__URLL: nats.urll: unknown key; did you mean RELAY__NATS__URL?",
        ),
        (
            "RELAY__NATS_URL",
            "env RELAY__NATS_URL: nats_url: unknown key; did you mean RELAY__NATS__URL?",
        ),
        (
            "RELAY__X",
            "env RELAY__X: x: unknown key; the keys are in docs/reference/config.md",
        ),
        (
            "RELAY_NATS_URL",
            "env RELAY_NATS_URL: nats.url: is not read from this name; two underscores part section and key: RELAY__NATS__URL",
        ),
        (
            "RELAY_NATS__URL",
            "env RELAY_NATS__URL: nats.url: is not read from this name; two underscores part section and key: RELAY__NATS__URL",
        ),
    ] {
        assert_eq!(problem("", &[(name, "x")]), says);
    }
}

#[test]
fn a_value_of_the_wrong_type_is_told_in_plain_words() {
    for (file, says) in [
        (
            "[limits]\nconnections = \"many\"",
            "expected a whole number",
        ),
        ("[limits]\nconnections = -1", "expected a whole number"),
        ("[limits]\nconnections = 1.5", "expected a whole number"),
        ("[nats]\nstream_create = \"yes\"", "expected true or false"),
        ("[nats]\nuser = 5", "expected a text in quotes"),
        ("[bus]\nmode = \"jetsream\"", "did you mean `jetstream`?"),
        (
            "[bus]\nmode = \"kafka\"",
            "unknown value `kafka`, expected one of `embedded`, `nats`, `jetstream`",
        ),
        ("[auth]\nalgorithms = \"none\"", "unknown value `none`"),
        ("[auth]\nalgorithms = \"hs256\"", "did you mean `HS256`?"),
        (
            "[drain]\nspread = 10",
            "a duration needs a unit: write \"10s\"",
        ),
        (
            "[drain]\nspread = \"10\"",
            "a duration needs a unit: write \"10s\"",
        ),
        ("[limits]\nupdate_bytes = \"64K\"", "such as \"64KiB\""),
        ("[limits]\nupdate_bytes = -1", "below zero"),
        (
            "[http]\nlisten = 8080",
            "\"0.0.0.0:8080\" for every network",
        ),
        (
            "[http]\nlisten = \":8080\"",
            "\"0.0.0.0:8080\" for every network",
        ),
        (
            "[http]\nlisten = \"a..b:8080\"",
            "write an IP address, such as \"127.0.0.1:8080\"",
        ),
        (
            "[http]\nallowed_origins = [\"app.example\"]",
            "such as \"https://app.example\"",
        ),
        (
            "http = 5",
            "relay.toml:1:1: http: is a section; write [http] on its own line",
        ),
        ("[[nats]]\nurl = \"x\"", "nats: is a section"),
    ] {
        let found = problem(file, &[]);
        assert!(found.contains(says), "{found}");
    }
    let found = problem("", &[("RELAY__LIMITS__CONNECTIONS", "many")]);
    assert!(
        found.starts_with("env RELAY__LIMITS__CONNECTIONS: limits.connections: "),
        "{found}"
    );
    assert!(found.contains("expected a whole number"), "{found}");
    let found = problem("", &[("RELAY__DRAIN__SPREAD", "5")]);
    assert!(found.contains("write \"5s\""), "{found}");
}

#[test]
fn a_wrong_element_of_a_list_is_told_by_its_own_place() {
    let file = "[nats]\nurl = [\n  \"nats://a:4222\",\n  \"http://b:4222\",\n]\n";
    let found = problem(file, &[]);
    assert!(
        found.starts_with("relay.toml:4:3: nats.url[1]: \"http\" is not a way"),
        "{found}"
    );
}

#[test]
fn a_syntax_error_is_told_with_line_and_column() {
    let found = problem("[http]\nlisten = \n", &[]);
    assert!(found.starts_with("relay.toml:2:"), "{found}");
    let found = problem("[http]\nshards = 1\nshards = 2\n", &[]);
    assert!(
        found.starts_with("relay.toml:3:1: not valid TOML: duplicate key"),
        "{found}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_the_systems_reason() {
    let found = Config::load(Some(Path::new("/no/relay.toml")), std::iter::empty());
    assert_eq!(
        found.unwrap_err().to_string(),
        "/no/relay.toml: cannot read the configuration: No such file or directory (os error 2)"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
    let found = Config::load(Some(file.path()), std::iter::empty());
    assert!(found.unwrap_err().to_string().contains("is not UTF-8"));
}

#[test]
fn all_that_is_wrong_is_found_at_once_and_in_reading_order() {
    let file = "[drain]\nspread = \"1h\"\ndeadline = \"15s\"\n[nats]\nurll = 1\nurl = []\n[limits]\nconnections = \"x\"\n";
    let vars = [("RELAY__BUS__MODE", "x"), ("RELAY__HISTORY__PER_JOB", "0")];
    let found = problems(file, &vars);
    let keys: Vec<&str> = found
        .iter()
        .map(|p| p.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(
        keys,
        [
            "drain.spread",
            "nats.urll",
            "nats.url",
            "limits.connections",
            "bus.mode",
            "history.per_job"
        ]
    );
}

#[test]
fn a_key_that_could_not_be_read_is_not_also_blamed_for_what_follows() {
    // With dead_after at its default, 60s, the two would contradict each other.
    let file = "[delivery]\nping_interval = \"10m\"\ndead_after = \"20 minuets\"\n";
    let found = problem(file, &[]);
    assert!(
        found.contains("delivery.dead_after: \"20 minuets\" is not a duration"),
        "{found}"
    );
}

#[test]
fn a_secret_in_a_problem_is_never_repeated() {
    for (file, vars) in [
        ("[auth]\nmode = \"jwt\"\nkey = 918273645", vec![]),
        ("[nats]\npassword = [\"918273645\"]\nuser = \"u\"", vec![]),
        ("[nats]\nurl = \"nats://u:918273645@h:x\"", vec![]),
        ("[nats]\nurl = \"u:918273645://h\"", vec![]),
        (
            "",
            vec![
                ("RELAY__NATS__TOKEN", "918273645"),
                ("RELAY__NATS__CREDS_FILE", "/no"),
            ],
        ),
        ("", vec![("RELAY__NATS__TOKENN", "918273645")]),
    ] {
        for found in problems(file, &vars) {
            assert!(!found.contains("918273645"), "{found}");
        }
    }
    let config = config("[nats]\ntoken = \"918273645\"", &[]);
    assert!(!format!("{config:?}").contains("918273645"));
}

/// Lists, of which an empty one is a value.
const LISTS: [&str; 9] = [
    "http.trusted_proxies",
    "http.hosts",
    "http.allowed_origins",
    "nats.url",
    "auth.algorithms",
    "auth.keys",
    "auth.forward",
    "auth.revoked",
    "dialects.enabled",
];

#[test]
fn an_empty_variable_is_named_and_nothing_else_is_blamed() {
    for key in known_keys() {
        if LISTS.contains(&key.as_str()) {
            continue;
        }
        for value in ["", " "] {
            let variable = env_name(&key);
            let found = problem("", &[(&variable, value)]);
            let says = format!(
                "env {variable}: {key}: is set to nothing; give the variable a value, or unset it"
            );
            assert_eq!(found, says);
        }
    }
}

#[test]
fn a_value_that_cannot_be_taken_is_not_said_to_be_missing_beside_it() {
    let pem = tempfile::NamedTempFile::new().unwrap();
    let blocks = ["CERTIFICATE", "PRIVATE KEY"].map(|label| format!("-----BEGIN {label}-----\n"));
    std::fs::write(pem.path(), blocks.concat()).unwrap();
    let pem = pem.path().display();
    for (lines, variable) in [
        (
            "[auth]\nmode = \"jwt\"".to_owned(),
            ("RELAY__AUTH__KEY", ""),
        ),
        (
            "[auth]\nmode = \"jwt\"".to_owned(),
            ("RELAY__AUTH__KEY", "[redacted]"),
        ),
        (
            "[auth]\nmode = \"jwt\"".to_owned(),
            ("RELAY__AUTH__KEY_FILE", ""),
        ),
        (
            "[nats]\nuser = \"u\"".to_owned(),
            ("RELAY__NATS__PASSWORD", ""),
        ),
        (
            "[nats]\nuser = \"u\"".to_owned(),
            ("RELAY__NATS__PASSWORD_FILE", ""),
        ),
        (
            "[nats]\npassword = \"p\"".to_owned(),
            ("RELAY__NATS__USER", ""),
        ),
        (
            format!("[nats]\ntls_cert_file = \"{pem}\""),
            ("RELAY__NATS__TLS_KEY_FILE", ""),
        ),
        (
            format!("[nats]\ntls_key_file = \"{pem}\""),
            ("RELAY__NATS__TLS_CERT_FILE", ""),
        ),
    ] {
        let found = problem(&lines, &[variable]);
        assert!(
            found.starts_with(&format!("env {}: ", variable.0)),
            "{found}"
        );
    }
}

#[test]
fn an_empty_text_in_the_file_is_refused_whatever_the_key() {
    let mut tried = 0;
    for key in known_keys() {
        let (section, name) = key.split_once('.').unwrap();
        let file = format!("[{section}]\n{name} = \"\"\n");
        if LISTS.contains(&key.as_str()) {
            continue;
        }
        let says = format!("relay.toml:2:1: {key}: is empty; write a value, or leave the key out");
        assert_eq!(problem(&file, &[]), says);
        tried += 1;
    }
    assert!(tried > 50);
}

#[test]
fn what_stands_for_a_secret_where_a_configuration_is_shown_is_not_taken_for_one() {
    for (lines, key) in [
        ("[auth]\nmode = \"jwt\"\nkey = \"[redacted]\"", "auth.key"),
        (
            "[nats]\nuser = \"u\"\npassword = \"[redacted]\"",
            "nats.password",
        ),
        ("[nats]\ntoken = \"[redacted]\"", "nats.token"),
        ("[nats]\nurl = \"nats://[redacted]@h:4222\"", "nats.url"),
        (
            "[nats]\nurl = [\"nats://h:4222\", \"tls://[redacted]@h:4222\"]",
            "nats.url",
        ),
    ] {
        let found = problems(lines, &[]).join("\n");
        assert!(found.contains(key) && found.contains("write"), "{found}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[redacted]\n").unwrap();
    let path = file.path().display();
    for lines in [
        format!("[auth]\nmode = \"jwt\"\nkey_file = \"{path}\""),
        format!("[nats]\nuser = \"u\"\npassword_file = \"{path}\""),
        format!("[nats]\ntoken_file = \"{path}\""),
    ] {
        let found = problem(&lines, &[]);
        assert!(found.contains("in place of a secret"), "{found}");
    }
}

#[test]
fn a_secret_is_the_same_from_a_file_with_an_editors_marks_and_from_a_variable_with_a_line_end() {
    const SECRET: &str = "s3cret of thirty-two bytes or so!";
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    // Compiling dialects takes its time, and none is needed.
    let config = |lines: &str, vars: &[(&str, &str)]| {
        config(&format!("dialects.enabled = []\n{lines}"), vars)
    };
    for text in [
        SECRET.to_owned(),
        format!("{SECRET}\n"),
        format!("{SECRET}\r\n"),
        format!("\u{feff}{SECRET}"),
        format!("\u{feff}{SECRET}\r\n"),
    ] {
        std::fs::write(file.path(), &text).unwrap();
        let by_file = format!("[nats]\nuser = \"u\"\npassword_file = \"{path}\"");
        let nats = config(&by_file, &[]).nats;
        assert_eq!(nats.password().unwrap().unwrap().expose(), SECRET);
        let vars = [
            ("RELAY__NATS__USER", "u"),
            ("RELAY__NATS__PASSWORD", &*text),
        ];
        let nats = config("", &vars).nats;
        assert_eq!(nats.password().unwrap().unwrap().expose(), SECRET);

        let signer = crate::identity::signing::SigningKey::new(SECRET.as_bytes(), None).unwrap();
        let claims = crate::identity::signing::Claims {
            sub: "alice".to_owned(),
            exp: 4_000_000_000,
            ..Default::default()
        };
        let token = signer.sign(&claims).unwrap();
        let now = relay_bus::clock::Clock::start().wall();
        let by_file = format!("[auth]\nmode = \"jwt\"\nkey_file = \"{path}\"");
        let vars = [("RELAY__AUTH__MODE", "jwt"), ("RELAY__AUTH__KEY", &*text)];
        for config in [config(&by_file, &[]), config("", &vars)] {
            let verified = config.auth.verifier(None).unwrap().verify(&token, now);
            assert!(verified.is_ok(), "{text:?}: {verified:?}");
        }
    }
}

#[test]
fn a_file_that_does_not_hold_what_its_key_needs_is_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let utf16: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain("secret".bytes().flat_map(|b| [b, 0]))
        .collect();
    let user = pem("NATS USER JWT") + &pem("USER NKEY SEED");
    for (key, text, says) in [
        ("nats.token_file", b"a\nb\n".to_vec(), "has several lines"),
        ("nats.token_file", b"\n".to_vec(), "is an empty file"),
        ("nats.token_file", utf16.clone(), "is UTF-16 text"),
        ("nats.nkey_file", b"hello\n".to_vec(), "begins with SU"),
        ("nats.nkey_file", utf16.clone(), "is UTF-16 text"),
        (
            "nats.creds_file",
            b"hello\n".to_vec(),
            "is not a credentials file",
        ),
        (
            "nats.creds_file",
            (user.clone() + &user).into_bytes(),
            "several users",
        ),
        (
            "nats.tls_ca_file",
            b"hello\n".to_vec(),
            "holds no certificate",
        ),
        (
            "nats.tls_key_file",
            pem("CERTIFICATE").into_bytes(),
            "holds no private key",
        ),
        (
            "nats.tls_key_file",
            (pem("PRIVATE KEY") + &pem("EC PRIVATE KEY")).into_bytes(),
            "several private keys",
        ),
        ("auth.key_file", utf16.clone(), "is UTF-16 text"),
        (
            "auth.key_file",
            (pem("PUBLIC KEY") + &pem("PUBLIC KEY")).into_bytes(),
            "not an RSA, EC or Ed25519 public key",
        ),
        (
            "auth.key_file",
            (pem("PUBLIC KEY") + &pem("PRIVATE KEY")).into_bytes(),
            "holds a private key",
        ),
    ] {
        std::fs::write(file.path(), &text).unwrap();
        let (section, name) = key.split_once('.').unwrap();
        let mode = if section == "auth" {
            "mode = \"jwt\"\n"
        } else {
            ""
        };
        let found = problems(&format!("[{section}]\n{mode}{name} = \"{path}\"\n"), &[]).join("\n");
        assert!(found.contains(key) && found.contains(says), "{found}");
    }
    std::fs::write(file.path(), format!("\u{feff}{user}")).unwrap();
    assert!(load(&format!("[nats]\ncreds_file = \"{path}\""), &[]).is_ok());
}

#[test]
fn a_configuration_with_a_byte_order_mark_is_read() {
    let config = config("\u{feff}[limits]\nconnections = 7\n", &[]);
    assert_eq!(config.limits.connections, 7);
}

#[test]
fn kinds_are_tables_that_people_name() {
    let file = "[kinds.mail]\nmilestones_after_ending = [\"opened\"]\n\n[kinds.\"*\"]\nremoved_by = \"a, b\"\n";
    let config = config(file, &[]);
    assert_eq!(config.kinds["mail"].milestones_after_ending, ["opened"]);
    assert_eq!(config.kinds["*"].removed_by, ["a", "b"]);
}

#[test]
fn what_is_wrong_with_a_kind_is_said() {
    for (file, expected) in [
        (
            "[kinds.mail]\nremoves = [\"a\"]\n",
            "unknown field `removes`, expected `milestones_after_ending` or `removed_by`",
        ),
        (
            "[kinds.mail]\nremoved_by = [\"a b\"]\n",
            "kinds.mail.removed_by: \"a b\" contains ' '",
        ),
        (
            "[kinds.mail]\nremoved_by = [\"state\"]\n",
            "\"state\" is not a milestone's name",
        ),
        (
            "[kinds.mail]\nremoved_by = [\"a\"]\nmilestones_after_ending = [\"a\"]\n",
            "is in milestones_after_ending and in removed_by",
        ),
        ("[kinds]\nmail = 3\n", "kinds.mail"),
    ] {
        let problem = problem(file, &[]);
        assert!(problem.contains(expected), "{problem}");
    }
    let many: String = (0..65).map(|n| format!("[kinds.k{n}]\n")).collect();
    let problem = problem(&many, &[]);
    assert!(
        problem.contains("65 kinds are declared; at most 64"),
        "{problem}"
    );
}
