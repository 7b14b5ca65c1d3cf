//! Endings with something wrong in them, published over NATS, as real programs read them: Python, Node and
//! `relay watch`, each with its own JSON parser.

use std::path::PathBuf;
use std::process::Stdio;

use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::tools;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::*;

/// What a worker sends, and the exit code of `relay watch`.
fn endings() -> Vec<(Vec<u8>, i32)> {
    let text = |fields: &str| format!("{{{fields}}}").into_bytes();
    let mut endings = vec![
        (
            text(r#""status":"completed","progress":100.00000000000001"#),
            0,
        ),
        (
            text(r#""status":"completed","meta":{"t":"\ud83d","n":1e400}"#),
            0,
        ),
        (
            text(r#""status":"failed","error":{"message":"x","message":"y"}"#),
            1,
        ),
        (
            text(r#""status":"failed","message":"half \udc00 é","progress":NaN"#),
            1,
        ),
        (
            text(r#""status":"cancelled","x":{"a":1,"\u0061":[1e999]},"\ud800":1"#),
            3,
        ),
        (
            text(
                r#""status":"completed","meta":[],"error":false,"job_id":42,"eta_seconds":-1,"ts":"now""#,
            ),
            0,
        ),
        (
            text(&format!(
                r#""status":"failed","x":{}{}"#,
                "[".repeat(10_000),
                "]".repeat(10_000)
            )),
            1,
        ),
        (
            text(&format!(
                r#""result":"{}","status":"completed""#,
                "x".repeat(70_000)
            )),
            0,
        ),
        (
            text(&format!(
                r#""status":"failed","error":{{"code":"E","message":"{}"}}"#,
                "é".repeat(40_000)
            )),
            1,
        ),
        (
            text("\"status\":\"failed\",\"message\":\"\\u0000\u{2028}\u{ffff}\""),
            1,
        ),
        (
            text(r#""status":"failed","attempt":"two","parent_id":"a b""#),
            1,
        ),
    ];
    endings.push((
        b"{\"status\":\"failed\",\"message\":\"caf\xe9\"}".to_vec(),
        1,
    ));
    endings.push((
        b"\xef\xbb\xbf{\"status\":\"completed\",\"message\":\"m\"}".to_vec(),
        0,
    ));
    endings
}

/// Reads the native stream of all jobs until `COUNT` endings came; a line for each, in ASCII, by job.
const PYTHON: &str = r#"
import json, os, sys, urllib.request
jobs = {}
with urllib.request.urlopen(os.environ["URL"] + "/v1/sse?topic=user:alice", timeout=20) as stream:
    for line in stream:
        if not line.startswith(b"data: "):
            continue
        frame = json.loads(line[6:].decode("utf-8"), parse_constant=lambda word: sys.exit(word))
        if frame["type"] != "state":
            continue
        json.dumps(frame, ensure_ascii=False, allow_nan=False).encode("utf-8")
        job = frame["job"]
        jobs[job["job_id"]] = job
        if len(jobs) == int(os.environ["COUNT"]):
            break
for name in sorted(jobs):
    job = jobs[name]
    told = [name, job["status"], job.get("progress"), job.get("message"), (job.get("error") or {}).get("message"), job.get("dropped_fields"), job.get("truncated")]
    told[2] = None if told[2] is None else float(told[2])
    print(json.dumps(told, ensure_ascii=True, separators=(",", ":")).replace(".0,", ","))
"#;
const NODE: &str = r#"
const jobs = new Map();
const answer = await fetch(process.env.URL + '/v1/sse?topic=user:alice');
const decoder = new TextDecoder('utf-8', { fatal: true });
const check = (value) => {
  if (typeof value === 'string' && !value.isWellFormed()) throw new Error('not text');
  if (typeof value === 'number' && !Number.isFinite(value)) throw new Error('not a number');
  if (value && typeof value === 'object') for (const [name, inner] of Object.entries(value)) { check(name); check(inner); }
};
let rest = '';
read: for await (const bytes of answer.body) {
  rest += decoder.decode(bytes, { stream: true });
  const lines = rest.split('\n');
  rest = lines.pop();
  for (const line of lines) {
    if (!line.startsWith('data: ')) continue;
    const frame = JSON.parse(line.slice(6));
    check(frame);
    if (frame.type === 'state') jobs.set(frame.job.job_id, frame.job);
    if (jobs.size === Number(process.env.COUNT)) break read;
  }
}
const ascii = (text) => text.replace(/[\u007f-\uffff]/g, (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
for (const name of [...jobs.keys()].sort()) {
  const job = jobs.get(name);
  const told = [name, job.status, job.progress ?? null, job.message ?? null, job.error?.message ?? null, job.dropped_fields ?? null, job.truncated ?? null];
  console.log(ascii(JSON.stringify(told)));
}
process.exit(0);
"#;

async fn read_by(program: PathBuf, arguments: [&str; 2], url: &str, count: usize) -> Vec<String> {
    let running = Command::new(program)
        .args(arguments)
        .env("URL", url)
        .env("COUNT", count.to_string())
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(3 * SOON, running).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

pub(crate) async fn publish(nats: &NatsServer, messages: &[(String, Vec<u8>)]) {
    let address = nats.url();
    let address = address.strip_prefix("nats://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"CONNECT {\"verbose\":false}\r\n".to_vec();
    for (subject, payload) in messages {
        bytes.extend(format!("PUB {subject} {}\r\n", payload.len()).into_bytes());
        bytes.extend(payload);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"PING\r\n");
    socket.write_all(&bytes).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"PONG\r\n") {
        let mut buffer = [0; 4096];
        let read = timeout(SOON, socket.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&heard));
        heard.extend(&buffer[..read]);
    }
}

#[tokio::test]
async fn real_programs_read_endings_with_something_wrong_in_them_and_agree() {
    let nats = NatsServer::start(Options::core()).await.unwrap();
    let settings = settings()
        .set("bus.mode", "nats")
        .set("nats.url", nats.url());
    let relay = RelayServer::start(settings).await.unwrap();
    let endings = endings();
    let mut messages = Vec::new();
    for (at, (payload, _)) in endings.iter().enumerate() {
        let subject = format!("progress.alice.r{at:02}.state");
        messages.push((
            subject.clone(),
            br#"{"status":"running","progress":40}"#.to_vec(),
        ));
        messages.push((subject, payload.clone()));
    }
    publish(&nats, &messages).await;

    let url = relay.url();
    let count = endings.len();
    for (at, (payload, code)) in endings.iter().enumerate() {
        let job = format!("r{at:02}");
        let watching = Command::new(env!("CARGO_BIN_EXE_relay"))
            .args(["watch", &job, "--quiet", "--url", &url])
            .kill_on_drop(true)
            .status();
        let watched = timeout(SOON, watching).await.unwrap().unwrap();
        assert_eq!(
            watched.code(),
            Some(*code),
            "{job}: {}",
            String::from_utf8_lossy(&payload[..payload.len().min(80)])
        );
    }
    let python = read_by(tools::python().unwrap(), ["-c", PYTHON], &url, count);
    let script = format!("--eval={NODE}");
    let node = read_by(
        tools::node().unwrap(),
        ["--input-type=module", &script],
        &url,
        count,
    );
    let (python, node) = tokio::join!(python, node);
    assert_eq!(python, node);
    assert_eq!(python.len(), count);
    let words = ["completed", "failed", "", "cancelled"];
    for ((line, (_, code)), at) in python.iter().zip(&endings).zip(0..) {
        let word = words[usize::try_from(*code).unwrap()];
        let begin = format!(
            "[\"r{at:02}\",\"{word}\",{}",
            if *code == 0 { 100 } else { 40 }
        );
        assert!(line.starts_with(&begin), "{line}");
    }
    assert!(
        python[3].contains(r#""half \ufffd \u00e9""#),
        "{}",
        python[3]
    );
    assert!(python[7].ends_with(r#"null,["result"]]"#), "{}", python[7]);
}
