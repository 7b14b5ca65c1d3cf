//! Merge patches onto a state: the result is JSON, and an empty patch changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::document::{JobDocument, merge_patch};
use relay_core::id::Name;
use serde_json::value::RawValue;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (state, patch) = input;
    let job = Name::parse("j").expect("a name");
    let owner = Name::parse("u").expect("a name");
    let last = match JobDocument::parse(state, &job, &owner) {
        Ok(document) => document.into_json(),
        Err(_) => br#"{"job_id":"j","owner":"u","status":"running","meta":{"a":{"b":1}}}"#.to_vec(),
    };
    let Ok(merged) = merge_patch(&last, patch) else {
        return;
    };
    serde_json::from_slice::<&RawValue>(&merged).expect("a merged state is JSON");
    let same = merge_patch(&merged, b"{}").expect("nothing can be merged onto it");
    let again = merge_patch(&same, b"{}").expect("nothing can be merged onto it");
    assert_eq!(same, again);
});
