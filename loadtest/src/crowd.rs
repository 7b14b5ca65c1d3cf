//! Thousands of watchers and the publisher that feeds them, on one thread and one poll.
//!
//! Sockets are read when they have something, into one buffer that all share; no task, timer or queue stands
//! behind a connection. It knows how to get through a server's door and not what server it is.
//!
//! Invariants: one read a readiness, unless the buffer was filled; a watcher is counted as steady, slow or
//! coming and going from its opening on, and stays that.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

use crate::client::{Decoder, Message, Transport, masked};
use crate::publisher::{Intake, Publisher};
use crate::scenario::{Publish, Watch};
use crate::tally::{Class, Tally, document};

/// Connections are spread over this many loopback addresses, so that neither ports nor limits per address
/// are an obstacle.
const SOURCES: usize = 100;
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Few enough that what is due to be published does not wait long behind what is being read.
const EVENTS: usize = 256;
/// Beyond every watcher's token.
const PUBLISHER: usize = 1 << 40;
/// What a watcher that never reads lets the kernel keep for it.
const SLOW_RECEIVE_BYTES: usize = 4096;
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// Nothing heard for this long, with something on its way: it will not come.
const STUCK: Duration = Duration::from_secs(15);
/// The longest sleep, so that progress is shown and curves have points.
const TICK: Duration = Duration::from_millis(50);

/// How a server is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) transport: Transport,
    /// The path of a job's stream.
    pub(crate) path: fn(&str) -> String,
    /// What to say after the handshake to watch a job.
    pub(crate) says: fn(&str) -> Vec<String>,
    /// What the server says when the watcher is in; empty: nothing, the handshake is enough.
    pub(crate) ready: &'static str,
    /// The answer to what a server asks to see whether somebody is there.
    pub(crate) answer: fn(&[u8]) -> Option<&'static str>,
}

/// What a watcher is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
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
    Handshake(TcpStream, Vec<u8>),
    Joining(TcpStream, Decoder),
    In(TcpStream, Decoder),
    /// In, and not read any more.
    Deaf {
        /// Held open.
        _stream: TcpStream,
    },
}

#[derive(Debug)]
struct Watcher {
    phase: Phase,
    job: usize,
    role: Role,
    /// The number of the last update it had.
    last: u32,
    opened: Instant,
}

/// How a crowd got in.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) took: Duration,
    pub(crate) refused: u64,
    /// What the first refusal said.
    pub(crate) complaint: Option<String>,
    /// From connecting to being in, in microseconds.
    pub(crate) each: Histogram<u64>,
}

/// Watchers and publisher.
#[derive(Debug)]
pub(crate) struct Crowd {
    poll: Poll,
    events: Events,
    door: Door,
    names: Vec<String>,
    watchers: Vec<Watcher>,
    buffer: Vec<u8>,
    pub(crate) tally: Tally,
    pub(crate) publisher: Option<Publisher>,
    /// Watchers on their way in.
    opening: usize,
    /// Watchers that are in.
    pub(crate) inside: usize,
    /// Connections the server ended.
    pub(crate) lost: u64,
    /// What ended the first of them.
    pub(crate) loss: Option<String>,
    /// Anything heard, also what is no update.
    pub(crate) stirred: Instant,
    arrival: Arrival,
    connects: usize,
    attempts: Vec<u32>,
}

impl Crowd {
    /// Nobody yet. Job number n is called `prefix-n`.
    pub(crate) fn new(door: Door, prefix: &str, jobs: usize) -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            door,
            names: (0..jobs).map(|job| format!("{prefix}-{job}")).collect(),
            watchers: Vec::new(),
            buffer: vec![0; READ_BUFFER_BYTES],
            tally: Tally::new(jobs)?,
            publisher: None,
            opening: 0,
            inside: 0,
            lost: 0,
            loss: None,
            stirred: Instant::now(),
            arrival: Arrival::new()?,
            connects: 0,
            attempts: vec![1; jobs],
        })
    }

    /// Lets everybody in, spread over the jobs; `watch` is called now and then to show progress.
    pub(crate) fn open(&mut self, watch: &Watch, mut show: impl FnMut(&Self)) -> Result<Arrival> {
        let slow = (watch.watchers as f64 * watch.slow).round() as usize;
        let churning = (watch.churn.ceil() as usize).min(watch.watchers.saturating_sub(slow) / 2);
        let began = Instant::now();
        self.arrival = Arrival::new()?;
        self.watchers.clear();
        self.inside = 0;
        let mut next = 0;
        while next < watch.watchers || self.opening > 0 {
            ensure!(
                began.elapsed() < CONNECT_WITHIN,
                "{} of {} watchers are in after {CONNECT_WITHIN:?}{}",
                self.inside,
                watch.watchers,
                self.complaint()
            );
            while next < watch.watchers && self.opening < watch.at_once {
                let role = match next {
                    n if n < slow => Role::Slow,
                    n if n < slow + churning => Role::Churning,
                    _ => Role::Steady,
                };
                self.watchers.push(Watcher {
                    phase: Phase::Closed,
                    job: next % self.names.len(),
                    role,
                    last: 0,
                    opened: Instant::now(),
                });
                self.connect(next)?;
                next += 1;
            }
            self.turn(TICK)?;
            show(self);
        }
        let arrival = Arrival {
            took: began.elapsed(),
            ..std::mem::replace(&mut self.arrival, Arrival::new()?)
        };
        for watcher in &self.watchers {
            if watcher.role == Role::Steady && !matches!(watcher.phase, Phase::Closed) {
                self.tally.joined(watcher.job);
            }
        }
        Ok(arrival)
    }

    fn complaint(&self) -> String {
        let said = self.arrival.complaint.as_ref().or(self.loss.as_ref());
        said.map_or_else(String::new, |said| format!(": {said}"))
    }

    fn connect(&mut self, index: usize) -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let watcher = &mut self.watchers[index];
        if watcher.role == Role::Slow {
            socket.set_recv_buffer_size(SLOW_RECEIVE_BYTES)?;
        }
        if self.door.address.ip().is_loopback() {
            let last = u8::try_from(2 + self.connects % SOURCES)?;
            let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
            socket.bind(&source.into())?;
        }
        self.connects += 1;
        watcher.opened = Instant::now();
        match socket.connect(&self.door.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
        let mut stream = TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(index), interest)?;
        watcher.phase = Phase::Connecting(stream);
        self.opening += 1;
        Ok(())
    }

    /// Connects the publisher.
    pub(crate) fn employ(&mut self, intake: Intake, connections: usize) -> Result<()> {
        let registry = self.poll.registry();
        self.publisher = Some(Publisher::connect(
            intake,
            connections,
            registry,
            PUBLISHER,
        )?);
        let began = Instant::now();
        while !self.publisher.as_ref().is_some_and(Publisher::is_ready) {
            ensure!(
                began.elapsed() < CONNECT_WITHIN,
                "the server does not greet the publisher"
            );
            self.turn(TICK)?;
        }
        Ok(())
    }

    /// Waits at most `patience` for something to happen, and takes in what has.
    pub(crate) fn turn(&mut self, patience: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(patience)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let tokens: Vec<Token> = self.events.iter().map(mio::event::Event::token).collect();
        for token in tokens {
            if token.0 < self.watchers.len() {
                self.on_watcher(token.0)?;
            } else if let Some(publisher) = &mut self.publisher {
                publisher.on_event(token, &mut self.buffer)?;
            }
        }
        Ok(())
    }

    fn on_watcher(&mut self, index: usize) -> Result<()> {
        let watcher = &mut self.watchers[index];
        let phase = std::mem::replace(&mut watcher.phase, Phase::Closed);
        watcher.phase = match phase {
            Phase::Connecting(mut stream) => {
                match stream.take_error()?.map_or(Ok(()), Err).and_then(|()| {
                    // Not connected yet: the readiness was of something else.
                    stream.peer_addr().map(drop)
                }) {
                    Ok(()) => {
                        let path = (self.door.path)(&self.names[watcher.job]);
                        let request = self.door.transport.request(self.door.address, &path);
                        stream.write_all(&request)?;
                        Phase::Handshake(stream, Vec::new())
                    }
                    Err(error) if error.kind() == ErrorKind::NotConnected => {
                        Phase::Connecting(stream)
                    }
                    Err(error) => return self.turned_away(&error.to_string()),
                }
            }
            Phase::Handshake(mut stream, mut answer) => {
                let before = answer.len();
                let ended = match read_all(&mut stream, &mut self.buffer, |bytes| {
                    answer.extend_from_slice(bytes);
                    Ok(())
                }) {
                    Ok(ended) => ended,
                    Err(error) => return self.turned_away(&error.to_string()),
                };
                match self.door.transport.accept(&answer) {
                    Ok(Some((decoder, head))) => {
                        for line in (self.door.says)(&self.names[watcher.job]) {
                            stream.write_all(&masked(1, line.as_bytes()))?;
                        }
                        watcher.phase = Phase::Joining(stream, decoder);
                        return self.hear_joining(index, &answer[head..]);
                    }
                    Ok(None) if ended || (before == answer.len() && before > 0) => {
                        return self.turned_away("the server closed during the handshake");
                    }
                    Ok(None) => Phase::Handshake(stream, answer),
                    Err(error) => return self.turned_away(&error.to_string()),
                }
            }
            joining @ Phase::Joining(..) => {
                watcher.phase = joining;
                return self.read_joining(index);
            }
            Phase::In(stream, decoder) => {
                watcher.phase = Phase::In(stream, decoder);
                return self.read(index);
            }
            other @ (Phase::Closed | Phase::Deaf { .. }) => other,
        };
        Ok(())
    }

    fn turned_away(&mut self, why: &str) -> Result<()> {
        self.opening -= 1;
        self.arrival.refused += 1;
        self.arrival.complaint.get_or_insert_with(|| why.to_owned());
        Ok(())
    }

    fn read_joining(&mut self, index: usize) -> Result<()> {
        let mut bytes = Vec::new();
        let Phase::Joining(stream, _) = &mut self.watchers[index].phase else {
            return Ok(());
        };
        let ended = read_all(stream, &mut self.buffer, |some| {
            bytes.extend_from_slice(some);
            Ok(())
        });
        self.hear_joining(index, &bytes)?;
        if !matches!(ended, Ok(false)) && matches!(self.watchers[index].phase, Phase::Joining(..)) {
            self.watchers[index].phase = Phase::Closed;
            return self.turned_away("the server closed before the watcher was in");
        }
        Ok(())
    }

    /// Looks for the word that says that the watcher is in; what comes with it counts already.
    fn hear_joining(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let now = Instant::now();
        self.stirred = now;
        let Self {
            watchers,
            tally,
            door,
            ..
        } = self;
        let watcher = &mut watchers[index];
        let Phase::Joining(mut stream, mut decoder) =
            std::mem::replace(&mut watcher.phase, Phase::Closed)
        else {
            return Ok(());
        };
        let (mut is_in, mut reply) = (door.ready.is_empty(), None);
        let steady = watcher.role == Role::Steady;
        let pong = decoder.feed(bytes, |message| {
            if let Message::Text(text) = message {
                is_in |= memmem::find(text, door.ready.as_bytes()).is_some();
                reply = (door.answer)(text).or(reply);
                tally.heard(watcher.job, &mut watcher.last, steady, text, now);
            }
        })?;
        if let Some(pong) = pong {
            stream.write_all(&pong)?;
        }
        if let Some(reply) = reply {
            stream.write_all(&masked(1, reply.as_bytes()))?;
        }
        if !is_in {
            watcher.phase = Phase::Joining(stream, decoder);
            return Ok(());
        }
        self.opening -= 1;
        self.inside += 1;
        let micros = u64::try_from((now - watcher.opened).as_micros()).unwrap_or(u64::MAX);
        self.arrival.each.saturating_record(micros);
        watcher.phase = if watcher.role == Role::Slow {
            self.poll.registry().deregister(&mut stream)?;
            Phase::Deaf { _stream: stream }
        } else {
            Phase::In(stream, decoder)
        };
        Ok(())
    }

    fn read(&mut self, index: usize) -> Result<()> {
        let now = Instant::now();
        let Self {
            watchers,
            buffer,
            tally,
            door,
            stirred,
            ..
        } = self;
        let watcher = &mut watchers[index];
        let Phase::In(stream, decoder) = &mut watcher.phase else {
            return Ok(());
        };
        let (job, last) = (watcher.job, &mut watcher.last);
        let steady = watcher.role == Role::Steady;
        let (mut reply, mut said, mut pong) = (None, None, None);
        let ended = read_all(stream, buffer, |bytes| {
            *stirred = now;
            let answer = decoder.feed(bytes, |message| match message {
                Message::Text(text) => {
                    tally.heard(job, last, steady, text, now);
                    reply = (door.answer)(text).or(reply);
                }
                Message::Heartbeat => {}
                Message::Close(code) => said = Some(code),
            })?;
            pong = answer.or(pong.take());
            Ok(())
        });
        if let Some(pong) = pong {
            stream.write_all(&pong)?;
        }
        if let Some(reply) = reply {
            stream.write_all(&masked(1, reply.as_bytes()))?;
        }
        let why = match ended {
            Ok(false) => return Ok(()),
            Ok(true) => format!("closed, code {said:?}"),
            Err(error) => error.to_string(),
        };
        watcher.phase = Phase::Closed;
        self.inside -= 1;
        self.lost += 1;
        self.loss.get_or_insert(why);
        Ok(())
    }

    /// Publishes as the scenario says until all is told, or nothing more comes. `show` is called about
    /// [`TICK`] apart.
    pub(crate) fn drive(&mut self, plan: &Plan<'_>, mut show: impl FnMut(&mut Self)) -> Result<()> {
        let began = Instant::now();
        let (mut sent, mut left) = (0, plan.publish.updates);
        let mut shares = Shares::default();
        let mut churned = 0;
        let mut progress = Instant::now();
        let mut before = (0, 0);
        loop {
            let now = Instant::now();
            while left > 0 {
                let at = match plan.publish.rate {
                    Some(rate) => began + Duration::from_secs_f64(sent as f64 / rate),
                    None if self.under_way() < plan.publish.window => now,
                    None => break,
                };
                if at > now {
                    break;
                }
                let job = (sent % self.names.len() as u64) as usize;
                let last_round = plan.publish.end && left <= self.names.len() as u64;
                self.publish(job, shares.next(plan.publish, last_round), plan.payload, at);
                sent += 1;
                left -= 1;
            }
            if let Some(publisher) = &mut self.publisher {
                publisher.flush()?;
            }
            if plan.churn > 0.0 && began.elapsed().as_secs_f64() * plan.churn > f64::from(churned) {
                churned += 1;
                self.churn(churned as usize)?;
            }
            if left == 0 && self.under_way() == 0 {
                return Ok(());
            }
            let progressed = (self.tally.counts.deliveries, self.under_way());
            if progressed != before {
                (before, progress) = (progressed, now);
            } else if progress.elapsed() > STUCK && (left == 0 || plan.publish.rate.is_none()) {
                if left == 0 {
                    // What has not come will not; the report says how much it is.
                    return Ok(());
                }
                bail!(
                    "stuck: {} updates have not reached everybody within {STUCK:?}, {} connections lost{}",
                    self.under_way(),
                    self.lost,
                    self.complaint()
                );
            }
            let next = plan.publish.rate.filter(|_| left > 0).map(|rate| {
                (began + Duration::from_secs_f64(sent as f64 / rate))
                    .saturating_duration_since(Instant::now())
            });
            self.turn(next.unwrap_or(TICK).min(TICK))?;
            show(self);
        }
    }

    /// Updates that are not everywhere yet, or not acknowledged.
    fn under_way(&self) -> u64 {
        let unanswered = self.publisher.as_ref().map_or(0, Publisher::unanswered);
        self.tally.outstanding().max(unanswered)
    }

    fn publish(&mut self, job: usize, class: Class, payload: usize, at: Instant) {
        let body = document(self.tally.next(job), class, self.attempts[job], payload);
        self.tally.published(job, at, class);
        if class == Class::Ending {
            self.attempts[job] += 1;
        }
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(&self.names[job], class, &body);
        }
    }

    /// One of those who come and go leaves, and another comes.
    fn churn(&mut self, turn: usize) -> Result<()> {
        let churning = |watcher: &Watcher| watcher.role == Role::Churning;
        let first = self.watchers.iter().position(churning);
        let count = self.watchers.iter().filter(|each| churning(each)).count();
        let Some(index) = first.map(|first| first + turn % count) else {
            return Ok(());
        };
        if !matches!(self.watchers[index].phase, Phase::In(..)) {
            return Ok(());
        }
        self.watchers[index].phase = Phase::Closed;
        self.inside -= 1;
        self.connect(index)
    }

    /// Waits until nothing was heard for a while.
    pub(crate) fn settle(&mut self, quiet: Duration) -> Result<()> {
        self.stirred = Instant::now();
        while self.stirred.elapsed() < quiet {
            self.turn(TICK)?;
        }
        Ok(())
    }

    /// Hangs up everywhere.
    pub(crate) fn leave(&mut self) {
        self.watchers.clear();
        self.inside = 0;
        self.opening = 0;
    }
}

/// Linux' number for a connection that is being made.
const EINPROGRESS: i32 = 115;

impl Arrival {
    fn new() -> Result<Self> {
        Ok(Self {
            took: Duration::ZERO,
            refused: 0,
            complaint: None,
            each: Histogram::new_with_bounds(1, 120_000_000, 3)?,
        })
    }
}

/// What to publish, and how large.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) publish: &'a Publish,
    pub(crate) payload: usize,
    pub(crate) churn: f64,
}

/// Spreads milestones and endings evenly among states.
#[derive(Debug, Default)]
struct Shares {
    milestones: f64,
    endings: f64,
}

impl Shares {
    fn next(&mut self, publish: &Publish, last_round: bool) -> Class {
        self.milestones += publish.milestones;
        self.endings += publish.endings;
        if last_round || self.endings >= 1.0 {
            self.endings -= self.endings.floor();
            Class::Ending
        } else if self.milestones >= 1.0 {
            self.milestones -= 1.0;
            Class::Milestone
        } else {
            Class::State
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_spread_evenly_and_the_last_round_ends() {
        let publish = Publish {
            milestones: 0.25,
            endings: 0.5,
            ..Publish::default()
        };
        let mut shares = Shares::default();
        let classes: Vec<Class> = (0..8).map(|_| shares.next(&publish, false)).collect();
        let count = |class| classes.iter().filter(|each| **each == class).count();
        assert_eq!((count(Class::Ending), count(Class::State)), (4, 3));
        assert_eq!(count(Class::Milestone), 1);
        assert_eq!(shares.next(&publish, true), Class::Ending);
    }
}
