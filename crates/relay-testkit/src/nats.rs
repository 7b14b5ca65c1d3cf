//! Real NATS servers on free ports, with a store of their own, that can be killed and come back.
//!
//! Knows nothing of the relay's subjects or streams: whoever needs a stream makes it.
//!
//! Invariant: a server keeps its ports and its store over [`NatsServer::kill`] and [`NatsServer::restart`].

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::http;
use crate::ports::Port;
use crate::process::Process;
use crate::tools;

const START_WITHIN: Duration = Duration::from_secs(15);

/// What kind of server to start.
#[derive(Debug, Clone, Default)]
pub struct Options {
    jetstream: bool,
    domain: Option<String>,
    config: String,
}

impl Options {
    /// Core NATS only.
    pub fn core() -> Self {
        Self::default()
    }

    /// With JetStream, its store in a directory that goes with the server.
    pub fn jetstream() -> Self {
        Self {
            jetstream: true,
            ..Self::default()
        }
    }

    /// Puts JetStream into a domain.
    fn domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.to_owned());
        self
    }

    /// Adds text to the server's configuration file.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }
}

/// One `nats-server`.
#[derive(Debug)]
pub struct NatsServer {
    /// `None` while killed.
    process: Option<Process>,
    program: PathBuf,
    client: Port,
    monitor: Port,
    /// Configuration, store and log; after `process`, so that the server is gone before its files.
    directory: TempDir,
}

impl NatsServer {
    /// Starts a server and waits until it serves.
    ///
    /// # Errors
    /// When `nats-server` is missing, or does not come up; the message has its log.
    pub async fn start(options: Options) -> Result<Self> {
        let mut server = Self::prepare(&options, "solo", |_| String::new())?;
        server.restart().await?;
        Ok(server)
    }

    /// A server with its ports and its files, not started yet: for tests in which NATS comes late.
    ///
    /// # Errors
    /// When `nats-server` is missing.
    pub fn absent(options: &Options) -> Result<Self> {
        Self::prepare(options, "solo", |_| String::new())
    }

    fn prepare(options: &Options, name: &str, more: impl FnOnce(&Port) -> String) -> Result<Self> {
        let program = tools::nats_server()?;
        let directory = tempfile::tempdir()?;
        let client = Port::reserve()?;
        let monitor = Port::reserve()?;
        let mut config = format!(
            "server_name: {name}\nlisten: \"{}\"\nhttp: \"{}\"\n",
            client.address(),
            monitor.address(),
        );
        if options.jetstream {
            let store = directory.path().join("store");
            let domain = options.domain.as_ref();
            let domain = domain.map_or(String::new(), |domain| format!(", domain: {domain}"));
            writeln!(
                config,
                "jetstream {{ store_dir: {:?}, max_mem: 256MB, max_file: 2GB{domain} }}",
                store.display().to_string()
            )?;
        }
        config.push_str(&more(&client));
        config.push_str(&options.config);
        std::fs::write(directory.path().join("nats.conf"), config)?;
        Ok(Self {
            process: None,
            program,
            client,
            monitor,
            directory,
        })
    }

    fn spawn(&mut self) -> Result<()> {
        let log = self.directory.path().join("log");
        let mut command = Command::new(&self.program);
        command
            .arg("-c")
            .arg(self.directory.path().join("nats.conf"));
        self.process = Some(Process::spawn(&mut command, &log)?);
        Ok(())
    }

    /// Starts it again on the same port with the same store, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.spawn()?;
        self.serving().await
    }

    async fn serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            if let Ok(answer) = self.monitor("/healthz").await
                && answer["status"] == "ok"
            {
                return Ok(());
            }
            if let Some(status) = self.process.as_mut().and_then(Process::exited) {
                bail!("nats-server ended: {status}\n{}", self.logs());
            }
            if Instant::now() > deadline {
                bail!("nats-server does not serve\n{}", self.logs());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it at once, as a crash would (`SIGKILL`). Does nothing when it is already gone.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends a signal by name; `USR2` begins the lame-duck mode.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.process
            .as_mut()
            .context("the server is not running")?
            .signal(name)
    }

    /// Where clients connect: `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.client.address())
    }

    /// What the server wrote.
    pub fn logs(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Sends one request over NATS and gives its JSON answer, as the JetStream API and streams give it.
    ///
    /// # Errors
    /// When nobody answers, or not with JSON.
    pub async fn ask(&self, subject: &str, payload: &str) -> Result<Value> {
        let mut socket = TcpStream::connect(self.client.address()).await?;
        let request = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true}}\r\n\
             SUB _INBOX.ask 1\r\nPUB {subject} _INBOX.ask {}\r\n{payload}\r\n",
            payload.len()
        );
        socket.write_all(request.as_bytes()).await?;
        let reading = async {
            let mut lines = BufReader::new(socket);
            loop {
                let mut line = String::new();
                if lines.read_line(&mut line).await? == 0 {
                    bail!("the server closed the connection");
                }
                if line.starts_with("HMSG ") {
                    bail!("nobody answers {subject}");
                }
                if let Some(head) = line.strip_prefix("MSG ") {
                    let length = head.trim().rsplit(' ').next().unwrap_or_default();
                    let mut answer = vec![0; length.parse()?];
                    lines.read_exact(&mut answer).await?;
                    return Ok(serde_json::from_slice(&answer)?);
                }
            }
        };
        timeout(START_WITHIN, reading)
            .await
            .with_context(|| format!("no answer to {subject}"))?
    }

    /// Makes a stream of `deploy/nats/stream.json`, with some of its settings changed.
    ///
    /// # Errors
    /// When the server rejects it.
    pub async fn create_stream(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let shipped = tools::workspace().join("deploy/nats/stream.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(shipped)?)?;
        change(&mut config);
        let subject = format!(
            "$JS.API.STREAM.CREATE.{}",
            config["name"].as_str().unwrap_or_default()
        );
        let answer = crate::wait::until_some(START_WITHIN, "the stream", async || {
            let answer = self.ask(&subject, &config.to_string()).await.ok()?;
            // The files of a stream of this name that was just removed may still be there.
            (answer["error"]["err_code"] != 10049).then_some(answer)
        })
        .await?;
        if answer["error"].is_object() {
            bail!("the stream is not made: {}", answer["error"]);
        }
        Ok(())
    }

    /// Asks the monitoring port, for example `/jsz?streams=1`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn monitor(&self, path: &str) -> Result<Value> {
        Ok(http::get(&self.monitor.address(), path).await?.json())
    }
}

/// A server that leaf nodes connect to; its JetStream domain is `hub`.
#[derive(Debug)]
pub struct NatsHub {
    /// The server itself.
    pub server: NatsServer,
    /// Where leaf nodes connect; held so that nobody else takes it.
    leaves: Port,
}

impl NatsHub {
    /// Starts the hub alone.
    ///
    /// # Errors
    /// When `nats-server` is missing, or does not come up.
    pub async fn start() -> Result<Self> {
        let leaves = Port::reserve()?;
        let listen = format!("leafnodes {{ listen: \"{}\" }}", leaves.address());
        let options = Options::jetstream().domain("hub").config(&listen);
        let server = NatsServer::start(options).await?;
        Ok(Self { server, leaves })
    }

    /// Starts a leaf node with JetStream in a domain of its own, and waits until it is connected.
    ///
    /// # Errors
    /// When it does not come up, or does not find the hub.
    pub async fn leaf(&self, domain: &str) -> Result<NatsServer> {
        self.join(Options::jetstream().domain(domain), domain).await
    }

    /// Starts a leaf node without JetStream, and waits until it is connected.
    ///
    /// # Errors
    /// When it does not come up, or does not find the hub.
    pub async fn bare_leaf(&self) -> Result<NatsServer> {
        self.join(Options::core(), "bare").await
    }

    async fn join(&self, options: Options, name: &str) -> Result<NatsServer> {
        let remote = format!(
            "leafnodes {{ remotes: [{{ url: \"nats://{}\" }}] }}",
            self.leaves.address()
        );
        let mut leaf = NatsServer::prepare(&options.config(&remote), name, |_| String::new())?;
        leaf.restart().await?;
        crate::wait::until_some(START_WITHIN, "the leaf's connection", async || {
            let leaves = leaf.monitor("/leafz").await.ok()?;
            (leaves["leafnodes"] == 1).then_some(())
        })
        .await?;
        Ok(leaf)
    }
}

/// Some servers with one replicated JetStream.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<NatsServer>,
    /// The routes' ports; held so that nobody else takes them.
    _routes: Vec<Port>,
}

impl NatsCluster {
    /// Starts `size` servers and waits until they have elected a leader. Three is the usual size.
    ///
    /// # Errors
    /// When `nats-server` is missing, or the servers do not find each other.
    pub async fn start(size: usize) -> Result<Self> {
        let routes = (0..size)
            .map(|_| Port::reserve())
            .collect::<std::io::Result<Vec<_>>>()?;
        let urls: Vec<String> = routes
            .iter()
            .map(|port| format!("\"nats://{}\"", port.address()))
            .collect();
        let mut servers = Vec::with_capacity(size);
        for (index, route) in routes.iter().enumerate() {
            let cluster = format!(
                "cluster {{ name: test, listen: \"{}\", routes: [{}] }}\n",
                route.address(),
                urls.join(", ")
            );
            let name = format!("n{index}");
            servers.push(NatsServer::prepare(&Options::jetstream(), &name, |_| {
                cluster
            })?);
        }
        // all at once: none is healthy before a majority is there
        for server in &mut servers {
            server.spawn()?;
        }
        for server in &mut servers {
            server.serving().await?;
        }
        let cluster = Self {
            servers,
            _routes: routes,
        };
        cluster.elected().await?;
        Ok(cluster)
    }

    async fn elected(&self) -> Result<()> {
        crate::wait::until_some(START_WITHIN, "the cluster's leader", async || {
            for server in &self.servers {
                let jsz = server.monitor("/jsz").await.ok()?;
                let meta = &jsz["meta_cluster"];
                let size = usize::try_from(meta["cluster_size"].as_u64()?).ok()?;
                let leader = meta["leader"].as_str().unwrap_or_default();
                if leader.is_empty() || size < self.servers.len() {
                    return None;
                }
            }
            Some(())
        })
        .await
    }

    /// The servers, to kill and restart one of them.
    pub fn servers(&mut self) -> &mut [NatsServer] {
        &mut self.servers
    }

    /// Where clients connect, one URL a server.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::url).collect()
    }

    /// Which server leads `stream` now, if any says so.
    pub async fn leader_of(&self, stream: &str) -> Option<usize> {
        for server in &self.servers {
            let Ok(jsz) = server.monitor("/jsz?streams=1").await else {
                continue;
            };
            let streams = jsz["account_details"][0]["stream_detail"].as_array();
            let found = streams
                .into_iter()
                .flatten()
                .find(|detail| detail["name"] == stream);
            let leader = found.and_then(|detail| detail["cluster"]["leader"].as_str());
            if let Some(index) = leader.and_then(|name| name.strip_prefix('n')?.parse().ok()) {
                return Some(index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greeting(url: &str) -> std::io::Result<String> {
        let stream = TcpStream::connect(url.trim_start_matches("nats://")).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        Ok(line)
    }

    #[tokio::test]
    async fn a_killed_server_comes_back_on_its_port() {
        let mut server = NatsServer::start(Options::jetstream()).await.unwrap();
        let url = server.url();
        assert!(greeting(&url).await.unwrap().contains("\"jetstream\":true"));
        server.kill();
        assert!(greeting(&url).await.is_err());
        server.restart().await.unwrap();
        assert_eq!(server.url(), url);
        assert!(greeting(&url).await.unwrap().starts_with("INFO "));
    }

    #[tokio::test]
    async fn a_core_server_has_no_jetstream_and_takes_more_configuration() {
        let server = NatsServer::start(Options::core().config("max_payload: 4096"))
            .await
            .unwrap();
        let hello = greeting(&server.url()).await.unwrap();
        assert!(!hello.contains("\"jetstream\":true"), "{hello}");
        assert!(hello.contains("\"max_payload\":4096"), "{hello}");
    }

    #[tokio::test]
    async fn a_bad_configuration_is_told_with_the_servers_own_words() {
        let error = NatsServer::start(Options::core().config("nonsense {{{"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("nats-server ended"), "{error}");
    }

    #[tokio::test]
    async fn a_cluster_elects_a_leader() {
        let cluster = NatsCluster::start(3).await.unwrap();
        assert_eq!(cluster.urls().len(), 3);
        assert_eq!(cluster.leader_of("NONE").await, None);
    }
}
