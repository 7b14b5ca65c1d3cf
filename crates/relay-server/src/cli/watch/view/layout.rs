//! What stands on the screen: as many lines as fit, none wider than the screen.
//!
//! Pure: jobs, a size and a time go in, lines come out. It writes nothing and knows no terminal.
//!
//! Invariant: no line is as wide as the screen, so none wraps; and where a job has no line, the last line says how
//! many have none.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::cli::watch::board::StatusCounts;
use crate::cli::watch::frame::{Job, Status};
use crate::cli::watch::text::{duration, printable};

/// As many jobs as a person can follow.
const MOST_ROWS: usize = 16;
/// Lines that are left for what was printed before: a milestone, and the cursor's.
const LEFT_FREE: usize = 2;
/// A running job that says nothing for this long is worth a word.
const QUIET_AFTER: Duration = Duration::from_secs(30);
/// An id takes no more than this, however wide the screen is.
const LONGEST_NAME: usize = 32;
/// ` 100%`, with the space around it.
const PERCENT: usize = 8;
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// The screen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Columns.
    pub(super) width: usize,
    /// Lines.
    pub(super) height: usize,
}

/// One job that goes on, or that nothing is known of yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Its id.
    pub(super) id: &'a str,
    /// Its state.
    pub(super) job: Option<&'a Job>,
    /// How long ago it was heard of.
    pub(super) silent: Duration,
}

/// All there is to show.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    /// In the order they are shown.
    pub(super) rows: Vec<Row<'a>>,
    /// How many jobs are where, if there may be more than one.
    pub(super) tally: Option<StatusCounts>,
    /// What is wrong with the connection.
    pub(super) trouble: Option<&'a str>,
    /// Whether what is shown may be old.
    pub(super) stale: bool,
    /// Counts up, so that it is seen that something goes on.
    pub(super) beat: usize,
}

/// Text for the screen, with its width.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) width: usize,
    coloured: bool,
}

impl Line {
    fn new(coloured: bool) -> Self {
        Self {
            coloured,
            ..Self::default()
        }
    }

    /// Adds text that has no width but its letters, in a colour of the terminal's.
    fn add(mut self, text: &str, colour: Option<&str>) -> Self {
        self.width += text.width();
        match colour.filter(|_| self.coloured && !text.is_empty()) {
            Some(colour) => self.text += &format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
            None => self.text += text,
        }
        self
    }
}

const BOLD: Option<&str> = Some("1");
const DIM: Option<&str> = Some("2");
const GREEN: Option<&str> = Some("32");
const YELLOW: Option<&str> = Some("33");

impl Scene<'_> {
    /// The lines, from top to bottom.
    pub(super) fn lines(&self, size: Size, coloured: bool) -> Vec<Line> {
        // A line as wide as the screen leaves some terminals' cursors on the next one.
        let width = size.width.saturating_sub(1);
        let below = usize::from(self.trouble.is_some()) + usize::from(self.tally.is_some());
        let room = size
            .height
            .saturating_sub(LEFT_FREE + below)
            .clamp(1, MOST_ROWS);
        let shown = &self.rows[..room.min(self.rows.len())];
        let columns = Columns::of(shown, width);
        let mut lines: Vec<_> = shown
            .iter()
            .map(|row| self.row(row, columns, width, coloured))
            .collect();
        if let Some(tally) = self.tally {
            let text = summary(tally, self.rows.len() - shown.len());
            lines.push(Line::new(coloured).add(&cut(&text, width), DIM));
        }
        if let Some(trouble) = self.trouble {
            let text = format!("{} {trouble}", self.spinner());
            lines.push(Line::new(coloured).add(&cut(&text, width), YELLOW));
        }
        lines
    }

    fn row(&self, row: &Row<'_>, columns: Columns, width: usize, coloured: bool) -> Line {
        let name = cut_inside(row.id, columns.name);
        let name = format!("{name:w$}", w = columns.name);
        let mut line = Line::new(coloured).add(&cut(&name, width), BOLD);
        let percent = row.job.and_then(Job::percent);
        let words = match (row.job, percent) {
            (Some(job), Some(percent)) if line.width + columns.bar + PERCENT <= width => {
                let (done, rest) = bar(percent, columns.bar);
                let percent = format!("  {percent:>3}%");
                line = line.add("  ", None).add(&done, GREEN);
                line = line.add(&rest, DIM).add(&percent, None);
                words(job, row.silent, self.stale)
            }
            (Some(job), _) => {
                let room = width - line.width;
                line = line.add(&cut(&format!("  {}", self.spinner()), room), GREEN);
                words(job, row.silent, self.stale)
            }
            (None, _) => {
                let room = width - line.width;
                line = line.add(&cut(&format!("  {}", self.spinner()), room), DIM);
                "waiting for its first update".to_owned()
            }
        };
        let room = width - line.width;
        line.add(&cut(&format!("  {words}"), room), None)
    }

    fn spinner(&self) -> char {
        SPINNER[self.beat % SPINNER.len()]
    }
}

/// How wide the columns are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Columns {
    name: usize,
    bar: usize,
}

impl Columns {
    /// A narrow screen takes from the bar and from the names before it takes all of the words.
    fn of(rows: &[Row<'_>], width: usize) -> Self {
        let bar = match width {
            0..44 => 6,
            44..64 => 10,
            64..90 => 16,
            _ => 28,
        };
        let longest = rows.iter().map(|row| row.id.width()).max().unwrap_or(0);
        let room = width.saturating_sub(bar + PERCENT + width / 3);
        Self {
            name: longest.min(room.clamp(4, LONGEST_NAME)),
            bar,
        }
    }
}

/// What is done of a bar, and what is not.
fn bar(percent: u64, width: usize) -> (String, String) {
    let percent = usize::try_from(percent).unwrap_or(100).min(100);
    let halves = percent * width * 2 / 100;
    let mut done = "━".repeat(halves / 2);
    if halves % 2 == 1 {
        done.push('╸');
    }
    let rest = "─".repeat(width - halves.div_ceil(2));
    (done, rest)
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
pub(super) fn ending(job: &Job) -> String {
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

/// What is not seen goes first: the end of the line may be cut off.
fn summary(tally: StatusCounts, hidden: usize) -> String {
    let parts = [
        (hidden, "not shown"),
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
    match parts.is_empty() {
        true => "no jobs yet".to_owned(),
        false => parts.join(" · "),
    }
}

/// `text` in at most `width` columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let fits = |c: &char| {
        let wide = c.width().unwrap_or(0);
        let fits = wide <= room;
        room = room.saturating_sub(wide);
        fits
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    if width > 0 {
        cut.push('…');
    }
    cut
}

/// An id in at most `width` columns: ids that are long have much in common at their beginnings.
fn cut_inside(id: &str, width: usize) -> String {
    let count = id.chars().count();
    if count <= width {
        return id.to_owned();
    }
    let (before, behind) = (
        (width.saturating_sub(1)).div_ceil(2),
        width.saturating_sub(1) / 2,
    );
    let mut cut: String = id.chars().take(before).collect();
    cut.push('…');
    cut.extend(id.chars().skip(count - behind));
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        serde_json::from_str(text).unwrap()
    }

    fn screen(ids: &[String], jobs: &[Job], width: usize, height: usize) -> Vec<Line> {
        let scene = Scene {
            rows: ids
                .iter()
                .enumerate()
                .map(|(at, id)| Row {
                    id,
                    job: jobs.get(at),
                    silent: Duration::ZERO,
                })
                .collect(),
            tally: Some(StatusCounts {
                running: jobs.len(),
                ..StatusCounts::default()
            }),
            trouble: Some("connection refused; trying again in 1.0 s"),
            stale: false,
            beat: 3,
        };
        scene.lines(Size { width, height }, false)
    }

    #[test]
    fn nothing_is_wider_or_higher_than_the_screen_whatever_its_size() {
        let ids: Vec<_> = (0..30)
            .map(|n| format!("conversion-of-a-very-long-document-number-{n:020}"))
            .collect();
        let state = r#"{"status":"running","progress":41,"stage":"encoding","message":"画面 of 1000, ünïcode"}"#;
        let spinning = r#"{"status":"running","message":"no progress is known"}"#;
        let jobs: Vec<_> = (0..25)
            .map(|n| job(if n % 3 == 0 { spinning } else { state }))
            .collect();
        for width in 1..200 {
            for height in [1, 2, 3, 5, 12, 24, 60] {
                let lines = screen(&ids, &jobs, width, height);
                assert!(
                    lines.len() < height.max(4),
                    "{width}x{height}: {}",
                    lines.len()
                );
                for line in &lines {
                    assert!(line.width < width.max(2), "{width}: {line:?}");
                    assert_eq!(line.width, line.text.width());
                }
                if width > 20 {
                    let hidden = format!("{} not shown", 30 - (lines.len() - 2));
                    let foot = &lines[lines.len() - 2].text;
                    assert!(foot.contains(&hidden), "{width}x{height}: {foot}");
                }
            }
        }
    }

    #[test]
    fn on_a_narrow_screen_the_name_yields_and_keeps_what_tells_it_from_others() {
        let ids = [
            "conversion-2026-11-27-0041".to_owned(),
            "conversion-2026-11-27-0042".to_owned(),
        ];
        let jobs = [r#"{"status":"running","progress":50,"stage":"encoding"}"#; 2].map(job);
        let lines = screen(&ids, &jobs, 40, 24);
        assert_eq!(lines[0].text, "conver…-0041  ━━━───   50%  encoding");
        assert_eq!(lines[1].text, "conver…-0042  ━━━───   50%  encoding");
        let lines = screen(&ids, &jobs, 100, 24);
        assert_eq!(
            lines[0].text,
            "conversion-2026-11-27-0041  ━━━━━━━━━━━━━━──────────────   50%  encoding"
        );
    }

    #[test]
    fn a_bar_is_as_wide_at_any_percent() {
        for percent in 0..=100 {
            let (done, rest) = bar(percent, 7);
            assert_eq!((done + &rest).width(), 7, "{percent}");
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
    fn jobs_without_a_line_are_counted_first() {
        let tally = StatusCounts {
            running: 20,
            completed: 3,
            ..StatusCounts::default()
        };
        assert_eq!(summary(tally, 4), "4 not shown · 20 running · 3 completed");
        assert_eq!(summary(StatusCounts::default(), 0), "no jobs yet");
    }
}
