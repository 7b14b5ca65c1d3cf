//! TLS in the relay's own process: certificates made here, clients of rustls, and the relay's own commands.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use relay_testkit::client::raw::Raw;
use relay_testkit::http::Request;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::wait;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::{SOON, settings};

/// A certificate of this machine, and its key, in files.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    /// The one in this directory.
    pub(crate) fn of(directory: &Path) -> Self {
        Self {
            certificate: directory.join("cert.pem"),
            key: directory.join("key.pem"),
        }
    }

    /// A new one, in the place of what is there.
    pub(crate) fn in_place(directory: &Path) -> Self {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let pair = Self::of(directory);
        std::fs::write(&pair.certificate, made.cert.pem()).unwrap();
        std::fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
        pair
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.certificate).unwrap()
    }
}

fn over_tls(pair: &Pair) -> Settings {
    settings()
        .set("auth.mode", "anonymous")
        .set("http.tls_cert_file", pair.certificate.display())
        .set("http.tls_key_file", pair.key.display())
}

async fn relay() -> (RelayServer, Pair, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let pair = Pair::in_place(directory.path());
    let relay = RelayServer::start(over_tls(&pair)).await.unwrap();
    (relay, pair, directory)
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Connects over one of these versions, and trusts this certificate alone.
pub(crate) async fn connect(
    address: &str,
    trusted: CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    begin(TcpStream::connect(address).await?, trusted, versions).await
}

/// Begins TLS on a socket.
pub(crate) async fn begin(
    tcp: TcpStream,
    trusted: CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// Reads until this text is there.
pub(crate) async fn read_until(stream: &mut TlsStream<TcpStream>, wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        let read = timeout(SOON, stream.read(&mut chunk)).await.unwrap();
        match read.unwrap() {
            0 => break,
            read => seen.extend_from_slice(&chunk[..read]),
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// One request over TLS, on a connection of its own.
async fn send(relay: &RelayServer, pair: &Pair, request: &str) -> String {
    let mut stream = connect(&relay.address(), pair.der(), BOTH).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, "}").await
}

fn publishing(job: &str, state: &Value) -> String {
    let body = state.to_string();
    format!(
        "POST /v1/jobs/{job}?owner=o HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn requests_and_event_streams_go_over_either_version() {
    let (relay, pair, _directory) = relay().await;
    for (at, version) in BOTH.iter().enumerate() {
        let mut stream = connect(&relay.address(), pair.der(), &[version])
            .await
            .unwrap();
        let job = format!("j{at}");
        // A connection that is kept, then the stream, on the same socket; in pieces as small as there are.
        let kept = format!("GET /v1/jobs/{job} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        for byte in kept.as_bytes() {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let answer = read_until(&mut stream, "}}").await;
        assert!(answer.contains("unknown_job"), "{answer}");
        let opening = format!("GET /v1/sse?topic=job:{job} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(opening.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "subscribed").await;
        assert!(answer.contains("text/event-stream"), "{answer}");
        let state = json!({"status": "running", "message": "x".repeat(50_000)});
        let answer = send(&relay, &pair, &publishing(&job, &state)).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        let told = read_until(&mut stream, "xxx\"").await;
        assert!(told.contains("event: state"), "{told}");
        // Its own page is one of https alone.
        for (origin, status) in [
            ("https://relay.example", "404"),
            ("http://relay.example", "403"),
        ] {
            let request = format!(
                "GET /v1/jobs/nobody HTTP/1.1\r\nhost: relay.example\r\norigin: {origin}\r\n\r\n"
            );
            let answer = send(&relay, &pair, &request).await;
            let expected = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&expected), "{origin}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_websocket_that_is_read_slowly_is_told_the_last_word_over_tls_too() {
    let directory = tempfile::tempdir().unwrap();
    let pair = Pair::in_place(directory.path());
    // However long this takes, the client is not given up.
    let settings = over_tls(&pair).set("delivery.write_timeout", "2m");
    let relay = RelayServer::start(settings).await.unwrap();
    let narrow = TcpSocket::new_v4().unwrap();
    narrow.set_recv_buffer_size(4096).unwrap();
    let address = relay.address().parse().unwrap();
    let narrow = narrow.connect(address).await.unwrap();
    let stream = begin(narrow, pair.der(), BOTH).await.unwrap();
    let url = format!("wss://{}/v1/ws?topic=user:o", relay.address());
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    // Far more than sockets hold, of many jobs, so that little of it can be conflated.
    let mut publisher = connect(&relay.address(), pair.der(), BOTH).await.unwrap();
    let state = json!({"status": "running", "message": "y".repeat(60_000)});
    let last = json!({"status": "completed", "message": "the end"});
    for at in 0..=120 {
        let state = if at == 120 { &last } else { &state };
        let request = publishing(&format!("k{}", at % 120), state);
        publisher.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut publisher, "}").await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    socket
        .send(Message::Text("{\"type\":\"ping\"}".into()))
        .await
        .unwrap();
    let mut states = 0;
    let ended = async {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(text.as_str()).unwrap();
            states += usize::from(frame["type"] == "state");
            if frame["job"]["message"] == "the end" {
                return true;
            }
        }
        false
    };
    assert!(timeout(SOON, ended).await.unwrap(), "{states}");
}

fn command(args: &[&str], certificate: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    command.args(args).env_remove("RELAY_CA");
    if let Some(file) = certificate {
        command.arg("--ca").arg(file);
    }
    command.output().unwrap()
}

#[tokio::test]
async fn the_relays_commands_speak_https_and_wss_and_trust_what_they_are_told_to() {
    let (relay, pair, directory) = relay().await;
    let another = directory.path().join("another");
    std::fs::create_dir(&another).unwrap();
    let another = Pair::in_place(&another);
    let url = format!("https://{}", relay.address());
    let own = pair.certificate.clone();
    let run = |args: &[&str], certificate: Option<&Path>| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let certificate = certificate.map(Path::to_owned);
        async move {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            command(&args, certificate.as_deref())
        }
    };
    let publish = ["publish", "j", "--status", "completed", "--url", &url];
    let published = run(&publish, Some(&own)).await;
    assert!(published.status.success(), "{published:?}");
    let watch = ["watch", "job:j", "--json", "--url", &url];
    let watched = run(&watch, Some(&own)).await;
    assert_eq!(watched.status.code(), Some(0), "{watched:?}");
    assert!(String::from_utf8_lossy(&watched.stdout).contains("completed"));
    for (certificate, says) in [
        (Some(&another.certificate), "--ca"),
        (None, "--ca"),
        (Some(&another.key), "no usable certificate"),
        (
            Some(&directory.path().join("nothing")),
            "cannot read certificates",
        ),
    ] {
        for args in [&publish[..], &watch] {
            let refused = run(args, certificate.map(PathBuf::as_path)).await;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains(says), "{said}");
        }
    }
    let plain = url.replace("https", "http");
    let refused = run(
        &["publish", "j", "--status", "queued", "--url", &plain],
        None,
    )
    .await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("this port speaks https"), "{said}");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_so_or_closed_within_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let pair = Pair::in_place(directory.path());
    let settings = over_tls(&pair).set("http.header_timeout", "300ms");
    let relay = RelayServer::start(settings).await.unwrap();
    let answer = relay.send(Request::get("/v1/jobs/j")).await.unwrap();
    assert_eq!(answer.status.as_u16(), 400);
    assert_eq!(answer.error_code(), "tls_required");
    for bytes in [
        &b""[..],
        b"\x16\x03\x01\x02",
        b"\x00\x01\x02\x03\x04\x05\x06",
        b"\x16\x03\x01\0\x05hello",
    ] {
        let mut raw = Raw::connect(&relay.address()).await.unwrap();
        raw.send(bytes).await.unwrap();
        assert!(raw.closes(SOON).await, "{}", bytes.escape_ascii());
    }
    let refused = async || {
        let metrics = relay.metrics().await.ok()?;
        let refused = metrics.sum("relay_connections_refused_total", "tls_handshake");
        ((refused - 5.0).abs() < f64::EPSILON).then_some(())
    };
    wait::until_some(SOON, "five refusals", refused)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_drain_ends_streams_and_handshakes_over_tls() {
    let (mut relay, pair, _directory) = relay().await;
    let mut stream = connect(&relay.address(), pair.der(), BOTH).await.unwrap();
    let opening = "GET /v1/sse?topic=job:j HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(opening.as_bytes()).await.unwrap();
    read_until(&mut stream, "subscribed").await;
    let _silent = TcpStream::connect(relay.address()).await.unwrap();
    relay.signal("TERM").unwrap();
    let said = read_until(&mut stream, "nothing like this").await;
    assert!(said.contains("server_shutdown"), "{said}");
    // The goodbye of TLS came, or rustls would have complained that the stream was cut.
    let status = relay.end(SOON + Duration::from_secs(10)).await.unwrap();
    assert!(status.success());
}
