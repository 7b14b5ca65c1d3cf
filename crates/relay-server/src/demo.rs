//! `relay demo`: a relay with an embedded bus, a handful of simulated workers, and a page that shows them.
//!
//! The page and the workers use what everybody has: the page speaks the native protocol, the workers
//! publish through the hub as HTTP publishers do.

pub(crate) mod workers;

use std::sync::Arc;

use axum::Router;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use relay_bus::hub::{Hub, PublishRequest, Verb};
use relay_bus::seam::What;
use relay_core::id::Name;
use relay_core::publication::Body;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::answer::NO_SNIFF;
use workers::{DemoWorker, Publish, cast};

/// Whose jobs the simulated workers do; the page watches this user.
const OWNER: &str = "demo";

const PAGE: &str = include_str!("demo/page.html");

/// The page.
pub(crate) fn routes() -> Router {
    let policy = policy(PAGE);
    Router::new().route("/", get(async move || page(policy)))
}

/// The page, which runs its own script and nothing else, whatever is told on it, and is shown inside no other.
fn page(policy: HeaderValue) -> impl IntoResponse {
    let headers = [
        NO_SNIFF,
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
    ];
    (headers, Html(PAGE))
}

/// What a browser may do for the page: its scripts and styles are named by their hashes.
fn policy(page: &str) -> HeaderValue {
    let hashes = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inline = page.split(&open).skip(1);
        let texts = inline.filter_map(|rest| rest.split(&close).next());
        let hashes =
            texts.map(|text| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text))));
        hashes.collect::<Vec<_>>().join(" ")
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hashes("script"),
        hashes("style"),
    );
    // Base64 and the words above are of an alphabet that headers take.
    HeaderValue::from_str(&policy)
        .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
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
        caller: None,
        job: Name::parse(&publish.job).ok()?,
        owner: Name::parse(OWNER).ok(),
        verb: Verb::Put(milestone.map_or(What::State, What::Milestone)),
        payload: Bytes::from(publish.body.to_string()),
        key: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        let policy = policy("<style>a</style><p><script>b</script><script>c</script>");
        let policy = policy.to_str().unwrap();
        let of = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
        assert!(
            policy.contains(&format!("style-src {};", of("a"))),
            "{policy}"
        );
        let scripts = format!("script-src {} {};", of("b"), of("c"));
        assert!(policy.contains(&scripts), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let page = PAGE.to_ascii_lowercase();
        for forbidden in [
            " style=\"",
            " onclick=",
            " onload=",
            " onerror=",
            "javascript:",
            "<script ",
            "<style ",
            "<iframe",
            "eval(",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        let answer = page_answer();
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(answer.headers()[name], value);
        }
        assert!(answer.headers().contains_key("content-security-policy"));
    }

    fn page_answer() -> axum::response::Response {
        page(policy(PAGE)).into_response()
    }
}
