//! Keeps `config/relay.toml` and `docs/reference/config.md` what the code says.
//!
//! Both are written from the comments, types and defaults of `config::sections`; `RELAY_BLESS=1` writes them anew.
//!
//! Invariant: neither file is edited by hand.

use std::fmt::Write;

use serde_json::Value;

use super::assert_written;
use crate::config::{Config, env_name, known_keys};

/// One key as a person is told about it.
struct Entry {
    section: String,
    name: String,
    key: String,
    kind: String,
    /// As TOML; `None` when there is none.
    default: Option<String>,
    meaning: String,
    example: Option<String>,
}

fn schema() -> Value {
    let settings =
        schemars::generate::SchemaSettings::default().with(|s| s.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value()
}

fn text_of(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// What may be written for a key, in words.
fn kind_of(schema: &Value, name: &str) -> String {
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        let real = options.iter().find(|o| o["type"] != "null");
        return real.map_or_else(String::new, |o| kind_of(o, name));
    }
    let choices: Vec<String> = match (&schema["oneOf"], &schema["enum"]) {
        (Value::Array(options), _) => options.iter().map(|o| o["const"].clone()).collect(),
        (_, Value::Array(options)) => options.clone(),
        _ => Vec::new(),
    }
    .iter()
    .filter(|value| !value.is_null())
    .map(|value| format!("`{value}`"))
    .collect();
    if !choices.is_empty() {
        return choices.join(", ");
    }
    let is = |wanted: &str| {
        schema["type"] == wanted
            || schema["type"]
                .as_array()
                .is_some_and(|t| t.iter().any(|t| t == wanted))
    };
    if is("array") {
        return format!("list of {}", kind_of(&schema["items"], name));
    }
    match schema["format"].as_str() {
        Some("uint" | "uint32" | "uint64") => "whole number".to_owned(),
        Some(format) => format.to_owned(),
        None if is("boolean") => "`true`, `false`".to_owned(),
        None if name.ends_with("file") || name == "directory" => "path".to_owned(),
        None => "text".to_owned(),
    }
}

fn entries() -> Vec<Entry> {
    let schema = schema();
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    known_keys()
        .into_iter()
        .map(|key| {
            let (section, name) = key.split_once('.').unwrap();
            let about = &schema["properties"][section]["properties"][name];
            let text = text_of(about);
            let (meaning, example) = match text.split_once(" Example: `") {
                Some((meaning, example)) => (
                    meaning.to_owned(),
                    Some(example.trim_end_matches('`').to_owned()),
                ),
                None => (text, None),
            };
            Entry {
                section: section.to_owned(),
                name: name.to_owned(),
                kind: kind_of(about, name),
                default: defaults[section].get(name).map(ToString::to_string),
                meaning,
                example,
                key: key.clone(),
            }
        })
        .collect()
}

fn section_meaning(section: &str) -> String {
    text_of(&schema()["properties"][section])
}

/// Writes `text` as comment lines of at most 100 columns.
fn comment(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split(' ') {
        if width > 0 && width + 1 + word.len() > 100 {
            out.push('\n');
            width = 0;
        }
        out.push_str(if width == 0 { "# " } else { " " });
        width += word.len() + if width == 0 { 2 } else { 1 };
        out.push_str(word);
    }
    out.push('\n');
}

fn relay_toml() -> String {
    let mut out = String::from(
        "# Every key of the relay, at its default. Uncomment a key to change it.\n\
         #\n\
         # Durations are texts with a unit: \"250ms\", \"10s\", \"1h 30m\", \"24h\". Sizes are bytes, or texts with\n\
         # KiB, MiB or GiB. A path is taken from the directory the relay is started in. The environment is\n\
         # laid over this file: nats.url is RELAY__NATS__URL, with commas between the parts of a list.\n\
         # `relay check --config FILE` finds mistakes; `--print` shows the effective configuration.\n",
    );
    let mut open = String::new();
    for entry in entries() {
        if entry.section != open {
            write!(
                out,
                "\n\n# {}\n[{}]\n",
                section_meaning(&entry.section),
                entry.section
            )
            .unwrap();
            entry.section.clone_into(&mut open);
        }
        out.push('\n');
        comment(&mut out, &entry.meaning);
        match (&entry.default, &entry.example) {
            (Some(default), _) => writeln!(out, "#{} = {default}", entry.name).unwrap(),
            (None, example) => {
                let example = example
                    .as_deref()
                    .expect("a key without default has an example");
                writeln!(out, "# No default. For example: {} = {example}", entry.name).unwrap();
            }
        }
    }
    out.push_str("\n\n");
    comment(&mut out, &section_meaning("kinds"));
    for (name, meaning, example) in kind_keys() {
        out.push('\n');
        comment(&mut out, &meaning);
        writeln!(out, "# {name} = {example}").unwrap();
    }
    out
}

/// The keys of each `[kinds.<name>]`: name, meaning and an example.
fn kind_keys() -> Vec<(String, String, String)> {
    let schema = schema();
    let keys = schema["properties"]["kinds"]["additionalProperties"]["properties"].as_object();
    let keys = keys.unwrap().iter();
    keys.map(|(name, about)| {
        let text = text_of(about);
        let (meaning, example) = text.split_once(" Example: `").unwrap();
        let example = example.trim_end_matches('`').to_owned();
        (name.clone(), meaning.to_owned(), example)
    })
    .collect()
}

fn config_md() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         The relay takes its defaults, lays the file named by `--config` over them, and the environment over that.\n\
         With no file and no variable it runs: an embedded bus on loopback, open to this machine only.\n\
         [`config/relay.toml`](../../config/relay.toml) has every key at its default.\n\n\
         - `relay check --config FILE` prints every mistake with its place, and what was probably meant;\n  \
           `--print` shows the effective configuration, secrets hidden, and where each value comes from.\n\
         - The variable of `nats.url` is `RELAY__NATS__URL`: two underscores between section and key. Other\n  \
           variables that begin with `RELAY_` are ignored; one that would be a key with one more underscore is a mistake.\n\
         - A **duration** is a text with a unit: `\"250ms\"`, `\"10s\"`, `\"1h 30m\"`, `\"24h\"`. A **size** is a number of\n  \
           bytes or a text with a unit: `\"64KiB\"`, `\"256MiB\"`. A **list** may be one text with commas, which is how\n  \
           it is written in a variable. A **path** is taken from the directory the relay is started in.\n\
         - A **secret** is never printed. Each has a `_file` beside it, for secrets that are mounted as files. A byte\n  \
           order mark before it and one line end after it are not part of it.\n\
         - An unknown key, in the file or in a `RELAY__` variable, is a mistake and stops the start.\n\n\
         This page is written from the code; `RELAY_BLESS=1 cargo test -p relay-server --lib reference` writes it anew.\n",
    );
    let mut open = String::new();
    for entry in entries() {
        if entry.section != open {
            write!(
                out,
                "\n## [{}]\n\n{}\n\n| Key | Type | Default | Variable | Meaning |\n|---|---|---|---|---|\n",
                entry.section,
                section_meaning(&entry.section)
            )
            .unwrap();
            entry.section.clone_into(&mut open);
        }
        let default = entry.default.map_or("–".to_owned(), |d| format!("`{d}`"));
        writeln!(
            out,
            "| `{}` | {} | {default} | `{}` | {} |",
            entry.key,
            entry.kind,
            env_name(&entry.key),
            entry.meaning.replace('|', "\\|")
        )
        .unwrap();
    }
    write!(
        out,
        "\n## [kinds.*]\n\n{} They have no variables.\n\n| Key | Type | Example | Meaning |\n|---|---|---|---|\n",
        section_meaning("kinds")
    )
    .unwrap();
    for (name, meaning, example) in kind_keys() {
        writeln!(out, "| `{name}` | list of text | `{example}` | {meaning} |").unwrap();
    }
    out
}

#[test]
fn the_sample_file_is_what_the_code_says() {
    assert_written("config/relay.toml", &relay_toml());
}

#[test]
fn the_reference_page_is_what_the_code_says() {
    assert_written("docs/reference/config.md", &config_md());
}

#[test]
fn the_sample_file_with_every_key_uncommented_is_the_default() {
    let commented = relay_toml();
    let file: String = commented
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        })
        .fold(String::new(), |text, line| text + line + "\n");
    let read: Config = toml::from_str(&file).unwrap();
    assert_eq!(read, Config::default());
    let read_as_it_is: Config = toml::from_str(&commented).unwrap();
    assert_eq!(read_as_it_is, Config::default());
    // Every key stands there, with a value or with an example.
    let values: toml::Table = file.parse().unwrap();
    for key in known_keys() {
        let (section, name) = key.split_once('.').unwrap();
        let example = format!("\n# No default. For example: {name} = ");
        let in_section = file.split(&format!("\n[{section}]\n")).nth(1).unwrap();
        let in_section = in_section.split("\n[").next().unwrap();
        assert!(
            values[section].get(name).is_some() || in_section.contains(&example),
            "{key}"
        );
    }
}

#[test]
fn every_example_is_a_value_its_key_takes() {
    for entry in entries() {
        let Some(example) = entry.example else {
            continue;
        };
        let file = format!("[{}]\n{} = {example}\n", entry.section, entry.name);
        let read = toml::from_str::<Config>(&file);
        assert!(read.is_ok(), "{}: {:?}", entry.key, read.err());
    }
}

#[test]
fn every_key_has_a_meaning_and_a_kind() {
    for entry in entries() {
        assert!(
            entry.meaning.ends_with('.'),
            "{}: {}",
            entry.key,
            entry.meaning
        );
        assert!(!entry.kind.is_empty(), "{}", entry.key);
        assert!(!section_meaning(&entry.section).is_empty());
    }
}
