//! Clients of every kind that do anything at any moment: whatever they do, it is their own connection alone that
//! ends by it.
//!
//! Each step comes from one seed, which is shown with a failure. `RELAY_CLIENTS_SEED` plays one again, and
//! `RELAY_CLIENTS_STEPS` makes the game longer. What a client gets to see is up to the clock, so the same seed asks
//! the same in the same order, and may be answered differently.
//!
//! Invariant: nobody here but the neighbour reads because it has to.

use std::time::Duration;

use anyhow::{Context as _, Result};
use fastrand::Rng;
use relay_testkit::client::raw::Raw;
use relay_testkit::http::{Connection, Request};
use relay_testkit::relay::{Metrics, RelayServer};
use relay_testkit::wait;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::SOON;
use crate::identity::{of, token, with_tokens};
use crate::neighbour::Neighbour;

const STEPS: usize = 600;
/// Clients at a time.
const CLIENTS: usize = 16;
/// Endings that are there before the first client comes: more than replies may wait for one that does not read.
const ENDINGS: usize = 100;
/// How long a client looks for something to read, or waits for room to write.
const BRIEFLY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(1);
/// The size of a ping that is meant to fill a socket; the largest message is a little more.
const LARGE: usize = 60_000;

const OWNERS: [&str; 2] = ["greedy", "mallory"];
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
    "/ws/v1/convert/ended-1/progress",
    "/api/v1/conversions/ended-2/ws",
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

/// The game: its dice, its relay, and who is connected.
struct Game<'a> {
    rng: Rng,
    relay: &'a RelayServer,
    /// Over which jobs are published.
    publisher: Connection,
    publishers_token: String,
    tokens: [String; 3],
    clients: Vec<Client>,
    ended: usize,
}

impl<'a> Game<'a> {
    async fn new(seed: u64, relay: &'a RelayServer) -> Result<Self> {
        let [greedy, mallory] = OWNERS;
        let tokens = [
            token(&of(greedy).topics(&["group:g"])),
            token(&of(mallory)),
            token(&of(mallory).expired_since(Duration::from_secs(60))),
        ];
        Ok(Self {
            rng: Rng::with_seed(seed),
            relay,
            publisher: Connection::open(&relay.address()).await?,
            publishers_token: token(&of("publisher").publish(&OWNERS)),
            tokens,
            clients: Vec::new(),
            ended: 0,
        })
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *self.rng.choice(from).unwrap()
    }

    fn token(&mut self) -> String {
        match self.rng.u32(0..8) {
            0 => "rubbish".to_owned(),
            1 => self.tokens[2].clone(),
            2 | 3 => self.tokens[1].clone(),
            _ => self.tokens[0].clone(),
        }
    }

    fn topic(&mut self) -> String {
        match self.rng.u32(0..10) {
            0..5 => "user:greedy".to_owned(),
            5 => "user:mallory".to_owned(),
            6 => "group:g".to_owned(),
            7 => "user:neighbour".to_owned(),
            8 => format!("job:unknown-{}", self.rng.u32(0..20)),
            _ => format!("job:ended-{}", self.rng.usize(0..=self.ended)),
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
        let request = Request::post(path, body).bearer(Some(&self.publishers_token));
        let answer = self.publisher.send(request, SOON).await?;
        anyhow::ensure!(answer.status.as_u16() == 202, "{}", answer.text());
        Ok(())
    }

    async fn end_job(&mut self, bytes: usize) -> Result<()> {
        let owner = match self.ended < ENDINGS {
            true => OWNERS[0],
            false => self.pick(&OWNERS),
        };
        let (job, message) = (self.ended, "x".repeat(bytes));
        let state = json!({"status": "completed", "message": message, "parent_id": "g"});
        self.publish(&format!("/v1/jobs/ended-{job}?owner={owner}"), &state)
            .await?;
        self.ended += 1;
        Ok(())
    }

    async fn move_job(&mut self) -> Result<()> {
        let job = self.rng.u32(0..5);
        let path = format!("/v1/jobs/running-{job}");
        let state = json!({"status": "running", "message": self.rng.u32(..).to_string()});
        let owner = OWNERS[0];
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
        let address = self.relay.address();
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n{more}\r\n")
    }

    fn handshake(&mut self, path: &str, token: Option<&str>) -> String {
        let bearer = token.map_or_else(String::new, |token| {
            format!("authorization: Bearer {token}\r\n")
        });
        let more = format!(
            "{bearer}upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        self.request("GET", path, &more)
    }

    async fn raw(&mut self) -> Result<Raw> {
        let address = self.relay.address();
        match self.rng.bool() {
            true => Raw::connect_narrow(&address).await,
            false => Raw::connect(&address).await,
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
                self.handshake(&path, Some(&token))
            }
            Kind::Unauthenticated => {
                let topics: Vec<_> = (0..100).map(|n| format!("topic=user:x{n}")).collect();
                let path = format!("/v1/ws?auth=message&{}", topics.join("&"));
                self.handshake(&path, None)
            }
            Kind::Dialect => {
                let path = self.pick(&DIALECT_PATHS);
                self.handshake(path, Some(&token))
            }
            Kind::SocketIo => self.handshake(&format!("{SOCKET_IO}websocket"), Some(&token)),
            Kind::SocketIoPolling => {
                let bearer = format!("authorization: Bearer {token}\r\n");
                self.request("GET", &format!("{SOCKET_IO}polling"), &bearer)
            }
            Kind::Request => {
                let path = self.pick(&["/v1/sse?", "/v1/sse?", "/v1/poll?wait=3&"]);
                let path = format!("{path}topic={}", self.topic());
                let bearer = format!("authorization: Bearer {token}\r\n");
                self.request("GET", &path, &bearer)
            }
        };
        let mut raw = self.raw().await?;
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
        if client.reads {
            let seen = raw.read_some(BRIEFLY).await;
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
        let job = format!("ended-{}", self.rng.usize(0..=self.ended));
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
        let job = self.rng.usize(0..=self.ended);
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
            6..8 => format!(r#"42/jobs,{number}["subscribe:jobs",{{"userId":"greedy"}}]"#),
            8 => format!(r#"42/jobs,{number}["subscribe:jobs",{{"jobId":"ended-{job}"}}]"#),
            9 => format!(r#"42/jobs,{number}["unsubscribe:jobs",{{"jobId":"ended-{job}"}}]"#),
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
        let mut raw = self.raw().await?;
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

    async fn step(&mut self) -> Result<()> {
        let somebody = match self.clients.len() {
            0 => None,
            count => Some(self.rng.usize(0..count)),
        };
        match (self.rng.u32(0..20), somebody) {
            (0..2, _) => {
                let bytes = self.rng.usize(0..20_000);
                self.end_job(bytes).await?;
            }
            (2, _) => self.move_job().await?,
            (3..5, _) | (_, None) => self.open().await?,
            (5, Some(at)) => self.cut(at),
            (_, Some(at)) => self.act(at).await?,
        }
        while self.clients.len() > CLIENTS {
            let oldest = self.rng.usize(0..self.clients.len());
            self.cut(oldest);
        }
        Ok(())
    }
}

/// What stands in `text` between two others.
fn between(text: &str, before: &str, behind: &str) -> Option<String> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(behind).map(|(found, _)| found.to_owned())
}

/// What still differs from a relay that the neighbour has for himself.
fn left(metrics: &Metrics) -> Vec<String> {
    let open = |label: &str| metrics.sum("relay_connections", label);
    let opened = |label: &str| metrics.sum("relay_connections_opened_total", label);
    let closed = |label: &str| metrics.sum("relay_connections_closed_total", label);
    let mut left = Vec::new();
    let mut check = |what: &str, is: f64, wanted: f64| {
        if is != wanted {
            left.push(format!("{what} is {is}, and not {wanted}"));
        }
    };
    // A session of Socket.IO may go on over another transport than it was opened on.
    for transport in [
        r#"transport="websocket""#,
        r#"transport="sse""#,
        r#"transport="poll""#,
        r#"transport="socketio"#,
        "",
    ] {
        let counted = opened(transport) - closed(transport);
        check(
            &format!("opened - closed of {transport}"),
            counted,
            open(transport),
        );
    }
    check("connections", open(""), 1.0);
    check(
        "admissions",
        metrics.sum("relay_limit_in_use", "\"connections\""),
        1.0,
    );
    check(
        "judged connections",
        metrics.sum("relay_connection_quality", ""),
        1.0,
    );
    check(
        "connections of dialects",
        metrics.sum("relay_dialect_connections", ""),
        0.0,
    );
    check(
        "endings that wait",
        metrics.sum("relay_endings_pending", ""),
        0.0,
    );
    left
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn play(relay: &RelayServer, seed: u64, steps: usize) -> Result<()> {
    let mine = token(&of("neighbour").publish(&["neighbour"]));
    let mut neighbour = Neighbour::with_token(relay, Some(mine)).await?;
    let mut game = Game::new(seed, relay).await?;
    for _ in 0..ENDINGS {
        game.end_job(60).await?;
    }
    for step in 0..steps {
        let stepped = game.step().await;
        stepped.with_context(|| format!("step {step}"))?;
        if step % 50 == 0 {
            let undisturbed = neighbour.is_undisturbed(relay).await;
            undisturbed.with_context(|| format!("the neighbour, after step {step}"))?;
        }
    }
    while !game.clients.is_empty() {
        game.cut(0);
    }
    neighbour.is_undisturbed(relay).await?;
    let mut differs = Vec::new();
    let settled = wait::until_some(SOON, "all to be forgotten", async || {
        neighbour.is_undisturbed(relay).await.ok()?;
        differs = left(&relay.metrics().await.ok()?);
        differs.is_empty().then_some(())
    })
    .await;
    settled.with_context(|| format!("{differs:?}"))?;
    let bugs = r#"reason="internal_error""#;
    let bugs = relay
        .metrics()
        .await?
        .sum("relay_connections_closed_total", bugs);
    anyhow::ensure!(bugs == 0.0, "{bugs} connections were closed for a bug");
    anyhow::ensure!(!relay.logs().contains("panicked"), "the relay panicked");
    Ok(())
}

#[tokio::test]
async fn clients_that_do_anything_at_any_moment_harm_nobody_else() {
    let seed = number("RELAY_CLIENTS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = number("RELAY_CLIENTS_STEPS").map_or(STEPS, |steps| steps as usize);
    let relay = RelayServer::start(
        with_tokens()
            .set("http.shards", 1)
            .set("dialects.enabled", DIALECTS)
            .set("delivery.ack_timeout", "300ms")
            .set("delivery.write_timeout", "400ms")
            .set("delivery.ping_interval", "1s")
            .set("delivery.dead_after", "4s")
            .set("limits.connections_per_user", 10_000)
            .set("limits.connections_per_address", 10_000)
            .set("limits.messages_per_second", 10_000)
            .set("limits.messages_burst", 10_000),
    )
    .await
    .unwrap();
    if let Err(error) = play(&relay, seed, steps).await {
        panic!("RELAY_CLIENTS_SEED={seed}: {error:#}\n{}", relay.logs());
    }
}
