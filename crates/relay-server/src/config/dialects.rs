//! The files of the dialects that `[dialects]` names, and what is wrong with them in the configuration's words.
//!
//! Knows where a file is found; what may be written in one is for `relay_wire::dialect`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use relay_wire::dialect::{BUILT_IN, Dialects, Meters, Mistake, Source};

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

/// The text of a dialect and where it stands: in `directory`, or else in the binary.
fn source(name: &str, directory: Option<&Path>) -> Result<Source, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(format!(
            "{name:?} is not a valid dialect name; use the name of a file, without folder and .toml"
        ));
    }
    let found = |path: PathBuf, text| Source {
        name: name.to_owned(),
        path,
        text,
    };
    if let Some(directory) = directory {
        let path = directory.join(format!("{name}.toml"));
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(found(path, Cow::Owned(text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
    }
    match BUILT_IN.iter().find(|(each, _)| *each == name) {
        Some((_, text)) => {
            let path = format!("built-in {name}.toml");
            Ok(found(path.into(), Cow::Borrowed(text)))
        }
        None => {
            let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let hint = match directory {
                Some(directory) => format!("there is no such file in {}", directory.display()),
                None => "dialects.directory is not set".to_owned(),
            };
            Err(format!(
                "no dialect {name:?}: {hint}, and the built-in ones are {}",
                known.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
