//! Holds what one watcher saw, over all its comings and goings, against what was published.
//!
//! Workers number the updates of each job from 1 on, states and milestones in one row, and write the
//! number, the *mark*, into `meta.mark` of a state and `mark` of a milestone's data. From the marks alone
//! a [`Ledger`] tells whether the relay kept its word: forward only, nothing twice, every milestone,
//! every ending once, and the last state at the end. It knows nothing of time or of transports, but that
//! a client that asks for documents sees no milestones ([`Ledger::polled`]).
//!
//! Invariant: a breach once noted stays; [`Ledger::verdict`] only adds to them.

mod published;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::client::{Frame, Transport};
pub use published::{Published, Update, contains};

/// How many of the last things seen are remembered, and how many of those about one job are told with a
/// breach.
const TRAIL: usize = 5000;
const TOLD: usize = 120;

/// What one watcher knows of one job.
#[derive(Debug, Default)]
struct Seen {
    /// The highest mark that came by a stream of frames.
    mark: u64,
    /// The highest mark that came on this connection.
    leg_mark: u64,
    /// The highest mark of a state that came by a stream of frames.
    state_mark: u64,
    /// The state with the highest mark, however it came.
    held: Option<(u64, Value)>,
    /// How often an ending came that was not a snapshot of one already held.
    endings: u32,
    milestones: Vec<u64>,
    /// Marks whose milestones were rightly not sent: before the first snapshot, or within a told gap.
    excused: Vec<RangeInclusive<u64>>,
    /// The states with which the watcher was let in; milestones right after one may be from before it came.
    joined_at: Vec<u64>,
    /// A gap was told; the next state says how far it goes.
    gap_open: bool,
}

impl Seen {
    /// Whether the milestone with this mark came, or need not have; `state` is the mark of the state
    /// before it.
    fn has_or_need_not(&self, mark: u64, state: u64) -> bool {
        self.milestones.contains(&mark)
            || self.excused.iter().any(|marks| marks.contains(&mark))
            || self.joined_at.contains(&state)
    }
}

/// What one watcher saw, and each word the relay broke to it.
#[derive(Debug, Default)]
pub struct Ledger {
    watcher: String,
    jobs: BTreeMap<String, Seen>,
    breaches: Vec<String>,
    trail: VecDeque<String>,
    /// Snapshots announced by `subscribed` and not here yet, by topic.
    snapshots_due: BTreeMap<String, u64>,
    /// Topics that said `recovered:true` in this leg.
    recovered: BTreeSet<String>,
    /// Topics that were subscribed in this leg or an earlier one.
    known: BTreeSet<String>,
    /// This leg began without a cursor: with snapshots.
    fresh: bool,
    gaps: usize,
    unrecovered: usize,
    legs: usize,
}

impl Ledger {
    /// An empty ledger of the watcher called so.
    pub fn new(watcher: impl Into<String>) -> Self {
        Self {
            watcher: watcher.into(),
            ..Self::default()
        }
    }

    /// The watcher connects, for the first time or again, by `transport`, and goes on from `cursor` if it
    /// has one.
    pub fn joined(&mut self, transport: Transport, cursor: Option<&str>) {
        self.legs += 1;
        let from = cursor.unwrap_or("the snapshot");
        self.note(format!("-- leg {}: {transport} from {from}", self.legs));
        self.fresh = cursor.is_none();
        self.snapshots_due.clear();
        self.recovered.clear();
        for seen in self.jobs.values_mut() {
            seen.leg_mark = 0;
        }
    }

    /// A frame came on a stream: WebSocket, SSE or long-poll.
    pub fn saw(&mut self, frame: &Frame) {
        self.note(summary(frame));
        match frame.kind() {
            "subscribed" => self.subscribed(frame),
            "state" => self.state(frame),
            "milestone" => self.milestone(frame),
            "gap" => {
                self.gaps += 1;
                self.job(frame).gap_open = true;
            }
            "hello" | "pong" | "aggregate" | "server_shutdown" | "connection_recovery" => {}
            _ => self.breach(frame.job_id(), &format!("unexpected {frame}")),
        }
    }

    /// A document was asked for and had changed.
    pub fn polled(&mut self, frame: &Frame) {
        self.note(format!("polled {}", summary(frame)));
        let (job, mark) = (frame.job_id().to_owned(), state_mark(frame));
        let seen = self.jobs.entry(job.clone()).or_default();
        if seen.held.is_none() {
            // a first look at the document is a snapshot like any other
            seen.excused.push(0..=mark);
            seen.joined_at.push(mark);
        }
        let held = seen.held.as_ref().map_or(0, |(held, _)| *held);
        if mark < held {
            self.breach(&job, &format!("the document fell from {held} to {mark}"));
        } else {
            seen.held = Some((mark, frame.job().clone()));
        }
    }

    /// Whether the document of `job` is newer than all that came by a stream, so that its tag may be the
    /// cursor to go on from. If so, what was before it is the watcher's own loss.
    pub fn resumes_from_document(&mut self, job: &str) -> bool {
        let Some(seen) = self.jobs.get_mut(job) else {
            return false;
        };
        let Some((held, body)) = seen.held.as_ref().filter(|(held, _)| *held > seen.mark) else {
            return false;
        };
        seen.excused.push(seen.mark..=*held);
        seen.mark = *held;
        seen.state_mark = *held;
        seen.endings += u32::from(is_ending(body));
        true
    }

    fn subscribed(&mut self, frame: &Frame) {
        let topic = frame.topic().to_owned();
        let is_new = self.known.insert(topic.clone());
        if frame.0["recovered"] == true {
            self.recovered.insert(topic.clone());
        } else if !is_new {
            self.unrecovered += 1;
        }
        let due = frame.0["jobs"].as_u64().unwrap_or_default();
        self.snapshots_due.insert(topic, due);
    }

    fn state(&mut self, frame: &Frame) {
        let mark = state_mark(frame);
        let job = frame.job_id().to_owned();
        let is_snapshot = self.takes_snapshot(frame);
        let recovered = self.recovered.contains(frame.topic());
        let seen = self.jobs.entry(job.clone()).or_default();
        let (before, in_leg) = (seen.state_mark, seen.leg_mark);
        if is_snapshot && seen.mark == 0 {
            seen.excused.push(0..=mark);
            seen.joined_at.push(mark);
        }
        if std::mem::take(&mut seen.gap_open) {
            seen.excused.push(seen.mark..=mark);
        }
        // what is known already may come again as a snapshot; an ending that a good cursor covers may not
        if frame.is_ending() && (mark > before || recovered) {
            seen.endings += 1;
        }
        seen.mark = seen.mark.max(mark);
        seen.leg_mark = in_leg.max(mark);
        seen.state_mark = before.max(mark);
        if seen.held.as_ref().is_none_or(|(held, _)| *held <= mark) {
            seen.held = Some((mark, frame.job().clone()));
        }
        if mark <= in_leg {
            self.breach(
                &job,
                &format!("state {mark} after {in_leg} on one connection"),
            );
        } else if mark < before {
            self.breach(&job, &format!("state {mark}, though it had state {before}"));
        }
    }

    fn milestone(&mut self, frame: &Frame) {
        let mark = frame.0["data"]["mark"].as_u64().unwrap_or_default();
        let job = frame.job_id().to_owned();
        // A transport without `subscribed` does not say how many snapshots it owes.
        let due = self.snapshots_due.get(frame.topic());
        let awaits_snapshot = due.map_or(self.fresh, |due| *due > 0);
        let seen = self.job(frame);
        if awaits_snapshot && seen.mark == 0 {
            // The snapshot was superseded before it was sent; what was before it was never owed.
            seen.excused.push(0..=mark);
        }
        let in_leg = seen.leg_mark;
        let last = seen.milestones.iter().max().copied().unwrap_or_default();
        let again = seen.milestones.contains(&mark);
        seen.mark = seen.mark.max(mark);
        seen.leg_mark = in_leg.max(mark);
        seen.milestones.push(mark);
        if mark <= in_leg {
            self.breach(
                &job,
                &format!("milestone {mark} after {in_leg} on one connection"),
            );
        } else if again {
            self.breach(&job, &format!("milestone {mark} twice"));
        } else if mark < last {
            self.breach(&job, &format!("milestone {mark} after milestone {last}"));
        }
    }

    /// Whether this state is one of the snapshots its topic's `subscribed` announced. Without a
    /// `subscribed`, the first state of a job in a leg counts as one.
    fn takes_snapshot(&mut self, frame: &Frame) -> bool {
        match self.snapshots_due.get_mut(frame.topic()) {
            Some(0) => false,
            Some(due) => {
                *due -= 1;
                true
            }
            None => self
                .jobs
                .get(frame.job_id())
                .is_none_or(|seen| seen.leg_mark == 0),
        }
    }

    fn job(&mut self, frame: &Frame) -> &mut Seen {
        self.jobs.entry(frame.job_id().to_owned()).or_default()
    }

    fn note(&mut self, what: String) {
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
        }
        self.trail.push_back(what);
    }

    fn breach(&mut self, job: &str, what: &str) {
        self.breaches.push(self.tell(job, what));
    }

    /// What is wrong with a job, and the last things seen of it and of the connections.
    fn tell(&self, job: &str, what: &str) -> String {
        // a job's id may begin another's
        let ids = [' ', '"'].map(|end| format!("{job}{end}"));
        let about = |line: &&String| {
            line.starts_with("--") || ids.iter().any(|id| line.contains(id.as_str()))
        };
        let mut trail: Vec<&String> = self.trail.iter().rev().filter(about).take(TOLD).collect();
        trail.reverse();
        let trail: String = trail.iter().map(|line| format!("\n    {line}")).collect();
        format!("{}: {job}: {what}{trail}", self.watcher)
    }

    /// Whether the watcher holds the last state of every job of `published` that is `watched`, and the
    /// milestones too where it can have seen them.
    pub fn is_complete(&self, published: &Published, watched: impl Fn(&str) -> bool) -> bool {
        self.missing(published, watched).is_empty()
    }

    /// Each job and what it lacks.
    fn missing<'a>(
        &self,
        published: &'a Published,
        watched: impl Fn(&str) -> bool,
    ) -> Vec<(&'a str, String)> {
        let mut missing = Vec::new();
        let nothing = Seen::default();
        for (job, updates) in &published.0 {
            let job = job.as_str();
            if !watched(job) {
                continue;
            }
            let seen = self.jobs.get(job).unwrap_or(&nothing);
            if let Some(last) = updates.iter().rfind(|update| update.milestone.is_none()) {
                match &seen.held {
                    Some((mark, body)) if *mark == last.mark => {
                        if !contains(body, &last.body) {
                            missing.push((job, format!("holds {body}, not {}", last.body)));
                        }
                    }
                    held => {
                        let mark = held.as_ref().map(|(mark, _)| mark);
                        missing.push((job, format!("holds state {mark:?}, not {}", last.mark)));
                    }
                }
            }
            let mut state = 0;
            for update in updates {
                if update.milestone.is_none() {
                    state = update.mark;
                } else if !seen.has_or_need_not(update.mark, state) {
                    missing.push((job, format!("milestone {} never came", update.mark)));
                }
            }
        }
        missing
    }

    /// Every broken word: those noted on the way, and what is missing or doubled at the end.
    pub fn verdict(&self, published: &Published, watched: impl Fn(&str) -> bool) -> Vec<String> {
        let mut breaches = self.breaches.clone();
        for (job, what) in self.missing(published, &watched) {
            breaches.push(self.tell(job, &what));
        }
        for (job, seen) in &self.jobs {
            if !watched(job) {
                breaches.push(self.tell(job, "was sent, but is not watched"));
            }
            if seen.endings > 1 {
                breaches.push(self.tell(job, &format!("ended {} times", seen.endings)));
            }
        }
        breaches
    }

    /// How many gaps were told.
    pub fn gaps(&self) -> usize {
        self.gaps
    }

    /// How many times a topic that was subscribed before started over with a snapshot.
    pub fn unrecovered(&self) -> usize {
        self.unrecovered
    }

    /// How many times the watcher connected.
    pub fn legs(&self) -> usize {
        self.legs
    }

    /// How many milestones came.
    pub fn milestones(&self) -> usize {
        self.jobs.values().map(|seen| seen.milestones.len()).sum()
    }
}

fn state_mark(frame: &Frame) -> u64 {
    frame.job()["meta"]["mark"].as_u64().unwrap_or_default()
}

fn is_ending(job: &Value) -> bool {
    matches!(
        job["status"].as_str(),
        Some("completed" | "failed" | "cancelled")
    )
}

fn summary(frame: &Frame) -> String {
    let what = match frame.kind() {
        "state" => format!("{} {}", state_mark(frame), frame.status()),
        "milestone" => format!("{} {}", frame.0["data"]["mark"], frame.name()),
        _ => return frame.to_string(),
    };
    let cursor = frame.cursor().unwrap_or("no cursor");
    format!("{} {} {what} [{cursor}]", frame.kind(), frame.job_id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(mark: u64, status: &str) -> Frame {
        Frame(json!({"type": "state", "topic": "job:j", "cursor": "c",
            "job": {"job_id": "j", "status": status, "meta": {"mark": mark}}}))
    }

    fn milestone(mark: u64) -> Frame {
        Frame(
            json!({"type": "milestone", "topic": "job:j", "job_id": "j", "name": "m",
            "data": {"mark": mark}}),
        )
    }

    fn subscribed(recovered: bool, jobs: u64) -> Frame {
        Frame(json!({"type": "subscribed", "topic": "job:j", "recovered": recovered, "jobs": jobs}))
    }

    fn published() -> Published {
        Published::parse(
            r#"
            {"job":"j","mark":1,"milestone":null,"body":{"status":"running"}}
            {"job":"j","mark":2,"milestone":"m","body":{"mark":2}}
            {"job":"j","mark":3,"milestone":null,"body":{"status":"running"}}
            {"job":"j","mark":4,"milestone":"m","body":{"mark":4}}
            {"job":"j","mark":5,"milestone":null,"body":{"status":"completed"}}
            "#,
        )
    }

    fn verdict(legs: &[&[Frame]]) -> Vec<String> {
        let mut ledger = Ledger::new("w");
        for leg in legs {
            ledger.joined(Transport::Sse, Some("c"));
            for frame in *leg {
                ledger.saw(frame);
            }
        }
        ledger.verdict(&published(), |job| job == "j")
    }

    #[test]
    fn a_watcher_told_everything_in_order_over_two_legs_has_no_complaint() {
        let first = [subscribed(false, 0), state(1, "running"), milestone(2)];
        let second = [subscribed(true, 0), milestone(4), state(5, "completed")];
        assert_eq!(verdict(&[&first, &second]), Vec::<String>::new());
    }

    #[test]
    fn milestones_before_the_first_snapshot_are_not_owed() {
        let leg = [
            subscribed(false, 1),
            state(3, "running"),
            milestone(4),
            state(5, "completed"),
        ];
        assert_eq!(verdict(&[&leg]), Vec::<String>::new());
    }

    #[test]
    fn a_poll_whose_snapshot_was_superseded_before_its_answer_owes_nothing_from_before_it() {
        let frames = [milestone(4), state(5, "completed")];
        for (cursor, breaches) in [(None, 0), (Some("c"), 1)] {
            let mut ledger = Ledger::new("w");
            ledger.joined(Transport::LongPoll, cursor);
            frames.iter().for_each(|frame| ledger.saw(frame));
            assert_eq!(ledger.verdict(&published(), |_| true).len(), breaches);
        }
    }

    #[test]
    fn a_snapshot_may_repeat_what_is_known_when_the_cursor_was_not_good() {
        let first = [subscribed(false, 1), state(5, "completed")];
        let second = [subscribed(false, 1), state(5, "completed")];
        assert_eq!(verdict(&[&first, &second]), Vec::<String>::new());
        let second = [subscribed(true, 0), state(5, "completed")];
        assert!(verdict(&[&first, &second])[0].contains("j: ended 2 times"));
    }

    #[test]
    fn each_broken_word_is_noted() {
        let lost = [subscribed(false, 0), milestone(2), state(5, "completed")];
        assert!(verdict(&[&lost])[0].contains("milestone 4 never came"));
        let back = [
            subscribed(false, 1),
            state(5, "completed"),
            state(3, "running"),
        ];
        assert!(verdict(&[&back])[0].contains("state 3 after 5 on one connection"));
        let twice = [
            subscribed(false, 1),
            state(3, "running"),
            milestone(4),
            milestone(4),
        ];
        assert!(verdict(&[&twice])[0].contains("milestone 4 after 4 on one connection"));
        let first = [subscribed(false, 1), state(3, "running"), milestone(4)];
        let again = [subscribed(true, 0), milestone(4), state(5, "completed")];
        assert!(verdict(&[&first, &again])[0].contains("milestone 4 twice"));
        let unfinished = [subscribed(false, 1), state(3, "running"), milestone(4)];
        assert!(verdict(&[&unfinished])[0].contains("holds state Some(3), not 5"));
    }

    #[test]
    fn a_told_gap_excuses_what_it_covers() {
        let gap =
            Frame(json!({"type": "gap", "topic": "job:j", "job_id": "j", "reason": "history"}));
        let leg = [
            subscribed(false, 0),
            state(1, "running"),
            gap,
            state(5, "completed"),
        ];
        assert_eq!(verdict(&[&leg]), Vec::<String>::new());
    }

    #[test]
    fn documents_only_go_forward_and_excuse_what_they_skip() {
        let mut ledger = Ledger::new("w");
        ledger.joined(Transport::State, None);
        ledger.polled(&state(3, "running"));
        assert!(ledger.resumes_from_document("j"));
        assert!(!ledger.resumes_from_document("j"), "it is no news now");
        ledger.joined(Transport::Sse, Some("c"));
        ledger.saw(&milestone(4));
        ledger.saw(&state(5, "completed"));
        assert_eq!(ledger.verdict(&published(), |_| true), Vec::<String>::new());
        ledger.polled(&state(4, "running"));
        assert!(ledger.verdict(&published(), |_| true)[0].contains("fell from 5 to 4"));
    }
}
