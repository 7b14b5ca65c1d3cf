//! The example workers, each run as its how-to says, and what watchers see of them on each transport.
//!
//! The how-to pages show the examples' own text, which is checked here too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use relay_testkit::client::{Frame, Transport, Watch, Watcher};
use relay_testkit::nats::{NatsServer, Options};
use relay_testkit::process::Process;
use relay_testkit::relay::{RelayServer, Settings};
use relay_testkit::tools;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(15);

/// The four examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Example {
    Python,
    Node,
    Rust,
    Curl,
}

impl Example {
    fn source(self) -> PathBuf {
        tools::workspace()
            .join("examples/workers")
            .join(match self {
                Self::Python => "python/worker.py",
                Self::Node => "node/worker.mjs",
                Self::Rust => "rust/src/main.rs",
                Self::Curl => "curl/worker.sh",
            })
    }

    fn command(self) -> Command {
        match self {
            Self::Python => with_script(&tools::python().unwrap(), &self.source()),
            Self::Node => with_script(&tools::node().unwrap(), &self.source()),
            Self::Rust => Command::new(built_rust_example()),
            Self::Curl => with_script(Path::new("sh"), &self.source()),
        }
    }

    fn page(self) -> PathBuf {
        tools::workspace().join("docs/how-to").join(match self {
            Self::Python => "publish-from-python.md",
            Self::Node => "publish-from-node.md",
            Self::Rust => "publish-from-rust.md",
            Self::Curl => "publish-with-curl.md",
        })
    }

    fn language(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "js",
            Self::Rust => "rust",
            Self::Curl => "sh",
        }
    }
}

fn with_script(program: &Path, script: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(script);
    command
}

/// The example's binary, next to the relay's, where a run of the whole workspace puts it. A run of this
/// package alone may find none, or an old one, and builds it; which can take a minute.
fn built_rust_example() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let binary = Path::new(env!("CARGO_BIN_EXE_relay")).with_file_name("relay-example-worker");
        let written = |path: &Path| {
            path.metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
        };
        if written(&binary).is_none_or(|built| {
            written(&Example::Rust.source()).is_some_and(|source| source > built)
        }) {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let done = Command::new(cargo)
                .args([
                    "build",
                    "--quiet",
                    "--locked",
                    "--package",
                    "relay-example-worker",
                ])
                .current_dir(tools::workspace())
                .status()
                .unwrap();
            assert!(
                done.success(),
                "cargo build -p relay-example-worker: {done}"
            );
        }
        binary
    });
    built.clone()
}

/// A running example.
struct Worker {
    process: Process,
    _directory: TempDir,
}

impl Worker {
    fn start(
        example: Example,
        job: &str,
        nats: &NatsServer,
        relay: &RelayServer,
        more: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = example.command();
        command
            .args([job, "alice"])
            .env("NATS_URL", nats.url())
            .env("RELAY_URL", relay.url())
            .env("STEPS", "12")
            .envs(more.iter().copied());
        Self {
            process: Process::spawn(&mut command, &directory.path().join("log")).unwrap(),
            _directory: directory,
        }
    }

    async fn end(&mut self) -> i32 {
        let status = self.process.end(SOON).await.unwrap();
        status.code().unwrap_or_else(|| panic!("{status}"))
    }
}

fn settings(nats: &NatsServer) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_relay")).jetstream(&nats.url())
}

async fn watchers(relay: &RelayServer, job: &str) -> Vec<(Transport, Watcher)> {
    let mut watchers = Vec::new();
    for transport in Transport::ALL {
        let watch = Watch::topics([format!("job:{job}")]);
        let watcher = Watcher::connect(transport, &relay.address(), watch).await;
        watchers.push((transport, watcher.unwrap()));
    }
    watchers
}

/// Reads states and milestones up to the ending.
async fn life(watcher: &mut Watcher) -> Vec<Frame> {
    let mut life = Vec::new();
    watcher
        .until(SOON, "the ending", |frame| {
            if matches!(frame.kind(), "state" | "milestone") {
                life.push(frame.clone());
            }
            frame.is_ending()
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}; the life so far: {life:?}"));
    life
}

async fn example_is_seen_on_every_transport(example: Example) {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let relay = RelayServer::start(settings(&nats)).await.unwrap();
    let mut watchers = watchers(&relay, "report").await;
    let mut worker = Worker::start(example, "report", &nats, &relay, &[]);

    // all at once, as the jobs of a page are watched
    let (a, b) = watchers.split_at_mut(2);
    let ((w, s), (l, p)) = ((a.split_at_mut(1)), (b.split_at_mut(1)));
    let (w, s, l, p) = tokio::join!(
        life(&mut w[0].1),
        life(&mut s[0].1),
        life(&mut l[0].1),
        life(&mut p[0].1)
    );
    for ((transport, _), life) in watchers.iter().zip([w, s, l, p]) {
        // A node that is late takes in several at once, and a newer state stands for the older behind a milestone.
        let first = life.iter().find(|frame| frame.kind() == "state").unwrap();
        assert_eq!(first.status(), "running", "{transport}: {first}");
        let last = life.last().unwrap();
        assert_eq!(last.status(), "completed", "{transport}: {last}");
        assert_eq!(last.job()["owner"], "alice", "{transport}: {last}");
        assert_eq!(last.job()["progress"], 100.0, "{transport}: {last}");
        assert_eq!(last.job()["result"]["steps"], 12, "{transport}: {last}");

        let steps: Vec<u64> = life
            .iter()
            .filter_map(|frame| frame.job()["current"].as_u64())
            .collect();
        assert!(
            steps.len() > 1 && steps.is_sorted(),
            "{transport}: {steps:?}"
        );
        let milestones: Vec<&str> = life
            .iter()
            .filter(|frame| frame.kind() == "milestone")
            .map(Frame::name)
            .collect();
        let expected: &[&str] = if *transport == Transport::State {
            &[]
        } else {
            &["half_way"]
        };
        assert_eq!(milestones, expected, "{transport}");
    }
    assert_eq!(worker.end().await, 0, "{}", worker.process.logs());

    // a worker whose work fails says so, and its job does not hang at its last step
    let mut failing = Worker::start(example, "broken", &nats, &relay, &[("FAIL_AT", "5")]);
    let watch = Watch::topics(["job:broken"]);
    let mut watcher = Watcher::connect(Transport::Sse, &relay.address(), watch)
        .await
        .unwrap();
    let ending = watcher
        .until(SOON, "the failure", Frame::is_ending)
        .await
        .unwrap();
    assert_eq!(ending.status(), "failed", "{ending}");
    assert_eq!(
        ending.job()["error"]["message"],
        "step 5 went wrong",
        "{ending}"
    );
    assert_eq!(failing.end().await, 1, "{}", failing.process.logs());
}

#[tokio::test]
async fn the_python_worker_is_seen_on_every_transport() {
    example_is_seen_on_every_transport(Example::Python).await;
}

#[tokio::test]
async fn the_node_worker_is_seen_on_every_transport() {
    example_is_seen_on_every_transport(Example::Node).await;
}

#[tokio::test]
async fn the_rust_worker_is_seen_on_every_transport() {
    example_is_seen_on_every_transport(Example::Rust).await;
}

#[tokio::test]
async fn the_curl_worker_is_seen_on_every_transport() {
    example_is_seen_on_every_transport(Example::Curl).await;
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_ends_its_job() {
    let nats = NatsServer::start(Options::jetstream()).await.unwrap();
    let relay = RelayServer::start(settings(&nats)).await.unwrap();
    for example in [Example::Python, Example::Node, Example::Rust, Example::Curl] {
        let job = format!("stopped-{}", example.language());
        let mut worker = Worker::start(example, &job, &nats, &relay, &[("STEPS", "1000")]);
        let watch = Watch::topics([format!("job:{job}")]);
        let mut watcher = Watcher::connect(Transport::Sse, &relay.address(), watch)
            .await
            .unwrap();
        let is_running = |frame: &Frame| frame.kind() == "state" && frame.status() == "running";
        watcher.until(SOON, "progress", is_running).await.unwrap();
        worker.process.signal("TERM").unwrap();
        let ending = watcher.until(SOON, "an ending", Frame::is_ending).await;
        let ending = ending.unwrap_or_else(|error| panic!("{example:?}: {error:#}"));
        assert_eq!(ending.status(), "cancelled", "{example:?}: {ending}");
        let logs = worker.process.logs();
        assert_eq!(worker.end().await, 130, "{example:?}: {logs}");
    }
}

#[tokio::test]
async fn a_worker_logs_in_with_user_and_password_and_says_so_where_it_may_not() {
    let login = "authorization { user: u, password: p }";
    let nats = NatsServer::start(Options::jetstream().config(login))
        .await
        .unwrap();
    let settings = settings(&nats)
        .set("nats.user", "u")
        .set("nats.password", "p");
    let relay = RelayServer::start(settings).await.unwrap();
    for example in [Example::Python, Example::Node, Example::Rust] {
        let job = format!("login-{}", example.language());
        let login = |password| [("NATS_USER", "u"), ("NATS_PASSWORD", password)];
        let mut worker = Worker::start(example, &job, &nats, &relay, &login("p"));
        assert_eq!(
            worker.end().await,
            0,
            "{example:?}: {}",
            worker.process.logs()
        );
        let mut refused = Worker::start(example, &job, &nats, &relay, &login("wrong"));
        assert_eq!(refused.end().await, 1, "{example:?}");
        let said = refused.process.logs().to_lowercase();
        assert!(
            said.contains("authorization violation"),
            "{example:?}: {said}"
        );
    }
}

#[tokio::test]
async fn workers_that_start_before_nats_and_the_relay_lose_nothing_that_counts() {
    let mut nats = NatsServer::absent(&Options::jetstream()).unwrap();
    let mut relay = RelayServer::start(settings(&nats).only_live())
        .await
        .unwrap();
    let examples = [Example::Python, Example::Node, Example::Rust];
    let mut workers: Vec<Worker> = examples
        .iter()
        .map(|example| {
            let job = format!("early-{}", example.language());
            Worker::start(*example, &job, &nats, &relay, &[("STEPS", "4")])
        })
        .collect();
    // they are there and trying before there is anything to talk to
    tokio::time::sleep(Duration::from_millis(500)).await;
    nats.restart().await.unwrap();
    relay.ready().await.unwrap();
    let watch = Watch::topics(examples.map(|example| format!("job:early-{}", example.language())));
    let mut watcher = Watcher::connect(Transport::WebSocket, &relay.address(), watch)
        .await
        .unwrap();
    let mut ended = Vec::new();
    while ended.len() < examples.len() {
        let ending = watcher
            .until(SOON, "an ending", Frame::is_ending)
            .await
            .unwrap();
        assert_eq!(ending.status(), "completed", "{ending}");
        ended.push(ending.job_id().to_owned());
    }
    for worker in &mut workers {
        assert_eq!(worker.end().await, 0, "{}", worker.process.logs());
    }
}

/// The fenced blocks of a language in a page.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.trim() == fence {
            let block: Vec<&str> = lines
                .by_ref()
                .take_while(|line| line.trim() != "```")
                .collect();
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

#[test]
fn the_how_to_pages_show_the_examples_own_text() {
    for example in [Example::Python, Example::Node, Example::Rust, Example::Curl] {
        let page = std::fs::read_to_string(example.page()).unwrap();
        let source = std::fs::read_to_string(example.source()).unwrap();
        let blocks = blocks(&page, example.language());
        assert!(
            !blocks.is_empty(),
            "{} shows no code",
            example.page().display()
        );
        for block in blocks {
            assert!(
                source.contains(&block),
                "{} shows what is not in {}:\n{block}",
                example.page().display(),
                example.source().display(),
            );
        }
    }
}
