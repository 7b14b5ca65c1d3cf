//! Requests as libraries, proxies and other servers' clients write them, over HTTP: each is read for what it says.

use http::Method;
use relay_testkit::client::raw::Raw;
use relay_testkit::http::{Answer, Connection, Request};
use relay_testkit::relay::{RelayServer, Settings};
use serde_json::json;

use crate::identity::{of, token, with_tokens};
use crate::{SOON, settings};

const PAGE: &str = "https://app.example";

fn with_dialect() -> Settings {
    settings()
        .set("dialects.enabled", "video-generation")
        .set("http.allowed_origins", PAGE)
}

async fn answer(relay: &RelayServer, method: Method, path: &str) -> Answer {
    relay.send(Request::new(method, path)).await.unwrap()
}

/// What comes before the token is decided would be 401, what comes after 404: nobody knows the job.
async fn passes(relay: &RelayServer, path: &str, headers: &[(&str, String)]) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = relay.send(request).await.unwrap();
    assert_eq!(answer.error_code(), "unknown_job", "{path} {headers:?}");
}

#[tokio::test]
async fn a_token_is_found_whatever_stands_beside_it_and_however_it_is_spelled() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let token = token(&of("alice"));
    let bearer = || ("authorization", format!("Bearer {token}"));
    let path = "/v1/jobs/j";
    for headers in [
        vec![("cookie", format!("name=café; relay_token={token}"))],
        vec![("cookie", "relay_token=".to_owned()), bearer()],
        vec![("cookie", "café".to_owned()), bearer()],
        vec![("sec-websocket-protocol", "é".to_owned()), bearer()],
        vec![("authorization", "Basic é".to_owned()), bearer()],
    ] {
        passes(&relay, path, &headers).await;
    }
    passes(&relay, "/v1/jobs/j?token=", &[bearer()]).await;
    let dots = token.replace('.', "%2E");
    let all: String = token.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for spelled in [dots, all] {
        for query in [
            format!("?token={spelled}"),
            format!("?x=%ff&t%6Fken={spelled}"),
        ] {
            for path in ["/v1/jobs/j", "/v1/jobs/%6a/", "/%761/jobs/j"] {
                passes(&relay, &format!("{path}{query}"), &[]).await;
            }
        }
    }
}

#[tokio::test]
async fn a_poll_waits_no_longer_than_its_token_is_good() {
    let relay = RelayServer::start(with_tokens()).await.unwrap();
    let short = of("alice").expires_in(std::time::Duration::from_secs(2));
    let request = Request::get("/v1/poll?topic=job:j&wait=60").bearer(Some(&token(&short)));
    let answer = relay.send(request).await.unwrap();
    is_refused(&answer, 401, "token_expired", "a poll");
}

#[tokio::test]
async fn where_nobody_is_asked_no_credential_matters() {
    let relay = RelayServer::start(settings()).await.unwrap();
    passes(&relay, "/v1/jobs/j?token=", &[]).await;
    passes(&relay, "/v1/jobs/j?token=a&token=b", &[]).await;
    let long = format!("Bearer {}", "x".repeat(9000));
    for value in ["Bearer", "Bearer rubbish", &long] {
        passes(&relay, "/v1/jobs/j", &[("authorization", value.to_owned())]).await;
    }
    let mut client = relay_testkit::client::WebSocketClient::open(
        &relay.address(),
        "/v1/ws?auth=message&topic=job:j",
        &[],
    )
    .await
    .unwrap();
    client
        .until(SOON, "what was asked for", |frame| {
            frame.kind() == "subscribed"
        })
        .await
        .unwrap();
    client
        .send(&json!({"type": "auth", "token": ""}))
        .await
        .unwrap();
    client
        .until(SOON, "authenticated", |frame| {
            frame.kind() == "authenticated"
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_that_has_it_already_is_not_sent_it_again_however_it_says_so() {
    let relay = RelayServer::start(with_dialect()).await.unwrap();
    relay
        .publish("j", "alice", &json!({"status": "running"}))
        .await
        .unwrap();
    for path in ["/v1/jobs/j", "/api/v1/generations/j"] {
        let tag = answer(&relay, Method::GET, path).await;
        let tag = tag.header("etag").to_owned();
        let bare = tag.trim_matches('"');
        for lines in [
            vec![tag.clone()],
            vec!["*".to_owned()],
            vec![format!("W/{tag}")],
            vec![format!("\"a,b\", W/\"c\",{tag}")],
            vec!["\"x\"".to_owned(), format!("\"y\", {tag}")],
            vec![format!("\"é\", {tag}")],
            vec![bare.to_owned()],
        ] {
            let mut asked = Request::get(path);
            for line in &lines {
                asked = asked.header("if-none-match", line);
            }
            let told = relay.send(asked).await.unwrap();
            assert_eq!(told.status.as_u16(), 304, "{path} {lines:?}");
            assert_eq!(told.header("etag"), tag, "{path} {lines:?}");
        }
        for line in ["", "\"*\"", "\"x\"", &format!("\"x,{bare}\"")] {
            let asked = Request::get(path).header("if-none-match", line);
            let told = relay.send(asked).await.unwrap();
            assert_eq!(told.status.as_u16(), 200, "{path} {line}");
        }
    }
}

/// The shape of every refusal, whoever refuses.
fn is_refused(answer: &Answer, status: u16, code: &str, place: &str) {
    let answered = (answer.status.as_u16(), answer.error_code());
    assert_eq!(answered, (status, code.to_owned()), "{place}");
    assert_eq!(answer.header("content-type"), "application/json", "{place}");
    let sniffed = answer.header("x-content-type-options");
    assert_eq!(sniffed, "nosniff", "{place}");
    assert!(answer.json()["error"]["message"].is_string(), "{place}");
}

#[tokio::test]
async fn every_refusal_has_one_shape() {
    let relay = RelayServer::start(with_dialect()).await.unwrap();
    let (get, post) = (Method::GET, Method::POST);
    for (method, path, status, code) in [
        (&get, "/v1/jobs/%E4", 400, "bad_name"),
        (&get, "/v1/jobs/%", 400, "bad_name"),
        (&get, "/v1/jobs/a%2Fb", 400, "bad_name"),
        (&post, "/v1/jobs/%E4", 400, "bad_name"),
        (&Method::PATCH, "/v1/jobs/%E4", 400, "bad_name"),
        (&post, "/v1/jobs/a/milestones/%ff", 400, "bad_name"),
        (&post, "/v1/jobs/%ff/milestones/m", 400, "bad_name"),
        (&post, "/v1/jobs/a?owner=a&owner=a", 400, "bad_query"),
        (&post, "/v1/jobs/a?owner=a&%6Fwner=b", 400, "bad_query"),
        (&post, "/v1/jobs/a?owner=%ff", 400, "bad_name"),
        (&get, "/v1/sse?topic=job:%ff", 400, "bad_topic"),
        (&get, "/v1/sse?topic", 400, "bad_topic"),
        (&get, "/api/v1/generations/%E4", 400, "bad_topic"),
        (&get, "/v1/jobs/", 404, "not_found"),
        (&get, "/v1/nowhere/%E4", 404, "not_found"),
        (&get, "/%", 404, "not_found"),
        (&get, "/v1/publish", 405, "method_not_allowed"),
        (&get, "/v1/ws/", 426, "upgrade_required"),
        (&Method::HEAD, "/v1/nowhere", 404, ""),
    ] {
        let place = format!("{method} {path}");
        let answer = answer(&relay, method.clone(), path).await;
        match code {
            "" => assert_eq!(answer.status.as_u16(), status, "{place}"),
            // This dialect has a shape of its own.
            _ if path.starts_with("/api") => assert_eq!(answer.status.as_u16(), status),
            code => is_refused(&answer, status, code, &place),
        }
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_same_shape() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let long = "x".repeat(20_000);
    for (bytes, status, code) in [
        ("GET  / x\r\n\r\n".to_owned(), 400, "bad_request"),
        ("\u{1}\u{2}\r\n\r\n".to_owned(), 400, "bad_request"),
        (
            "GET / HTTP/1.1\r\nhost: localhost\r\na b: c\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: localhost\r\ncookie: {long}\r\n\r\n"),
            431,
            "head_too_large",
        ),
    ] {
        // Behind an answer on the same connection, as well as first.
        for before in ["", "GET /v1/jobs/j HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
            let mut raw = Raw::connect(&relay.address()).await.unwrap();
            if !before.is_empty() {
                raw.send(before).await.unwrap();
                raw.read_until("unknown_job", SOON).await;
            }
            raw.send(&bytes).await.unwrap();
            let said = raw.read_to_end(SOON).await.unwrap();
            let said = String::from_utf8(said).unwrap();
            let at = said.find("HTTP/1.1 4").unwrap();
            let said = &said[at..];
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
            let (_, body) = said.split_once("\r\n\r\n").unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["error"]["code"], code, "{said}");
        }
    }
}

#[tokio::test]
async fn a_body_that_would_have_to_be_unpacked_is_refused_with_what_is_taken() {
    let relay = RelayServer::start(with_dialect()).await.unwrap();
    let state = r#"{"job_id":"j","status":"running"}"#;
    for path in ["/v1/jobs/j", "/v1/publish", "/v1/jobs/j/milestones/m"] {
        for (encodings, status) in [
            (&["gzip"][..], 415),
            (&["identity", "br"], 415),
            (&["identity, x-gzip"], 415),
            (&["identity"], 202),
            (&["", "Identity, identity"], 202),
        ] {
            let mut request = Request::new(Method::POST, path).body(state);
            for encoding in encodings {
                request = request.header("content-encoding", *encoding);
            }
            let answer = relay.send(request).await.unwrap();
            let place = format!("{path} {encodings:?}");
            assert_eq!(answer.status.as_u16(), status, "{place}");
            if status == 415 {
                is_refused(&answer, 415, "unsupported_encoding", &place);
                assert_eq!(answer.header("accept-encoding"), "identity");
            }
        }
    }
}

/// Headers that a page can read without being let, or that are not meant for it.
const NOT_EXPOSED: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "sec-websocket-version",
    "x-content-type-options",
    "transfer-encoding",
    "upgrade",
    "vary",
    "x-accel-buffering",
];

#[tokio::test]
async fn a_page_of_another_origin_can_read_every_header_that_says_something() {
    let settings = with_dialect().set("limits.connections_per_address", "1");
    let relay = RelayServer::start(settings).await.unwrap();
    relay
        .publish("j", "alice", &json!({"status": "running"}))
        .await
        .unwrap();
    let mut stream = Connection::open(&relay.address()).await.unwrap();
    let asked = Request::get("/v1/sse?topic=job:j").header("origin", PAGE);
    let opened = stream.start(asked).await.unwrap();
    let mut heads = vec![("stream".to_owned(), opened.headers().clone())];
    let (get, put) = (Method::GET, Method::PUT);
    for (method, path) in [
        (&get, "/v1/jobs/j"),
        (&get, "/v1/jobs/unknown"),
        (&get, "/v1/ws"),
        (&put, "/v1/ws"),
        (&put, "/v1/sse"),
        (&put, "/v1/jobs/j"),
        (&get, "/v1/poll?topic=job:j&wait=0"),
        (&get, "/nowhere"),
        (&get, "/api/v1/generations/j"),
        (&put, "/api/v1/generations/j"),
        (&get, "/api/health"),
        (&get, "/ws/generations/j"),
        (&put, "/ws/generations/j"),
        (&get, "/socket.io/?EIO=4&transport=polling"),
        (&get, "/socket.io/?EIO=4&transport=polling&sid=x"),
        (&put, "/socket.io/?EIO=4&transport=polling"),
        (&Method::OPTIONS, "/v1/jobs/j"),
        (&Method::POST, "/v1/jobs/j"),
    ] {
        let request = Request::new(method.clone(), path).header("origin", PAGE);
        let answer = relay.send(request).await.unwrap();
        heads.push((format!("{method} {path}"), answer.headers));
    }
    let packed = Request::new(Method::POST, "/v1/publish").header("content-encoding", "gzip");
    let packed = relay.send(packed.header("origin", PAGE)).await.unwrap();
    heads.push(("415".to_owned(), packed.headers));
    let mut seen = std::collections::BTreeSet::new();
    for (place, head) in heads {
        assert_eq!(head["access-control-allow-origin"], PAGE, "{place}");
        let exposed = head["access-control-expose-headers"].to_str().unwrap();
        let exposed = exposed.to_ascii_lowercase();
        for name in head.keys() {
            let known = NOT_EXPOSED.contains(&name.as_str());
            let listed = exposed.split(", ").any(|each| each == name.as_str());
            assert!(known || listed, "{name} of {place}");
            if listed {
                seen.insert(name.as_str().to_owned());
            }
        }
    }
    let expected = [
        "accept-encoding",
        "allow",
        "etag",
        "retry-after",
        "x-request-id",
    ];
    assert!(expected.iter().all(|name| seen.contains(*name)), "{seen:?}");
}

#[tokio::test]
async fn a_method_that_a_path_does_not_take_is_answered_with_those_it_takes() {
    let relay = RelayServer::start(with_dialect()).await.unwrap();
    for (path, allow) in [
        ("/v1/ws", "GET, HEAD, OPTIONS"),
        ("/v1/sse", "GET, HEAD, OPTIONS"),
        ("/v1/poll/", "GET, HEAD, OPTIONS"),
        ("/v1/jobs/j", "GET, HEAD, POST, PATCH, DELETE, OPTIONS"),
        ("/v1/jobs/j/milestones/m", "POST, OPTIONS"),
        ("/v1/publish", "POST, OPTIONS"),
        ("/ws/generations/j", "GET, HEAD, OPTIONS"),
        ("/api/v1/generations/j", "GET, HEAD, OPTIONS"),
        ("/api/health", "GET, HEAD, OPTIONS"),
        ("/socket.io/?EIO=4&transport=polling", "GET, POST, OPTIONS"),
        ("/socket.io", "GET, POST, OPTIONS"),
    ] {
        for method in [Method::PUT, Method::PATCH, Method::DELETE] {
            let answered = answer(&relay, method.clone(), path).await;
            let is_taken = allow.split(", ").any(|each| each == method.as_str());
            let is_refused = answered.status.as_u16() == 405;
            assert_eq!(is_refused, !is_taken, "{method} {path}");
            if is_refused {
                assert_eq!(answered.header("allow"), allow, "{method} {path}");
            }
        }
        let told = answer(&relay, Method::OPTIONS, path).await;
        let told = (told.status.as_u16(), told.header("allow").to_owned());
        assert_eq!(told, (204, allow.to_owned()), "OPTIONS {path}");
    }
}

#[tokio::test]
async fn a_head_is_what_a_get_would_begin_with() {
    let relay = RelayServer::start(with_dialect()).await.unwrap();
    relay
        .publish("j", "alice", &json!({"status": "running"}))
        .await
        .unwrap();
    for (path, status) in [
        ("/v1/jobs/j", 200),
        ("/v1/poll?topic=job:j", 200),
        ("/v1/poll", 400),
        ("/v1/sse?topic=job:j", 200),
        ("/v1/sse?topic=jobs", 400),
        ("/v1/ws", 426),
        ("/api/v1/generations/j", 200),
        ("/api/health", 200),
        ("/ws/generations/j", 426),
    ] {
        let head = answer(&relay, Method::HEAD, path).await;
        assert_eq!(head.status.as_u16(), status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        let mut connection = Connection::open(&relay.address()).await.unwrap();
        let got = connection.start(Request::get(path)).await.unwrap();
        assert_eq!(got.status().as_u16(), status, "{path}");
        for name in ["content-type", "etag", "retry-after", "cache-control"] {
            assert!(got.headers().contains_key("date"), "{path}");
            assert_eq!(head.headers.get(name), got.headers().get(name), "{path}");
        }
    }
    let open = relay.metrics().await.unwrap().sum("relay_connections", "");
    assert!(open <= 1.0, "a HEAD keeps nothing open: {open}");
}

#[tokio::test]
async fn a_place_in_another_servers_stream_is_no_place_here() {
    let relay = RelayServer::start(settings()).await.unwrap();
    let state = json!({"status": "running", "progress": 7});
    let cursor = relay.publish("j", "alice", &state).await.unwrap();
    let stream = async |query: &str, header: &str| {
        let mut raw = Raw::connect(&relay.address()).await.unwrap();
        let line = match header {
            "" => String::new(),
            header => format!("last-event-id: {header}\r\n"),
        };
        raw.send(format!(
            "GET /v1/sse?topic=job:j{query} HTTP/1.1\r\nhost: localhost\r\n{line}\r\n"
        ))
        .await
        .unwrap();
        let begun = raw.read_until("\"type\":\"subscribed\"", SOON).await;
        let recovered = begun.contains("\"recovered\":true");
        (recovered, begun.contains("\"jobs\":1"))
    };
    let (snapshot, resumed) = ((false, true), (true, false));
    for header in ["42", "é", "AQ", "b7f6-0001"] {
        assert_eq!(stream("", header).await, snapshot, "{header}");
    }
    assert_eq!(stream("&lastEventId=42", "").await, snapshot);
    assert_eq!(stream("", &cursor).await, resumed);
    assert_eq!(stream(&format!("&cursor={cursor}"), "42").await, resumed);
    for name in ["lastEventId", "Last-Event-ID", "lastEventID"] {
        assert_eq!(stream(&format!("&{name}={cursor}"), "").await, resumed);
    }
    let strict = answer(&relay, Method::GET, "/v1/sse?topic=job:j&cursor=42").await;
    is_refused(&strict, 400, "bad_cursor", "cursor=42");
}

#[tokio::test]
async fn what_else_a_client_could_upgrade_to_is_ignored() {
    let relay = RelayServer::start(with_dialect()).await.unwrap();
    for path in [
        "/socket.io/?EIO=4&transport=polling",
        "/socket.io/?EIO=4&transport=polling&sid=",
        "/api/health",
        "/v1/poll?topic=job:j&wait=0",
    ] {
        let request = Request::get(path)
            .header("connection", "Upgrade, HTTP2-Settings")
            .header("upgrade", "h2c")
            .header("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA");
        let answer = relay.send(request).await.unwrap();
        assert_eq!(answer.status.as_u16(), 200, "{path} {}", answer.text());
    }
}
