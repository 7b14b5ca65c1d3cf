//! What workers send, and nobody would write, as every way out tells it: all of them agree, in every value of every
//! document.
//!
//! The documents come from one seed, which is shown with a failure; `RELAY_DOCUMENTS_SEED` plays one again, and
//! `RELAY_DOCUMENTS` says how many. The parsers are Python's, Node's, and serde's; a dialect that passes documents on
//! as they are stands for all mappings.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Stdio;

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use relay_testkit::http::Request;
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::tools;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::readers::publish;

/// Passes on what it is given, on every kind of route.
const WHOLE: &str = r#"
description = "Everything as it is"
[[routes]]
path = "/whole/socket"
transport = "websocket"
topics = ["user:alice"]
[[routes]]
path = "/whole/stream"
transport = "sse"
topics = ["user:alice"]
[[routes]]
path = "/socket.io"
transport = "socketio"
topics = ["user:alice"]
[[polls]]
path = "/whole/jobs/{job}"
body = "{job}"
[[polls]]
path = "/whole/jobs"
topic = "user:alice"
list = 1000
body = "[.jobs[] | {job}]"
[frames]
state = 'if $relay.transport == "socketio" then ["told", .] else . end'
milestone = 'if $relay.transport == "socketio" then ["told", .] else . end'
"#;

/// What is told of each job, and of each milestone, in a form that has one text for one value.
type Told = BTreeMap<String, String>;

/// The value's one text. Numbers are doubles to most readers, and serde is not exact about them.
fn canonical(value: &RawValue) -> String {
    let hex = |text: &str| {
        text.bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let text = value.get();
    match text.as_bytes()[0] {
        b'n' => "z".to_owned(),
        b't' => "t".to_owned(),
        b'f' => "f".to_owned(),
        b'"' => format!("s{}", hex(&serde_json::from_str::<String>(text).unwrap())),
        b'[' => {
            let values: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            let values: Vec<_> = values.into_iter().map(canonical).collect();
            format!("[{}]", values.join(","))
        }
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            let members = members
                .iter()
                .map(|(name, value)| (hex(name), canonical(value)));
            let members: BTreeMap<_, _> = members.collect();
            let members: Vec<_> = members
                .iter()
                .map(|(name, value)| format!("{name}:{value}"))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        _ => {
            let number: f64 = text.parse().unwrap();
            let number = if number == 0.0 { 0.0 } else { number };
            format!("n{:016x}", number.to_bits())
        }
    }
}

fn take(told: &mut Told, frame: &str) {
    let frame: BTreeMap<String, &RawValue> = serde_json::from_str(frame).unwrap();
    let text = |name: &str| serde_json::from_str::<String>(frame[name].get()).unwrap();
    if let Some(job) = frame.get("job") {
        let id = serde_json::from_str::<Value>(job.get()).unwrap()["job_id"].clone();
        told.insert(id.as_str().unwrap().to_owned(), canonical(job));
    } else if frame
        .get("type")
        .is_some_and(|it| it.get() == "\"milestone\"")
    {
        let name = format!("{}/{}", text("job_id"), text("name"));
        told.insert(name, canonical(frame["data"]));
    }
}

/// A value that some reader stumbles over, or one that only looks so.
fn nasty() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(vec![
        "null",
        "true",
        "-0",
        "0.1",
        "1E2",
        "100.00000000000001",
        "1e400",
        "-1e309",
        "1.7976931348623157e308",
        "179769313486231570000000e286",
        "1e-400",
        "4.9e-324",
        "9007199254740993",
        "123456789012345678901234567890",
        r#""""#,
        r#""plain""#,
        r#""\ud83d""#,
        r#""\udc00 \ud83d\ude00""#,
        r#""\u0000\u001e\u001f\uffff""#,
        r#""\/\b\f\n\r\t""#,
        "\"\u{feff}\u{2028}\u{fffe}\u{10ffff}\u{7f}\u{85}\"",
        r#""data: x\n\nid: 7""#,
        r#""</script>""#,
        "NaN",
        "-Infinity",
        "\"\n\"",
        "\"caf\u{1}\"",
        "01",
        "+1",
        ".5",
        "'x'",
    ]);
    let leaf = leaf.prop_map(str::to_owned);
    leaf.prop_recursive(3, 12, 3, |inner| {
        let name = proptest::sample::select(vec![
            "a", "b", "\\u0061", "", "__proto__", "constructor", "\\ud800", "A", "é", "message", "status", "job_id",
        ]);
        prop_oneof![
            4 => proptest::collection::vec(inner.clone(), 0..3).prop_map(|all| format!("[{}]", all.join(" , "))),
            4 => proptest::collection::vec((name, inner.clone()), 0..3).prop_map(|all| {
                let all: Vec<_> = all.into_iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
                format!("{{{}}}", all.join(","))
            }),
            1 => (inner, 56usize..70).prop_map(|(value, depth)| format!("{}{value}{}", "[".repeat(depth), "]".repeat(depth))),
        ]
    })
}

const FIELDS: [&str; 26] = [
    "job_id",
    "owner",
    "attempt",
    "kind",
    "progress",
    "current",
    "total",
    "unit",
    "stage",
    "message",
    "eta_seconds",
    "tasks",
    "result",
    "result_url",
    "error",
    "parent_id",
    "weight",
    "created_at",
    "updated_at",
    "ts",
    "meta",
    "x",
    "\\u0078",
    "dropped_fields",
    "truncated",
    "status_detail",
];

fn document() -> impl Strategy<Value = Vec<u8>> {
    let status = proptest::sample::select(vec![
        "running",
        "queued",
        "completed",
        "failed",
        "Cancelled",
        "done",
    ]);
    let fields =
        proptest::collection::vec((proptest::sample::select(FIELDS.to_vec()), nasty()), 0..5);
    (status, fields, any::<bool>(), 0usize..20).prop_map(|(status, fields, mark, large)| {
        let mut text = if mark {
            "\u{feff}{".to_owned()
        } else {
            "{".to_owned()
        };
        for (name, value) in &fields {
            text += &format!("\"{name}\":{value},");
        }
        if large == 0 {
            text += &format!("\"result\":\"{}\",", "é".repeat(40_000));
        }
        text += &format!("\"status\":\"{status}\"}}");
        bytes(&text)
    })
}

/// A byte that is no text stands for each U+0001.
fn bytes(text: &str) -> Vec<u8> {
    text.bytes()
        .map(|byte| if byte == 1 { 0xe9 } else { byte })
        .collect()
}

async fn lines_of(program: PathBuf, arguments: &[&str], jobs: &[String]) -> Told {
    let running = Command::new(program)
        .args(arguments)
        .env("JOBS", jobs.join(","))
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(2 * SOON, running).await;
    let output = output
        .unwrap_or_else(|_| panic!("{arguments:?} does not end"))
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// What a WebSocket is sent until there are so many; `read` makes a frame of a text.
async fn over_socket(
    relay: &RelayServer,
    path: &str,
    wanted: usize,
    read: fn(&str) -> Option<String>,
) -> Told {
    let stream = tokio::net::TcpStream::connect(relay.address())
        .await
        .unwrap();
    let request = format!("ws://{}{path}", relay.address());
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    if path.starts_with("/socket.io") {
        socket.send(Message::text("40")).await.unwrap();
    }
    let mut told = Told::new();
    while told.len() < wanted {
        let next = timeout(SOON, socket.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{path}: {} of {wanted}", told.len()));
        if let Some(frame) = next.unwrap().unwrap().to_text().ok().and_then(read) {
            take(&mut told, &frame);
        }
    }
    told
}

/// What `relay watch` prints as JSON.
async fn watched(relay: &RelayServer, wanted: usize) -> Told {
    let mut watch = Command::new(env!("CARGO_BIN_EXE_relay"))
        .args([
            "watch",
            "user:alice",
            "--json",
            "--follow",
            "--url",
            &relay.url(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut told = Told::new();
    while told.len() < wanted {
        let line = timeout(SOON, lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("relay watch: {} of {wanted}", told.len()));
        take(&mut told, &line.unwrap().unwrap());
    }
    told
}

async fn play(seed: u64, count: usize) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let mut messages = Vec::new();
    let mut jobs = Vec::new();
    for at in 0..count {
        let job = format!("r{at:04}");
        let state = format!("progress.alice.{job}.state");
        let running = br#"{"status":"running","progress":40,"message":"first"}"#;
        messages.push((state.clone(), running.to_vec()));
        if at % 3 == 0 {
            let data = nasty().new_tree(&mut runner).unwrap().current();
            messages.push((format!("progress.alice.{job}.first"), b"{\"n\":1}".to_vec()));
            messages.push((format!("progress.alice.{job}.clip"), self::bytes(&data)));
        } else {
            messages.push((state, document().new_tree(&mut runner).unwrap().current()));
        }
        jobs.push(job);
    }
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("whole.toml"), WHOLE).unwrap();
    let settings = settings()
        .set("bus.mode", "nats")
        .set("nats.url", nats.url())
        .set("limits.connections_per_address", 1000)
        .set("dialects.enabled", "whole")
        .set("dialects.directory", directory.path().display());
    let relay = RelayServer::start(settings).await.unwrap();
    let last = (
        "progress.bob.last.state".to_owned(),
        br#"{"status":"queued"}"#.to_vec(),
    );
    messages.push(last);
    publish(&nats, &messages).await;
    // What was published before it is here, too.
    let last = async {
        while relay
            .send(Request::get("/v1/jobs/last"))
            .await
            .unwrap()
            .status
            != 200
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, last).await.unwrap();

    // The first way: the documents by themselves, and the milestones of a poll.
    #[derive(Deserialize)]
    struct Polled<'a> {
        #[serde(borrow)]
        frames: Vec<&'a RawValue>,
    }
    let poll = Request::get("/v1/poll?topic=user:alice&wait=0");
    let poll = relay.send(poll).await.unwrap().text();
    let poll: Polled<'_> = serde_json::from_str(&poll).unwrap();
    let mut all = Told::new();
    for frame in poll.frames {
        take(&mut all, frame.get());
    }
    let mut states = Told::new();
    for job in &jobs {
        let answer = relay
            .send(Request::get(format!("/v1/jobs/{job}")))
            .await
            .unwrap();
        let text = answer.text();
        states.insert(job.clone(), canonical(serde_json::from_str(&text).unwrap()));
    }
    let milestones = all.len() - states.len();
    assert!(milestones >= count / 3, "{milestones} milestones");

    let (url, wanted) = (relay.url(), all.len().to_string());
    let native = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let event = |text: &str| {
        let event: Vec<&RawValue> = serde_json::from_str(text.strip_prefix("42")?).ok()?;
        event.get(1).map(|told| told.get().to_owned())
    };
    let mut ways = vec![
        (
            "native WebSocket".to_owned(),
            over_socket(&relay, "/v1/ws?topic=user:alice", all.len(), native).await,
        ),
        (
            "dialect's WebSocket".to_owned(),
            over_socket(&relay, "/whole/socket", all.len(), native).await,
        ),
        (
            "Socket.IO".to_owned(),
            over_socket(
                &relay,
                "/socket.io/?EIO=4&transport=websocket",
                all.len(),
                event,
            )
            .await,
        ),
        ("relay watch".to_owned(), watched(&relay, all.len()).await),
    ];
    let script = |name: &str| format!("{}/tests/clients/agree/{name}", env!("CARGO_MANIFEST_DIR"));
    for way in [
        "sse",
        "dialect-sse",
        "poll",
        "state",
        "dialect-poll",
        "dialect-list",
    ] {
        let arguments = [&script("way.py"), &url, way, &wanted];
        let told = lines_of(tools::python().unwrap(), &arguments, &jobs).await;
        ways.push((format!("Python, {way}"), told));
    }
    for way in ["sse", "dialect-sse", "socketio"] {
        let arguments = [&script("way.mjs"), &url, way, &wanted];
        let told = lines_of(tools::node().unwrap(), &arguments, &jobs).await;
        ways.push((format!("Node, {way}"), told));
    }
    for (way, told) in &ways {
        let has_states_alone = ["state", "dialect-poll", "dialect-list"]
            .iter()
            .any(|each| way.ends_with(each));
        let expected = if has_states_alone { &states } else { &all };
        for (name, value) in expected {
            let job = name.split('/').next().unwrap();
            let sent = messages.iter().filter(|(subject, _)| subject.contains(job));
            let sent: Vec<_> = sent
                .map(|(_, payload)| String::from_utf8_lossy(&payload[..payload.len().min(600)]))
                .collect();
            assert_eq!(
                told.get(name),
                Some(value),
                "{way} tells {name} otherwise; sent was {sent:#?}"
            );
        }
        assert_eq!(told.len(), expected.len(), "{way}");
    }
    let failures = relay
        .metrics()
        .await
        .unwrap()
        .sum("relay_dialect_failures_total", "dialect");
    assert_eq!(failures, 0.0, "a mapping failed");
}

#[tokio::test]
async fn whatever_workers_send_every_way_out_tells_the_same() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("RELAY_DOCUMENTS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let count = number("RELAY_DOCUMENTS").unwrap_or(90);
    let played = AssertUnwindSafe(play(seed, usize::try_from(count).unwrap()));
    let played = played.catch_unwind().await;
    assert!(played.is_ok(), "RELAY_DOCUMENTS_SEED={seed}");
}
