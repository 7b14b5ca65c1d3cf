//! Reads a configuration's layers, the file and the environment, into single values with their places.
//!
//! Each value is tried on its own against [`Config`], so that one mistake hides no other. What the values
//! mean together is not known here; see `validate`.
//!
//! Invariant: every value handed on has been accepted by its key's type.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::Config;
use super::problem::{Place, Problem, distance, nearest};

/// The section whose keys are tables that people name.
const TABLES: &str = "kinds";

/// In front of every variable that is a key: `RELAY__NATS__URL` is `nats.url`.
const ENV_PREFIX: &str = "RELAY__";

/// One value as somebody wrote it.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    /// `nats.url`.
    pub(super) key: String,
    /// Where the value (in a file: its key) stands.
    pub(super) place: Place,
    value: Value,
    /// Where the elements of a list stand.
    elements: Vec<Place>,
}

impl Leaf {
    /// Puts the value into the table it belongs in.
    pub(super) fn add_to(&self, layer: &mut Table) {
        if let Some((section, name)) = self.key.split_once('.') {
            let section = layer
                .entry(section.to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(name.to_owned(), self.value.clone());
            }
        }
    }

    fn problem(&self, message: String) -> Problem {
        Problem {
            place: self.place.clone(),
            key: self.key.clone(),
            message,
        }
    }

    /// Finds a text without anything in it, which is a value for a list alone.
    fn blank(&self) -> Option<Problem> {
        let is_blank = matches!(&self.value, Value::String(text) if text.trim().is_empty());
        let list = Self {
            value: Value::Array(Vec::new()),
            ..self.clone()
        };
        (is_blank && list.check().is_err()).then(|| {
            self.problem(
                match self.place {
                    Place::Env(_) => "is set to nothing; give the variable a value, or unset it",
                    Place::File { .. } | Place::Unset => {
                        "is empty; write a value, or leave the key out"
                    }
                }
                .to_owned(),
            )
        })
    }

    /// Tries the value on its key's type.
    fn check(&self) -> Result<(), Problem> {
        let mut alone = Table::new();
        self.add_to(&mut alone);
        let Err(error) = serde_path_to_error::deserialize::<_, Config>(Value::Table(alone)) else {
            return Ok(());
        };
        let path = error.path().to_string();
        let mut problem = self.problem(humane(error.inner().message()));
        let index = path
            .strip_prefix(&self.key)
            .and_then(|rest| rest.strip_prefix('['))
            .and_then(|rest| rest.strip_suffix(']'))
            .and_then(|n| n.parse::<usize>().ok());
        if let Some(index) = index {
            problem.key = path;
            if let Some(place) = self.elements.get(index) {
                problem.place = place.clone();
            }
        }
        Err(problem)
    }
}

/// Reads `file`; what cannot be taken goes to `problems`.
pub(super) fn from_file(file: &Path, known: &[String], problems: &mut Vec<Problem>) -> Vec<Leaf> {
    let whole_file = |message: String| Problem {
        place: Place::Unset,
        key: file.display().to_string(),
        message,
    };
    let text = match std::fs::read(file).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => {
            problems.push(whole_file("is not UTF-8 text; save it as UTF-8".to_owned()));
            return Vec::new();
        }
        Err(error) => {
            problems.push(whole_file(format!(
                "cannot read the configuration: {error}"
            )));
            return Vec::new();
        }
    };
    let reader = FileReader { file, text: &text };
    reader.read(known, problems)
}

struct FileReader<'a> {
    file: &'a Path,
    text: &'a str,
}

impl FileReader<'_> {
    fn read(&self, known: &[String], problems: &mut Vec<Problem>) -> Vec<Leaf> {
        let (places, errors) = DeTable::parse_recoverable(self.text);
        // What the parser guessed after a syntax error would only make more noise.
        if !errors.is_empty() {
            problems.extend(errors.iter().map(|error| Problem {
                place: self.place(error.span().map_or(0, |span| span.start)),
                key: String::new(),
                message: format!("not valid TOML: {}", error.message()),
            }));
            return Vec::new();
        }
        let values: Table = match self.text.parse() {
            Ok(values) => values,
            Err(error) => {
                let error: toml::de::Error = error;
                problems.push(Problem {
                    place: self.place(error.span().map_or(0, |span| span.start)),
                    key: String::new(),
                    message: format!("not valid TOML: {}", error.message()),
                });
                return Vec::new();
            }
        };
        let mut leaves = Vec::new();
        for (section, content) in places.get_ref() {
            let values = values.get(section.get_ref().as_ref());
            self.read_section(section, content, values, known, &mut leaves, problems);
        }
        leaves.retain(|leaf| {
            let checked = leaf.blank().map_or_else(|| leaf.check(), Err);
            checked.map_err(|p| problems.push(p)).is_ok()
        });
        leaves
    }

    fn read_section(
        &self,
        section: &Spanned<std::borrow::Cow<'_, str>>,
        content: &Spanned<DeValue<'_>>,
        values: Option<&Value>,
        known: &[String],
        leaves: &mut Vec<Leaf>,
        problems: &mut Vec<Problem>,
    ) {
        let name = section.get_ref().as_ref();
        let mut refuse = |place, key: String, message| {
            problems.push(Problem {
                place,
                key,
                message,
            });
        };
        let here = self.place(section.span().start);
        let has_tables = name == TABLES;
        let is_section = has_tables || sections_of(known).any(|s| s == name);
        let (DeValue::Table(table), Some(Value::Table(values))) = (content.get_ref(), values)
        else {
            let message = if is_section {
                format!(
                    "is a section; write [{name}] on its own line and its keys under it, not {}",
                    content.get_ref().type_str()
                )
            } else {
                unknown_key(name, known)
            };
            return refuse(here, name.to_owned(), message);
        };
        if !is_section {
            return refuse(here, name.to_owned(), unknown_section(name, known));
        }
        for (key_name, content) in table {
            let key = format!("{name}.{}", key_name.get_ref());
            let place = self.place(key_name.span().start);
            if !has_tables && !known.contains(&key) {
                let message = unknown_key(&key, known);
                refuse(place, key, message);
                continue;
            }
            let Some(value) = values.get(key_name.get_ref().as_ref()) else {
                continue;
            };
            let elements = content.get_ref().as_array().into_iter().flatten();
            leaves.push(Leaf {
                key,
                place,
                value: value.clone(),
                elements: elements.map(|e| self.place(e.span().start)).collect(),
            });
        }
    }

    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place::File {
            path: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Takes the variables that are keys; what cannot be taken goes to `problems`.
///
/// Anything that does not start with `RELAY__` belongs to somebody else (Kubernetes sets
/// `RELAY_SERVICE_HOST` for a service of that name), except a name that is a key but for an underscore.
pub(super) fn from_env(
    env: impl Iterator<Item = (String, String)>,
    known: &[String],
    problems: &mut Vec<Problem>,
) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for (name, text) in env {
        let place = Place::Env(name.clone());
        let Some(path) = name.strip_prefix(ENV_PREFIX) else {
            if let Some(key) = known.iter().find(|key| is_missing_underscore(&name, key)) {
                problems.push(Problem {
                    place,
                    key: key.clone(),
                    message: format!(
                        "is not read from this name; two underscores part section and key: {}",
                        env_name(key)
                    ),
                });
            }
            continue;
        };
        let key = path.to_ascii_lowercase().replacen("__", ".", 1);
        if known.contains(&key) {
            leaves.extend(env_leaf(key, place, text).map_err(|p| problems.push(p)));
            continue;
        }
        let message = match nearest(&key, known) {
            Some(meant) => format!("unknown key; did you mean {}?", env_name(meant)),
            None => "unknown key; the keys are in docs/reference/config.md".to_owned(),
        };
        problems.push(Problem {
            place,
            key,
            message,
        });
    }
    leaves
}

/// A variable is text, but the key may want a number or a truth value: text is tried first.
fn env_leaf(key: String, place: Place, text: String) -> Result<Leaf, Problem> {
    let typed = text
        .parse()
        .map(Value::Integer)
        .or_else(|_| text.parse().map(Value::Boolean))
        .ok();
    let mut leaf = Leaf {
        key,
        place,
        value: Value::String(text),
        elements: Vec::new(),
    };
    if let Some(blank) = leaf.blank() {
        return Err(blank);
    }
    let as_text = match leaf.check() {
        Ok(()) => return Ok(leaf),
        Err(problem) => problem,
    };
    let Some(typed) = typed else {
        return Err(as_text);
    };
    leaf.value = typed;
    match leaf.check() {
        Ok(()) => Ok(leaf),
        Err(as_typed) if as_text.message.starts_with("invalid type") => Err(as_typed),
        Err(_) => Err(as_text),
    }
}

/// `RELAY__NATS__URL` for `nats.url`.
pub(crate) fn env_name(key: &str) -> String {
    format!(
        "{ENV_PREFIX}{}",
        key.replacen('.', "__", 1).to_ascii_uppercase()
    )
}

fn is_missing_underscore(name: &str, key: &str) -> bool {
    let squeezed = |text: &str| text.replace("__", "_").to_ascii_uppercase();
    name.starts_with("RELAY_") && squeezed(name) == squeezed(&env_name(key))
}

fn sections_of(known: &[String]) -> impl Iterator<Item = &str> {
    known
        .iter()
        .filter_map(|key| key.split_once('.').map(|(section, _)| section))
}

fn unknown_section(name: &str, known: &[String]) -> String {
    let wanted = name.to_lowercase();
    match sections_of(known).min_by_key(|section| distance(&wanted, section)) {
        Some(section) if distance(&wanted, section) <= 2 => {
            format!("unknown section; did you mean [{section}]?")
        }
        _ => "unknown section; the sections and keys are in docs/reference/config.md".to_owned(),
    }
}

fn unknown_key(key: &str, known: &[String]) -> String {
    match nearest(key, known) {
        Some(meant) => format!("unknown key; did you mean {meant}?"),
        None => "unknown key; the keys are in docs/reference/config.md".to_owned(),
    }
}

/// Serde speaks of Rust's types and of variants; people write words and numbers.
fn humane(message: &str) -> String {
    let mut text = message.trim_end().to_owned();
    for (rust, plain) in [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected a boolean", "expected true or false"),
        ("expected a string", "expected a text in quotes"),
        ("expected path string", "expected a path in quotes"),
    ] {
        text = text.replace(rust, plain);
    }
    if let Some(rest) = text.strip_prefix("unknown variant ") {
        let mut words = rest.split('`').skip(1).step_by(2);
        let wrote = words.next().unwrap_or_default().to_ascii_lowercase();
        let offered = words.min_by_key(|word| distance(&wrote, &word.to_ascii_lowercase()));
        let hint = offered.filter(|word| distance(&wrote, &word.to_ascii_lowercase()) <= 2);
        text = match hint {
            Some(hint) => format!("unknown value {rest}; did you mean `{hint}`?"),
            None => format!("unknown value {rest}"),
        };
    }
    text
}

/// Lays the environment's values over the file's and both over the defaults.
///
/// The `config` crate does the laying, which the project has chosen for its layers; the leaves keep what that crate
/// does not, the place of each value. It takes text, so both layers are written out once more, at start alone.
pub(super) fn merge(file: &[Leaf], env: &[Leaf]) -> Result<Config, Problem> {
    let layer = |leaves: &[Leaf]| {
        let mut table = Table::new();
        for leaf in leaves {
            leaf.add_to(&mut table);
        }
        // As text: handed over as a value, an empty list would be taken for no value.
        ::config::File::from_str(&table.to_string(), ::config::FileFormat::Toml)
    };
    let unreadable = |key: String, message: String| Problem {
        place: Place::Unset,
        key,
        message,
    };
    let merged = ::config::Config::builder()
        .add_source(layer(file))
        .add_source(layer(env))
        .build()
        .map_err(|error| unreadable(String::new(), error.to_string()))?;
    serde_path_to_error::deserialize(merged)
        .map_err(|error| unreadable(error.path().to_string(), error.inner().to_string()))
}

/// A map that keeps the order its keys came in.
#[derive(Debug)]
pub(super) struct Declared<T>(pub(super) Vec<(String, T)>);

impl<T> Default for Declared<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Declared<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Declared<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Declared(entries))
            }
        }

        from.deserialize_map(InOrder(PhantomData))
    }
}
