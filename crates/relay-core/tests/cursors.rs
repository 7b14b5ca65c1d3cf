//! Plays the example of `docs/explanation/cursors.md` with a real watcher.
//!
//! Invariant: every row of the page's tables stands here with the same step and the same cursor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_core::cursor::{Cursor, Print};
use relay_core::document::Status;
use relay_core::id::{Name, Owner};
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Position, Seq};
use relay_core::publication::{Body, Frames, JobKey, Publication};
use relay_core::tally::Share;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::{Beginning, Joined};
use relay_core::watcher::holds::{Released, Repairing};
use relay_core::watcher::horizon::Horizon;
use relay_core::watcher::outbox::{Offered, OutboxBounds, SubscriptionId};
use relay_core::watcher::session::{Join, SessionBounds};
use relay_core::watcher::sight::{Sight, Viewer};
use relay_core::watcher::{Watcher, WatcherBounds};

const PAGE: &str = include_str!("../../../docs/explanation/cursors.md");
const EPOCH: Epoch = Epoch::new(1);
const BOUNDS: WatcherBounds = WatcherBounds {
    session: SessionBounds {
        subscriptions: 100,
        auth_timeout: Duration::from_secs(10),
        ping_interval: Duration::from_secs(25),
        dead_after: Duration::from_secs(60),
    },
    outbox: OutboxBounds {
        milestones: 100,
        bytes: 262_144,
        jobs: 1000,
        interval: Duration::from_millis(100),
    },
    ack_timeout: Duration::from_secs(5),
    endings_within: None,
};

/// A client that may see all there is.
struct Everything;

impl Viewer for Everything {
    fn sight(&self, _: &Topic) -> Sight {
        Sight::Yes
    }

    fn may_watch(&self, _: &Topic, _: Option<&Owner>, _: Option<&Name>) -> bool {
        true
    }
}

fn topic(job: u64) -> Topic {
    Topic::parse(&format!("job:clip-{job}")).unwrap()
}

fn state(job: u64, seq: u64) -> Arc<Publication> {
    publication(
        job,
        seq,
        Body::State {
            json: Bytes::from_static(b"{}"),
            status: Status::Running,
            attempt: 1,
            share: Share {
                status: Status::Running,
                progress: 0.0,
                weight: 1.0,
            },
        },
    )
}

fn milestone(job: u64, seq: u64) -> Arc<Publication> {
    publication(
        job,
        seq,
        Body::Milestone {
            name: Name::parse("preview_ready").unwrap(),
            data: Bytes::from_static(b"{}"),
        },
    )
}

fn publication(job: u64, seq: u64, body: Body) -> Arc<Publication> {
    Arc::new(Publication {
        seq: Seq::new(seq),
        epoch: EPOCH,
        key: JobKey(job),
        job: Name::parse(&format!("clip-{job}")).unwrap(),
        owner: Owner::nobody(),
        parent: None,
        body,
        first_at: WallTime::default(),
        received_at: Moment::default(),
        worker_at: None,
        stored_at: WallTime::default(),
        frames: Frames::default(),
    })
}

/// One connection to one node.
struct Connection {
    watcher: Watcher,
    horizon: Horizon,
    now: Moment,
}

impl Connection {
    fn open(node_has_read: u64) -> Self {
        let mut horizon = Horizon::new(EPOCH, false);
        horizon.hear(Seq::new(node_has_read));
        Self {
            watcher: Watcher::new(None, Moment::default(), &BOUNDS),
            horizon,
            now: Moment::default(),
        }
    }

    /// Subscribes without a message.
    fn subscribe(&mut self, topic: &Topic) -> Join {
        self.watcher
            .subscribe(topic.clone(), None, &BOUNDS)
            .unwrap()
    }

    /// The node answers a join: `owed` follows. The cursor in `subscribed`.
    fn answer(&mut self, join: Join, owed: Arc<Publication>) -> Cursor {
        let since = join.cursor.as_ref().and_then(|it| it.since(&join.topic));
        let joined = Joined {
            subscription: join.subscription,
            topic: join.topic,
            owner: None,
            key: None,
            parent: None,
            several: None,
            since,
            recovered: since.is_some(),
            publications: vec![owed],
            left_out: Vec::new(),
            high: self.horizon.reached(Seq::MAX),
        };
        let wall = WallTime::default();
        let began = self
            .watcher
            .begin(joined, &Everything, &self.horizon, self.now, wall, &BOUNDS);
        match began {
            Beginning::Live(begun) => begun.cursor,
            other => panic!("{other:?}"),
        }
    }

    /// An update comes from the bus.
    fn offer(&mut self, publication: &Arc<Publication>, via: SubscriptionId) {
        self.now = self.now + Duration::from_secs(1);
        self.horizon.hear(publication.seq);
        let offered = self.watcher.offer(publication, via, self.now, &BOUNDS);
        assert_eq!(offered, Offered::Queued);
    }

    /// The position and the cursor of the next frame, if one may be sent.
    fn sends(&mut self) -> Option<Cursor> {
        let ceiling = self.watcher.ceiling(&self.horizon);
        let taken = self.watcher.next(self.now, ceiling, &BOUNDS)?;
        let at = self.horizon.at(taken.position);
        Some(self.watcher.cursor_at(at))
    }

    /// Where the client stands.
    fn cursor(&self) -> Cursor {
        self.watcher.cursor(EPOCH)
    }
}

/// How far a cursor speaks for a topic, as the page writes it.
fn in_words(cursor: &Cursor, topic: &Topic) -> String {
    let print = Print::of(topic);
    match cursor.told().iter().find(|told| told.print == print) {
        None => "–".to_owned(),
        Some(told) if told.from == Seq::ZERO => told.seq.to_string(),
        Some(told) => format!("{}, whole from {}", told.seq, told.from),
    }
}

#[test]
fn the_example_on_the_page_is_what_the_code_does() {
    let (a, b) = (topic(42), topic(43));
    let mut rows = Vec::new();
    let mut row = |step: &str, cursor: &Cursor| {
        let (on_a, on_b) = (in_words(cursor, &a), in_words(cursor, &b));
        rows.push(format!(
            "| {step} | {} | {on_a} | {on_b} | `{cursor}` |",
            cursor.position.seq
        ));
    };

    // Node A.
    let mut client = Connection::open(98);
    let join = client.subscribe(&a);
    let on_a = join.subscription;
    client.answer(join, state(42, 98));
    row("1", &client.sends().unwrap());
    client.offer(&state(42, 104), on_a);
    row("2", &client.sends().unwrap());
    let join = client.subscribe(&b);
    let kept = client.answer(join, state(43, 90));
    row("3", &kept);

    // Node B: the client has only the text of its cursor.
    let kept = Cursor::parse(&kept.to_string()).unwrap();
    let mut client = Connection::open(105);
    let topics = vec![a.clone(), b.clone()];
    let joins = client
        .watcher
        .watch(topics, Some(&kept), &client.horizon, &BOUNDS);
    let [join_a, join_b] = <[Join; 2]>::try_from(joins).unwrap();
    let (on_a, on_b) = (join_a.subscription, join_b.subscription);
    row("4a", &client.answer(join_a, state(42, 105)));
    row("4b", &client.answer(join_b, state(43, 90)));
    row("5a", &client.sends().unwrap());
    row("5b", &client.sends().unwrap());

    // 106 did not come by, and is fetched: nothing above 105 may be sent.
    let held = client.horizon.repair(Repairing::HoldAll(Seq::new(105)));
    assert!(matches!(held, Released::Nobody));
    client.offer(&state(43, 107), on_b);
    client.offer(&state(42, 108), on_a);
    assert!(client.sends().is_none());
    row("6", &client.cursor());
    client.offer(&milestone(43, 106), on_b);
    let released = client.horizon.repair(Repairing::ReleaseAll);
    assert!(matches!(released, Released::Everybody));
    for step in ["7a", "7b", "7c"] {
        row(step, &client.sends().unwrap());
    }
    assert!(client.sends().is_none());

    let on_page: Vec<&str> = PAGE
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("`AQ"))
        .collect();
    assert_eq!(on_page, rows, "docs/explanation/cursors.md");
}

/// The page takes one of its cursors apart byte by byte.
#[test]
fn the_bytes_on_the_page_are_those_of_the_cursor() {
    let field = |name: &str| {
        let row = PAGE
            .lines()
            .find(|line| line.starts_with(&format!("| {name} | `")));
        let row = row.unwrap_or_else(|| panic!("no row {name:?}"));
        row.split('`').nth(1).unwrap().replace(' ', "")
    };
    let names = [
        "version", "epoch", "sequence", "topic 1", "behind 1", "topic 2", "behind 2",
    ];
    let bytes: String = names.iter().map(|name| field(name)).collect();
    let cursor = Cursor::at(
        Position::new(EPOCH, Seq::new(105)),
        [&topic(42), &topic(43)],
    );
    assert_eq!(bytes, hex(&cursor.to_string()));
}

fn hex(text: &str) -> String {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
    decoded
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
