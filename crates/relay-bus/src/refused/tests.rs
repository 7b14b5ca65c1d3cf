use bytes::Bytes;
use relay_core::document::Refusal;
use relay_core::id::{JobName, Name};

use relay_core::job::Declined;

use super::*;
use crate::seam::{Incoming, What};

fn update(owner: &str, job: &str, seq: u64) -> RefusedUpdate {
    let incoming = Incoming {
        job: JobName::new(Name::parse(owner).unwrap(), Name::parse(job).unwrap()),
        what: What::State,
        payload: Bytes::from_static(b"{}"),
        seq: Seq::new(seq),
        previous: None,
        stored_at: WallTime::from_unix_micros(1_000_000),
        first: None,
    };
    let missing = Declined::Refused(Refusal::MissingStatus);
    RefusedUpdate::declined("progress.", &incoming, &missing)
}

fn jobs(ledger: &Ledger) -> Vec<(String, u64)> {
    let all = ledger.list().refused;
    let job = |it: &Repeated| it.last.job.clone().unwrap();
    all.iter().map(|it| (job(it), it.count)).collect()
}

#[tokio::test]
async fn a_refusal_says_what_http_would_have_said_and_where_it_came_from() {
    let ledger = Ledger::default();
    ledger.note(update("u", "j", 7));
    let listed = serde_json::to_value(ledger.list()).unwrap();
    let wanted = serde_json::json!({
        "total": 1,
        "left_out": 0,
        "refused": [{
            "outcome": "refused",
            "reason": "missing_status",
            "sentence": Refusal::MissingStatus.to_string(),
            "field": "status",
            "subject": "progress.u.j.state",
            "seq": 7,
            "job": "j",
            "owner": "u",
            "size": 2,
            "time": "1970-01-01T00:00:01.000Z",
            "first_time": "1970-01-01T00:00:01.000Z",
            "count": 1,
        }],
    });
    assert_eq!(listed, wanted);
}

#[tokio::test]
async fn the_same_mistake_again_is_counted_and_comes_to_the_front() {
    let ledger = Ledger::default();
    for (job, seq) in [("a", 1), ("b", 2), ("a", 3)] {
        ledger.note(update("u", job, seq));
    }
    assert_eq!(jobs(&ledger), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    assert_eq!(ledger.list().refused[0].last.seq, Some(Seq::new(3)));
}

#[tokio::test]
async fn an_owner_that_floods_the_list_pushes_out_its_own_entries() {
    let ledger = Ledger::default();
    ledger.note(update("quiet", "mine", 1));
    for seq in 2..1000 {
        ledger.note(update("loud", &format!("j{seq}"), seq));
    }
    let listed = ledger.list();
    assert_eq!(listed.refused.len(), LISTED);
    assert_eq!((listed.total, listed.left_out), (999, 899));
    assert_eq!(listed.refused[0].last.job.as_deref(), Some("j999"));
    assert_eq!(listed.refused[98].last.job.as_deref(), Some("j901"));
    assert_eq!(listed.refused[99].last.job.as_deref(), Some("mine"));
}

#[tokio::test]
async fn among_owners_with_as_many_the_oldest_entry_leaves() {
    let ledger = Ledger::default();
    for seq in 0..=LISTED as u64 {
        ledger.note(update(&format!("u{seq}"), "j", seq));
    }
    let owners: Vec<_> = ledger.list().refused;
    assert_eq!(owners.last().unwrap().last.owner.as_deref(), Some("u1"));
}

#[tokio::test(start_paused = true)]
async fn each_reason_is_logged_once_a_minute_with_what_was_held_back() {
    let mut inner = Inner::default();
    let mut allow = |reason| {
        inner
            .paces
            .entry((Outcome::Refused, reason))
            .or_default()
            .allow()
    };
    assert_eq!(allow("bad_field"), Some(0));
    assert_eq!(allow("bad_field"), None);
    assert_eq!(allow("bad_json"), Some(0));
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    assert_eq!(allow("bad_field"), Some(1));
}
