//! What a client of the native protocol sends, as bytes of its WebSocket: every message is answered or understood.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::moment::{Moment, WallTime};
use relay_wire::exchange::{About, Heard};
use relay_wire::speaker::Speaker;
use relay_wire::websocket::Inbound;

fuzz_target!(|text: &str| {
    let about = About {
        user: None,
        now: WallTime::from_unix_micros(0),
    };
    let mut speaker = Speaker::websocket();
    let inbound = Inbound::Text(text.to_owned());
    let id = speaker.id_of(&inbound);
    match speaker.hear(inbound, &about, Moment::from_micros(1)) {
        Heard::Asked(asked, reply_to) => {
            assert!(!asked.is_empty());
            assert_eq!(reply_to.id(), id.id());
        }
        Heard::Rejected(rejected, _) => assert!(!rejected.message.is_empty()),
        other => panic!("{text:?} is heard as {other:?}"),
    }
});
