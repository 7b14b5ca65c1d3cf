//! Progress bars on a terminal: the jobs that go on below, what happened above.
//!
//! It knows how things look and nothing of where they come from.
//!
//! Invariant: at most [`MOST_BARS`] bars; the other live jobs are counted in the last line.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::time::Instant;

use super::View;
use crate::cli::watch::board::{Board, News, StatusCounts};
use crate::cli::watch::frame::{Job, Status};
use crate::cli::watch::text::{duration, printable};

/// As many bars as fit a usual terminal with room for the news above them.
const MOST_BARS: usize = 16;
/// A running job that says nothing for this long is worth a word.
const QUIET_AFTER: Duration = Duration::from_secs(30);
/// Ids are padded to the longest in sight, and cut to this many characters.
const LONGEST_ID: usize = 32;
/// Milestone data is cut to this many characters.
const LONGEST_DATA: usize = 160;

const BAR: &str = "{prefix:.bold}  {bar:28.green/dim}  {percent:>3}%  {wide_msg}";
const SPINNER: &str = "{prefix:.bold}  {spinner:.green}  {wide_msg}";
const WAITING: &str = "{prefix:.bold}  {spinner:.dim}  {wide_msg:.dim}";
const FOOT: &str = "{wide_msg:.dim}";
const TROUBLE: &str = "{spinner:.yellow} {wide_msg:.yellow}";

/// One job's row.
#[derive(Debug)]
struct Row {
    bar: ProgressBar,
    /// When the row's job was last heard of; its ETA counts down from there.
    heard_at: Instant,
    template: &'static str,
}

/// The screen.
#[derive(Debug)]
pub(super) struct Bars {
    screen: MultiProgress,
    rows: BTreeMap<String, Row>,
    /// The width of the ids' column; it only grows, so that bars do not jump.
    id_width: usize,
    /// Counts of jobs, where there may be more than one.
    foot: Option<ProgressBar>,
    /// What is wrong with the connection.
    trouble: Option<ProgressBar>,
    stale: bool,
}

impl Bars {
    pub(super) fn new(crowd: bool) -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let foot = crowd.then(|| screen.add(line(FOOT)));
        Self {
            screen,
            rows: BTreeMap::new(),
            id_width: 0,
            foot,
            trouble: None,
            stale: false,
        }
    }

    /// The row of a job, made if there is room for one more.
    fn row(&mut self, id: &str, template: &'static str) -> Option<&mut Row> {
        if !self.rows.contains_key(id) {
            if self.rows.len() >= MOST_BARS {
                return None;
            }
            // In order of id, above the foot.
            let below = self
                .rows
                .range(id.to_owned()..)
                .next()
                .map(|(_, row)| row.bar.clone());
            let bar = line(template);
            let bar = match below
                .or_else(|| self.foot.clone())
                .or_else(|| self.trouble.clone())
            {
                Some(below) => self.screen.insert_before(&below, bar),
                None => self.screen.add(bar),
            };
            let row = Row {
                bar,
                heard_at: Instant::now(),
                template,
            };
            self.rows.insert(id.to_owned(), row);
            self.label(id);
        }
        let row = self.rows.get_mut(id)?;
        if row.template != template {
            row.template = template;
            row.bar.set_style(style(template));
        }
        Some(row)
    }

    /// Puts a new row's id in front of it, and makes the column wider for all if need be.
    fn label(&mut self, id: &str) {
        let name = |id: &str| cut(&printable(id), LONGEST_ID);
        let width = name(id).chars().count().max(self.id_width);
        let grown = width > self.id_width;
        self.id_width = width;
        for (other, row) in &self.rows {
            if grown || other == id {
                row.bar.set_prefix(format!("{:width$}", name(other)));
            }
        }
    }

    fn show(&mut self, job: &Job, heard: bool) {
        let template = if job.percent().is_some() {
            BAR
        } else {
            SPINNER
        };
        let stale = self.stale;
        let Some(row) = self.row(&job.job_id, template) else {
            return;
        };
        if heard {
            row.heard_at = Instant::now();
        }
        let silent = row.heard_at.elapsed();
        row.bar.set_message(words(job, silent, stale));
        if let Some(percent) = job.percent() {
            row.bar.set_position(percent);
        }
        row.bar.tick();
    }

    fn drop_row(&mut self, board: &Board, id: &str) {
        if let Some(row) = self.rows.remove(id) {
            row.bar.finish_and_clear();
            self.screen.remove(&row.bar);
        }
        let next = board
            .live()
            .find(|job| !self.rows.contains_key(&job.job_id))
            .cloned();
        if let Some(job) = next.filter(|_| self.rows.len() < MOST_BARS) {
            self.show(&job, true);
        }
    }

    fn count(&self, board: &Board) {
        if let Some(foot) = &self.foot {
            let hidden = board.live().count().saturating_sub(self.rows.len());
            foot.set_message(summary(board.tally(), hidden));
            foot.tick();
        }
    }
}

impl View for Bars {
    fn subscribed(&mut self, board: &Board) -> io::Result<()> {
        let rows = self.rows.keys();
        let over: Vec<_> = rows.filter(|id| !board.is_awaited(id)).cloned().collect();
        for id in over {
            self.drop_row(board, &id);
        }
        for id in board.unknown() {
            if let Some(row) = self.row(id, WAITING) {
                row.bar.set_message("waiting for its first update");
                row.bar.tick();
            }
        }
        self.count(board);
        Ok(())
    }

    fn state(&mut self, board: &Board, job: &Job, news: News) -> io::Result<()> {
        match news {
            News::Ended => {
                self.drop_row(board, &job.job_id);
                self.screen.println(ending(job))?;
            }
            News::Live => self.show(job, true),
            News::Nothing => {}
        }
        self.count(board);
        Ok(())
    }

    fn milestone(&mut self, job_id: &str, name: &str, data: &Value) -> io::Result<()> {
        let data = match data {
            Value::Null => String::new(),
            Value::Object(map) if map.is_empty() => String::new(),
            data => cut(&printable(&data.to_string()), LONGEST_DATA),
        };
        let (id, name) = (printable(job_id), printable(name));
        self.screen
            .println(format!("◆ {id}  {name}  {data}").trim_end())
    }

    fn gap(&mut self, job_id: Option<&str>, _reason: &str) -> io::Result<()> {
        let id = printable(job_id.unwrap_or_default());
        self.screen.println(format!(
            "… {id}  some milestones were lost; the state is whole"
        ))
    }

    fn gone(&mut self, board: &Board, job_id: &str) -> io::Result<()> {
        self.drop_row(board, job_id);
        self.count(board);
        self.screen.println(format!(
            "– {}  gone: expired from the relay's history",
            printable(job_id)
        ))
    }

    fn stale(&mut self, stale: bool) -> io::Result<()> {
        self.stale = stale;
        Ok(())
    }

    fn connection(&mut self, trouble: Option<(&str, Duration)>) -> io::Result<()> {
        match trouble {
            Some((why, wait)) => {
                let screen = &self.screen;
                let bar = self
                    .trouble
                    .get_or_insert_with(|| screen.add(line(TROUBLE)));
                let seconds = wait.as_secs_f64();
                bar.set_message(format!(
                    "{}; trying again in {seconds:.1} s",
                    printable(why)
                ));
                bar.tick();
            }
            None => {
                if let Some(bar) = self.trouble.take() {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, board: &Board) -> io::Result<()> {
        let ids: Vec<_> = self.rows.keys().cloned().collect();
        for id in ids {
            match board.live_job(&id) {
                Some(job) => self.show(job, false),
                None => {
                    if let Some(row) = self.rows.get(&id) {
                        row.bar.tick();
                    }
                }
            }
        }
        if let Some(bar) = &self.trouble {
            bar.tick();
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(foot) = self.foot.take() {
            foot.finish();
        }
        if let Some(bar) = self.trouble.take() {
            bar.finish_and_clear();
        }
        for row in self.rows.values() {
            row.bar.abandon();
        }
        Ok(())
    }
}

fn line(template: &str) -> ProgressBar {
    ProgressBar::new(100).with_style(style(template))
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants, tried in a test; the default style would show the same numbers.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
        .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
}

/// `ETA ~1m 20s  encoding: frame 400 of 1000`, what matters most first since the end may be cut off.
fn words(job: &Job, silent: Duration, stale: bool) -> String {
    let mut words = Vec::new();
    if stale {
        words.push("may be old (the relay does not reach its bus)".to_owned());
    }
    match job.status {
        Status::Queued => words.push("queued".to_owned()),
        _ if silent >= QUIET_AFTER => {
            words.push(format!("no news for {}", duration(silent.as_secs_f64())));
        }
        _ => {
            if let Some(eta) = job.eta_seconds {
                let about = if job.eta_estimated { "~" } else { "" };
                words.push(format!(
                    "ETA {about}{}",
                    duration(eta - silent.as_secs_f64())
                ));
            }
        }
    }
    let doing = job.doing();
    if doing.is_empty() && words.is_empty() {
        words.push(job.status.word().to_owned());
    } else if !doing.is_empty() {
        words.push(doing);
    }
    words.join("  ")
}

/// A mark and a word, so that neither colour nor font has to be right.
fn ending(job: &Job) -> String {
    let mark = match job.status {
        Status::Completed => "✔",
        Status::Cancelled => "■",
        _ => "✘",
    };
    let took = job
        .took()
        .map(|took| format!("  in {}", duration(took)))
        .unwrap_or_default();
    let id = printable(&job.job_id);
    let words = job.ending();
    format!("{mark} {id}  {}{took}  {words}", job.status.word())
        .trim_end()
        .to_owned()
}

fn summary(tally: StatusCounts, hidden: usize) -> String {
    let parts = [
        (tally.running, "running"),
        (tally.queued, "queued"),
        (tally.completed, "completed"),
        (tally.failed, "failed"),
        (tally.cancelled, "cancelled"),
    ];
    let parts: Vec<_> = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
    let mut text = if parts.is_empty() {
        "no jobs yet".to_owned()
    } else {
        parts.join(" · ")
    };
    if hidden > 0 {
        text += &format!("  ({hidden} not shown)");
    }
    text
}

fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn every_template_is_one() {
        for template in [BAR, SPINNER, WAITING, FOOT, TROUBLE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn an_eta_counts_down_between_updates_and_gives_way_to_silence() {
        let job = job(
            r#"{"status":"running","progress":4,"eta_seconds":80,"eta_estimated":true,"stage":"enc"}"#,
        );
        assert_eq!(words(&job, Duration::ZERO, false), "ETA ~1m 20s  enc");
        assert_eq!(
            words(&job, Duration::from_secs(20), false),
            "ETA ~1m 00s  enc"
        );
        assert_eq!(
            words(&job, Duration::from_secs(45), false),
            "no news for 45s  enc"
        );
    }

    #[test]
    fn an_ending_has_a_mark_and_a_word() {
        let failed = r#"{"job_id":"j","status":"failed","error":{"message":"disk full"}}"#;
        assert_eq!(ending(&job(failed)), "✘ j  failed  disk full");
        assert_eq!(
            ending(&job(r#"{"job_id":"j","status":"completed"}"#)),
            "✔ j  completed"
        );
        assert_eq!(
            ending(&job(r#"{"job_id":"j","status":"cancelled"}"#)),
            "■ j  cancelled"
        );
    }

    #[test]
    fn jobs_without_a_bar_are_counted() {
        let tally = StatusCounts {
            running: 20,
            completed: 3,
            ..StatusCounts::default()
        };
        assert_eq!(summary(tally, 4), "20 running · 3 completed  (4 not shown)");
        assert_eq!(summary(StatusCounts::default(), 0), "no jobs yet");
    }

    #[test]
    fn a_job_without_a_row_gets_one_when_another_ends() {
        let topics = [relay_core::topic::Topic::parse("user:u").unwrap()];
        let mut board = Board::new(&topics, None);
        let mut bars = Bars::new(true);
        bars.screen.set_draw_target(ProgressDrawTarget::hidden());
        let state =
            |n: usize, status: &str| job(&format!(r#"{{"job_id":"j{n:02}","status":"{status}"}}"#));
        for n in 0..=MOST_BARS {
            let news = board.state(state(n, "running"));
            bars.state(&board, &state(n, "running"), news).unwrap();
        }
        assert_eq!(bars.rows.len(), MOST_BARS);
        let news = board.state(state(0, "completed"));
        bars.state(&board, &state(0, "completed"), news).unwrap();
        assert_eq!(bars.rows.len(), MOST_BARS);
        assert!(bars.rows.contains_key(&format!("j{MOST_BARS:02}")));
    }
}
