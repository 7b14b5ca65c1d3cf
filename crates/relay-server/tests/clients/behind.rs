//! Behind real proxies: nginx, and haproxy with the PROXY protocol and with TLS on both of its sides.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use relay_testkit::ports::Port;
use relay_testkit::process::Process;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::{tools, wait};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::secure::{Pair, begin, connect, read_until};
use crate::{SOON, settings};

/// A relay that takes two connections of an address, behind proxies on this machine.
fn behind(forwarded: &str) -> Settings {
    settings()
        .set("auth.mode", "anonymous")
        .set("limits.connections_per_address", 2)
        .set("http.trusted_proxies", "127.0.0.1")
        .set("http.forwarded", forwarded)
}

/// A running proxy.
struct Proxy {
    /// Dropped, it has ended.
    _process: Process,
    port: Port,
    directory: TempDir,
}

impl Proxy {
    async fn start(
        program: &Path,
        args: &[&str],
        config: impl FnOnce(&Port, &Path) -> String,
    ) -> Self {
        let (directory, port) = (tempfile::tempdir().unwrap(), Port::reserve().unwrap());
        let file = directory.path().join("conf");
        std::fs::write(&file, config(&port, directory.path())).unwrap();
        let mut command = Command::new(program);
        command.args(args).arg(&file).current_dir(directory.path());
        let process = Process::spawn(&mut command, &directory.path().join("log")).unwrap();
        let address = port.address();
        let up = wait::until_some(SOON, "the proxy", async || {
            TcpStream::connect(&address).await.ok()
        });
        if up.await.is_err() {
            panic!("{} does not listen:\n{}", program.display(), process.logs());
        }
        Self {
            _process: process,
            port,
            directory,
        }
    }
}

async fn nginx(relay: &RelayServer, tls: bool) -> Proxy {
    let upstream = relay.address();
    let program = tools::nginx().unwrap();
    Proxy::start(&program, &["-e", "stderr", "-c"], |port, directory| {
        let (address, tls) = match tls {
            false => (port.address(), String::new()),
            true => {
                let pair = Pair::in_place(directory);
                let lines = format!(
                    "ssl_certificate {}; ssl_certificate_key {};",
                    pair.certificate.display(),
                    pair.key.display()
                );
                (format!("{} ssl", port.address()), lines)
            }
        };
        let home = directory.display();
        // The location is that of docs/how-to/run-in-production.md.
        format!(
            r#"daemon off; master_process off; pid {home}/pid; events {{ }}
http {{
  access_log off; client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c;
  uwsgi_temp_path {home}/d; scgi_temp_path {home}/e;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen {address}; {tls}
    location /v1/ {{
      proxy_pass http://{upstream};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffering off;
      proxy_read_timeout 90s;
    }}
  }}
}}
"#
        )
    })
    .await
}

async fn haproxy(lines: impl FnOnce(&Port, &Path) -> String) -> Proxy {
    let program = tools::haproxy().unwrap();
    Proxy::start(&program, &["-db", "-f"], |port, directory| {
        format!(
            "global\n  maxconn 200\ndefaults\n  timeout connect 5s\n  timeout client 90s\n  timeout server 90s\n{}",
            lines(port, directory)
        )
    })
    .await
}

/// A socket to the proxy from this address of this machine.
async fn from(source: &str, proxy: &Proxy) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let source: SocketAddr = format!("{source}:0").parse().unwrap();
    socket.bind(source).unwrap();
    let target = proxy.port.address().parse().unwrap();
    socket.connect(target).await.unwrap()
}

/// What a client writes itself to look like another one.
const FORGED: &str = "X-Forwarded-For: 198.51.100.1\r\nForwarded: for=198.51.100.2\r\n";

/// Asks for an event stream from this address; the first line of the answer, and what keeps it open.
async fn stream(source: &str, proxy: &Proxy) -> (String, TcpStream) {
    let mut socket = from(source, proxy).await;
    let head = format!("GET /v1/sse?topic=job:j HTTP/1.1\r\nHost: relay.example\r\n{FORGED}\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let mut chunk = [0; 1024];
    while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = timeout(SOON, socket.read(&mut chunk)).await.unwrap();
        match read.unwrap() {
            0 => break,
            read => seen.extend_from_slice(&chunk[..read]),
        }
    }
    let text = String::from_utf8_lossy(&seen).into_owned();
    (text.lines().next().unwrap_or_default().to_owned(), socket)
}

/// Two streams of one address, a third that is too many, and one of another address.
async fn counts_people(proxy: &Proxy) {
    let mut open = Vec::new();
    for (source, expected) in [
        ("127.0.0.5", "HTTP/1.1 200"),
        ("127.0.0.5", "HTTP/1.1 200"),
        ("127.0.0.5", "HTTP/1.1 429"),
        ("127.0.0.6", "HTTP/1.1 200"),
    ] {
        let (line, socket) = stream(source, proxy).await;
        assert!(line.starts_with(expected), "{source}: {line:?}");
        open.push(socket);
    }
}

#[tokio::test]
async fn behind_nginx_each_client_counts_and_websockets_pass() {
    let relay = RelayServer::start(behind("x-forwarded-for")).await.unwrap();
    let proxy = nginx(&relay, false).await;
    counts_people(&proxy).await;
    let url = format!("ws://{}/v1/ws?topic=job:k", proxy.port.address());
    let socket = from("127.0.0.7", &proxy).await;
    let opened = tokio_tungstenite::client_async(url, socket).await;
    assert!(opened.is_ok(), "{:?}", opened.err());
}

#[tokio::test]
async fn behind_nginx_with_tls_a_page_of_https_is_the_relays_own() {
    let relay = RelayServer::start(behind("x-forwarded-for")).await.unwrap();
    let proxy = nginx(&relay, true).await;
    let pair = Pair::of(proxy.directory.path());
    for (scheme, status) in [("https", "404"), ("http", "403")] {
        let both = [&rustls::version::TLS13, &rustls::version::TLS12];
        let mut stream = connect(&proxy.port.address(), pair.der(), &both)
            .await
            .unwrap();
        let request = format!(
            "GET /v1/jobs/j HTTP/1.1\r\nHost: relay.example\r\nOrigin: {scheme}://relay.example\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "}}").await;
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{scheme}: {answer}");
    }
}

#[tokio::test]
async fn behind_haproxy_each_client_counts_by_either_version_of_the_proxy_protocol() {
    for send in ["send-proxy", "send-proxy-v2"] {
        let relay = RelayServer::start(behind("proxy")).await.unwrap();
        let upstream = relay.address();
        let proxy = haproxy(|port, _| {
            // Its own checks come without a client.
            format!(
                "listen relay\n  mode tcp\n  bind {}\n  server one {upstream} {send} check inter 200 check-send-proxy\n",
                port.address()
            )
        })
        .await;
        counts_people(&proxy).await;
        let metrics = relay.metrics().await.unwrap();
        let refused = metrics.sum("relay_connections_refused_total", "introduction");
        assert!(refused.abs() < f64::EPSILON, "{send}: {refused}");
    }
}

#[tokio::test]
async fn behind_haproxy_that_speaks_tls_to_clients_and_to_the_relay_each_client_counts() {
    let directory = tempfile::tempdir().unwrap();
    let inner = Pair::in_place(directory.path());
    let settings = behind("proxy")
        .set("http.tls_cert_file", inner.certificate.display())
        .set("http.tls_key_file", inner.key.display());
    let relay = RelayServer::start(settings).await.unwrap();
    let upstream = relay.address();
    let ca = inner.certificate.display();
    let proxy = haproxy(|port, directory| {
        let outer = Pair::in_place(directory);
        let parts = [&outer.certificate, &outer.key].map(|file| std::fs::read(file).unwrap());
        let both = directory.join("both.pem");
        std::fs::write(&both, parts.concat()).unwrap();
        format!(
            "listen relay\n  mode tcp\n  bind {} ssl crt {}\n  server one {upstream} send-proxy-v2 ssl verify required ca-file {ca} verifyhost localhost\n",
            port.address(),
            both.display()
        )
    })
    .await;
    let outer = Pair::of(proxy.directory.path());
    let both = [&rustls::version::TLS13, &rustls::version::TLS12];
    let mut open = Vec::new();
    for expected in ["HTTP/1.1 200", "HTTP/1.1 200", "HTTP/1.1 429"] {
        // From an address that is not the proxy's own, which is exempt.
        let tcp = from("127.0.0.5", &proxy).await;
        let mut stream = begin(tcp, outer.der(), &both).await.unwrap();
        let head = "GET /v1/sse?topic=job:j HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with(expected), "{answer}");
        open.push(stream);
    }
}
