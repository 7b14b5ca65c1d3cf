//! Repairs end, whatever the store has: each refused update is looked at once, and nobody waits for it (promises 8,
//! 11 and 12).

use super::*;
use relay_core::document::MilestoneData;

/// What a worker may send that is no update, by why it is not.
const REFUSED: [&str; 5] = [
    r#"{"progress":1}"#,
    r#"{"status":"runing"}"#,
    r#"{"status":"running","progress":NaN}"#,
    "not JSON",
    "",
];

fn running_hub(stream: &Arc<Stream>) -> (Arc<Hub>, JoinSet<()>) {
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, stream.inner.lock().high);
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    (hub, tasks)
}

fn repaired(hub: &Hub) -> BTreeMap<&'static str, u64> {
    hub.stats().repaired.into_iter().collect()
}

fn counted(hub: &Hub) -> BTreeMap<&'static str, u64> {
    hub.stats().counts.into_iter().collect()
}

fn ask(hub: &Hub, connection: u64, topic: &str) {
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

/// What a shard hears: `answer 1, 2`, `told 3`, `held`, `released`.
fn heard(hub: &Hub) -> Vec<String> {
    let mut messages = Vec::new();
    hub.inbox(0).drain(&mut messages);
    let heard = messages.into_iter().filter_map(|message| match message {
        Message::Joined(_, joined) => Some(format!("answer {:?}", seqs(&joined))),
        Message::Publish(publication) => Some(format!("told {}", publication.seq)),
        Message::Repair(Repairing::Hold(hold)) => Some(format!("{} held", hold.job.id)),
        Message::Repair(Repairing::Release(job)) => Some(format!("{} released", job.id)),
        _ => None,
    });
    heard.collect()
}

#[tokio::test(start_paused = true)]
async fn regression_refused_updates_of_one_job_hold_no_other_job_of_its_owner() {
    let too_large = format!(
        r#"{{"status":"running","message":"{}"}}"#,
        "x".repeat(1 << 16)
    );
    for refused in REFUSED.into_iter().chain([too_large.as_str()]) {
        for what in [What::State, What::Milestone(name("clip"))] {
            let is_milestone = what != What::State;
            if is_milestone
                && MilestoneData::parse(refused.as_bytes()).is_ok()
                && refused.len() < 100
            {
                continue;
            }
            let stream = Arc::new(Stream::default());
            let (hub, _tasks) = running_hub(&stream);
            ask(&hub, 1, "user:alice");
            sleep(Duration::from_secs(5)).await;
            assert_eq!(heard(&hub), ["answer []"]);
            for _ in 0..100 {
                let bad = stream.append("bad", what.clone(), refused.to_owned(), false);
                hub.ingest(&mut vec![bad]);
            }
            let ending = r#"{"status":"completed"}"#.to_owned();
            hub.ingest(&mut vec![stream.append("good", What::State, ending, true)]);
            sleep(Duration::from_secs(5)).await;
            let heard = heard(&hub);
            let told: Vec<_> = heard.iter().filter(|it| !it.starts_with("bad ")).collect();
            assert_eq!(told, ["told 101"], "{refused:?}");
            let held = heard.iter().filter(|it| *it == "bad held").count();
            let released = heard.iter().filter(|it| *it == "bad released").count();
            assert_eq!(held, released, "{refused:?}");
            // A milestone says nothing of the state that may have been before it.
            let looked_at = usize::from(is_milestone);
            assert_eq!(
                repaired(&hub).values().sum::<u64>() as usize,
                looked_at,
                "{refused:?}"
            );
            let counted = counted(&hub);
            assert_eq!(counted.values().sum::<u64>(), 101, "each in exactly one");
            assert_eq!(counted["accepted"], 1);
            // As many as cannot wait for a repair are left to it.
            let left = counted.get("deferred").copied().unwrap_or_default();
            assert!(
                left == 0 || is_milestone && refused.len() > 1 << 15,
                "{left}"
            );
            assert_eq!(hub.stats().repairs, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_which_nothing_is_acceptable_is_read_once_however_many_ask_for_it() {
    let stream = Arc::new(Stream::default());
    for refused in REFUSED {
        stream.append("bad", What::State, refused.to_owned(), false);
        stream.append("bad", What::Milestone(name("clip")), "{".to_owned(), false);
    }
    let (hub, _tasks) = running_hub(&stream);
    for round in 0..20 {
        assert!(hub.lookup(&job("bad")).await.state.is_none());
        ask(&hub, round, "job:bad");
        ask(&hub, 100 + round, "user:alice");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            heard(&hub).iter().filter(|it| *it == "answer []").count(),
            2
        );
        for topic in ["job:bad", "user:alice"] {
            hub.leave(&Topic::parse(topic).unwrap(), 0);
        }
    }
    let nothing = repaired(&hub)["nothing"];
    assert!(
        nothing <= 2,
        "{nothing}: and once more if a comparison was under way"
    );
    // What can be told of it later is told.
    let running = r#"{"status":"running"}"#.to_owned();
    hub.ingest(&mut vec![stream.append("bad", What::State, running, false)]);
    assert!(hub.lookup(&job("bad")).await.state.is_some());
}

/// Nobody can say whether there was nothing, so nothing is remembered of ids that anybody may make up.
#[tokio::test(start_paused = true)]
async fn a_job_that_never_was_leaves_nothing_behind() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = running_hub(&stream);
    for job in ["a", "b", "c"] {
        assert!(hub.lookup(&self::job(job)).await.state.is_none());
        ask(&hub, 1, &format!("job:{job}"));
        sleep(Duration::from_secs(1)).await;
        hub.leave(&Topic::parse(&format!("job:{job}")).unwrap(), 0);
    }
    assert_eq!(hub.stats().jobs, 0);
}

#[tokio::test(start_paused = true)]
async fn a_comparison_finds_a_job_of_which_nothing_is_acceptable_once() {
    let stream = Arc::new(Stream::default());
    stream.append("bad", What::State, "{".to_owned(), false);
    let (hub, _tasks) = running_hub(&stream);
    ask(&hub, 1, "user:alice");
    ask(&hub, 2, "job:bad");
    ask(&hub, 3, "group:g");
    sleep(Duration::from_secs(600)).await;
    let nothing = repaired(&hub)["nothing"];
    assert!(
        nothing <= 2,
        "{nothing}: and once more if a comparison was under way"
    );
}

/// The worker is faster than the store: what it publishes cannot wait for the answer.
#[tokio::test(start_paused = true)]
async fn a_flood_of_one_job_does_not_keep_its_repair_from_ending() {
    let stream = Arc::new(Stream::default());
    let running = |mark: u32| format!(r#"{{"status":"running","message":"{mark}"}}"#);
    stream.append("flood", What::State, running(0), false);
    let (hub, _tasks) = running_hub(&stream);
    ask(&hub, 1, "user:alice");
    ask(&hub, 2, "job:alice/flood");
    let mut told = Vec::new();
    for mark in 1..200 {
        let running = (0..100).map(|it| running(mark * 100 + it));
        let more = running.map(|it| stream.append("flood", What::State, it, false));
        hub.ingest(&mut more.collect());
        sleep(Duration::from_millis(1)).await;
        told.extend(heard(&hub));
    }
    let on_the_way = told.iter().filter(|it| it.starts_with("told")).count();
    assert!(on_the_way > 1000, "{on_the_way}");
    sleep(Duration::from_secs(5)).await;
    told.extend(heard(&hub));
    let high = stream.inner.lock().high;
    assert!(told.contains(&format!("told {high}")));
    assert_eq!(hub.stats().repairs, 0);
    let of_holds = |what: &str| told.iter().filter(|it| it.ends_with(what)).count();
    assert_eq!(of_holds("held"), of_holds("released"));
}

#[tokio::test(start_paused = true)]
async fn what_another_owner_publishes_of_a_job_does_not_wait_for_its_repair() {
    let stream = Arc::new(Stream::default());
    let running = || r#"{"status":"running"}"#.to_owned();
    let (hub, _tasks) = running_hub(&stream);
    ask(&hub, 1, "job:j");
    sleep(Duration::from_secs(1)).await;
    hub.ingest(&mut vec![stream.append("j", What::State, running(), false)]);
    // One is missed, so the next begins a repair.
    stream.append("j", What::State, running(), false);
    let ending = stream.append(
        "j",
        What::State,
        r#"{"status":"completed"}"#.to_owned(),
        false,
    );
    let foreign = Incoming {
        job: job("mallory/j"),
        seq: ending.seq.next(),
        previous: Some(Seq::ZERO),
        ..ending.clone()
    };
    let gone = Incoming {
        what: What::Gone,
        ..foreign.clone()
    };
    hub.ingest(&mut vec![ending]);
    assert_eq!(hub.stats().repairs, 1);
    for _ in 0..2000 {
        hub.ingest(&mut vec![foreign.clone(), gone.clone()]);
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(repaired(&hub), BTreeMap::from([("found", 1)]));
    assert_eq!(heard(&hub).last().unwrap(), "j released");
    let state = hub.lookup(&job("j")).await.state.unwrap();
    assert!(
        state.is_terminal(),
        "nobody but its owner says that it is gone"
    );
}

/// The store has let go of what came live: the hole is gone with it.
#[tokio::test(start_paused = true)]
async fn an_update_that_the_store_does_not_have_any_more_is_told_and_not_looked_for() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = running_hub(&stream);
    ask(&hub, 1, "job:j");
    sleep(Duration::from_secs(1)).await;
    let completed = r#"{"status":"completed"}"#.to_owned();
    stream.append(
        "j",
        What::State,
        r#"{"status":"running"}"#.to_owned(),
        false,
    );
    let ending = stream.append("j", What::State, completed, false);
    stream.inner.lock().messages.clear();
    hub.ingest(&mut vec![ending]);
    sleep(Duration::from_secs(60)).await;
    assert!(heard(&hub).contains(&"told 2".to_owned()));
    assert_eq!(hub.stats().repairs, 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_with_holes_again_and_again_is_repaired_less_and_less_often() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = running_hub(&stream);
    ask(&hub, 1, "job:j");
    for mark in 0..1000 {
        let running = |half| format!(r#"{{"status":"running","message":"{mark}.{half}"}}"#);
        stream.append("j", What::State, running(0), false);
        let next = stream.append("j", What::State, running(1), false);
        hub.ingest(&mut vec![next]);
        sleep(Duration::from_millis(10)).await;
    }
    let repairs: u64 = repaired(&hub).values().sum();
    assert!((5..80).contains(&repairs), "{repairs} in ten seconds");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(
        heard(&hub).iter().filter(|it| *it == "told 2000").count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_with_more_milestone_names_than_are_remembered_is_bounded_and_whole() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = running_hub(&stream);
    ask(&hub, 1, "job:j");
    sleep(Duration::from_secs(1)).await;
    hub.ingest(&mut vec![stream.append(
        "j",
        What::State,
        r#"{"status":"running"}"#.to_owned(),
        false,
    )]);
    for round in 0..3 {
        for clip in 0..1000 {
            let clip = What::Milestone(name(&format!("clip{clip}")));
            hub.ingest(&mut vec![stream.append(
                "j",
                clip,
                format!("{round}"),
                false,
            )]);
        }
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(counted(&hub)["accepted"], 3001);
    assert_eq!(
        repaired(&hub).values().sum::<u64>(),
        0,
        "there was nothing when it was first asked for"
    );
}

/// What was published last cannot be read; what was before it can.
#[tokio::test(start_paused = true)]
async fn regression_a_job_whose_last_state_cannot_be_read_is_the_same_under_every_topic() {
    let stream = Arc::new(Stream::default());
    let running = r#"{"status":"running","parent_id":"g"}"#;
    stream.append("j", What::State, running.to_owned(), false);
    stream.append("j", What::State, "{".to_owned(), false);
    for topic in ["user:alice", "group:g", "job:j"] {
        let (hub, _tasks) = running_hub(&stream);
        ask(&hub, 1, topic);
        sleep(Duration::from_secs(5)).await;
        let first = heard(&hub);
        assert!(
            first.contains(&"answer [1]".to_owned()),
            "{topic}: {first:?}"
        );
        let others = ["user:alice", "group:g", "job:j"]
            .into_iter()
            .filter(|it| *it != topic);
        for other in others {
            ask(&hub, 2, other);
            sleep(Duration::from_secs(5)).await;
            assert_eq!(heard(&hub), ["answer [1]"], "{other} after {topic}");
        }
    }
    for topic in ["user:alice", "group:g"] {
        let (hub, _tasks) = running_hub(&stream);
        let survey = hub
            .survey(&Topic::parse(topic).unwrap().of(&owner()))
            .await
            .unwrap();
        assert_eq!(survey.tally.count(Status::Running), 1, "{topic}");
        let state = hub.lookup(&job("j")).await.state;
        assert_eq!(state.unwrap().seq, Seq::new(1));
    }
}

/// A second run of the job goes on after its ending, with the same attempt; what it says last is not how it stands.
#[tokio::test(start_paused = true)]
async fn regression_a_job_that_is_listed_by_a_state_that_came_too_late_is_read_whole() {
    for late in ["running", "failed"] {
        let stream = Arc::new(Stream::default());
        for status in ["running", "completed", late] {
            let state = format!(r#"{{"status":"{status}","parent_id":"g"}}"#);
            stream.append("j", What::State, state, false);
        }
        for topic in ["user:alice", "group:g", "job:j"] {
            let (hub, _tasks) = running_hub(&stream);
            ask(&hub, 1, topic);
            sleep(Duration::from_secs(5)).await;
            let heard = heard(&hub);
            assert!(
                heard.contains(&"answer [2]".to_owned()),
                "{late}, {topic}: {heard:?}"
            );
        }
        for topic in ["user:alice", "group:g"] {
            let (hub, _tasks) = running_hub(&stream);
            for _ in 0..2 {
                let survey = hub
                    .survey(&Topic::parse(topic).unwrap().of(&owner()))
                    .await
                    .unwrap();
                assert_eq!(survey.tally.count(Status::Completed), 1, "{late}, {topic}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_did_not_come_by_is_counted_once_when_it_is_found() {
    let stream = Arc::new(Stream::default());
    let (hub, _tasks) = running_hub(&stream);
    let state = |n: u64| {
        let payload = format!(r#"{{"status":"running","progress":{n}}}"#);
        stream.append("j", What::State, payload, false)
    };
    ask(&hub, 1, "job:j");
    sleep(Duration::from_secs(5)).await;
    hub.ingest(&mut vec![state(1)]);
    state(2);
    hub.ingest(&mut vec![state(3)]);
    sleep(Duration::from_secs(5)).await;
    let counts = counted(&hub);
    assert_eq!(
        (counts["accepted"], counts["resynced"], counts["deferred"]),
        (1, 1, 1)
    );
    // While the bus was away, a refused one among them.
    hub.lost("test");
    state(4);
    stream.append("j", What::Milestone(name("clip")), "{".to_owned(), false);
    for _ in 0..3 {
        hub.live(EPOCH, stream.inner.lock().high);
        sleep(Duration::from_secs(30)).await;
        let counts = counted(&hub);
        assert_eq!(counts["resynced"], 3, "{counts:?}");
        assert_eq!(counts.values().sum::<u64>(), 5, "each in exactly one");
    }
}

/// The lock is held for a few of them at a time; what is left for the end is only looked at.
#[tokio::test(start_paused = true)]
async fn a_list_of_many_jobs_is_entered_before_it_is_finished() {
    let stream = Arc::new(Stream::default());
    for n in 0..80 {
        let state = format!(r#"{{"status":"running","progress":{n}}}"#);
        stream.append(&format!("j{n}"), What::State, state, false);
    }
    let backing = Backing::Stored(stream.clone());
    let hub = Hub::new(settings(), backing, Clock::start(), EPOCH);
    hub.live(EPOCH, stream.inner.lock().high);
    ask(&hub, 1, "user:alice");
    let store: Arc<dyn Store> = stream.clone();
    let loaded = loop {
        let loaded = hub.load(&store, LoadKey::Owner(owner())).await;
        if let Loaded::Found(_, _, Ok(_)) = loaded {
            break loaded;
        }
    };
    assert_eq!(hub.stats().jobs, 80);
    assert_eq!(heard(&hub), [""; 0], "nobody is told yet");
    hub.finish(loaded);
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run());
    sleep(Duration::from_secs(60)).await;
    let expected: Vec<u64> = (1..=80).collect();
    let heard = heard(&hub);
    assert!(heard.contains(&format!("answer {expected:?}")), "{heard:?}");
}

/// While the list is on its way more comes, and while it is entered too.
#[tokio::test(start_paused = true)]
async fn what_comes_while_a_list_is_entered_is_not_put_back() {
    let stream = Arc::new(Stream::default());
    let state = |job: &str, n: u64| {
        let state = format!(r#"{{"status":"running","progress":{n}}}"#);
        stream.append(job, What::State, state, false)
    };
    for n in 0..80 {
        state(&format!("j{n}"), 1);
    }
    let (hub, mut tasks) = running_hub(&stream);
    ask(&hub, 1, "user:alice");
    let publisher = hub.clone();
    let live: Vec<_> = (0..80).map(|n| state(&format!("j{n}"), 50)).collect();
    tasks.spawn(async move {
        for incoming in live {
            publisher.ingest(&mut vec![incoming]);
            sleep(Duration::from_millis(1)).await;
        }
    });
    sleep(Duration::from_secs(120)).await;
    heard(&hub);
    ask(&hub, 2, "user:alice");
    sleep(Duration::from_secs(5)).await;
    let expected: Vec<u64> = (81..=160).collect();
    assert_eq!(heard(&hub), [format!("answer {expected:?}")]);
}
