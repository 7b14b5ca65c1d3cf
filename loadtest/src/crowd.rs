//! Thousands of watchers and the publisher that feeds them, on one thread and one poll.
//!
//! Sockets are read when they have something, into one buffer that all share; no task, timer or queue stands
//! behind a connection. It lets watchers in and counts who is there; what one of them does is in `watcher`,
//! what is published is in `drive`.
//!
//! Invariant: a watcher is counted as steady, slow or coming and going from its opening on, and stays that.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token};
use tokio::time::Instant;

use crate::door::Door;
use crate::publisher::{Intake, Publisher};
use crate::scenario::Watch;
use crate::tally::Tally;

mod drive;
mod watcher;

pub(crate) use drive::Plan;
use watcher::{Outcome, Role, Service, Watcher};

/// Connections are spread over this many loopback addresses, so that neither ports nor limits per address
/// are an obstacle.
const SOURCES: usize = 100;
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Few enough that what is due to be published does not wait long behind what is being read.
const EVENTS: usize = 256;
/// Connections made before answers are looked at. A client that first made all of a wave would let the
/// server's backlog run over while the server waits for the processor, and TCP asks again only after a second.
const BATCH: usize = 64;
/// Beyond every watcher's token.
const PUBLISHER: usize = 1 << 40;
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// The longest sleep, so that progress is shown and curves have points.
const TICK: Duration = Duration::from_millis(50);

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
    stirred: Instant,
    arrival: Arrival,
    connects: usize,
    /// Of each job.
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

    /// Lets everybody in, spread over the jobs; `show` is called now and then to show progress.
    pub(crate) fn open(&mut self, watch: &Watch, mut show: impl FnMut(&Self)) -> Result<Arrival> {
        let slow = (watch.watchers as f64 * watch.slow).round() as usize;
        let churning = (watch.churn.ceil() as usize).min(watch.watchers.saturating_sub(slow) / 2);
        let began = Instant::now();
        self.arrival = Arrival::new()?;
        self.leave();
        let mut next = 0;
        while next < watch.watchers || self.opening > 0 {
            ensure!(
                began.elapsed() < CONNECT_WITHIN,
                "{} of {} watchers are in after {CONNECT_WITHIN:?}{}",
                self.inside,
                watch.watchers,
                self.complaint()
            );
            let room = watch.at_once - self.opening;
            let batch = room.min(watch.watchers - next).min(BATCH);
            for _ in 0..batch {
                let role = match next {
                    n if n < slow => Role::Slow,
                    n if n < slow + churning => Role::Churning,
                    _ => Role::Steady,
                };
                self.watchers
                    .push(Watcher::new(next % self.names.len(), role));
                self.connect(next)?;
                next += 1;
            }
            let more = next < watch.watchers && self.opening < watch.at_once;
            self.turn(if more { Duration::ZERO } else { TICK })?;
            show(self);
        }
        let arrival = Arrival {
            took: began.elapsed(),
            ..std::mem::replace(&mut self.arrival, Arrival::new()?)
        };
        for watcher in &self.watchers {
            if watcher.is_steady_and_open() {
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
        let source = self.door.address.ip().is_loopback().then(|| {
            let last = u8::try_from(2 + self.connects % SOURCES).unwrap_or(u8::MAX);
            Ipv4Addr::new(127, 0, 0, last)
        });
        self.connects += 1;
        self.opening += 1;
        let watcher = &mut self.watchers[index];
        let service = Service {
            door: &self.door,
            registry: self.poll.registry(),
            buffer: &mut self.buffer,
            tally: &mut self.tally,
        };
        let name = &self.names[watcher.job];
        let outcome = watcher.connect(&service, name, source, Token(index))?;
        self.take_in(index, outcome, Instant::now());
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
        let now = Instant::now();
        self.stirred = now;
        let watcher = &mut self.watchers[index];
        let mut service = Service {
            door: &self.door,
            registry: self.poll.registry(),
            buffer: &mut self.buffer,
            tally: &mut self.tally,
        };
        let outcome = watcher.on_ready(&mut service, &self.names[watcher.job], now)?;
        self.take_in(index, outcome, now);
        Ok(())
    }

    fn take_in(&mut self, index: usize, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Ongoing => {}
            Outcome::Entered => {
                self.opening -= 1;
                self.inside += 1;
                let took = now.saturating_duration_since(self.watchers[index].opened);
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.arrival.each.saturating_record(micros);
            }
            Outcome::TurnedAway(why) => {
                self.opening -= 1;
                self.arrival.refused += 1;
                self.arrival.complaint.get_or_insert(why);
            }
            Outcome::Lost(why) => {
                self.inside -= 1;
                self.lost += 1;
                self.loss.get_or_insert(why);
            }
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
        if self.watchers[index].leave() {
            self.inside -= 1;
            self.connect(index)?;
        }
        Ok(())
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
