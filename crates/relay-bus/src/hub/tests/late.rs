//! Endings that stand though their worker goes on: every node knows the same, whenever it was started (promise 4).

use relay_core::kind::{Kind, Kinds};

use super::*;

/// One stream and the nodes that read it.
struct Nodes {
    stream: Arc<Stream>,
    hubs: Vec<Arc<Hub>>,
    _tasks: JoinSet<()>,
}

impl Nodes {
    fn new(stream: &Arc<Stream>, count: usize) -> Self {
        let mut tasks = JoinSet::new();
        let recalled = Kind {
            removed_by: vec![name("recalled")],
            ..Kind::default()
        };
        let kinds = Arc::new(Kinds::new([("mail".to_owned(), recalled)]));
        let hubs = (0..count).map(|_| {
            let backing = Backing::Stored(stream.clone());
            let settings = HubSettings {
                kinds: kinds.clone(),
                ..settings()
            };
            let hub = Hub::new(settings, backing, Clock::start(), EPOCH);
            hub.live(EPOCH, stream.inner.lock().high);
            tasks.spawn(hub.clone().run());
            hub
        });
        Self {
            stream: stream.clone(),
            hubs: hubs.collect(),
            _tasks: tasks,
        }
    }

    fn hear(&self, incoming: &Incoming) {
        for hub in &self.hubs {
            hub.ingest(&mut vec![incoming.clone()]);
        }
    }

    /// A worker publishes, and what relays have published comes by.
    fn publish(&self, what: What, payload: &str) -> Seq {
        let incoming = self.stream.append("j", what, payload.to_owned(), false);
        self.pass_on();
        self.hear(&incoming);
        incoming.seq
    }

    fn state(&self, payload: &str) -> Seq {
        self.publish(What::State, payload)
    }

    fn pass_on(&self) -> usize {
        let published = std::mem::take(&mut self.stream.inner.lock().published);
        // What came before it is read before it.
        published.iter().for_each(|it| self.hear(it));
        published.len()
    }

    async fn pause(&self, millis: u64) -> usize {
        sleep(Duration::from_millis(millis)).await;
        self.pass_on()
    }

    /// How the job stands, and its number.
    async fn knows(&self, node: usize) -> (Status, u64) {
        let state = self.hubs[node].lookup(&job("j")).await.state.unwrap();
        let Body::State { status, .. } = &state.body else {
            panic!("{state:?}");
        };
        (*status, state.seq.get())
    }
}

/// Numbers of what a shard was told, and of what joins were answered with.
fn told(hub: &Hub) -> Vec<u64> {
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let told = messages.iter().flat_map(|message| match message {
        Message::Publish(publication) => vec![publication.seq.get()],
        Message::Joined(_, joined) => seqs(joined),
        _ => Vec::new(),
    });
    told.collect()
}

fn watch(hub: &Hub, since: Option<u64>) {
    let topic = Topic::parse("job:j").unwrap();
    hub.join(JoinRequest {
        shard: 0,
        connection: ConnectionId(1),
        subscription: SUBSCRIPTION,
        cursor: since.map(|seq| Cursor::at(at(seq), [&topic])),
        topic,
        own: None,
        again: Again::Nothing,
    });
}

fn late(mark: u64) -> String {
    format!(r#"{{"status":"running","message":"second run {mark}"}}"#)
}

const COMPLETED: &str = r#"{"status":"succeeded","result":{"pages":3}}"#;

#[tokio::test(start_paused = true)]
async fn regression_an_ending_stands_whatever_its_worker_goes_on_to_say_and_whenever_a_node_starts()
{
    for kept in [1, 2, 4, 8, 64] {
        let stream = Stream::keeping(kept);
        let nodes = Nodes::new(&stream, 2);
        watch(&nodes.hubs[0], None);
        nodes.pause(1000).await;
        nodes.state(r#"{"status":"running","progress":10}"#);
        nodes.state(r#"{"status":"running","progress":20}"#);
        nodes.state(COMPLETED);
        let mut stored_again = 0;
        for mark in 0..200 {
            nodes.state(&late(mark));
            if mark % 10 == 0 {
                nodes.publish(What::Milestone(name("clip")), "1");
            }
            stored_again += nodes.pause(100).await;
            if mark % 40 == 39 {
                stored_again += nodes.pause(1000).await;
                // A node that starts now knows what those know that saw it.
                let new = Nodes::new(&stream, 1);
                assert_eq!(new.knows(0).await, (Status::Completed, 3), "{kept} kept");
                // Somebody who was told the ending is not told it again, nor what came too late.
                told(&new.hubs[0]);
                watch(&new.hubs[0], Some(stream.inner.lock().high.get()));
                watch(&new.hubs[0], Some(3));
                new.pause(1000).await;
                assert_eq!(told(&new.hubs[0]), [0; 0], "{kept} kept");
            }
        }
        assert_eq!(told(&nodes.hubs[0]), [1, 2, 3], "{kept} kept: promise 2");
        // Once for as many as fill half of the room, by nodes that start meanwhile too.
        let most = 300 / (kept / 2).max(1) + 5;
        assert!(
            (1..=most).contains(&stored_again),
            "{kept} kept: {stored_again}"
        );
        let newest = stream
            .inner
            .lock()
            .messages
            .iter()
            .filter(|it| it.what == What::State)
            .count();
        assert!(newest <= kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_higher_attempt_is_not_put_back_by_the_ending_before_it() {
    let stream = Stream::keeping(8);
    let nodes = Nodes::new(&stream, 2);
    watch(&nodes.hubs[0], None);
    nodes.pause(1000).await;
    nodes.state(COMPLETED);
    for mark in 0..4 {
        nodes.state(&late(mark));
    }
    // It is due now, and something better has come, which the nodes have not read yet.
    let again = r#"{"status":"running","attempt":2}"#.to_owned();
    let again = stream.append("j", What::State, again, false);
    nodes.pause(500).await;
    nodes.hear(&again);
    assert_eq!(nodes.pause(5000).await, 0, "nothing is stored over it");
    let new = Nodes::new(&stream, 1);
    for (nodes, node) in [(&nodes, 0), (&nodes, 1), (&new, 0)] {
        assert_eq!(nodes.knows(node).await, (Status::Running, again.seq.get()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ending_is_kept_over_a_restart_in_the_middle_though_nobody_watches() {
    let stream = Stream::keeping(64);
    let nodes = Nodes::new(&stream, 1);
    watch(&nodes.hubs[0], None);
    nodes.pause(1000).await;
    nodes.state(COMPLETED);
    for mark in 0..31 {
        nodes.state(&late(mark));
    }
    drop(nodes);
    let restarted = Nodes::new(&stream, 2);
    for mark in 0..100 {
        restarted.state(&late(100 + mark));
        restarted.pause(100).await;
    }
    restarted.pause(1000).await;
    for nodes in [restarted, Nodes::new(&stream, 1)] {
        assert_eq!(nodes.knows(0).await, (Status::Completed, 1));
    }
}

/// A worker is faster than the relay, until it stops.
#[tokio::test(start_paused = true)]
async fn an_ending_that_was_pushed_out_is_put_back_when_the_worker_pauses() {
    let stream = Stream::keeping(4);
    let nodes = Nodes::new(&stream, 1);
    watch(&nodes.hubs[0], None);
    nodes.pause(1000).await;
    nodes.state(COMPLETED);
    let mut on_the_way = std::collections::VecDeque::new();
    for mark in 0..3000 {
        on_the_way.push_back(stream.append("j", What::State, late(mark), false));
        // The node is always some behind.
        if on_the_way.len() > 20 {
            nodes.hear(&on_the_way.pop_front().unwrap());
        }
        sleep(Duration::from_micros(100)).await;
    }
    assert_eq!(nodes.pass_on(), 0, "there was no moment for it");
    let early = Nodes::new(&stream, 1);
    watch(&early.hubs[0], None);
    early.pause(1000).await;
    assert_eq!(
        early.knows(0).await.0,
        Status::Running,
        "it cannot know better"
    );
    on_the_way.iter().for_each(|it| nodes.hear(it));
    sleep(Duration::from_secs(2)).await;
    let again = std::mem::take(&mut stream.inner.lock().published);
    assert_eq!(again.len(), 1);
    nodes.hear(&again[0]);
    early.hear(&again[0]);
    // It is newer to those who were told otherwise, and what it was to the others.
    assert_eq!(
        early.knows(0).await,
        (Status::Completed, again[0].seq.get())
    );
    assert_eq!(nodes.knows(0).await, (Status::Completed, 1));
    assert_eq!(
        Nodes::new(&stream, 1).knows(0).await,
        (Status::Completed, 1)
    );
    // Also if it is the one that was told otherwise that stores it again.
    drop(nodes);
    for mark in 0..4 {
        early.state(&late(3000 + mark));
    }
    assert_eq!(early.pause(1000).await, 1);
    let new = Nodes::new(&stream, 1);
    assert_eq!(new.knows(0).await, (Status::Completed, 1));
}

#[tokio::test(start_paused = true)]
async fn an_ending_whose_time_is_over_is_not_stored_again() {
    let stream = Stream::keeping(4);
    let nodes = Nodes::new(&stream, 1);
    watch(&nodes.hubs[0], None);
    nodes.pause(1000).await;
    let mut ending = stream.append("j", What::State, COMPLETED.to_owned(), true);
    let hour = 3_600_000_000;
    ending.stored_at = WallTime::from_unix_micros(ending.stored_at.as_unix_micros() - hour);
    nodes.hear(&ending);
    for mark in 0..20 {
        nodes.state(&late(mark));
        assert_eq!(nodes.pause(100).await, 0);
    }
}

/// It is larger than its worker's by what a relay adds.
#[tokio::test(start_paused = true)]
async fn an_ending_as_large_as_an_update_may_be_is_accepted_when_it_is_stored_again() {
    let stream = Stream::keeping(4);
    let nodes = Nodes::new(&stream, 2);
    watch(&nodes.hubs[0], None);
    nodes.pause(1000).await;
    let fill = "x".repeat((1 << 16) - 40);
    let ending = format!(r#"{{"status":"succeeded","message":"{fill}"}}"#);
    assert!(ending.len() <= 1 << 16);
    nodes.state(&ending);
    let mut again = 0;
    for mark in 0..10 {
        nodes.state(&late(mark));
        again += nodes.pause(300).await;
    }
    assert!(again > 0);
    let large = |it: &Incoming| it.payload.len() > 1 << 16;
    assert!(stream.inner.lock().messages.iter().any(large));
    assert_eq!(
        Nodes::new(&stream, 1).knows(0).await,
        (Status::Completed, 1)
    );
    let counts: BTreeMap<_, _> = nodes.hubs[0].stats().counts.into_iter().collect();
    assert!(!counts.contains_key("too_large"), "{counts:?}");
}

/// A worker writes the header itself: it harms nobody but its own job.
#[tokio::test(start_paused = true)]
async fn where_a_state_says_it_stood_is_believed_of_an_ending_alone() {
    let stream = Stream::keeping(64);
    let nodes = Nodes::new(&stream, 1);
    let forged = |payload: &str| {
        let mut incoming = stream.append("j", What::State, payload.to_owned(), false);
        incoming.first = Some(crate::seam::First {
            seq: Seq::new(1),
            stored_at: WallTime::default(),
        });
        stream.inner.lock().messages.last_mut().unwrap().first = incoming.first;
        nodes.hear(&incoming);
        incoming.seq.get()
    };
    stream.append("other", What::State, late(0), false);
    let running = forged(&late(1));
    assert_eq!(nodes.knows(0).await, (Status::Running, running));
    watch(&nodes.hubs[0], None);
    nodes.pause(1000).await;
    told(&nodes.hubs[0]);
    // Whoever watches is told of it where it is.
    let ending = forged(COMPLETED);
    assert_eq!(told(&nodes.hubs[0]), [ending]);
}

#[tokio::test(start_paused = true)]
async fn a_removal_stands_whatever_its_worker_goes_on_to_say_and_whenever_a_node_starts() {
    let removals = [
        (What::State, r#"{"status":"removed","parent_id":"g"}"#),
        (What::Milestone(name("recalled")), "1"),
    ];
    for ((what, removal), kept) in removals.iter().flat_map(|it| [(it, 2), (it, 4), (it, 64)]) {
        let case = format!("{what:?}, {kept} kept");
        let stream = Stream::keeping(kept);
        let nodes = Nodes::new(&stream, 2);
        watch(&nodes.hubs[0], None);
        nodes.pause(1000).await;
        nodes.state(r#"{"status":"running","kind":"mail","parent_id":"g"}"#);
        nodes.publish(What::Milestone(name("clip")), "1");
        nodes.publish(what.clone(), removal);
        let mut stored_again = 0;
        for mark in 0..200 {
            nodes.state(&late(mark));
            stored_again += nodes.pause(100).await;
            if mark % 40 == 39 {
                stored_again += nodes.pause(1000).await;
                let new = Nodes::new(&stream, 1);
                let known = new.hubs[0].lookup(&job("j")).await;
                let removed = known.removed.map(|it| it.seq.get());
                assert!(known.state.is_none(), "{case}");
                assert_eq!(removed, Some(3), "{case}: where it was first");
                let group = Topic::parse("group:g").unwrap();
                let survey = new.hubs[0].survey(&group.of(&owner())).await.unwrap();
                assert_eq!(survey.tally.total(), 0, "{case}");
                // It is news to whoever was away, and to nobody else.
                for (since, expected) in [(2, vec![3]), (3, vec![])] {
                    watch(&new.hubs[0], Some(since));
                    new.pause(1000).await;
                    assert_eq!(told(&new.hubs[0]), expected, "{case}");
                }
            }
        }
        assert_eq!(told(&nodes.hubs[0]), [1, 2, 3], "{case}: promise 2");
        let most = 300 / (kept / 2) + 5;
        assert!((1..=most).contains(&stored_again), "{case}: {stored_again}");
        // A higher attempt begins the job anew, and nothing puts it back.
        nodes.state(r#"{"status":"running","attempt":2}"#);
        nodes.pause(5000).await;
        assert_eq!(nodes.knows(1).await.0, Status::Running, "{case}");
        let new = Nodes::new(&stream, 1);
        assert_eq!(new.knows(0).await.0, Status::Running, "{case}");
    }
}
