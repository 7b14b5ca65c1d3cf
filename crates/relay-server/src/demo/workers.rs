//! The simulated workers of `relay demo`: six temperaments, each doing one job after another for ever.
//!
//! Pure scheduling: a worker says how long to wait and what to publish then. It knows no clock, no bus and
//! no runtime; its player waits, stamps `ts` and publishes.
//!
//! Invariant: within one attempt of a job progress never falls, and the attempt's last state, and only that
//! one, is an ending.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use self::plans::millis;

mod plans;

/// One message a worker wants published: a complete state, or a milestone with its data.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Publish {
    /// The job's id: `demo-<kind>-<n>`.
    pub(crate) job: String,
    /// The milestone's name; `None` for a state.
    pub(crate) milestone: Option<String>,
    /// The job document, or the milestone's data.
    pub(crate) body: Value,
}

/// Wait, then publish, in order. At most two messages.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// How long after the step before.
    pub(crate) wait: Duration,
    /// What to publish then.
    pub(crate) publish: Vec<Publish>,
}

/// A worker that starts a new job whenever its last one has ended.
#[derive(Debug)]
pub(crate) struct DemoWorker {
    temperament: Temperament,
    /// The number the next job carries.
    number: u64,
    /// The wait before the first job, so that the cast does not start in one voice.
    entrance: Option<Duration>,
    /// What is left of the job under way; bounded by the longest plan, a few hundred steps.
    steps: VecDeque<Step>,
}

/// The whole cast, its jobs numbered from 1.
pub(crate) fn cast() -> Vec<DemoWorker> {
    cast_from(1)
}

/// The whole cast, its jobs numbered from `first`: for a bus that still knows the jobs of an earlier run,
/// where an old number would be an update after an ending.
pub(crate) fn cast_from(first: u64) -> Vec<DemoWorker> {
    Temperament::ALL
        .into_iter()
        .enumerate()
        .map(|(place, temperament)| DemoWorker {
            temperament,
            number: first,
            entrance: Some(millis(300 * place as u64)),
            steps: VecDeque::new(),
        })
        .collect()
}

impl DemoWorker {
    /// What to do next. There is always something.
    pub(crate) fn next(&mut self, random: &mut fastrand::Rng) -> Step {
        if let Some(step) = self.steps.pop_front() {
            return step;
        }
        let pause = self
            .entrance
            .take()
            .unwrap_or_else(|| millis(random.u64(4_000..9_000)));
        self.steps = self.temperament.plan(self.number, random);
        self.number += 1;
        Step {
            wait: pause,
            publish: Vec::new(),
        }
    }
}

/// How a worker behaves, which is also what kind of job it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temperament {
    /// Tells milestones and sub-tasks: a video, clip by clip.
    Storyteller,
    /// One page after the other.
    Steady,
    /// Long pauses, then fifty updates a second.
    Bursty,
    /// Fails at seventy per cent, and succeeds when tried again.
    Faltering,
    /// Says nothing for twenty seconds in the middle.
    Silent,
    /// Is called off now and then.
    Fickle,
}

impl Temperament {
    const ALL: [Self; 6] = [
        Self::Storyteller,
        Self::Steady,
        Self::Bursty,
        Self::Faltering,
        Self::Silent,
        Self::Fickle,
    ];

    /// One whole job, from its first state to its last ending.
    fn plan(self, number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
        match self {
            Self::Storyteller => plans::video(number, random),
            Self::Steady => plans::conversion(number, random),
            Self::Bursty => plans::import(number, random),
            Self::Faltering => plans::transcription(number, random),
            Self::Silent => plans::training(number, random),
            Self::Fickle => plans::backup(number, random),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    const JOBS: u64 = 12;

    /// All the steps of the first jobs of one worker, with several seeds.
    fn lives(temperament: Temperament) -> Vec<Vec<Step>> {
        (0..6)
            .flat_map(|seed| {
                let mut random = fastrand::Rng::with_seed(seed);
                (1..=JOBS)
                    .map(|number| temperament.plan(number, &mut random).into())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn states(steps: &[Step]) -> Vec<&Value> {
        let all = steps.iter().flat_map(|step| &step.publish);
        all.filter(|publish| publish.milestone.is_none())
            .map(|publish| &publish.body)
            .collect()
    }

    fn milestones(steps: &[Step]) -> Vec<&str> {
        let all = steps.iter().flat_map(|step| &step.publish);
        all.filter_map(|publish| publish.milestone.as_deref())
            .collect()
    }

    fn is_ending(state: &Value) -> bool {
        matches!(
            state["status"].as_str(),
            Some("completed" | "failed" | "cancelled")
        )
    }

    fn attempts<'a>(states: &[&'a Value]) -> BTreeMap<u64, Vec<&'a Value>> {
        let mut attempts: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
        for state in states {
            let attempt = state["attempt"].as_u64().unwrap();
            attempts.entry(attempt).or_default().push(state);
        }
        attempts
    }

    fn progress_of(state: &Value) -> f64 {
        match state["progress"].as_f64() {
            Some(progress) => progress,
            None => 100.0 * state["current"].as_f64().unwrap() / state["total"].as_f64().unwrap(),
        }
    }

    #[test]
    fn every_attempt_has_one_ending_and_it_comes_last() {
        for temperament in Temperament::ALL {
            for steps in lives(temperament) {
                for (attempt, states) in attempts(&states(&steps)) {
                    let endings = states.iter().filter(|state| is_ending(state)).count();
                    assert_eq!(endings, 1, "{temperament:?}, attempt {attempt}");
                    assert!(is_ending(states[states.len() - 1]), "{temperament:?}");
                }
            }
        }
    }

    #[test]
    fn progress_never_falls_within_an_attempt() {
        for temperament in Temperament::ALL {
            for steps in lives(temperament) {
                for states in attempts(&states(&steps)).into_values() {
                    let progress: Vec<f64> = states.iter().map(|s| progress_of(s)).collect();
                    assert!(progress.is_sorted(), "{temperament:?}: {progress:?}");
                    assert!(progress.iter().all(|p| (0.0..=100.0).contains(p)));
                }
            }
        }
    }

    #[test]
    fn every_document_is_complete_and_every_name_is_one() {
        let is_name = |text: &str| {
            (1..=128).contains(&text.len())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        for temperament in Temperament::ALL {
            for step in lives(temperament).into_iter().flatten() {
                assert!(step.publish.len() <= 2);
                for publish in step.publish {
                    assert!(is_name(&publish.job));
                    assert!(publish.body.is_object());
                    assert!(publish.body.to_string().len() < 4_096);
                    match publish.milestone {
                        Some(name) => assert!(is_name(&name) && name != "state"),
                        None => {
                            assert!(publish.body["meta"]["title"].is_string());
                            assert!(publish.body["kind"].is_string());
                            let status = publish.body["status"].as_str().unwrap();
                            assert!(
                                ["queued", "running"].contains(&status) || is_ending(&publish.body)
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_faltering_worker_fails_first_and_completes_when_tried_again() {
        for steps in lives(Temperament::Faltering) {
            let attempts = attempts(&states(&steps));
            assert_eq!(attempts.keys().copied().collect::<Vec<_>>(), [1, 2]);
            let failure = attempts[&1][attempts[&1].len() - 1];
            assert_eq!(failure["status"], "failed");
            assert_eq!(failure["error"]["recoverable"], false);
            assert!((60.0..80.0).contains(&progress_of(failure)));
            let ending = attempts[&2][attempts[&2].len() - 1];
            assert_eq!(ending["status"], "completed");
            assert!(ending.get("error").is_none());
        }
    }

    #[test]
    fn the_silent_worker_is_silent_for_twenty_seconds_once_while_running() {
        for steps in lives(Temperament::Silent) {
            let silences: Vec<usize> = (0..steps.len())
                .filter(|&at| steps[at].wait >= millis(20_000))
                .collect();
            assert_eq!(silences.len(), 1);
            let before = &steps[silences[0] - 1].publish[0].body;
            assert_eq!(before["status"], "running");
            assert!((20.0..70.0).contains(&progress_of(before)));
        }
    }

    #[test]
    fn the_bursty_worker_publishes_fifty_times_a_second_and_pauses_between() {
        for steps in lives(Temperament::Bursty) {
            let quick = steps.iter().filter(|step| step.wait == millis(20)).count();
            let pauses = steps.iter().filter(|step| step.wait >= millis(2_000));
            assert!(quick > 150, "{quick}");
            assert!(pauses.count() >= 5);
        }
    }

    #[test]
    fn every_clip_of_the_video_is_a_task_and_a_milestone() {
        for steps in lives(Temperament::Storyteller) {
            let states = states(&steps);
            let clips = states[states.len() - 1]["tasks"].as_array().unwrap().len();
            let ready = milestones(&steps)
                .iter()
                .filter(|&&name| name == "clip_completed")
                .count();
            assert_eq!(ready, clips);
        }
    }

    #[test]
    fn the_fickle_worker_is_cancelled_sometimes_and_completes_sometimes() {
        let lives = lives(Temperament::Fickle);
        let cancelled = lives
            .iter()
            .filter(|steps| states(steps).iter().any(|s| s["status"] == "cancelled"));
        let cancelled = cancelled.count();
        assert!(
            cancelled > lives.len() / 5 && cancelled < lives.len() * 3 / 5,
            "{cancelled}"
        );
    }

    #[test]
    fn a_job_is_long_enough_to_watch_and_short_enough_to_wait_for() {
        for temperament in Temperament::ALL {
            for steps in lives(temperament) {
                let length: Duration = steps.iter().map(|step| step.wait).sum();
                assert!(
                    (millis(4_000)..millis(90_000)).contains(&length),
                    "{temperament:?}: {length:?}"
                );
            }
        }
    }

    #[test]
    fn a_worker_never_stops_and_never_uses_a_job_id_twice() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut seen = HashSet::new();
        for mut worker in cast_from(41) {
            let mut jobs: Vec<String> = Vec::new();
            for _ in 0..5_000 {
                for publish in worker.next(&mut random).publish {
                    if jobs.last() != Some(&publish.job) {
                        jobs.push(publish.job);
                    }
                }
            }
            assert!(jobs.len() > 5, "{jobs:?}");
            assert!(jobs[0].ends_with("-41"), "{jobs:?}");
            for job in jobs {
                assert!(seen.insert(job.clone()), "{job} came back");
            }
        }
    }

    #[test]
    fn the_first_jobs_start_within_two_seconds() {
        let mut random = fastrand::Rng::with_seed(7);
        for mut worker in cast() {
            let wait = worker.next(&mut random).wait;
            assert!(wait < millis(2_000), "{wait:?}");
        }
    }
}
