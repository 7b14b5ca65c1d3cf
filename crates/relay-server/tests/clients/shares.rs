//! People without a user who watch one job by a share, and pages that open connections by tickets.

use std::time::Duration;

use relay_testkit::client::{Refused, Transport, Watch, Watcher, WebSocketClient};
use relay_testkit::http::{Method, Request};
use relay_testkit::relay::RelayServer;
use relay_testkit::wait;
use serde_json::json;

use crate::SOON;
use crate::identity::{KEY, of, token, with_tokens};

/// A share, and its id.
fn share(job: &str, lasts: &str) -> (String, String) {
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_relay"))
        .args(["token", "--share", job, "--for", lasts])
        .env("RELAY__AUTH__MODE", "jwt")
        .env("RELAY__AUTH__KEY", KEY)
        .output()
        .unwrap();
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success(), "{said}");
    let id = said
        .split("id is ")
        .nth(1)
        .unwrap()
        .split(';')
        .next()
        .unwrap();
    let token = String::from_utf8(made.stdout).unwrap();
    (token.trim().to_owned(), id.to_owned())
}

async fn publish(relay: &RelayServer, owner: &str, job: &str) {
    let publisher = token(&of("publisher").publish(&["*"]));
    let path = format!("/v1/jobs/{job}?owner={owner}");
    let state = json!({"status": "running", "progress": 7});
    let request = Request::post(path, &state).bearer(Some(&publisher));
    let answer = relay.send(request).await.unwrap();
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
}

#[tokio::test]
async fn a_share_watches_its_job_on_every_transport_and_nothing_else() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "alice", "clip").await;
    publish(&relay, "alice", "other").await;
    let (clip, _) = share("job:alice/clip", "1h");
    let (bobs, _) = share("job:bob/clip", "1h");
    let watch = |topic: &str, share: &str| Watch::topics([topic]).token(share);
    for transport in Transport::ALL {
        let seen = Watcher::connect(transport, &relay.address(), watch("job:clip", &clip)).await;
        let state = seen
            .unwrap()
            .until(SOON, "the state", |frame| frame.kind() == "state")
            .await;
        assert_eq!(state.unwrap().job_id(), "clip", "{transport}");
        for (topic, share) in [
            ("job:other", &clip),
            ("user:alice", &clip),
            ("group:clip", &clip),
            ("job:clip", &bobs),
        ] {
            let refused = Watcher::connect(transport, &relay.address(), watch(topic, share)).await;
            let refused = match refused {
                // What polls does so with its first request.
                Ok(mut watcher) => watcher
                    .until(SOON, "a state", |frame| frame.kind() == "state")
                    .await
                    .map(|_| ()),
                Err(error) => Err(error),
            };
            let refused = format!("{:#}", refused.unwrap_err());
            if transport == Transport::State && !topic.starts_with("job:") {
                // It asks for jobs alone.
                continue;
            }
            let named = refused.contains("403") && refused.contains("forbidden");
            assert!(named, "{transport} {topic}: {refused}");
        }
    }
    for (request, status) in [
        (Request::get("/v1/jobs/clip"), 200),
        (Request::get("/v1/jobs/other"), 403),
        (
            Request::post("/v1/jobs/clip?owner=alice", &json!({"status": "failed"})),
            403,
        ),
        (Request::new(Method::DELETE, "/v1/jobs/clip"), 403),
        (Request::post("/v1/tickets", &json!({})), 403),
    ] {
        let answer = relay.send(request.bearer(Some(&clip))).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    }
    let logs = relay.logs();
    assert!(!logs.contains("eyJ"), "a share is in the log:\n{logs}");
}

#[tokio::test]
async fn a_share_that_is_taken_back_ends_where_it_is_watched_and_others_go_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let settings = with_tokens()
        .set("auth.revoked_file", file.path().display())
        .set("limits.connections_per_share", 2);
    let relay = RelayServer::start(settings).await.unwrap();
    publish(&relay, "alice", "clip").await;
    let ((one, id), (other, _)) = (share("job:alice/clip", "1h"), share("job:alice/clip", "1h"));
    let open = async |share: &str| {
        let path = format!("/v1/ws?topic=job:clip&token={share}");
        WebSocketClient::open(&relay.address(), &path, &[]).await
    };
    let (mut first, second) = (open(&one).await.unwrap(), open(&one).await.unwrap());
    let refused = open(&one).await.unwrap_err();
    let refused = Refused::of(&refused).unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "share_limit")
    );
    let mut others = open(&other).await.unwrap();
    second.close().await;
    wait::until_some(SOON, "a free place", async || open(&one).await.ok())
        .await
        .unwrap();

    std::fs::write(file.path(), format!("{id}  # sent to the wrong person\n")).unwrap();
    let (code, _) = first.until_closed(SOON).await.unwrap();
    assert_eq!(code, Some(4401));
    let refused = open(&one).await.unwrap_err();
    let refused = Refused::of(&refused).unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "token_revoked")
    );
    others.send(&json!({"type": "ping"})).await.unwrap();
    others
        .until(SOON, "a pong", |frame| frame.kind() == "pong")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_ticket_opens_one_connection_of_its_user_and_nothing_more() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    publish(&relay, "alice", "clip").await;
    let alice = token(&of("alice").expires_in(Duration::from_secs(600)));
    let made = Request::post("/v1/tickets", &json!({})).bearer(Some(&alice));
    let made = relay.send(made).await.unwrap();
    assert_eq!(
        (made.status.as_u16(), made.header("cache-control")),
        (201, "no-store")
    );
    assert_eq!(made.json()["expires_in"], 30);
    let ticket = made.json()["ticket"].as_str().unwrap().to_owned();
    let state = Request::get(format!("/v1/jobs/clip?ticket={ticket}"));
    let refused = relay.send(state).await.unwrap();
    assert_eq!(
        (refused.status.as_u16(), refused.error_code().as_str()),
        (401, "ticket_not_good")
    );
    let path = format!("/v1/ws?topic=user:alice&ticket={ticket}");
    let mut client = WebSocketClient::open(&relay.address(), &path, &[])
        .await
        .unwrap();
    let hello = client
        .until(SOON, "hello", |frame| frame.kind() == "hello")
        .await
        .unwrap();
    assert_eq!(hello.0["user"], "alice");
    let again = WebSocketClient::open(&relay.address(), &path, &[])
        .await
        .unwrap_err();
    let again = Refused::of(&again).unwrap();
    assert_eq!(
        (again.status, again.code().as_str()),
        (401, "ticket_not_good")
    );
    let nobody = relay
        .send(Request::post("/v1/tickets", &json!({})))
        .await
        .unwrap();
    assert_eq!(nobody.status.as_u16(), 401);
}
