//! What holds for every dialect, and what is said of a file that is wrong.

use relay_core::watcher::outbox::OutboxBounds;
use relay_core::watcher::session::SessionBounds;

use super::*;

/// The configuration's own.
const DEFAULTS: WatcherBounds = WatcherBounds {
    outbox: OutboxBounds {
        milestones: 100,
        bytes: 256 * 1024,
        jobs: 10_000,
        interval: Duration::from_millis(100),
    },
    session: SessionBounds {
        subscriptions: 100,
        auth_timeout: Duration::from_secs(10),
        ping_interval: Duration::from_secs(25),
        dead_after: Duration::from_secs(60),
    },
    ack_timeout: Duration::from_secs(5),
    endings_within: None,
};

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        path: format!("{name}.toml").into(),
        text: text.to_owned().into(),
    }
}

fn built_in() -> Dialects {
    let sources: Vec<_> = BUILT_IN
        .iter()
        .map(|(name, text)| source(name, text))
        .collect();
    Dialects::load(&sources, DEFAULTS, &|_, _| Box::new(())).unwrap()
}

/// What is wrong with a file of this text, line by line.
fn problems(text: &str) -> Vec<String> {
    let Err(mistakes) = Dialects::load(&[source("mine", text)], DEFAULTS, &|_, _| Box::new(()))
    else {
        return Vec::new();
    };
    let shown = mistakes.iter().map(|mistake| {
        let Mistake {
            path,
            line,
            column,
            key,
            message,
        } = mistake;
        format!("{}:{line}:{column}: {key}: {message}", path.display())
    });
    shown.collect()
}

#[test]
fn every_built_in_dialect_compiles() {
    for (name, text) in BUILT_IN {
        assert_eq!(problems(text), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn the_how_tos_dialect_is_right() {
    let page = include_str!("../../../../docs/how-to/keep-your-front-end.md");
    let block = page.split("```toml\n").nth(1).unwrap();
    let file = block.split("```").next().unwrap();
    assert_eq!(problems(file), Vec::<String>::new());
}

#[test]
fn a_path_may_be_asked_with_a_slash_at_its_end() {
    let dialects = built_in();
    let found = dialects.routes.find("/ws/generations/gen_1/").unwrap();
    assert_eq!(found.params.get("job"), Some("gen_1"));
    assert!(found.websocket.is_some());
    assert_eq!(found.socketio.len(), 1);
    assert!(dialects.routes.find("/nowhere").is_none());
}

#[test]
fn one_socket_io_path_has_the_namespaces_of_several_dialects() {
    let dialects = built_in();
    let found = dialects.routes.find("/socket.io/").unwrap();
    let mut names: Vec<_> = found
        .socketio
        .iter()
        .map(|each| each.namespace.as_deref().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "/",
            "/jobs",
            "/ws/compositions/{job}",
            "/ws/generations/{job}"
        ]
    );
}

#[test]
fn a_mistake_in_a_mapping_is_said_with_file_line_and_what_jq_says() {
    let text = "description = \"x\"\n\n[frames]\nstate = '''\n.job\n| {a: nosuch}\n'''\n";
    assert_eq!(
        problems(text),
        ["mine.toml:6:7: frames.state: jq: undefined filter nosuch/0"]
    );
    let text = "description = \"x\"\ndefinitions = '''\ndef a: 1;\ndef b: (2;\n'''\n[frames]\nstate = 'a'\n";
    assert_eq!(problems(text).len(), 1);
    assert!(
        problems(text)[0]
            .starts_with("mine.toml:4:11: definitions: jq: expected closing parenthesis"),
        "{:?}",
        problems(text)
    );
}

#[test]
fn what_a_file_may_not_say_is_refused_with_its_place() {
    let refused = |text: &str, expected: &str| {
        let text = format!("description = \"x\"\n{text}");
        let found = problems(&text);
        assert!(
            found.iter().any(|each| each.contains(expected)),
            "{text}: {found:?}"
        );
    };
    refused("frame = 1", "unknown field `frame`");
    refused(
        "[close.codes]\ndrain = 1006",
        "mine.toml:3:9: close.codes: 1006 is not a close code",
    );
    refused(
        "[close.codes]\nlunch = 1001",
        "\"lunch\" is not a close reason",
    );
    refused(
        "[delivery]\nrecovery = true",
        "no route has transport = \"socketio\"",
    );
    let route = "[[routes]]\ntransport = \"websocket\"\npath = ";
    refused(&format!("{route}\"/v1/x\""), "paths below /v1/");
    refused(
        &format!("{route}\"/x/{{job}}\"\ntopics = [\"job:{{id}}\"]"),
        "{id} is not a parameter",
    );
    refused(
        &format!("{route}\"/x\"\ntopics = [\"jobs:a\"]"),
        "is not a valid topic",
    );
    refused(
        &format!("{route}\"/x\"\nnamespace = \"/a\""),
        "has namespaces",
    );
    refused(
        &format!("{route}\"/x\"\n{route}\"/x\""),
        "is a WebSocket of mine already",
    );
    refused(
        "[[polls]]\npath = \"/x\"\nbody = \".\"",
        "one parameter, {job}, or polls.topic names",
    );
    let poll = "[[polls]]\npath = \"/x/{of}\"\nbody = \".\"\ntopic = ";
    refused(
        &format!("{poll}\"user:{{job}}\""),
        "mine.toml:5:9: polls.topic: \"user:{job}\" is not a valid topic: {job} is not a parameter",
    );
    refused(&format!("{poll}\"{{of}}\""), "is not a valid topic");
    refused(
        &format!("{poll}\"user:{{user|a b}}\""),
        "is not a valid topic",
    );
    refused(
        "[messages]\nanswer = \"empty\"",
        "messages.answer: needs frames.answer",
    );
    let health = "[[health]]\nbody = \".\"\npath = ";
    refused(
        &format!("{health}\"/v1/health\""),
        "mine.toml:4:8: health.path: paths below /v1/ are the native protocol's",
    );
    refused(
        &format!("{health}\"/health/{{job}}\""),
        "leave out the path's parameters",
    );
    refused(
        &format!("{health}\"/health\"\n{health}\"/health/\""),
        "says how the relay is in mine already",
    );
    refused(
        &format!("{health}\"/health\"\n[[polls]]\npath = \"/health\"\nbody = \".\""),
        "one parameter, {job}",
    );
    refused(
        "[[health]]\npath = \"/h\"\nbody = \"nosuch\"",
        "health.body: jq: undefined filter",
    );
    refused(
        "[heartbeat]\nping_interval = \"30s\"\ndead_after = \"30s\"",
        "one and a half times",
    );
    refused(
        "[heartbeat]\ncheck_interval = \"60s\"",
        "needs frames.check",
    );
    refused(
        "[requests.start]\nsubject = \"work.*\"",
        "is not a valid subject",
    );
}

#[test]
fn instructions_are_read_and_nothing_else() {
    let read = |text: &str| instruction(text.as_bytes());
    assert_eq!(
        read(r#"{"subscribe":"job:a"}"#),
        Some(Instruction::Subscribe("job:a".to_owned()))
    );
    assert_eq!(
        read(r#"{"reply":{"z":1,"a":2.0}}"#),
        Some(Instruction::Reply(br#"{"z":1,"a":2.0}"#.to_vec()))
    );
    assert_eq!(
        read(r#"{"request":"start","data":{"url":"x"}}"#),
        Some(Instruction::Request {
            name: "start".to_owned(),
            data: br#"{"url":"x"}"#.to_vec()
        })
    );
    for text in [
        "1",
        "{}",
        r#"{"subscribe":1}"#,
        r#"{"publish":"x"}"#,
        r#"{"a":1,"b":2}"#,
    ] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn a_workers_word_is_used_where_the_front_end_knows_it() {
    let words = Words(
        ["q", "r", "c", "f", "x", "encoding"]
            .map(str::to_owned)
            .into(),
    );
    assert_eq!(words.get(words.index(Status::Running, None)), Some("r"));
    assert_eq!(
        words.get(words.index(Status::Running, Some("Encoding"))),
        Some("encoding")
    );
    assert_eq!(
        words.get(words.index(Status::Running, Some("boiling"))),
        Some("r")
    );
    assert_eq!(
        words.get(words.index(Status::Failed, Some("encoding"))),
        Some("f")
    );
}
