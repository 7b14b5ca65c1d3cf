//! Clients of every kind that do anything at any moment, one step after another, from one seed.
//!
//! They subscribe, acknowledge, authenticate late, speak dialects and Socket.IO, send odd bytes, read slowly or not
//! at all, and are cut in the middle of anything. Nothing here checks what they get to see: whoever plays a game has
//! somebody beside it who must not notice, and looks at [`unsettled`] when all have gone.
//!
//! What a client gets to see is up to the clock, so the same seed asks the same in the same order, and may be
//! answered differently.
//!
//! Invariant: a game has at most as many clients at a time, and jobs in all, as it was made for.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::client::raw::Raw;
use crate::http::{Answer, Connection, Request};
use crate::relay::{Metrics, Settings};

/// How long anything that must happen may take.
const SOON: Duration = Duration::from_secs(10);
/// Jobs that end, before the first of them begins its next attempt.
const JOBS: usize = 400;
/// How long a client looks for something to read, or waits for room to write.
const BRIEFLY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(1);
/// How often an update is published again while the bus is not available, as a worker would.
const TRIES: usize = 15;
/// The size of a ping that is meant to fill a socket; the largest message is a little more.
const LARGE: usize = 60_000;

const NONSENSE: [&str; 10] = [
    "",
    "hello",
    "null",
    "[]",
    "{}",
    r#"{"type":7}"#,
    r#"{"type":"subscribe","topic":"job"}"#,
    r#"{"type":"subscribe","topic":"job:a.b*>"}"#,
    r#"{"type":"ack","topic":"user:greedy","cursor":"AAAA"}"#,
    r#"{"type":"ping","id":{"a":[1,2,3]}}"#,
];
/// Without those whose clients may be silent for longer than the game is waited for.
const DIALECTS: &str = "event-dashboard,file-conversion,media-conversion,upload-notes";
const DIALECT_PATHS: [&str; 4] = [
    "/api/ws",
    "/production",
    "/ws/v1/convert/{job}/progress",
    "/api/v1/conversions/{job}/ws",
];
const SOCKET_IO: &str = "/socket.io/?EIO=4&transport=";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WebSocket,
    /// A WebSocket whose token comes as its first message.
    Unauthenticated,
    Dialect,
    SocketIo,
    SocketIoPolling,
    /// It waits for what it asked for, and sends nothing more.
    Request,
}

const KINDS: [Kind; 9] = [
    Kind::WebSocket,
    Kind::WebSocket,
    Kind::WebSocket,
    Kind::Unauthenticated,
    Kind::Unauthenticated,
    Kind::Dialect,
    Kind::SocketIo,
    Kind::SocketIoPolling,
    Kind::Request,
];

#[derive(Debug)]
struct Client {
    kind: Kind,
    /// `None` for a session that has a socket for each request.
    raw: Option<Raw>,
    /// Its session of Socket.IO.
    sid: Option<String>,
    reads: bool,
    /// The last cursor it saw.
    cursor: Option<String>,
}

/// Whom a game plays to, and as whom.
#[derive(Debug, Clone)]
pub struct Cast {
    /// `host:port` of the relay.
    pub address: String,
    /// Set apart what several games do beside each other: the owners are `greedy<name>` and `mallory<name>`, the
    /// group is `g<name>`, and jobs begin with the name.
    pub name: String,
    /// Clients at a time.
    pub clients: usize,
    /// Of the first owner, who may watch the group too; of the second; and one that has expired. Without them
    /// nobody shows a token but a wrong one.
    pub tokens: Option<[String; 3]>,
    /// Over HTTP it may publish for both owners.
    pub publisher: Option<String>,
}

/// The settings of a relay that is to meet a game: no limit keeps clients away, and everything slow is fast.
#[must_use]
pub fn settings(settings: Settings) -> Settings {
    settings
        .set("dialects.enabled", DIALECTS)
        .set("delivery.ack_timeout", "300ms")
        .set("delivery.write_timeout", "400ms")
        .set("delivery.ping_interval", "1s")
        .set("delivery.dead_after", "4s")
        .set("limits.connections_per_user", 100_000)
        .set("limits.connections_per_address", 100_000)
        .set("limits.messages_per_second", 10_000)
        .set("limits.messages_burst", 10_000)
}

/// A game: its dice, its cast, and who is connected.
#[derive(Debug)]
pub struct Game {
    rng: Rng,
    cast: Cast,
    /// Over which jobs are published.
    publisher: Connection,
    clients: Vec<Client>,
    /// Jobs that were ended, each attempt counted.
    ended: usize,
    /// Whose each of these jobs is.
    owners: Vec<String>,
    /// Connections opened.
    opened: u64,
    /// Answers that the bus is not available.
    put_off: u64,
}

impl Game {
    /// A game that begins.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn new(seed: u64, cast: Cast) -> Result<Self> {
        Ok(Self {
            rng: Rng::with_seed(seed),
            publisher: Connection::open(&cast.address).await?,
            cast,
            clients: Vec::new(),
            ended: 0,
            owners: Vec::new(),
            opened: 0,
            put_off: 0,
        })
    }

    /// Ends so many jobs of the first owner.
    ///
    /// # Errors
    /// When an update is not accepted.
    pub async fn end_jobs(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let owner = self.greedy();
            self.end_job(&owner, 60).await?;
        }
        Ok(())
    }

    /// Somebody does something.
    ///
    /// # Errors
    /// When an update is not accepted, or nobody listens any more: whatever a client meets is ordinary.
    pub async fn step(&mut self) -> Result<()> {
        let somebody = match self.clients.len() {
            0 => None,
            count => Some(self.rng.usize(0..count)),
        };
        match (self.rng.u32(0..20), somebody) {
            (0..2, _) => {
                let owner = self.owner();
                let bytes = self.rng.usize(0..20_000);
                self.end_job(&owner, bytes).await?;
            }
            (2, _) => self.move_job().await?,
            (3..5, _) | (_, None) => self.open().await?,
            (5, Some(at)) => self.cut(at),
            (_, Some(at)) => self.act(at).await?,
        }
        while self.clients.len() > self.cast.clients {
            let oldest = self.rng.usize(0..self.clients.len());
            self.cut(oldest);
        }
        Ok(())
    }

    /// Everybody goes.
    pub fn leave(&mut self) {
        while !self.clients.is_empty() {
            self.cut(0);
        }
    }

    /// Connections opened until now.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// How often an update was not taken because the bus was not available. It was published again.
    pub fn put_off(&self) -> u64 {
        self.put_off
    }

    fn greedy(&self) -> String {
        format!("greedy{}", self.cast.name)
    }

    fn mallory(&self) -> String {
        format!("mallory{}", self.cast.name)
    }

    fn owner(&mut self) -> String {
        match self.rng.bool() {
            true => self.greedy(),
            false => self.mallory(),
        }
    }

    /// A job that was ended, or one that is next.
    fn job(&mut self) -> String {
        let number = self.rng.usize(0..=self.ended.min(JOBS));
        format!("{}ended-{number}", self.cast.name)
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..from.len())]
    }

    fn token(&mut self) -> Option<String> {
        let number = self.rng.usize(0..8);
        match (&self.cast.tokens, number) {
            (_, 0) => Some("rubbish".to_owned()),
            (None, _) => None,
            (Some([_, _, expired]), 1) => Some(expired.clone()),
            (Some([_, mallory, _]), 2 | 3) => Some(mallory.clone()),
            (Some([greedy, ..]), _) => Some(greedy.clone()),
        }
    }

    fn topic(&mut self) -> String {
        match self.rng.u32(0..10) {
            0..5 => format!("user:{}", self.greedy()),
            5 => format!("user:{}", self.mallory()),
            6 => format!("group:g{}", self.cast.name),
            7 => "user:neighbour".to_owned(),
            8 => format!("job:unknown-{}", self.rng.u32(0..20)),
            _ => format!("job:{}", self.job()),
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.rng.usize(1..=most);
        std::iter::repeat_with(|| self.rng.u8(..))
            .take(count)
            .collect()
    }

    // --- jobs

    async fn publish(&mut self, path: &str, body: &Value) -> Result<()> {
        let request = Request::post(path, body).bearer(self.cast.publisher.as_deref());
        let mut answer = self.send(request.clone()).await?;
        for _ in 0..TRIES {
            if answer.status.as_u16() != 503 {
                break;
            }
            self.put_off += 1;
            sleep(PATIENCE).await;
            answer = self.send(request.clone()).await?;
        }
        anyhow::ensure!(
            answer.status.as_u16() == 202,
            "an update was not accepted: {}",
            answer.text()
        );
        Ok(())
    }

    async fn send(&mut self, request: Request) -> Result<Answer> {
        match self.publisher.send(request.clone(), SOON).await {
            Ok(answer) => Ok(answer),
            // A connection that was idle may be closed at any time; the same state again does no harm.
            Err(_) => {
                self.publisher = Connection::open(&self.cast.address).await?;
                self.publisher.send(request, SOON).await
            }
        }
    }

    async fn end_job(&mut self, owner: &str, bytes: usize) -> Result<()> {
        let (job, attempt) = (self.ended % JOBS, self.ended / JOBS + 1);
        // A job stays whose it was at first.
        let owner = match self.owners.get(job) {
            Some(first) => first.clone(),
            None => {
                self.owners.push(owner.to_owned());
                owner.to_owned()
            }
        };
        let name = &self.cast.name;
        let state = json!({
            "status": "completed",
            "message": "x".repeat(bytes),
            "parent_id": format!("g{name}"),
            "attempt": attempt,
        });
        let path = format!("/v1/jobs/{name}ended-{job}?owner={owner}");
        self.publish(&path, &state).await?;
        self.ended += 1;
        Ok(())
    }

    async fn move_job(&mut self) -> Result<()> {
        let job = self.rng.u32(0..5);
        let path = format!("/v1/jobs/{}running-{job}", self.cast.name);
        let state = json!({"status": "running", "message": self.rng.u32(..).to_string()});
        let owner = self.greedy();
        self.publish(&format!("{path}?owner={owner}"), &state)
            .await?;
        if self.one_in(3) {
            let milestone = format!("{path}/milestones/m?owner={owner}");
            self.publish(&milestone, &json!({"n": job})).await?;
        }
        Ok(())
    }

    // --- connections

    fn request(&mut self, method: &str, path: &str, more: &str) -> String {
        let address = &self.cast.address;
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n{more}\r\n")
    }

    fn handshake(&mut self, path: &str, token: Option<&str>) -> String {
        let bearer = bearer(token);
        let more = format!(
            "{bearer}upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        self.request("GET", path, &more)
    }

    async fn raw(&mut self) -> Result<Raw> {
        self.opened += 1;
        match self.rng.bool() {
            true => Raw::connect_narrow(&self.cast.address).await,
            false => Raw::connect(&self.cast.address).await,
        }
    }

    /// A client comes.
    async fn open(&mut self) -> Result<()> {
        let kind = self.pick(&KINDS);
        let token = self.token();
        let request = match kind {
            Kind::WebSocket => {
                let path = match self.rng.bool() {
                    true => "/v1/ws".to_owned(),
                    false => format!("/v1/ws?topic={}", self.topic()),
                };
                self.handshake(&path, token.as_deref())
            }
            Kind::Unauthenticated => {
                let topics: Vec<_> = (0..100).map(|n| format!("topic=user:x{n}")).collect();
                let path = format!("/v1/ws?auth=message&{}", topics.join("&"));
                self.handshake(&path, None)
            }
            Kind::Dialect => {
                let path = self.pick(&DIALECT_PATHS).replace("{job}", &self.job());
                self.handshake(&path, token.as_deref())
            }
            Kind::SocketIo => self.handshake(&format!("{SOCKET_IO}websocket"), token.as_deref()),
            Kind::SocketIoPolling => {
                let bearer = bearer(token.as_deref());
                self.request("GET", &format!("{SOCKET_IO}polling"), &bearer)
            }
            Kind::Request => {
                let path = self.pick(&["/v1/sse?", "/v1/sse?", "/v1/poll?wait=3&"]);
                let path = format!("{path}topic={}", self.topic());
                let bearer = bearer(token.as_deref());
                self.request("GET", &path, &bearer)
            }
        };
        // One that finds no room does not come.
        let Ok(mut raw) = self.raw().await else {
            return Ok(());
        };
        // A client may go in the middle of its request.
        let whole = !self.one_in(30);
        let end = match whole {
            true => request.len(),
            false => self.rng.usize(0..request.len()),
        };
        drop(timeout(PATIENCE, raw.send(&request.as_bytes()[..end])).await);
        let mut client = Client {
            kind,
            raw: Some(raw),
            sid: None,
            reads: self.rng.bool(),
            cursor: None,
        };
        if let (Kind::SocketIoPolling, true, Some(raw)) = (kind, whole, &mut client.raw) {
            let answer = raw.read_until("}", SOON).await;
            client.sid = between(&answer, "\"sid\":\"", "\"");
            client.raw = None;
        }
        self.clients.push(client);
        Ok(())
    }

    /// A client goes, with a reset or without.
    fn cut(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        if let (Some(raw), true) = (client.raw, self.rng.bool()) {
            raw.vanish();
        }
    }

    /// A client does something, and perhaps reads.
    async fn act(&mut self, at: usize) -> Result<()> {
        let (kind, cursor) = (self.clients[at].kind, self.clients[at].cursor.clone());
        let sends = match kind {
            Kind::WebSocket => self.native(cursor),
            Kind::Unauthenticated => self.authenticate(),
            Kind::Dialect => self.dialect(),
            Kind::SocketIo => {
                let packet = self.packet(cursor);
                self.frame(1, packet.as_bytes())
            }
            Kind::SocketIoPolling => return self.ask(at).await,
            Kind::Request => Vec::new(),
        };
        let client = &mut self.clients[at];
        let Some(raw) = &mut client.raw else {
            return Ok(());
        };
        // One that does not read is not read from for long.
        let sent = timeout(PATIENCE, raw.send(&sends)).await;
        if self.rng.u32(0..100) == 0 {
            raw.finish().await;
        }
        if client.reads {
            // Some read a little at a time.
            let most = if self.rng.u32(0..4) == 0 {
                40
            } else {
                16 * 1024
            };
            let seen = raw.read_some(most, BRIEFLY).await;
            if let Some(cursor) = seen.rfind("\"cursor\":\"").map(|from| &seen[from..]) {
                client.cursor = between(cursor, "\"cursor\":\"", "\"");
            }
        }
        let gone = !matches!(sent, Ok(Ok(())));
        if gone || (kind == Kind::Unauthenticated && self.rng.bool()) {
            self.cut(at);
        }
        Ok(())
    }

    // --- what they send

    /// A frame with a mask of zeros; sometimes half of one, or of another kind.
    fn frame(&mut self, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let strange = [0x00, 0x01, 0x80, 0x82, 0x83, 0x88, 0x89, 0x8a, 0x8b, 0xc1];
        let first = match self.one_in(40) {
            true => self.pick(&strange),
            false => 0x80 | opcode,
        };
        let mut frame = vec![first];
        match u16::try_from(payload.len()) {
            Ok(short @ 0..126) => frame.push(0x80 | short.to_be_bytes()[1]),
            Ok(length) => {
                frame.push(0xfe);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => {
                frame.push(0xff);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        if self.one_in(60) {
            frame.truncate(self.rng.usize(0..frame.len()));
        }
        frame
    }

    fn anything(&mut self) -> Vec<u8> {
        match self.rng.u32(0..6) {
            0 => self.bytes(60),
            1 => {
                let opcode = self.pick(&[8, 9, 10]);
                let payload = self.bytes(125);
                self.frame(opcode, &payload)
            }
            2 => self.frame(1, "[".repeat(LARGE).as_bytes()),
            3 => self.frame(2, b"binary"),
            _ => {
                let text = self.pick(&NONSENSE);
                self.frame(1, text.as_bytes())
            }
        }
    }

    fn native(&mut self, seen: Option<String>) -> Vec<u8> {
        let topic = self.topic();
        let cursor = seen.filter(|_| self.rng.bool());
        let message = match self.rng.u32(0..16) {
            0..6 => {
                let ack = self.rng.u32(0..4) > 0;
                json!({"type": "subscribe", "id": 1, "topic": topic, "cursor": cursor, "ack": ack})
            }
            6..8 => json!({"type": "unsubscribe", "topic": topic}),
            8 => json!({"type": "ack", "topic": topic, "cursor": cursor}),
            9 => json!({"type": "auth", "token": self.token()}),
            10 => {
                let id = "x".repeat(1 << self.rng.u32(0..15));
                json!({"type": "ping", "id": id})
            }
            // As many answers as fill a socket, and some more.
            11..14 => {
                let ping = json!({"type": "ping", "id": "x".repeat(LARGE)}).to_string();
                let count = self.rng.usize(40..110);
                return self.frame(1, ping.as_bytes()).repeat(count);
            }
            _ => return self.anything(),
        };
        self.frame(1, message.to_string().as_bytes())
    }

    fn authenticate(&mut self) -> Vec<u8> {
        if self.one_in(8) {
            return self.anything();
        }
        let message = json!({"type": "auth", "token": self.token()});
        self.frame(1, message.to_string().as_bytes())
    }

    fn dialect(&mut self) -> Vec<u8> {
        let job = self.job();
        let message = match self.rng.u32(0..7) {
            0 => json!({"type": "ping"}),
            1 => json!({"type": "subscribe", "jobId": job, "job_id": job, "topic": job}),
            2 => json!({"type": "subscribe", "channel": self.topic(), "data": {"jobId": job}}),
            3 => json!({"action": "subscribe", "event_id": job, "channels": [self.topic()]}),
            4 => json!({"type": "unsubscribe", "jobId": job}),
            5 => json!({"type": "x".repeat(1 << self.rng.u32(0..15))}),
            _ => return self.anything(),
        };
        self.frame(1, message.to_string().as_bytes())
    }

    fn packet(&mut self, cursor: Option<String>) -> String {
        let (job, greedy) = (self.job(), self.greedy());
        let number = match self.rng.bool() {
            true => self.rng.u32(..).to_string(),
            false => String::new(),
        };
        match self.rng.u32(0..16) {
            0..4 => {
                let auth = json!({"token": self.token()});
                format!("40/jobs,{auth}")
            }
            4 => {
                let cursor = cursor.unwrap_or_default();
                let (pid, offset) = (format!("x.{cursor}"), format!("{cursor}.2"));
                let auth = json!({"token": self.token(), "pid": pid, "offset": offset});
                format!("40/jobs,{auth}")
            }
            5 => "40".to_owned(),
            6..8 => format!(r#"42/jobs,{number}["subscribe:jobs",{{"userId":"{greedy}"}}]"#),
            8 => format!(r#"42/jobs,{number}["subscribe:jobs",{{"jobId":"{job}"}}]"#),
            9 => format!(r#"42/jobs,{number}["unsubscribe:jobs",{{"jobId":"{job}"}}]"#),
            10 => "41/jobs,".to_owned(),
            11 | 12 => "3".to_owned(),
            13 => r#"451-/jobs,["x",{"_placeholder":true,"num":0}]"#.to_owned(),
            14 => self
                .pick(&[
                    "1", "2", "5", "6", "2probe", "bAQID", "44", "42[", "49/jobs,",
                ])
                .to_owned(),
            _ => format!("42/jobs,[\"{}\"]", "[".repeat(LARGE)),
        }
    }

    /// A session that polls posts, polls, or wants to go on over a WebSocket.
    async fn ask(&mut self, at: usize) -> Result<()> {
        let Some(sid) = self.clients[at].sid.clone() else {
            self.cut(at);
            return Ok(());
        };
        let path = format!("{SOCKET_IO}polling&sid={sid}");
        let (kind, sends) = match self.rng.u32(0..6) {
            0..3 => {
                let count = self.rng.u32(1..4);
                let packets: Vec<_> = (0..count).map(|_| self.packet(None)).collect();
                let body = packets.join("\x1e");
                // One body is not sent whole.
                let length = body.len() + usize::from(self.one_in(20));
                let head = self.request("POST", &path, &format!("content-length: {length}\r\n"));
                (Kind::Request, (head + &body).into_bytes())
            }
            3 | 4 => (Kind::Request, self.request("GET", &path, "").into_bytes()),
            _ => {
                let path = format!("{SOCKET_IO}websocket&sid={sid}");
                let mut sends = self.handshake(&path, None).into_bytes();
                sends.extend(self.frame(1, b"2probe"));
                if self.rng.bool() {
                    sends.extend(self.frame(1, b"5"));
                }
                (Kind::SocketIo, sends)
            }
        };
        let Ok(mut raw) = self.raw().await else {
            return Ok(());
        };
        drop(timeout(PATIENCE, raw.send(&sends)).await);
        self.clients.push(Client {
            kind,
            raw: Some(raw),
            sid: None,
            reads: self.rng.bool(),
            cursor: None,
        });
        Ok(())
    }
}

fn bearer(token: Option<&str>) -> String {
    token.map_or_else(String::new, |token| {
        format!("authorization: Bearer {token}\r\n")
    })
}

/// What stands in `text` between two others.
fn between(text: &str, before: &str, behind: &str) -> Option<String> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(behind).map(|(found, _)| found.to_owned())
}

/// Transports whose connections are counted by themselves. A session of Socket.IO may go on over another than it was
/// opened on.
const COUNTED: [&str; 5] = [
    r#"transport="websocket""#,
    r#"transport="sse""#,
    r#"transport="poll""#,
    r#"transport="socketio"#,
    "",
];

/// Where opened − closed is not what is open.
pub fn unbalanced(metrics: &Metrics) -> Vec<String> {
    let wrong = COUNTED.iter().filter_map(|transport| {
        let sum = |name: &str| metrics.sum(name, transport);
        let closed = sum("relay_connections_closed_total");
        let counted = sum("relay_connections_opened_total") - closed;
        differs(
            &format!("opened - closed of {transport}"),
            counted,
            sum("relay_connections"),
        )
    });
    wrong.collect()
}

/// What differs from a relay on which nobody is but so many WebSockets: opened − closed = open, and nothing is left
/// behind of those who have gone.
pub fn unsettled(metrics: &Metrics, open: f64) -> Vec<String> {
    let sum = |name: &str| metrics.sum(name, "");
    let admitted = metrics.sum("relay_limit_in_use", "\"connections\"");
    let quality = sum("relay_connection_quality");
    let dialects = sum("relay_dialect_connections");
    let endings = sum("relay_endings_pending");
    let left = [
        differs("connections", sum("relay_connections"), open),
        differs("admissions", admitted, open),
        differs("judged connections", quality, open),
        differs("connections of dialects", dialects, 0.0),
        differs("endings that wait", endings, 0.0),
    ];
    let mut all = unbalanced(metrics);
    all.extend(left.into_iter().flatten());
    all
}

fn differs(what: &str, is: f64, wanted: f64) -> Option<String> {
    // They are counts.
    ((is - wanted).abs() > 0.5).then(|| format!("{what} is {is}, and not {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_do_not_add_up_are_named() {
        let metrics = |open: u8| {
            Metrics::parse(&format!(
                "relay_connections{{transport=\"sse\"}} {open}\n\
                 relay_connections_opened_total{{transport=\"sse\"}} 5\n\
                 relay_connections_closed_total{{transport=\"sse\",reason=\"client\"}} 3\n"
            ))
        };
        assert!(unbalanced(&metrics(2)).is_empty());
        let wrong = unbalanced(&metrics(1));
        assert_eq!(
            wrong[0],
            "opened - closed of transport=\"sse\" is 2, and not 1"
        );
        assert_eq!(
            unsettled(&metrics(2), 0.0)[0],
            "connections is 2, and not 0"
        );
    }
}
