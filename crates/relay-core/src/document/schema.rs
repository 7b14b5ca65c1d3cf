//! The job document as a JSON Schema, for people and editors.
//!
//! Describes what the parser takes; the tests hold the two together and write `docs/reference/job.schema.json`.
//! No part of the relay.
//!
//! Invariant: the schema's properties are the fields of the parser, in the same order.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema as schema};
use serde_json::Value;

use super::status::{SYNONYMS, Status};

/// The complete state of one job, as a worker publishes it and a native client receives it.
///
/// Each state is complete: the last one is always enough. Only `status` is required of a worker; what a
/// client receives always has `job_id` and `owner` too. Fields not listed here pass through untouched,
/// and `null` in a listed one is as good as leaving it out. Within one `attempt` progress does not fall
/// and nothing follows an ending. An ending that came over NATS with something wrong in it also has
/// `dropped_fields` or `truncated`: the names of the fields that it lost.
#[derive(JsonSchema)]
#[schemars(title = "Job document")]
#[expect(dead_code, reason = "read by the derive only")]
struct JobDocument {
    /// The job's id. Taken from the subject or URL; if it is in the body too, the two must agree.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,128}$"))]
    job_id: Option<String>,
    /// The user id of the job's owner, or `-` for nobody. Taken from the subject or URL; if it is in the
    /// body too, the two must agree.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,128}$"))]
    owner: Option<String>,
    /// Where the job stands. `completed`, `failed` and `cancelled` are endings. A client receives one of
    /// the five; a worker may use a synonym, in any case and with `-` or a space for `_`.
    status: StatusWord,
    /// The worker's own word for the status, or more about it. Filled in when `status` was a synonym.
    status_detail: Option<String>,
    /// Which try at the job this is; 1 if left out. A higher attempt reopens a job that has ended.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    attempt: Option<u32>,
    /// What sort of job it is, such as `conversion` or `generation`.
    kind: Option<String>,
    /// How far the job is, in percent. If left out it is derived: 100 when the job is completed, else
    /// `current` of `total`, rounded down to hundredths.
    #[schemars(range(min = 0, max = 100))]
    progress: Option<f64>,
    /// How many of `total` are done.
    #[schemars(range(min = 0))]
    current: Option<f64>,
    /// How many there are to do; 0 while that is unknown.
    #[schemars(range(min = 0))]
    total: Option<f64>,
    /// What `current` and `total` count, such as `rows`.
    unit: Option<String>,
    /// What is being done now, such as `encoding`.
    stage: Option<String>,
    /// A sentence for a person.
    message: Option<String>,
    /// Seconds left: the worker's own word, otherwise the relay's estimate.
    #[schemars(range(min = 0))]
    eta_seconds: Option<f64>,
    /// `true` when `eta_seconds` is the relay's estimate.
    eta_estimated: Option<bool>,
    /// Sub-tasks, agents or clips of the job.
    tasks: Option<Vec<Task>>,
    /// What the job made. Any value.
    result: Option<Value>,
    /// Where to fetch what the job made.
    result_url: Option<String>,
    /// What went wrong. A plain string becomes the `message`. With `recoverable` on a running job it is
    /// not an ending.
    error: Option<Failure>,
    /// The job this one is a part of.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,128}$"))]
    parent_id: Option<String>,
    /// How much this job counts among the parts of its parent.
    #[schemars(range(min = 0))]
    weight: Option<f64>,
    /// When the job was created, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    created_at: Option<String>,
    /// When the job last changed, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    updated_at: Option<String>,
    /// The worker's clock at publishing, RFC 3339. End-to-end latency is measured from it.
    #[schemars(extend("format" = "date-time"))]
    ts: Option<String>,
    /// Whatever else the worker wants to say. Any object.
    meta: Option<BTreeMap<String, Value>>,
}

/// A part of the job with a name of its own. More fields pass through untouched.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "read by the derive only")]
struct Task {
    /// What to call it.
    name: String,
    /// Where it stands, in the words of the job's `status`.
    status: Option<StatusWord>,
    /// The worker's own word for the status. Filled in when `status` was a synonym.
    status_detail: Option<Value>,
    /// How far it is, in percent.
    #[schemars(range(min = 0, max = 100))]
    progress: Option<f64>,
    /// A sentence for a person.
    message: Option<String>,
}

/// What went wrong, in parts or as a sentence.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "read by the derive only")]
enum Failure {
    Parts(ErrorObject),
    Sentence(String),
}

/// What went wrong, in parts. More fields pass through untouched.
#[derive(JsonSchema)]
#[schemars(rename = "Error")]
#[expect(dead_code, reason = "read by the derive only")]
struct ErrorObject {
    /// For programs to go by.
    code: Option<Code>,
    /// For people to read.
    message: Option<String>,
    /// Whether the job goes on, or may be tried again.
    recoverable: Option<bool>,
}

/// A word or a number for programs to go by.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "read by the derive only")]
enum Code {
    Word(String),
    Number(f64),
}

/// One of the five statuses or a synonym; the list comes from where the parser has it.
struct StatusWord;

impl JsonSchema for StatusWord {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema!({
            "type": "string",
            "anyOf": [
                {"enum": Status::ALL.map(Status::as_str)},
                {
                    "description": "Synonyms, mapped to one of the five; the word is kept in `status_detail`.",
                    "enum": SYNONYMS.map(|(word, _)| word).to_vec(),
                },
            ],
        })
    }
}

/// The JSON Schema (draft 2020-12) of the job document, as in `docs/reference/job.schema.json`.
fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(JobDocument);
    schema.insert("additionalProperties".into(), true.into());
    schema.insert(
        "examples".into(),
        serde_json::json!([
            {"status": "running", "progress": 42.5, "stage": "encoding", "message": "clip 3 of 7"},
            {"status": "completed", "result_url": "https://example.org/results/j1"},
        ]),
    );
    RecursiveTransform(plain).transform(&mut schema);
    schema.to_value()
}

/// Takes out formats that name Rust's types, which strict validators stumble over, and the line breaks
/// that descriptions have from the width of this file.
fn plain(schema: &mut Schema) {
    if matches!(schema.get("format"), Some(format) if format != "date-time") {
        schema.remove("format");
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        let paragraphs = text.split("\n\n").map(|lines| lines.replace('\n', " "));
        *text = paragraphs.collect::<Vec<_>>().join("\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::Field;
    use super::super::{JobDocument, Refusal};
    use super::*;
    use crate::id::Name;

    fn parse(text: &str) -> Result<JobDocument, Refusal> {
        let (job, owner) = (Name::parse("j1").unwrap(), Name::parse("alice").unwrap());
        JobDocument::parse(text.as_bytes(), &job, &owner)
    }

    /// A value the field takes, and one it does not.
    fn samples(field: Field) -> (Value, Option<Value>) {
        let (good, bad) = match field {
            Field::JobId => ("\"j1\"", "1"),
            Field::Owner => ("\"alice\"", "1"),
            Field::Status => ("\"running\"", "1"),
            Field::StatusDetail | Field::Kind | Field::Unit | Field::Stage => ("\"x\"", "1"),
            Field::Message | Field::ResultUrl => ("\"x\"", "[]"),
            Field::Attempt => ("3", "0"),
            Field::Progress => ("50", "101"),
            Field::Current | Field::Total | Field::EtaSeconds | Field::Weight => ("2.5", "-1"),
            Field::EtaEstimated => ("true", "1"),
            Field::Tasks => ("[{\"name\":\"a\",\"status\":\"done\"}]", "[1]"),
            Field::Error => ("{\"code\":\"x\"}", "1"),
            Field::ParentId => ("\"p\"", "\"a.b\""),
            Field::CreatedAt | Field::UpdatedAt | Field::Ts => {
                ("\"2026-11-21T10:00:00Z\"", "\"noon\"")
            }
            Field::Meta => ("{}", "[]"),
            Field::Result => return (serde_json::json!([1]), None),
        };
        let value = |text: &str| serde_json::from_str(text).unwrap();
        (value(good), Some(value(bad)))
    }

    #[test]
    fn the_schema_has_the_fields_of_the_parser() {
        let schema = json_schema();
        let mut described: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        let mut parsed: Vec<_> = Field::ALL.iter().map(|field| field.as_str()).collect();
        described.sort();
        parsed.sort_unstable();
        assert_eq!(described, parsed);
        assert_eq!(schema["required"], serde_json::json!(["status"]));
        for field in Field::ALL {
            let property = &schema["properties"][field.as_str()];
            assert!(property["description"].is_string(), "{property}");
        }
    }

    #[test]
    fn each_property_of_the_schema_is_checked_by_the_parser() {
        let schema = json_schema();
        for field in Field::ALL {
            let (good, bad) = samples(*field);
            let with = |value: &Value| {
                let mut document = serde_json::json!({"status": "running"});
                document[field.as_str()] = value.clone();
                document.to_string()
            };
            assert!(parse(&with(&good)).is_ok(), "{field:?}");
            if let Some(bad) = bad {
                let refusal = parse(&with(&bad)).unwrap_err();
                let at_fault = refusal.field().unwrap_or_default();
                assert!(at_fault.starts_with(field.as_str()), "{refusal}");
            }
            let types = &schema["properties"][field.as_str()]["type"];
            assert!(types.is_null() || type_names(types, &good), "{field:?}");
        }
    }

    fn type_names(types: &Value, value: &Value) -> bool {
        let named = |name: &Value| match name.as_str().unwrap() {
            "string" => value.is_string(),
            "number" => value.is_number(),
            "integer" => value.is_u64(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => other == "null" && value.is_null(),
        };
        match types {
            Value::Array(names) => names.iter().any(named),
            name => named(name),
        }
    }

    #[test]
    fn the_examples_of_the_schema_are_documents() {
        for example in json_schema()["examples"].as_array().unwrap() {
            assert!(parse(&example.to_string()).is_ok(), "{example}");
        }
    }

    #[test]
    fn the_published_schema_is_this_one() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/job.schema.json"
        );
        let schema = json_schema();
        if std::env::var_os("RELAY_BLESS").is_some() {
            let text = serde_json::to_string_pretty(&schema).unwrap();
            std::fs::write(path, text + "\n").unwrap();
        }
        // Compared as a value: the order of names in the text is not ours to fix.
        let published = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            serde_json::from_str::<Value>(&published).ok() == Some(schema),
            "docs/reference/job.schema.json is not the schema of the job document any more; write it with \
             RELAY_BLESS=1 cargo test -p relay-core schema"
        );
    }
}
