//! What holds of any document, tried on documents nobody would write.
//!
//! Invariant: nothing that comes in makes the parser panic, and what it takes reads back as itself.

use super::tests::{accepted, field, parse};
use super::*;
use proptest::prelude::*;

fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,3})?",
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let space = "[ \n\t]{0,2}";
        prop_oneof![
            (proptest::collection::vec(inner.clone(), 0..4), space).prop_map(
                |(all, space)| format!("[{space}{}{space}]", all.join(&format!("{space},")))
            ),
            (inner, ".{0,8}", space).prop_map(|(value, key, space)| {
                let key = serde_json::to_string(&key).unwrap();
                format!("{{{space}{key}{space}:{space}{value}{space}}}")
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_a_document_or_a_reason_but_never_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (job, owner) = (Name::parse("j1").unwrap(), Name::nobody());
        if let Err(refusal) = JobDocument::parse(&payload, &job, &owner) {
            prop_assert!(!refusal.to_string().is_empty());
        }
        if let Ok(data) = MilestoneData::parse(&payload) {
            prop_assert!(!data.as_json().contains('\n'));
        }
        if let Ok(merged) = merge_patch(br#"{"status":"running"}"#, &payload) {
            prop_assert_eq!(merged.first(), Some(&b'{'));
        }
    }

    #[test]
    fn any_cut_or_bent_document_is_taken_or_refused(at in 0usize..200, byte in any::<char>(), cut in any::<bool>()) {
        let whole = r#"{"status":"running","progress":NaN,"tasks":[{"name":"a","status":"done"}],"error":{"code":1},"x":[1.0,{"y":"\u00e9\\"}],"ts":"2026-11-21T10:00:00Z"}"#;
        let at = at.min(whole.len());
        let rest = if cut { "" } else { &whole[at..] };
        if let Ok(doc) = parse(&format!("{}{byte}{rest}", &whole[..at])) {
            accepted(doc.as_json());
        }
    }

    #[test]
    fn a_canonical_text_reads_back_as_itself(
        fields in proptest::collection::vec(("[a-z_\\u{80}-\\u{ff}\"]{1,9}", any_json()), 0..6),
        known in proptest::collection::vec((0..Field::ALL.len(), any_json()), 0..3),
        status in "queued|running|done|ERROR|revoked",
    ) {
        let mut text = format!("{{ \"status\" : \"{status}\"");
        for (name, value) in &fields {
            text += &format!(",{} :{value}", serde_json::to_string(name).unwrap());
        }
        for (at, value) in &known {
            text += &format!(",\"{}\":{value}", Field::ALL[*at].as_str());
        }
        text += "\n}";
        if let Ok(doc) = parse(&text) {
            accepted(doc.as_json());
            prop_assert!(!doc.as_json().contains('\n'));
            for (name, value) in &fields {
                let mut line = String::new();
                crate::document::text::push_compact(&mut line, value);
                if Field::named(name).is_none() {
                    prop_assert_eq!(field(&doc, name), Some(&*line));
                }
            }
        }
    }

    #[test]
    fn derived_progress_never_falls_as_current_rises(total in 1u32.., a in any::<u32>(), b in any::<u32>()) {
        let (low, high) = (f64::from(a.min(b)), f64::from(a.max(b)));
        let total = f64::from(total);
        prop_assert!(percentage(low, total) <= percentage(high, total));
        prop_assert!((0.0..=100.0).contains(&percentage(high, total)));
        prop_assert!(percentage(low, total) < 100.0 || low >= total);
    }

    #[test]
    fn a_merge_is_what_a_tree_merge_is(base in any_json(), patch in any_json()) {
        let tree = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        let (Some(before), Some(change)) = (tree(&base), tree(&patch)) else { return Ok(()) };
        let wrap = |value: &str| format!("{{\"v\":{value}}}");
        let merged = merge_patch(wrap(&base).as_bytes(), wrap(&patch).as_bytes()).unwrap();
        let mut expected = serde_json::json!({ "v": before });
        merge_trees(&mut expected, &serde_json::json!({ "v": change }));
        prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&merged).unwrap(), expected);
    }
}

/// RFC 7396 as its section 2 writes it down.
fn merge_trees(target: &mut serde_json::Value, patch: &serde_json::Value) {
    let serde_json::Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge_trees(
                target
                    .entry(name.clone())
                    .or_insert(serde_json::Value::Null),
                value,
            );
        }
    }
}
