//! The gate, asked with requests as they come: one table for all kinds of routes, then what each kind has of its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::*;
use crate::config::Config;
use crate::serve::settings::test_node;

const KEY: &str = "a secret that is long enough for HS256 to be content";
/// The page that may, the page that may not, and the page that the relay's own host served.
const LISTED: &str = "https://app.example";
const FOREIGN: &str = "https://elsewhere.example";
const OWN: &str = "https://relay.example";

fn gate(origins: &str, more: &[(&str, &str)]) -> Gate {
    let keys = [
        ("RELAY__AUTH__MODE", "jwt"),
        ("RELAY__AUTH__KEY", KEY),
        ("RELAY__HTTP__LISTEN", "0.0.0.0:8080"),
        ("RELAY__HTTP__ALLOWED_ORIGINS", origins),
    ];
    let keys = keys.iter().chain(more);
    let keys = keys.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Gate::new(test_node(&Config::load(None, keys).unwrap()))
}

fn token(user: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let end = (now + Duration::from_secs(3600)).as_secs();
    let claims = json!({ "sub": user, "exp": end });
    let key = EncodingKey::from_secret(KEY.as_bytes());
    jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap()
}

fn request(method: Method, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri("/somewhere");
    request = request.header("host", "relay.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// One route of each kind.
fn routes() -> [Route<'static>; 4] {
    [
        Route::watch("/v1/ws"),
        Route::api("/v1/jobs/{id}", "GET"),
        Route::dialect("/api/{job}", true),
        Route::engine_io("/socket.io", true),
    ]
}

/// Leads a request through the gate, on to a handler that answers with the user's name.
fn pass(gate: &Gate, route: Route<'_>, request: &Request<()>) -> Response<Body> {
    let (visit, guest) = match gate.receive(Head::of(request), route) {
        Arrival::Preflight(answer) => return answer,
        Arrival::Visit(visit, guest) => (visit, guest),
    };
    let identity = guest.and_then(|guest| Ok(gate.identify(guest, Head::of(request), None)?));
    let answered: Result<Outcome, ApiError> = identity.map(|identity| {
        let mut answer = Response::new(Body::empty());
        let user = HeaderValue::from_str(identity.user.unwrap().as_str()).unwrap();
        answer.headers_mut().insert("user", user);
        Outcome::Answer(answer)
    });
    let Outcome::Answer(answer) = gate.conclude(visit, answered, coded);
    answer
}

/// A refusal with its code where it can be read at once.
fn coded(error: ApiError) -> Response<Body> {
    let code = HeaderValue::from_static(error.code());
    let mut answer = error.into_answer();
    answer.headers_mut().insert("code", code);
    answer
}

fn header<'a>(answer: &'a Response<Body>, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

fn counted(gate: &Gate, series: &str) -> u64 {
    let text = gate.node.telemetry.scrape(&gate.node.hub.stats()).unwrap();
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |count| count.trim().parse().unwrap())
}

/// Whose page, with which credential, by which method: what comes of it, and what the page may read of it.
#[test]
fn every_kind_of_route_decides_alike() {
    let alice = token("alice");
    let bearer = format!("Bearer {alice}");
    let cookie = format!("relay_token={alice}");
    let (bearer, cookie) = (("authorization", &*bearer), ("cookie", &*cookie));
    let (none, bad) = (("x", ""), ("authorization", "Bearer rubbish"));
    let (get, post) = (Method::GET, Method::POST);
    let listed = gate(LISTED, &[]);
    let open = gate("*", &[]);
    for (gate, origin, shown, method, status, result, allowed) in [
        // A program names no origin, and needs a credential like everybody.
        (&listed, "", none, &get, 401, "unauthenticated", ""),
        (&listed, "", bad, &get, 401, "token_malformed", ""),
        (&listed, "", bearer, &get, 200, "alice", ""),
        (&listed, "", cookie, &post, 200, "alice", ""),
        // A page that may: its refusals can be read too.
        (&listed, LISTED, none, &get, 401, "unauthenticated", LISTED),
        (&listed, LISTED, bad, &post, 401, "token_malformed", LISTED),
        (&listed, LISTED, bearer, &get, 200, "alice", LISTED),
        (&listed, LISTED, cookie, &get, 200, "alice", LISTED),
        (&listed, OWN, cookie, &post, 200, "alice", OWN),
        // A page that may not, whatever it shows.
        (&listed, FOREIGN, none, &get, 403, "foreign_origin", ""),
        (&listed, FOREIGN, bearer, &get, 403, "foreign_origin", ""),
        (&listed, FOREIGN, cookie, &post, 403, "foreign_origin", ""),
        // Any page may, and none by the cookie that the browser adds.
        (&open, FOREIGN, bearer, &get, 200, "alice", "*"),
        (&open, FOREIGN, cookie, &get, 401, "unauthenticated", "*"),
    ] {
        for route in routes() {
            let mut headers = vec![shown];
            headers.extend((!origin.is_empty()).then_some(("origin", origin)));
            let request = request(method.clone(), &headers);
            let answer = pass(gate, route, &request);
            let said = [header(&answer, "user"), header(&answer, "code")].concat();
            let answered = (answer.status().as_u16(), said.as_str());
            let place = format!("{route:?} {method} {headers:?}");
            assert_eq!(answered, (status, result), "{place}");
            let cors = header(&answer, "access-control-allow-origin");
            assert_eq!(cors, allowed, "{place}");
            // A cache must not hand it to another page.
            assert_eq!(header(&answer, "vary"), "Origin", "{place}");
            let with_cookies = header(&answer, "access-control-allow-credentials") == "true";
            assert_eq!(with_cookies, allowed.starts_with("http"), "{place}");
        }
    }
}

#[test]
fn a_preflight_is_answered_by_its_origin_alone_and_counts_as_nothing() {
    let gate = gate(LISTED, &[]);
    for route in routes() {
        let asks = |origin| {
            let method = ("access-control-request-method", "GET");
            let request = request(Method::OPTIONS, &[("origin", origin), method]);
            pass(&gate, route, &request)
        };
        let answer = asks(LISTED);
        assert_eq!(answer.status(), StatusCode::NO_CONTENT, "{route:?}");
        assert_eq!(header(&answer, "access-control-allow-origin"), LISTED);
        assert!(header(&answer, "allow").starts_with("GET"), "{route:?}");
        assert_eq!(header(&answer, "vary"), "Origin", "{route:?}");
        let answer = asks(FOREIGN);
        assert_eq!(header(&answer, "vary"), "Origin", "{route:?}");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{route:?}");
        assert_eq!(header(&answer, "access-control-allow-origin"), "");
        for code in [204, 403] {
            let series = format!(
                "relay_http_requests_total{{code=\"{code}\",route=\"{}\"}}",
                route.label
            );
            assert_eq!(counted(&gate, &series), 0, "{route:?}");
        }
    }
}

/// A request for a document is an answer less, not a connection less.
#[test]
fn what_would_have_been_a_connection_counts_as_a_refused_one() {
    for (route, headers, opens) in [
        (Route::watch("/v1/ws"), vec![], true),
        (Route::watch("/v1/poll"), vec![], true),
        (Route::engine_io("/socket.io", false), vec![], true),
        (
            Route::dialect("/d", false),
            vec![("upgrade", "h2c, WebSocket")],
            true,
        ),
        (Route::dialect("/d", false), vec![("upgrade", "h2c")], false),
        (Route::dialect("/d", false), vec![], false),
        (Route::api("/v1/jobs/{id}", "GET"), vec![], false),
    ] {
        let gate = gate(LISTED, &[]);
        let foreign = [headers.clone(), vec![("origin", FOREIGN)]].concat();
        pass(&gate, route, &request(Method::GET, &foreign));
        pass(&gate, route, &request(Method::GET, &headers));
        for (code, status) in [("foreign_origin", 403), ("unauthenticated", 401)] {
            let refused = format!("relay_connections_refused_total{{reason=\"{code}\"}}");
            assert_eq!(counted(&gate, &refused), u64::from(opens), "{route:?}");
            let answered = format!(
                "relay_http_requests_total{{code=\"{status}\",route=\"{}\"}}",
                route.label
            );
            assert_eq!(counted(&gate, &answered), 1, "{route:?}");
        }
    }
}

#[test]
fn a_request_id_is_in_every_answer_of_a_route_that_has_one() {
    let gate = gate(LISTED, &[]);
    for route in routes() {
        for origin in [LISTED, FOREIGN] {
            let named = [("origin", origin), ("x-request-id", "req-1.a_b")];
            let named = pass(&gate, route, &request(Method::GET, &named));
            let forged = [("origin", origin), ("x-request-id", "<script>")];
            let forged = pass(&gate, route, &request(Method::GET, &forged));
            let ids = (
                header(&named, "x-request-id"),
                header(&forged, "x-request-id").len(),
            );
            let expected = match route.request_id {
                true => ("req-1.a_b", 32),
                false => ("", 0),
            };
            assert_eq!(ids, expected, "{route:?} {origin}");
            let sniffed = header(&named, "x-content-type-options");
            assert_eq!(sniffed, "nosniff", "{route:?} {origin}");
        }
    }
}

fn guest(gate: &Gate, request: &Request<()>) -> Guest {
    match gate.receive(Head::of(request), Route::watch("/v1/ws")) {
        Arrival::Visit(_, guest) => guest.unwrap(),
        Arrival::Preflight(_) => panic!("a preflight"),
    }
}

#[test]
fn a_dialects_cookie_is_looked_for_in_place_of_everybodys() {
    let gate = gate(LISTED, &[]);
    let cookies = format!("relay_token={}; theirs={}", token("alice"), token("bob"));
    let request = request(Method::GET, &[("cookie", &cookies)]);
    let who = |cookie| {
        let identity = gate.identify(guest(&gate, &request), Head::of(&request), cookie);
        identity.unwrap().user.unwrap().to_string()
    };
    assert_eq!(
        (who(None), who(Some("theirs"))),
        ("alice".into(), "bob".into())
    );
}

#[test]
fn a_token_that_comes_later_is_waited_for_and_a_bad_one_is_not() {
    let gate = gate(LISTED, &[]);
    let identified = |shown: (&'static str, &str)| {
        let request = request(Method::GET, &[shown]);
        gate.identify_if_shown(guest(&gate, &request), Head::of(&request), None)
            .map(|identity| identity.map(|identity| identity.user.unwrap().to_string()))
            .map_err(|refused| refused.code)
    };
    let good = format!("Bearer {}", token("alice"));
    assert_eq!(identified(("x", "")), Ok(None));
    assert_eq!(
        identified(("authorization", &good)),
        Ok(Some("alice".into()))
    );
    let bad = identified(("authorization", "Bearer rubbish"));
    assert_eq!(bad, Err("token_malformed"));
}

#[test]
fn a_request_goes_to_one_host() {
    let gate = gate(LISTED, &[]);
    for (hosts, version, good) in [
        (&["relay.example"][..], Version::HTTP_11, true),
        (&["relay.example:8080"], Version::HTTP_11, true),
        (&["[::1]:8080"], Version::HTTP_11, true),
        (&[""], Version::HTTP_11, true),
        (&[], Version::HTTP_10, true),
        (&[], Version::HTTP_11, false),
        (&["a", "a"], Version::HTTP_11, false),
        (&["a", "b"], Version::HTTP_10, false),
        (&["a, b"], Version::HTTP_11, false),
        (&["é"], Version::HTTP_11, false),
        (&["user@a"], Version::HTTP_11, false),
        (&["a/b"], Version::HTTP_11, false),
    ] {
        for route in routes() {
            for method in [Method::GET, Method::OPTIONS] {
                let mut request = Request::builder().method(&method).version(version);
                for host in hosts {
                    request =
                        request.header("host", HeaderValue::from_bytes(host.as_bytes()).unwrap());
                }
                let answer = pass(&gate, route, &request.body(()).unwrap());
                let refused = answer.status() == StatusCode::BAD_REQUEST;
                assert_eq!(refused, !good, "{method} {hosts:?} {version:?} {route:?}");
            }
        }
    }
}

#[test]
fn where_nobody_is_asked_no_credential_is_looked_at() {
    let keys = [("RELAY__AUTH__MODE", "anonymous")].map(|(key, value)| (key.into(), value.into()));
    let config = Config::load(None, keys.into_iter()).unwrap();
    let gate = Gate::new(test_node(&config));
    let long = format!("Bearer {}", "x".repeat(10_000));
    for headers in [
        vec![],
        vec![("authorization", "Bearer rubbish")],
        vec![("authorization", "Bearer a"), ("authorization", "Bearer b")],
        vec![("authorization", &*long)],
        vec![("sec-websocket-protocol", "relay.token.a, relay.token.b")],
        vec![("cookie", "relay_token=a; relay_token=b")],
    ] {
        let request = request(Method::GET, &headers);
        let head = Head::of(&request);
        let guest = guest(&gate, &request);
        assert_eq!(gate.identify(guest, head, None), Ok(Identity::anonymous()));
        let shown = gate.identify_if_shown(guest, head, None);
        assert_eq!(shown, Ok(Some(Identity::anonymous())), "{headers:?}");
    }
}

#[test]
fn a_place_is_counted_until_it_is_given_back() {
    let gate = gate(LISTED, &[("RELAY__LIMITS__CONNECTIONS_PER_USER", "1")]);
    let guest = guest(&gate, &request(Method::GET, &[]));
    let alice = Name::parse("alice").unwrap();
    let place = gate.admit(guest, Some(&alice)).unwrap();
    let refused = gate.admit(guest, Some(&alice)).unwrap_err();
    assert_eq!(
        (refused.status().as_u16(), refused.code()),
        (429, "user_limit")
    );
    drop(place);
    assert!(gate.admit(guest, Some(&alice)).is_ok());
}

#[tokio::test]
async fn topics_of_others_may_not_be_watched_and_jobs_that_nobody_knows_may() {
    let gate = gate(LISTED, &[]);
    let request = request(
        Method::GET,
        &[("authorization", &format!("Bearer {}", token("alice")))],
    );
    let identity = gate.identify(guest(&gate, &request), Head::of(&request), None);
    let identity = identity.unwrap();
    let may = async |topic: &str| {
        let topics = [
            Topic::parse("user:alice").unwrap(),
            Topic::parse(topic).unwrap(),
        ];
        let may = gate.may_watch(&identity, &topics).await;
        may.map_err(|error| error.code())
    };
    assert_eq!(may("job:not-begun").await, Ok(()));
    assert_eq!(may("group:g").await, Ok(()));
    assert_eq!(may("user:bob").await, Err("forbidden"));
}
