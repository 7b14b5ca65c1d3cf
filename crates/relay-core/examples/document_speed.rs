//! Prints what it costs to take in one job document: `cargo run --release -p relay-core --example document_speed`.

#![allow(
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "it measures real time and prints it"
)]

use std::hint::black_box;
use std::time::Instant;

use relay_core::document::{JobDocument, MilestoneData, merge_patch};
use relay_core::id::Name;

const TICK: &str = r#"{"status":"running","progress":42.5,"ts":"2026-11-21T10:00:00.250Z"}"#;
const USUAL: &str = r#"{"job_id":"job-00017","kind":"conversion","status":"processing","progress":42.5,"stage":"encoding","message":"Encoding chapter 3 of 7 at 1080p","attempt":1,"created_at":"2026-11-21T09:58:00Z","updated_at":"2026-11-21T10:00:00Z","ts":"2026-11-21T10:00:00.250Z","meta":{"preset":"hq","crf":21},"worker":"w-17"}"#;
const TASKS: &str = r#"{"status":"running","current":3,"total":7,"unit":"clips","message":"Composing","tasks":[{"name":"script","status":"completed","progress":100},{"name":"voice","status":"completed","progress":100},{"name":"clip 1","status":"running","progress":40,"message":"rendering"},{"name":"clip 2","status":"queued"}],"ts":"2026-11-21T10:00:00.250Z","parent_id":"film-3","weight":2,"x_trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (job, owner) = (Name::parse("job-00017")?, Name::parse("alice")?);
    for (name, text) in [("tick", TICK), ("usual", USUAL), ("tasks", TASKS)] {
        JobDocument::parse(text.as_bytes(), &job, &owner)?;
        let parse = || JobDocument::parse(black_box(text.as_bytes()), &job, &owner);
        print(name, text.len(), "parse", nanoseconds(parse));
        print(name, text.len(), "parse + into_json", {
            nanoseconds(|| parse().map(JobDocument::into_json))
        });
        print(name, text.len(), "milestone", {
            nanoseconds(|| MilestoneData::parse(black_box(text.as_bytes())))
        });
        print(name, text.len(), "merge patch", {
            nanoseconds(|| merge_patch(black_box(text.as_bytes()), br#"{"progress":43}"#))
        });
    }
    Ok(())
}

fn print(name: &str, bytes: usize, what: &str, nanoseconds: f64) {
    println!("{name:>6} {bytes:>4} B  {what:<17} {nanoseconds:>7.0} ns");
}

/// The best of several rounds: noise only ever adds.
fn nanoseconds<T>(mut work: impl FnMut() -> T) -> f64 {
    const TURNS: u32 = 20_000;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..TURNS {
            black_box(work());
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(TURNS));
    }
    best
}
