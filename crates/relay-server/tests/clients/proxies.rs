//! What proxies say of their clients, over bare sockets: who counts, and who is not believed.

use std::any::Any;

use relay_testkit::client::raw::Raw;
use relay_testkit::http::{Connection, Request};
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::wait;

use crate::{SOON, open_connections, settings};

/// A relay that takes two connections of an address, behind a proxy on this machine.
fn behind(forwarded: &str) -> Settings {
    settings()
        .set("auth.mode", "anonymous")
        .set("limits.connections_per_address", 2)
        .set("http.trusted_proxies", "127.0.0.1")
        .set("http.forwarded", forwarded)
}

const STREAM: &str = "/v1/sse?topic=job:j";

/// Opens an event stream with these headers: its status, and what keeps it open.
async fn stream(relay: &RelayServer, headers: &[(&str, &str)]) -> (u16, Box<dyn Any>) {
    let mut connection = Connection::open(&relay.address()).await.unwrap();
    let mut request = Request::get(STREAM);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let answer = connection.start(request).await.unwrap();
    (answer.status().as_u16(), Box::new((connection, answer)))
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_count_each_by_their_own_address() {
    for (way, name, client, forged, other, elsewhere) in [
        (
            "x-forwarded-for",
            "x-forwarded-for",
            "203.0.113.7",
            "198.51.100.1, 203.0.113.7:4711",
            "203.0.113.8",
            ("forwarded", "for=198.51.100.3"),
        ),
        (
            "forwarded",
            "forwarded",
            "for=203.0.113.7",
            "for=198.51.100.1, for=\"[::ffff:203.0.113.7]:4711\";proto=https",
            "for=203.0.113.8",
            ("x-forwarded-for", "198.51.100.3"),
        ),
    ] {
        let relay = RelayServer::start(behind(way)).await.unwrap();
        let (first, _one) = stream(&relay, &[(name, client)]).await;
        // What its client wrote stands before what the proxy wrote, or in the header that does not count.
        let (second, _two) = stream(&relay, &[(name, forged), elsewhere]).await;
        assert_eq!((first, second), (200, 200), "{way}");
        for more in [
            &[(name, client)][..],
            &[(name, forged)],
            &[(name, forged), elsewhere],
            &[(name, "for=198.51.100.1"), (name, client)],
        ] {
            assert_eq!(stream(&relay, more).await.0, 429, "{way} {more:?}");
        }
        assert_eq!(stream(&relay, &[(name, other)]).await.0, 200, "{way}");
        // The proxy's own requests are not bounded by address.
        let mut own = Vec::new();
        for _ in 0..4 {
            let (status, connection) = stream(&relay, &[]).await;
            assert_eq!(status, 200, "{way}");
            own.push(connection);
        }
        // Somebody who is not named is; all of them count as one.
        let mut hidden = Vec::new();
        for expected in [200, 200, 429] {
            let (status, connection) = stream(&relay, &[(name, "for=unknown")]).await;
            assert_eq!(status, expected, "{way}");
            hidden.push(connection);
        }
    }
}

#[tokio::test]
async fn nobody_else_is_believed_and_a_proxy_that_is_not_named_is_told_of() {
    let nobody = settings()
        .set("auth.mode", "anonymous")
        .set("limits.connections_per_address", 2);
    let another = behind("x-forwarded-for").set("http.trusted_proxies", "10.0.0.0/8");
    for settings in [nobody, another] {
        let relay = RelayServer::start(settings).await.unwrap();
        let mut open = Vec::new();
        for (last, expected) in [(1, 200), (2, 200), (3, 429)] {
            let client = format!("203.0.113.{last}");
            let (status, connection) = stream(&relay, &[("x-forwarded-for", &client)]).await;
            assert_eq!(status, expected);
            open.push(connection);
        }
        let said = || relay.logs().contains("this looks like a proxy");
        wait::until(SOON, "the log", said).await.unwrap();
        assert!(relay.logs().contains("http.trusted_proxies"));
    }
}

#[tokio::test]
async fn a_page_is_the_relays_own_by_the_scheme_that_its_proxy_was_asked_by() {
    let relay = RelayServer::start(behind("x-forwarded-for")).await.unwrap();
    for (origin, scheme, status) in [
        ("https://relay.example", "https", 404),
        ("http://relay.example", "https", 403),
        ("http://relay.example", "http", 404),
        ("https://relay.example", "http", 403),
    ] {
        let request = Request::get("/v1/jobs/j")
            .header("host", "relay.example")
            .header("origin", origin)
            .header("x-forwarded-for", "203.0.113.7")
            .header("x-forwarded-proto", scheme);
        let answer = relay.send(request).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{origin} {scheme}");
    }
}

const REQUEST: &str = "GET /v1/sse?topic=job:j HTTP/1.1\r\nhost: relay.example\r\n\r\n";

/// Version 1 and version 2 of the header, of a client with this last number in its address.
fn introductions(last: u8) -> [Vec<u8>; 2] {
    let one = format!("PROXY TCP4 203.0.113.{last} 198.51.100.2 40000 443\r\n");
    let two = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f"[..],
        &[203, 0, 113, last, 198, 51, 100, 2, 0x9c, 0x40, 1, 0xbb],
        // Something more about the client, which nobody here reads.
        &[0xee, 0, 0],
    ];
    [one.into_bytes(), two.concat()]
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Opens a connection with these bytes; also the first line of what is answered, if anything is.
async fn answered(relay: &RelayServer, pieces: &[&[u8]]) -> (String, Raw) {
    let mut raw = Raw::connect(&relay.address()).await.unwrap();
    for piece in pieces {
        raw.send(piece).await.unwrap();
        // Each is read before the next is there.
        tokio::task::yield_now().await;
    }
    let answer = raw.read_until("\r\n\r\n", SOON).await;
    let line = answer.lines().next().unwrap_or_default();
    (line.to_owned(), raw)
}

#[tokio::test]
async fn a_connection_counts_as_its_introduction_says() {
    let relay = RelayServer::start(behind("proxy")).await.unwrap();
    let (ok, too_many) = ("HTTP/1.1 200 OK", "HTTP/1.1 429 Too Many Requests");
    let mut open = Vec::new();
    // One of each version, and the third is one too many, whatever its headers say.
    for (at, expected) in [(0, ok), (1, ok), (0, too_many), (1, too_many)] {
        let introduced = &introductions(7)[at];
        let forged = REQUEST.replace("\r\n\r\n", "\r\nx-forwarded-for: 203.0.113.9\r\n\r\n");
        let (line, raw) = answered(&relay, &[introduced, forged.as_bytes()]).await;
        assert_eq!(line, expected);
        open.push(raw);
    }
    // In pieces, with the request behind it in one.
    let [one, two] = introductions(8);
    for header in [one, two] {
        let (begin, end) = header.split_at(header.len() / 2);
        let end = [end, REQUEST.as_bytes()].concat();
        let (line, raw) = answered(&relay, &[begin, &end]).await;
        assert_eq!(line, ok);
        open.push(raw);
    }
    // The proxy itself is not bounded by address.
    for _ in 0..4 {
        let (line, raw) = answered(&relay, &[LOCAL, REQUEST.as_bytes()]).await;
        assert_eq!(line, ok);
        open.push(raw);
    }
    assert!((open_connections(&relay).await - 8.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_connection_that_is_not_introduced_is_closed_without_a_word() {
    let settings = behind("proxy").set("http.header_timeout", "300ms");
    let relay = RelayServer::start(settings).await.unwrap();
    for bytes in [
        REQUEST.as_bytes(),
        b"PROXY TCP4 203.0.113.7 198.51.100.2 40000\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        // The rest never comes.
        b"PROXY TCP4 203.0.113.7",
        b"",
    ] {
        let mut raw = Raw::connect(&relay.address()).await.unwrap();
        raw.send(bytes).await.unwrap();
        let answered = raw.read_to_end(SOON).await;
        assert_eq!(answered, Some(Vec::new()), "{}", bytes.escape_ascii());
    }
    let metrics = relay.metrics().await.unwrap();
    let refused = metrics.sum("relay_connections_refused_total", "introduction");
    assert!((refused - 5.0).abs() < f64::EPSILON, "{refused}");
    assert!(relay.logs().contains("a trusted proxy introduces it"));
}

#[tokio::test]
async fn an_introduction_by_somebody_who_is_not_trusted_is_not_read() {
    let settings = behind("proxy").set("http.trusted_proxies", "10.0.0.0/8");
    let relay = RelayServer::start(settings).await.unwrap();
    for header in introductions(7) {
        let mut raw = Raw::connect(&relay.address()).await.unwrap();
        // It may be closed already.
        drop(raw.send([&header, REQUEST.as_bytes()].concat()).await);
        let answered = raw.read_to_end(SOON).await;
        assert_eq!(answered, Some(Vec::new()));
    }
    assert!(relay.logs().contains("is not in http.trusted_proxies"));
}
