//! Plays the example of `docs/explanation/cursors.md` with the real session, outbox and cursor.
//!
//! Invariant: every row of the page's tables stands here with the same step and the same cursor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_core::cursor::{Cursor, Print, Told};
use relay_core::document::Status;
use relay_core::id::{Name, Owner};
use relay_core::moment::{Moment, WallTime};
use relay_core::outbox::{Outbox, OutboxBounds, SubscriptionId};
use relay_core::publication::{Body, Frames, JobKey, Publication};
use relay_core::recovery::Known;
use relay_core::session::{Session, SessionBounds};
use relay_core::tally::Share;
use relay_core::topic::Topic;

const PAGE: &str = include_str!("../../../docs/explanation/cursors.md");
const EPOCH: u64 = 1;
const EVERYTHING: u64 = u64::MAX;
const OUTBOX: OutboxBounds = OutboxBounds {
    milestones: 100,
    bytes: 262_144,
    jobs: 1000,
    interval: Duration::from_millis(100),
};
const SESSION: SessionBounds = SessionBounds {
    subscriptions: 100,
    auth_timeout: Duration::from_secs(10),
    ping_interval: Duration::from_secs(25),
    dead_after: Duration::from_secs(60),
};

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
        seq,
        epoch: EPOCH,
        key: JobKey(job),
        job: Name::parse(&format!("clip-{job}")).unwrap(),
        owner: Owner::nobody(),
        parent: None,
        body,
        received_at: Moment::default(),
        worker_at: None,
        stored_at: WallTime::default(),
        frames: Frames::default(),
    })
}

/// One connection, with the least of a node around it.
struct Connection {
    session: Session,
    outbox: Outbox,
    carried: Vec<Told>,
    now: Moment,
}

impl Connection {
    fn open(cursor: Option<&Cursor>) -> Self {
        Self {
            session: Session::open(None, Moment::default(), &SESSION),
            outbox: Outbox::default(),
            carried: cursor.map_or(Vec::new(), |cursor| cursor.told().to_vec()),
            now: Moment::default(),
        }
    }

    /// Subscribes on a node that has read up to `high`, and that answers with `owed`.
    fn join(&mut self, topic: &Topic, high: u64, owed: &[Arc<Publication>]) -> SubscriptionId {
        let print = Print::of(topic);
        let since = self.carried.iter().find(|told| told.print == print);
        let since = since.map(|told| told.seq);
        let known = Known {
            session: &self.session,
            carried: &self.carried,
        };
        let whole_from = known.complete_from(topic, since, high);
        let via = self.session.subscribe(topic.clone(), &SESSION).unwrap();
        assert!(self.session.joined(via, since.unwrap_or(0), whole_from));
        self.carried.retain(|told| told.print != print);
        self.outbox.resume(since.unwrap_or(0));
        for each in owed {
            self.outbox.owe(each, via, self.now, &OUTBOX);
        }
        self.outbox.advance(high);
        via
    }

    /// An update comes from the bus.
    fn offer(&mut self, publication: &Arc<Publication>, via: SubscriptionId) {
        self.now = self.now + Duration::from_secs(1);
        let _queued = self.outbox.offer(publication, via, self.now, &OUTBOX);
    }

    /// The next thing that may be sent; nothing above `ceiling`.
    fn sends(&mut self, ceiling: u64) -> Option<u64> {
        let taken = self.outbox.take(self.now, ceiling, &OUTBOX)?;
        match taken.telling {
            relay_core::outbox::Telling::Publication(publication) => Some(publication.seq),
            relay_core::outbox::Telling::Gap { .. } => None,
        }
    }

    fn cursor(&self) -> Cursor {
        let place = (EPOCH, self.outbox.position());
        let behind = |via| self.outbox.behind(via);
        self.session.cursor(place, behind, &self.carried)
    }
}

/// How far a cursor speaks for a topic, as the page writes it.
fn in_words(cursor: &Cursor, topic: &Topic) -> String {
    let print = Print::of(topic);
    match cursor.told().iter().find(|told| told.print == print) {
        None => "–".to_owned(),
        Some(told) if told.from == 0 => told.seq.to_string(),
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
            cursor.seq
        ));
    };

    // Node A.
    let mut client = Connection::open(None);
    let on_a = client.join(&a, 98, &[state(42, 98)]);
    assert_eq!(client.sends(EVERYTHING), Some(98));
    row("1", &client.cursor());
    client.offer(&state(42, 104), on_a);
    assert_eq!(client.sends(EVERYTHING), Some(104));
    row("2", &client.cursor());
    client.join(&b, 104, &[state(43, 90)]);
    let kept = client.cursor();
    row("3", &kept);

    // Node B: the client has only the text of its cursor.
    let kept = Cursor::parse(&kept.to_string()).unwrap();
    let mut client = Connection::open(Some(&kept));
    let on_a = client.join(&a, 105, &[state(42, 105)]);
    row("4a", &client.cursor());
    let on_b = client.join(&b, 105, &[state(43, 90)]);
    row("4b", &client.cursor());
    assert_eq!(client.sends(EVERYTHING), Some(90));
    row("5a", &client.cursor());
    assert_eq!(client.sends(EVERYTHING), Some(105));
    row("5b", &client.cursor());

    // 106 did not come by, and is fetched: nothing above 105 may be sent.
    client.offer(&state(43, 107), on_b);
    client.offer(&state(42, 108), on_a);
    assert_eq!(client.sends(105), None);
    row("6", &client.cursor());
    client.offer(&milestone(43, 106), on_b);
    for (step, seq) in [("7a", 106), ("7b", 107), ("7c", 108)] {
        assert_eq!(client.sends(EVERYTHING), Some(seq));
        row(step, &client.cursor());
    }

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
    let cursor = Cursor::at(EPOCH, 105, [&topic(42), &topic(43)]);
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
