//! Who may connect and poll, and what is each one's own without being asked for.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use relay_testkit::http::Request;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::token::Claims;
use serde_json::json;

use crate::settings;
use crate::transcript::{Heard, Socket};

const KEY: &str = "a secret that is long enough for HS256 to be content";

pub(crate) fn with_tokens() -> Settings {
    settings().set("auth.mode", "jwt").set("auth.key", KEY)
}

pub(crate) fn token(claims: &Claims) -> String {
    let header = Header::new(Algorithm::HS256);
    let key = EncodingKey::from_secret(KEY.as_bytes());
    jsonwebtoken::encode(&header, &claims.json(), &key).unwrap()
}

pub(crate) async fn publish(relay: &RelayServer, job: &str, owner: &str, status: &str) {
    let worker = token(&Claims::of("worker").publish(&["*"]));
    let state = json!({"status": status, "ts": "2026-11-21T10:00:00Z"});
    let request = Request::post(format!("/v1/jobs/{job}?owner={owner}"), &state);
    let answer = relay.send(request.bearer(Some(&worker))).await.unwrap();
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
}

/// A running job of a group.
async fn publish_in(relay: &RelayServer, job: &str, owner: &str, group: &str) {
    let worker = token(&Claims::of("worker").publish(&["*"]));
    let state = json!({"status": "running", "message": group, "parent_id": group});
    let request = Request::post(format!("/v1/jobs/{job}?owner={owner}"), &state);
    let answer = relay.send(request.bearer(Some(&worker))).await.unwrap();
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
}

#[tokio::test]
async fn the_tokens_user_is_watched_without_being_asked_for() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "e1", "alice", "completed").await;
    publish(&relay, "e2", "bob", "completed").await;
    let token = token(&Claims::of("alice"));
    let mut socket = Socket::open(&relay, &format!("/production?token={token}")).await;
    let Heard::Text(metrics) = socket.next().await else {
        panic!("closed");
    };
    assert!(metrics.contains("\"total_events\":1"), "{metrics}");
    let Heard::Text(event) = socket.next().await else {
        panic!("closed");
    };
    assert!(event.contains("\"id\":\"e1\""), "{event}");
    socket
        .send(r#"{"type":"subscribe","data":{"channel":"e2"}}"#)
        .await;
    let Heard::Text(refused) = socket.next().await else {
        panic!("closed");
    };
    assert!(
        refused.starts_with(r#"{"type":"error","error":"#),
        "{refused}"
    );
    socket
        .send(r#"{"type":"subscribe","data":{"channel":"user:bob"}}"#)
        .await;
    let Heard::Text(refused) = socket.next().await else {
        panic!("closed");
    };
    assert!(
        refused.starts_with(r#"{"type":"error","error":"#),
        "{refused}"
    );
    assert!(!relay.logs().contains(&token), "a token is in the log");
}

#[tokio::test]
async fn who_may_not_come_is_refused_before_the_upgrade_and_by_the_poll_too() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "c1", "alice", "running").await;
    let path = "/api/v1/conversions/c1/ws";
    assert_eq!(Socket::refused(&relay, path, None).await.0, 401);
    let cookie = |user: &str| format!("relay_token={}", token(&Claims::of(user)));
    assert_eq!(
        Socket::refused(&relay, path, Some(&cookie("bob"))).await.0,
        403
    );
    assert_eq!(
        Socket::refused(&relay, path, Some(&cookie("alice")))
            .await
            .0,
        101
    );
    let old = Claims::of("alice").expired_since(std::time::Duration::from_secs(3600));
    let old = format!("relay_token={}", token(&old));
    assert_eq!(Socket::refused(&relay, path, Some(&old)).await.0, 401);

    let poll = |cookie: Option<String>| {
        let request = Request::get("/api/v1/conversions/c1");
        match cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        }
    };
    for (cookie, status) in [
        (None, 401),
        (Some(cookie("bob")), 403),
        (Some(cookie("alice")), 200),
    ] {
        let answer = relay.send(poll(cookie)).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
    }
}

#[tokio::test]
async fn a_dialect_may_have_a_cookie_of_its_own() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "n1", "alice", "completed").await;
    let token = token(&Claims::of("alice"));
    let ask = |name: &str| Request::get("/api/jobs/n1").header("cookie", format!("{name}={token}"));
    let own = relay.send(ask("access_token")).await.unwrap();
    assert_eq!(own.status.as_u16(), 200);
    let other = relay.send(ask("relay_token")).await.unwrap();
    assert_eq!(other.status.as_u16(), 401);
}

#[tokio::test]
async fn a_sixth_connection_is_refused_with_a_status_and_a_time_to_come_back() {
    let settings = with_tokens().set("limits.connections_per_user", "5");
    let relay = RelayServer::start(settings).await.unwrap();
    let path = format!("/ws/generations/g1?token={}", token(&Claims::of("alice")));
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(Socket::open(&relay, &path).await);
    }
    let (status, body) = Socket::refused(&relay, &path, None).await;
    assert_eq!(status, 429);
    assert!(
        body.starts_with(r#"{"error":{"code":"user_limit","#),
        "{body}"
    );
}

#[tokio::test]
async fn counts_are_polled_by_their_own_user_and_by_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = "description = \"x\"\n[[polls]]\npath = \"/mine\"\ntopic = \"user:{user}\"\ninterval = \"10s\"\n\
                body = '[.topic, .total, .counts.completed]'\n\
                [[polls]]\npath = \"/of/{user}\"\ntopic = \"user:{user}\"\nbody = '.total'\n\
                [[polls]]\npath = \"/batch\"\ntopic = \"group:{?id}\"\nbody = '.total'\n";
    std::fs::write(directory.path().join("mine.toml"), file).unwrap();
    let settings = with_tokens()
        .set("dialects.enabled", "mine")
        .set("dialects.directory", directory.path().display());
    let relay = RelayServer::start(settings).await.unwrap();
    publish(&relay, "e1", "alice", "completed").await;
    publish(&relay, "e2", "alice", "running").await;
    publish(&relay, "x1", "bob", "running").await;
    let (alice, bob) = (token(&Claims::of("alice")), token(&Claims::of("bob")));
    let ask = |path: &str, token: Option<&str>| Request::get(path).bearer(token);
    let mine = relay.send(ask("/mine", Some(&alice))).await.unwrap();
    assert_eq!(mine.text(), r#"["user:alice",2,1]"#);
    assert_eq!(mine.header("retry-after"), "10");
    let tag = mine.header("etag").to_owned();
    let again = ask("/mine", Some(&alice)).header("if-none-match", tag.as_str());
    let again = relay.send(again).await.unwrap();
    assert_eq!((again.status.as_u16(), again.text().as_str()), (304, ""));
    // As many jobs, and another's tag: his are his own.
    publish(&relay, "x2", "bob", "completed").await;
    let his = ask("/mine", Some(&bob)).header("if-none-match", tag.as_str());
    let his = relay.send(his).await.unwrap();
    assert_eq!(his.text(), r#"["user:bob",2,1]"#);
    publish(&relay, "e2", "alice", "completed").await;
    let moved = ask("/mine", Some(&alice)).header("if-none-match", tag);
    let moved = relay.send(moved).await.unwrap();
    assert_eq!(moved.text(), r#"["user:alice",2,2]"#);
    for (path, token, status, code) in [
        ("/mine", None, 401, "unauthenticated"),
        ("/of/alice", None, 401, "unauthenticated"),
        ("/of/alice", Some(&bob), 403, "forbidden"),
        ("/of/no%20body", Some(&bob), 400, "bad_topic"),
        ("/batch", Some(&bob), 400, "no_topic"),
    ] {
        let refused = relay
            .send(ask(path, token.map(String::as_str)))
            .await
            .unwrap();
        assert_eq!(refused.status.as_u16(), status, "{path}");
        assert_eq!(refused.error_code(), code, "{path}");
    }
    let own = relay.send(ask("/batch?id=g", Some(&bob))).await.unwrap();
    assert_eq!(own.text(), "0", "a group of his own has nothing in it yet");
    let granted = token(&Claims::of("bob").topics(&["group:g", "user:alice"]));
    for (path, count) in [("/of/alice", "2"), ("/of/bob", "2"), ("/batch?id=g", "0")] {
        let answer = relay.send(ask(path, Some(&granted))).await.unwrap();
        assert_eq!(answer.text(), count, "{path}");
    }
}

#[tokio::test]
async fn the_event_dashboard_asks_for_its_counts_where_its_own_server_has_them() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    for (job, status) in [
        ("e1", "completed"),
        ("e2", "cancelled"),
        ("e3", "completed"),
    ] {
        publish(&relay, job, "alice", status).await;
    }
    let path = "/metrics/summary";
    let nobody = relay.send(Request::get(path)).await.unwrap();
    assert_eq!(nobody.status.as_u16(), 401);
    let of = |user: &str| Request::get(path).bearer(Some(&token(&Claims::of(user))));
    let alice = relay.send(of("alice")).await.unwrap();
    let expected = r#"{"total":3,"pending":0,"delivered":2,"failed":1,"success_rate":66.67}"#;
    assert_eq!(alice.text(), expected);
    let bob = relay.send(of("bob")).await.unwrap();
    let expected = r#"{"total":0,"pending":0,"delivered":0,"failed":0,"success_rate":0}"#;
    assert_eq!(bob.text(), expected);
}

#[tokio::test]
async fn a_job_that_may_not_be_watched_any_more_is_said_in_a_word_the_page_knows() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let alice = token(&Claims::of("alice").topics(&["group:bob/g"]));
    let cookie = format!("access_token={alice}");
    for (path, asks, answered, told) in [
        (
            "/api/v1/conversions/late/ws",
            vec![],
            vec![r#"{"job_id":"late","status":"queued","#],
            r#"{"job_id":"late","status":"failed","progress":0,"message":"This conversion is not yours","#,
        ),
        (
            "/api/ws",
            vec![r#"{"type":"subscribe_job","jobId":"late"}"#],
            vec![],
            r#"{"type":"conversion_error","payload":{"jobId":"late","error":"this belongs to another user"#,
        ),
        (
            "/ws/generations/late",
            vec![],
            vec![],
            r#"{"type":"error","data":{"code":"forbidden","message":"this belongs to another user, and your token's topics do not grant it","recoverable":false,"generation_id":"late"}}"#,
        ),
        (
            "/production",
            vec![r#"{"type":"subscribe","data":{"channel":"late"}}"#],
            vec![r#"{"type":"metrics_update","#],
            r#"{"type":"error","error":"this belongs to another user"#,
        ),
        (
            "/socket.io/?EIO=4&transport=websocket",
            vec![
                "40/jobs,",
                r#"42/jobs,1["subscribe:jobs",{"jobId":"late"}]"#,
            ],
            vec!["0{", "40/jobs,{", "43/jobs,1["],
            r#"42/jobs,["job:error",{"jobId":"late","status":"failed","error":"Forbidden","#,
        ),
    ] {
        // A name of its own in each: one that is known is refused before the upgrade.
        let job = format!("late{}", path.len());
        let named = |text: &str| text.replace("late", &job);
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = named(&format!("{path}{separator}token={alice}"));
        let mut socket = Socket::open_as(&relay, &url, &cookie).await;
        for ask in asks {
            socket.send(&named(ask)).await;
        }
        let mut next = async |expected: &str| {
            let Heard::Text(text) = socket.next().await else {
                panic!("{path}: closed before {expected}");
            };
            assert!(text.starts_with(&named(expected)), "{path}: {text}");
        };
        for expected in answered {
            next(expected).await;
        }
        // Somebody else's that is called so is not what is waited for.
        publish(&relay, &job, "mallory", "running").await;
        publish_in(&relay, &job, "bob", "g").await;
        publish_in(&relay, &job, "bob", "other").await;
        let mut heard = Vec::new();
        while !heard
            .last()
            .is_some_and(|text: &String| text.starts_with(&named(told)))
        {
            let Heard::Text(text) = socket.next().await else {
                panic!("{path}: closed after {heard:?}");
            };
            assert!(!text.contains("mallory"), "{path}: {text}");
            heard.push(text);
        }
    }
}

#[tokio::test]
async fn every_dialect_over_a_websocket_takes_the_token_in_the_first_message() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "mine", "alice", "running").await;
    let alice = token(&Claims::of("alice"));
    let auth = json!({"type": "auth", "token": alice}).to_string();
    for (path, asks, told) in [
        (
            "/api/v1/conversions/mine/ws?auth=message",
            None,
            r#"{"job_id":"mine","#,
        ),
        (
            "/api/ws?auth=message",
            Some(r#"{"type":"subscribe_job","jobId":"mine"}"#),
            r#"{"type":"progress_update","payload":{"jobId":"mine","#,
        ),
        (
            "/ws/generations/mine?auth=message",
            None,
            r#"{"type":"progress","data":{"#,
        ),
        // It sends it by its document's own advice, whatever its URL says.
        (
            "/production",
            None,
            r#"{"type":"metrics_update","data":{"total_events":1,"#,
        ),
    ] {
        let mut socket = Socket::open(&relay, path).await;
        socket.quiet().await;
        socket.send(&auth).await;
        if let Some(asks) = asks {
            socket.send(asks).await;
        }
        let Heard::Text(text) = socket.next().await else {
            panic!("{path}: closed");
        };
        assert!(text.starts_with(told), "{path}: {text}");
    }
}
