//! One watcher: its way in, and what it hears once it is there.
//!
//! It has a socket and no poll: whoever owns that says when the socket has something, and is told what came
//! of it. It knows nothing of the other watchers.
//!
//! Invariants: one read a readiness, unless the buffer was filled; nothing is kept of a message that is whole.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

use crate::client::{Decoder, Message};
use crate::door::Door;
use crate::tally::Tally;

/// What a watcher that never reads lets the kernel keep for it.
const SLOW_RECEIVE_BYTES: usize = 4096;
/// Linux' number for a connection that is being made.
const EINPROGRESS: i32 = 115;

/// What a watcher is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Steady,
    /// Never reads once it is in.
    Slow,
    /// Leaves and comes back.
    Churning,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Connecting(TcpStream),
    /// Has asked, and has so much of the answer.
    Handshake(TcpStream, Vec<u8>),
    Joining(TcpStream, Decoder),
    In(TcpStream, Decoder),
    /// In, and not read any more.
    Deaf {
        /// Held open.
        _stream: TcpStream,
    },
}

/// A watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    phase: Phase,
    pub(super) job: usize,
    pub(super) role: Role,
    /// The number of the last update it had.
    last: u32,
    pub(super) opened: Instant,
}

/// What came of serving a watcher.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ongoing,
    /// It is in now.
    Entered,
    /// It did not get in, and this is why.
    TurnedAway(String),
    /// It was in, and the connection ended.
    Lost(String),
}

/// What a watcher is served with; the crowd's own.
#[derive(Debug)]
pub(super) struct Service<'a> {
    pub(super) door: &'a Door,
    pub(super) registry: &'a Registry,
    pub(super) buffer: &'a mut [u8],
    pub(super) tally: &'a mut Tally,
}

impl Watcher {
    pub(super) fn new(job: usize, role: Role) -> Self {
        Self {
            phase: Phase::Closed,
            job,
            role,
            last: 0,
            opened: Instant::now(),
        }
    }

    /// Whether it counts among those that everything has to reach.
    pub(super) fn is_steady_and_open(&self) -> bool {
        self.role == Role::Steady && !matches!(self.phase, Phase::Closed)
    }

    /// Hangs up, if it is in; says whether it was.
    pub(super) fn leave(&mut self) -> bool {
        let was_in = matches!(self.phase, Phase::In(..));
        if was_in {
            self.phase = Phase::Closed;
        }
        was_in
    }

    /// Sets out for the door, from `source` if one is given.
    pub(super) fn connect(
        &mut self,
        service: &Service<'_>,
        name: &str,
        source: Option<Ipv4Addr>,
        token: Token,
    ) -> Result<Outcome> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
        if self.role == Role::Slow {
            socket.set_recv_buffer_size(SLOW_RECEIVE_BYTES)?;
        }
        if let Some(source) = source {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        self.opened = Instant::now();
        match socket.connect(&service.door.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
        let mut stream = TcpStream::from_std(socket.into());
        // On loopback the connection is there by now, unless the server's backlog is full: asking at once
        // saves a readiness and three system calls, and the client must not be what limits a wave.
        let asked = ask(&mut stream, service.door, name);
        let interest = match asked {
            Ok(true) => Interest::READABLE,
            Ok(false) => Interest::READABLE | Interest::WRITABLE,
            Err(error) => return Ok(Outcome::TurnedAway(error.to_string())),
        };
        service.registry.register(&mut stream, token, interest)?;
        self.phase = match asked {
            Ok(true) => Phase::Handshake(stream, Vec::new()),
            _ => Phase::Connecting(stream),
        };
        Ok(Outcome::Ongoing)
    }

    /// Its socket has something to say, or room.
    pub(super) fn on_ready(
        &mut self,
        service: &mut Service<'_>,
        name: &str,
        now: Instant,
    ) -> Result<Outcome> {
        match &mut self.phase {
            Phase::Closed | Phase::Deaf { .. } => Ok(Outcome::Ongoing),
            Phase::Connecting(stream) => {
                match ask(stream, service.door, name) {
                    // The readiness was of something else.
                    Ok(false) => return Ok(Outcome::Ongoing),
                    Ok(true) => {}
                    Err(error) => return Ok(self.turned_away(error.to_string())),
                }
                if let Phase::Connecting(stream) = self.take() {
                    self.phase = Phase::Handshake(stream, Vec::new());
                }
                Ok(Outcome::Ongoing)
            }
            Phase::Handshake(..) => self.hear_handshake(service, name, now),
            Phase::Joining(..) => self.read_joining(service, now),
            Phase::In(..) => self.read(service, now),
        }
    }

    fn take(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Closed)
    }

    fn turned_away(&mut self, why: impl Into<String>) -> Outcome {
        self.phase = Phase::Closed;
        Outcome::TurnedAway(why.into())
    }

    fn hear_handshake(
        &mut self,
        service: &mut Service<'_>,
        name: &str,
        now: Instant,
    ) -> Result<Outcome> {
        let Phase::Handshake(mut stream, mut answer) = self.take() else {
            return Ok(Outcome::Ongoing);
        };
        let read = read_all(&mut stream, service.buffer, |bytes| {
            answer.extend_from_slice(bytes);
            Ok(())
        });
        let ended = match read {
            Ok(ended) => ended,
            Err(error) => return Ok(self.turned_away(error.to_string())),
        };
        match service.door.transport.accept(&answer) {
            Ok(Some((decoder, head))) => {
                let says = service.door.says(name);
                if !says.is_empty() {
                    stream.write_all(&says)?;
                }
                self.phase = Phase::Joining(stream, decoder);
                self.hear_joining(service, &answer[head..], now)
            }
            Ok(None) if ended => Ok(self.turned_away("the server closed during the handshake")),
            Ok(None) => {
                self.phase = Phase::Handshake(stream, answer);
                Ok(Outcome::Ongoing)
            }
            Err(error) => Ok(self.turned_away(error.to_string())),
        }
    }

    fn read_joining(&mut self, service: &mut Service<'_>, now: Instant) -> Result<Outcome> {
        let mut bytes = Vec::new();
        let Phase::Joining(stream, _) = &mut self.phase else {
            return Ok(Outcome::Ongoing);
        };
        let ended = read_all(stream, service.buffer, |some| {
            bytes.extend_from_slice(some);
            Ok(())
        });
        let outcome = self.hear_joining(service, &bytes, now)?;
        if !matches!(ended, Ok(false)) && matches!(self.phase, Phase::Joining(..)) {
            return Ok(self.turned_away("the server closed before the watcher was in"));
        }
        Ok(outcome)
    }

    /// Looks for the word that says that the watcher is in; what comes with it counts already.
    fn hear_joining(
        &mut self,
        service: &mut Service<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Outcome> {
        let Phase::Joining(mut stream, mut decoder) = self.take() else {
            return Ok(Outcome::Ongoing);
        };
        let (door, tally) = (service.door, &mut *service.tally);
        let (mut is_in, mut reply) = (door.ready.is_empty(), None);
        let steady = self.role == Role::Steady;
        let pong = decoder.feed(bytes, |message| {
            if let Message::Text(text) = message {
                is_in |= memmem::find(text, door.ready.as_bytes()).is_some();
                reply = door.answer(text).or(reply.take());
                tally.heard(self.job, &mut self.last, steady, text, now);
            }
        })?;
        for answer in [pong, reply].into_iter().flatten() {
            stream.write_all(&answer)?;
        }
        if !is_in {
            self.phase = Phase::Joining(stream, decoder);
            return Ok(Outcome::Ongoing);
        }
        self.phase = if self.role == Role::Slow {
            service.registry.deregister(&mut stream)?;
            Phase::Deaf { _stream: stream }
        } else {
            Phase::In(stream, decoder)
        };
        Ok(Outcome::Entered)
    }

    fn read(&mut self, service: &mut Service<'_>, now: Instant) -> Result<Outcome> {
        let Phase::In(stream, decoder) = &mut self.phase else {
            return Ok(Outcome::Ongoing);
        };
        let (door, tally) = (service.door, &mut *service.tally);
        let (job, last) = (self.job, &mut self.last);
        let steady = self.role == Role::Steady;
        let (mut reply, mut said, mut pong) = (None, None, None);
        let ended = read_all(stream, service.buffer, |bytes| {
            let answer = decoder.feed(bytes, |message| match message {
                Message::Text(text) => {
                    tally.heard(job, last, steady, text, now);
                    reply = door.answer(text).or(reply.take());
                }
                Message::Heartbeat => {}
                Message::Close(code) => said = Some(code),
            })?;
            pong = answer.or(pong.take());
            Ok(())
        });
        for answer in [pong, reply].into_iter().flatten() {
            stream.write_all(&answer)?;
        }
        let why = match ended {
            Ok(false) => return Ok(Outcome::Ongoing),
            Ok(true) => format!("closed, code {said:?}"),
            Err(error) => error.to_string(),
        };
        self.phase = Phase::Closed;
        Ok(Outcome::Lost(why))
    }
}

/// Sends the request; `false` while the connection is still being made.
fn ask(stream: &mut TcpStream, door: &Door, name: &str) -> io::Result<bool> {
    match stream.write_all(&door.request(name)) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::NotConnected
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Reads what is there; says whether the other side has closed.
fn read_all(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Ok(true),
            Ok(read) => {
                take(&buffer[..read])?;
                // A short read emptied the socket: what comes later is a readiness of its own.
                if read < buffer.len() {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
