//! Mappings of the shipped dialects: over what workers publish, and over what pages send. What comes out is JSON.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use relay_core::id::Name;
use relay_core::job::{Job, JobBounds, Place, Sender, Subject};
use relay_core::kind::Kinds;
use relay_core::moment::{Moment, WallTime};
use relay_core::position::{Epoch, Seq};
use relay_core::publication::{JobKey, Publication};
use relay_core::watcher::Watcher;
use relay_core::watcher::horizon::Horizon;
use relay_core::watcher::outbox::SubscriptionId;
use relay_wire::dialect::{Answering, Past};
use relay_wire::exchange::{About, Delivery, Heard};
use relay_wire::speaker::Speaker;
use relay_wire::websocket::Inbound;
use serde_json::value::RawValue;

#[path = "support.rs"]
mod support;

const SOCKETS: [&str; 6] = [
    "/production",
    "/api/v1/conversions/j/ws",
    "/ws/v1/convert/j/progress",
    "/api/ws",
    "/ws/generations/j",
    "/ws/compositions/j",
];
const POLLS: [&str; 8] = [
    "/events/j",
    "/api/v1/conversions/j",
    "/api/v1/convert/j/status",
    "/api/status/j",
    "/jobs/j",
    "/api/jobs/j",
    "/api/v1/generations/j",
    "/api/v1/compositions/j",
];
const KINDS: [&str; 6] = ["conversion", "generation", "composition", "event", "video", "note"];

static BOUNDS: LazyLock<JobBounds> = LazyLock::new(|| JobBounds {
    history: 16,
    update_bytes: 64 * 1024,
    kinds: Arc::new(Kinds::new(support::DIALECTS.kinds.clone())),
});

fn is_json(bytes: &[u8]) {
    serde_json::from_slice::<&RawValue>(bytes).expect("what a mapping makes is JSON");
}

/// The texts in frames of a server, which are not masked.
fn texts(mut frames: &[u8]) -> Vec<&[u8]> {
    let mut texts = Vec::new();
    while let [first, second, rest @ ..] = frames {
        let (size, at) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), 2),
            127 => (u64::from_be_bytes(rest[..8].try_into().expect("eight bytes")) as usize, 8),
            size => (usize::from(*size), 0),
        };
        let (text, behind) = rest[at..].split_at(size);
        if first & 0x0f == 1 {
            texts.push(text);
        }
        frames = behind;
    }
    texts
}

fn tell(publication: &Publication, past: &Past) {
    let now = Moment::from_micros(1);
    for path in SOCKETS {
        let found = support::DIALECTS.routes.find(path).expect("a shipped route");
        let endpoint = found.websocket.expect("it is a WebSocket").clone();
        let mut speaker = Speaker::dialect(endpoint, found.params, now);
        let watcher = Watcher::new(None, now, &support::BOUNDS);
        let delivery = Delivery {
            via: SubscriptionId(0),
            at: publication.seq,
            replayed: false,
        };
        let past = speaker.wants_past(publication, delivery).then_some(past);
        let told = speaker.tell(publication, (delivery, past), &watcher, &Horizon::default());
        texts(&told).into_iter().for_each(is_json);
    }
    for path in POLLS {
        let found = support::DIALECTS.routes.find(path).expect("a shipped route");
        let Some(Answering::Poll(poll)) = found.answer else {
            panic!("{path} is not a poll");
        };
        if publication.is_state() {
            let past = poll.reads_milestones().then_some(past);
            let body = poll.body(publication, past);
            if body.tag == 1 {
                is_json(&body.bytes);
            }
        }
    }
}

fn hear(text: &str) {
    let about = About {
        user: None,
        now: WallTime::from_unix_micros(0),
    };
    for path in SOCKETS {
        let found = support::DIALECTS.routes.find(path).expect("a shipped route");
        let endpoint = found.websocket.expect("it is a WebSocket").clone();
        let now = Moment::from_micros(1);
        let mut speaker = Speaker::dialect(endpoint, found.params, now);
        match speaker.hear(Inbound::Text(text.to_owned()), &about, now) {
            Heard::Answer(bytes) | Heard::Leave(bytes) => {
                texts(&bytes).into_iter().for_each(is_json);
            }
            _ => {}
        }
    }
}

fuzz_target!(|steps: Vec<(u8, &[u8])>| {
    let name = |text: &str| Name::parse(text).expect("a name");
    let mut job = Job::new(JobKey(1), name("j"), name("u"), Seq::ZERO);
    for (seq, (kind, bytes)) in (1_u64..).zip(steps) {
        let milestone = name("clip_completed");
        let (subject, payload) = match kind % 4 {
            0 => (Subject::State, bytes.to_vec()),
            // As a member of a state that is right, of each kind in turn: most of what is generated gets no further.
            1 => {
                let kind = KINDS[usize::from(kind / 4) % KINDS.len()];
                let value = str::from_utf8(bytes).unwrap_or("null");
                let state = format!(r#"{{"status":"running","kind":"{kind}","result":{value},"meta":{value}}}"#);
                (Subject::State, state.into_bytes())
            }
            2 => (Subject::Milestone(&milestone), bytes.to_vec()),
            _ => {
                if let Ok(text) = str::from_utf8(bytes) {
                    hear(text);
                }
                continue;
            }
        };
        let place = Place {
            epoch: Epoch::new(1),
            seq: Seq::new(seq),
            received_at: Moment::from_micros(seq),
            stored_at: WallTime::from_unix_micros(seq as i64),
        };
        if let Ok(judged) = job.judge(subject, &payload, place, Sender::Away, &BOUNDS) {
            let publication = job.enter(judged, &BOUNDS);
            let (milestones, is_cut) = job.milestones();
            tell(&publication, &Past::new(milestones, is_cut));
        }
    }
});
