//! The keys of the configuration: one struct for each section, each with its defaults beside it.
//!
//! The comment on a field is the key's line in `config/relay.toml` and `docs/reference/config.md`.
//!
//! Invariant: every field has a default, so an empty file is a complete configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auth::KeyFile;
use super::secret::Redacted;
use super::url::NatsUrl;
use super::value::{AddressText, DurationText, ListOf, SizeText};
use crate::hosts::HostName;
use crate::identity::Algorithm;
use crate::origin::AllowedOrigin;
use crate::proxies::{Forwarding, Network};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The longest batch, in updates of the largest size there may be.
const BATCH_FACTOR: usize = 64;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3_600)
}

/// The public listener: WebSocket, SSE, long-poll, state and publishing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Http {
    /// Address and port clients connect to; on one that is not loopback auth.mode must be set.
    #[serde(with = "AddressText")]
    pub listen: SocketAddr,
    /// How long a client may take to send its request's head; a slower one is disconnected.
    #[serde(with = "DurationText")]
    pub header_timeout: Duration,
    /// How long a connection may be without a request before it is closed; longer than the proxies in front keep theirs (often 60s), or they would use one that has just gone.
    #[serde(with = "DurationText")]
    pub keep_alive: Duration,
    /// Certificate (PEM) to show to clients, with those that it was signed by behind it: the listener then speaks https and wss, TLS 1.2 and 1.3. Read again on SIGHUP. Not set: plain HTTP, for behind a proxy that ends TLS. Example: `"/etc/relay/cert.pem"`
    pub tls_cert_file: Option<PathBuf>,
    /// Private key (PEM, not encrypted) of http.tls_cert_file. Example: `"/etc/relay/key.pem"`
    pub tls_key_file: Option<PathBuf>,
    /// Proxies in front of the relay, as addresses or networks, such as "10.0.0.0/8"; what they say about their clients is believed, and they may open any number of connections. Empty: nobody is believed, and all clients behind a proxy count as one address.
    #[serde(with = "ListOf::<Network>")]
    pub trusted_proxies: Vec<Network>,
    /// How the proxies of http.trusted_proxies say who their clients are; every other way is ignored. "x-forwarded-for": by X-Forwarded-For and X-Forwarded-Proto; "forwarded": by Forwarded (RFC 7239); "proxy": by the PROXY protocol, version 1 or 2, with which then every connection has to begin. Example: `"x-forwarded-for"`
    pub forwarded: Option<Forwarding>,
    /// Names under which the relay answers, such as "relay.example.com", on every port; a request for another one is rejected with 421. Empty: any name, where auth.mode is set; where it is not, those of this machine alone, such as localhost.
    #[serde(with = "ListOf::<HostName>")]
    pub hosts: Vec<HostName>,
    /// Web pages that may connect besides those of the relay's own host: `scheme://host[:port]`, or "*" for any (cookies are then ignored).
    #[serde(with = "ListOf::<AllowedOrigin>")]
    pub allowed_origins: Vec<AllowedOrigin>,
    /// Threads that serve clients, each with its own part of the connections; 0 is one for each core.
    pub shards: usize,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            header_timeout: seconds(10),
            keep_alive: seconds(75),
            tls_cert_file: None,
            tls_key_file: None,
            trusted_proxies: Vec::new(),
            forwarded: None,
            hosts: Vec::new(),
            allowed_origins: Vec::new(),
            shards: 0,
        }
    }
}

/// The listener for operators: /metrics, /livez, /readyz, /refused and status. Never put it on the internet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    /// Address and port of the operators' listener.
    #[serde(with = "AddressText")]
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
        }
    }
}

/// Where updates come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bus {
    /// "embedded": this process alone, updates come over HTTP; "nats": core NATS; "jetstream": NATS with a stream, for production and many nodes.
    pub mode: BusMode,
}

/// The three kinds of bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BusMode {
    /// In this process.
    #[default]
    Embedded,
    /// Core NATS.
    Nats,
    /// NATS JetStream.
    Jetstream,
}

impl BusMode {
    /// The word in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Nats => "nats",
            Self::Jetstream => "jetstream",
        }
    }
}

/// How to reach NATS; read when bus.mode is "nats" or "jetstream".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nats {
    /// Servers to connect to, one or a list; any that answers will do.
    #[serde(with = "ListOf::<NatsUrl>")]
    pub url: Vec<NatsUrl>,
    /// First part of the subjects workers publish to: `<prefix>.<owner>.<job>.state`.
    pub prefix: String,
    /// Where the stream republishes what it stored; must not overlap nats.prefix, or messages would go round in a circle.
    pub live_prefix: String,
    /// Name of the JetStream stream that keeps updates.
    pub stream: String,
    /// JetStream domain the stream is in; needed when the server at nats.url has another one, or is a leaf node without JetStream. Example: `"hub"`
    pub domain: Option<String>,
    /// Create the stream if it is missing; false when somebody else administers streams.
    pub stream_create: bool,
    /// Copies of the stream in the cluster, 1 to 5; used only when the relay creates it. 3 survives the loss of a server.
    pub stream_replicas: usize,
    /// Where the stream is kept, "file" or "memory"; used only when the relay creates it.
    pub stream_storage: StreamStorage,
    /// How long the stream keeps an update; used only when the relay creates it. At least history.terminal_ttl, or endings would vanish early.
    #[serde(with = "DurationText")]
    pub stream_max_age: Duration,
    /// User name at NATS, with nats.password or nats.password_file. Example: `"relay"`
    pub user: Option<String>,
    /// Password at NATS. Better in a file or in the environment than here. Example: `"change me"`
    pub password: Option<Redacted>,
    /// File that holds the password at NATS; read again at each start. Example: `"/run/secrets/nats-password"`
    pub password_file: Option<PathBuf>,
    /// Token at NATS, instead of user and password. Example: `"change me"`
    pub token: Option<Redacted>,
    /// File that holds the token at NATS. Example: `"/run/secrets/nats-token"`
    pub token_file: Option<PathBuf>,
    /// File that holds the NKey seed of the relay. Example: `"/run/secrets/relay.nk"`
    pub nkey_file: Option<PathBuf>,
    /// Credentials file (JWT and seed) as written by nsc. Example: `"/run/secrets/relay.creds"`
    pub creds_file: Option<PathBuf>,
    /// Connect to NATS over TLS only.
    pub tls_required: bool,
    /// Certificates (PEM) to trust NATS servers by, instead of the system's. Example: `"/etc/relay/nats-ca.pem"`
    pub tls_ca_file: Option<PathBuf>,
    /// Client certificate (PEM) to show to NATS; needs nats.tls_key_file. Example: `"/etc/relay/nats-cert.pem"`
    pub tls_cert_file: Option<PathBuf>,
    /// Private key (PEM) of the client certificate. Example: `"/etc/relay/nats-key.pem"`
    pub tls_key_file: Option<PathBuf>,
    /// How often watched jobs are compared with the stream, to find a last update that was lost on the way.
    #[serde(with = "DurationText")]
    pub resync_interval: Duration,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: NatsUrl::parse("nats://127.0.0.1:4222")
                .into_iter()
                .collect(),
            prefix: "progress".to_owned(),
            live_prefix: "live".to_owned(),
            stream: "PROGRESS".to_owned(),
            domain: None,
            stream_create: true,
            stream_replicas: 1,
            stream_storage: StreamStorage::File,
            stream_max_age: hours(72),
            user: None,
            password: None,
            password_file: None,
            token: None,
            token_file: None,
            nkey_file: None,
            creds_file: None,
            tls_required: false,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            resync_interval: seconds(30),
        }
    }
}

/// Where JetStream keeps the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StreamStorage {
    /// On disk.
    #[default]
    File,
    /// In memory; gone when the NATS server is.
    Memory,
}

/// How clients are identified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Auth {
    /// "anonymous": everybody sees and publishes everything; "jwt": a signed token says who the client is; "url": the application at auth.url says it. Not set: anonymous on a loopback listener; on any other the relay does not start. Example: `"jwt"`
    pub mode: Option<AuthMode>,
    /// Signatures that are accepted: HS256 HS384 HS512 (by a shared secret), RS256, ES256 or EdDSA (by a public key). A key is used for those of its own kind only. Not set: the usual one for each key, HS256, RS256, ES256 or EdDSA. Example: `["RS256"]`
    #[serde(with = "ListOf::<Algorithm>")]
    pub algorithms: Vec<Algorithm>,
    /// The shared secret, or the public key in PEM. Better in a file or in the environment than here. Example: `"change me"`
    pub key: Option<Redacted>,
    /// File that holds the shared secret or the public keys (PEM); one line end after a secret is not part of it. Example: `"/etc/relay/jwt.pub.pem"`
    pub key_file: Option<PathBuf>,
    /// More files with keys, for when keys change: each a path, or the id that tokens give (`kid`), `=`, and the path. A PEM file without id may hold several keys. Files with keys are read again within seconds of a change. Example: `["2026-a=/etc/relay/a.pub.pem", "/etc/relay/old.pub.pem"]`
    #[serde(with = "ListOf::<KeyFile>")]
    pub keys: Vec<KeyFile>,
    /// Where keys are published as a JSON Web Key Set: a URL (https, or http on this machine) or a file. Fetched again every five minutes, and within seconds of a token whose key is not there; until a fetch succeeds the keys of the last one are used. Not set, and no other key: where the OpenID provider at auth.issuer says. Example: `"https://login.example.com/.well-known/jwks.json"`
    pub jwks: Option<String>,
    /// What a token's aud must be or contain. Not set: tokens that name an audience are rejected. Example: `"relay"`
    pub audience: Option<String>,
    /// What a token's iss must be; needs auth.audience. With no key set, the keys of this OpenID provider are used. Not set: any. Example: `"https://login.example.com/"`
    pub issuer: Option<String>,
    /// Claim that holds the user's id. An id that is not a valid name is escaped (`relay name` shows how). Not set: sub. Example: `"email"`
    pub user_claim: Option<String>,
    /// Application that is asked who a client is: a POST with the headers of auth.forward, answered with `{"user":"…"}` (PROTOCOL.md). https, or http on this machine. Example: `"https://app.example.com/relay-auth"`
    pub url: Option<String>,
    /// Headers of a client's request that the application gets; a client that has none of them is not asked about.
    #[serde(with = "ListOf::<String>")]
    pub forward: Vec<String>,
    /// Secret that shares and tickets are signed with (`relay token --share`), the same on all nodes. Not set: one derived from the shared secret in auth.key or auth.key_file, if there is one. Example: `"change me"`
    pub share_key: Option<Redacted>,
    /// File that holds the secret for shares and tickets. Example: `"/run/secrets/relay-shares"`
    pub share_key_file: Option<PathBuf>,
    /// Ids (jti) of shares and tokens that are not accepted any more. Example: `["4f1c"]`
    #[serde(with = "ListOf::<String>")]
    pub revoked: Vec<String>,
    /// File with more such ids, one a line. It is read again within seconds of a change, and connections by these credentials are ended. Example: `"/etc/relay/revoked"`
    pub revoked_file: Option<PathBuf>,
    /// How far clocks may be apart when exp and nbf are checked.
    #[serde(with = "DurationText")]
    pub leeway: Duration,
    /// Name of the cookie a token may come in.
    pub cookie: String,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: None,
            algorithms: Vec::new(),
            key: None,
            key_file: None,
            keys: Vec::new(),
            jwks: None,
            audience: None,
            issuer: None,
            user_claim: None,
            url: None,
            forward: vec!["authorization".to_owned(), "cookie".to_owned()],
            share_key: None,
            share_key_file: None,
            revoked: Vec::new(),
            revoked_file: None,
            leeway: seconds(30),
            cookie: "relay_token".to_owned(),
        }
    }
}

/// How a client's identity is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuthMode {
    /// Not at all: everything is visible and publishable.
    Anonymous,
    /// By a signed token.
    Jwt,
    /// By an application that is asked.
    Url,
}

impl AuthMode {
    /// The word in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Jwt => "jwt",
            Self::Url => "url",
        }
    }
}

/// What one client, or all of them, may use. Whatever exceeds a limit is rejected with the reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Connections to this node. The process needs that many file descriptors and some more; with fewer, it takes as many connections as it has descriptors for.
    pub connections: usize,
    /// Connections of one user on this node; each node counts its own.
    pub connections_per_user: usize,
    /// Connections from one address to this node; IPv6 addresses count by /64. Of sockets, idle ones and those of single requests included, an address may have twice as many and 64 more. Behind a proxy set http.trusted_proxies, or all clients count as one address.
    pub connections_per_address: usize,
    /// Connections by one share to this node, of all who watch by it.
    pub connections_per_share: usize,
    /// Connections a user may open in a second, over any longer time; ten seconds' worth at once. 0 is no limit. From one address as many times as much as limits.connections_per_address is of limits.connections_per_user.
    pub connections_per_second: u32,
    /// Requests of a user in a second, of any kind; otherwise as limits.connections_per_second.
    pub requests_per_second: u32,
    /// Requests of a user in a second that publish, a batch being one; otherwise as limits.connections_per_second.
    pub publishes_per_second: u32,
    /// Requests of a user in a second that read a state or poll; otherwise as limits.connections_per_second.
    pub reads_per_second: u32,
    /// Topics one connection may watch.
    pub subscriptions_per_connection: usize,
    /// Longest message a client may send.
    #[serde(with = "SizeText")]
    pub message_bytes: usize,
    /// Messages a client may send in a second, over any longer time.
    pub messages_per_second: u32,
    /// Messages a client may send at once before messages_per_second is enforced.
    pub messages_burst: u32,
    /// Longest update a worker may publish.
    #[serde(with = "SizeText")]
    pub update_bytes: usize,
    /// Bytes of requests' bodies that this node receives at once; one user or one address may have a quarter of it.
    #[serde(with = "SizeText")]
    pub body_bytes: usize,
    /// Bytes of answers that clients of this node have not read yet; one user or one address may have a quarter of it.
    #[serde(with = "SizeText")]
    pub answer_bytes: usize,
}

impl Limits {
    /// The longest batch of updates.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.update_bytes.saturating_mul(BATCH_FACTOR)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_user: 5,
            connections_per_address: 100,
            connections_per_share: 100,
            connections_per_second: 20,
            requests_per_second: 3000,
            publishes_per_second: 2000,
            reads_per_second: 200,
            subscriptions_per_connection: 100,
            message_bytes: 64 * KIB,
            messages_per_second: 30,
            messages_burst: 60,
            update_bytes: 64 * KIB,
            body_bytes: 64 * MIB,
            answer_bytes: 64 * MIB,
        }
    }
}

/// How updates are sent to a client, and when the relay gives up on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Delivery {
    /// States of one job sent to a connection in a second; the first is sent at once, the last always, endings never wait.
    pub updates_per_second: u32,
    /// Milestones that may wait for one connection; past that the oldest are dropped, and a gap is sent.
    pub milestones: usize,
    /// Bytes that may wait for one connection; at least limits.update_bytes.
    #[serde(with = "SizeText")]
    pub outbox_bytes: usize,
    /// How long one write to a client may take.
    #[serde(with = "DurationText")]
    pub write_timeout: Duration,
    /// Failed writes in a row before the connection is closed.
    pub max_failures: u32,
    /// How often the relay pings a client; below the idle timeout of proxies on the way (often 60s).
    #[serde(with = "DurationText")]
    pub ping_interval: Duration,
    /// A client without any sign of life for this long is gone; at least one and a half times delivery.ping_interval.
    #[serde(with = "DurationText")]
    pub dead_after: Duration,
    /// How long a long-poll waits when the client names no time.
    #[serde(with = "DurationText")]
    pub poll_wait: Duration,
    /// The longest a client may ask a long-poll to wait.
    #[serde(with = "DurationText")]
    pub poll_wait_max: Duration,
    /// How long an acknowledgement may take before an ending is sent again.
    #[serde(with = "DurationText")]
    pub ack_timeout: Duration,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            updates_per_second: 10,
            milestones: 100,
            outbox_bytes: 256 * KIB,
            write_timeout: seconds(10),
            max_failures: 3,
            ping_interval: seconds(25),
            dead_after: seconds(60),
            poll_wait: seconds(25),
            poll_wait_max: seconds(60),
            ack_timeout: seconds(5),
        }
    }
}

/// What a node remembers about jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct History {
    /// Updates kept for one job, for clients that were away for a moment.
    pub per_job: usize,
    /// Jobs kept in memory; the one longest untouched goes first.
    pub jobs: usize,
    /// Bytes kept in memory for all jobs.
    #[serde(with = "SizeText")]
    pub bytes: usize,
    /// How long a job is kept after its ending.
    #[serde(with = "DurationText")]
    pub terminal_ttl: Duration,
    /// How long a job without an ending is kept after its last update.
    #[serde(with = "DurationText")]
    pub idle_ttl: Duration,
    /// File the embedded bus keeps its jobs in over a restart; only with bus.mode "embedded". Not set: memory only. Example: `"/var/lib/relay/history"`
    pub file: Option<PathBuf>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            per_job: 64,
            jobs: 100_000,
            bytes: 256 * MIB,
            terminal_ttl: hours(24),
            idle_ttl: hours(72),
            file: None,
        }
    }
}

/// How the relay stops: clients are notified at once, and disconnected a few at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Drain {
    /// Clients are disconnected over this time, so that they do not all reach the other nodes at once.
    #[serde(with = "DurationText")]
    pub spread: Duration,
    /// The process has ended by then; more than drain.spread, less than what the supervisor allows.
    #[serde(with = "DurationText")]
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            spread: seconds(10),
            deadline: seconds(15),
        }
    }
}

/// What the relay writes about itself to standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// "text" for people, "json" for machines, "auto": text on a terminal, else json.
    pub format: LogFormat,
    /// "error", "warn", "info", "debug" or "trace", also for single parts: "info,relay_bus=debug".
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            level: "info".to_owned(),
        }
    }
}

/// Front ends of other applications that are served in their own wire shapes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dialects {
    /// Dialects to serve, by the names of their files without `.toml`: those in dialects.directory, and the built-in event-dashboard, file-conversion, media-conversion, upload-notes and video-generation. A start that finds the key not set says so. Example: `["file-conversion", "mine"]`
    #[serde(with = "ListOf::<String>")]
    #[schemars(with = "Vec<String>")]
    pub enabled: Vec<String>,
    /// Folder with dialect files of your own; one with the name of a built-in dialect replaces it. Example: `"/etc/relay/dialects"`
    pub directory: Option<PathBuf>,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// One line of text.
    Text,
}
