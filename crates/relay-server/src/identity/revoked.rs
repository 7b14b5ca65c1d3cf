//! Credentials that were taken back before their time, by their ids (`jti`).
//!
//! The ids are of shares and of users' tokens alike. Where connections are ended is not known here.
//!
//! Invariant: a list that cannot be read is not taken for an empty one.

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

/// The largest file that is read.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// The ids that were taken back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Revoked(Arc<HashSet<Box<str>>>);

impl Revoked {
    /// The ids that are `given`, and those in `file`, one a line; what stands behind a `#` is for people.
    ///
    /// # Errors
    /// When the file cannot be read, or is no list.
    pub(crate) fn read(given: &[String], file: Option<&Path>) -> io::Result<Self> {
        let mut text = String::new();
        if let Some(file) = file {
            let mut open = std::fs::File::open(file)?.take(MOST_BYTES + 1);
            open.read_to_string(&mut text)?;
        }
        if text.len() as u64 > MOST_BYTES {
            return Err(io::Error::other(
                "is larger than 4 MiB; ids whose tokens have ended can be left out",
            ));
        }
        let lines = text.trim_start_matches('\u{feff}').lines();
        let lines = lines.map(|line| line.split('#').next().unwrap_or_default());
        let ids = given.iter().map(String::as_str).chain(lines);
        let ids = ids.map(str::trim).filter(|id| !id.is_empty());
        Ok(Self(Arc::new(ids.map(Box::from).collect())))
    }

    /// Whether the credential with this id was taken back.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_a_list_and_a_file_for_people() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}a\r\n\n# nothing\n  b # Bob's\n").unwrap();
        let revoked = Revoked::read(&["c".to_owned()], Some(file.path())).unwrap();
        for id in ["a", "b", "c"] {
            assert!(revoked.has(id), "{id}");
        }
        for id in ["", "nothing", "b # Bob's", "A"] {
            assert!(!revoked.has(id), "{id}");
        }
        assert!(Revoked::read(&[], Some(Path::new("/no/file"))).is_err());
        std::fs::write(file.path(), b"\xff\xfe").unwrap();
        assert!(Revoked::read(&[], Some(file.path())).is_err());
    }
}
