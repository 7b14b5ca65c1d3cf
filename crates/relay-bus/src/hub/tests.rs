//! The hub in front of a scripted stream, case by case; what may come together by chance is the model's.

mod endings;
mod late;
mod model;
mod owners;
mod poison;
mod publish;
mod refused;
mod removal;
mod repairs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use relay_core::cursor::{Cursor, Print, Told};
use relay_core::document::Status;
use relay_core::id::{JobId, Name, Named, Owner};
use relay_core::job::Again;
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Position};
use relay_core::publication::Body;
use relay_core::topic::Topic;
use relay_core::watcher::outbox::SubscriptionId;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::load::Loaded;
use super::*;
use crate::hub::table::{Found, LoadKey};
use crate::inbox::ConnectionId;
use crate::seam::{Held, History, Incoming, Intake, Outgoing, StoreError, Unreachable, What};
use relay_core::watcher::beginning::Joined;
use relay_core::watcher::holds::Repairing;

const EPOCH: Epoch = Epoch::new(1);
const SUBSCRIPTION: SubscriptionId = SubscriptionId(0);

/// A way to a stream that keeps states, milestones and rolled-up endings, and answers when it likes.
#[derive(Debug, Default)]
struct Stream {
    inner: Arc<Mutex<Stored>>,
    /// Whether questions that come this way are not answered at all.
    away: AtomicBool,
}

/// Messages of a subject that a stream keeps.
#[derive(Debug, Clone, Copy, Default)]
struct Kept(Option<usize>);

#[derive(Debug, Default)]
struct Stored {
    messages: Vec<Incoming>,
    high: Seq,
    random: Option<fastrand::Rng>,
    kept: Kept,
    /// What relays have published.
    published: Vec<Incoming>,
}

impl Stream {
    /// Another way to the same stream.
    fn another(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            away: AtomicBool::new(false),
        }
    }

    fn append(&self, job: &str, what: What, payload: String, ending: bool) -> Incoming {
        let mut inner = self.inner.lock();
        inner.high = inner.high.next();
        let job = self::job(job);
        let same = |each: &&Incoming| each.job == job && each.what == what;
        let previous = inner.messages.iter().rev().find(same).map(|it| it.seq);
        let incoming = Incoming {
            job: job.clone(),
            what: what.clone(),
            payload: Bytes::from(payload),
            seq: inner.high,
            previous: Some(previous.unwrap_or_default()),
            stored_at: Clock::start().wall(),
            first: None,
        };
        if ending {
            inner
                .messages
                .retain(|each| !(each.job == job && each.what == what));
        }
        inner.messages.push(incoming.clone());
        inner.discard(&job, &what);
        incoming
    }

    /// Only so many messages of a subject are kept.
    fn keeping(kept: usize) -> Arc<Self> {
        let stream = Self::default();
        stream.inner.lock().kept = Kept(Some(kept));
        Arc::new(stream)
    }

    /// The answer to one question: a little late, sometimes refused, as of the moment it is given.
    async fn answer<T: Send>(
        &self,
        read: impl FnOnce(&Stored) -> T + Send,
    ) -> Result<T, StoreError> {
        let (late, refused) = {
            let mut inner = self.inner.lock();
            let random = inner
                .random
                .get_or_insert_with(|| fastrand::Rng::with_seed(1));
            (random.u64(0..40), random.u8(0..5) == 0)
        };
        sleep(Duration::from_millis(late)).await;
        let answer = {
            let inner = self.inner.lock();
            let away = self.away.load(Ordering::Relaxed);
            (!refused && !away).then(|| read(&inner))
        };
        // On the way back.
        sleep(Duration::from_millis(late / 2)).await;
        answer.ok_or_else(|| StoreError::from(Unreachable::NotYet))
    }
}

impl Stored {
    fn discard(&mut self, job: &JobName, what: &What) {
        let Kept(Some(kept)) = self.kept else {
            return;
        };
        let of_subject = |each: &Incoming| each.job == *job && each.what == *what;
        let count = self.messages.iter().filter(|it| of_subject(it)).count();
        let mut surplus = count.saturating_sub(kept);
        self.messages.retain(|each| {
            let goes = surplus > 0 && of_subject(each);
            surplus -= usize::from(goes);
            !goes
        });
    }

    fn publish(&mut self, outgoing: Outgoing) -> Result<Seq, StoreError> {
        let of_subject = |it: &&Incoming| it.job == outgoing.job && it.what == outgoing.what;
        let last = self.messages.iter().rev().find(of_subject).map(|it| it.seq);
        if outgoing.expected_last.is_some_and(|it| Some(it) != last) {
            return Err(StoreError::Conflict);
        }
        self.high = self.high.next();
        let incoming = Incoming {
            job: outgoing.job,
            what: outgoing.what,
            payload: outgoing.payload,
            seq: self.high,
            previous: Some(Seq::ZERO),
            stored_at: Clock::start().wall(),
            first: outgoing.first,
        };
        let stays = |it: &Incoming| it.job != incoming.job || it.what != incoming.what;
        self.messages.retain(stays);
        self.messages.push(incoming.clone());
        self.published.push(incoming);
        Ok(self.high)
    }
}

impl Store for Stream {
    fn load_owners(
        &self,
        id: JobId,
        _at_least: Seq,
    ) -> BoxFuture<'_, Result<(Vec<Owner>, Seq), StoreError>> {
        self.answer(move |stored| {
            let called = stored.messages.iter().filter(|each| each.job.id == id);
            let owners: BTreeSet<Owner> = called.map(|each| each.job.owner.clone()).collect();
            (owners.into_iter().collect(), stored.high)
        })
        .boxed()
    }

    fn load_job(&self, job: JobName, _at_least: Seq) -> BoxFuture<'_, Result<History, StoreError>> {
        self.answer(move |stored| {
            let mut last: BTreeMap<String, Seq> = BTreeMap::new();
            let of_job = stored.messages.iter().filter(|each| each.job == job);
            let within = of_job.cloned().map(|mut each| {
                let subject = last.entry(format!("{:?}", each.what)).or_default();
                each.previous = Some(std::mem::replace(subject, each.seq));
                each
            });
            History {
                updates: within.collect(),
                up_to: stored.high,
                left_out_to: Seq::ZERO,
            }
        })
        .boxed()
    }

    fn load_last_states(
        &self,
        of: Option<Owner>,
        _at_least: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Incoming>, StoreError>> {
        self.answer(move |stored| {
            let mut last: BTreeMap<&JobName, Incoming> = BTreeMap::new();
            for each in &stored.messages {
                if each.what == What::State && of.as_ref().is_none_or(|of| *of == each.job.owner) {
                    let mut each_last = each.clone();
                    each_last.previous = Some(Seq::ZERO).filter(|_| !last.contains_key(&each.job));
                    last.insert(&each.job, each_last);
                }
            }
            let mut last: Vec<Incoming> = last.into_values().collect();
            last.sort_by_key(|each| each.seq);
            last.truncate(limit);
            last
        })
        .boxed()
    }

    fn changed(&self, jobs: Vec<Held>) -> BoxFuture<'_, Result<Vec<Named>, StoreError>> {
        self.answer(move |stored| {
            let newest = |job: &Named| {
                let of_job = stored.messages.iter().filter(|each| {
                    let is_owner = |it: &Owner| *it == each.job.owner;
                    each.job.id == job.id && job.owner.as_ref().is_none_or(is_owner)
                });
                of_job.map(|each| each.seq).max().unwrap_or_default()
            };
            let newer = jobs.into_iter().filter(|held| newest(&held.job) > held.seq);
            newer.map(|held| held.job).collect()
        })
        .boxed()
    }

    fn kept_per_subject(&self) -> Option<u64> {
        self.inner.lock().kept.0.map(|kept| kept as u64)
    }

    fn publish(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<Seq, StoreError>> {
        async {
            sleep(Duration::from_millis(1)).await;
            let mut inner = self.inner.lock();
            match inner.kept {
                Kept(Some(_)) => inner.publish(outgoing),
                Kept(None) => Err(StoreError::from(Unreachable::NotYet)),
            }
        }
        .boxed()
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn at(seq: u64) -> Position {
    Position::new(EPOCH, Seq::new(seq))
}

fn owner() -> Owner {
    name("alice")
}

/// Alice's job, or that of `<owner>/<id>`.
fn job(text: &str) -> JobName {
    let named = Named::parse(text).unwrap();
    JobName::new(named.owner.unwrap_or_else(owner), named.id)
}

fn settings() -> HubSettings {
    HubSettings {
        shards: 1,
        per_job: 1000,
        max_jobs: 100,
        max_bytes: 1 << 20,
        kinds: Arc::default(),
        update_bytes: 1 << 16,
        subject_stem: "progress.".to_owned(),
        terminal_ttl: Duration::from_secs(3600),
        idle_ttl: Duration::from_secs(3600),
        resync_interval: Duration::from_secs(20),
    }
}

/// An owner's jobs are listed while one of them is being fetched: the list is newer than what is fetched, and
/// says nothing of what came between.
#[test]
fn regression_a_list_of_last_states_does_not_stand_in_front_of_a_repair() {
    let stream = Arc::new(Stream::default());
    let append = |status: &str| {
        let state = format!(r#"{{"status":"{status}"}}"#);
        stream.append("m1", What::State, state, false)
    };
    let first = append("queued");
    let hub = Hub::new(
        settings(),
        Backing::Stored(stream.clone()),
        Clock::start(),
        EPOCH,
    );
    hub.live(EPOCH, Seq::new(1));
    for (connection, topic) in [(1, "job:alice/m1"), (2, "user:alice")] {
        hub.join(JoinRequest {
            shard: 0,
            connection: ConnectionId(connection),
            subscription: SUBSCRIPTION,
            topic: Topic::parse(topic).unwrap(),
            own: None,
            cursor: None,
            again: Again::Nothing,
        });
    }
    let (second, third) = (append("running"), append("completed"));
    hub.ingest(&mut vec![second, third.clone()]);
    let life = hub.table.lock().life();
    let listed = LoadKey::Owner(owner());
    hub.finish(Loaded::Found(listed, life, Ok(Found::States(vec![third]))));
    // As of before the others came.
    let history = History {
        up_to: first.seq,
        updates: vec![first],
        left_out_to: Seq::ZERO,
    };
    let rebuild = hub.rebuild(&job("m1"));
    let rebuilt = rebuild.read(history).now_or_never().unwrap();
    let fetched = LoadKey::Job(job("m1"));
    hub.finish(Loaded::Found(fetched, life, Ok(Found::Job(rebuilt.into()))));
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let answers = messages.iter().filter_map(|message| match message {
        Message::Joined(connection, joined) => Some((connection.0, seqs(joined))),
        _ => None,
    });
    assert_eq!(
        answers.collect::<BTreeMap<_, _>>(),
        BTreeMap::from([(1, vec![3]), (2, vec![3])])
    );
}

/// A hub that reads from the first number on, and of an ended job knows only what a list of last states says:
/// nobody watched it.
fn hub_with_an_unread_job() -> (Arc<Hub>, JoinSet<()>) {
    let stream = Arc::new(Stream::default());
    let state = |status: &str| format!(r#"{{"status":"{status}"}}"#);
    stream.append("m1", What::State, state("running"), false);
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, Seq::new(1));
    let clip = What::Milestone(name("clip"));
    let clip = stream.append("m1", clip, "1".to_owned(), false);
    let ending = stream.append("m1", What::State, state("completed"), true);
    hub.ingest(&mut vec![clip, ending]);
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    (hub, tasks)
}

/// What one watcher of `topic` is told first, and whatever the hub hands on beside it.
async fn first_word(hub: &Hub, topic: &str, since: Option<u64>) -> (Vec<u64>, Vec<u64>) {
    let topic = Topic::parse(topic).unwrap();
    hub.join(JoinRequest {
        shard: 0,
        connection: ConnectionId(1),
        subscription: SUBSCRIPTION,
        cursor: since.map(|seq| Cursor::at(at(seq), [&topic])),
        topic,
        own: None,
        again: Again::Nothing,
    });
    sleep(Duration::from_secs(5)).await;
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let (mut first, mut beside) = (Vec::new(), Vec::new());
    for message in &messages {
        match message {
            Message::Joined(_, joined) => first.extend(seqs(joined)),
            Message::Publish(publication) => beside.push(publication.seq.get()),
            _ => {}
        }
    }
    (first, beside)
}

#[tokio::test(start_paused = true)]
async fn regression_a_last_state_alone_does_not_tell_a_cursor_before_it_all_that_was_missed() {
    for topic in ["user:alice", "job:m1"] {
        let (hub, _tasks) = hub_with_an_unread_job();
        let (missed, _) = first_word(&hub, topic, Some(1)).await;
        assert_eq!(missed, [2, 3], "{topic}, promise 4");
    }
}

#[tokio::test(start_paused = true)]
async fn regression_who_began_with_an_ending_is_not_told_later_what_was_before_it() {
    let (hub, _tasks) = hub_with_an_unread_job();
    assert_eq!(
        first_word(&hub, "user:alice", None).await,
        (vec![3], vec![])
    );
    // Somebody who asks for more has the job fetched whole.
    assert_eq!(first_word(&hub, "job:m1", None).await, (vec![3], vec![]));
}

/// A milestone of one job and a state of another are on their way; the store has told the state already.
#[tokio::test(start_paused = true)]
async fn regression_what_the_store_holds_is_told_when_the_bus_has_been_read_that_far() {
    let stream = Arc::new(Stream::default());
    let append = |job: &str, what: What| {
        let payload = match what {
            What::State => r#"{"status":"running"}"#,
            What::Milestone(_) | What::Gone => "1",
        };
        stream.append(job, what, payload.to_owned(), false)
    };
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, Seq::new(0));
    let first = append("m1", What::State);
    hub.ingest(&mut vec![first.clone()]);
    hub.join(JoinRequest {
        shard: 0,
        connection: ConnectionId(1),
        subscription: SUBSCRIPTION,
        topic: Topic::parse("user:alice").unwrap(),
        own: None,
        cursor: None,
        again: Again::Nothing,
    });
    let clip = append("m1", What::Milestone(name("clip")));
    let other = append("m2", What::State);
    let (life, listed) = (hub.table.lock().life(), LoadKey::Owner(owner()));
    let states = Found::States(vec![first, other.clone()]);
    hub.finish(Loaded::Found(listed, life, Ok(states)));
    let answers = || {
        let mut messages = Vec::new();
        hub.inbox(0).drain(&mut messages);
        let joined = messages.iter().filter_map(|message| match message {
            Message::Joined(_, joined) => Some((seqs(joined), joined.high.get())),
            _ => None,
        });
        joined.collect::<Vec<_>>()
    };
    assert_eq!(
        answers(),
        [],
        "a cursor past the state would pass the milestone, promise 7"
    );
    hub.ingest(&mut vec![clip, other]);
    assert_eq!(answers(), [(vec![1, 2, 3], 3)]);
}

/// The reader may have lost what the store holds, and nothing else may come.
#[tokio::test(start_paused = true)]
async fn an_answer_does_not_wait_for_a_reader_that_does_not_come() {
    let stream = Arc::new(Stream::default());
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, Seq::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    let ending = r#"{"status":"completed"}"#.to_owned();
    stream.append("m1", What::State, ending, true);
    let (told, _) = first_word(&hub, "user:alice", None).await;
    assert_eq!(told, [1]);
}

fn hub() -> Arc<Hub> {
    Hub::new(settings(), Backing::Embedded, Clock::start(), EPOCH)
}

fn take(hub: &Hub, job: &str, what: What, payload: &str) {
    let mut table = hub.table.lock();
    let incoming = Incoming {
        job: self::job(job),
        what,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        seq: table.high().next(),
        previous: None,
        stored_at: WallTime::default(),
        first: None,
    };
    hub.take(&mut table, &incoming).unwrap();
}

fn join(hub: &Hub, topic: &str, since: Option<u64>) -> Joined {
    let cursor = since.map(|seq| Cursor::at(at(seq), [&Topic::parse(topic).unwrap()]));
    join_with(hub, topic, cursor, Again::Nothing)
}

fn join_with(hub: &Hub, topic: &str, cursor: Option<Cursor>, again: Again) -> Joined {
    hub.join(JoinRequest {
        shard: 0,
        connection: ConnectionId(1),
        subscription: SUBSCRIPTION,
        topic: Topic::parse(topic).unwrap(),
        own: None,
        cursor,
        again,
    });
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let joined = messages.into_iter().find_map(|message| match message {
        Message::Joined(_, joined) => Some(*joined),
        _ => None,
    });
    joined.unwrap()
}

fn seqs(joined: &Joined) -> Vec<u64> {
    joined
        .publications
        .iter()
        .map(|each| each.seq.get())
        .collect()
}

const RUNNING: &str = r#"{"status":"running","parent_id":"g"}"#;

#[test]
fn regression_a_join_that_did_not_recover_has_every_members_snapshot() {
    let hub = hub();
    take(&hub, "j1", What::State, RUNNING);
    take(&hub, "j2", What::State, RUNNING);
    hub.table
        .lock()
        .get_mut(&job("j2"))
        .unwrap()
        .job
        .as_mut()
        .unwrap()
        .doubt(Seq::new(2));
    let joined = join(&hub, "user:alice", Some(1));
    assert!(!joined.recovered);
    assert_eq!(seqs(&joined), [1, 2], "who replaces what it shows is right");
    let joined = join(&hub, "user:alice", Some(2));
    assert!(joined.recovered);
    assert!(seqs(&joined).is_empty());
}

#[test]
fn who_comes_back_to_where_it_began_gets_the_snapshot_of_then_too() {
    let hub = hub();
    take(&hub, "j1", What::State, RUNNING);
    take(&hub, "j2", What::State, RUNNING);
    let cursor = |topic: &str| Some(Cursor::at(at(2), [&Topic::parse(topic).unwrap()]));
    take(&hub, "j2", What::State, r#"{"status":"completed"}"#);
    for (topic, again, told) in [
        ("user:alice", Again::Snapshot, &[1, 3][..]),
        ("user:alice", Again::Nothing, &[3]),
        ("job:j1", Again::State, &[1]),
        ("job:j1", Again::Nothing, &[]),
    ] {
        let joined = join_with(&hub, topic, cursor(topic), again);
        assert!(joined.recovered);
        assert_eq!(seqs(&joined), told, "{topic}, {again:?}");
    }
}

#[test]
fn regression_who_is_not_told_milestones_that_it_missed_is_told_so() {
    let hub = Hub::new(
        HubSettings {
            per_job: 2,
            ..settings()
        },
        Backing::Embedded,
        Clock::start(),
        EPOCH,
    );
    take(&hub, "j1", What::State, RUNNING);
    for mark in 0..3 {
        take(&hub, "j1", What::Milestone(name("clip")), &mark.to_string());
    }
    take(
        &hub,
        "j1",
        What::State,
        r#"{"status":"running","parent_id":"g","progress":50}"#,
    );
    for topic in ["job:j1", "user:alice", "group:g"] {
        let joined = join(&hub, topic, Some(1));
        assert!(!joined.recovered);
        assert_eq!(seqs(&joined), [5]);
        let left_out: Vec<_> = joined.left_out.iter().map(|each| each.seq.get()).collect();
        assert_eq!(left_out, [4], "promise 5, {topic}");
        let joined = join(&hub, topic, Some(2));
        assert_eq!(seqs(&joined), [3, 4, 5], "{topic}");
        assert!(joined.left_out.is_empty());
        assert!(join(&hub, topic, None).left_out.is_empty());
    }
}

#[test]
fn regression_a_job_that_changes_its_parent_leaves_the_old_group() {
    let hub = hub();
    take(&hub, "j1", What::State, RUNNING);
    let moved = r#"{"status":"running","parent_id":"other"}"#;
    take(&hub, "j1", What::State, moved);
    let table = hub.table.lock();
    let listed = |group: &str| table.index.newest(&Topic::group(job(group))).count();
    assert_eq!((listed("g"), listed("other")), (0, 1));
    drop(table);
    let mut table = hub.table.lock();
    table.forget(&job("j1"));
    assert_eq!(table.index.len(), 0);
}

#[test]
fn regression_core_nats_does_not_claim_to_know_what_passed_while_it_was_away() {
    let stream = Arc::new(Stream::default());
    let hub = Hub::new(settings(), Backing::Passing(stream), Clock::start(), EPOCH);
    hub.live(EPOCH, Seq::new(0));
    take(&hub, "j1", What::State, RUNNING);
    take(&hub, "j2", What::State, RUNNING);
    hub.lost("scripted");
    hub.live(EPOCH, Seq::new(0));
    // Nobody watched it; who comes back was told up to here, and something may have passed since.
    assert!(!join(&hub, "job:j1", Some(1)).recovered);
    assert!(join(&hub, "job:j1", Some(2)).recovered);
}

#[test]
fn what_is_published_is_seen_in_the_answer_or_after_it() {
    let hub = hub();
    assert!(join(&hub, "job:j1", None).publications.is_empty());
    take(&hub, "j1", What::State, RUNNING);
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    assert!(
        matches!(&messages[..], [Message::Publish(it)] if matches!(it.body, Body::State { .. }))
    );
    assert_eq!(seqs(&join(&hub, "job:j1", None)), [1]);
}

/// Until the stream is read nobody knows which life of it an answer is of, though the store may answer.
#[tokio::test(start_paused = true)]
async fn regression_who_asks_before_the_first_epoch_is_answered_in_it() {
    let stream = Arc::new(Stream::default());
    let running = r#"{"status":"running"}"#.to_owned();
    stream.append("j1", What::State, running, false);
    stream.append("j1", What::Milestone(name("clip")), "1".to_owned(), false);
    let hub = Hub::new(settings(), Backing::Stored(stream), Clock::start(), EPOCH);
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    for (connection, topic) in [(1, "job:j1"), (2, "user:alice")] {
        let topic = Topic::parse(topic).unwrap();
        hub.join(JoinRequest {
            shard: 0,
            connection: ConnectionId(connection),
            subscription: SUBSCRIPTION,
            cursor: Some(Cursor::at(
                Position::new(Epoch::new(7), Seq::new(1)),
                [&topic],
            )),
            topic,
            own: None,
            again: Again::Nothing,
        });
    }
    let mut messages = Vec::new();
    sleep(Duration::from_secs(60)).await;
    hub.inbox(0).drain(&mut messages);
    assert!(messages.is_empty(), "{messages:?}");
    hub.live(Epoch::new(7), Seq::new(2));
    sleep(Duration::from_secs(60)).await;
    hub.inbox(0).drain(&mut messages);
    assert!(matches!(messages[0], Message::NewEpoch { first: true }));
    let answers = messages.iter().filter_map(|message| match message {
        Message::Joined(connection, joined) => {
            Some((connection.0, (joined.recovered, seqs(joined))))
        }
        _ => None,
    });
    let missed = (true, vec![2]);
    assert_eq!(
        answers.collect::<BTreeMap<_, _>>(),
        BTreeMap::from([(1, missed.clone()), (2, missed)])
    );
}

/// The store may be away for long, and clients come back again and again meanwhile.
#[test]
fn a_connection_that_has_gone_takes_its_join_along_and_no_other_s() {
    let stream = Arc::new(Stream::default());
    let hub = Hub::new(settings(), Backing::Stored(stream), Clock::start(), EPOCH);
    let cursor = Cursor::at(at(99), [&Topic::parse("job:ahead").unwrap()]);
    for (topic, cursor) in [
        ("job:j1", None),
        ("user:alice", None),
        ("group:g", None),
        ("job:ahead", Some(cursor)),
    ] {
        let topic = Topic::parse(topic).unwrap();
        // Each shard numbers its own connections, so two may have one number.
        let all = [(0, 1), (0, 2), (1, 1)];
        for (shard, connection) in all {
            hub.join(JoinRequest {
                shard,
                connection: ConnectionId(connection),
                subscription: SUBSCRIPTION,
                topic: topic.clone(),
                own: None,
                cursor: cursor.clone(),
                again: Again::Nothing,
            });
        }
        for (shard, connection) in all {
            let withdraw = || hub.withdraw(&topic, shard, ConnectionId(connection), SUBSCRIPTION);
            assert!(withdraw(), "{topic}, {shard}, {connection}");
            assert!(!withdraw(), "{topic}: it is gone already, and no other is");
        }
    }
    let table = hub.table.lock();
    assert_eq!(table.loads.waiting(), 0);
    assert_eq!(table.loads.len(), 3, "one load a key, however many ask");
}

/// How the jobs of a topic stand: queued, running, completed, failed, cancelled.
async fn survey(hub: &Hub, topic: &str) -> ([u32; 5], bool) {
    let survey = hub
        .survey(&Topic::parse(topic).unwrap().of(&owner()))
        .await
        .unwrap();
    (Status::ALL.map(|it| survey.tally.count(it)), survey.stale)
}

#[tokio::test(start_paused = true)]
async fn who_only_counts_is_told_what_the_store_has_and_what_has_come_since() {
    let stream = Arc::new(Stream::default());
    let state = |status: &str| format!(r#"{{"status":"{status}","parent_id":"g"}}"#);
    stream.append("j1", What::State, state("running"), false);
    stream.append("j1", What::Milestone(name("clip")), "1".to_owned(), false);
    stream.append("j1", What::State, state("failed"), true);
    stream.append("j2", What::State, state("queued"), false);
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    hub.live(EPOCH, Seq::new(4));
    while hub.is_stale() {
        sleep(Duration::from_millis(1)).await;
    }
    // Nobody watches: the store is asked, for each of the two once.
    assert_eq!(survey(&hub, "user:alice").await, ([1, 0, 0, 1, 0], false));
    assert_eq!(survey(&hub, "group:g").await, ([1, 0, 0, 1, 0], false));
    assert_eq!(survey(&hub, "user:nobody").await, ([0; 5], false));
    hub.ingest(&mut vec![stream.append(
        "j2",
        What::State,
        state("completed"),
        true,
    )]);
    assert_eq!(survey(&hub, "user:alice").await, ([0, 0, 1, 1, 0], false));
    // What is known is said while the bus is away, and what is not known is not.
    stream.away.store(true, Ordering::Relaxed);
    hub.lost("scripted");
    hub.table().index.doubt_some();
    let asked = Topic::parse("user:bob").unwrap();
    let asked = hub.survey(&asked);
    let waited = tokio::time::timeout(Duration::from_secs(60), asked).await;
    assert!(waited.is_err(), "nobody can say");
    assert!(survey(&hub, "user:alice").await.1, "it may be out of date");
}

/// The store may be away for long, and whoever polls comes back again and again meanwhile.
#[tokio::test(start_paused = true)]
async fn a_survey_is_not_kept_for_somebody_who_has_gone() {
    let stream = Arc::new(Stream::default());
    let hub = Hub::new(settings(), Backing::Stored(stream), Clock::start(), EPOCH);
    let topic = Topic::parse("user:alice").unwrap();
    for _ in 0..10 {
        assert!(hub.survey(&topic).now_or_never().is_none());
    }
    let table = hub.table.lock();
    assert_eq!(table.loads.surveys(), 1);
    assert_eq!(table.loads.len(), 1, "one load, however many ask");
}

#[test]
fn whoever_was_told_a_part_of_a_snapshot_is_told_the_rest_of_it() {
    let settings = HubSettings {
        per_job: 1,
        ..settings()
    };
    let hub = Hub::new(settings, Backing::Embedded, Clock::start(), EPOCH);
    take(&hub, "j1", What::State, RUNNING);
    take(&hub, "j2", What::Milestone(name("m1")), "{}");
    take(&hub, "j2", What::Milestone(name("m2")), "{}");
    take(&hub, "j2", What::State, RUNNING);
    for topic in [format!("user:{}", owner()), format!("group:{}/g", owner())] {
        let whole = join(&hub, &topic, None);
        assert_eq!(seqs(&whole), [1, 4], "{topic}");
        let topic = Topic::parse(&topic).unwrap();
        let part = Told {
            print: Print::of(&topic),
            seq: Seq::new(1),
            from: Seq::new(1),
        };
        let cursor = Some(Cursor::new(at(1), [part]));
        let joined = join_with(&hub, &topic.to_string(), cursor, Again::Nothing);
        assert!(joined.recovered, "it keeps what it has");
        assert_eq!(seqs(&joined), [4], "{topic}");
        assert_eq!(
            joined.left_out.len(),
            1,
            "of the second job milestones are lost"
        );
    }
}
