//! Keeps the pages under `docs/` what the code says: written from it where that is possible, compared with it
//! where it is not.
//!
//! Only built for tests. `RELAY_BLESS=1 cargo test -p relay-server --lib reference` writes the generated pages
//! anew.
//!
//! Invariant: a generated page is not edited by hand.

mod command_line;
mod config;
mod errors;
mod links;
mod metrics;
mod promises;
mod sources;

use std::path::PathBuf;

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a page with what it should be; writes it where that is asked for.
pub(crate) fn assert_written(path: &str, expected: &str) {
    let path = root().join(path);
    if std::env::var_os("RELAY_BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not what the code says; write it anew with RELAY_BLESS=1",
        path.display()
    );
}

/// A page as it is.
fn page(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}
