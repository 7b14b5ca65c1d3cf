//! Mappings: jq programs from a dialect's file, compiled once and run on frames, messages and documents.
//!
//! A mapping turns one JSON value into any number of JSON texts. It knows nothing of what the values mean,
//! of sockets or of dialects; its caller says what a failure leads to.
//!
//! Invariant: one run gives at most [`MAX_OUTPUTS`] texts of together at most [`MAX_BYTES`], whatever its
//! input is.

use std::fmt;
use std::io::{self, Write};

use jaq_core::load::{Arena, File, Loader, lex, parse, span};
use jaq_core::native::{self, Fun};
use jaq_core::{Compiler, Ctx, Exn, Filter, ValR, Vars, compile, data, load};
use jaq_json::{Val, read, write};
use serde::Serialize;

use super::Meter;

/// Texts one run may give.
const MAX_OUTPUTS: usize = 16;
/// Bytes one run may give in all.
const MAX_BYTES: usize = 256 * 1024;
/// The deepest nesting a mapping's input may have: values are read, written and dropped recursively.
const MAX_DEPTH: usize = 128;

/// What reads a text as JSON, also for `tonumber` and `toboolean`.
const FROM_JSON: &str = "fromjson";

type Data = data::JustLut<Val>;

/// A compiled mapping.
pub(super) struct Mapping {
    name: String,
    filter: Filter<Data>,
    meter: Box<dyn Meter>,
    /// Whether its text, or that of its definitions, has the word for what not every run needs.
    reads: Reads,
}

/// What a program may look at that is not the same for everybody, or has to be fetched. A program that has not got the
/// word for it cannot.
#[derive(Debug, Clone, Copy)]
struct Reads {
    milestones: bool,
    identifier: bool,
}

/// What is wrong with a program's text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Offset into the text, in bytes.
    pub(super) offset: usize,
    /// What jq says.
    pub(super) message: String,
}

/// Why a run gave nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The input is nested too deep.
    #[error("the input cannot be read as JSON: nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// The input cannot be made JSON.
    #[error("the input cannot be read as JSON: {0}")]
    Encode(#[from] serde_json::Error),
    /// The input is not JSON.
    #[error("the input cannot be read as JSON: {0}")]
    Input(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The program ended in an error of its own: its text, cut short, as what it holds is bound to the run.
    #[error("{0}")]
    Jq(String),
    /// A client's message is not what the program reads: the text of its error.
    #[error("a client's message is not what the mapping reads: {0}")]
    Message(String),
    /// The program asked for the process to end.
    #[error("the program called halt")]
    Halt,
    /// More texts, or more bytes, than a run may give.
    #[error("the output passes its bound of {MAX_OUTPUTS} values and {MAX_BYTES} bytes")]
    TooMuch,
    /// An output that is not JSON, such as NaN.
    #[error("an output is not JSON: {0}")]
    NotJson(#[source] serde_json::Error),
    /// An output that a client's message or a worker's answer cannot lead to: its beginning.
    #[error("{0} is not a valid instruction")]
    NotAnInstruction(String),
}

impl Failure {
    /// The same, where what the mapping was given is what a client said.
    pub(super) fn of_client(self) -> Self {
        match self {
            Self::Jq(error) => Self::Message(error),
            other => other,
        }
    }

    /// Whether a client caused it, and nobody has anything to correct here.
    pub fn is_clients(&self) -> bool {
        matches!(self, Self::Message(_))
    }

    /// The reason as one word, for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooDeep => "too_deep",
            Self::Encode(_) | Self::Input(_) => "unreadable",
            Self::Jq(_) => "error",
            Self::Message(_) => "client",
            Self::Halt => "halt",
            Self::TooMuch => "too_much",
            Self::NotJson(_) => "not_json",
            Self::NotAnInstruction(_) => "not_an_instruction",
        }
    }
}

/// An input to mappings, read once and run through any number of them.
#[derive(Debug, Clone)]
pub struct Input(Val);

impl Input {
    /// Reads JSON.
    ///
    /// # Errors
    /// When it is not JSON, or nested too deep.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Failure> {
        if is_deeper(json, MAX_DEPTH) {
            return Err(Failure::TooDeep);
        }
        let parsed = read::parse_single(json);
        parsed
            .map(Self)
            .map_err(|error| Failure::Input(error.into()))
    }

    /// Anything serializable as JSON.
    ///
    /// # Errors
    /// As `Input::parse`.
    pub fn of(value: &impl Serialize) -> Result<Self, Failure> {
        let json = serde_json::to_vec(value)?;
        Self::parse(&json)
    }

    /// A member of the object this is.
    pub(super) fn member(&self, name: &str) -> Option<Self> {
        let Val::Obj(members) = &self.0 else {
            return None;
        };
        let member = members.get(&Val::from(name.to_owned()))?;
        Some(Self(member.clone()))
    }

    /// The text of a member of the object this is.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.member(name)?.0 {
            Val::TStr(text) => String::from_utf8(text.to_vec()).ok(),
            _ => None,
        }
    }
}

impl Mapping {
    /// Compiles `code`, which may use what `definitions` defines, and the variable `$relay`.
    ///
    /// # Errors
    /// What jq says; offsets count from the beginning of `definitions`, one line end and then `code`.
    pub(super) fn compile(
        name: &str,
        definitions: &str,
        code: &str,
        meter: Box<dyn Meter>,
    ) -> Result<Self, Vec<Complaint>> {
        let text = joined(definitions, code);
        let defs = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs());
        // The environment holds secrets, and a frame is no place for them.
        let funs = jaq_core::funs::<Data>()
            .chain(jaq_std::funs().filter(|(name, ..)| *name != "env"))
            .chain(jaq_json::funs().filter(|(name, ..)| *name != FROM_JSON))
            .chain([bounded_from_json()]);
        let arena = Arena::default();
        let program = File {
            code: text.as_str(),
            path: (),
        };
        let modules = Loader::new(defs)
            .load(&arena, program)
            .map_err(|errors| load_complaints(&text, errors))?;
        let filter = Compiler::default()
            .with_funs(funs)
            .with_global_vars(["$relay"])
            .compile(modules)
            .map_err(|errors| compile_complaints(&text, errors))?;
        Ok(Self {
            name: name.to_owned(),
            filter,
            meter,
            reads: Reads {
                milestones: text.contains("milestones"),
                identifier: text.contains("identifier"),
            },
        })
    }

    /// Whether it may look at `$relay.milestones`.
    pub(super) fn reads_milestones(&self) -> bool {
        self.reads.milestones
    }

    /// Whether it may look at `$relay.identifier`.
    pub(super) fn reads_identifier(&self) -> bool {
        self.reads.identifier
    }

    /// Runs the program on `input`, with `relay` as `$relay`; each output becomes one JSON text.
    ///
    /// # Errors
    /// When the program fails; what it gave before that is dropped.
    pub(super) fn run(&self, input: &Input, relay: &Input) -> Result<Vec<Vec<u8>>, Failure> {
        self.meter.ran();
        let vars = Vars::new([relay.0.clone()]);
        let ctx = Ctx::<Data>::new(&self.filter.lut, vars);
        let mut texts = Vec::new();
        let mut left = MAX_BYTES;
        for output in self.filter.id.run((ctx, input.0.clone())) {
            let value = output.map_err(|exception| match exception.get_err() {
                Ok(error) => Failure::Jq(shortened(&error.to_string())),
                Err(_) => Failure::Halt,
            })?;
            if texts.len() == MAX_OUTPUTS {
                return Err(Failure::TooMuch);
            }
            let mut text = Bounded {
                bytes: Vec::with_capacity(256.min(left)),
                left,
            };
            write::write(&mut text, &write::Pp::default(), 0, &value)
                .map_err(|_| Failure::TooMuch)?;
            left = text.left;
            // jaq knows numbers and keys that JSON does not; what is not JSON must not reach a client.
            serde_json::from_slice::<serde::de::IgnoredAny>(&text.bytes)
                .map_err(Failure::NotJson)?;
            texts.push(text.bytes);
        }
        Ok(texts)
    }

    /// Counts that what a run gave is of no use.
    pub(super) fn failed(&self, failure: &Failure) {
        self.meter.failed(failure);
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The text a mapping is compiled from.
fn joined(definitions: &str, code: &str) -> String {
    format!("{definitions}\n{code}")
}

/// A writer that refuses what passes its bound.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.left -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a text as JSON, where it is not nested too deep. jaq's own reads any depth, and a client's text of
/// brackets would take the thread's whole stack, and with it the process.
fn bounded_from_json() -> Fun<Data> {
    native::run((FROM_JSON, native::v(0), |(_, value)| {
        let values = read_all(&value).into_iter();
        Box::new(values.map(|read| read.map_err(Exn::from)))
    }))
}

/// The values a text holds, up to the first that is none.
fn read_all(value: &Val) -> Vec<ValR<Val>> {
    let fail = |why: &dyn fmt::Display| {
        jaq_core::Error::str(format_args!("cannot parse {value} as JSON: {why}"))
    };
    let Val::TStr(text) = value else {
        return vec![Err(jaq_core::Error::typ(value.clone(), "string"))];
    };
    if is_deeper(text, MAX_DEPTH) {
        return vec![Err(fail(&format_args!("nested deeper than {MAX_DEPTH}")))];
    }
    let mut values = Vec::new();
    for read in read::parse_many(text) {
        let is_last = read.is_err();
        values.push(read.map_err(|error| fail(&error)));
        if is_last {
            break;
        }
    }
    values
}

/// Whether brackets nest deeper than `limit`; right for JSON with jq's comments, and never too low for anything
/// else.
fn is_deeper(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            // A comment, up to the end of its line.
            b'#' if !in_text => drop(bytes.find(|byte| **byte == b'\n')),
            _ => {}
        }
    }
    false
}

/// jq puts the value at fault into its messages; a log wants the beginning of it.
fn shortened(message: &str) -> String {
    const CHARS: usize = 200;
    match message.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

fn at(text: &str, part: &str) -> usize {
    // What was found at the end of the text may be a text of jaq's own.
    let inside = text.as_bytes().as_ptr_range();
    if inside.contains(&part.as_ptr()) {
        span(text, part).start
    } else {
        text.trim_end().len()
    }
}

fn found(part: &str) -> String {
    match part.trim() {
        "" => "the end".to_owned(),
        part => format!("{:?}", part.chars().take(24).collect::<String>()),
    }
}

fn load_complaints(text: &str, errors: load::Errors<&str, ()>) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut add = |part: &str, message| {
        complaints.push(Complaint {
            offset: at(text, part),
            message,
        });
    };
    for (_, error) in errors {
        match error {
            load::Error::Io(errors) => {
                for (path, error) in errors {
                    add(path, format!("{path} cannot be included: {error}"));
                }
            }
            load::Error::Lex(errors) => {
                for (expected, part) in errors {
                    let expected: lex::Expect<&str> = expected;
                    add(
                        part,
                        format!("expected {}, found {}", expected.as_str(), found(part)),
                    );
                }
            }
            load::Error::Parse(errors) => {
                for (expected, part) in errors {
                    let expected: parse::Expect<&str> = expected;
                    add(
                        part,
                        format!("expected {}, found {}", expected.as_str(), found(part)),
                    );
                }
            }
        }
    }
    complaints
}

fn compile_complaints(text: &str, errors: compile::Errors<&str, ()>) -> Vec<Complaint> {
    let errors = errors.into_iter().flat_map(|(_, errors)| errors);
    errors
        .map(|(part, undefined)| {
            let arity = match undefined {
                compile::Undefined::Filter(arity) => format!("/{arity}"),
                _ => String::new(),
            };
            Complaint {
                offset: at(text, part),
                message: format!("undefined {} {part}{arity}", undefined.as_str()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(definitions: &str, code: &str) -> Result<Mapping, Vec<Complaint>> {
        Mapping::compile("test", definitions, code, Box::new(()))
    }

    fn run(code: &str, input: &str) -> Result<Vec<String>, Failure> {
        let mapping = compile("", code).unwrap();
        let relay = Input::of(&serde_json::json!({"status": "processing"})).unwrap();
        let outputs = mapping.run(&Input::parse(input.as_bytes()).unwrap(), &relay)?;
        let texts = outputs.into_iter().map(String::from_utf8);
        Ok(texts.map(Result::unwrap).collect())
    }

    #[test]
    fn each_output_is_one_text_in_the_order_of_the_program() {
        let outputs = run("{b: .a, s: $relay.status}, empty, 2", r#"{"a":1.0}"#).unwrap();
        assert_eq!(outputs, [r#"{"b":1.0,"s":"processing"}"#, "2"]);
    }

    #[test]
    fn a_mistake_is_said_with_its_place() {
        let complaints = compile("def a: 1;", "{x: (a + }").unwrap_err();
        assert_eq!(complaints[0].offset, "def a: 1;\n{x: (a + ".len());
        let complaints = compile("", "{x: nosuch}").unwrap_err();
        assert_eq!(
            complaints[0],
            Complaint {
                offset: 5,
                message: "undefined filter nosuch/0".to_owned()
            }
        );
        assert!(compile("", "{x: $nosuch}").is_err());
        assert!(compile("", "").is_err());
        assert!(compile("", "\"never ends").is_err());
        assert!(compile("", "{a: [}").is_err());
        assert!(compile("", "env").is_err(), "the environment holds secrets");
    }

    #[test]
    fn a_run_ends_at_its_bounds() {
        assert!(matches!(run("range(100)", "1"), Err(Failure::TooMuch)));
        assert!(matches!(run("repeat(1)", "1"), Err(Failure::TooMuch)));
        assert!(matches!(run("[range(100000)]", "1"), Err(Failure::TooMuch)));
    }

    #[test]
    fn what_fails_is_an_error_and_never_ends_the_process() {
        assert!(matches!(run(".a.b", "[1]"), Err(Failure::Jq(_))));
        assert!(matches!(run("halt", "1"), Err(Failure::Halt)));
        assert!(matches!(run("nan", "1"), Err(Failure::NotJson(_))));
        assert!(run("{(1|tojson|tonumber): 1}", "1").is_err());
    }

    #[test]
    fn an_input_too_deep_is_refused_before_it_is_read() {
        let deep = "[".repeat(100_000);
        assert!(Input::parse(deep.as_bytes()).is_err());
        let behind_a_comment = format!("# \"\n{deep}");
        assert!(Input::parse(behind_a_comment.as_bytes()).is_err());
        let texts = format!("[{:?}]", "[".repeat(1000));
        assert!(Input::parse(texts.as_bytes()).is_ok());
    }

    #[test]
    fn regression_a_text_of_brackets_that_a_mapping_reads_ends_its_run_alone() {
        let text = format!("{:?}", "[".repeat(60_000));
        for code in ["tonumber", "toboolean", "fromjson"] {
            assert!(matches!(run(code, &text), Err(Failure::Jq(_))), "{code}");
        }
        assert_eq!(run("try tonumber catch 0", &text).unwrap(), ["0"]);
    }

    #[test]
    fn a_text_that_a_mapping_reads_holds_any_number_of_values() {
        assert_eq!(run("[fromjson]", r#""1 [2] # x""#).unwrap(), ["[1,[2]]"]);
        assert_eq!(run("[fromjson]", r#""""#).unwrap(), ["[]"]);
        assert_eq!(run("tonumber", r#""1.50""#).unwrap(), ["1.50"]);
        assert_eq!(
            run("[.[] | try tonumber catch 0]", r#"["7", "x", null]"#).unwrap(),
            ["[7,0,0]"]
        );
        let said = run("fromjson", r#""{""#).unwrap_err().to_string();
        assert!(said.contains("cannot parse"), "{said}");
        assert!(matches!(run("1 | fromjson", "1"), Err(Failure::Jq(_))));
    }
}
