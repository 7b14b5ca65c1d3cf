//! What the parser takes, refuses and writes, case by case.
//!
//! Invariant: whatever `accepted` is given reads back as itself.

use super::text::read_members;
use super::*;

pub(super) fn parse(payload: &str) -> Result<JobDocument, Refusal> {
    let (job, owner) = (Name::parse("j1").unwrap(), Name::parse("alice").unwrap());
    JobDocument::parse(payload.as_bytes(), &job, &owner)
}

pub(super) fn accepted(payload: &str) -> JobDocument {
    let doc = parse(payload).unwrap_or_else(|refusal| panic!("{payload}: {refusal}"));
    let again = parse(doc.as_json()).unwrap();
    assert_eq!(again.as_json(), doc.as_json(), "{payload}");
    doc
}

/// The value of one field of the text, known or not, as JSON.
pub(super) fn field<'a>(doc: &'a JobDocument, name: &str) -> Option<&'a str> {
    let members = read_members(doc.as_json()).unwrap().into_iter();
    members
        .filter(|member| member.name == name)
        .map(|member| member.value)
        .next()
}

/// The canonical text of `payload`, without the names that stand in front of each.
fn canonical(payload: &str) -> String {
    let doc = accepted(payload);
    let rest = doc
        .as_json()
        .strip_prefix(r#"{"job_id":"j1","owner":"alice","#);
    format!("{{{}", rest.unwrap())
}

#[test]
fn a_status_is_enough() {
    let doc = accepted(r#"{"status":"queued"}"#);
    assert_eq!(
        doc.as_json(),
        r#"{"job_id":"j1","owner":"alice","status":"queued"}"#
    );
    assert_eq!(doc.status(), Status::Queued);
    assert_eq!(doc.attempt(), 1);
    assert_eq!(doc.progress(), None);
}

#[test]
fn each_field_is_read_and_written_in_its_place() {
    let doc = accepted(
        r#"{"zeta":1.0,"weight":2,"parent_id":"p","ts":"2026-11-21T10:00:00Z","message":"caf\u00e9 \"x\"",
            "stage":"mux","kind":"conversion","attempt":2.0,"progress":12.50,"status":"running",
            "eta_seconds":90,"alpha":[ 1, { "b" : "c d" } ],"job_id":"j1","owner":"alice"}"#,
    );
    assert_eq!(
        doc.as_json(),
        concat!(
            r#"{"job_id":"j1","owner":"alice","status":"running","attempt":2,"kind":"conversion","#,
            r#""progress":12.50,"stage":"mux","message":"caf\u00e9 \"x\"","eta_seconds":90,"#,
            r#""parent_id":"p","weight":2,"ts":"2026-11-21T10:00:00Z","#,
            r#""zeta":1.0,"alpha":[1,{"b":"c d"}]}"#
        )
    );
    assert_eq!(doc.status(), Status::Running);
    assert_eq!(doc.progress(), Some(12.5));
    assert_eq!(doc.attempt(), 2);
    assert_eq!(doc.parent_id().map(Name::as_str), Some("p"));
    assert_eq!(doc.weight(), Some(2.0));
    assert_eq!(doc.eta_seconds(), Some(90.0));
    assert_eq!(doc.ts(), WallTime::parse_rfc3339("2026-11-21T10:00:00Z"));
    assert_eq!(doc.clone().into_json(), doc.as_json().as_bytes());
}

#[test]
fn unknown_fields_keep_every_byte() {
    let tail = r#""a":1.0,"b":123456789012345678901234567890,"c":1E+300,"d":-0,"\u0065":"\ud83d\ude00\u00e9/\/","f":null}"#;
    let text = canonical(&format!("{{\"status\":\"running\",{tail}"));
    assert_eq!(text, format!("{{\"status\":\"running\",{tail}"));
}

#[test]
fn the_text_is_one_line() {
    let text =
        canonical("{\n\t\"status\" : \"running\",\r\n \"x\" : [\n 1 ],\n\"meta\":{ \"a\" : 1 }\n}");
    assert_eq!(text, r#"{"status":"running","meta":{"a":1},"x":[1]}"#);
}

#[test]
fn a_synonym_is_mapped_and_kept_unless_the_worker_says_more() {
    assert_eq!(
        canonical(r#"{"status":"In-Progress"}"#),
        r#"{"status":"running","status_detail":"In-Progress"}"#
    );
    assert_eq!(
        canonical(r#"{"status":"processing","status_detail":"second pass"}"#),
        r#"{"status":"running","status_detail":"second pass"}"#
    );
    assert_eq!(
        canonical(r#"{"status":"processing","status_detail":null}"#),
        r#"{"status":"running","status_detail":"processing"}"#
    );
}

#[test]
fn null_in_a_known_field_is_absence() {
    let nulls: String = (Field::ALL.iter())
        .filter(|field| **field != Field::Status)
        .map(|field| format!(",\"{}\":null", field.as_str()))
        .collect();
    assert_eq!(
        canonical(&format!("{{\"status\":\"running\"{nulls}}}")),
        r#"{"status":"running"}"#
    );
    assert!(matches!(
        parse(r#"{"status":null}"#),
        Err(Refusal::MissingStatus)
    ));
}

#[test]
fn progress_is_derived_when_it_can_be_known() {
    let progress = |fields: &str| {
        let doc = accepted(&format!("{{\"status\":\"running\",{fields}}}"));
        let written = field(&doc, "progress").map(|raw| raw.parse::<f64>().unwrap());
        assert_eq!(written, doc.progress());
        doc.progress()
    };
    assert_eq!(progress(r#""current":3,"total":4"#), Some(75.0));
    assert_eq!(progress(r#""current":29,"total":100"#), Some(29.0));
    assert_eq!(
        progress(r#""current":1,"total":3,"unit":"files""#),
        Some(33.33)
    );
    assert_eq!(progress(r#""current":99999,"total":100000"#), Some(99.99));
    assert_eq!(progress(r#""current":7,"total":4"#), Some(100.0));
    assert_eq!(progress(r#""current":0,"total":0"#), None);
    assert_eq!(progress(r#""current":3"#), None);
    assert_eq!(
        progress(r#""current":3,"total":4,"progress":10"#),
        Some(10.0)
    );
    assert_eq!(progress(r#""progress":-0"#), Some(0.0));
}

#[test]
fn completed_without_progress_is_a_hundred() {
    assert_eq!(accepted(r#"{"status":"done"}"#).progress(), Some(100.0));
    assert_eq!(
        accepted(r#"{"status":"done","current":3,"total":4}"#).progress(),
        Some(100.0)
    );
    assert_eq!(
        accepted(r#"{"status":"done","progress":98}"#).progress(),
        Some(98.0)
    );
    assert_eq!(accepted(r#"{"status":"failed"}"#).progress(), None);
}

#[test]
fn an_error_is_an_object_or_a_sentence() {
    assert_eq!(
        canonical(r#"{"status":"failed","error":"disk \"full\""}"#),
        r#"{"status":"failed","error":{"message":"disk \"full\""}}"#
    );
    let text =
        r#"{"status":"running","error":{"code":507,"message":"full","recoverable":true,"x":1.0}}"#;
    assert_eq!(canonical(text), text);
    assert!(!accepted(text).status().is_terminal());
}

#[test]
fn tasks_keep_what_the_relay_does_not_know() {
    let text = r#"{"status":"running","tasks":[{"name":"a","status":"running","progress":1.0,"x":[1.0]},{"name":"b"}]}"#;
    assert_eq!(canonical(text), text);
    assert_eq!(
        canonical(
            r#"{"status":"running","tasks":[{"x":1.0,"name":"a","status":"DONE"},{"name":"b","status":"error","status_detail":"d"},{"name" : "c"}]}"#
        ),
        r#"{"status":"running","tasks":[{"x":1.0,"name":"a","status":"completed","status_detail":"DONE"},{"name":"b","status":"failed","status_detail":"d"},{"name":"c"}]}"#
    );
}

#[test]
fn a_wrong_field_is_named_with_what_was_meant() {
    let nan = "progress: NaN is not a JSON number; send a finite number or leave the field out";
    for (fields, message) in [
        (r#""progress":140"#, "progress: 140 is outside 0 to 100"),
        (r#""progress":-1"#, "progress: -1 is outside 0 to 100"),
        (
            r#""progress":"50""#,
            "progress: \"50\" is a string where a number from 0 to 100 is meant",
        ),
        (r#""progress":NaN"#, nan),
        (r#""progress": NaN ,"a":1"#, nan),
        (
            r#""progress":-Infinity"#,
            "progress: -Infinity is not a JSON number; send a finite number or leave the field out",
        ),
        (
            r#""progress":1e999"#,
            "progress: 1e999 is beyond what a double holds; send a smaller number, or a string",
        ),
        (
            r#""current":-3,"total":4"#,
            "current: -3 is outside 0 and above",
        ),
        (
            r#""total":[1]"#,
            "total: [1] is an array where a number that is not negative is meant",
        ),
        (
            r#""attempt":0"#,
            "attempt: 0 is outside the integers from 1 to 4294967295",
        ),
        (
            r#""attempt":1.5"#,
            "attempt: 1.5 is outside the integers from 1 to 4294967295",
        ),
        (
            r#""parent_id":"a.b""#,
            "parent_id: \"a.b\" contains '.'; use only A-Z a-z 0-9 _ -",
        ),
        (r#""weight":-0.5"#, "weight: -0.5 is outside 0 and above"),
        (
            r#""ts":"2026-11-21T10:00:00""#,
            "ts: \"2026-11-21T10:00:00\" is not an RFC 3339 time with its offset, such as 2026-11-21T10:00:00.250Z",
        ),
        (
            r#""created_at":17"#,
            "created_at: 17 is a number where an RFC 3339 time is meant",
        ),
        (
            r#""meta":true"#,
            "meta: true is a boolean where an object is meant",
        ),
        (
            r#""stage":{}"#,
            "stage: {} is an object where a string is meant",
        ),
        (
            r#""result_url":1"#,
            "result_url: 1 is a number where a string is meant",
        ),
        (
            r#""error":3"#,
            "error: 3 is a number where an object with code, message, recoverable, or a string is meant",
        ),
        (
            r#""error":{"recoverable":"yes"}"#,
            "error.recoverable: \"yes\" is a string where true or false is meant",
        ),
        (
            r#""tasks":{}"#,
            "tasks: {} is an object where an array of tasks is meant",
        ),
        (
            r#""tasks":[{"name":"a"},{"name":"b","progress":101}]"#,
            "tasks[1].progress: 101 is outside 0 to 100",
        ),
        (
            r#""tasks":[{"status":"running"}]"#,
            "tasks[0].name: is missing; a string to call the task by is meant",
        ),
        (
            r#""tasks":["a"]"#,
            "tasks[0]: \"a\" is a string where an object with a name is meant",
        ),
        (
            r#""message":"\ud800""#,
            r#"message: "\ud800" holds an escape that is not a character, such as half a surrogate pair"#,
        ),
    ] {
        let refusal = parse(&format!("{{\"status\":\"running\",{fields}}}")).unwrap_err();
        assert_eq!(refusal.to_string(), message);
        assert_eq!(refusal.code(), "bad_field");
        assert_eq!(
            refusal.field(),
            message.split_once(": ").map(|(field, _)| field)
        );
    }
}

#[test]
fn what_is_no_state_is_refused_with_its_reason() {
    let deep = format!(
        "{{\"status\":\"running\",\"x\":{}1{}}}",
        "[".repeat(64),
        "]".repeat(64)
    );
    for (payload, code, field, message) in [
        (
            "",
            "bad_json",
            None,
            "the payload is empty; send a JSON object",
        ),
        (
            "{\"status\":\"running\",\n \"a\":}",
            "bad_json",
            None,
            "the payload is not JSON: expected value at line 2 column 6",
        ),
        (
            "{\"status\":\"running\"} x",
            "bad_json",
            None,
            "the payload is not JSON: trailing characters at line 1 column 22",
        ),
        (
            "[1]",
            "not_an_object",
            None,
            "a state must be a JSON object, not an array",
        ),
        (
            "{}",
            "missing_status",
            Some("status"),
            "status: is missing; use queued, running, completed, failed or cancelled",
        ),
        (
            r#"{"status":"frobnicated"}"#,
            "bad_field",
            Some("status"),
            "status: \"frobnicated\" is not a known status; use queued, running, completed, failed or cancelled",
        ),
        (
            r#"{"status":"running","x":1,"x":2}"#,
            "duplicate_field",
            Some("x"),
            "x: appears twice; keep one",
        ),
        (
            r#"{"status":"running","progress":null,"progress":2}"#,
            "duplicate_field",
            Some("progress"),
            "progress: appears twice; keep one",
        ),
        (
            r#"{"status":"running","job_id":"j2"}"#,
            "contradiction",
            Some("job_id"),
            "job_id: \"j2\" in the body contradicts j1 in the subject or URL; leave it out",
        ),
        (
            r#"{"status":"running","owner":"bob"}"#,
            "contradiction",
            Some("owner"),
            "owner: \"bob\" in the body contradicts alice in the subject or URL; leave it out",
        ),
        (
            r#"{"status":"running","job_id":1}"#,
            "bad_field",
            Some("job_id"),
            "job_id: 1 is a number where a string is meant",
        ),
        (
            &deep,
            "too_deep",
            Some("x"),
            "x: is nested deeper than 64 levels; flatten it",
        ),
        (
            r#"{"status":"running","a":{"b":[0,{"c":1,"c":2}]}}"#,
            "duplicate_field",
            Some("a.b[1].c"),
            "a.b[1].c: appears twice; keep one",
        ),
        (
            r#"{"status":"running","error":{"x":"\ud83d"}}"#,
            "bad_field",
            Some("error.x"),
            r#"error.x: "\ud83d" holds an escape that is not a character, such as half a surrogate pair"#,
        ),
        (
            r#"{"status":"running","result":[1e400]}"#,
            "bad_field",
            Some("result[0]"),
            "result[0]: 1e400 is beyond what a double holds; send a smaller number, or a string",
        ),
    ] {
        let refusal = parse(payload).unwrap_err();
        assert_eq!(refusal.to_string(), message, "{payload}");
        assert_eq!(refusal.code(), code);
        assert_eq!(refusal.field(), field);
    }
    let (job, owner) = (Name::parse("j1").unwrap(), Name::nobody());
    let refusal = JobDocument::parse(b"{\"a\":\"\xff\"}", &job, &owner).unwrap_err();
    assert!(matches!(refusal, Refusal::NotUtf8 { offset: 6 }));
}

#[test]
fn a_byte_order_mark_in_front_is_not_a_part_of_the_document() {
    assert_eq!(
        canonical("\u{feff}{\"status\":\"running\"}"),
        r#"{"status":"running"}"#
    );
    assert!(parse("{\u{feff}\"status\":\"running\"}").is_err());
}

#[test]
fn a_message_repeats_only_the_beginning_of_a_long_value() {
    let long = "ä".repeat(500);
    let refusal = parse(&format!("{{\"status\":\"{long}\"}}")).unwrap_err();
    assert!(refusal.to_string().chars().count() < 150, "{refusal}");
    let refusal = parse(&format!(
        "{{\"status\":\"running\",\"{long}\":1,\"{long}\":1}}"
    ))
    .unwrap_err();
    assert!(refusal.to_string().chars().count() < 150, "{refusal}");
}

#[test]
fn an_estimate_is_marked_and_never_replaces_the_worker_word() {
    let mut doc = accepted(r#"{"status":"running","progress":5,"x":1}"#);
    doc.estimate_eta(12.345);
    assert_eq!(doc.eta_seconds(), Some(12.3));
    assert_eq!(
        doc.as_json(),
        r#"{"job_id":"j1","owner":"alice","status":"running","progress":5,"eta_seconds":12.3,"eta_estimated":true,"x":1}"#
    );
    let again = accepted(doc.as_json());
    assert_eq!(again.as_json(), doc.as_json());
    doc.estimate_eta(99.0);
    assert_eq!(doc.eta_seconds(), Some(12.3));

    for text in [
        r#"{"status":"running","eta_seconds":7}"#,
        r#"{"status":"failed"}"#,
    ] {
        let mut doc = accepted(text);
        let before = doc.clone();
        doc.estimate_eta(1.0);
        assert_eq!(doc, before);
    }
    let mut doc = accepted(r#"{"status":"running","eta_estimated":true}"#);
    for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
        doc.estimate_eta(nonsense);
        assert_eq!(doc.eta_seconds(), None);
    }
    doc.estimate_eta(60.0);
    assert_eq!(field(&doc, "eta_seconds"), Some("60"));
    accepted(doc.as_json());
}

#[test]
fn a_patched_state_is_a_state_again() {
    let mut last = accepted(r#"{"status":"encoding","current":1,"total":4,"big":1.0}"#);
    last.estimate_eta(9.0);
    let merged = merge_patch(last.as_json().as_bytes(), br#"{"current":2}"#).unwrap();
    assert_eq!(
        canonical(std::str::from_utf8(&merged).unwrap()),
        r#"{"status":"running","status_detail":"encoding","progress":50,"current":2,"total":4,"big":1.0}"#
    );
}
