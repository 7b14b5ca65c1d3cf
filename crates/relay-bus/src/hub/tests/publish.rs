//! Publishing for somebody: whose update it is, whether they may, and what becomes of it where there is no bus.

use super::*;
use crate::hub::{PublishError, PublishRequest, Verb};

fn request(job: &str, owner: Option<Owner>, payload: &'static str) -> PublishRequest {
    PublishRequest {
        job: name(job),
        caller: None,
        owner,
        verb: Verb::Put(What::State),
        payload: Bytes::from_static(payload.as_bytes()),
        key: None,
    }
}

const HALF: &str = r#"{"status":"running","progress":50}"#;

#[tokio::test]
async fn an_update_without_an_owner_is_the_jobs_owners_and_needs_the_right_to_it() {
    let hub = hub();
    take(&hub, "j1", What::State, RUNNING);
    let asked = Mutex::new(Vec::new());
    let refuse = |owner: &Owner| {
        asked.lock().push(owner.as_str().to_owned());
        false
    };
    for (job, named) in [("j1", None), ("j2", None), ("j1", Some(name("bob")))] {
        let refused = hub.publish(request(job, named, HALF), refuse).await;
        let Err(PublishError::MayNot { owner }) = refused else {
            panic!("{refused:?}");
        };
        assert_ne!(owner.as_str(), "alice", "nobody named her");
    }
    assert_eq!(*asked.lock(), ["alice", "-", "-", "bob"]);
    let allowed = hub.publish(request("j1", None, HALF), |_| true).await;
    assert_eq!(allowed.unwrap().at, Position::new(EPOCH, Seq::new(2)));
    let bobs = request("j1", Some(name("bob")), HALF);
    let bobs = hub.publish(bobs, |_| true).await.unwrap();
    assert_eq!(bobs.name, job("bob/j1"), "another job");
    let either = hub.publish(request("j1", None, HALF), |_| true).await;
    assert!(matches!(either, Err(PublishError::Ambiguous(_))));
    let own = PublishRequest {
        caller: Some(name("bob")),
        ..request("j1", None, r#"{"status":"completed"}"#)
    };
    let own = hub.publish(own, |_| true).await.unwrap();
    assert_eq!(own.name, job("bob/j1"));
}

/// The store is away, so a look-up would not be answered.
#[tokio::test(start_paused = true)]
async fn nothing_is_looked_up_for_whoever_may_not_publish() {
    let stream = Stream::default();
    stream.away.store(true, Ordering::Relaxed);
    let hub = Hub::new(
        settings(),
        Backing::Stored(Arc::new(stream)),
        Clock::start(),
        EPOCH,
    );
    let refused = hub.publish(request("j1", Some(owner()), HALF), |_| false);
    let refused = refused.now_or_never();
    assert!(matches!(refused, Some(Err(PublishError::MayNot { .. }))));
    assert_eq!(hub.stats().repairs, 0);
}

#[tokio::test]
async fn without_a_bus_what_is_rejected_takes_no_number_and_what_is_repeated_does() {
    let hub = hub();
    let publish = async |payload| {
        hub.publish(request("j1", Some(owner()), payload), |_| true)
            .await
    };
    let place = |seq| Position::new(EPOCH, Seq::new(seq));
    assert!(publish("{}").await.is_err());
    assert_eq!(hub.stats().jobs, 0);
    assert_eq!(publish(HALF).await.unwrap().at, place(1));
    assert!(
        publish(r#"{"status":"running","progress":40}"#)
            .await
            .is_err()
    );
    assert_eq!(publish(HALF).await.unwrap().at, place(2));
    assert_eq!(hub.place(), place(2));
    assert_eq!(hub.stats().counts, [("accepted", 1), ("repeated", 1)]);
}
