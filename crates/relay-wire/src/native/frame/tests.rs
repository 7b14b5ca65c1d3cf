//! The shapes of frames, byte for byte, and which are kept.

use relay_core::id::{JobId, Name, Owner};
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{Gone, JobKey};
use relay_core::tally::{Share, Sum};

use super::*;

const SHARE: Share = Share {
    status: Status::Running,
    progress: 50.0,
    weight: 1.0,
};

fn publication(body: Body) -> Publication {
    Publication {
        seq: Seq::new(7),
        epoch: Epoch::new(1),
        key: JobKey(1),
        job: JobId::parse("j1").unwrap(),
        owner: Owner::parse("alice").unwrap(),
        parent: None,
        body,
        first_at: WallTime::default(),
        received_at: Moment::default(),
        worker_at: None,
        stored_at: WallTime::from_unix_micros(0),
        frames: Default::default(),
    }
}

fn bodies() -> [Body; 3] {
    [
        Body::State {
            json: Bytes::from_static(br#"{"id":"j1"}"#),
            status: Status::Running,
            attempt: 1,
            share: SHARE,
        },
        Body::Milestone {
            name: Name::parse("half").unwrap(),
            data: Bytes::from_static(b"[1]"),
        },
        Body::Gone(Gone::Removed {
            attempt: 1,
            last: Some(Status::Running),
        }),
    ]
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_client_gets_topic_and_cursor_and_a_mapping_the_owner() {
    let topic = Topic::parse("user:alice").unwrap();
    let place = Place {
        topic: (&topic).into(),
        cursor: "c",
        stale: false,
    };
    let stale = Place {
        stale: true,
        ..place
    };
    let expected = [
        [
            r#"{"type":"state","topic":"user:alice","cursor":"c","job":{"id":"j1"}}"#,
            r#"{"type":"state","topic":"user:alice","cursor":"c","stale":true,"job":{"id":"j1"}}"#,
            r#"{"type":"state","job":{"id":"j1"}}"#,
        ],
        [
            r#"{"type":"milestone","topic":"user:alice","cursor":"c","job_id":"j1","name":"half","data":[1]}"#,
            r#"{"type":"milestone","topic":"user:alice","cursor":"c","stale":true,"job_id":"j1","name":"half","data":[1]}"#,
            r#"{"type":"milestone","job_id":"j1","owner":"alice","name":"half","data":[1]}"#,
        ],
        [
            r#"{"type":"gone","topic":"user:alice","cursor":"c","job_id":"j1","reason":"removed","last_status":"running"}"#,
            r#"{"type":"gone","topic":"user:alice","cursor":"c","stale":true,"job_id":"j1","reason":"removed","last_status":"running"}"#,
            r#"{"type":"gone","job_id":"j1","owner":"alice","reason":"removed","last_status":"running"}"#,
        ],
    ];
    for (body, [fresh, late, bare]) in bodies().into_iter().zip(expected) {
        let publication = publication(body);
        assert_eq!(text(&json(&publication, Some(&place))), fresh);
        assert_eq!(text(&json(&publication, Some(&stale))), late);
        assert_eq!(text(&without_place(&publication)), bare);
    }
}

#[test]
fn a_frame_is_kept_for_each_wire_that_many_share_and_for_no_list() {
    let [state, ..] = bodies().map(publication);
    let topic = Topic::parse("job:j1").unwrap();
    let websocket = in_step(&state, (&topic).into(), Wire::WebSocket).unwrap();
    let event = in_step(&state, (&topic).into(), Wire::EventStream).unwrap();
    assert!(event.starts_with(b"event: state\nid: "));
    assert_ne!(websocket, event);
    assert_eq!(
        in_step(&state, (&topic).into(), Wire::WebSocket),
        Some(websocket)
    );
    assert_eq!(in_step(&state, (&topic).into(), Wire::Json), None);
}

#[test]
fn how_jobs_stand_is_one_shape_in_which_mappings_find_every_member() {
    let topic = Topic::parse("group:g").unwrap();
    let mut sum = Sum::default();
    let shown = |sum: &Sum| {
        let aggregate = Aggregate {
            topic: topic.clone(),
            tally: sum.tally(),
            frames: Default::default(),
        };
        let frame = aggregate_text(&aggregate);
        (frame, standing(&topic, &sum.tally()).to_string())
    };
    let counts = r#""counts":{"cancelled":0,"completed":0,"failed":0,"queued":0,"running":0}"#;
    let (client, mapping) = shown(&sum);
    assert_eq!(
        client,
        format!(r#"{{"type":"aggregate","topic":"group:g",{counts},"total":0}}"#)
    );
    assert_eq!(
        mapping,
        format!(
            r#"{{{counts},"progress":null,"status":null,"topic":"group:g","total":0,"type":"aggregate"}}"#
        )
    );
    sum.add(SHARE);
    let counts = counts.replace(r#""running":0"#, r#""running":1"#);
    let (client, mapping) = shown(&sum);
    assert_eq!(
        client,
        format!(
            r#"{{"type":"aggregate","topic":"group:g",{counts},"total":1,"progress":50.0,"status":"running"}}"#
        )
    );
    assert_eq!(
        mapping,
        format!(
            r#"{{{counts},"progress":50.0,"status":"running","topic":"group:g","total":1,"type":"aggregate"}}"#
        )
    );
}

fn aggregate_text(of: &Aggregate) -> String {
    String::from_utf8(aggregate(of, true, Wire::Json).to_vec()).unwrap()
}
