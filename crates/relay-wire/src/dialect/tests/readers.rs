//! What is accepted can be read by everybody it is sent to: documents that nobody would write go in as bytes,
//! and come out of every way out as JSON that the strictest reader takes, to the same effect.
//!
//! Invariant: an accepted document is silent nowhere, and no mapping fails on it.

use std::fmt;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use proptest::prelude::*;
use relay_core::cursor::Cursor;
use relay_core::id::Name;
use relay_core::job::{Declined, Job, JobBounds, Place, Sender, Subject};
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{Body, JobKey, Publication};
use serde::Deserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::*;
use crate::dialect::routes::Answering;
use crate::dialect::voice::{Before, Hearing};
use crate::native::frame::{self, Wire};

static BOUNDS: LazyLock<JobBounds> = LazyLock::new(|| JobBounds {
    history: 8,
    update_bytes: 4096,
    kinds: Arc::default(),
});

/// A value as the strictest reader takes it: no half of a surrogate pair, no number beyond a double, no name twice.
#[derive(Debug, Clone, PartialEq)]
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strictly;
        impl<'de> Visitor<'de> for Strictly {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
                Ok(Strict(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                let mut all = Vec::new();
                while let Some(Strict(value)) = seq.next_element()? {
                    all.push(value);
                }
                Ok(Strict(all.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut all = serde_json::Map::new();
                while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
                    if all.insert(name.clone(), value).is_some() {
                        return Err(de::Error::custom(format_args!("{name:?} appears twice")));
                    }
                }
                Ok(Strict(all.into()))
            }
        }
        deserializer.deserialize_any(Strictly)
    }
}

fn strictly(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(!text.contains('\n'), "{text}");
    let read: Result<Strict, _> = serde_json::from_str(text);
    read.unwrap_or_else(|error| panic!("{text}: {error}")).0
}

/// Says which mapping fails.
#[derive(Debug)]
struct Failing(String);

impl Meter for Failing {
    fn ran(&self) {}

    fn failed(&self, failure: &Failure) {
        panic!("{} failed: {failure}", self.0);
    }
}

fn dialects() -> Dialects {
    let sources: Vec<_> = BUILT_IN
        .iter()
        .map(|(name, text)| source(name, text))
        .collect();
    let meters = |dialect: &str, mapping: &str| -> Box<dyn Meter> {
        Box::new(Failing(format!("{dialect}: {mapping}")))
    };
    Dialects::load(&sources, DEFAULTS, &meters).unwrap()
}

/// Every path of the built-in dialects under which one job is watched or asked for.
const PATHS: [&str; 13] = [
    "/api/v1/conversions/j1/ws",
    "/ws/v1/convert/j1/progress",
    "/api/ws",
    "/production",
    "/socket.io",
    "/ws/generations/j1",
    "/ws/compositions/j1",
    "/api/v1/conversions/j1",
    "/api/v1/convert/j1/status",
    "/api/status/j1",
    "/jobs/j1",
    "/api/v1/generations/j1",
    "/api/v1/compositions/j1",
];

fn lines(texts: Vec<Vec<u8>>) -> Bytes {
    texts.join(&b'\n').into()
}

/// What is sent of a publication on each way out, with the way's name.
fn sent(dialects: &Dialects, publication: &Publication) -> Vec<(String, Value)> {
    let topic = relay_core::topic::Topic::parse("job:j1").unwrap();
    let cursor = Cursor::at(publication.position(), [&topic]);
    let native = |wire| frame::at_cursor(publication, (&topic).into(), &cursor, wire, false);
    let mut all = vec![("native".to_owned(), strictly(&native(Wire::Json)))];
    let stream = native(Wire::EventStream);
    let data = stream
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"data: "));
    assert_eq!(
        data,
        Some(&*native(Wire::Json)),
        "one line of an event is all of it"
    );
    assert!(native(Wire::WebSocket).ends_with(data.unwrap()));
    for path in PATHS {
        let found = dialects.routes.find(path).unwrap();
        for endpoint in found.websocket.into_iter().chain(found.socketio) {
            let hearing = Hearing {
                before: Before::Snapshot,
                identifier: None,
                past: None,
            };
            let encoded = endpoint.voice.encode(publication, hearing, lines);
            assert!(
                !encoded.bytes.is_empty() || !publication.is_state(),
                "{:?} is silent",
                endpoint.voice
            );
            for line in encoded
                .bytes
                .split(|byte| *byte == b'\n')
                .filter(|it| !it.is_empty())
            {
                all.push((format!("{:?}", endpoint.voice), strictly(line)));
            }
        }
        if let Some(Answering::Poll(poll)) = found.answer
            && publication.is_state()
        {
            let body = poll.body(publication, None);
            assert_eq!(body.tag, 1, "{path} has no answer");
            all.push((path.to_owned(), strictly(&body.bytes)));
        }
    }
    all
}

/// All values of members with one of these names.
fn members<'v>(value: &'v Value, names: &[&str], found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                if names.contains(&&**name) {
                    found.push(value);
                }
                // What is the worker's own says what it likes.
                if ![
                    "meta", "result", "x", "payload", "tasks", "agents", "metadata",
                ]
                .contains(&&**name)
                {
                    members(value, names, found);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| members(value, names, found)),
        _ => {}
    }
}

/// Feeds a payload through a job that is running, and looks at all that comes of it.
fn play(dialects: &Dialects, payload: &[u8]) -> Result<(), Declined> {
    let mut job = Job::new(
        JobKey(1),
        Name::parse("j1").unwrap(),
        Name::parse("alice").unwrap(),
        Seq::ZERO,
    );
    let place = |seq| Place {
        epoch: Epoch::new(1),
        seq: Seq::new(seq),
        received_at: Moment::default(),
        stored_at: WallTime::default(),
    };
    let first = br#"{"status":"running","progress":10,"message":"first"}"#;
    let judged = job.judge(Subject::State, first, place(1), Sender::Away, &BOUNDS)?;
    job.enter(judged, &BOUNDS);
    let judged = job.judge(Subject::State, payload, place(2), Sender::Away, &BOUNDS)?;
    let lost = judged.dropped().len();
    let publication = job.enter(judged, &BOUNDS);
    let sent = sent(dialects, &publication);
    let document = &sent[0].1["job"];
    // A worker may have fields of these names itself.
    let named = document.get("dropped_fields").or(document.get("truncated"));
    assert!(lost == 0 || named.is_some(), "{document}");
    let Body::State { status, .. } = &publication.body else {
        panic!("a state is a state");
    };
    assert_eq!(document["status"], status.as_str());
    let progress = document["progress"].as_f64().unwrap();
    for (way, value) in &sent[1..] {
        let mut found = Vec::new();
        members(value, &["progress", "percentage"], &mut found);
        for number in found.into_iter().filter_map(Value::as_f64) {
            assert!(
                (number - progress).abs() <= 1.0,
                "{way}: {number} for {progress}: {value}"
            );
        }
        let mut found = Vec::new();
        members(value, &["message"], &mut found);
        let said = document["message"].as_str().unwrap_or_default();
        let texts: Vec<_> = found.into_iter().filter_map(Value::as_str).collect();
        // Pages without a place for it say nothing, or speak of the error or the stage.
        let known = [
            said,
            document["stage"].as_str().unwrap_or_default(),
            document["error"]["message"].as_str().unwrap_or_default(),
        ];
        for text in texts.iter().filter(|_| way.starts_with("file-conversion")) {
            assert!(known.contains(text), "{way}: {text:?} for {document}");
        }
    }
    // Who missed it gets it again from the same bytes, on any node.
    let again = Strict(document.clone());
    assert_eq!(
        again,
        Strict(strictly(&serde_json::to_vec(document).unwrap()))
    );
    Ok(())
}

/// Values some reader stumbles over, and some that only look so.
fn nasty() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(vec![
        "null",
        "true",
        "-0",
        "0.1",
        "100.00000000000001",
        "1e400",
        "-1e309",
        "1.7976931348623157e308",
        "179769313486231570000000e286",
        "1e-400",
        "123456789012345678901234567890",
        r#""""#,
        r#""plain""#,
        r#""\ud83d""#,
        r#""\udc00 \ud83d\ude00""#,
        r#""\u0000\u001f\uffff""#,
        "\"\u{feff}\u{2028}\u{fffe}\u{10ffff}\"",
        r#""2026-11-21T10:00:00""#,
        "NaN",
        "-Infinity",
        "\"\n\"",
        "\"caf\\xe9\"",
    ]);
    let leaf = leaf.prop_map(str::to_owned);
    leaf.prop_recursive(3, 12, 3, |inner| {
        let name = proptest::sample::select(vec![
            "a",
            "b",
            "\\u0061",
            "",
            "__proto__",
            "\\ud800",
            "A",
            "message",
            "status",
        ]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3)
                .prop_map(|all| format!("[{}]", all.join(" , "))),
            proptest::collection::vec((name, inner.clone()), 0..3).prop_map(|all| {
                let all: Vec<_> = all
                    .into_iter()
                    .map(|(name, value)| format!("\"{name}\" : {value}"))
                    .collect();
                format!("{{{}}}", all.join(","))
            }),
            (inner, 60usize..70).prop_map(|(value, depth)| format!(
                "{}{value}{}",
                "[".repeat(depth),
                "]".repeat(depth)
            )),
        ]
    })
}

const FIELDS: [&str; 24] = [
    "job_id",
    "owner",
    "attempt",
    "kind",
    "progress",
    "current",
    "total",
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
    "ts",
    "meta",
    "x",
    "y",
    "\\u0078",
    "dropped_fields",
    "truncated",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_worker_sends_every_reader_can_read_what_is_sent_on(
        status in proptest::sample::select(vec!["running", "queued", "completed", "failed", "Cancelled", "done"]),
        fields in proptest::collection::vec((proptest::sample::select(FIELDS.to_vec()), nasty()), 0..5),
        mark in any::<bool>(),
        large in 0usize..20,
    ) {
        thread_local!(static DIALECTS: Dialects = dialects());
        let mut text = if mark { "\u{feff}{".to_owned() } else { "{".to_owned() };
        for (name, value) in &fields {
            text += &format!("\"{name}\":{value},");
        }
        if large == 0 {
            text += &format!("\"result\":\"{}\",", "x".repeat(5000));
        }
        text += &format!("\"status\":\"{status}\"}}");
        // A byte that is no text.
        let payload: Vec<u8> = text.replace("\\xe9", "\u{1}").bytes().map(|byte| if byte == 1 { 0xe9 } else { byte }).collect();
        let played = DIALECTS.with(|dialects| play(dialects, &payload));
        let ends = !matches!(status, "running" | "queued");
        prop_assert!(played.is_ok() || !ends, "an ending was refused: {played:?}: {text}");
    }

    #[test]
    fn whatever_a_milestone_holds_every_reader_can_read_it(data in nasty()) {
        thread_local!(static DIALECTS: Dialects = dialects());
        let name = Name::parse("clip_completed").unwrap();
        let mut job = Job::new(JobKey(1), Name::parse("j1").unwrap(), Name::nobody(), Seq::ZERO);
        let place = Place {
            epoch: Epoch::new(1),
            seq: Seq::new(1),
            received_at: Moment::default(),
            stored_at: WallTime::default(),
        };
        if let Ok(judged) = job.judge(Subject::Milestone(&name), data.as_bytes(), place, Sender::Away, &BOUNDS) {
            let publication = job.enter(judged, &BOUNDS);
            DIALECTS.with(|dialects| sent(dialects, &publication));
        }
    }
}

#[test]
fn the_values_that_lost_endings_are_told_everywhere() {
    let dialects = dialects();
    for fields in [
        r#""meta":{"t":"\ud83d"}"#,
        r#""error":{"x":"\ud83d"}"#,
        r#""tasks":[{"name":"a","x":"\udc00"}]"#,
        r#""x":"\ud83d""#,
        r#""meta":{"n":1e400}"#,
        r#""error":{"message":"x","message":"y"}"#,
        r#""x":{"a":1,"\u0061":2}"#,
    ] {
        for status in ["completed", "failed", "cancelled"] {
            play(
                &dialects,
                format!("{{\"status\":\"{status}\",{fields}}}").as_bytes(),
            )
            .unwrap();
        }
        let running = format!("{{\"status\":\"running\",{fields}}}");
        assert!(play(&dialects, running.as_bytes()).is_err(), "{fields}");
    }
}
