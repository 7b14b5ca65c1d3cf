//! A client that watches jobs through several topics, is cut at any point and comes back by cursor.
//!
//! The model keeps its own account of what was published and what arrived; jobs, session, cursor and
//! outbox are the real ones, put together as a shard does it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cursor::{Cursor, Print, Told};
use crate::job::{Job, JobBounds, Place, Subject};
use crate::session::{Session, SessionBounds};
use crate::topic::Topic;

const JOBS: usize = 3;
const EPOCH: u64 = 7;
const HISTORY: usize = 6;
const SESSION: SessionBounds = SessionBounds {
    subscriptions: 10,
    auth_timeout: Duration::from_secs(10),
    ping_interval: Duration::from_secs(25),
    dead_after: Duration::from_secs(60),
};

#[derive(Debug, Clone)]
enum Step {
    State(usize),
    Milestone(usize),
    Ending(usize),
    NextAttempt(usize),
    /// Time passes, and so many things are taken.
    Take(u64, usize),
    /// A repair holds the connection back to where the bus is now.
    Hold,
    Release,
    Subscribe(usize),
    Unsubscribe(usize),
    /// The connection is cut; the client comes back by cursor, naming its topics in another order.
    Cut(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..JOBS).prop_map(Step::State),
        4 => (0..JOBS).prop_map(Step::Milestone),
        2 => (0..JOBS).prop_map(Step::Ending),
        2 => (0..JOBS).prop_map(Step::NextAttempt),
        6 => (0u64..150, 0usize..4).prop_map(|(ms, n)| Step::Take(ms, n)),
        1 => Just(Step::Hold),
        2 => Just(Step::Release),
        2 => (0..JOBS + 2).prop_map(Step::Subscribe),
        1 => (0..JOBS + 2).prop_map(Step::Unsubscribe),
        2 => (0usize..4).prop_map(Step::Cut),
    ]
}

/// Three jobs of one user; the first two are one group.
fn topic(n: usize) -> Topic {
    let text = match n {
        0..JOBS => format!("job:j{n}"),
        JOBS => "user:alice".to_owned(),
        _ => "group:g".to_owned(),
    };
    Topic::parse(&text).unwrap()
}

fn covers(topic: &Topic, job: usize) -> bool {
    match topic {
        Topic::Job(id) => id.as_str() == format!("j{job}"),
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
}

struct World {
    now: Moment,
    seq: u64,
    jobs: Vec<Job>,
    attempts: Vec<u32>,
    published: Vec<(u64, usize, Kind)>,
    outbox: Outbox,
    session: Session,
    carried: Vec<Told>,
    ceiling: u64,
    cursor: Option<Cursor>,
    /// Topics the client watches, and from which number on it must have everything.
    watched: BTreeMap<usize, u64>,
    arrived: BTreeSet<u64>,
    /// The last number that arrived of each job, but for what a snapshot told again.
    last: Vec<u64>,
    /// Up to where milestones of each job were announced as lost, if they were.
    gaps: Vec<Option<u64>>,
    /// Jobs that the answers to this connection left something out of, and up to where: `recovered: false` has
    /// said so, also to who is cut before the gap itself is told.
    left_out: Vec<(usize, u64)>,
    /// Subscriptions that asked for a snapshot, which may repeat what was told under another topic.
    snapshots: Vec<SubscriptionId>,
}

impl World {
    fn new() -> Self {
        let job = |n: usize| {
            let id = Name::parse(&format!("j{n}")).unwrap();
            Job::new(JobKey(n as u64), id, Name::parse("alice").unwrap(), 0)
        };
        Self {
            now: START,
            seq: 0,
            jobs: (0..JOBS).map(job).collect(),
            attempts: vec![1; JOBS],
            published: Vec::new(),
            outbox: Outbox::default(),
            session: Session::open(None, START, &SESSION),
            carried: Vec::new(),
            ceiling: u64::MAX,
            cursor: None,
            watched: BTreeMap::new(),
            arrived: BTreeSet::new(),
            last: vec![0; JOBS],
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
            Step::Milestone(job) => self.publish(job, Kind::Milestone, ""),
            Step::Take(ms, count) => {
                self.now = self.now + Duration::from_millis(ms);
                (0..count).for_each(|_| self.take());
            }
            Step::Hold => self.ceiling = self.ceiling.min(self.seq),
            Step::Release => self.ceiling = u64::MAX,
            Step::Subscribe(n) => self.subscribe(n, None, false),
            Step::Unsubscribe(n) => self.unsubscribe(n),
            Step::Cut(rotation) => self.cut(rotation),
        }
        let counted = self.outbox.items.iter().filter(|item| item.counts());
        assert!(counted.count() <= BOUNDS.milestones, "promise 6");
        let seqs = self.outbox.items.iter().map(|item| item.seq);
        assert!(seqs.is_sorted(), "promise 2");
    }

    fn publish(&mut self, n: usize, kind: Kind, status: &str) {
        self.seq += 1;
        let name = Name::parse("m").unwrap();
        let (seq, attempt) = (self.seq, self.attempts[n]);
        let group = if n < 2 { r#","parent_id":"g""# } else { "" };
        let (subject, payload) = match kind {
            Kind::Milestone => (Subject::Milestone(&name), format!("{seq}")),
            Kind::State | Kind::Ending => (
                Subject::State,
                format!(r#"{{"status":"{status}","attempt":{attempt},"message":"{seq}"{group}}}"#),
            ),
        };
        let place = Place {
            epoch: EPOCH,
            seq,
            received_at: self.now,
            stored_at: WallTime::default(),
        };
        let bounds = JobBounds {
            history: HISTORY,
            update_bytes: 1000,
        };
        let applied = self.jobs[n].apply(subject, &payload.into(), place, &bounds);
        if let Ok(publication) = applied {
            self.published.push((seq, n, kind));
            let topics: Vec<Topic> = publication.topics().collect();
            for topic in topics {
                let live = self.session.subscription_to(&topic).map(|each| each.id);
                if let Some(via) = live {
                    let offered = self.outbox.offer(&publication, via, self.now, &BOUNDS);
                    if offered == Offered::Overflow {
                        return self.cut(0);
                    }
                }
            }
        }
        self.outbox.advance(self.seq.min(self.ceiling));
    }

    fn cursor(&self) -> Cursor {
        let place = (EPOCH, self.outbox.position());
        let behind = |id| self.outbox.behind(id);
        self.session.cursor(place, behind, &self.carried)
    }

    fn take(&mut self) {
        let position = self.outbox.position();
        let Some(taken) = self.outbox.take(self.now, self.ceiling, &BOUNDS) else {
            return self.outbox.advance(self.seq.min(self.ceiling));
        };
        assert!(
            taken.position >= position,
            "promise 7: a cursor never falls"
        );
        let publication = match &taken.telling {
            Telling::Gap { job, .. } => {
                let n = self.jobs.iter().position(|each| each.id == *job).unwrap();
                self.gaps[n] = Some(self.seq);
                return;
            }
            Telling::Publication(publication) => publication,
        };
        let n = usize::try_from(publication.key.0).unwrap();
        // A snapshot tells again what was told under another topic, or before the topic was left.
        let in_snapshot = |(topic_n, from): (&usize, &u64)| {
            covers(&topic(*topic_n), n) && publication.seq <= *from
        };
        let repeats = self.snapshots.contains(&taken.via) || self.watched.iter().any(in_snapshot);
        if !(taken.replayed && repeats) {
            assert!(
                publication.seq > self.last[n],
                "promise 2: {publication:?} came after {}",
                self.last[n]
            );
        }
        self.last[n] = self.last[n].max(publication.seq);
        self.arrived.insert(publication.seq);
        self.cursor = Some(self.cursor());
    }

    fn unsubscribe(&mut self, n: usize) {
        let Some(id) = self.session.subscription_to(&topic(n)).map(|each| each.id) else {
            return;
        };
        self.session.leave(id);
        self.outbox.forget(id);
        self.watched.remove(&n);
        // What was told under the topic that was left may be told again under another: that one had shed it, and
        // nothing remembers any more that the client has it.
        for job in (0..JOBS).filter(|job| covers(&topic(n), *job)) {
            self.last[job] = 0;
        }
    }

    /// What the hub and the shard do for a join.
    fn subscribe(&mut self, n: usize, cursor: Option<&Cursor>, together: bool) {
        let topic = topic(n);
        let Ok(id) = self.session.subscribe(topic.clone(), &SESSION) else {
            return;
        };
        let members = (0..JOBS).filter(|job| covers(&topic, *job));
        let jobs: Vec<&Job> = members.clone().map(|job| &self.jobs[job]).collect();
        let since = cursor.and_then(|cursor| cursor.since(&topic));
        let all_known = |since: &u64| jobs.iter().all(|job| *since >= job.known_from());
        let recovered = since.filter(all_known);
        let mut publications: Vec<_> = jobs
            .iter()
            .flat_map(|job| job.replay(recovered).publications)
            .collect();
        publications.sort_by_key(|each| each.seq);
        let print = Print::of(&topic);
        let carried = self.carried.iter().find(|told| told.print == print);
        let complete_from = match recovered {
            Some(since) => carried.map_or(since, |told| told.from),
            None => self.seq,
        };
        self.session
            .joined(id, recovered.unwrap_or(0), complete_from);
        if let Some(since) = recovered {
            self.outbox.resume(since);
        } else {
            if since.is_none() {
                self.watched.insert(n, self.seq);
            }
            self.snapshots.push(id);
            for job in jobs.iter().filter(|_| since.is_some()) {
                if let Some(seq) = job.left_out_since(since.unwrap_or(0)) {
                    let who = (job.key, job.id.clone());
                    let (now, why) = (self.now, GapReason::History);
                    self.outbox.announce_gap(who, seq, why, id, now);
                    let key = usize::try_from(job.key.0).unwrap();
                    self.left_out.push((key, seq));
                }
            }
        }
        let goes_on = recovered.is_some() || (together && cursor.is_none());
        let all = publications.clone();
        for publication in publications {
            if goes_on && self.is_told(id, &publication, &all) {
                self.outbox.share(publication.seq, id);
            } else {
                self.outbox.owe(&publication, id, self.now, &OWED);
            }
        }
        self.outbox.advance(self.seq.min(self.ceiling));
        self.carried.retain(|told| told.print != Print::of(&topic));
        // The answer itself carries a cursor.
        self.cursor = Some(self.cursor());
    }

    fn is_told(
        &self,
        via: SubscriptionId,
        publication: &Publication,
        all: &[Arc<Publication>],
    ) -> bool {
        let in_snapshot = !all.iter().any(|newer| {
            newer.key == publication.key && newer.is_state() && newer.seq > publication.seq
        });
        let told = |from: u64| in_snapshot || publication.seq > from;
        publication.topics().any(|topic| {
            let live = self.session.subscription_to(&topic);
            let print = Print::of(&topic);
            let carried =
                |each: &Told| each.print == print && each.seq >= publication.seq && told(each.from);
            live.is_some_and(|other| other.id != via && other.live && told(other.complete_from))
                || self.carried.iter().any(carried)
        })
    }

    fn cut(&mut self, rotation: usize) {
        self.outbox = Outbox::default();
        self.session = Session::open(None, self.now, &SESSION);
        self.ceiling = u64::MAX;
        self.snapshots.clear();
        for (job, seq) in self.left_out.drain(..) {
            self.gaps[job] = self.gaps[job].max(Some(seq));
        }
        let cursor = self.cursor.clone();
        let told = cursor.iter().flat_map(Cursor::told);
        self.carried = told.copied().collect();
        let mut topics: Vec<usize> = self.watched.keys().copied().collect();
        if !topics.is_empty() {
            let by = rotation % topics.len();
            topics.rotate_left(by);
        }
        for n in topics {
            self.subscribe(n, cursor.as_ref(), true);
        }
        self.carried.clear();
    }

    /// Lets everything go out, and holds what arrived against what was published.
    fn finish(&mut self) {
        self.ceiling = u64::MAX;
        for _ in 0..200 {
            self.now = self.now + BOUNDS.interval;
            self.take();
        }
        assert!(self.outbox.is_empty());
        let watched = std::mem::take(&mut self.watched);
        for (n, from) in watched {
            let topic = topic(n);
            let owed = |job: &usize| covers(&topic, *job);
            for (seq, job, kind) in &self.published {
                let latest = self.jobs[*job]
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
const OWED: OutboxBounds = OutboxBounds {
    jobs: 1000,
    ..BOUNDS
};

/// Not everything could be told to a client that came back, and it was cut again before it was told of the gap.
#[test]
fn regression_who_is_cut_before_the_gap_has_heard_that_it_did_not_recover() {
    use Step::{Cut, Ending, Milestone, NextAttempt, State, Subscribe, Take};
    let earlier = [Milestone(2), Ending(2), NextAttempt(2)];
    let then = [
        Milestone(2),
        Milestone(2),
        Subscribe(0),
        Milestone(2),
        Take(0, 1),
        Cut(0),
        Ending(1),
        State(0),
        Cut(0),
        Cut(0),
    ];
    play(earlier.iter().chain(&earlier).chain(&then).cloned());
}

fn play(steps: impl IntoIterator<Item = Step>) {
    let mut world = World::new();
    for job in 0..JOBS {
        // Only a state says which group a job belongs to.
        world.run(Step::State(job));
    }
    world.subscribe(JOBS, None, false);
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
