//! Origins as browsers send them, against listeners as people configure them.

use std::net::SocketAddr;

use super::*;

fn policy(listen: &str, allowed: &[&str]) -> Policy {
    let listen: SocketAddr = listen.parse().unwrap();
    let allowed: Vec<_> = allowed.iter().map(|o| o.parse().unwrap()).collect();
    Policy::new(&allowed, listen.ip())
}

fn request(host: &str, origin: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, host.parse().unwrap());
    if let Some(origin) = origin {
        headers.insert(header::ORIGIN, origin.parse().unwrap());
    }
    headers
}

fn check(policy: &Policy, host: &str, origin: &str) -> Result<Standing, &'static str> {
    policy
        .check(&here(), &request(host, Some(origin)), None)
        .map_err(|refused| refused.code)
}

fn here() -> Uri {
    Uri::from_static("/")
}

const PUBLIC: &str = "0.0.0.0:8080";
const LOCAL: &str = "127.0.0.1:8080";

#[test]
fn a_request_without_an_origin_passes() {
    let standing = policy(PUBLIC, &[]).check(&here(), &request("relay.example", None), None);
    assert_eq!(standing, Ok(Standing::None));
}

#[test]
fn a_page_of_the_own_host_passes_whoever_ends_tls() {
    let policy = policy(PUBLIC, &[]);
    for (host, origin) in [
        ("relay.example", "https://relay.example"),
        ("relay.example", "http://relay.example"),
        ("relay.example:443", "https://relay.example"),
        ("Relay.Example", "https://relay.example"),
        ("relay.example:8080", "http://relay.example:8080"),
        ("[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
    ] {
        assert_eq!(check(&policy, host, origin), Ok(Standing::Own), "{origin}");
    }
}

#[test]
fn a_foreign_page_is_refused_with_its_name_and_the_key_to_set() {
    let policy = policy(PUBLIC, &["https://app.example"]);
    for origin in [
        "https://evil.example",
        "https://app.example.evil.example",
        "https://app.example:8443",
        "http://app.example",
        "https://relay.example:8443",
        "http://localhost:3000",
        "null",
        "",
        "https://app.example/",
        "https://app.example@evil.example",
        "https://*.example",
    ] {
        let got = check(&policy, "relay.example", origin);
        assert_eq!(got, Err("foreign_origin"), "{origin}");
    }
    let refused = policy
        .check(
            &here(),
            &request("relay.example", Some("https://evil.example")),
            None,
        )
        .unwrap_err();
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.message.contains("https://evil.example"));
    assert!(refused.message.contains("http.allowed_origins"));
    assert_eq!(refused.www_authenticate(), None);
}

#[test]
fn an_app_with_a_scheme_of_its_own_is_no_page_of_the_host_it_names() {
    let got = check(&policy(PUBLIC, &[]), "localhost", "capacitor://localhost");
    assert_eq!(got, Err("foreign_origin"));
}

#[test]
fn two_origins_in_one_request_are_refused() {
    let mut headers = request("relay.example", Some("https://relay.example"));
    headers.append(header::ORIGIN, "https://evil.example".parse().unwrap());
    assert!(policy(PUBLIC, &[]).check(&here(), &headers, None).is_err());
}

#[test]
fn a_listed_origin_passes() {
    let policy = policy(PUBLIC, &["https://app.example", "capacitor://localhost"]);
    for origin in [
        "https://app.example",
        "https://app.example:443",
        "capacitor://localhost",
    ] {
        let got = check(&policy, "relay.example", origin);
        assert_eq!(got, Ok(Standing::Listed), "{origin}");
    }
}

#[test]
fn on_a_loopback_listener_every_local_page_passes() {
    for listen in [LOCAL, "[::1]:8080"] {
        let policy = policy(listen, &[]);
        for origin in [
            "http://localhost:3000",
            "http://127.0.0.1:5173",
            "http://[::1]:3000",
            "http://app.localhost",
        ] {
            let got = check(&policy, "127.0.0.1:8080", origin);
            assert_eq!(got, Ok(Standing::Loopback), "{origin}");
        }
        let got = check(&policy, "127.0.0.1:8080", "http://localhost.evil.example");
        assert_eq!(got, Err("foreign_origin"));
    }
}

#[test]
fn a_star_lets_any_page_in_but_without_cookies() {
    let policy = policy(PUBLIC, &["*"]);
    for origin in ["https://any.example", "null"] {
        let standing = check(&policy, "relay.example", origin).unwrap();
        assert_eq!(standing, Standing::Anyone);
        assert!(!standing.may_use_cookie());
    }
    let own = check(&policy, "relay.example", "https://relay.example").unwrap();
    assert!(own.may_use_cookie());
}

fn answer(policy: &Policy, origin: Option<&str>) -> HeaderMap {
    let request = request("relay.example", origin);
    let standing = policy.check(&here(), &request, None).unwrap();
    policy.response_headers(standing, &request).collect()
}

#[test]
fn an_allowed_page_may_read_the_answer() {
    let policy = policy(PUBLIC, &["https://app.example"]);
    let headers = answer(&policy, Some("https://app.example"));
    assert_eq!(
        headers[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        "https://app.example"
    );
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
    assert_eq!(headers[header::VARY], "Origin");
    let headers = answer(&policy, None);
    assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    assert_eq!(headers[header::VARY], "Origin");
}

#[test]
fn any_page_may_read_the_answer_under_a_star_but_never_with_credentials() {
    let headers = answer(&policy(PUBLIC, &["*"]), Some("https://any.example"));
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
}

#[test]
fn a_preflight_is_answered_with_what_a_page_may_do() {
    let answer = preflight(&request("relay.example", Some("https://app.example")));
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let methods = &answer.headers()[header::ACCESS_CONTROL_ALLOW_METHODS];
    assert!(methods.to_str().unwrap().contains("PATCH"));
    let allowed = &answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS];
    assert!(allowed.to_str().unwrap().contains("Authorization"));
}

#[test]
fn regression_a_page_may_send_headers_of_its_own() {
    let allowed = |asked: &[&str]| {
        let mut request = request("relay.example", Some("https://app.example"));
        for line in asked {
            let asked = HeaderValue::from_bytes(line.as_bytes()).unwrap();
            request.append(header::ACCESS_CONTROL_REQUEST_HEADERS, asked);
        }
        let answer = preflight(&request);
        let allowed = &answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS];
        allowed.to_str().unwrap().to_owned()
    };
    let both = "x-client-version, x-request-id";
    for asked in [
        &["x-client-version,x-request-id"][..],
        &["x-client-version", "x-request-id"],
        &["x-client-version, é, a:b, x-request-id,"],
    ] {
        assert_eq!(allowed(asked), both, "{asked:?}");
    }
    for nonsense in ["", "a:b", &"x".repeat(2000)] {
        let allowed = allowed(&[nonsense]);
        assert!(allowed.starts_with("Authorization"), "{nonsense}");
    }
}

/// The headers that PROTOCOL names, of answers as of requests.
#[test]
fn every_header_that_the_protocol_names_can_be_read_by_a_page() {
    // What pages send, what is for their browser, and what they can read without being let.
    const OTHERS: &[&str] = &[
        "Accept-Language",
        "Cache-Control",
        "Content-Encoding",
        "Content-Length",
        "Content-Type",
        "Idempotency-Key",
        "If-None-Match",
        "Last-Event-ID",
        "Sec-WebSocket-Protocol",
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let protocol = std::fs::read_to_string(root.join("PROTOCOL.md")).unwrap();
    let exposed = EXPOSE_HEADERS;
    let exposed: Vec<_> = exposed.to_str().unwrap().split(", ").collect();
    let capital =
        |part: &str| part.len() > 1 && part.starts_with(|each: char| each.is_ascii_uppercase());
    let known = |each: char| each.is_ascii_alphanumeric() || each == '-';
    let words = protocol.split(|each: char| !known(each));
    let named = words.filter(|word| {
        let mut parts = word.split('-');
        matches!(*word, "ETag" | "Allow") || (word.contains('-') && parts.all(capital))
    });
    let mut seen = 0;
    for name in named.filter(|name| !OTHERS.contains(name) && *name != "Server-Sent") {
        assert!(exposed.contains(&name), "{name}");
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn what_is_no_origin_is_told_why() {
    for (text, says) in [
        ("app.example.com", "https://app.example.com"),
        ("https://app.example/", "from the slash on"),
        ("https://*.example", "a star"),
        ("https://", "not an origin"),
        ("https://a b", "not an origin"),
        ("https://host:99999", "not an origin"),
        ("null", "not an origin"),
    ] {
        let error = text.parse::<AllowedOrigin>().unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn an_origin_reads_back_what_it_writes() {
    for text in [
        "https://app.example",
        "http://localhost:3000",
        "http://[::1]:8080",
        "*",
    ] {
        let allowed: AllowedOrigin = text.parse().unwrap();
        assert_eq!(allowed.to_string(), text);
    }
}

#[test]
fn where_the_scheme_is_known_a_page_of_the_other_one_is_not_the_relays_own() {
    let policy = policy(PUBLIC, &["http://app.example"]);
    let host = "relay.example";
    for (origin, is_secure, passes) in [
        ("https://relay.example", Some(true), true),
        ("http://relay.example", Some(true), false),
        ("http://relay.example:80", Some(false), true),
        ("https://relay.example", Some(false), false),
        // What is listed is listed.
        ("http://app.example", Some(true), true),
    ] {
        let checked = policy.check(&here(), &request(host, Some(origin)), is_secure);
        assert_eq!(checked.is_ok(), passes, "{origin} {is_secure:?}");
        if let Err(refused) = checked {
            assert!(refused.message.contains("as the proxy says"), "{refused}");
        }
    }
}

#[test]
fn a_page_of_the_visitors_machine_is_not_one_of_this_machine() {
    let policy = policy(LOCAL, &[]);
    let page = "http://localhost:3000";
    // The name that a proxy passes on.
    assert_eq!(check(&policy, "relay.example", page), Err("foreign_origin"));
    // A proxy that asks under the relay's own address, as nginx does unless it is told otherwise.
    for page in [page, "http://127.0.0.1:8080"] {
        let mut headers = request("127.0.0.1:8080", Some(page));
        assert!(policy.check(&here(), &headers, None).is_ok(), "{page}");
        headers.insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
        assert!(policy.check(&here(), &headers, None).is_err(), "{page}");
    }
}
