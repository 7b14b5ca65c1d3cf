//! `relay watch`: jobs in a terminal, live, until they end.
//!
//! It owns the way of one watch: connect, follow, come back where it left off, and the exit code that
//! tells a script how the jobs ended. What is known is on the `board`; how it looks is a `view`.
//!
//! Invariant: whatever happens to the connection, the watching goes on from the last cursor until the
//! jobs end, the server refuses, it cannot be reached for `--timeout`, or somebody presses Ctrl-C.

mod board;
mod frame;
mod link;
mod text;
mod view;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use http::StatusCode;
use relay_core::backoff::Backoff;
use relay_core::id::Named;
use relay_core::topic::{Topic, TopicError};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use self::board::{Board, Ending};
use self::frame::{Frame, Unreadable};
use self::link::{Link, Lost, OpenError};
use self::view::{View, Wanted, view};
use super::http_client::{Call, ServerArgs, Token, call};

/// How often the screen is refreshed between updates.
const TICK: Duration = Duration::from_millis(200);
const BACKOFF: Backoff = Backoff::doubling(Duration::from_millis(500), Duration::from_secs(15));
/// A connection that stood this long was a good one: the next attempt starts without delay.
const STOOD: Duration = Duration::from_secs(5);
/// The longest a server may ask us to stay away.
const LONGEST_AWAY: Duration = Duration::from_secs(60);
/// How long to ask for a state that the cursor left out.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Watch jobs in the terminal
///
/// Shows a progress bar for each job, prints milestones above them, survives restarts of the server, and
/// ends when the jobs do. Where stdout is not a terminal it prints one plain line per change.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  relay watch job:clip-42                     one job, until it ends
  relay watch clip-42 && xdg-open clip.mp4    go on only if it completed
  relay watch job:a job:b job:c               several, until all have ended
  relay watch user:alice                      all jobs of a user, until Ctrl-C
  relay watch group:batch-7 --until-ended     the children of a job, until none is left
  relay watch job:clip-42 --json | jq .job.progress
  RELAY_TOKEN=$(cat token) relay watch user:alice --url http://relay.internal:8080

Exit codes:
  0  completed (all of them)       3  cancelled (at least one, and none failed)
  1  failed (at least one)         4  the server could not be reached for --timeout
  2  usage, or the server rejected  130  Ctrl-C")]
pub(super) struct WatchArgs {
    /// What to watch: job:ID (or just ID), user:ID or group:ID
    #[arg(required = true, value_name = "TOPIC", value_parser = topic)]
    topics: Vec<Topic>,
    #[command(flatten)]
    server: ServerArgs,
    /// Go on from this cursor instead of starting with a snapshot
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// Print the server's frames, one JSON object a line
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print nothing but errors; the exit code tells
    #[arg(long, short)]
    quiet: bool,
    /// Stop when every job seen has ended, also for user: and group:
    #[arg(long, conflicts_with = "follow")]
    until_ended: bool,
    /// Go on after the endings, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Give up when the server cannot be reached for this long; 0s: never
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// How a watch ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Ended(Ending),
    Refused(String),
    Unreachable(String),
    Interrupted,
    /// Whoever read stdout has left.
    NobodyReads,
}

impl Outcome {
    fn code(&self) -> u8 {
        match self {
            Self::Ended(Ending::Completed) => 0,
            Self::Ended(Ending::Failed) => 1,
            Self::Refused(_) => 2,
            Self::Ended(Ending::Cancelled) => 3,
            Self::Unreachable(_) => 4,
            Self::Interrupted => 130,
            // As a program has it that the signal ended.
            Self::NobodyReads => 141,
        }
    }
}

impl From<io::Error> for Outcome {
    fn from(_: io::Error) -> Self {
        Self::NobodyReads
    }
}

/// Watches, and says with the exit code how the jobs ended.
pub(super) async fn run(args: WatchArgs) -> ExitCode {
    let wanted = match (args.json, args.quiet) {
        (true, _) => Wanted::Json,
        (_, true) => Wanted::Quiet,
        (false, false) => Wanted::People,
    };
    let until_ended = if args.follow {
        Some(false)
    } else {
        args.until_ended.then_some(true)
    };
    let board = Board::new(&args.topics, until_ended);
    let view = view(wanted, &board);
    let mut watch = Watch {
        topics: args.topics,
        server: args.server,
        timeout: args.timeout,
        cursor: args.cursor.map(Cursor::Given),
        shown_token: None,
        refused_token: None,
        board,
        view,
    };
    let outcome = tokio::select! {
        outcome = watch.run() => outcome,
        _ = tokio::signal::ctrl_c() => Outcome::Interrupted,
    };
    // With the terminal gone there is no screen to leave in order.
    drop(watch.view.close());
    if let Outcome::Refused(sentence) | Outcome::Unreachable(sentence) = &outcome {
        drop(writeln!(io::stderr().lock(), "relay watch: {sentence}"));
    }
    ExitCode::from(outcome.code())
}

/// Where to go on from.
#[derive(Debug, Clone)]
enum Cursor {
    /// The person's; if it is not accepted, say so.
    Given(String),
    /// From a frame of this watch.
    Seen(String),
}

impl Cursor {
    fn text(&self) -> &str {
        match self {
            Self::Given(text) | Self::Seen(text) => text,
        }
    }
}

/// Why there is no connection, with the jobs still going on, and how long the server wants us to wait.
type Pause = (String, Option<Duration>);

struct Watch {
    topics: Vec<Topic>,
    server: ServerArgs,
    timeout: Duration,
    cursor: Option<Cursor>,
    /// The token of the last attempt, and one that the server has refused.
    shown_token: Option<Token>,
    refused_token: Option<Token>,
    board: Board,
    view: Box<dyn View>,
}

impl Watch {
    /// Connects, follows, and comes back until there is an outcome.
    async fn run(&mut self) -> Outcome {
        match self.keep_watching().await {
            Ok(never) => match never {},
            Err(outcome) => outcome,
        }
    }

    async fn keep_watching(&mut self) -> Result<std::convert::Infallible, Outcome> {
        let mut failures = 0;
        let mut out_of_reach_since = Instant::now();
        loop {
            let (why, wait) = match self.connect().await? {
                Ok(link) => {
                    self.view.connection(None)?;
                    let opened_at = Instant::now();
                    let pause = self.follow(link).await?;
                    out_of_reach_since = Instant::now();
                    if opened_at.elapsed() >= STOOD {
                        failures = 0;
                    }
                    pause
                }
                Err(pause) => pause,
            };
            let wait = match wait {
                Some(wait) => wait.min(LONGEST_AWAY),
                None => BACKOFF.delay(failures, fastrand::u64(..)),
            };
            failures += 1;
            let patience = match self.timeout {
                Duration::ZERO => LONGEST_AWAY,
                timeout => timeout.saturating_sub(out_of_reach_since.elapsed()),
            };
            if patience.is_zero() {
                return Err(Outcome::Unreachable(why));
            }
            self.wait(&why, wait.min(patience)).await?;
        }
    }

    /// One attempt to connect: a link, or why there is none for now.
    async fn connect(&mut self) -> Result<Result<Link, Pause>, Outcome> {
        let token = self
            .server
            .token()
            .map_err(|error| Outcome::Refused(error.to_string()))?;
        if token.is_some() && token == self.refused_token {
            return Err(Outcome::Refused(
                "the token has expired or is not accepted".to_owned(),
            ));
        }
        self.shown_token.clone_from(&token);
        let cursor = self.cursor.as_ref().map(Cursor::text);
        let error = match Link::open(&self.server.server(), token, &self.topics, cursor).await {
            Ok(link) => return Ok(Ok(link)),
            Err(error) => error,
        };
        let why = error.to_string();
        match (error, &self.cursor) {
            (OpenError::Unreachable(error), _) if error.is_final() => Err(Outcome::Refused(why)),
            (OpenError::Unreachable(_), _) => Ok(Err((why, None))),
            (OpenError::Busy { retry_after, .. }, _) => Ok(Err((why, retry_after))),
            (OpenError::Unauthenticated { .. }, _) => self.token_refused(why).map(Err),
            // Ours was good once, so the history has moved on: start again with snapshots.
            (OpenError::BadCursor { .. }, Some(Cursor::Seen(_))) => {
                self.cursor = None;
                Ok(Err((why, Some(Duration::ZERO))))
            }
            (OpenError::BadCursor { .. } | OpenError::Refused { .. }, _) => {
                Err(Outcome::Refused(why))
            }
        }
    }

    /// A refused token is the end, unless it is a file's, which may hold another one by now.
    fn token_refused(&mut self, why: String) -> Result<Pause, Outcome> {
        if self.server.token_file.is_none()
            || self.server.token().ok() == Some(self.shown_token.clone())
        {
            return Err(Outcome::Refused(why));
        }
        self.refused_token = self.shown_token.take();
        Ok((why, None))
    }

    async fn wait(&mut self, why: &str, wait: Duration) -> Result<(), Outcome> {
        let again_at = Instant::now() + wait;
        self.view.connection(Some((why, wait)))?;
        while Instant::now() < again_at {
            tokio::time::sleep_until(again_at.min(Instant::now() + TICK)).await;
            self.view.tick(&self.board)?;
        }
        Ok(())
    }

    /// Follows one connection until it is over, or the jobs are.
    async fn follow(&mut self, mut link: Link) -> Result<Pause, Outcome> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let text = tokio::select! {
                heard = link.next() => match heard {
                    Ok(text) => text,
                    Err(lost) => return self.pause(lost),
                },
                _ = tick.tick() => {
                    self.view.tick(&self.board)?;
                    continue;
                }
            };
            if let Some(pause) = self.hear(&text).await? {
                link.close().await;
                return Ok(pause);
            }
            if let Some(ending) = self.board.verdict() {
                link.close().await;
                return Err(Outcome::Ended(ending));
            }
        }
    }

    /// Takes in one frame.
    async fn hear(&mut self, text: &str) -> Result<Option<Pause>, Outcome> {
        self.view.frame(text)?;
        let frame = match Frame::read(text) {
            Ok(frame) => frame,
            Err(unreadable) => return Ok(Some(self.ask_anew(&unreadable))),
        };
        if let Some(cursor) = frame.cursor() {
            self.cursor = Some(Cursor::Seen(cursor.to_owned()));
        }
        match frame {
            Frame::Subscribed {
                topic,
                recovered,
                jobs,
                ..
            } => {
                if recovered {
                    let asked = self.ask_for_what_the_cursor_left_out(&topic).await?;
                    if let Err(pause) = asked {
                        return Ok(Some(pause));
                    }
                } else if jobs == 0 {
                    self.board.forgotten(&topic);
                }
                if jobs == 0 {
                    self.view.subscribed(&self.board)?;
                }
            }
            Frame::State { job, stale, .. } => self.state(job, stale)?,
            Frame::Milestone {
                job_id, name, data, ..
            } => self.view.milestone(&job_id, &name, &data)?,
            Frame::Gap { job_id, reason } => self.view.gap(job_id.as_deref(), &reason)?,
            Frame::Gone {
                job_id,
                reason,
                last_status,
                ..
            } => {
                self.board.gone(&job_id, last_status.as_deref());
                self.view.gone(&self.board, &job_id, &reason)?;
            }
            Frame::Error { code, message } => return self.refusal(&code, message).map(Some),
            Frame::ServerShutdown { retry_ms } => {
                let wait = Duration::from_millis(retry_ms);
                return Ok(Some(("the server restarts".to_owned(), Some(wait))));
            }
            Frame::Hello {} | Frame::Other => {}
        }
        Ok(None)
    }

    /// A frame that cannot be read may have been an ending: all is asked for anew, as a snapshot.
    fn ask_anew(&mut self, unreadable: &Unreadable) -> Pause {
        self.cursor = None;
        (format!("{unreadable}; asking for the states anew"), None)
    }

    fn state(&mut self, job: frame::Job, stale: bool) -> io::Result<()> {
        let news = self.board.state(job.clone());
        self.view.stale(stale)?;
        self.view.state(&self.board, &job, news)
    }

    fn refusal(&mut self, code: &str, message: String) -> Result<Pause, Outcome> {
        match code {
            "unauthenticated" => self.token_refused(message),
            "rate_limited" => Ok((message, None)),
            _ => Err(Outcome::Refused(message)),
        }
    }

    fn pause(&mut self, lost: Lost) -> Result<Pause, Outcome> {
        match lost {
            Lost::Refused(why) => Err(Outcome::Refused(why)),
            Lost::Unauthenticated(why) => self.token_refused(why),
            Lost::Broken(why) => Ok((why, None)),
        }
    }

    /// A watch that starts at somebody's cursor hears only what is newer. Of a job that had ended by then
    /// there is nothing newer, so its state is asked for: nobody should wait for an ending that is past.
    async fn ask_for_what_the_cursor_left_out(
        &mut self,
        topic: &str,
    ) -> Result<Result<(), Pause>, Outcome> {
        #[derive(Deserialize)]
        struct Polled<'a> {
            #[serde(borrow)]
            frames: Vec<&'a RawValue>,
        }
        let id = topic.split_once(':').map_or("", |(_, id)| id);
        if !self.board.waits_for_endings() || self.board.knows(id) {
            return Ok(Ok(()));
        }
        let mut request = Call::get(format!("/v1/poll?topic={topic}&wait=2"));
        request.token = self
            .server
            .token()
            .map_err(|error| Outcome::Refused(error.to_string()))?;
        let answer = match call(&self.server.server(), request, ASK_WITHIN).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err((error.to_string(), None))),
        };
        if answer.status != StatusCode::OK {
            return Ok(Err((answer.sentence(), answer.retry_after())));
        }
        let polled = match serde_json::from_slice::<Polled<'_>>(&answer.body) {
            Ok(polled) => polled,
            Err(error) => return Ok(Err(self.ask_anew(&error.into()))),
        };
        for frame in polled.frames {
            match Frame::read(frame.get()) {
                Ok(Frame::State { job, stale, .. }) if !self.board.knows(&job.job_id) => {
                    self.state(job, stale)?;
                }
                Ok(_) => {}
                Err(unreadable) => return Ok(Err(self.ask_anew(&unreadable))),
            }
        }
        Ok(Ok(()))
    }
}

/// A topic; a bare id is a job's.
fn topic(text: &str) -> Result<Topic, TopicError> {
    if text.contains(':') {
        Topic::parse(text)
    } else {
        Ok(Topic::Job(Named::parse(text)?))
    }
}

#[cfg(test)]
mod tests;
