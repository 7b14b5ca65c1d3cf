//! Two relays behind a balancer that spreads one client's polling: an error a person understands.

use relay_testkit::http::{Request, StatusCode};
use relay_testkit::relay::RelayServer;
use serde_json::json;

use crate::suite;
use crate::wire::{PATH, Polling, Socket};

#[tokio::test]
async fn a_session_of_another_relay_is_refused_with_the_reason_and_one_line_in_the_log() {
    let (one, other) = tokio::join!(
        RelayServer::start(suite(false)),
        RelayServer::start(suite(false))
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    let session = Polling::open(&one).await;
    for _ in 0..3 {
        let path = format!("{PATH}&transport=polling&sid={}", session.sid);
        let answer = other.send(Request::get(path)).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let body = answer.json();
        assert_eq!(
            (&body["code"], &body["message"]),
            (&json!(1), &json!("Session ID unknown"))
        );
        let reason = body["reason"].as_str().unwrap();
        assert!(reason.contains("sticky sessions"), "{reason}");
    }
    let refused = Socket::connect(&other, &format!("&sid={}", session.sid)).await;
    let (status, body) = refused.err().unwrap();
    assert_eq!(status, 400);
    assert!(body.contains("sticky sessions"), "{body}");
    // One line a minute and shard, however many ask.
    let said = other.logs().matches("sticky sessions").count();
    assert!((1..=3).contains(&said), "{}", other.logs());
    // The session itself never noticed.
    session.say("40").await;
    session.packets(1).await;
}

#[tokio::test]
async fn an_id_that_is_none_is_refused_as_one_that_has_ended() {
    let relay = RelayServer::start(suite(false)).await.unwrap();
    for sid in ["x", "abcdefghijklmnopqrst", "%00", "..%2f"] {
        let path = format!("{PATH}&transport=polling&sid={sid}");
        let answer = relay.send(Request::get(path)).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{sid}");
        assert_eq!(answer.json()["code"], json!(1), "{sid}");
    }
}
