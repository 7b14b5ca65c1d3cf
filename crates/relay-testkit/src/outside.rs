//! A server that is not the relay's, for the relay to ask: a publisher of keys, a provider of identities, an
//! application that decides who may come in. It answers well, badly or not at all, as it is told.
//!
//! Invariant: it listens on loopback, and ends when it is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What a path answers.
#[derive(Debug, Clone)]
pub enum Says {
    /// 200 with this JSON.
    Json(String),
    /// A status with this body, as HTML.
    Html(u16, String),
    /// 302 to there.
    Redirect(String),
    /// These bytes in place of an answer of HTTP.
    Bytes(Vec<u8>),
    /// The head of an answer, and nothing more.
    Hangs,
    /// 200 and as many bytes of JSON as are taken, up to this many.
    Endless(usize),
    /// The JSON after a while.
    Late(Duration, String),
    /// Closes the connection at once.
    Nothing,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET /path`.
    pub line: String,
    /// The head, in lower case, and the body behind it.
    pub text: String,
}

#[derive(Debug, Default)]
struct State {
    says: BTreeMap<String, Says>,
    asked: Vec<Asked>,
}

/// The server.
#[derive(Debug)]
pub struct Outside {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Dropped with the server, which ends it.
    _tasks: JoinSet<()>,
}

impl Outside {
    /// Starts a server that knows no path yet.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        let serving = state.clone();
        tasks.spawn(async move {
            let mut each = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while each.try_join_next().is_some() {}
                each.spawn(answer(stream, serving.clone()));
            }
        });
        Ok(Self {
            address,
            state,
            _tasks: tasks,
        })
    }

    /// Its URL, with this path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on `path` answers so.
    pub fn says(&self, path: &str, says: Says) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.says.insert(path.to_owned(), says);
    }

    /// What was asked until now.
    pub fn asked(&self) -> Vec<Asked> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.clone()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        let of_path = |asked: &&Asked| asked.line.split(' ').nth(1) == Some(path);
        self.asked().iter().filter(of_path).count()
    }
}

async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let Some(asked) = read(&mut stream).await else {
        return;
    };
    let path = asked.line.split(' ').nth(1).unwrap_or("").to_owned();
    let says = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(asked);
        state.says.get(&path).cloned()
    };
    let says = says.unwrap_or_else(|| Says::Html(404, "<h1>Not found</h1>".to_owned()));
    // Whoever asks may go at any time.
    drop(write(&mut stream, says).await);
}

async fn write(stream: &mut TcpStream, says: Says) -> std::io::Result<()> {
    let whole = |status: u16, kind: &str, body: &str| {
        format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    match says {
        Says::Json(body) => {
            stream
                .write_all(whole(200, "application/json", &body).as_bytes())
                .await
        }
        Says::Late(time, body) => {
            sleep(time).await;
            stream
                .write_all(whole(200, "application/json", &body).as_bytes())
                .await
        }
        Says::Html(status, body) => {
            stream
                .write_all(whole(status, "text/html", &body).as_bytes())
                .await
        }
        Says::Redirect(to) => {
            let head = format!("HTTP/1.1 302 X\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).await
        }
        Says::Bytes(bytes) => stream.write_all(&bytes).await,
        Says::Hangs => {
            stream
                .write_all(b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n{")
                .await?;
            std::future::pending().await
        }
        Says::Endless(bytes) => {
            stream
                .write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n{\"keys\":[")
                .await?;
            let chunk = vec![b' '; 64 * 1024];
            for _ in 0..bytes / chunk.len() {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        }
        Says::Nothing => Ok(()),
    }
}

/// One request, with its body.
async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length = length
                .and_then(|length| length.trim().parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                let line = text.lines().next()?;
                let line = line.rsplit_once(' ').map_or(line, |(line, _)| line);
                return Some(Asked {
                    line: line.to_owned(),
                    text: format!("{head}\r\n\r\n{body}"),
                });
            }
        }
        if bytes.len() > 1024 * 1024 || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
