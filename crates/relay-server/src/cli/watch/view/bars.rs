//! Progress bars on a terminal: the jobs that go on below, what happened above.
//!
//! It draws what `layout` makes of the jobs, over what it drew before. It knows nothing of where they come from.
//!
//! Invariant: the cursor stands at the beginning of the line below what was drawn.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::View;
use super::layout::{Line, Row, Scene, Size, cut, ending};
use crate::cli::watch::board::{Board, News};
use crate::cli::watch::frame::Job;
use crate::cli::watch::text::{natural_order, printable, why_gone};

/// Milestone data is cut to this many columns.
const LONGEST_DATA: usize = 160;
/// News that come faster are drawn together.
const DRAW_EVERY: Duration = Duration::from_millis(50);
const BEAT: Duration = Duration::from_millis(100);
/// Of a terminal that does not say how large it is.
const USUAL: Size = Size {
    width: 80,
    height: 24,
};

/// The screen.
pub(super) struct Bars<W> {
    out: W,
    size: fn() -> Option<Size>,
    coloured: bool,
    /// Whether there may be more than one job.
    crowd: bool,
    /// When each job that goes on was last heard of; its ETA counts down from there.
    heard: HashMap<String, Instant>,
    /// What is wrong with the connection.
    trouble: Option<String>,
    stale: bool,
    /// What stands on the screen.
    drawn: Vec<Line>,
    drawn_at: Option<Instant>,
    begun: Instant,
}

impl<W: Write> Bars<W> {
    pub(super) fn new(out: W, size: fn() -> Option<Size>, coloured: bool, crowd: bool) -> Self {
        Self {
            out,
            size,
            coloured,
            crowd,
            heard: HashMap::new(),
            trouble: None,
            stale: false,
            drawn: Vec::new(),
            drawn_at: None,
            begun: Instant::now(),
        }
    }

    fn size(&self) -> Size {
        (self.size)().unwrap_or(USUAL)
    }

    /// Draws the jobs anew.
    fn draw(&mut self, board: &Board) -> io::Result<()> {
        let mut rows: Vec<Row<'_>> = board
            .live()
            .map(|job| Row {
                id: &job.job_id,
                job: Some(job),
                silent: self
                    .heard
                    .get(&job.job_id)
                    .map_or(Duration::ZERO, Instant::elapsed),
            })
            .chain(board.unknown().map(|id| Row {
                id,
                job: None,
                silent: Duration::ZERO,
            }))
            .collect();
        rows.sort_by(|a, b| natural_order(a.id, b.id));
        let scene = Scene {
            rows,
            tally: self.crowd.then(|| board.tally()),
            trouble: self.trouble.as_deref(),
            stale: self.stale,
            beat: usize::try_from(self.begun.elapsed().as_millis() / BEAT.as_millis()).unwrap_or(0),
        };
        let lines = scene.lines(self.size(), self.coloured);
        self.put(None, lines)
    }

    /// Draws soon: at once, or with what comes within a moment.
    fn draw_soon(&mut self, board: &Board) -> io::Result<()> {
        match self.drawn_at {
            Some(at) if at.elapsed() < DRAW_EVERY => Ok(()),
            _ => self.draw(board),
        }
    }

    /// Prints a line that stays, above what is drawn.
    fn print(&mut self, text: &str) -> io::Result<()> {
        let lines = self.drawn.clone();
        self.put(Some(text), lines)
    }

    /// Writes everything in one go, so that nothing flickers.
    fn put(&mut self, above: Option<&str>, lines: Vec<Line>) -> io::Result<()> {
        let width = self.size().width.max(1);
        // A screen that has become narrower has wrapped what was drawn.
        let high: usize = self
            .drawn
            .iter()
            .map(|line| line.width.div_ceil(width).max(1))
            .sum();
        let mut text = String::new();
        if high > 0 {
            text += &format!("\u{1b}[{high}A");
        }
        text += "\r";
        if let Some(above) = above {
            text += &format!("{above}\u{1b}[K\r\n");
        }
        for line in &lines {
            text += &format!("{}\u{1b}[K\r\n", line.text);
        }
        text += "\u{1b}[J";
        self.drawn = lines;
        self.drawn_at = Some(Instant::now());
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> View for Bars<W> {
    fn subscribed(&mut self, board: &Board) -> io::Result<()> {
        self.draw(board)
    }

    fn state(&mut self, board: &Board, job: &Job, news: News) -> io::Result<()> {
        match news {
            News::Ended => {
                self.heard.remove(&job.job_id);
                self.print(&ending(job))?;
                self.draw(board)
            }
            News::Live => {
                self.heard.insert(job.job_id.clone(), Instant::now());
                self.draw_soon(board)
            }
            News::Nothing => Ok(()),
        }
    }

    fn milestone(&mut self, job_id: &str, name: &str, data: &Value) -> io::Result<()> {
        let data = match data {
            Value::Null => String::new(),
            Value::Object(map) if map.is_empty() => String::new(),
            data => cut(&printable(&data.to_string()), LONGEST_DATA),
        };
        let (id, name) = (printable(job_id), printable(name));
        self.print(format!("◆ {id}  {name}  {data}").trim_end())
    }

    fn gap(&mut self, job_id: Option<&str>, _reason: &str) -> io::Result<()> {
        let id = printable(job_id.unwrap_or_default());
        self.print(&format!(
            "… {id}  some milestones were lost; the state is whole"
        ))
    }

    fn gone(&mut self, board: &Board, job_id: &str, reason: &str) -> io::Result<()> {
        self.heard.remove(job_id);
        let (id, why) = (printable(job_id), why_gone(reason));
        self.print(&format!("– {id}  gone: {why}"))?;
        self.draw(board)
    }

    fn stale(&mut self, stale: bool) -> io::Result<()> {
        self.stale = stale;
        Ok(())
    }

    fn connection(&mut self, trouble: Option<(&str, Duration)>) -> io::Result<()> {
        self.trouble = trouble.map(|(why, wait)| {
            let seconds = wait.as_secs_f64();
            format!("{}; trying again in {seconds:.1} s", printable(why))
        });
        Ok(())
    }

    fn tick(&mut self, board: &Board) -> io::Result<()> {
        self.draw(board)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal shows that was sent all of this, line by line.
    fn shown(sent: &[u8]) -> Vec<String> {
        let text = String::from_utf8(sent.to_vec()).unwrap();
        let (mut lines, mut at) = (vec![String::new()], 0);
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\r' => {}
                '\n' => {
                    at += 1;
                    lines.resize(lines.len().max(at + 1), String::new());
                    lines[at].clear();
                }
                '\u{1b}' => {
                    let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                    let (argument, command) = (&rest[1..end], &rest[end..=end]);
                    rest = &rest[end + 1..];
                    match command {
                        "A" => {
                            at -= argument.parse::<usize>().unwrap();
                            lines[at].clear();
                        }
                        "J" => lines.truncate(at + 1),
                        "K" => {}
                        other => panic!("{other}"),
                    }
                }
                c => lines[at].push(c),
            }
        }
        lines
            .iter()
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    fn job(id: &str, status: &str) -> Job {
        let text = format!(r#"{{"job_id":"{id}","status":"{status}"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn low() -> Option<Size> {
        let (width, height) = (40, 12);
        Some(Size { width, height })
    }

    #[test]
    fn jobs_stand_in_natural_order_and_those_without_a_line_are_counted() {
        let topics = [relay_core::topic::Topic::parse("user:u").unwrap()];
        let mut board = Board::new(&topics, None);
        let mut bars = Bars::new(Vec::new(), low, false, true);
        for n in (1..=23).rev() {
            let state = job(&format!("bob-{n}"), "running");
            let news = board.state(state.clone());
            bars.state(&board, &state, news).unwrap();
        }
        bars.tick(&board).unwrap();
        let seen = shown(&bars.out);
        assert!(
            seen[0].starts_with("bob-1 ") && seen[1].starts_with("bob-2 "),
            "{seen:?}"
        );
        assert!(seen[8].starts_with("bob-9 "), "{seen:?}");
        assert_eq!(seen[9], "14 not shown · 23 running");
        assert_eq!(seen.len(), 11, "nothing but an empty line below: {seen:?}");

        let state = job("bob-2", "completed");
        let news = board.state(state.clone());
        bars.state(&board, &state, news).unwrap();
        let seen = shown(&bars.out);
        assert_eq!(seen[0], "✔ bob-2  completed");
        assert!(
            seen[1].starts_with("bob-1 ") && seen[2].starts_with("bob-3 "),
            "{seen:?}"
        );
        assert_eq!(seen[10], "13 not shown · 22 running · 1 completed");
    }

    #[test]
    fn a_milestone_stays_above_the_jobs() {
        let topics = [relay_core::topic::Topic::parse("job:a").unwrap()];
        let board = Board::new(&topics, None);
        let mut bars = Bars::new(Vec::new(), low, false, false);
        bars.subscribed(&board).unwrap();
        let data = serde_json::json!({"clip": 1});
        bars.milestone("a", "clip_completed", &data).unwrap();
        bars.tick(&board).unwrap();
        let seen = shown(&bars.out);
        assert_eq!(seen[0], r#"◆ a  clip_completed  {"clip":1}"#);
        assert!(seen[1].contains("waiting for its first update"), "{seen:?}");
    }
}
