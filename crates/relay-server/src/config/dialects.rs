//! The files of the dialects that `[dialects]` names, and what is wrong with them in the configuration's words.
//!
//! Knows where a file is found; what may be written in one is for `relay_wire::dialect`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use relay_wire::dialect::{BUILT_IN, Dialects, Meters, Mistake, Source, extended};

use super::{Config, ConfigErrors, Place, Problem};

impl Config {
    /// Reads, checks and compiles the dialects that are spoken; `meters` count the runs of their mappings.
    ///
    /// # Errors
    /// All that is wrong in all files, each with its place.
    pub(crate) fn load_dialects(&self, meters: Meters<'_>) -> Result<Dialects, ConfigErrors> {
        let mut problems = Vec::new();
        let mut sources = Vec::new();
        let mut seen = BTreeSet::new();
        for name in &self.dialects.enabled {
            if !seen.insert(name) {
                continue;
            }
            match source(name, self.dialects.directory.as_deref()) {
                Ok(source) => sources.push(source),
                Err(message) => problems.push(Problem {
                    place: Place::Unset,
                    key: "dialects.enabled".to_owned(),
                    message,
                }),
            }
        }
        match Dialects::load(&sources, self.watcher_bounds(), meters) {
            Ok(dialects) if problems.is_empty() => Ok(dialects),
            loaded => {
                let mistakes = loaded.err().unwrap_or_default();
                problems.extend(mistakes.into_iter().map(Problem::from));
                Err(ConfigErrors::new(problems))
            }
        }
    }
}

impl From<Mistake> for Problem {
    fn from(mistake: Mistake) -> Self {
        Self {
            place: Place::File {
                path: mistake.path,
                line: mistake.line,
                column: mistake.column,
            },
            key: mistake.key,
            message: mistake.message,
        }
    }
}

/// The most files that may extend one another, one by one.
const MAX_LAYERS: usize = 4;

/// The text of a dialect and where it stands: in `directory`, or else in the binary; with what it extends.
fn source(name: &str, directory: Option<&Path>) -> Result<Source, String> {
    let mut layers = vec![own(name, directory)?];
    while let Some(last) = layers.last()
        && let Some(base) = extended(&last.text)
    {
        // A file of one's own extends the built-in dialect that it stands for.
        let found = match base == last.name {
            true if is_built_in(last) => Err(format!("{base:?} extends itself")),
            true => built_in(&base).ok_or_else(|| unknown(&base, None)),
            false => own(&base, directory),
        };
        let found = found.map_err(|message| {
            let path = last.path.display();
            format!("{message} (extends in {path})")
        })?;
        if layers.iter().any(|each| each.path == found.path) || layers.len() == MAX_LAYERS {
            return Err(format!(
                "{name:?} extends {base:?}, and so on: at most {MAX_LAYERS} files extend one another, and none itself"
            ));
        }
        layers.push(found);
    }
    let mut layers = layers.into_iter().rev();
    let first = layers.next().ok_or_else(|| unknown(name, directory))?;
    Ok(layers.fold(first, |base, layer| Source {
        base: Some(Box::new(base)),
        ..layer
    }))
}

/// The text of one file.
fn own(name: &str, directory: Option<&Path>) -> Result<Source, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(format!(
            "{name:?} is not a valid dialect name; use the name of a file, without folder and .toml"
        ));
    }
    if let Some(directory) = directory {
        let path = directory.join(format!("{name}.toml"));
        match fs::read_to_string(&path) {
            Ok(text) => {
                return Ok(Source {
                    name: name.to_owned(),
                    path,
                    text: Cow::Owned(text),
                    base: None,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
    }
    built_in(name).ok_or_else(|| unknown(name, directory))
}

fn built_in(name: &str) -> Option<Source> {
    let (name, text) = BUILT_IN.iter().find(|(each, _)| *each == name)?;
    Some(Source {
        name: (*name).to_owned(),
        path: format!("built-in {name}.toml").into(),
        text: Cow::Borrowed(text),
        base: None,
    })
}

fn is_built_in(source: &Source) -> bool {
    matches!(source.text, Cow::Borrowed(_))
}

fn unknown(name: &str, directory: Option<&Path>) -> String {
    let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    let hint = match directory {
        Some(directory) => format!("there is no such file in {}", directory.display()),
        None => "dialects.directory is not set".to_owned(),
    };
    format!(
        "no dialect {name:?}: {hint}, and the built-in ones are {}",
        known.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use relay_wire::dialect::OWN_PATHS;

    use super::*;

    #[test]
    fn no_dialect_can_take_a_path_that_the_relay_routes() {
        let sources = [include_str!("../api.rs"), include_str!("../door/watch.rs")];
        let quoted = |text: &'static str| text.split("\"/v1/").skip(1);
        let routed = sources.into_iter().flat_map(quoted);
        let routed = routed.filter_map(|rest| rest.split('"').next());
        let routed = routed.map(|rest| format!("/v1/{rest}"));
        let own: BTreeSet<_> = OWN_PATHS.map(str::to_owned).into_iter().collect();
        assert_eq!(routed.collect::<BTreeSet<_>>(), own);
    }

    #[test]
    fn a_file_extends_a_built_in_one_or_another_and_no_circle() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            fs::write(directory.path().join(format!("{name}.toml")), text).unwrap();
        };
        put("a", "extends = \"b\"\n[status]\nqueued = \"a\"\n");
        put(
            "b",
            "extends = \"media-conversion\"\n[status]\nqueued = \"b\"\n",
        );
        // One's own in the place of the built-in one, which it adds to.
        put("file-conversion", "extends = \"file-conversion\"\n");
        put("c", "extends = \"d\"\n");
        put("d", "extends = \"c\"\n");
        put("e", "extends = \"nobody\"\n");
        let load = |name: &str| {
            let mut config = Config::default();
            config.dialects.enabled = vec![name.to_owned()];
            config.dialects.directory = Some(directory.path().to_owned());
            config.load_dialects(&|_, _| Box::new(()))
        };
        let a = load("a").unwrap();
        assert!(a.routes.find("/api/ws").is_some());
        assert!(load("file-conversion").is_ok());
        let wrong = |name: &str| load(name).unwrap_err().problems()[0].to_string();
        let circle = wrong("c");
        assert!(
            circle.contains("at most 4 files extend one another"),
            "{circle}"
        );
        let nobody = wrong("e");
        assert!(
            nobody.contains("no dialect \"nobody\"") && nobody.contains("e.toml"),
            "{nobody}"
        );
    }

    #[test]
    fn nothing_but_the_native_protocol_is_spoken_unless_it_is_asked_for() {
        let config = Config::default();
        let dialects = config.load_dialects(&|_, _| Box::new(())).unwrap();
        assert!(dialects.routes.find("/api/ws").is_none());
        assert!(dialects.routes.find("/socket.io/").is_none());
    }

    #[test]
    fn a_dialect_that_is_not_there_is_named_with_those_that_are() {
        let mut config = Config::default();
        config.dialects.enabled = vec!["klingon".to_owned()];
        let errors = config.load_dialects(&|_, _| Box::new(())).unwrap_err();
        let shown = errors.problems()[0].to_string();
        assert!(
            shown.contains("no dialect \"klingon\"") && shown.contains("file-conversion"),
            "{shown}"
        );
    }

    #[test]
    fn a_mistake_in_a_file_is_said_with_its_place_beside_a_name_that_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join("mine.toml"),
            "description = \"x\"\nframe = 1\n",
        )
        .unwrap();
        let mut config = Config::default();
        config.dialects.enabled = vec!["mine".to_owned(), "a/b".to_owned(), "mine".to_owned()];
        config.dialects.directory = Some(directory.path().to_owned());
        let errors = config.load_dialects(&|_, _| Box::new(())).unwrap_err();
        let shown: Vec<_> = errors.problems().iter().map(ToString::to_string).collect();
        let path = directory.path().join("mine.toml");
        assert_eq!(shown.len(), 2, "{shown:?}");
        let expected = format!("{}:2:1: unknown field `frame`", path.display());
        assert!(shown[0].starts_with(&expected), "{shown:?}");
        let expected = "dialects.enabled: \"a/b\" is not a valid dialect name";
        assert!(shown[1].starts_with(expected), "{shown:?}");
    }
}
