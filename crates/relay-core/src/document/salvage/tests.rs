//! What an ending keeps and what it loses, case by case.
//!
//! Invariant: whatever `ending` gives, the strict reader takes.

use super::*;

const LIMIT: usize = 4096;

fn salvage(payload: &[u8]) -> Option<Salvaged> {
    let (job, owner) = (Name::parse("j1").unwrap(), Name::parse("alice").unwrap());
    let parent = Name::parse("g1").unwrap();
    let known = Known {
        attempt: 2,
        parent: Some(&parent),
    };
    let salvaged = JobDocument::salvage(payload, &job, &owner, known, LIMIT)?;
    let text = salvaged.document.as_json();
    let again = JobDocument::parse(text.as_bytes(), &job, &owner)
        .unwrap_or_else(|refusal| panic!("{text}: {refusal}"));
    assert_eq!(again.as_json(), text);
    Some(salvaged)
}

/// The text behind `job_id`, `owner` and `status`.
fn ending(payload: &str) -> String {
    let salvaged = salvage(payload.as_bytes()).unwrap_or_else(|| panic!("{payload} was refused"));
    let text = salvaged.document.as_json();
    let rest = text.strip_prefix(r#"{"job_id":"j1","owner":"alice","status":""#);
    rest.and_then(|rest| rest.split_once('"'))
        .unwrap()
        .1
        .to_owned()
}

#[test]
fn an_ending_loses_the_field_that_is_wrong_and_names_it() {
    for (fields, left) in [
        (
            r#""progress":100.00000000000001"#,
            r#","progress":100,"dropped_fields":["progress"]}"#,
        ),
        (
            r#""progress":NaN,"message":"m""#,
            r#","progress":100,"message":"m","dropped_fields":["progress"]}"#,
        ),
        (
            r#""eta_seconds":-1"#,
            r#","progress":100,"dropped_fields":["eta_seconds"]}"#,
        ),
        (
            r#""meta":[],"x":1"#,
            r#","progress":100,"x":1,"dropped_fields":["meta"]}"#,
        ),
        (
            r#""error":false"#,
            r#","progress":100,"dropped_fields":["error"]}"#,
        ),
        (
            r#""ts":"2026-11-21T10:00:00""#,
            r#","progress":100,"dropped_fields":["ts"]}"#,
        ),
        (
            r#""job_id":42,"owner":"bob""#,
            r#","progress":100,"dropped_fields":["job_id","owner"]}"#,
        ),
        (
            r#""job_id":"j2""#,
            r#","progress":100,"dropped_fields":["job_id"]}"#,
        ),
        (
            r#""weight":"2","kind":7,"unit":{},"created_at":3"#,
            r#","progress":100,"dropped_fields":["kind","weight","unit","created_at"]}"#,
        ),
        (
            r#""message":"a","message":"b""#,
            r#","progress":100,"message":"b","dropped_fields":["message"]}"#,
        ),
        (
            r#""x":{"y":NaN},"z":nope,"ok":[1, 2]"#,
            r#","progress":100,"ok":[1,2],"dropped_fields":["x","z"]}"#,
        ),
    ] {
        let payload = format!("{{\"status\":\"completed\",{fields}}}");
        assert_eq!(ending(&payload), left, "{payload}");
    }
}

#[test]
fn of_an_error_and_of_tasks_the_wrong_parts_are_lost_alone() {
    assert_eq!(
        ending(
            r#"{"status":"failed","error":{"code":{},"message":"full","recoverable":"no","x":1}}"#
        ),
        r#","error":{"message":"full","x":1},"dropped_fields":["error.code","error.recoverable"]}"#
    );
    assert_eq!(
        ending(
            r#"{"status":"failed","tasks":[{"name":"a","progress":101},7,{"status":"done"},{"name":"b","status":"?"}]}"#
        ),
        concat!(
            r#","tasks":[{"name":"a"},{"name":"b"}],"#,
            r#""dropped_fields":["tasks[0].progress","tasks[1]","tasks[2].name","tasks[3].status"]}"#
        )
    );
}

#[test]
fn what_is_wrong_about_the_place_of_a_job_is_taken_from_what_is_known() {
    assert_eq!(
        ending(r#"{"status":"failed","attempt":"x","parent_id":"a.b"}"#),
        r#","attempt":2,"parent_id":"g1","dropped_fields":["attempt","parent_id"]}"#
    );
    assert_eq!(
        ending(r#"{"status":"failed","attempt":null,"parent_id":null,"meta":1}"#),
        r#","dropped_fields":["meta"]}"#,
        "what is not there is not wrong"
    );
}

#[test]
fn what_a_reader_cannot_read_is_replaced_and_named_with_its_path() {
    assert_eq!(
        ending(
            r#"{"status":"failed","message":"m\ud83d","meta":{"n":1e400,"a":1,"a":2},"error":{"code":"\ud83d"},"tasks":[{"name":"\udc00"}],"\ud800":1}"#
        ),
        concat!(
            r#","message":"m\ufffd","tasks":[{"name":"\ufffd"}],"error":{"code":"\ufffd"},"meta":{"n":null,"a":2},"#,
            r#""dropped_fields":["\\ud800","message","meta.n","meta.a","error.code","tasks[0].name"]}"#
        )
    );
    assert_eq!(
        ending("\u{feff}{\"status\":\"failed\",\"x\":1e999}"),
        r#","x":null,"dropped_fields":["x"]}"#
    );
}

#[test]
fn what_is_not_utf_8_is_replaced() {
    let salvaged = salvage(b"{\"status\":\"failed\",\"message\":\"caf\xe9\"}").unwrap();
    assert_eq!(
        salvaged.document.as_json(),
        "{\"job_id\":\"j1\",\"owner\":\"alice\",\"status\":\"failed\",\"message\":\"caf\u{fffd}\",\"dropped_fields\":[\"message\"]}"
    );
}

#[test]
fn what_is_nested_too_deep_is_lost_alone() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let salvaged = salvage(format!("{{\"x\":{deep},\"status\":\"failed\",\"y\":1}}").as_bytes());
    let salvaged = salvaged.unwrap();
    assert_eq!(
        salvaged.dropped[0].to_string(),
        "x: is nested deeper than 64 levels; flatten it"
    );
    assert!(salvaged.document.as_json().contains("\"y\":1"));
}

#[test]
fn what_is_too_large_is_shortened_or_left_out() {
    let large = "é".repeat(LIMIT);
    let payload = format!("{{\"result\":\"{large}\",\"status\":\"completed\",\"message\":\"m\"}}");
    let dropped = salvage(payload.as_bytes()).unwrap().dropped;
    assert_eq!(dropped[0].code(), "too_large");
    let text = ending(&payload);
    assert_eq!(
        text,
        r#","progress":100,"message":"m","truncated":["result"]}"#
    );
    let text = ending(&format!(
        "{{\"status\":\"failed\",\"error\":{{\"code\":7,\"trace\":\"{large}\",\"message\":\"{large}\"}},\"message\":\"{large}\",\"y\":1}}"
    ));
    let short = format!("{}…", "é".repeat(SHORT_CHARS));
    assert_eq!(
        text,
        format!(
            ",\"message\":\"{short}\",\"error\":{{\"code\":7,\"message\":\"{short}\"}},\"y\":1,\"truncated\":[\"error\",\"message\"]}}"
        )
    );
}

#[test]
fn white_space_is_not_too_large() {
    let payload = format!("{{\"status\":\"failed\",{}\"x\":1}}", " ".repeat(2 * LIMIT));
    assert_eq!(ending(&payload), r#","x":1}"#);
}

#[test]
fn half_a_character_anywhere_is_one_loss_of_many() {
    let many: String = (0..5_000).map(|_| "\"\\ud83d\",").collect();
    let salvaged = salvage(format!("{{\"x\":[{many}0],\"status\":\"failed\"}}").as_bytes());
    assert_eq!(
        salvaged.unwrap().dropped.len(),
        MAX_LOST + 1,
        "and that it is too large"
    );
}

#[test]
fn a_great_many_members_are_bounded() {
    let many: String = (0..100_000).map(|n| format!("\"f{n}\":!,")).collect();
    let salvaged = salvage(format!("{{{many}\"status\":\"failed\"}}").as_bytes()).unwrap();
    assert!(salvaged.dropped.len() <= MAX_LOST);
    assert!(salvaged.document.as_json().len() < LIMIT);
}

#[test]
fn what_is_not_a_whole_object_with_a_known_ending_is_not_taken() {
    for payload in [
        "",
        "[1]",
        "\"status\"",
        r#"{"status":"completed","x":"#,
        r#"{"status":"completed","x":[1}"#,
        r#"{"status":"completed","x":"a"#,
        r#"{"status":"completed"} x"#,
        r#"{"status":"completed",}"#,
        r#"{"status":"completed" "x":1}"#,
        r#"{status:"completed"}"#,
        r#"{"status":"runing","progress":400}"#,
        r#"{"status":"running","progress":400}"#,
        r#"{"status":"completed","status":"running"}"#,
        r#"{"progress":100}"#,
        r#"{"status":7}"#,
        r#"{"x":{"status":"completed"}}"#,
    ] {
        assert!(salvage(payload.as_bytes()).is_none(), "{payload}");
    }
    let huge = format!(
        "{{\"status\":\"failed\",\"x\":\"{}\"}}",
        "x".repeat(MAX_BYTES)
    );
    assert!(salvage(huge.as_bytes()).is_none());
}

#[test]
fn what_an_older_version_took_is_restored() {
    let (job, owner) = (Name::parse("j1").unwrap(), Name::parse("alice").unwrap());
    let text = br#"{"job_id":"j1","owner":"alice","status":"running","progress":5,"x":"\ud83d"}"#;
    let restored = JobDocument::restore(text, &job, &owner).unwrap();
    assert_eq!(
        restored.as_json(),
        r#"{"job_id":"j1","owner":"alice","status":"running","progress":5,"x":"\ufffd","dropped_fields":["x"]}"#
    );
}

#[test]
fn of_two_statuses_the_last_counts() {
    let salvaged = salvage(br#"{"status":"running","\u0073tatus":"done"}"#).unwrap();
    assert_eq!(
        salvaged.document.status(),
        crate::document::Status::Completed
    );
    assert!(
        salvaged
            .document
            .as_json()
            .contains(r#""dropped_fields":["status"]"#)
    );
}
