//! A client that watches jobs through several topics, is cut at any point and comes back by cursor, to this node
//! or to another that has heard more of the bus, or less.
//!
//! The model keeps its own account of what was published and what arrived. Jobs, watcher and horizon are the real
//! ones; between them stands only what a hub answers to a join.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::beginning::{Beginning, Joined, LeftOut};
use super::super::holds::{Hold, Repairing};
use super::super::horizon::Horizon;
use super::super::*;
use super::{Everything, START};
use crate::id::{JobName, Name};
use crate::job::{Job, JobBounds, Place, Subject};
use crate::moment::WallTime;
use crate::publication::JobKey;

const JOBS: usize = 3;
const NODES: usize = 2;
const EPOCH: Epoch = Epoch::new(7);
const HISTORY: usize = 6;
const BOUNDS: WatcherBounds = WatcherBounds {
    outbox: OutboxBounds {
        milestones: 3,
        bytes: 1000,
        jobs: 4,
        interval: Duration::from_millis(100),
    },
    ..super::BOUNDS
};

#[derive(Debug, Clone)]
enum Step {
    State(usize),
    Milestone(usize),
    Ending(usize),
    NextAttempt(usize),
    Removal(usize),
    /// Time passes, and so many things are taken.
    Take(u64, usize),
    /// A repair holds the connection back to where the bus is now.
    Hold,
    /// What a node missed is there, and what waited for it goes on.
    Release(usize),
    /// A node hears nothing of what is published.
    Away(usize),
    /// It hears what is published from now on; what it missed is being fetched.
    Back(usize),
    Subscribe(usize),
    Unsubscribe(usize),
    /// The connection is cut; the client comes back by cursor to one of the nodes, naming its topics in another
    /// order, of which so many are answered at once.
    Cut {
        node: usize,
        rotation: usize,
        answered: usize,
    },
    /// One more of them is answered.
    Answer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..JOBS).prop_map(Step::State),
        4 => (0..JOBS).prop_map(Step::Milestone),
        2 => (0..JOBS).prop_map(Step::Ending),
        2 => (0..JOBS).prop_map(Step::NextAttempt),
        1 => (0..JOBS).prop_map(Step::Removal),
        6 => (0u64..150, 0usize..4).prop_map(|(ms, n)| Step::Take(ms, n)),
        1 => Just(Step::Hold),
        2 => (0..NODES).prop_map(Step::Release),
        1 => (0..NODES).prop_map(Step::Away),
        2 => (0..NODES).prop_map(Step::Back),
        2 => (0..JOBS + 2).prop_map(Step::Subscribe),
        1 => (0..JOBS + 2).prop_map(Step::Unsubscribe),
        2 => (0..NODES, 0usize..4, 0usize..6)
            .prop_map(|(node, rotation, answered)| Step::Cut { node, rotation, answered }),
        1 => Just(Step::Answer),
    ]
}

/// Three jobs of one user; the first two are one group.
fn topic(n: usize) -> Topic {
    let text = match n {
        0..JOBS => format!("job:alice/j{n}"),
        JOBS => "user:alice".to_owned(),
        _ => "group:alice/g".to_owned(),
    };
    Topic::parse(&text).unwrap()
}

fn name_of(job: &Job) -> JobName {
    JobName::new(job.owner.clone(), job.id.clone())
}

fn covers(topic: &Topic, job: usize) -> bool {
    match topic {
        Topic::Job(named) => named.id.as_str() == format!("j{job}"),
        Topic::User(_) => true,
        Topic::Group(_) => job < 2,
    }
}

/// What the model expects of one publication.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    State,
    Ending,
    Milestone,
    Removal,
}

/// What was published: its number, its job, and the words.
type Update = (Seq, usize, Kind, String);

/// What one node knows.
struct Node {
    jobs: Vec<Job>,
    /// How far it has heard, and what of that may not be sent while something is missed.
    horizon: Horizon,
    away: bool,
    /// What came while it was away, and what came after it of the same jobs.
    missed: Vec<Update>,
}

impl Node {
    fn new() -> Self {
        let job = |n: usize| {
            let id = Name::parse(&format!("j{n}")).unwrap();
            Job::new(
                JobKey(n as u64),
                id,
                Name::parse("alice").unwrap(),
                Seq::ZERO,
            )
        };
        Self {
            jobs: (0..JOBS).map(job).collect(),
            horizon: Horizon::new(EPOCH, false),
            away: false,
            missed: Vec::new(),
        }
    }

    /// The highest number it has heard of.
    fn high(&self) -> Seq {
        self.horizon.reached(Seq::MAX)
    }

    /// Nothing newer than now is sent by it until all is released.
    fn hold(&mut self) {
        let seen = self.horizon.reached(self.horizon.ceiling([]));
        let released = self.horizon.repair(Repairing::HoldAll(seen));
        assert!(!released.concerns([].into_iter()));
    }

    /// Takes an update in; what is accepted is for all who watch.
    fn apply(
        &mut self,
        (seq, n, kind, payload): Update,
        received_at: Moment,
    ) -> Option<Arc<Publication>> {
        let name = Name::parse("m").unwrap();
        let subject = match kind {
            Kind::Milestone => Subject::Milestone(&name),
            Kind::State | Kind::Ending | Kind::Removal => Subject::State,
        };
        let place = Place {
            epoch: EPOCH,
            seq,
            received_at,
            stored_at: WallTime::default(),
        };
        let bounds = JobBounds {
            history: HISTORY,
            update_bytes: 1000,
            kinds: Arc::default(),
        };
        let applied = self.jobs[n].apply(subject, &payload.into(), place, &bounds);
        applied.ok()
    }
}

struct World {
    now: Moment,
    seq: Seq,
    nodes: Vec<Node>,
    /// The node that the client is connected to.
    at: usize,
    /// Its topics that wait for an answer.
    pending: Vec<(usize, Join)>,
    /// What a node that misses nothing knows.
    truth: Node,
    attempts: Vec<u32>,
    published: Vec<(Seq, usize, Kind)>,
    watcher: Watcher,
    cursor: Option<Cursor>,
    /// Topics the client watches, and from which number on it must have everything.
    watched: BTreeMap<usize, Seq>,
    /// How far the bus was when each began.
    began: BTreeMap<usize, Seq>,
    /// How far it was when one began on a node that had heard less: of what was told before, no cursor says then
    /// from where on it was whole.
    unsure: Seq,
    arrived: BTreeSet<Seq>,
    /// The last number that arrived of each job, but for what a snapshot told again.
    last: Vec<Seq>,
    /// The same of this connection.
    here: Vec<Seq>,
    /// Up to where milestones of each job were announced as lost, if they were.
    gaps: Vec<Option<Seq>>,
    /// Jobs that the answers to this connection left something out of, and up to where: `recovered: false` has
    /// said so, also to who is cut before the gap itself is told.
    left_out: Vec<(usize, Seq)>,
    /// Subscriptions that asked for a snapshot, which may repeat what was told under another topic.
    snapshots: Vec<SubscriptionId>,
}

impl World {
    fn new() -> Self {
        Self {
            now: START,
            seq: Seq::ZERO,
            nodes: (0..NODES).map(|_| Node::new()).collect(),
            at: 0,
            pending: Vec::new(),
            truth: Node::new(),
            attempts: vec![1; JOBS],
            published: Vec::new(),
            watcher: Watcher::new(None, START, &BOUNDS),
            cursor: None,
            watched: BTreeMap::new(),
            began: BTreeMap::new(),
            unsure: Seq::ZERO,
            arrived: BTreeSet::new(),
            last: vec![Seq::ZERO; JOBS],
            here: vec![Seq::ZERO; JOBS],
            gaps: vec![None; JOBS],
            left_out: Vec::new(),
            snapshots: Vec::new(),
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::State(job) => self.publish(job, Kind::State, "running"),
            Step::Ending(job) => self.publish(job, Kind::Ending, "failed"),
            Step::NextAttempt(job) => {
                self.attempts[job] += 1;
                self.publish(job, Kind::State, "queued");
            }
            Step::Removal(job) => self.publish(job, Kind::Removal, "removed"),
            Step::Milestone(job) => self.publish(job, Kind::Milestone, ""),
            Step::Take(ms, count) => {
                self.now = self.now + Duration::from_millis(ms);
                (0..count).for_each(|_| self.take());
            }
            Step::Hold => self.nodes[self.at].hold(),
            Step::Release(node) => self.release(node),
            Step::Away(node) => self.nodes[node].away = true,
            Step::Back(node) => self.back(node),
            Step::Subscribe(n) => self.subscribe(n),
            Step::Unsubscribe(n) => self.unsubscribe(n),
            Step::Cut {
                node,
                rotation,
                answered,
            } => self.cut(node, rotation, answered),
            Step::Answer => self.answer(),
        }
        assert!(
            self.watcher.outbox.milestones() <= BOUNDS.outbox.milestones,
            "promise 6"
        );
    }

    fn publish(&mut self, n: usize, kind: Kind, status: &str) {
        self.seq = self.seq.next();
        let (seq, attempt) = (self.seq, self.attempts[n]);
        let group = if n < 2 { r#","parent_id":"g""# } else { "" };
        let payload = match kind {
            Kind::Milestone => format!("{seq}"),
            Kind::State | Kind::Ending | Kind::Removal => {
                format!(r#"{{"status":"{status}","attempt":{attempt},"message":"{seq}"{group}}}"#)
            }
        };
        let update = (seq, n, kind, payload);
        if self.truth.apply(update.clone(), self.now).is_some() {
            if kind == Kind::Removal {
                // Nothing of what was before is owed any more.
                self.published.retain(|(_, job, _)| *job != n);
            }
            self.published.push((seq, n, kind));
        }
        for at in 0..NODES {
            let node = &mut self.nodes[at];
            if node.away || node.missed.iter().any(|(_, job, ..)| *job == n) {
                node.missed.push(update.clone());
            } else {
                self.take_in(at, update.clone());
            }
            let node = &mut self.nodes[at];
            if !node.away {
                node.horizon.hear(seq);
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        let horizon = &self.nodes[self.at].horizon;
        let ceiling = self.watcher.ceiling(horizon);
        self.watcher.settle(horizon, ceiling);
    }

    /// An update reaches a node, and whoever watches there.
    fn take_in(&mut self, at: usize, update: Update) {
        let is_news = self.nodes[at].horizon.hear(update.0);
        let Some(publication) = self.nodes[at].apply(update, self.now) else {
            return;
        };
        if at != self.at {
            return;
        }
        for topic in publication.topics() {
            let live = self
                .watcher
                .subscription_to(&topic)
                .filter(|each| each.live);
            let Some(via) = live.map(|each| each.id) else {
                continue;
            };
            if self.watcher.sees(&publication, via, is_news, &Everything) == Seen::Yes
                && self.watcher.offer(&publication, via, self.now, &BOUNDS) == Offered::Overflow
            {
                return self.cut(self.at, 0, usize::MAX);
            }
        }
    }

    /// As [`Step::Back`] has it: nobody is told more than was known before, until all that was missed is known.
    fn back(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if std::mem::take(&mut node.away) {
            node.hold();
            let seen = node.horizon.reached(node.horizon.ceiling([]));
            node.horizon.hear(self.seq);
            // What was missed is known by now, if not yet there: only those jobs are held from here on.
            for n in (0..JOBS).filter(|n| node.missed.iter().any(|(_, job, ..)| job == n)) {
                let hold = Hold {
                    job: name_of(&node.jobs[n]),
                    parent: (n < 2).then(|| Name::parse("g").unwrap()),
                    seq: seen,
                };
                let held = node.horizon.repair(Repairing::Hold(hold));
                assert!(!held.concerns([&topic(n)].into_iter()));
            }
            let released = node.horizon.repair(Repairing::ReleaseAll);
            assert!(released.concerns([].into_iter()));
        }
    }

    fn release(&mut self, at: usize) {
        if self.nodes[at].away {
            return;
        }
        for update in std::mem::take(&mut self.nodes[at].missed) {
            self.take_in(at, update);
        }
        let node = &mut self.nodes[at];
        for n in 0..JOBS {
            let job = name_of(&node.jobs[n]);
            drop(node.horizon.repair(Repairing::Release(job)));
        }
        let released = self.nodes[at].horizon.repair(Repairing::ReleaseAll);
        assert!(released.concerns([].into_iter()));
    }

    fn take(&mut self) {
        let position = self.watcher.position();
        let ceiling = self.watcher.ceiling(&self.nodes[self.at].horizon);
        let Some(taken) = self.watcher.next(self.now, ceiling, &BOUNDS) else {
            return self.settle();
        };
        assert!(
            taken.position >= position,
            "promise 7: a cursor never falls"
        );
        let publication = match &taken.telling {
            Telling::Gap { job, .. } => {
                let jobs = &self.truth.jobs;
                let n = jobs.iter().position(|each| each.id == *job).unwrap();
                self.gaps[n] = Some(self.seq);
                return;
            }
            Telling::Publication(publication) => publication,
        };
        let n = usize::try_from(publication.key.0).unwrap();
        // A snapshot tells again what was told under another topic, or before the topic was left; and what it told
        // of the time before, only the node knows that gave it.
        let in_snapshot = |(topic_n, began): (&usize, &Seq)| {
            covers(&topic(*topic_n), n) && publication.seq <= *began
        };
        let in_snapshot = self.began.iter().any(in_snapshot) || publication.seq <= self.unsure;
        let repeats = taken.replayed && (in_snapshot || self.snapshots.contains(&taken.via));
        // Who begins anew on a node that has heard less goes with it.
        let mut anew = self
            .snapshots
            .iter()
            .filter_map(|id| self.watcher.subscription(*id));
        let anew = anew.any(|each| covers(&each.topic, n));
        let last = match in_snapshot || anew {
            true => self.here[n],
            false => self.last[n],
        };
        if !repeats {
            assert!(
                publication.seq > last,
                "promise 2: {publication:?} came after {last}"
            );
        }
        self.last[n] = self.last[n].max(publication.seq);
        self.here[n] = self.here[n].max(publication.seq);
        self.arrived.insert(publication.seq);
        self.cursor = Some(self.watcher.cursor(EPOCH));
    }

    fn unsubscribe(&mut self, n: usize) {
        let Some(id) = self.watcher.subscription_to(&topic(n)).map(|each| each.id) else {
            return;
        };
        self.watcher.leave(id);
        self.watched.remove(&n);
        self.pending.retain(|(each, _)| *each != n);
        // What was told under the topic that was left may be told again under another: that one had shed it, and
        // nothing remembers any more that the client has it.
        for job in (0..JOBS).filter(|job| covers(&topic(n), *job)) {
            self.last[job] = Seq::ZERO;
            self.here[job] = Seq::ZERO;
        }
    }

    fn subscribe(&mut self, n: usize) {
        let horizon = &self.nodes[self.at].horizon;
        let joins = self.watcher.watch(vec![topic(n)], None, horizon, &BOUNDS);
        for join in joins {
            if self.is_ready(n, &join) {
                self.join(n, join);
            } else {
                self.pending.push((n, join));
            }
        }
    }

    /// Whether the node answers a join by now, as the hub has it: it waits until the node has heard as much as the
    /// cursor says, and until each job that the topic shows is repaired.
    fn is_ready(&self, n: usize, join: &Join) -> bool {
        let (topic, node) = (topic(n), &self.nodes[self.at]);
        let since = join.cursor.as_ref().and_then(|it| it.since(&topic));
        let is_repaired = || !node.missed.iter().any(|(_, job, ..)| covers(&topic, *job));
        since.is_none_or(|since| since <= node.high()) && (node.away || is_repaired())
    }

    /// What the hub does for a join.
    fn join(&mut self, n: usize, join: Join) {
        let (topic, id, node) = (topic(n), join.subscription, &self.nodes[self.at]);
        let members = (0..JOBS).filter(|job| covers(&topic, *job));
        let jobs: Vec<&Job> = members.clone().map(|job| &node.jobs[job]).collect();
        let since = join.cursor.and_then(|cursor| cursor.since(&topic));
        let all_known = |since: &Seq| jobs.iter().all(|job| *since >= job.known_from());
        let recovered = since.filter(all_known);
        let mut publications: Vec<_> = jobs
            .iter()
            .flat_map(|job| job.replay(recovered).publications)
            .collect();
        publications.sort_by_key(|each| each.seq);
        let mut left_out = Vec::new();
        if recovered.is_none() {
            if since.is_none() {
                self.watched.insert(n, node.high());
            }
            // Whoever replaces what it shows by what comes shows nothing that is not there any more.
            let gone = jobs.iter().flat_map(|job| job.publications());
            let gone = gone.filter(|each| each.is_removal());
            self.arrived.extend(gone.map(|each| each.seq));
            self.began.insert(n, self.seq);
            if node.high() < self.seq {
                self.unsure = self.seq;
            }
            self.snapshots.push(id);
            for job in jobs.iter().filter(|_| since.is_some()) {
                if let Some(seq) = job.left_out_since(since.unwrap_or_default()) {
                    let (key, job) = (job.key, job.id.clone());
                    left_out.push(LeftOut { key, job, seq });
                    let n = usize::try_from(key.0).unwrap();
                    self.left_out.push((n, seq));
                }
            }
        }
        let joined = Joined {
            subscription: id,
            topic,
            owner: None,
            key: None,
            parent: None,
            several: None,
            since,
            recovered: recovered.is_some(),
            publications,
            left_out,
            high: node.high(),
        };
        let wall = WallTime::default();
        let begun = self
            .watcher
            .begin(joined, &Everything, &node.horizon, self.now, wall, &OWED);
        let Beginning::Live(begun) = begun else {
            panic!("{begun:?}");
        };
        // The answer itself carries a cursor.
        self.cursor = Some(begun.cursor);
    }

    fn cut(&mut self, node: usize, rotation: usize, answered: usize) {
        self.watcher = Watcher::new(None, self.now, &BOUNDS);
        self.at = node;
        self.snapshots.clear();
        self.here.fill(Seq::ZERO);
        for (job, seq) in self.left_out.drain(..) {
            self.gaps[job] = self.gaps[job].max(Some(seq));
        }
        let mut watched: Vec<usize> = self.watched.keys().copied().collect();
        if !watched.is_empty() {
            let by = rotation % watched.len();
            watched.rotate_left(by);
        }
        let topics = watched.iter().map(|n| topic(*n)).collect();
        let (cursor, horizon) = (self.cursor.as_ref(), &self.nodes[node].horizon);
        let joins = self.watcher.watch(topics, cursor, horizon, &BOUNDS);
        self.pending = watched.into_iter().zip(joins).collect();
        for _ in 0..answered.min(self.pending.len()) {
            self.answer();
        }
    }

    /// Answers the first of the pending topics that this node can speak of: where another node was ahead, or a job is
    /// being repaired, that is waited for.
    fn answer(&mut self) {
        let mut pending = self.pending.iter();
        if let Some(first) = pending.position(|(n, join)| self.is_ready(*n, join)) {
            let (n, join) = self.pending.remove(first);
            self.join(n, join);
        }
    }

    /// Lets everything go out, and holds what arrived against what was published.
    fn finish(&mut self) {
        for node in 0..NODES {
            self.back(node);
            self.release(node);
        }
        while !self.pending.is_empty() {
            self.answer();
        }
        for _ in 0..200 {
            self.now = self.now + BOUNDS.outbox.interval;
            self.take();
        }
        assert!(!self.watcher.is_owed());
        let watched = std::mem::take(&mut self.watched);
        for (n, from) in watched {
            let topic = topic(n);
            let owed = |job: &usize| covers(&topic, *job);
            for (seq, job, kind) in &self.published {
                let latest = self.truth.jobs[*job]
                    .state()
                    .is_some_and(|state| state.seq == *seq);
                let lost = *kind != Kind::State && *seq > from;
                let announced = self.gaps[*job].is_some_and(|to| to >= *seq);
                if owed(job) && (latest || lost) && !announced {
                    assert!(
                        self.arrived.contains(seq),
                        "{kind:?} {seq} of j{job} never came to {topic}"
                    );
                }
                if owed(job) && latest {
                    assert!(self.arrived.contains(seq), "promise 3: the latest arrives");
                }
            }
        }
    }
}

/// Snapshots here are never larger than what may wait.
const OWED: WatcherBounds = WatcherBounds {
    outbox: OutboxBounds {
        jobs: 1000,
        ..BOUNDS.outbox
    },
    ..BOUNDS
};

fn cut(node: usize, answered: usize) -> Step {
    Step::Cut {
        node,
        rotation: 0,
        answered,
    }
}

/// Not everything could be told to a client that came back, and it was cut again before it was told of the gap.
#[test]
fn regression_who_is_cut_before_the_gap_has_heard_that_it_did_not_recover() {
    use Step::{Ending, Milestone, NextAttempt, State, Subscribe, Take};
    let earlier = [Milestone(2), Ending(2), NextAttempt(2)];
    let then = [
        Milestone(2),
        Milestone(2),
        Subscribe(0),
        Milestone(2),
        Take(0, 1),
        cut(0, usize::MAX),
        Ending(1),
        State(0),
        cut(0, usize::MAX),
        cut(0, usize::MAX),
    ];
    play(earlier.iter().chain(&earlier).chain(&then).cloned());
}

/// The node it comes to has not heard of an ending yet that another topic of its cursor has told.
#[test]
fn regression_what_another_topic_has_told_is_not_told_again_by_a_node_that_is_behind() {
    use Step::{Away, Ending, State, Subscribe, Take};
    play([
        Subscribe(1),
        Subscribe(2),
        Away(1),
        State(0),
        cut(0, 1),
        Ending(1),
        Take(0, 1),
        cut(1, 2),
    ]);
}

/// A group began with a snapshot that a milestone was no part of any more; the node it comes to has not heard of
/// the state that followed the milestone.
#[test]
fn regression_a_snapshot_of_a_node_that_is_ahead_is_not_taken_for_what_this_one_knows() {
    use Step::{Away, Ending, Milestone, State, Subscribe};
    play([
        Milestone(0),
        Away(0),
        Ending(1),
        cut(1, 0),
        State(0),
        Subscribe(4),
        cut(0, 1),
    ]);
}

/// A watcher of nothing stands where the node does, while a job is held that it asks for then.
#[test]
fn regression_a_topic_of_a_job_under_repair_begins_when_the_job_is_repaired() {
    use Step::{Away, Back, State, Subscribe, Take, Unsubscribe};
    play([
        Away(1),
        State(1),
        Unsubscribe(3),
        cut(1, 0),
        Back(1),
        State(0),
        Subscribe(1),
        Take(0, 1),
        State(2),
        cut(0, 0),
    ]);
}

/// A milestone was shed under one topic before another of the same job began, and the first was left before the
/// gap was sent.
#[test]
fn regression_a_gap_is_owed_to_a_topic_that_begins_while_it_waits() {
    use Step::{Answer, Cut, Milestone, State, Subscribe, Unsubscribe};
    let (node, rotation, answered) = (0, 1, 1);
    let again = Cut {
        node,
        rotation,
        answered,
    };
    play([
        Subscribe(2),
        again,
        Milestone(2),
        Milestone(0),
        Milestone(0),
        Milestone(0),
        Answer,
        Unsubscribe(3),
        State(0),
    ]);
}

fn play(steps: impl IntoIterator<Item = Step>) {
    let mut world = World::new();
    for job in 0..JOBS {
        // Only a state says which group a job belongs to.
        world.run(Step::State(job));
    }
    world.subscribe(JOBS);
    for step in steps {
        world.run(step);
    }
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_client_that_is_cut_and_resumes_misses_nothing_and_hears_nothing_twice(
        steps in proptest::collection::vec(step(), 0..80)
    ) {
        play(steps);
    }
}
