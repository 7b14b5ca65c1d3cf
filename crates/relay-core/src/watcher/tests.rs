//! A watcher as a shard drives it: commands, answers to joins, publications and time go in, and what comes out is
//! held against what the client was promised (promises 1 to 7).

use super::beginning::{Beginning, Joined, LeftOut, Several};
use super::holds::{Hold, Repairing};
use super::*;
use crate::document::Status;
use crate::frames::Frames;
use crate::id::{Name, Owner};
use crate::moment::WallTime;
use crate::publication::{Body, JobKey};
use crate::tally::Share;
use crate::watcher::session::CloseReason;
use bytes::Bytes;

mod model;

const START: Moment = Moment::from_micros(0);
const BOUNDS: WatcherBounds = WatcherBounds {
    session: SessionBounds {
        subscriptions: 10,
        auth_timeout: Duration::from_secs(10),
        ping_interval: Duration::from_secs(25),
        dead_after: Duration::from_secs(60),
    },
    outbox: OutboxBounds {
        milestones: 100,
        bytes: 100_000,
        jobs: 100,
        interval: Duration::from_millis(100),
    },
    ack_timeout: Duration::from_secs(5),
    endings_within: None,
};

/// A viewer who may see all there is.
pub(crate) struct Everything;

impl Viewer for Everything {
    fn sight(&self, _: &Topic) -> Sight {
        Sight::Yes
    }

    fn may_watch(&self, _: &Topic, _: Option<&Owner>, _: Option<&Name>) -> bool {
        true
    }
}

/// A viewer who may see what is alice's.
struct Alice;

impl Viewer for Alice {
    fn sight(&self, topic: &Topic) -> Sight {
        match topic {
            Topic::User(user) if user.as_str() == "alice" => Sight::Yes,
            Topic::User(_) => Sight::No,
            Topic::Job(_) | Topic::Group(_) => Sight::WhenKnown,
        }
    }

    fn may_watch(&self, _: &Topic, owner: Option<&Owner>, _: Option<&Name>) -> bool {
        owner.is_none_or(|owner| owner.as_str() == "alice")
    }
}

fn after(millis: u64) -> Moment {
    START + Duration::from_millis(millis)
}

fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap()
}

fn update(job: u64, owner: &str, seq: u64, status: Option<Status>) -> Arc<Publication> {
    let body = match status {
        Some(status) => Body::State {
            json: Bytes::from_static(b"{}"),
            status,
            attempt: 1,
            share: Share {
                status,
                progress: 0.0,
                weight: 1.0,
            },
        },
        None => Body::Milestone {
            name: Name::parse("clip").unwrap(),
            data: Bytes::from_static(b"1"),
        },
    };
    Arc::new(Publication {
        seq: Seq::new(seq),
        epoch: Epoch::new(1),
        key: JobKey(job),
        job: Name::parse(&format!("j{job}")).unwrap(),
        owner: Name::parse(owner).unwrap(),
        parent: None,
        body,
        first_at: WallTime::default(),
        received_at: START,
        worker_at: None,
        stored_at: WallTime::default(),
        frames: Frames::default(),
    })
}

/// The same of another job.
trait Elsewhere {
    fn called(self, id: &str) -> Self;
    fn within(self, parent: &str) -> Self;
}

impl Elsewhere for Arc<Publication> {
    fn called(mut self, id: &str) -> Self {
        Arc::get_mut(&mut self).unwrap().job = Name::parse(id).unwrap();
        self
    }

    fn within(mut self, parent: &str) -> Self {
        Arc::get_mut(&mut self).unwrap().parent = Some(Name::parse(parent).unwrap());
        self
    }
}

fn state(seq: u64) -> Arc<Publication> {
    update(1, "alice", seq, Some(Status::Running))
}

fn ending(seq: u64) -> Arc<Publication> {
    update(1, "alice", seq, Some(Status::Completed))
}

fn subscribe(topic: &str, ack: bool) -> Command {
    Command::Subscribe {
        topic: topic.to_owned(),
        cursor: None,
        ack,
        again: Again::Nothing,
    }
}

/// A watcher, and what it is driven with.
struct Scene {
    watcher: Watcher,
    horizon: Horizon,
}

impl Scene {
    fn new() -> Self {
        Self {
            watcher: Watcher::new(None, START, &BOUNDS),
            horizon: Horizon::new(Epoch::new(1), false),
        }
    }

    /// Subscribes by a command; the join that is asked for.
    fn ask(&mut self, command: Command, viewer: &impl Viewer) -> Join {
        let actions = self
            .watcher
            .command(command, viewer, &self.horizon, START, &BOUNDS);
        match actions.into_iter().next() {
            Some(Action::Join(join)) => join,
            other => panic!("{other:?}"),
        }
    }

    fn answer(
        &mut self,
        join: Join,
        viewer: &impl Viewer,
        told: Vec<Arc<Publication>>,
    ) -> Beginning {
        let high = told.last().map_or(Seq::ZERO, |last| last.seq);
        let about = told.last().filter(|_| matches!(join.topic, Topic::Job(_)));
        let exact = about.map(|it| Topic::job(it.name()));
        let exact = exact.unwrap_or_else(|| join.topic.clone());
        self.horizon.hear(high);
        let joined = Joined {
            subscription: join.subscription,
            owner: about.map(|it| it.owner.clone()),
            key: about.map(|it| it.key),
            parent: None,
            several: None,
            since: join.cursor.as_ref().and_then(|it| it.since(&exact)),
            topic: join.topic,
            recovered: join.cursor.is_some(),
            publications: told,
            left_out: Vec::new(),
            high,
        };
        let wall = WallTime::default();
        self.watcher
            .begin(joined, viewer, &self.horizon, START, wall, &BOUNDS)
    }

    fn offer(&mut self, publication: &Arc<Publication>, via: SubscriptionId) -> Offered {
        self.horizon.hear(publication.seq);
        self.watcher.offer(publication, via, START, &BOUNDS)
    }

    /// The numbers of what is sent now.
    fn sent(&mut self, now: Moment) -> Vec<u64> {
        let ceiling = self.watcher.ceiling(&self.horizon);
        let next = || self.watcher.next(now, ceiling, &BOUNDS);
        std::iter::from_fn(next)
            .map(|taken| taken.position.get())
            .collect()
    }
}

#[test]
fn a_subscription_begins_with_its_snapshot_and_goes_on_with_what_is_newer() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", false), &Everything);
    let via = join.subscription;
    let Beginning::Live(begun) = scene.answer(join, &Everything, vec![state(3)]) else {
        panic!("it left");
    };
    assert_eq!(
        (begun.jobs, begun.recovered, begun.resumes),
        (1, false, false)
    );
    assert_eq!(scene.offer(&state(4), via), Offered::Conflated);
    assert_eq!(scene.offer(&ending(5), via), Offered::Conflated);
    assert_eq!(scene.sent(START), [5], "promises 1 and 4");
}

/// What is sent now: its number and the topic it comes under.
fn sent_under(scene: &mut Scene) -> Vec<(u64, String)> {
    let ceiling = scene.watcher.ceiling(&scene.horizon);
    let mut sent = Vec::new();
    while let Some(taken) = scene.watcher.next(START, ceiling, &BOUNDS) {
        let Telling::Publication(publication) = taken.telling else {
            continue;
        };
        let under = scene.watcher.subscription(taken.via).unwrap();
        sent.push((publication.seq.get(), under.spelled().to_string()));
    }
    sent
}

fn live(scene: &mut Scene, topic: &str, told: Vec<Arc<Publication>>) -> SubscriptionId {
    let join = scene.ask(subscribe(topic, false), &Everything);
    let via = join.subscription;
    assert!(matches!(
        scene.answer(join, &Everything, told),
        Beginning::Live(_)
    ));
    via
}

#[test]
fn regression_an_ending_that_races_with_a_subscribe_is_sent_once_as_its_snapshot() {
    let mut scene = Scene::new();
    let user = live(&mut scene, "user:alice", vec![state(3)]);
    assert_eq!(sent_under(&mut scene), [(3, "user:alice".to_owned())]);
    let join = scene.ask(subscribe("job:j1", true), &Everything);
    let clip = update(1, "alice", 6, None);
    for published in [ending(5), clip.clone()] {
        assert_eq!(scene.offer(&published, user), Offered::Queued);
    }
    let told = vec![ending(5), clip];
    let Beginning::Live(begun) = scene.answer(join, &Everything, told) else {
        panic!("it left");
    };
    assert_eq!(begun.jobs, 1, "its state follows");
    let once = [(5, "job:j1".to_owned()), (6, "job:j1".to_owned())];
    assert_eq!(sent_under(&mut scene), once, "promises 1 and 2");
    assert_eq!(
        scene.watcher.unacknowledged(),
        1,
        "where that was asked for"
    );
}

#[test]
fn a_subscribe_that_comes_after_an_ending_was_sent_begins_with_it() {
    let mut scene = Scene::new();
    let user = live(&mut scene, "user:alice", vec![state(3)]);
    assert_eq!(scene.offer(&ending(5), user), Offered::Conflated);
    assert_eq!(sent_under(&mut scene), [(5, "user:alice".to_owned())]);
    live(&mut scene, "job:j1", vec![ending(5)]);
    assert_eq!(
        sent_under(&mut scene),
        [(5, "job:j1".to_owned())],
        "a page that did not know the job then"
    );
}

#[test]
fn what_a_job_was_sent_while_its_users_jobs_were_looked_up_is_not_sent_again() {
    let mut scene = Scene::new();
    let job = live(&mut scene, "job:j1", vec![state(3)]);
    assert_eq!(sent_under(&mut scene).len(), 1);
    let join = scene.ask(subscribe("user:alice", false), &Everything);
    assert_eq!(scene.offer(&ending(5), job), Offered::Queued);
    assert_eq!(sent_under(&mut scene), [(5, "job:j1".to_owned())]);
    let other = update(2, "alice", 4, Some(Status::Running));
    let told = vec![other, ending(5)];
    assert!(matches!(
        scene.answer(join, &Everything, told),
        Beginning::Live(_)
    ));
    assert_eq!(sent_under(&mut scene), [(4, "user:alice".to_owned())]);
    assert!(scene.watcher.rare.is_none(), "nothing is left of it");
}

#[test]
fn what_belongs_to_another_user_is_rejected_when_asked_for_and_ended_when_it_turns_out() {
    let mut scene = Scene::new();
    let actions = scene.watcher.command(
        subscribe("user:bob", false),
        &Alice,
        &scene.horizon,
        START,
        &BOUNDS,
    );
    let rejected = [Action::Refuse(CommandError::Forbidden {
        topic: topic("user:bob"),
    })];
    assert_eq!(actions[..], rejected);
    let join = scene.ask(subscribe("job:j1", false), &Alice);
    let via = join.subscription;
    assert!(matches!(
        scene.answer(join, &Alice, Vec::new()),
        Beginning::Live(_)
    ));
    let bobs = update(7, "bob", 2, Some(Status::Running)).called("j1");
    assert_eq!(scene.watcher.sees(&bobs, via, true, &Alice), Seen::No);
    assert!(scene.watcher.is_unbound(via));
    assert_eq!(scene.watcher.sees(&state(3), via, true, &Alice), Seen::Yes);
    assert_eq!(scene.watcher.sees(&bobs, via, true, &Everything), Seen::No);
    assert_eq!(scene.watcher.leave(via), Some(topic("job:alice/j1")));
    assert!(scene.watcher.rare.is_none(), "nothing is left of it");
}

#[test]
fn in_a_group_only_the_jobs_of_others_are_left_out() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("group:g", false), &Alice);
    let via = join.subscription;
    assert!(matches!(
        scene.answer(join, &Alice, Vec::new()),
        Beginning::Live(_)
    ));
    let bobs = update(2, "bob", 2, Some(Status::Running)).within("g");
    assert_eq!(scene.watcher.sees(&bobs, via, true, &Alice), Seen::No);
    let alices = update(1, "alice", 3, Some(Status::Running)).within("g");
    assert_eq!(scene.watcher.sees(&alices, via, true, &Alice), Seen::Yes);
    assert_eq!(scene.watcher.topics().next(), Some(&topic("group:alice/g")));
}

#[test]
fn a_job_that_is_known_to_be_anothers_does_not_begin() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", false), &Alice);
    let joined = Joined {
        subscription: join.subscription,
        topic: join.topic,
        owner: Some(Name::parse("bob").unwrap()),
        key: Some(JobKey(1)),
        parent: None,
        several: None,
        since: None,
        recovered: false,
        publications: vec![state(1)],
        left_out: Vec::new(),
        high: Seq::new(1),
    };
    let wall = WallTime::default();
    let begun = scene
        .watcher
        .begin(joined, &Alice, &scene.horizon, START, wall, &BOUNDS);
    assert!(matches!(begun, Beginning::Forbidden));
    assert!(scene.watcher.subscriptions().is_empty());
    assert!(!scene.watcher.is_owed());
}

/// A viewer who may see what is in one group, whosever it is.
struct Member;

impl Viewer for Member {
    fn sight(&self, _: &Topic) -> Sight {
        Sight::WhenKnown
    }

    fn may_watch(&self, _: &Topic, owner: Option<&Owner>, parent: Option<&Name>) -> bool {
        owner.is_none() || parent.is_some_and(|parent| parent.as_str() == "g")
    }
}

#[test]
fn a_job_that_leaves_the_group_it_is_shown_for_is_shown_no_more() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", false), &Member);
    let via = join.subscription;
    let begun = scene.answer(join, &Member, Vec::new());
    assert!(matches!(begun, Beginning::Live(_)));
    let moved = |seq, parent: &str| update(1, "alice", seq, Some(Status::Running)).within(parent);
    let sees = |scene: &mut Scene, seq, parent| {
        let state = moved(seq, parent);
        scene.watcher.sees(&state, via, true, &Member)
    };
    assert_eq!(sees(&mut scene, 2, "g"), Seen::Yes);
    assert_eq!(sees(&mut scene, 3, "g"), Seen::Yes);
    assert_eq!(sees(&mut scene, 4, "other"), Seen::Forbidden);
}

#[test]
fn a_subscription_that_a_new_token_does_not_grant_is_outlawed() {
    let mut scene = Scene::new();
    let mut vias = Vec::new();
    for topic in ["job:bob/j1", "job:j2", "user:bob"] {
        let join = scene.ask(subscribe(topic, false), &Everything);
        vias.push(join.subscription);
        let begun = scene.answer(join, &Everything, Vec::new());
        assert!(matches!(begun, Beginning::Live(_)));
    }
    assert!(scene.watcher.outlawed(&Everything).is_empty());
    let outlawed = scene.watcher.outlawed(&Alice);
    assert_eq!(outlawed, [vias[0], vias[2]], "her own j2 may come yet");
}

#[test]
fn of_several_jobs_called_so_a_client_gets_the_one_it_may_see_or_is_asked_which() {
    let several = |owners: &[&str]| Several {
        owners: owners
            .iter()
            .map(|owner| (Name::parse(owner).unwrap(), None))
            .collect(),
        cursor: None,
        again: Again::Nothing,
    };
    let begin = |viewer: &dyn Fn(&mut Watcher, Joined) -> Beginning| {
        let mut scene = Scene::new();
        let join = scene.ask(subscribe("job:j1", false), &Everything);
        let joined = Joined {
            subscription: join.subscription,
            topic: join.topic,
            owner: None,
            key: None,
            parent: None,
            several: Some(Box::new(several(&["alice", "bob"]))),
            since: None,
            recovered: false,
            publications: Vec::new(),
            left_out: Vec::new(),
            high: Seq::ZERO,
        };
        let begun = viewer(&mut scene.watcher, joined);
        let topics: Vec<_> = scene.watcher.topics().cloned().collect();
        (begun, topics)
    };
    let (horizon, wall) = (Horizon::new(Epoch::new(1), false), WallTime::default());
    let (begun, topics) =
        begin(&|it, joined| it.begin(joined, &Alice, &horizon, START, wall, &BOUNDS));
    let Beginning::Again(join) = begun else {
        panic!("{begun:?}")
    };
    assert_eq!(join.topic, topic("job:alice/j1"));
    assert_eq!(topics, [join.topic]);
    let (begun, topics) =
        begin(&|it, joined| it.begin(joined, &Everything, &horizon, START, wall, &BOUNDS));
    assert!(matches!(begun, Beginning::Ambiguous) && topics.is_empty());
}

#[test]
fn an_answer_that_comes_after_the_client_left_begins_nothing() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", false), &Everything);
    scene.watcher.leave(join.subscription);
    let begun = scene.answer(join, &Everything, vec![state(1)]);
    assert!(matches!(begun, Beginning::Left));
    assert!(!scene.watcher.is_owed());
}

#[test]
fn a_held_job_is_sent_nothing_and_its_cursor_stays_below_the_hold() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", false), &Everything);
    let via = join.subscription;
    let begun = scene.answer(join, &Everything, vec![state(3)]);
    assert!(matches!(begun, Beginning::Live(_)));
    scene.sent(START);
    let hold = Hold {
        job: state(1).name(),
        parent: None,
        seq: Seq::new(3),
    };
    let held = scene.horizon.repair(Repairing::Hold(hold));
    assert!(!held.concerns(scene.watcher.topics()));
    assert_eq!(scene.offer(&ending(9), via), Offered::Queued);
    assert_eq!(scene.sent(after(1000)), [0; 0]);
    let ceiling = scene.watcher.ceiling(&scene.horizon);
    scene.watcher.settle(&scene.horizon, ceiling);
    assert_eq!(
        scene.watcher.cursor(Epoch::new(1)).position.seq,
        Seq::new(3)
    );
    let job = state(1).name();
    let released = scene.horizon.repair(Repairing::Release(job));
    assert!(released.concerns(scene.watcher.topics()));
    assert_eq!(scene.sent(after(1000)), [9]);
}

#[test]
fn an_ending_is_sent_again_until_it_is_acknowledged() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", true), &Everything);
    let begun = scene.answer(join, &Everything, vec![ending(3)]);
    assert!(matches!(begun, Beginning::Live(_)));
    assert_eq!(scene.sent(START), [3]);
    assert_eq!(scene.watcher.next_ending(), Some(after(5_000)));
    assert!(scene.watcher.endings_due(after(4_999), &BOUNDS).is_empty());
    assert_eq!(scene.watcher.endings_due(after(5_000), &BOUNDS).len(), 1);
    assert_eq!(scene.watcher.unacknowledged(), 1);
    let ack = Command::Ack {
        topic: "job:j1".to_owned(),
        cursor: scene.watcher.cursor(Epoch::new(1)).to_string(),
    };
    let done = scene
        .watcher
        .command(ack, &Everything, &scene.horizon, after(5_001), &BOUNDS);
    assert!(done.is_empty());
    assert_eq!(scene.watcher.unacknowledged(), 0);
    assert_eq!(scene.watcher.next_ending(), None);
}

#[test]
fn an_ending_that_is_passed_on_at_once_wants_its_acknowledgement_too() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", true), &Everything);
    let via = join.subscription;
    let begun = scene.answer(join, &Everything, Vec::new());
    assert!(matches!(begun, Beginning::Live(_)));
    let passed = scene
        .watcher
        .pass(&ending(3), via, &scene.horizon, START, &BOUNDS);
    assert_eq!(passed, Some(Seq::new(3)));
    assert_eq!(scene.watcher.unacknowledged(), 1);
}

#[test]
fn after_its_last_try_an_ending_waits_no_longer() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", true), &Everything);
    let begun = scene.answer(join, &Everything, vec![ending(3)]);
    assert!(matches!(begun, Beginning::Live(_)));
    scene.sent(START);
    let mut tries = 0;
    while let Some(at) = scene.watcher.next_ending() {
        tries += scene.watcher.endings_due(at, &BOUNDS).len();
    }
    assert_eq!(tries, 5, "beside the first");
}

#[test]
fn what_a_cursor_speaks_for_stays_sent_until_the_client_had_the_time_to_ask_for_it() {
    let mut scene = Scene::new();
    let cursor = Cursor::at(
        Position::new(Epoch::new(1), Seq::new(5)),
        [&topic("job:j1"), &topic("job:j2")],
    );
    let (horizon, topics) = (&scene.horizon, vec![topic("job:j1")]);
    let joins = scene.watcher.watch(topics, Some(&cursor), horizon, &BOUNDS);
    assert_eq!(joins.len(), 1);
    let spoken = |watcher: &Watcher| watcher.carried_cursor(&topic("job:j2")).is_some();
    assert!(spoken(&scene.watcher));
    let ping = after(25_000);
    assert_eq!(scene.watcher.tick(ping, &BOUNDS)[..], [Action::Ping]);
    assert!(spoken(&scene.watcher), "its join is not answered yet");
    for join in joins {
        let begun = scene.answer(join, &Everything, Vec::new());
        assert!(matches!(begun, Beginning::Live(_)));
    }
    assert_eq!(
        scene.watcher.tick(after(50_000), &BOUNDS)[..],
        [Action::Ping]
    );
    assert!(!spoken(&scene.watcher));
    assert!(scene.watcher.rare.is_none());
}

#[test]
fn lost_milestones_are_announced_once_a_job() {
    let mut scene = Scene::new();
    let join = scene.ask(subscribe("job:j1", false), &Everything);
    let via = join.subscription;
    let begun = scene.answer(join, &Everything, Vec::new());
    assert!(matches!(begun, Beginning::Live(_)));
    let lost = LeftOut {
        key: JobKey(1),
        job: Name::parse("j1").unwrap(),
        seq: Seq::new(4),
    };
    scene.watcher.lose(&lost, GapReason::History, via, START);
    scene.watcher.lose(&lost, GapReason::History, via, START);
    assert_eq!(scene.sent(START), [4]);
}

#[test]
fn a_silent_client_is_let_go() {
    let mut scene = Scene::new();
    let dead = scene.watcher.next_tick(&BOUNDS);
    assert_eq!(dead, after(25_000), "first it is asked");
    let actions = scene.watcher.tick(after(60_000), &BOUNDS);
    assert_eq!(actions[..], [Action::Close(CloseReason::Dead)]);
}
