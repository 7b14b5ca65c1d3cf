//! `relay demo`: a relay with an embedded bus, a handful of simulated workers, and a page that shows them.
//!
//! The page and the workers use what everybody has: the page speaks the native protocol, the workers
//! publish through the hub as HTTP publishers do.

pub(crate) mod workers;

use std::sync::Arc;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use bytes::Bytes;
use relay_bus::hub::{Hub, PublishRequest, Verb};
use relay_bus::seam::What;
use relay_core::id::Name;
use relay_core::publication::Body;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use workers::{DemoWorker, Publish, cast};

/// Whose jobs the simulated workers do; the page watches this user.
const OWNER: &str = "demo";

/// The page.
pub(crate) fn routes() -> Router {
    Router::new().route("/", get(async || Html(include_str!("demo/page.html"))))
}

/// Starts the simulated workers. They go on with what an earlier run has left, as far as the hub knows it.
pub(crate) fn start_workers(hub: Arc<Hub>, tasks: &mut JoinSet<()>) {
    let left = left_by_an_earlier_run(&hub);
    for mut worker in cast() {
        let job = worker.resume(&left);
        let state = left.iter().find(|(id, _)| Some(id) == job.as_ref());
        let created_at = state.and_then(|(_, state)| state["created_at"].as_str());
        let begun = job.zip(created_at.map(str::to_owned)).unwrap_or_default();
        tasks.spawn(work(hub.clone(), worker, begun));
    }
}

/// The last state of each of the workers' jobs, by id.
fn left_by_an_earlier_run(hub: &Hub) -> Vec<(String, Value)> {
    let jobs = hub.history().jobs.into_iter();
    let ours = jobs.filter(|job| job.owner.to_string() == OWNER);
    let last = ours.filter_map(|job| {
        let states = job.memory.publications.iter().rev();
        let state = states.filter_map(|publication| match &publication.body {
            Body::State { json, .. } => serde_json::from_slice(json).ok(),
            Body::Milestone { .. } | Body::Gone(_) => None,
        });
        Some((job.id.to_string(), state.into_iter().next()?))
    });
    last.collect()
}

/// Plays one worker. `begun` is the job under way, and since when it is.
async fn work(hub: Arc<Hub>, mut worker: DemoWorker, mut begun: (String, String)) {
    let mut random = fastrand::Rng::new();
    let clock = hub.clock();
    loop {
        let step = worker.next(&mut random);
        sleep(step.wait).await;
        for mut publish in step.publish {
            let now = clock.wall().to_rfc3339().unwrap_or_default();
            if begun.0 != publish.job {
                begun = (publish.job.clone(), now.clone());
            }
            if publish.milestone.is_none() {
                publish.body["created_at"] = json!(begun.1);
            }
            publish.body["ts"] = json!(now);
            let Some(request) = request(&publish) else {
                continue;
            };
            if let Err(error) = hub.publish(request, |_| true).await {
                tracing::warn!(%error, job = publish.job, "an update of the demo's worker was rejected");
            }
        }
    }
}

fn request(publish: &Publish) -> Option<PublishRequest> {
    let milestone = publish
        .milestone
        .as_deref()
        .map(Name::parse)
        .transpose()
        .ok()?;
    Some(PublishRequest {
        job: Name::parse(&publish.job).ok()?,
        owner: Name::parse(OWNER).ok(),
        verb: Verb::Put(milestone.map_or(What::State, What::Milestone)),
        payload: Bytes::from(publish.body.to_string()),
        key: None,
    })
}
