//! Topics, names, and the paths and queries they come in.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::id::Name;
use relay_core::id::user::{user_name, user_of};
use relay_core::moment::WallTime;
use relay_core::topic::Topic;

#[path = "support.rs"]
mod support;

fuzz_target!(|text: &str| {
    if let Ok(topic) = Topic::parse(text) {
        let shown = topic.to_string();
        assert_eq!(Topic::parse(&shown).as_ref(), Ok(&topic), "{text:?} is shown as {shown:?}");
    }
    if let Ok(name) = Name::parse(text) {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains(['.', '*', '>', ' ', '/']) && text.is_ascii());
    }
    if let Ok(name) = user_name(text) {
        assert_eq!(user_of(&name).as_deref(), Some(text), "{text:?} becomes {name}");
    }
    if let Some(time) = WallTime::parse_rfc3339(text) {
        let _ = time.to_rfc3339();
    }
    if let Some(found) = support::DIALECTS.routes.find(text) {
        let query: Vec<(String, String)> = Vec::new();
        if let Some(relay_wire::dialect::Answering::Poll(poll)) = found.answer {
            let _ = poll.topic(&found.params, &query, None);
        }
    }
});
