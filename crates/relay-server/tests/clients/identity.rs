//! Clients that are not who they should be, or want more than their share.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use relay_testkit::client::{Refused, Transport, Watch, Watcher, WebSocketClient};
use relay_testkit::http::Request;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::token::Claims;
use relay_testkit::wait;
use serde_json::json;

use crate::neighbour::Neighbour;
use crate::{SOON, settings};

pub(crate) const KEY: &str = "a secret that is long enough for HS256 to be content";
/// A public key without a private one beside it: nothing here needs to sign with it.
const PUBLIC_KEY: &str = include_str!("public_key.pem");

pub(crate) fn with_tokens() -> Settings {
    settings()
        .set("auth.mode", "jwt")
        .set("auth.key", KEY)
        .set("auth.audience", "relay")
        .set("auth.leeway", "0s")
}

fn sign(claims: &Claims, key: &[u8]) -> String {
    let header = Header::new(Algorithm::HS256);
    jsonwebtoken::encode(&header, &claims.json(), &EncodingKey::from_secret(key)).unwrap()
}

pub(crate) fn of(user: &str) -> Claims {
    Claims::of(user).set("aud", json!("relay"))
}

pub(crate) fn token(claims: &Claims) -> String {
    sign(claims, KEY.as_bytes())
}

/// A neighbour who may publish its own job over HTTP.
async fn neighbour(relay: &RelayServer) -> Neighbour {
    let token = token(&of("neighbour").publish(&["neighbour"]));
    Neighbour::with_token(relay, Some(token)).await.unwrap()
}

/// What the relay says to a client with this token, on each transport.
async fn answers(relay: &RelayServer, token: Option<&str>) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    for path in [
        "/v1/sse?topic=user:alice",
        "/v1/poll?topic=user:alice&wait=0",
        "/v1/jobs/j",
    ] {
        let mut connection = relay_testkit::http::Connection::open(&relay.address())
            .await
            .unwrap();
        let answer = connection
            .start(Request::get(path).bearer(token))
            .await
            .unwrap();
        let status = answer.status().as_u16();
        if status == 200 {
            answers.push((200, String::new()));
            continue;
        }
        let answer = relay.send(Request::get(path).bearer(token)).await.unwrap();
        answers.push((status, answer.error_code()));
    }
    answers.push(
        match WebSocketClient::connect(&relay.address(), token).await {
            Ok(_) => (101, String::new()),
            Err(error) => match Refused::of(&error) {
                Some(refused) => (refused.status, refused.code()),
                None => panic!("{error:#}"),
            },
        },
    );
    answers
}

#[tokio::test]
async fn a_token_that_is_not_good_is_refused_on_every_transport_before_anything_is_said() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let mut neighbour = neighbour(&relay).await;
    let later = std::time::SystemTime::now() + Duration::from_secs(3600);
    let later = later
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    for (code, token) in [
        ("unauthenticated", None),
        ("token_malformed", Some("rubbish".to_owned())),
        (
            "token_expired",
            Some(token(&of("alice").expired_since(Duration::from_secs(60)))),
        ),
        (
            "token_not_yet_valid",
            Some(token(&of("alice").set("nbf", json!(later)))),
        ),
        (
            "token_bad_audience",
            Some(token(&of("alice").set("aud", json!("the bakery")))),
        ),
        ("token_bad_audience", Some(token(&Claims::of("alice")))),
        ("token_bad_algorithm", Some(of("alice").unsigned())),
        (
            "token_bad_signature",
            Some(sign(&of("alice"), b"another secret of a good length")),
        ),
    ] {
        for (status, answered) in answers(&relay, token.as_deref()).await {
            assert_eq!((status, answered.as_str()), (401, code), "{token:?}");
        }
    }
    let answers = answers(&relay, Some(&token(&of("alice")))).await;
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 200, 404, 101]);
    neighbour.is_undisturbed(&relay).await.unwrap();
    let logs = relay.logs();
    assert!(!logs.contains("eyJ"), "a token is in the log:\n{logs}");
}

#[tokio::test]
async fn a_public_key_is_no_secret_to_sign_with() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("public_key.pem");
    std::fs::write(&path, PUBLIC_KEY).unwrap();
    let relay = RelayServer::start(
        settings()
            .set("auth.mode", "jwt")
            .set("auth.algorithms", "RS256")
            .set("auth.key_file", path.display()),
    )
    .await
    .unwrap();
    let forged = sign(&Claims::of("alice"), PUBLIC_KEY.as_bytes());
    for (status, code) in answers(&relay, Some(&forged)).await {
        assert_eq!((status, code.as_str()), (401, "token_bad_algorithm"));
    }
}

#[tokio::test]
async fn a_foreign_job_is_refused_and_the_own_ones_go_on() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let neighbours_token = token(&of("neighbour").publish(&["neighbour", "alice"]));
    let mut neighbour = Neighbour::with_token(&relay, Some(neighbours_token.clone()))
        .await
        .unwrap();
    let alice = token(&of("alice"));
    let mut client = WebSocketClient::connect(&relay.address(), Some(&alice))
        .await
        .unwrap();
    let hello = client
        .until(SOON, "hello", |frame| frame.kind() == "hello")
        .await
        .unwrap();
    assert_eq!(hello.0["user"], "alice");

    client.subscribe("user:neighbour", None).await.unwrap();
    let error = client
        .until(SOON, "the refusal", |frame| frame.kind() == "error")
        .await
        .unwrap();
    assert_eq!(error.code(), "forbidden", "{error}");
    // naming oneself somebody else changes nothing
    client
        .send(&json!({"type": "subscribe", "topic": "user:neighbour", "user": "neighbour", "sub": "neighbour"}))
        .await
        .unwrap();
    let error = client
        .until(SOON, "the refusal", |frame| frame.kind() == "error")
        .await
        .unwrap();
    assert_eq!(error.code(), "forbidden", "{error}");

    client.subscribe("user:alice", None).await.unwrap();
    client
        .until(SOON, "subscribed", |frame| frame.kind() == "subscribed")
        .await
        .unwrap();
    let state = json!({"status": "completed"});
    let publish =
        |token: &str| Request::post("/v1/jobs/alices?owner=alice", &state).bearer(Some(token));
    let refused = relay.send(publish(&alice)).await.unwrap();
    assert_eq!(
        (refused.status.as_u16(), refused.error_code().as_str()),
        (403, "may_not_publish")
    );
    let accepted = relay.send(publish(&neighbours_token)).await.unwrap();
    assert_eq!(accepted.status.as_u16(), 202, "{}", accepted.text());
    client
        .until(SOON, "the own job", |frame| frame.job_id() == "alices")
        .await
        .unwrap();

    // the foreign job, asked for by its document
    let foreign = relay
        .send(Request::get("/v1/jobs/neighbours-job").bearer(Some(&alice)))
        .await
        .unwrap();
    assert_eq!(foreign.status.as_u16(), 403, "{}", foreign.text());
    neighbour.is_undisturbed(&relay).await.unwrap();
}

#[tokio::test]
async fn a_user_has_five_connections_and_a_sixth_when_one_is_free() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let mut neighbour = neighbour(&relay).await;
    let alice = token(&of("alice"));
    let watch = || Watch::topics(["user:alice"]).token(alice.clone());
    let mut open = Vec::new();
    for index in 0..5 {
        let transport = Transport::ALL[index % 2];
        open.push(
            Watcher::connect(transport, &relay.address(), watch())
                .await
                .unwrap(),
        );
    }
    for transport in [Transport::WebSocket, Transport::Sse] {
        let error = Watcher::connect(transport, &relay.address(), watch())
            .await
            .unwrap_err();
        let refused = Refused::of(&error).unwrap();
        assert_eq!(refused.status, 429, "{transport}: {refused}");
        assert_eq!(refused.code(), "user_limit", "{transport}: {refused}");
    }
    neighbour.is_undisturbed(&relay).await.unwrap();
    open.remove(0).close().await;
    wait::until_some(SOON, "a free place", async || {
        Watcher::connect(Transport::Sse, &relay.address(), watch())
            .await
            .ok()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_4401_when_its_token_does_and_goes_on_with_a_new_one() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let short = || token(&of("alice").expires_in(Duration::from_secs(2)));
    let mut forgetful = WebSocketClient::connect(&relay.address(), Some(&short()))
        .await
        .unwrap();
    let mut careful = WebSocketClient::connect(&relay.address(), Some(&short()))
        .await
        .unwrap();
    careful
        .send(&json!({"type": "auth", "token": token(&of("alice"))}))
        .await
        .unwrap();
    let renewed = careful
        .until(SOON, "authenticated", |frame| {
            frame.kind() == "authenticated"
        })
        .await
        .unwrap();
    assert_eq!(renewed.0["user"], "alice");
    let (code, reason) = forgetful.until_closed(SOON).await.unwrap();
    assert_eq!(code, Some(4401), "{reason}");
    careful.send(&json!({"type": "ping"})).await.unwrap();
    careful
        .until(SOON, "a pong", |frame| frame.kind() == "pong")
        .await
        .unwrap();
}

/// Naming topics in the URL grants nothing before the token is there, and needs no second message after.
#[tokio::test]
async fn topics_in_the_url_wait_for_a_token_that_comes_by_message() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let mut neighbour = neighbour(&relay).await;
    let path = "/v1/ws?auth=message&topic=user:alice&topic=user:neighbour&topic=job:neighbours-job";
    let mut client = WebSocketClient::open(&relay.address(), path, &[])
        .await
        .unwrap();
    client.send(&json!({"type": "ping"})).await.unwrap();
    let mut before = Vec::new();
    client
        .until(SOON, "a pong", |frame| {
            before.push(frame.kind().to_owned());
            frame.kind() == "pong"
        })
        .await
        .unwrap();
    assert_eq!(before, ["hello", "pong"]);

    client
        .send(&json!({"type": "auth", "token": token(&of("alice"))}))
        .await
        .unwrap();
    let mut said = Vec::new();
    client
        .until(SOON, "an answer for each topic", |frame| {
            let kind = frame.kind().to_owned();
            if kind == "aggregate" {
                assert_eq!(frame.topic(), "user:alice", "{frame}");
                return false;
            }
            assert!(
                ["authenticated", "subscribed", "error"].contains(&kind.as_str()),
                "{frame}"
            );
            said.push(format!("{kind} {}", frame.topic()).trim().to_owned());
            said.len() == 4
        })
        .await
        .unwrap();
    said.sort();
    let expected = [
        "authenticated",
        "error job:neighbours-job",
        "error user:neighbour",
        "subscribed user:alice",
    ];
    assert_eq!(said, expected);
    neighbour.is_undisturbed(&relay).await.unwrap();
}
