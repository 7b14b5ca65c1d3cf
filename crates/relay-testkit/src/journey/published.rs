//! What workers published: the truth that watchers are held against.
//!
//! Invariant: the updates of a job are in the order in which its worker published them.

use std::collections::BTreeMap;

use serde_json::Value;

/// One update of a job, as it was published and acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Its number within its job.
    pub mark: u64,
    /// The milestone's name; `None` for a state.
    pub milestone: Option<String>,
    /// The body.
    pub body: Value,
}

/// All that was published, by job, in order.
#[derive(Debug, Clone, Default)]
pub struct Published(pub BTreeMap<String, Vec<Update>>);

impl Published {
    /// Reads one JSON document a line: `{"job":…,"mark":…,"milestone":name or null,"body":…}`.
    /// Lines that are something else are left out.
    pub fn parse(lines: &str) -> Self {
        let mut published = Self::default();
        for line in lines.lines() {
            let Ok(value) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if let (Some(job), Some(mark)) = (value["job"].as_str(), value["mark"].as_u64()) {
                published.add(
                    job,
                    Update {
                        mark,
                        milestone: value["milestone"].as_str().map(str::to_owned),
                        body: value["body"].clone(),
                    },
                );
            }
        }
        published
    }

    /// Notes one update.
    pub fn add(&mut self, job: &str, update: Update) {
        self.0.entry(job.to_owned()).or_default().push(update);
    }

    /// How many updates there are.
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether nothing was published.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether `whole` has everything that is in `part`; numbers by value, further fields allowed.
pub fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| contains(whole, part))),
        (Value::Number(whole), Value::Number(part)) => whole.as_f64() == part.as_f64(),
        (whole, part) => whole == part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_may_have_more_than_was_published() {
        let whole = json!({"a": 1.0, "b": {"c": [1], "d": 2}});
        assert!(contains(&whole, &json!({"a": 1, "b": {"c": [1]}})));
        assert!(!contains(&whole, &json!({"b": {"c": [2]}})));
    }
}
