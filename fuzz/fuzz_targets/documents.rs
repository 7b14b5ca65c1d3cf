//! States and milestones from workers: what is taken is JSON that is taken again, and means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::document::{JobDocument, MilestoneData};
use relay_core::id::Name;
use serde_json::value::RawValue;

fn is_json(text: &[u8]) {
    serde_json::from_slice::<&RawValue>(text).expect("what is taken is JSON");
}

fuzz_target!(|payload: &[u8]| {
    let job = Name::parse("j").expect("a name");
    let owner = Name::parse("u").expect("a name");
    if let Ok(document) = JobDocument::parse(payload, &job, &owner) {
        let json = document.into_json();
        is_json(&json);
        let again = JobDocument::restore(&json, &job, &owner).expect("what was taken is taken again");
        assert_eq!(again.into_json(), json);
    }
    if let Ok(data) = MilestoneData::parse(payload) {
        let json = data.into_json();
        is_json(json.as_bytes());
        let again = MilestoneData::restore(json.as_bytes()).expect("what was taken is taken again");
        assert_eq!(again.into_json(), json);
    }
});
