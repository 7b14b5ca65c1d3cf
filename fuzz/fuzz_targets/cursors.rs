//! Cursors from clients: one that is read has one spelling, and says nothing of topics that are not in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::cursor::{Cursor, MAX_TOPICS};
use relay_core::topic::Topic;

fuzz_target!(|text: &str| {
    let Ok(cursor) = Cursor::parse(text) else {
        return;
    };
    assert_eq!(cursor.to_string(), text);
    assert!(cursor.told().len() <= MAX_TOPICS);
    for topic in ["job:a", "user:a", "group:a"] {
        let topic = Topic::parse(topic).expect("a topic");
        if cursor.told().is_empty() {
            assert_eq!(cursor.since(&topic), None);
        }
        let _ = cursor.since(&topic);
    }
});
