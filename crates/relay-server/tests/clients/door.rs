//! What every way in has in common: pages that may not use the relay get in nowhere, under whatever name they ask.

use http::Method;
use relay_testkit::http::{self, Answer, Request};
use relay_testkit::relay::RelayServer;

use crate::settings;

const LISTED: &str = "https://app.example";
const FOREIGN: &str = "https://elsewhere.example";

/// Every way in: what its answers are counted under, a request, and whether that asks for a WebSocket.
const WAYS_IN: &[(&str, Method, &str, bool)] = &[
    ("/v1/ws", Method::GET, "/v1/ws", true),
    ("/v1/ws", Method::GET, "/v1/ws?auth=message", true),
    ("/v1/sse", Method::GET, "/v1/sse?topic=job:j", false),
    (
        "/v1/poll",
        Method::GET,
        "/v1/poll?topic=job:j&wait=0",
        false,
    ),
    ("/v1/jobs/{id}", Method::GET, "/v1/jobs/j", false),
    ("/v1/jobs/{id}", Method::POST, "/v1/jobs/j?owner=o", false),
    ("/v1/jobs/{id}", Method::PATCH, "/v1/jobs/j", false),
    (
        "/v1/jobs/{id}/milestones/{name}",
        Method::POST,
        "/v1/jobs/j/milestones/m",
        false,
    ),
    ("/v1/publish", Method::POST, "/v1/publish", false),
    ("other", Method::GET, "/nowhere", false),
    (
        "/ws/generations/{job}",
        Method::GET,
        "/ws/generations/j",
        true,
    ),
    (
        "/api/v1/generations/{job}",
        Method::GET,
        "/api/v1/generations/j",
        false,
    ),
    ("/api/health", Method::GET, "/api/health", false),
    (
        "/socket.io",
        Method::GET,
        "/socket.io/?EIO=4&transport=polling",
        false,
    ),
    (
        "/socket.io",
        Method::POST,
        "/socket.io/?EIO=4&transport=polling&sid=s",
        false,
    ),
    (
        "/socket.io",
        Method::GET,
        "/socket.io/?EIO=4&transport=websocket",
        true,
    ),
];

fn request(method: &Method, path: &str, upgrades: bool) -> Request {
    let mut request = Request::new(method.clone(), path);
    if *method != Method::GET {
        let state = serde_json::json!({ "job_id": "j", "status": "running" });
        request = request.body(state.to_string());
    }
    match upgrades {
        true => request
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        false => request,
    }
}

fn is_refused(answer: &Answer, place: &str) {
    let code = answer.error_code();
    let answered = (answer.status.as_u16(), code.as_str());
    assert_eq!(answered, (403, "foreign_origin"), "{place}");
    let allowed = answer.header("access-control-allow-origin");
    assert_eq!(allowed, "", "{place}");
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_is_refused_on_every_way_in() {
    let settings = settings()
        .set("dialects.enabled", "video-generation")
        .set("http.allowed_origins", LISTED);
    let relay = RelayServer::start(settings).await.unwrap();
    for (route, method, path, upgrades) in WAYS_IN {
        let place = format!("{method} {path}");
        let series = format!("relay_http_requests_total{{code=\"403\",route=\"{route}\"}}");
        let count = async || relay.metrics().await.unwrap().get(&series);
        let before = count().await.unwrap_or_default();
        let foreign = request(method, path, *upgrades).header("origin", FOREIGN);
        is_refused(&relay.send(foreign).await.unwrap(), &place);
        assert_eq!(count().await, Some(before + 1.0), "{place}");

        let preflight = |origin| {
            Request::new(Method::OPTIONS, *path)
                .header("origin", origin)
                .header("access-control-request-method", method.as_str())
        };
        is_refused(&relay.send(preflight(FOREIGN)).await.unwrap(), &place);
        let answer = relay.send(preflight(LISTED)).await.unwrap();
        assert_eq!(answer.status.as_u16(), 204, "{place}");
        let allowed = answer.header("access-control-allow-origin");
        assert_eq!(allowed, LISTED, "{place}");
    }
    let job = relay.send(Request::get("/v1/jobs/j")).await.unwrap();
    assert_eq!(job.error_code(), "unknown_job", "a page published it");
}

/// What a browser sends for a page whose name was made to lead to this machine, and what a proxy sends that was put
/// in front of a relay without tokens.
const FROM_ELSEWHERE: &[&[(&str, &str)]] = &[
    &[("host", "evil.example:8080")],
    &[("host", "evil.example"), ("origin", "http://evil.example")],
    &[("x-forwarded-for", "203.0.113.7")],
];

#[tokio::test]
async fn a_relay_that_asks_nobody_who_they_are_answers_its_own_machine_alone() {
    let settings = settings().set("dialects.enabled", "video-generation");
    let relay = RelayServer::start(settings).await.unwrap();
    for (route, method, path, upgrades) in WAYS_IN {
        for headers in FROM_ELSEWHERE {
            for method in [method, &Method::OPTIONS] {
                let place = format!("{method} {path} {headers:?} {route}");
                let mut request = request(method, path, *upgrades);
                for (name, value) in *headers {
                    request = request.header(name, *value);
                }
                let answer = relay.send(request).await.unwrap();
                let answered = (answer.status.as_u16(), answer.error_code());
                assert_eq!(answered, (421, "foreign_host".to_owned()), "{place}");
                let message = answer.json()["error"]["message"].to_string();
                assert!(message.contains("Set auth.mode"), "{place}: {message}");
            }
        }
    }
    let job = relay.send(Request::get("/v1/jobs/j")).await.unwrap();
    assert_eq!(job.error_code(), "unknown_job", "somebody published it");
    assert!(
        relay.logs().contains("auth=\"anonymous\""),
        "{}",
        relay.logs()
    );
}

#[tokio::test]
async fn operators_on_loopback_ask_under_names_of_this_machine() {
    let relay = RelayServer::start(settings().set("auth.mode", "anonymous"))
        .await
        .unwrap();
    for path in ["/metrics", "/livez", "/readyz", "/status", "/refused", "/"] {
        for (host, foreign) in [("evil.example", true), ("localhost:9090", false)] {
            let request = Request::get(path).header("host", host);
            let answer = http::send(&relay.admin_address(), request).await.unwrap();
            let refused = answer.status.as_u16() == 421;
            assert_eq!(refused, foreign, "{path} {host}");
            if foreign {
                assert_eq!(answer.error_code(), "foreign_host", "{path}");
            }
        }
    }
    // Where it is said that everybody may, the name does not matter, and a page of this machine is one of this
    // machine only if it asks from there.
    for (host, origin, status) in [
        ("relay.example", "", 404),
        ("relay.example", "http://relay.example", 404),
        ("127.0.0.1:8080", "http://localhost:3000", 404),
        ("relay.example", "http://localhost:3000", 403),
    ] {
        let mut request = Request::get("/v1/jobs/j").header("host", host);
        if !origin.is_empty() {
            request = request.header("origin", origin);
        }
        let answer = relay.send(request).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{host} {origin}");
    }
}
