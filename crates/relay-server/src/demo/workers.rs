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
    Temperament::ALL
        .into_iter()
        .enumerate()
        .map(|(place, temperament)| DemoWorker {
            temperament,
            number: 1,
            entrance: Some(millis(300 * place as u64)),
            steps: VecDeque::new(),
        })
        .collect()
}

impl DemoWorker {
    /// Goes on with what an earlier run has left: the last states of jobs, by id. Gives the job it was at.
    pub(crate) fn resume(&mut self, left: &[(String, Value)]) -> Option<String> {
        let mine = left.iter().filter_map(|(id, state)| {
            let number: u64 = id.rsplit('-').next()?.parse().ok()?;
            let steps = self.temperament.job(number);
            let is_mine = steps.front()?.publish.first()?.job == *id;
            is_mine.then_some((number, steps, id, state))
        });
        let (number, mut steps, id, state) = mine.max_by_key(|(number, ..)| *number)?;
        self.number = number + 1;
        let at = steps.iter().rposition(|step| {
            let mut states = step.publish.iter().filter(|each| each.milestone.is_none());
            states.any(|each| is_known(&each.body, state))
        })?;
        self.steps = steps.split_off(at + 1);
        (!self.steps.is_empty()).then(|| id.clone())
    }

    /// What to do next. There is always something.
    pub(crate) fn next(&mut self, random: &mut fastrand::Rng) -> Step {
        if let Some(step) = self.steps.pop_front() {
            return step;
        }
        let pause = self
            .entrance
            .take()
            .unwrap_or_else(|| millis(random.u64(4_000..9_000)));
        self.steps = self.temperament.job(self.number);
        self.number += 1;
        Step {
            wait: pause,
            publish: Vec::new(),
        }
    }
}

/// Whether a planned state is the one that the relay knows, which has more fields than were published.
fn is_known(planned: &Value, known: &Value) -> bool {
    let fields = [
        "status", "attempt", "stage", "message", "progress", "current",
    ];
    fields.iter().all(|field| {
        let (planned, known) = (&planned[field], &known[field]);
        planned.is_null()
            || planned == known
            || planned
                .as_f64()
                .zip(known.as_f64())
                .is_some_and(|(a, b)| (a - b).abs() < 1e-9)
    })
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

    /// The job of this number. It is the same in every run, so that one that was begun can be gone on with.
    fn job(self, number: u64) -> VecDeque<Step> {
        self.plan(number, &mut fastrand::Rng::with_seed(number))
    }

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
        for mut worker in cast() {
            let mut jobs: Vec<String> = Vec::new();
            for _ in 0..5_000 {
                for publish in worker.next(&mut random).publish {
                    if jobs.last() != Some(&publish.job) {
                        jobs.push(publish.job);
                    }
                }
            }
            assert!(jobs.len() > 5, "{jobs:?}");
            assert!(jobs[0].ends_with("-1"), "{jobs:?}");
            for job in jobs {
                assert!(seen.insert(job.clone()), "{job} came back");
            }
        }
    }

    #[test]
    fn a_worker_goes_on_with_the_job_that_an_earlier_run_left_in_the_middle() {
        let mut random = fastrand::Rng::with_seed(7);
        for (mut worker, mut again) in cast().into_iter().zip(cast()) {
            let mut told = Vec::new();
            let is_first = |each: &Publish| each.job.ends_with("-1");
            while told.iter().all(is_first) {
                told.extend(worker.next(&mut random).publish);
            }
            let states: Vec<_> = told
                .iter()
                .filter(|each| each.milestone.is_none())
                .collect();
            let at = states
                .iter()
                .position(|each| each.body["status"] == "running")
                .unwrap()
                + 3;
            let left = [
                (
                    "somebody-elses-9".to_owned(),
                    serde_json::json!({"status": "running"}),
                ),
                (states[at].job.clone(), states[at].body.clone()),
            ];
            assert_eq!(again.resume(&left).as_ref(), Some(&states[at].job));
            let mut next = Vec::new();
            while next.len() < 5 {
                let step = again.next(&mut random);
                next.extend(
                    step.publish
                        .into_iter()
                        .filter(|each| each.milestone.is_none()),
                );
            }
            assert!(
                next.iter().zip(&states[at + 1..]).all(|(a, b)| &a == b),
                "{:?}",
                next[0]
            );

            let ended = states.iter().rfind(|each| is_ending(&each.body)).unwrap();
            assert_eq!(
                again.resume(&[(ended.job.clone(), ended.body.clone())]),
                None
            );
            assert_eq!(again.number, 2, "the next job is a new one");
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
