//! What a dialect's frames and answers are made of is of the types that its page reads, whatever types a worker chose.
//!
//! The shapes are those of the pages' own documents. Only what the job document's schema promises is given as it
//! promises it; everything else is of every type in turn.

use serde_json::{Value, json};

use super::*;

/// A value of each type, and what pages trip over.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(""),
        json!("text"),
        json!([1, "a", null]),
        json!({}),
        json!({"a": {"b": 1}, "url": 5, "data": "x"}),
    ]
}

/// The fields outside the schema that mappings of built-in dialects look at.
const OUTSIDE: [&str; 38] = [
    "accumulated",
    "action",
    "chunk",
    "clip",
    "clip_id",
    "clip_number",
    "clips_generated",
    "created_at",
    "current_pass",
    "delivery_latency_ms",
    "duration",
    "file_size",
    "filename",
    "frames_processed",
    "message",
    "metadata",
    "noteId",
    "notes",
    "original_filename",
    "parameters",
    "payload",
    "platform",
    "prompt",
    "queue_position",
    "recoverable",
    "size_bytes",
    "source",
    "status",
    "steps_completed",
    "thumbnail_url",
    "total_clips",
    "total_frames",
    "total_passes",
    "total_steps",
    "type",
    "url",
    "video_url",
    "code",
];

/// The same of an `error`.
const OF_ERRORS: [&str; 10] = [
    "type",
    "severity",
    "can_retry",
    "suggestion",
    "recovery_suggestions",
    "estimated_recovery_time",
    "platform_info",
    "retry_delay",
    "details",
    "reason",
];

fn all_of(names: &[&str], value: &Value) -> Value {
    let members = names.iter().map(|name| ((*name).to_owned(), value.clone()));
    Value::Object(members.collect())
}

/// Documents that the relay accepts, with one odd value everywhere where the schema says nothing.
fn documents(value: &Value) -> Vec<Value> {
    let mut documents = Vec::new();
    for (status, detail) in [
        ("queued", None),
        ("running", Some("encoding")),
        ("completed", None),
        ("failed", None),
        ("cancelled", None),
    ] {
        for result in [value.clone(), all_of(&OUTSIDE, value)] {
            let mut document = all_of(&OUTSIDE, value);
            let Value::Object(members) = &mut document else {
                unreachable!();
            };
            // Those of the schema are as it says.
            for name in ["created_at", "message", "status"] {
                members.remove(name);
            }
            members.insert("job_id".to_owned(), json!("j1"));
            members.insert("status".to_owned(), json!(status));
            members.insert("status_detail".to_owned(), json!(detail));
            members.insert("result".to_owned(), result);
            members.insert("meta".to_owned(), all_of(&OUTSIDE, value));
            members.insert(
                "tasks".to_owned(),
                json!([{"name": "a", "status": null, "extra": value}]),
            );
            documents.push(document.clone());
            if !matches!(status, "running" | "failed") {
                continue;
            }
            let mut error = all_of(&OF_ERRORS, value);
            error["code"] = json!(7);
            document["error"] = error;
            documents.push(document.clone());
            document["kind"] = json!("composition");
            documents.push(document);
        }
    }
    documents
}

/// Whether a value has the shape: a text names types, with `|` between them and `?` behind them where it may be
/// missing; an object has these members, and those it has may be more; an array has elements of one shape.
fn check(value: &Value, shape: &Value, at: &str) -> Result<(), String> {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match (shape, value) {
        (Value::String(kinds), _) => {
            let kinds = kinds.trim_end_matches('?');
            let fits = kinds == "any" || kinds.split('|').any(|each| each == kind);
            fits.then_some(())
                .ok_or_else(|| format!("{at} is {value}, and not {kinds}"))
        }
        (Value::Object(members), Value::Object(_)) => {
            for (name, shape) in members {
                let optional = shape.as_str().is_some_and(|shape| shape.ends_with('?'));
                match value.get(name) {
                    Some(member) => check(member, shape, &format!("{at}.{name}"))?,
                    None if optional => {}
                    None => return Err(format!("{at}.{name} is missing")),
                }
            }
            Ok(())
        }
        (Value::Array(of), Value::Array(elements)) => {
            let mut elements = elements.iter();
            elements.try_for_each(|each| check(each, &of[0], &format!("{at}[]")))
        }
        _ => Err(format!("{at} is {value}, and not of the shape {shape}")),
    }
}

/// What one dialect promises.
struct Promise {
    dialect: &'static str,
    /// Transport and view of its routes.
    routes: &'static [(&'static str, &'static str)],
    /// Where the name of a frame is.
    name: fn(&Value) -> String,
    frames: Value,
    polls: Value,
}

fn by_type(frame: &Value) -> String {
    let name = frame.get("type").or_else(|| frame.get(0));
    name.and_then(Value::as_str).unwrap_or("flat").to_owned()
}

fn promises() -> Vec<Promise> {
    let flat = json!({
        "job_id": "string", "status": "string", "progress": "number", "message": "string", "stage": "string|null",
        "estimated_time_remaining": "number|null", "result_url": "string|null", "error": "string|null",
        "created_at": "string", "current_agent": "string?",
    });
    let mut polled = flat.clone();
    polled["original_filename"] = json!("string|null");
    let failure = json!({"payload": {
        "jobId": "string", "error": "string", "errorType": "string?", "platform": "string?", "severity": "string",
        "canRetry": "boolean", "suggestion": "string?", "recoverySuggestions": ["string"],
        "estimatedRecoveryTime": "number?", "retryDelay": "number?", "timestamp": "number",
        "platformInfo": {"reliabilityScore": "number", "isDegraded": "boolean", "fallbackAvailable": "boolean"},
    }});
    let recovery = json!({"payload": {
        "jobId": "string", "action": "string?", "message": "string", "timestamp": "number",
    }});
    let event = json!({"data": {
        "id": "string", "type": "string?", "source": "string?", "payload": "object?", "status": "string",
        "delivery_latency_ms": "number?", "error_message": "string?", "created_at": "string?", "updated_at": "string",
    }, "timestamp": "string"});
    let created = json!({"data": {
        "id": "string", "type": "string", "payload": "object", "status": "string", "created_at": "string",
        "updated_at": "string", "delivery_latency_ms": "number?",
    }});
    let id = json!({"generation_id": "string?", "composition_id": "string?"});
    let data = |shape: Value| {
        let mut shape = shape;
        for (name, kind) in id.as_object().unwrap() {
            shape[name] = kind.clone();
        }
        shape
    };
    let generation = [
        (
            "progress",
            data(
                json!({"step": "string", "clip_number": "number", "total_clips": "number", "percentage": "number", "message": "string"}),
            ),
        ),
        (
            "encoding_progress",
            data(
                json!({"percentage": "number", "frames_processed": "number", "total_frames": "number", "estimated_remaining": "number"}),
            ),
        ),
        (
            "completed",
            data(json!({"video_url": "string", "thumbnail_url": "string", "duration": "number"})),
        ),
        (
            "error",
            data(json!({"code": "string", "message": "string", "recoverable": "boolean"})),
        ),
        (
            "status_change",
            data(json!({"old_status": "string", "new_status": "string", "message": "string"})),
        ),
        (
            "clip_completed",
            data(json!({"clip_id": "string", "thumbnail_url": "string", "duration": "number"})),
        ),
    ];
    let video: serde_json::Map<_, _> = generation
        .into_iter()
        .map(|(name, shape)| (name.to_owned(), json!({"data": shape})))
        .collect();
    vec![
        Promise {
            dialect: "file-conversion",
            routes: &[("websocket", "")],
            name: |_| "flat".to_owned(),
            frames: json!({"flat": flat}),
            polls: json!([polled, polled]),
        },
        Promise {
            dialect: "media-conversion",
            routes: &[("websocket", "")],
            name: by_type,
            frames: json!({
                "progress_update": {"payload": {
                    "jobId": "string", "progress": "number", "status": "string", "timestamp": "number",
                    "serverTime": "string", "stage": "string?", "currentStep": "string?", "message": "string?",
                    "queuePosition": "number?", "estimatedTimeRemaining": "number?",
                }},
                "conversion_completed": {"payload": {
                    "jobId": "string", "status": "string", "progress": "number", "downloadUrl": "string",
                    "filename": "string", "fileSize": "number?", "metadata": "object?", "timestamp": "number",
                }},
                "conversion_error": failure,
                "conversion_failed": {"payload": {"jobId": "string", "error": "string"}},
                "recovery_attempt": recovery,
                "recovery_success": recovery,
                "recovery_failure": recovery,
            }),
            polls: json!([{
                "success": "boolean", "jobId": "string", "status": "string", "progress": "number",
                "downloadUrl": "string?", "filename": "string?", "queuePosition": "number?", "metadata": "object?",
                "error": "string?",
            }]),
        },
        Promise {
            dialect: "event-dashboard",
            routes: &[("websocket", "")],
            name: by_type,
            frames: json!({"event_update": event, "event_created": created, "event_deleted": {"data": {"id": "string"}}}),
            polls: json!([event["data"], "any"]),
        },
        Promise {
            dialect: "upload-notes",
            routes: &[("socketio", "")],
            name: by_type,
            frames: json!({
                "job:progress": {"jobId": "string", "status": "string", "progress": "number", "message": "string?", "stage": "string?", "timestamp": "string"},
                "job:completed": {"jobId": "string", "status": "string", "result": "any", "timestamp": "string"},
                "job:error": {"jobId": "string", "status": "string", "error": "string", "timestamp": "string"},
                "job:update": {"jobId": "string", "status": "string", "data": "any?", "timestamp": "string"},
                "job:notes:chunk": {"jobId": "string", "chunk": "string", "accumulated": "string", "timestamp": "string"},
            }),
            polls: json!([
                {"id": "string", "status": "string", "progress": "number", "opts": {"stage": "string|null"}, "data": "object", "error": "string|null", "failedReason": "string|null"},
                {"id": "string", "status": "string", "progress": "number", "opts": {"stage": "string|null"}, "data": "object", "error": "string|null", "failedReason": "string|null"},
            ]),
        },
        Promise {
            dialect: "video-generation",
            routes: &[
                ("websocket", "generation"),
                ("websocket", "composition"),
                ("socketio", ""),
            ],
            name: by_type,
            frames: Value::Object(video),
            polls: json!([
                {
                    "generation_id": "string", "status": "string",
                    "progress": {"current_step": "string", "steps_completed": "number", "total_steps": "number", "percentage": "number", "current_clip": "number", "total_clips": "number"},
                    "metadata": {"prompt": "string", "parameters": "object", "created_at": "string", "updated_at": "string"},
                    "clips_generated": ["object"],
                },
                {
                    "composition_id": "string", "status": "string",
                    "progress": {"percentage": "number", "frames_processed": "number", "total_frames": "number", "current_pass": "number", "total_passes": "number"},
                    "output": {"url": "string|null", "size_bytes": "number|null", "duration": "number|null"},
                },
            ]),
        },
    ]
}

fn polls_of(dialects: &Dialects, text: &str) -> Vec<Arc<Poll>> {
    let file: toml::Table = text.parse().unwrap();
    let polls = file.get("polls").and_then(toml::Value::as_array).cloned();
    let paths = polls.unwrap_or_default().into_iter();
    let paths = paths.map(|poll| poll["path"].as_str().unwrap().replace("{job}", "j1"));
    let found = paths.map(|path| match dialects.routes.find(&path).unwrap().answer {
        Some(Answering::Poll(poll)) => poll.clone(),
        _ => panic!("{path} is not polled"),
    });
    found.collect()
}

fn context(
    dialect: &Dialect,
    document: &Value,
    (transport, view): (&str, &str),
    past: &Value,
) -> Input {
    let status = document["status"].as_str().unwrap_or("running");
    let at = Status::ALL.iter().position(|each| each.as_str() == status);
    let word = dialect.words.get(u8::try_from(at.unwrap_or(0)).unwrap());
    let milestones =
        json!([{"name": "clip_completed", "data": past, "at": "2026-11-21T10:00:00Z", "ms": 1}]);
    Input::of(&json!({
        "status": word, "from": "processing", "snapshot": false, "transport": transport, "view": view,
        "first_at": "2026-11-21T10:00:00Z", "at": "2026-11-21T10:00:00Z", "ms": 1, "identifier": null, "params": {}, "user": null,
        "milestones": milestones, "milestones_lost": false,
    }))
    .unwrap()
}

/// Runs the mappings of a built-in dialect on what workers may send, and checks what they give.
fn keep(name: &str) {
    let promises = promises();
    let promise = promises.iter().find(|it| it.dialect == name).unwrap();
    let text = BUILT_IN.iter().find(|(each, _)| *each == name).unwrap().1;
    let dialects = Dialects::load(&[source(name, text)], DEFAULTS, &|_, _| Box::new(())).unwrap();
    let polls = polls_of(&dialects, text);
    let dialect = polls[0].dialect.clone();
    is_told_of_what_is_gone(promise, &dialect);
    for odd in odd_values() {
        for document in documents(&odd) {
            let state = Input::of(&json!({"type": "state", "job": document})).unwrap();
            for route in promise.routes {
                let relay = context(&dialect, &document, *route, &odd);
                told(promise, &dialect, Frame::State, (&state, &relay), &document);
            }
            let relay = context(&dialect, &document, ("", ""), &odd);
            for (poll, shape) in polls.iter().zip(promise.polls.as_array().unwrap()) {
                if shape == "any" {
                    continue;
                }
                let texts = poll.body.run(&state, &relay);
                let texts = texts.unwrap_or_else(|error| panic!("{name}: {error}: {document}"));
                let body: Value = serde_json::from_slice(&texts[0]).unwrap();
                let checked = check(&body, shape, &poll.path);
                checked.unwrap_or_else(|wrong| panic!("{name}: {wrong}\nof {document}"));
            }
        }
        for event in [
            "clip_completed",
            "error",
            "recovery_attempt",
            "notes_chunk",
            "event_created",
            "event_deleted",
            "step",
        ] {
            for data in [odd.clone(), all_of(&OUTSIDE, &odd)] {
                let milestone = json!({"type": "milestone", "job_id": "j1", "owner": "o", "name": event, "data": data});
                let input = Input::of(&milestone).unwrap();
                for route in promise.routes {
                    let relay = context(&dialect, &milestone, *route, &odd);
                    told(
                        promise,
                        &dialect,
                        Frame::Milestone,
                        (&input, &relay),
                        &milestone,
                    );
                }
            }
        }
    }
}

/// A page that waits for a job which is taken away is told so, in words it knows; one that has the ending is not.
fn is_told_of_what_is_gone(promise: &Promise, dialect: &Dialect) {
    for (reason, last) in ["removed", "expired"].into_iter().flat_map(|reason| {
        let lasts = [
            None,
            Some("queued"),
            Some("running"),
            Some("completed"),
            Some("failed"),
            Some("cancelled"),
        ];
        lasts.map(|last| (reason, last))
    }) {
        let mut gone = json!({"type": "gone", "job_id": "j1", "owner": "o", "reason": reason});
        if let Some(last) = last {
            gone["last_status"] = json!(last);
        }
        let input = Input::of(&gone).unwrap();
        for route in promise.routes {
            let relay = context(dialect, &gone, *route, &json!({}));
            let is_over = matches!(last, Some("completed" | "failed" | "cancelled"));
            // A list of events has them until they are gone, whatever became of them.
            if is_over && promise.dialect != "event-dashboard" {
                let said = dialect.frames[&Frame::Gone].run(&input, &relay).unwrap();
                assert!(said.is_empty(), "{gone}");
            } else {
                told(promise, dialect, Frame::Gone, (&input, &relay), &gone);
            }
        }
    }
}

#[test]
fn file_conversion_keeps_its_types_whatever_a_worker_sends() {
    keep("file-conversion");
}

#[test]
fn media_conversion_keeps_its_types_whatever_a_worker_sends() {
    keep("media-conversion");
}

#[test]
fn event_dashboard_keeps_its_types_whatever_a_worker_sends() {
    keep("event-dashboard");
}

#[test]
fn upload_notes_keeps_its_types_whatever_a_worker_sends() {
    keep("upload-notes");
}

#[test]
fn video_generation_keeps_its_types_whatever_a_worker_sends() {
    keep("video-generation");
}

/// Runs a mapping, and checks each of its frames.
fn told(
    promise: &Promise,
    dialect: &Dialect,
    frame: Frame,
    (input, relay): (&Input, &Input),
    of: &Value,
) {
    let name = promise.dialect;
    let Some(mapping) = dialect.frames.get(&frame) else {
        return;
    };
    let texts = mapping.run(input, relay);
    let texts = texts.unwrap_or_else(|error| panic!("{name}: {error}: {of}"));
    assert!(
        frame == Frame::Milestone || !texts.is_empty(),
        "{name} says nothing of {of}"
    );
    for text in texts {
        let value: Value = serde_json::from_slice(&text).unwrap();
        let kind = (promise.name)(&value);
        let shape = promise.frames.get(&kind);
        let shape = shape.unwrap_or_else(|| panic!("{name}: {kind} is not promised: {value}"));
        // Over Socket.IO the data stands by itself behind the event's name.
        let checked = match &value {
            Value::Array(event) => check(&event[1], shape.get("data").unwrap_or(shape), &kind),
            value => check(value, shape, &kind),
        };
        checked.unwrap_or_else(|wrong| panic!("{name}: {wrong}\nof {of}"));
    }
}
