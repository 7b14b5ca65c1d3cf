//! What is known of the jobs watched, and whether the watching is over.
//!
//! Pure: frames go in, news comes out. It knows neither connections nor screens.
//!
//! Invariant: a job is either live or has ended, and a later attempt may make an ended one live again.

use std::collections::BTreeMap;

use relay_core::topic::Topic;

use super::frame::{Job, Status};

/// How a watched job ended; ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// It did what it should.
    Completed,
    /// Somebody stopped it.
    Cancelled,
    /// It did not work, or it disappeared before it ended.
    Failed,
}

impl Ending {
    /// The ending a status stands for, if it is one.
    pub(crate) fn of(status: Status) -> Option<Self> {
        match status {
            Status::Completed => Some(Self::Completed),
            Status::Cancelled => Some(Self::Cancelled),
            Status::Failed => Some(Self::Failed),
            Status::Queued | Status::Running => None,
        }
    }
}

/// What a state frame changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// The job goes on.
    Live,
    /// The job has just ended.
    Ended,
    /// Nothing that was not known.
    Nothing,
}

/// How many jobs are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StatusCounts {
    /// Not begun.
    pub(crate) queued: usize,
    /// At work.
    pub(crate) running: usize,
    /// Ended well.
    pub(crate) completed: usize,
    /// Ended badly.
    pub(crate) failed: usize,
    /// Stopped.
    pub(crate) cancelled: usize,
}

/// The jobs watched.
#[derive(Debug)]
pub(crate) struct Board {
    /// The jobs named one by one; the others come and go with their user or group.
    named: Vec<String>,
    /// Whether a whole user or group is watched.
    open: bool,
    /// When to stop by ourselves; `None` = never.
    until_ended: bool,
    live: BTreeMap<String, Job>,
    ended: BTreeMap<String, Ending>,
}

impl Board {
    /// A board for `topics`. Left to itself (`until_ended` = `None`) the watching ends with the jobs if
    /// each was named, and never if a user or a group is watched.
    pub(crate) fn new(topics: &[Topic], until_ended: Option<bool>) -> Self {
        let named = topics.iter().filter_map(|topic| match topic {
            Topic::Job(job) => Some(job.id.to_string()),
            Topic::User(_) | Topic::Group(_) => None,
        });
        let open = topics.iter().any(|topic| !matches!(topic, Topic::Job(_)));
        Self {
            named: named.collect(),
            open,
            until_ended: until_ended.unwrap_or(!open),
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Takes in a job's state.
    pub(crate) fn state(&mut self, job: Job) -> News {
        let id = job.job_id.clone();
        match Ending::of(job.status) {
            Some(ending) => {
                self.live.remove(&id);
                match self.ended.insert(id, ending) {
                    Some(before) if before == ending => News::Nothing,
                    _ => News::Ended,
                }
            }
            None => {
                self.ended.remove(&id);
                match self.live.insert(id, job.clone()) {
                    Some(before) if before == job => News::Nothing,
                    _ => News::Live,
                }
            }
        }
    }

    /// Takes in that a job was removed or expired, and how it stood. A named job that goes without an ending counts as
    /// failed: whoever waits for it must not wait for ever.
    pub(crate) fn gone(&mut self, id: &str, last: Option<&str>) {
        let was_live = self.live.remove(id).is_some();
        if self.is_named(id) {
            let ending = match last {
                Some("completed") => Ending::Completed,
                Some("cancelled") => Ending::Cancelled,
                _ => Ending::Failed,
            };
            self.ended.entry(id.to_owned()).or_insert(ending);
        } else if !was_live {
            self.ended.remove(id);
        }
    }

    /// The server knows nothing of this topic, whatever it knew before: a relay without a store that was
    /// restarted, for one. What goes on is waited for anew; what has ended stays so.
    pub(crate) fn forgotten(&mut self, topic: &str) {
        match topic.split_once(':') {
            Some(("job", id)) => {
                self.live.remove(id);
            }
            _ if self.named.is_empty() => self.live.clear(),
            _ => {}
        }
    }

    /// The worst ending, once there is nothing left to wait for.
    pub(crate) fn verdict(&self) -> Option<Ending> {
        let all_named_ended = self.named.iter().all(|id| self.ended.contains_key(id));
        let over = self.until_ended && self.live.is_empty() && all_named_ended;
        over.then(|| self.ended.values().max().copied()).flatten()
    }

    /// Whether anything is known of this job.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.live.contains_key(id) || self.ended.contains_key(id)
    }

    /// Whether the watching ends with the jobs.
    pub(crate) fn waits_for_endings(&self) -> bool {
        self.until_ended
    }

    /// Whether there is, or may be, more than one job.
    pub(crate) fn is_crowd(&self) -> bool {
        self.open || self.named.len() > 1
    }

    /// The jobs that go on.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Job> {
        self.live.values()
    }

    /// The named jobs nothing is known of.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &str> {
        self.named
            .iter()
            .map(String::as_str)
            .filter(|id| !self.knows(id))
    }

    /// How many are where.
    pub(crate) fn tally(&self) -> StatusCounts {
        let queued = self
            .live
            .values()
            .filter(|job| job.status == Status::Queued)
            .count();
        let ended = |ending| self.ended.values().filter(|e| **e == ending).count();
        StatusCounts {
            queued,
            running: self.live.len() - queued,
            completed: ended(Ending::Completed),
            failed: ended(Ending::Failed),
            cancelled: ended(Ending::Cancelled),
        }
    }

    fn is_named(&self, id: &str) -> bool {
        self.named.iter().any(|named| named == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(topics: &[&str], until_ended: Option<bool>) -> Board {
        let topics: Vec<_> = topics
            .iter()
            .map(|text| Topic::parse(text).unwrap())
            .collect();
        Board::new(&topics, until_ended)
    }

    fn job(id: &str, status: Status) -> Job {
        Job {
            job_id: id.to_owned(),
            status,
            ..Job::default()
        }
    }

    #[test]
    fn one_job_is_over_at_its_ending() {
        let mut board = board(&["job:a"], None);
        assert_eq!(board.verdict(), None);
        assert_eq!(board.state(job("a", Status::Running)), News::Live);
        assert_eq!(board.verdict(), None);
        assert_eq!(board.state(job("a", Status::Cancelled)), News::Ended);
        assert_eq!(board.verdict(), Some(Ending::Cancelled));
    }

    #[test]
    fn several_jobs_are_over_when_all_have_ended_and_the_worst_ending_counts() {
        let mut board = board(&["job:a", "job:b", "job:c"], None);
        board.state(job("a", Status::Failed));
        board.state(job("b", Status::Cancelled));
        assert_eq!(board.verdict(), None);
        board.state(job("c", Status::Completed));
        assert_eq!(board.verdict(), Some(Ending::Failed));
    }

    #[test]
    fn a_user_is_watched_for_ever_unless_told_otherwise() {
        let mut forever = board(&["user:u"], None);
        forever.state(job("a", Status::Completed));
        assert_eq!(forever.verdict(), None);

        let mut until = board(&["user:u"], Some(true));
        assert_eq!(until.verdict(), None, "nothing seen yet is not the end");
        until.state(job("a", Status::Completed));
        until.state(job("b", Status::Running));
        assert_eq!(until.verdict(), None);
        until.state(job("b", Status::Completed));
        assert_eq!(until.verdict(), Some(Ending::Completed));
    }

    #[test]
    fn a_higher_attempt_makes_an_ended_job_live_again() {
        let mut board = board(&["job:a"], None);
        board.state(job("a", Status::Failed));
        assert_eq!(board.state(job("a", Status::Running)), News::Live);
        assert_eq!(board.verdict(), None);
        assert_eq!(board.tally().running, 1);
    }

    #[test]
    fn a_job_the_server_has_forgotten_is_waited_for_anew() {
        let mut board = board(&["job:a", "job:b"], None);
        board.state(job("a", Status::Running));
        board.state(job("b", Status::Completed));
        board.forgotten("job:a");
        board.forgotten("job:b");
        assert_eq!(board.unknown().collect::<Vec<_>>(), ["a"]);
        assert_eq!(board.tally().completed, 1);
    }

    #[test]
    fn a_named_job_that_goes_without_an_ending_has_failed() {
        let mut board = board(&["job:a"], None);
        board.state(job("a", Status::Running));
        board.gone("a", Some("running"));
        assert_eq!(board.verdict(), Some(Ending::Failed));
    }

    #[test]
    fn a_named_job_that_goes_after_its_ending_keeps_it() {
        let mut board = board(&["job:a", "job:b"], None);
        board.state(job("a", Status::Completed));
        board.gone("a", None);
        board.state(job("b", Status::Completed));
        assert_eq!(board.verdict(), Some(Ending::Completed));
    }

    #[test]
    fn a_named_job_that_had_ended_before_it_was_removed_ended_so() {
        for (last, ending) in [
            ("completed", Ending::Completed),
            ("failed", Ending::Failed),
            ("cancelled", Ending::Cancelled),
        ] {
            let mut board = board(&["job:a"], None);
            board.gone("a", Some(last));
            assert_eq!(board.verdict(), Some(ending));
        }
    }

    #[test]
    fn a_snapshot_that_repeats_what_is_known_is_no_news() {
        let mut board = board(&["job:a", "job:b"], None);
        board.state(job("a", Status::Completed));
        assert_eq!(board.state(job("a", Status::Completed)), News::Nothing);
        board.state(job("b", Status::Running));
        assert_eq!(board.state(job("b", Status::Running)), News::Nothing);
    }
}
