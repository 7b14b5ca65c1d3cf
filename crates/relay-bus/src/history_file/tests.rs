use super::*;
use crate::clock::Clock;
use crate::hub::{Backing, HubSettings, PublishRequest, Verb};
use crate::seam::What;

const EPOCH: Epoch = Epoch::new(7);
const LATER: Epoch = Epoch::new(9);

fn hub() -> Arc<Hub> {
    let settings = HubSettings {
        shards: 1,
        per_job: 64,
        max_jobs: 100,
        max_bytes: 1 << 20,
        kinds: Arc::default(),
        update_bytes: 1 << 16,
        subject_stem: "progress.".to_owned(),
        terminal_ttl: Duration::from_secs(3600),
        idle_ttl: Duration::from_secs(3600),
        resync_interval: Duration::from_secs(60),
    };
    Hub::new(settings, Backing::Embedded, Clock::start(), EPOCH)
}

async fn publish(hub: &Hub, job: &str, what: What, payload: &str) -> Seq {
    let request = PublishRequest {
        job: Name::parse(job).unwrap(),
        caller: None,
        owner: Some(Name::parse("alice").unwrap()),
        verb: Verb::Put(what),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        key: None,
    };
    hub.publish(request, |_| true).await.unwrap().at.seq
}

/// A life with a milestone between two attempts' endings.
async fn live(hub: &Hub) {
    let clip = || What::Milestone(Name::parse("clip").unwrap());
    for (what, payload) in [
        (What::State, r#"{"status":"running","progress":10}"#),
        (clip(), "1"),
        (What::State, r#"{"status":"failed"}"#),
        (
            What::State,
            r#"{"status":"running","attempt":2,"parent_id":"g"}"#,
        ),
        (clip(), r#"{"clip":2}"#),
        (
            What::State,
            r#"{"status":"running","attempt":2,"parent_id":"g","progress":70}"#,
        ),
    ] {
        publish(hub, "j1", what, payload).await;
    }
    publish(hub, "j2", What::State, r#"{"status":"completed"}"#).await;
}

fn said(history: &History) -> Vec<(String, Seq, Vec<String>)> {
    let mut said: Vec<_> = history
        .jobs
        .iter()
        .map(|Remembered { id, owner, memory }| {
            let publications = memory.publications.iter();
            let bodies = publications.map(|each| match &each.body {
                Body::State { json, .. } => {
                    format!("{} {}", each.seq, String::from_utf8_lossy(json))
                }
                Body::Milestone { name, data } => {
                    format!("{} {name} {}", each.seq, String::from_utf8_lossy(data))
                }
                Body::Gone(gone) => format!("{} {}", each.seq, gone.as_str()),
            });
            (format!("{owner}/{id}"), memory.known_from, bodies.collect())
        })
        .collect();
    said.sort();
    said
}

#[tokio::test]
async fn a_file_closed_in_order_gives_everything_back_and_the_epoch_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let before = hub();
    let file = HistoryFile::new(path.clone());
    file.open(&before, EPOCH).unwrap();
    live(&before).await;
    file.close(&before).unwrap();
    let after = hub();
    HistoryFile::new(path).open(&after, LATER).unwrap();
    assert_eq!(after.epoch(), EPOCH);
    assert_eq!(after.history().high, Seq::new(7));
    assert_eq!(said(&after.history()), said(&before.history()));
    assert_eq!(after.history().jobs[0].memory.publications.len(), 4);
}

#[tokio::test]
async fn a_file_is_read_by_its_owner_alone_whoever_might_read_what_was_there_before() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "somebody's own").unwrap();
    // What another program, or an earlier version that was killed while it wrote, may have left.
    let left: [&dyn Fn(&Path); 2] = [
        &|beside| {
            fs::write(beside, "left").unwrap();
            fs::set_permissions(beside, fs::Permissions::from_mode(0o666)).unwrap();
        },
        &|beside| std::os::unix::fs::symlink(&elsewhere, beside).unwrap(),
    ];
    for leave in left {
        leave(&folder.path().join("history.new"));
        let file = HistoryFile::new(path.clone());
        file.open(&hub(), EPOCH).unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        file.close(&hub()).unwrap();
        assert_eq!(mode(), 0o600);
    }
    assert_eq!(fs::read(&elsewhere).unwrap(), b"somebody's own");
}

#[tokio::test]
async fn a_job_that_came_back_is_guarded_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let before = hub();
    live(&before).await;
    HistoryFile::new(path.clone()).close(&before).unwrap();
    let after = hub();
    HistoryFile::new(path).open(&after, LATER).unwrap();
    let payload = Bytes::from_static(br#"{"status":"running","attempt":2,"progress":20}"#);
    let request = PublishRequest {
        job: Name::parse("j1").unwrap(),
        caller: None,
        owner: None,
        verb: Verb::Put(What::State),
        payload,
        key: None,
    };
    let late = after.publish(request, |_| true).await.unwrap_err();
    assert!(late.to_string().contains("progress fell"), "{late}");
    assert_eq!(
        publish(
            &after,
            "j1",
            What::State,
            r#"{"status":"completed","attempt":2}"#
        )
        .await,
        Seq::new(8),
        "numbers go on"
    );
}

#[tokio::test]
async fn a_file_from_before_a_crash_gives_the_jobs_back_in_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let before = hub();
    live(&before).await;
    HistoryFile::new(path.clone()).close(&before).unwrap();
    // Opened and not closed: whatever was published then had numbers that nobody remembers.
    let crashed = hub();
    HistoryFile::new(path.clone())
        .open(&crashed, LATER)
        .unwrap();
    let after = hub();
    HistoryFile::new(path).open(&after, LATER).unwrap();
    assert_eq!(after.epoch(), LATER);
    assert_eq!(said(&after.history()), said(&before.history()));
}

#[tokio::test]
async fn after_the_last_word_nothing_else_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let (hub, file) = (hub(), HistoryFile::new(path.clone()));
    file.close(&hub).unwrap();
    live(&hub).await;
    file.save(&hub.history(), false).unwrap();
    let head = fs::read_to_string(path).unwrap();
    assert!(head.contains(r#""complete":true,"jobs":0"#), "{head}");
}

#[tokio::test]
async fn what_is_no_history_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let whole = {
        let hub = hub();
        live(&hub).await;
        HistoryFile::new(path.clone()).close(&hub).unwrap();
        fs::read_to_string(&path).unwrap()
    };
    let head = whole.lines().next().unwrap();
    let broken = [
        ("dear diary\n".to_owned(), "line 1"),
        (String::new(), "line 1"),
        (format!("{head}\n"), "line 2"),
        (whole[..whole.len() - 9].to_owned(), "ends too early"),
        (whole.replace("\"running\"", "\"strolling\""), "status"),
        (whole.replace("alice", "al ice"), "a name"),
        (
            whole.replace("\"relay_history\":1", "\"relay_history\":2"),
            "format 2",
        ),
    ];
    for (text, expected) in broken {
        fs::write(&path, &text).unwrap();
        let refused = HistoryFile::new(path.clone()).open(&hub(), EPOCH);
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
        assert!(said.contains("history.file"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("history");
    let refused = HistoryFile::new(path).open(&hub(), EPOCH).unwrap_err();
    assert!(refused.to_string().contains("cannot be used"), "{refused}");
}

#[tokio::test]
async fn an_update_that_panics_when_it_is_read_back_is_left_out_and_its_job_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = HistoryFile::new(dir.path().join("history"));
    let before = hub();
    publish(&before, "good", What::State, r#"{"status":"running"}"#).await;
    let poison = "panics-when-restored";
    publish(&before, poison, What::State, r#"{"status":"running"}"#).await;
    file.close(&before).unwrap();
    let after = hub();
    let file = HistoryFile::new(dir.path().join("history"));
    file.open(&after, EPOCH).unwrap();
    let history = after.history();
    let known: Vec<_> = history
        .jobs
        .iter()
        .map(|Remembered { id, memory, .. }| {
            (
                id.as_str(),
                memory.known_from.get(),
                memory.publications.len(),
            )
        })
        .collect();
    assert_eq!(known, [(poison, 2, 0), ("good", 0, 1)]);
}

#[tokio::test]
async fn a_number_above_the_highest_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    let before = hub();
    publish(&before, "good", What::State, r#"{"status":"running"}"#).await;
    HistoryFile::new(path.clone()).close(&before).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let forged = |high: &str, seq: &str| {
        text.replace("\"high\":1,", &format!("\"high\":{high},"))
            .replace("\"seq\":1,", &format!("\"seq\":{seq},"))
    };
    for forged in [forged("1", "2"), forged("18446744073709551615", "1")] {
        fs::write(&path, forged).unwrap();
        let refused = HistoryFile::new(path.clone()).open(&hub(), EPOCH);
        let broken = matches!(
            refused,
            Err(HistoryFileError::Broken {
                problem: Problem::Number { .. },
                ..
            })
        );
        assert!(broken, "{refused:?}");
    }
}
