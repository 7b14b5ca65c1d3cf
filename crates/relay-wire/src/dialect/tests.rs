//! What holds for every dialect, and what is said of a file that is wrong.

mod promises;
mod readers;

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
        base: None,
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
    shown(Dialects::load(
        &[source("mine", text)],
        DEFAULTS,
        &|_, _| Box::new(()),
    ))
}

fn shown(loaded: Result<Dialects, Vec<Mistake>>) -> Vec<String> {
    let mistakes = loaded.err().unwrap_or_default().into_iter();
    let shown = mistakes.map(|mistake| {
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
fn what_the_how_to_shows_is_right() {
    let page = include_str!("../../../../docs/how-to/keep-your-front-end.md");
    let blocks = page.split("```toml\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    let mut checked = 0;
    // All but the configuration's, what extends another file, and the list of all keys.
    let shown = blocks.filter(|block| {
        !(block.contains("[dialects]") || block.contains("extends") || block.contains('…'))
    });
    for block in shown {
        let mut file = String::new();
        if !block.contains("description") {
            file.push_str("description = \"a part of a file\"\n");
        }
        file.push_str(block);
        // What parts of a file lean on.
        if !block.contains("[[routes]]") {
            file.push_str("\n[[routes]]\npath = \"/part\"\ntransport = \"websocket\"\n");
        }
        if block.contains("requests.") || block.contains("answer =") {
            file.push_str("\n[frames]\nanswer = '.'\n");
        }
        assert_eq!(problems(&file), Vec::<String>::new(), "{file}");
        checked += 1;
    }
    assert!(checked > 8, "the page has lost its examples: {checked}");
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
    refused(
        &format!("{route}\"/v1/jobs/{{job}}\""),
        "collides with /v1/jobs/{id}, which is the relay's own",
    );
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
        &format!("{health}\"/v1/ws\""),
        "mine.toml:4:8: health.path: collides with /v1/ws, which is the relay's own",
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
    let socket = |rest: &str| format!("{route}\"/x\"\nsubprotocols = {rest}");
    refused(
        &socket("[\"a b\"]"),
        "mine.toml:5:17: routes.subprotocols: \"a b\" is not a valid subprotocol",
    );
    refused(&socket("[\"\"]"), "is not a valid subprotocol");
    refused(&socket("[\"a\", \"a\"]"), "\"a\" is there twice");
    refused(&socket("[\"relay.v2\"]"), "are the relay's own");
    refused(
        "[[routes]]\npath = \"/x\"\ntransport = \"socketio\"\nsubprotocols = [\"a\"]",
        "has subprotocols",
    );
    refused(
        "[[routes]]\npath = \"/x\"\ntransport = \"sse\"",
        "say in routes.topics what is watched",
    );
    let stream = "[[routes]]\npath = \"/x/{job}\"\ntransport = \"sse\"\ntopics = [\"job:{job}\"]\n";
    refused(
        &format!("{stream}[[polls]]\npath = \"/x/{{job}}\"\nbody = \".\""),
        "/x/{job} is an event stream of mine already",
    );
    for (text, key) in [
        ("[messages]\ntext = '.'", "messages.text"),
        ("[identity]\nmessage = true", "identity.message"),
        (
            "[delivery]\nreturns_within = \"1m\"",
            "delivery.returns_within",
        ),
    ] {
        let expected = format!("{key}: is for WebSockets, and no route has");
        refused(&format!("{text}\n{stream}"), &expected);
    }
    let poll = "[[polls]]\npath = \"/x/{job}\"\nbody = \".\"\n";
    refused(
        &format!("{poll}list = 5"),
        "mine.toml:5:8: polls.list: a list is of the jobs of a user: or group: topic",
    );
    refused(
        &format!("{poll}topic = \"user:{{job}}\"\nlist = 1001"),
        "polls.list: must be from 1 to 1000 jobs",
    );
    refused(
        &format!("{poll}unknown = {{status = 304, body = \".\"}}"),
        "mine.toml:5:21: polls.unknown.status: 304 is not a status that has a body",
    );
    refused(
        &format!("{poll}unknown = {{body = \"nosuch\"}}"),
        "polls.unknown.body: jq: undefined filter",
    );
    refused(
        "[requests.start]\nsubject = \"work.*\"",
        "is not a valid subject",
    );
}

#[test]
fn instructions_are_read_and_nothing_else() {
    let read = |text: &str| instruction(text.as_bytes());
    let order = |text: &str| read(text).unwrap().order;
    assert_eq!(
        order(r#"{"subscribe":"job:a"}"#),
        Order::Subscribe("job:a".to_owned())
    );
    assert_eq!(
        order(r#"{"reply":{"z":1,"a":2.0}}"#),
        Order::Reply(br#"{"z":1,"a":2.0}"#.to_vec())
    );
    assert_eq!(order(r#"{"text":"pong"}"#), Order::Text("pong".to_owned()));
    let request = r#"{"request":"start","data":{"url":"x"}}"#;
    assert_eq!(
        order(request),
        Order::Request {
            name: "start".to_owned(),
            data: br#"{"url":"x"}"#.to_vec()
        }
    );
    let named = read(r#"{"subscribe":"job:a","identifier":"{\"id\":1}"}"#).unwrap();
    assert_eq!(named.order, Order::Subscribe("job:a".to_owned()));
    assert_eq!(named.identifier.as_deref(), Some(r#"{"id":1}"#));
    let unnamed = read(r#"{"subscribe":"job:a","identifier":null}"#).unwrap();
    assert_eq!(unnamed.identifier, None);
    for text in [
        "1",
        "{}",
        r#"{"subscribe":1}"#,
        r#"{"publish":"x"}"#,
        r#"{"a":1,"b":2}"#,
        r#"{"identifier":"x"}"#,
        r#"{"subscribe":"job:a","identifier":7}"#,
        r#"{"text":7}"#,
    ] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn a_text_of_a_pages_own_is_kept_up_to_its_bound_and_rejected_beyond() {
    let read = |bytes: usize| {
        let text = "x".repeat(bytes);
        let text = format!(r#"{{"subscribe":"job:a","identifier":"{text}"}}"#);
        instruction(text.as_bytes()).unwrap()
    };
    let kept = read(MAX_IDENTIFIER).identifier.unwrap();
    assert_eq!(kept.len(), MAX_IDENTIFIER);
    let Instruction { order, identifier } = read(MAX_IDENTIFIER + 1);
    assert_eq!(identifier, None);
    let Order::Error { code, message } = order else {
        panic!("{order:?}");
    };
    assert_eq!(code, "bad_message");
    assert!(message.contains("longer than 1024 bytes"), "{message}");
}

/// A file of this text that extends `base`.
fn extending(base: Source, text: &str) -> Result<Dialects, Vec<Mistake>> {
    let source = Source {
        base: Some(Box::new(base)),
        ..source("mine", text)
    };
    Dialects::load(&[source], DEFAULTS, &|_, _| Box::new(()))
}

#[test]
fn a_file_adds_to_the_one_that_it_extends() {
    let base = source(
        "base",
        "description = \"x\"\ndefinitions = 'def a: 1;'\n\
         [status]\nqueued = \"waiting\"\nrunning = \"busy\"\n\
         [close.codes]\ndrain = 1001\nidle = 4000\n\
         [[routes]]\npath = \"/base\"\ntransport = \"websocket\"\n\
         [[polls]]\npath = \"/poll/{job}\"\nbody = 'a'\n\
         [frames]\nanswer = 'a'\nstate = 'a'\n",
    );
    let file = "extends = \"base\"\ndefinitions = 'def b: a + 1;'\n[status]\nrunning = \"at it\"\n\
                [close.codes]\nidle = 4001\n[[routes]]\npath = \"/mine\"\ntransport = \"websocket\"\n\
                [requests.start]\nsubject = \"work\"\n[frames]\nstate = 'b'\n";
    let dialects = extending(base, file).unwrap();
    // A list takes the place of the other as a whole.
    assert!(dialects.routes.find("/base").is_none());
    assert!(dialects.routes.find("/poll/j").is_some());
    let found = dialects.routes.find("/mine").unwrap();
    let dialect = &found.websocket.unwrap().voice.dialect;
    assert_eq!(dialect.name, "mine");
    let words = ["waiting", "at it", "completed"].map(str::to_owned);
    assert_eq!(dialect.words.0[..3], words);
    assert_eq!(dialect.close_code(CloseReason::Drain), Some(1001));
    assert_eq!(dialect.close_code(CloseReason::Idle), Some(4001));
    assert!(dialect.requests.contains_key("start"));
    let null = Input::of(&()).unwrap();
    assert_eq!(dialect.map(Frame::State, &null, &null), [b"2"]);
    assert_eq!(dialect.map(Frame::Answer, &null, &null), [b"1"]);
}

#[test]
fn a_mistake_is_said_with_the_file_it_is_in_of_those_that_extend_one_another() {
    let shown = |base: &str, text: &str| shown(extending(source("base", base), text));
    let base = "description = \"x\"\ndefinitions = 'def a: 1;'\n[frames]\nstate = 'a | nosuch'\n";
    assert_eq!(
        shown(base, ""),
        ["base.toml:4:14: frames.state: jq: undefined filter nosuch/0"]
    );
    assert_eq!(shown(base, "[frames]\nstate = 'a'\n"), [""; 0]);
    let own = "definitions = '''\ndef b: a | lost;\n'''\n[frames]\nstate = 'b'";
    assert_eq!(
        shown(base, own),
        ["mine.toml:2:12: definitions: jq: undefined filter lost/0"]
    );
    let own = "definitions = 'def b: a;'\n[frames]\nstate = '''\na, b, lost'''";
    assert_eq!(
        shown(base, own),
        ["mine.toml:4:7: frames.state: jq: undefined filter lost/0"]
    );
    let own = "\n[frames]\nstates = 'a'";
    let found = shown(base, own);
    let expected = "mine.toml:3:1: : unknown field `states`";
    assert!(found[0].starts_with(expected), "{found:?}");
    let own = "\n[heartbeat]\ndead_after = 5";
    let found = shown(base, own);
    assert!(found[0].starts_with("mine.toml:3:14: : "), "{found:?}");
    let found = shown("description = \n", own);
    assert!(found[0].starts_with("base.toml:1:"), "{found:?}");
    // What is wrong with the whole is the file's own.
    let own = "[frames]\nstate = 'a'\n[heartbeat]\nping_interval = \"30s\"\ndead_after = \"30s\"";
    let found = shown(base, own);
    let expected = "mine.toml:1:1: heartbeat.dead_after";
    assert!(found[0].starts_with(expected), "{found:?}");
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
