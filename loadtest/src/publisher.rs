//! The workers' side: updates on their way to a server.
//!
//! Speaks as much HTTP, NATS and JetStream as publishing takes, over sockets that never block; whoever owns
//! the poll says when a socket has something. It knows nothing of watchers.
//!
//! Invariant: every update handed over is either waiting, unanswered, acknowledged or refused.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::tally::Class;

const READ_BYTES: usize = 64 * 1024;
/// The milestone every milestone is.
const MILESTONE: &str = "step";

/// How a server takes updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// The relay's HTTP interface.
    Relay(SocketAddr),
    /// `POST` of the bare body to this path, with the job's name behind it.
    Post(SocketAddr, &'static str),
    /// Core NATS.
    Nats(SocketAddr),
    /// JetStream.
    JetStream(SocketAddr),
    /// The floor's: NATS' `PUB`, one way.
    Bare(SocketAddr),
}

impl Intake {
    fn address(self) -> SocketAddr {
        match self {
            Self::Relay(address)
            | Self::Post(address, _)
            | Self::Nats(address)
            | Self::JetStream(address)
            | Self::Bare(address) => address,
        }
    }

    fn is_http(self) -> bool {
        matches!(self, Self::Relay(_) | Self::Post(..))
    }

    /// Whether the server says of each update that it has it.
    fn acknowledges(self) -> bool {
        self.is_http() || matches!(self, Self::JetStream(_))
    }
}

/// One connection to publish on.
#[derive(Debug)]
struct Link {
    stream: TcpStream,
    /// Bytes the kernel had no room for.
    unsent: Vec<u8>,
    /// The beginning of an answer that is not whole.
    partial: Vec<u8>,
    /// HTTP: whether a request waits for its answer.
    busy: bool,
}

/// Publishes.
#[derive(Debug)]
pub(crate) struct Publisher {
    intake: Intake,
    links: Vec<Link>,
    /// Requests for which no connection was free.
    waiting: VecDeque<Vec<u8>>,
    /// The token of the first link; the others follow.
    first: usize,
    sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    /// What the first refusal said.
    pub(crate) complaint: Option<String>,
    ready: bool,
}

impl Publisher {
    /// Connects; [`Self::is_ready`] says when the server has answered.
    pub(crate) fn connect(
        intake: Intake,
        connections: usize,
        registry: &Registry,
        first: usize,
    ) -> Result<Self> {
        let count = if intake.is_http() { connections } else { 1 };
        let mut links = Vec::with_capacity(count);
        for number in 0..count {
            let stream = std::net::TcpStream::connect(intake.address())
                .with_context(|| format!("cannot publish to {}", intake.address()))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, Token(first + number), interest)?;
            links.push(Link {
                stream,
                unsent: Vec::new(),
                partial: Vec::new(),
                busy: false,
            });
        }
        let mut publisher = Self {
            intake,
            links,
            waiting: VecDeque::new(),
            first,
            sent: 0,
            acknowledged: 0,
            refused: 0,
            complaint: None,
            ready: intake.is_http(),
        };
        match intake {
            Intake::Relay(_) | Intake::Post(..) => {}
            Intake::Bare(_) => publisher.links[0].write(b"CONNECT\r\n")?,
            Intake::Nats(_) | Intake::JetStream(_) => publisher.links[0].write(
                b"CONNECT {\"verbose\":false,\"headers\":true,\"protocol\":1}\r\nSUB _INBOX.loadtest.* 1\r\nPING\r\n",
            )?,
        }
        Ok(publisher)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Updates handed over and not answered, where the server answers at all.
    pub(crate) fn unanswered(&self) -> u64 {
        if self.intake.acknowledges() {
            self.sent - self.acknowledged - self.refused
        } else {
            0
        }
    }

    /// Takes an update to be written at the next [`Self::flush`].
    pub(crate) fn publish(&mut self, job: &str, class: Class, body: &str) {
        self.sent += 1;
        let request = self.encode(job, class, body);
        if self.intake.is_http() {
            self.waiting.push_back(request);
        } else {
            self.links[0].unsent.extend_from_slice(&request);
        }
    }

    /// Writes what waits, as far as the sockets take it.
    pub(crate) fn flush(&mut self) -> Result<()> {
        for link in &mut self.links {
            if !link.unsent.is_empty() {
                link.write(&[])?;
            } else if !link.busy
                && let Some(request) = self.waiting.pop_front()
            {
                link.busy = self.intake.is_http();
                link.write(&request)?;
            }
        }
        Ok(())
    }

    fn encode(&self, job: &str, class: Class, body: &str) -> Vec<u8> {
        let length = body.len();
        let post = |address: SocketAddr, path: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        let word = match class {
            Class::State | Class::Ending => "state",
            Class::Milestone => MILESTONE,
        };
        match (self.intake, class) {
            (Intake::Relay(address), Class::Milestone) => {
                post(address, &format!("/v1/jobs/{job}/milestones/{MILESTONE}"))
            }
            (Intake::Relay(address), Class::State | Class::Ending) => {
                post(address, &format!("/v1/jobs/{job}"))
            }
            (Intake::Post(address, path), _) => post(address, &format!("{path}{job}")),
            (Intake::Nats(_) | Intake::Bare(_), _) => {
                format!("PUB progress.-.{job}.{word} {length}\r\n{body}\r\n")
            }
            // Without it the state before the ending would come back when the ending expires.
            (Intake::JetStream(_), Class::Ending) => {
                let headers = "NATS/1.0\r\nNats-Rollup: sub\r\n\r\n";
                format!(
                    "HPUB progress.-.{job}.state _INBOX.loadtest.a {} {}\r\n{headers}{body}\r\n",
                    headers.len(),
                    headers.len() + length
                )
            }
            (Intake::JetStream(_), Class::State | Class::Milestone) => {
                format!("PUB progress.-.{job}.{word} _INBOX.loadtest.a {length}\r\n{body}\r\n")
            }
        }
        .into_bytes()
    }

    /// A socket of this publisher has something to say or room again.
    pub(crate) fn on_event(&mut self, token: Token, buffer: &mut [u8]) -> Result<()> {
        let Some(at) = token.0.checked_sub(self.first) else {
            return Ok(());
        };
        loop {
            let Some(link) = self.links.get_mut(at) else {
                return Ok(());
            };
            let space = buffer.len().min(READ_BYTES);
            let read = match link.stream.read(&mut buffer[..space]) {
                Ok(0) => bail!("the server closed a connection that updates are published on"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            link.partial.extend_from_slice(&buffer[..read]);
            self.answers(at)?;
        }
        self.flush()
    }

    fn answers(&mut self, at: usize) -> Result<()> {
        let partial = std::mem::take(&mut self.links[at].partial);
        let mut rest = &partial[..];
        while let Some(used) = self.answer(at, rest)? {
            rest = &rest[used..];
        }
        self.links[at].partial = rest.to_vec();
        Ok(())
    }

    /// Takes one answer off the front; says how long it was, or `None` while it is not whole.
    fn answer(&mut self, at: usize, bytes: &[u8]) -> Result<Option<usize>> {
        if self.intake.is_http() {
            return self.http_answer(at, bytes);
        }
        let Some(line_ends) = memmem::find(bytes, b"\r\n") else {
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&bytes[..line_ends]);
        let mut used = line_ends + 2;
        let verb = line.split(' ').next().unwrap_or_default();
        match verb {
            "PONG" | "+OK" => self.ready = true,
            "PING" => self.links[at].write(b"PONG\r\n")?,
            "MSG" | "HMSG" => {
                let length: usize = line
                    .rsplit(' ')
                    .next()
                    .unwrap_or_default()
                    .parse()
                    .with_context(|| line.clone().into_owned())?;
                let Some(message) = bytes.get(used..used + length + 2) else {
                    return Ok(None);
                };
                used += length + 2;
                // Also when no stream takes the subject: a header says 503 and there is no payload.
                if verb == "MSG" && memmem::find(message, b"\"error\"").is_none() {
                    self.acknowledged += 1;
                } else {
                    self.refuse(message);
                }
            }
            "-ERR" => bail!("NATS says {line}"),
            _ => {}
        }
        Ok(Some(used))
    }

    fn http_answer(&mut self, at: usize, bytes: &[u8]) -> Result<Option<usize>> {
        let Some(head_ends) = memmem::find(bytes, b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&bytes[..head_ends]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(Ok(0), |value| value.trim().parse::<usize>())?;
        let whole = head_ends + 4 + length;
        if bytes.len() < whole {
            return Ok(None);
        }
        self.links[at].busy = false;
        match head.split(' ').nth(1) {
            Some("200" | "201" | "202" | "204") => self.acknowledged += 1,
            _ => self.refuse(&bytes[..whole]),
        }
        Ok(Some(whole))
    }

    fn refuse(&mut self, answer: &[u8]) {
        self.refused += 1;
        self.complaint
            .get_or_insert_with(|| String::from_utf8_lossy(answer).into_owned());
    }
}

impl Link {
    /// Writes what is left over and then `bytes`; keeps what the kernel has no room for.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unsent.extend_from_slice(bytes);
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.stream.write(&self.unsent[sent..]) {
                Ok(some) => sent += some,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.unsent.drain(..sent);
        Ok(())
    }
}
