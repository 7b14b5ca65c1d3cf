//! Which state of a job may follow which.
//!
//! One guard a job, fed in the order of the bus. It knows nothing of clients: what it refuses is dropped
//! and counted by its caller.
//!
//! Invariant: within one attempt the progress of what it accepts never falls before the ending, and
//! nothing is accepted after the ending; the attempt never falls.

use std::fmt;

use crate::document::JobDocument;

/// What one job's accepted states have come to. Small, and cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    /// The highest attempt seen; 0 before the first state.
    attempt: u32,
    ended: bool,
    /// It ended by being taken away.
    removed: bool,
    /// The highest progress of this attempt, [`UNKNOWN`] before the first; a state without one leaves it.
    progress: f64,
}

/// Below any progress there is.
const UNKNOWN: f64 = -1.0;

/// What the guard says to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It may follow.
    Accepted {
        /// The job had ended, and a higher attempt takes it up again.
        reopened: bool,
    },
    /// It may not, for this reason.
    Stale(Stale),
}

/// Why a state comes too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stale {
    /// A higher attempt has begun.
    OlderAttempt,
    /// This attempt has ended.
    AfterEnding,
    /// Progress was higher already.
    ProgressFell,
    /// The job was removed.
    Removed,
}

impl Guard {
    /// The guard of a job of which nothing is known.
    pub(crate) const fn new() -> Self {
        Self {
            attempt: 0,
            ended: false,
            removed: false,
            progress: UNKNOWN,
        }
    }

    /// Whether `doc` may follow what was accepted so far.
    pub(crate) fn check(&self, doc: &JobDocument) -> Verdict {
        if doc.attempt() > self.attempt {
            return Verdict::Accepted {
                reopened: self.ended,
            };
        }
        if doc.attempt() < self.attempt {
            return Verdict::Stale(Stale::OlderAttempt);
        }
        if self.ended {
            return Verdict::Stale(self.over());
        }
        // A failure may say how far it really got; an ending is not refused over that.
        let fell = doc.progress().is_some_and(|p| p < self.progress);
        if fell && !doc.status().is_terminal() {
            return Verdict::Stale(Stale::ProgressFell);
        }
        Verdict::Accepted { reopened: false }
    }

    /// Checks `doc`, and remembers it if it may follow.
    pub(crate) fn admit(&mut self, doc: &JobDocument) -> Verdict {
        let verdict = self.check(doc);
        if verdict.is_accepted() {
            if doc.attempt() > self.attempt {
                self.attempt = doc.attempt();
                self.progress = UNKNOWN;
            }
            self.progress = doc.progress().unwrap_or(UNKNOWN).max(self.progress);
            self.ended = doc.status().is_terminal();
            self.removed = false;
        }
        verdict
    }

    /// Takes the job away, as far as `attempt`.
    pub(crate) fn remove(&mut self, attempt: u32) -> Result<(), Stale> {
        if attempt < self.attempt {
            return Err(Stale::OlderAttempt);
        }
        if self.removed && attempt == self.attempt {
            return Err(Stale::Removed);
        }
        *self = Self::removed(attempt);
        Ok(())
    }

    /// The guard of a job that was taken away.
    pub(crate) const fn removed(attempt: u32) -> Self {
        Self {
            attempt,
            ended: true,
            removed: true,
            progress: UNKNOWN,
        }
    }

    /// Why nothing follows in this attempt, which is over.
    pub(crate) const fn over(&self) -> Stale {
        match self.removed {
            true => Stale::Removed,
            false => Stale::AfterEnding,
        }
    }

    /// Whether the job has ended, so that only a higher attempt may follow.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.ended
    }

    /// The highest progress accepted of this attempt.
    pub(crate) fn progress(&self) -> Option<f64> {
        Some(self.progress).filter(|progress| *progress >= 0.0)
    }

    /// The highest attempt accepted; 0 before the first state.
    pub(crate) const fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Verdict {
    /// Whether the state may follow.
    pub(crate) const fn is_accepted(self) -> bool {
        matches!(self, Self::Accepted { .. })
    }
}

impl Stale {
    /// The reason as one word, for a metric's label and an error body.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::OlderAttempt => "older_attempt",
            Self::AfterEnding => "after_ending",
            Self::ProgressFell => "progress_fell",
            Self::Removed => "removed",
        }
    }
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OlderAttempt => "a higher attempt of this job has begun; this one is over",
            Self::AfterEnding => {
                "this attempt of the job has ended; publish a higher attempt to reopen it"
            }
            Self::ProgressFell => {
                "progress fell; within one attempt it only rises, and a new try is a higher attempt"
            }
            Self::Removed => "this job was removed; publish a higher attempt to begin it anew",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Status;
    use crate::id::Name;
    use proptest::prelude::*;

    fn state(status: &str, attempt: u32, progress: Option<f64>) -> JobDocument {
        let progress = progress.map_or(String::new(), |p| format!(",\"progress\":{p}"));
        let text = format!("{{\"status\":\"{status}\",\"attempt\":{attempt}{progress}}}");
        let job = Name::parse("j1").unwrap();
        JobDocument::parse(text.as_bytes(), &job, &Name::nobody()).unwrap()
    }

    fn admit(guard: &mut Guard, status: &str, attempt: u32, progress: Option<f64>) -> Verdict {
        guard.admit(&state(status, attempt, progress))
    }

    const ON: Verdict = Verdict::Accepted { reopened: false };

    #[test]
    fn a_guard_is_small() {
        assert!(size_of::<Guard>() <= 16);
    }

    #[test]
    fn progress_rises_or_stays() {
        let mut guard = Guard::new();
        assert_eq!(admit(&mut guard, "running", 1, Some(40.0)), ON);
        assert_eq!(admit(&mut guard, "running", 1, Some(40.0)), ON);
        assert_eq!(admit(&mut guard, "running", 1, None), ON);
        assert_eq!(
            admit(&mut guard, "running", 1, Some(39.9)),
            Verdict::Stale(Stale::ProgressFell)
        );
        assert_eq!(admit(&mut guard, "running", 1, Some(41.0)), ON);
    }

    #[test]
    fn an_ending_is_accepted_whatever_its_progress_and_nothing_after_it() {
        for ending in ["failed", "cancelled", "completed"] {
            let mut guard = Guard::new();
            assert_eq!(admit(&mut guard, "running", 1, Some(80.0)), ON);
            assert_eq!(admit(&mut guard, ending, 1, Some(10.0)), ON);
            assert!(guard.is_terminal());
            for later in ["running", ending] {
                assert_eq!(
                    admit(&mut guard, later, 1, Some(90.0)),
                    Verdict::Stale(Stale::AfterEnding)
                );
            }
        }
    }

    #[test]
    fn a_higher_attempt_reopens_and_starts_from_nothing() {
        let mut guard = Guard::new();
        assert_eq!(admit(&mut guard, "failed", 1, Some(80.0)), ON);
        let again = Verdict::Accepted { reopened: true };
        assert_eq!(guard.check(&state("queued", 2, None)), again);
        assert_eq!(admit(&mut guard, "running", 2, Some(1.0)), again);
        assert_eq!(guard.attempt(), 2);
        assert!(!guard.is_terminal());
        assert_eq!(
            admit(&mut guard, "completed", 1, None),
            Verdict::Stale(Stale::OlderAttempt)
        );
        assert_eq!(admit(&mut guard, "running", 3, Some(0.0)), ON);
    }

    #[test]
    fn a_removed_job_begins_anew_with_a_higher_attempt_alone() {
        let mut guard = Guard::new();
        assert_eq!(admit(&mut guard, "completed", 2, None), ON);
        assert_eq!(guard.remove(1), Err(Stale::OlderAttempt));
        assert_eq!(guard.remove(2), Ok(()), "also what has ended");
        assert_eq!(guard.remove(2), Err(Stale::Removed));
        let late = admit(&mut guard, "running", 2, Some(1.0));
        assert_eq!(late, Verdict::Stale(Stale::Removed));
        let again = Verdict::Accepted { reopened: true };
        assert_eq!(admit(&mut guard, "running", 3, None), again);
        assert_eq!(guard.remove(5), Ok(()), "a later one takes it away, too");
        assert_eq!(guard.attempt(), 5);
    }

    #[test]
    fn checking_remembers_nothing() {
        let guard = Guard::new();
        assert_eq!(guard.check(&state("completed", 1, None)), ON);
        assert_eq!(guard, Guard::default());
    }

    fn any_state() -> impl Strategy<Value = (Status, u32, Option<f64>)> {
        let status = proptest::sample::select(Status::ALL.to_vec());
        let running = proptest::strategy::Just(Status::Running);
        let progress = proptest::option::of((0u8..=10).prop_map(|p| f64::from(p) * 10.0));
        (prop_oneof![3 => running, 1 => status], 1u32..4, progress)
    }

    proptest! {
        #[test]
        fn whatever_comes_the_promise_holds(states in proptest::collection::vec(any_state(), 0..60)) {
            let mut guard = Guard::new();
            let (mut attempt, mut highest, mut ended) = (0, 0.0, false);
            for (status, next, progress) in states {
                let before = guard;
                let doc = state(status.as_str(), next, progress);
                let said = guard.check(&doc);
                let verdict = guard.admit(&doc);
                prop_assert_eq!(said, verdict);
                if !verdict.is_accepted() {
                    prop_assert_eq!(guard, before, "what is refused changes nothing");
                    continue;
                }
                prop_assert!(next >= attempt, "the attempt fell");
                prop_assert_eq!(verdict, Verdict::Accepted { reopened: ended });
                if next > attempt {
                    (attempt, highest, ended) = (next, 0.0, false);
                }
                prop_assert!(!ended, "something followed an ending");
                if let (Some(progress), false) = (doc.progress(), status.is_terminal()) {
                    prop_assert!(progress >= highest, "progress fell");
                    highest = progress;
                }
                ended = status.is_terminal();
                prop_assert_eq!(guard.attempt(), attempt);
                prop_assert_eq!(guard.is_terminal(), ended);
            }
        }

        #[test]
        fn an_ending_of_the_running_attempt_always_gets_in(
            states in proptest::collection::vec(any_state(), 0..30),
            ending in proptest::sample::select(vec!["completed", "failed", "cancelled"]),
            progress in 0.0f64..=100.0,
        ) {
            let mut guard = Guard::new();
            for (status, attempt, progress) in states {
                if guard.admit(&state(status.as_str(), attempt, progress)).is_accepted() {
                    continue;
                }
            }
            let attempt = guard.attempt().max(1);
            if !guard.is_terminal() {
                prop_assert!(guard.admit(&state(ending, attempt, Some(progress))).is_accepted());
            }
        }
    }
}
