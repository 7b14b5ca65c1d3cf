//! One connection, or a few, with paused time.
//!
//! Shard, hub and everything between them are the real ones. Only the kernel is a [`Pipe`]: it takes as many bytes
//! as a test gives it room for, and remembers them.

mod endings;
mod faults;
mod slow;
mod time;
mod undecodable;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_bus::hub::{PublishRequest, Verb};
use relay_bus::inbox::ConnectionId;
use relay_bus::seam::What;
use relay_core::id::Name;
use relay_core::topic::Topic;
use relay_wire::speaker::Speaker;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;

use super::outlet::Outlet;
use super::{Mailboxes, Opening, Shard};
use crate::config::Config;
use crate::identity::Identity;
use crate::link::Sink;
use crate::node::Node;
use crate::serve::settings::test_node;

pub(super) use faults::{fault_in_fan_out, fault_in_message};

/// Room without end.
const ROOM: usize = usize::MAX;

/// What stands in for a socket.
#[derive(Debug)]
struct Pipe {
    written: RefCell<Vec<u8>>,
    /// How many bytes it still takes.
    room: Cell<usize>,
    gone: Cell<bool>,
}

impl Sink for Pipe {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.gone.get() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let taken = bytes.len().min(self.room.get());
        self.room.set(self.room.get() - taken);
        self.written.borrow_mut().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

/// A client, as far as its end of the pipe.
struct Client {
    id: ConnectionId,
    pipe: Rc<Pipe>,
}

/// What a client got: the opcode and payload of a WebSocket frame.
type Frame = (u8, Vec<u8>);

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;

impl Client {
    /// All bytes it got since it was last asked.
    fn bytes(&self) -> Vec<u8> {
        std::mem::take(&mut *self.pipe.written.borrow_mut())
    }

    /// All frames it got since it was last asked.
    fn frames(&self) -> Vec<Frame> {
        let bytes = self.bytes();
        let (mut frames, mut rest) = (Vec::new(), bytes.as_slice());
        while let [first, length, after @ ..] = rest {
            let (length, after) = match length {
                126 => (
                    usize::from(u16::from_be_bytes([after[0], after[1]])),
                    &after[2..],
                ),
                127 => {
                    let (long, after) = after.split_first_chunk().unwrap();
                    (usize::try_from(u64::from_be_bytes(*long)).unwrap(), after)
                }
                short => (usize::from(*short), after),
            };
            frames.push((first & 0xf, after[..length].to_vec()));
            rest = &after[length..];
        }
        assert!(rest.is_empty(), "half a frame");
        frames
    }

    /// The JSON of all text frames it got.
    fn messages(&self) -> Vec<Value> {
        let texts = self.frames().into_iter().filter(|(kind, _)| *kind == TEXT);
        texts
            .map(|(_, text)| serde_json::from_slice(&text).unwrap())
            .collect()
    }

    /// The types of all messages it got.
    fn kinds(&self) -> Vec<String> {
        let kind = |message: Value| message["type"].as_str().unwrap().to_owned();
        self.messages().into_iter().map(kind).collect()
    }

    /// The close code it got last, if it got one.
    fn closed(&self) -> Option<u16> {
        let frames = self.frames();
        let (_, payload) = frames.iter().rfind(|(kind, _)| *kind == CLOSE)?;
        Some(u16::from_be_bytes([payload[0], payload[1]]))
    }
}

/// A shard at its work.
struct Bench {
    shard: Rc<Shard>,
    node: Arc<Node>,
    drain: watch::Sender<bool>,
    _running: JoinSet<()>,
}

/// Runs a test beside a shard with this configuration.
async fn with_shard<F: Future<Output = ()>>(
    configure: impl FnOnce(&mut Config),
    test: impl FnOnce(Bench) -> F,
) {
    let mut config = Config::default();
    configure(&mut config);
    let node = test_node(&config);
    LocalSet::new()
        .run_until(async move {
            let shard = Shard::new(0, node.clone(), Mailboxes::new(1).0);
            let (drain, drained) = watch::channel(false);
            let mut running = JoinSet::new();
            running.spawn_local(shard.clone().run(drained));
            let bench = Bench {
                shard,
                node,
                drain,
                _running: running,
            };
            bench.pause().await;
            test(bench).await;
        })
        .await;
}

fn defaults(_: &mut Config) {}

/// A text frame as clients have to mask it, with a mask of zeros.
fn masked(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

/// A frame as clients have to mask it, with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = match u8::try_from(payload.len()) {
        Ok(short @ 0..126) => vec![0x80 | short],
        _ => {
            let length = u16::try_from(payload.len()).unwrap();
            [vec![0xfe], length.to_be_bytes().to_vec()].concat()
        }
    };
    [vec![first], length, vec![0; 4], payload.to_vec()].concat()
}

impl Bench {
    /// Lets everybody do what can be done now.
    async fn pause(&self) {
        // Time moves only when nobody has anything to do.
        sleep(Duration::from_millis(1)).await;
    }

    fn anybody(&self, speaker: Speaker) -> Opening {
        let identity = Identity::anonymous().shared();
        let peer = crate::proxies::Client::NOBODY;
        let admission = self.node.admissions.admit(None, peer).unwrap();
        Opening::new(speaker, identity, admission)
    }

    fn connect(&self, opening: Opening) -> Client {
        let pipe = Rc::new(Pipe {
            written: RefCell::default(),
            room: Cell::new(ROOM),
            gone: Cell::new(false),
        });
        let outlet = Outlet::socket(pipe.clone());
        let id = self.shard.begin_on(outlet, Bytes::new(), opening, &[]);
        Client { id, pipe }
    }

    /// A native client over a WebSocket, past its greeting.
    async fn client(&self) -> Client {
        let client = self.connect(self.anybody(Speaker::websocket()));
        self.pause().await;
        assert_eq!(client.kinds(), ["hello"]);
        client
    }

    /// One that watches a topic, past its first word.
    async fn watcher(&self, topic: &str) -> Client {
        let client = self.client().await;
        self.says(
            &client,
            &format!(r#"{{"type":"subscribe","topic":"{topic}"}}"#),
        );
        self.pause().await;
        client.bytes();
        client
    }

    /// An event stream that watches a topic, past its first word.
    async fn event_stream(&self, topic: &str) -> Client {
        let topics = vec![Topic::parse(topic).unwrap()];
        let opening = self.anybody(Speaker::event_stream());
        let client = self.connect(opening.watching(topics, None));
        self.pause().await;
        client.bytes();
        client
    }

    /// The client sends a text.
    fn says(&self, client: &Client, text: &str) {
        self.sends(client, &masked(text));
    }

    /// The client sends bytes.
    fn sends(&self, client: &Client, bytes: &[u8]) {
        self.shard.visit(client.id, |connection, desk| {
            connection.received(bytes, desk)
        });
    }

    /// The client's socket takes so many bytes more, and its task is woken for it.
    fn gives_room(&self, client: &Client, room: usize) {
        client.pipe.room.set(room);
        self.shard.visit(client.id, |connection, desk| {
            if connection.outlet.is_blocked() {
                connection.resume(desk);
            }
        });
    }

    async fn publish(&self, job: &str, payload: &str) {
        let request = PublishRequest {
            caller: None,
            job: Name::parse(job).unwrap(),
            owner: Some(Name::parse("alice").unwrap()),
            verb: Verb::Put(What::State),
            payload: payload.to_owned().into(),
            key: None,
        };
        self.node.hub.publish(request, |_| true).await.unwrap();
        self.pause().await;
    }

    async fn progress(&self, job: &str, progress: u32) {
        let state = format!(r#"{{"status":"running","progress":{progress}}}"#);
        self.publish(job, &state).await;
    }

    async fn end(&self, job: &str) {
        self.publish(job, r#"{"status":"completed"}"#).await;
    }

    /// Whether a connection is still there.
    fn is_there(&self, client: &Client) -> bool {
        self.shard.state.borrow().find(client.id).is_some()
    }

    /// How many connections were closed for a reason.
    fn closed(&self, reason: &str) -> u64 {
        let text = self.node.telemetry.scrape(&self.node.hub.stats()).unwrap();
        let text = String::from_utf8(text).unwrap();
        let counts = text.lines().filter(|line| {
            line.starts_with("relay_connections_closed_total")
                && line.contains(&format!("reason=\"{reason}\""))
        });
        counts
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}
