//! Endings with something wrong in them, on their way through the hub.

use super::*;
use crate::hub::{PublishError, PublishRequest, Verb};

fn document(hub: &Hub, job: &str) -> String {
    let table = hub.table();
    let state = table.get(&self::job(job)).and_then(|entry| entry.state());
    match state.map(|state| &state.body) {
        Some(Body::State { json, .. }) => String::from_utf8_lossy(json).into_owned(),
        _ => "nothing".to_owned(),
    }
}

#[test]
fn regression_an_ending_from_the_bus_with_a_bad_field_ends_its_job() {
    let hub = hub();
    take(
        &hub,
        "a",
        What::State,
        r#"{"status":"running","parent_id":"g","progress":40}"#,
    );
    hub.ingest(&mut vec![Incoming {
        job: job("a"),
        what: What::State,
        payload: Bytes::from_static(br#"{"status":"running","progress":"50"}"#),
        seq: Seq::new(2),
        previous: None,
        stored_at: WallTime::default(),
        first: None,
    }]);
    assert!(
        document(&hub, "a").contains(r#""progress":40"#),
        "only endings are taken so"
    );
    take(
        &hub,
        "a",
        What::State,
        r#"{"status":"completed","parent_id":7,"meta":[]}"#,
    );
    assert_eq!(
        document(&hub, "a"),
        r#"{"job_id":"a","owner":"alice","status":"completed","progress":100,"parent_id":"g","dropped_fields":["parent_id","meta"]}"#
    );
    // Whoever watches the group is told.
    assert_eq!(join(&hub, "group:g", None).publications.len(), 1);
}

#[test]
fn regression_an_ending_from_the_bus_that_is_too_large_ends_its_job() {
    let hub = hub();
    take(&hub, "a", What::State, r#"{"status":"running"}"#);
    let result = "x".repeat(70_000);
    take(
        &hub,
        "a",
        What::State,
        &format!("{{\"result\":\"{result}\",\"status\":\"failed\"}}"),
    );
    assert_eq!(
        document(&hub, "a"),
        r#"{"job_id":"a","owner":"alice","status":"failed","truncated":["result"]}"#
    );
}

#[tokio::test]
async fn over_http_an_ending_with_a_bad_field_is_rejected() {
    let hub = hub();
    let publish = async |payload: &str| {
        let request = PublishRequest {
            job: name("a"),
            caller: None,
            owner: None,
            verb: Verb::Put(What::State),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            key: None,
        };
        hub.publish(request, |_| true).await
    };
    let rejected = publish(r#"{"status":"completed","meta":[]}"#)
        .await
        .unwrap_err();
    assert!(matches!(rejected, PublishError::Declined(declined) if declined.code() == "bad_field"));
    assert_eq!(document(&hub, "a"), "nothing");
}
