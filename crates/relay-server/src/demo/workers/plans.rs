//! The jobs of the simulated workers, each planned whole: what is published, and after how long a wait.
//!
//! A plan is drawn once, from a job number and some randomness; it knows nothing of who plays it.
//!
//! Invariant: a plan's steps are in the order a watcher sees them, each state complete in itself.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Publish, Step};

/// A job being planned: it adds to each state what all states of the job have in common.
struct Plan {
    job: String,
    common: Map<String, Value>,
    steps: VecDeque<Step>,
}

impl Plan {
    fn new(kind: &str, number: u64, titles: &[&str]) -> Self {
        let title = titles[(number as usize) % titles.len()];
        let mut common = Map::new();
        common.insert("kind".into(), json!(kind));
        common.insert("attempt".into(), json!(1));
        common.insert("meta".into(), json!({ "title": title }));
        Self {
            job: format!("demo-{kind}-{number}"),
            common,
            steps: VecDeque::new(),
        }
    }

    /// A state, published `wait` after the step before.
    fn state(&mut self, wait: Duration, fields: Value) {
        let mut body = self.common.clone();
        if let Value::Object(fields) = fields {
            body.extend(fields);
        }
        self.steps.push_back(Step {
            wait,
            publish: vec![Publish {
                job: self.job.clone(),
                milestone: None,
                body: Value::Object(body),
            }],
        });
    }

    /// A milestone, published together with the state before it.
    fn milestone(&mut self, name: &str, data: Value) {
        if let Some(step) = self.steps.back_mut() {
            step.publish.push(Publish {
                job: self.job.clone(),
                milestone: Some(name.into()),
                body: data,
            });
        }
    }

    /// Everything from here on belongs to this attempt.
    fn attempt(&mut self, attempt: u64) {
        self.common.insert("attempt".into(), json!(attempt));
    }

    /// Where the result of the job can be seen: the relay's own page about it.
    fn result_url(&self) -> String {
        format!("/v1/jobs/{}", self.job)
    }
}

/// Steady: a file conversion, page by page. Its ETA is left to the relay.
pub(super) fn conversion(number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
    let mut plan = Plan::new(
        "conversion",
        number,
        &[
            "Annual report to PDF",
            "Product catalogue to PDF",
            "Field notes to EPUB",
            "Tender documents to PDF/A",
        ],
    );
    let pages = random.u64(28..56);
    plan.state(Duration::ZERO, json!({"status": "queued", "progress": 0}));
    for page in 1..=pages {
        let stage = match page * 10 / pages {
            0..=1 => "Reading",
            2..=6 => "Laying out",
            _ => "Writing",
        };
        plan.state(
            millis(random.u64(500..900)),
            json!({
                "status": "running",
                "progress": percent(page - 1, pages),
                "stage": stage,
                "message": format!("page {page} of {pages}"),
            }),
        );
    }
    let done = json!({
        "status": "completed", "progress": 100, "message": format!("{pages} pages"),
        "result": {"pages": pages}, "result_url": plan.result_url(),
    });
    plan.state(millis(700), done);
    plan.steps
}

/// Bursty: a table import that counts rows. It is quiet while it reads, then publishes far more often than
/// anybody can look: what a watcher sees of that is the relay's conflation.
pub(super) fn import(number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
    let mut plan = Plan::new(
        "import",
        number,
        &[
            "Customer table",
            "Orders of last year",
            "Sensor readings",
            "Price list",
        ],
    );
    let bursts = random.u64(5..8);
    let updates = random.u64(40..75);
    let rows = random.u64(30..90);
    let total = bursts * updates * rows;
    let mut current = 0;
    plan.state(
        Duration::ZERO,
        json!({"status": "queued", "current": 0, "total": total, "unit": "rows"}),
    );
    for burst in 1..=bursts {
        plan.state(
            millis(random.u64(300..600)),
            json!({
                "status": "running", "current": current, "total": total, "unit": "rows",
                "stage": "Reading", "message": format!("chunk {burst} of {bursts}"),
            }),
        );
        for update in 0..updates {
            current += rows;
            // The pause is the reading of the chunk; the burst is the writing.
            let wait = if update == 0 {
                random.u64(2_500..4_500)
            } else {
                20
            };
            plan.state(
                millis(wait),
                json!({
                    "status": "running", "current": current, "total": total, "unit": "rows",
                    "stage": "Writing", "message": format!("chunk {burst} of {bursts}"),
                }),
            );
        }
    }
    plan.state(
        millis(400),
        json!({
            "status": "completed", "current": total, "total": total, "unit": "rows",
            "result": {"rows": total},
        }),
    );
    plan.steps
}

/// Faltering: the first attempt fails at about seventy per cent, the second completes.
pub(super) fn transcription(number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
    let mut plan = Plan::new(
        "transcription",
        number,
        &[
            "Interview, part one",
            "Interview, part two",
            "Board meeting",
            "Lecture on tides",
        ],
    );
    let minutes = random.u64(36..64);
    let breaks_at = minutes * random.u64(66..74) / 100;
    plan.state(Duration::ZERO, json!({"status": "queued", "progress": 0}));
    for attempt in 1..=2 {
        plan.attempt(attempt);
        let until = if attempt == 1 { breaks_at } else { minutes };
        for minute in 0..until {
            // The retry waits a while, so that the failure can be seen.
            let wait = match (attempt, minute) {
                (2, 0) => random.u64(5_000..8_000),
                (2, _) => random.u64(250..450),
                _ => random.u64(350..700),
            };
            plan.state(
                millis(wait),
                json!({
                    "status": "running", "progress": percent(minute, minutes),
                    "stage": "Listening", "message": format!("minute {} of {minutes}", minute + 1),
                }),
            );
        }
        if attempt == 1 {
            plan.state(
                millis(600),
                json!({
                    "status": "failed", "progress": percent(breaks_at, minutes), "stage": "Listening",
                    "error": {
                        "code": "out_of_memory",
                        "message": format!("The model ran out of memory at minute {breaks_at}."),
                        "recoverable": false,
                    },
                }),
            );
        }
    }
    let done = json!({
        "status": "completed", "progress": 100, "message": "at the second attempt",
        "result": {"minutes": minutes}, "result_url": plan.result_url(),
    });
    plan.state(millis(600), done);
    plan.steps
}

/// Silent: a training that says nothing for twenty seconds in the middle, and then goes on.
pub(super) fn training(number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
    let mut plan = Plan::new(
        "training",
        number,
        &["Demand forecast", "Spam filter", "Route planner"],
    );
    let passes = random.u64(14..20);
    let quiet_after = passes * random.u64(40..60) / 100;
    plan.state(Duration::ZERO, json!({"status": "queued", "progress": 0}));
    for pass in 1..=passes {
        let wait = if pass == quiet_after + 1 {
            20_000
        } else {
            random.u64(900..1_600)
        };
        let checkpoint = pass == quiet_after;
        plan.state(
            millis(wait),
            json!({
                "status": "running", "progress": percent(pass - 1, passes),
                "stage": if checkpoint { "Writing a checkpoint" } else { "Training" },
                "message": format!("pass {pass} of {passes}"),
            }),
        );
        if pass == quiet_after + 1 {
            plan.milestone("checkpoint_saved", json!({"pass": quiet_after}));
        }
    }
    plan.state(
        millis(1_200),
        json!({
            "status": "completed", "progress": 100, "message": format!("{passes} passes"),
            "result": {"passes": passes},
        }),
    );
    plan.steps
}

/// Fickle: a backup that somebody calls off two times in five.
pub(super) fn backup(number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
    let mut plan = Plan::new(
        "backup",
        number,
        &["Photo archive", "Mailboxes", "Home directories"],
    );
    let total = random.u64(30..52);
    let stops_at = if random.u8(0..5) < 2 {
        total * random.u64(30..80) / 100
    } else {
        total
    };
    plan.state(
        Duration::ZERO,
        json!({"status": "queued", "current": 0, "total": total, "unit": "GB"}),
    );
    for current in 0..stops_at {
        plan.state(
            millis(random.u64(450..1_000)),
            json!({
                "status": "running", "current": current, "total": total, "unit": "GB",
                "stage": if current * 10 < total { "Listing" } else { "Copying" },
            }),
        );
    }
    let ending = if stops_at < total {
        json!({
            "status": "cancelled", "current": stops_at, "total": total, "unit": "GB",
            "message": "Stopped by its owner",
        })
    } else {
        json!({"status": "completed", "current": total, "total": total, "unit": "GB", "result": {"gigabytes": total}})
    };
    plan.state(millis(500), ending);
    plan.steps
}

const SCENES: [&str; 5] = ["Opening", "Harbour", "Workshop", "Interview", "Closing"];

/// Storyteller: a video made of clips, each a task and each a milestone when it is ready; it gives its own ETA.
pub(super) fn video(number: u64, random: &mut fastrand::Rng) -> VecDeque<Step> {
    let mut plan = Plan::new(
        "composition",
        number,
        &["Harbour film", "Open day trailer", "Course introduction"],
    );
    let mut clips = vec![0_u64; random.usize(3..=SCENES.len())];
    plan.state(Duration::ZERO, json!({"status": "queued", "progress": 0}));
    plan.state(
        millis(800),
        json!({
            "status": "running", "progress": 1, "stage": "Storyboard", "tasks": tasks(&clips),
        }),
    );
    plan.state(
        millis(2_200),
        json!({
            "status": "running", "progress": 4, "stage": "Storyboard", "tasks": tasks(&clips),
        }),
    );
    plan.milestone(
        "storyboard_ready",
        json!({"label": format!("{} scenes", clips.len()), "scenes": clips.len()}),
    );
    render(&mut plan, &mut clips, random);
    for (progress, message) in [(90, "music"), (92, "voices"), (94, "levels")] {
        plan.state(
            millis(900),
            json!({
                "status": "running", "progress": progress, "stage": "Mixing sound", "message": message,
                "eta_seconds": (100 - progress) / 2, "tasks": tasks(&clips),
            }),
        );
    }
    plan.milestone("sound_mixed", json!({"label": "3 tracks", "tracks": 3}));
    plan.state(
        millis(1_400),
        json!({
            "status": "running", "progress": 97, "stage": "Final cut", "eta_seconds": 2, "tasks": tasks(&clips),
        }),
    );
    let done = json!({
        "status": "completed", "progress": 100, "message": format!("{} clips", clips.len()),
        "tasks": tasks(&clips), "result": {"clips": clips.len()}, "result_url": plan.result_url(),
    });
    plan.state(millis(1_800), done);
    plan.steps
}

/// Renders the clips, two at a time, until all of them are ready.
fn render(plan: &mut Plan, clips: &mut [u64], random: &mut fastrand::Rng) {
    let of = clips.len();
    let whole = 100 * of as u64;
    loop {
        let at_work: Vec<usize> = (0..of).filter(|&clip| clips[clip] < 100).take(2).collect();
        let Some(&first) = at_work.first() else {
            return;
        };
        for &clip in &at_work {
            clips[clip] = (clips[clip] + random.u64(3..9)).min(100);
        }
        let done: u64 = clips.iter().sum();
        plan.state(
            millis(600),
            json!({
                "status": "running", "progress": tenths(4.0 + 85.0 * done as f64 / whole as f64),
                "stage": "Rendering", "message": format!("clip {} of {of}", first + 1),
                // Two clips gain about 11 points in 0.6 s; the rest of the film takes six seconds.
                "eta_seconds": 6 + (whole - done) * 6 / 110, "tasks": tasks(clips),
            }),
        );
        // A step holds one milestone, so of two clips ready at once the second waits for a state of its own.
        let mut ready = at_work.iter().filter(|&&clip| clips[clip] == 100);
        if let Some(&clip) = ready.next() {
            plan.milestone("clip_completed", clip_data(clip, of));
        }
        if let Some(&clip) = ready.next() {
            plan.state(
                millis(100),
                json!({
                    "status": "running", "progress": tenths(4.0 + 85.0 * done as f64 / whole as f64),
                    "stage": "Rendering", "tasks": tasks(clips),
                }),
            );
            plan.milestone("clip_completed", clip_data(clip, of));
        }
    }
}

fn clip_data(clip: usize, of: usize) -> Value {
    json!({"title": SCENES[clip], "clip": clip + 1, "of": of})
}

/// The clips as the sub-tasks of a state.
fn tasks(clips: &[u64]) -> Value {
    clips
        .iter()
        .zip(SCENES)
        .map(|(&progress, name)| {
            let status = match progress {
                0 => "queued",
                100 => "completed",
                _ => "running",
            };
            json!({"name": name, "status": status, "progress": progress})
        })
        .collect()
}

fn percent(done: u64, of: u64) -> f64 {
    tenths(100.0 * done as f64 / of as f64)
}

/// Rounded to tenths: what a person would publish.
fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

pub(super) fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
