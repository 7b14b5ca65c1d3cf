//! Where the programs are that tests run beside the relay.
//!
//! `scripts/setup` puts them under `.tools/`; an environment variable or the `PATH` may name others.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The root of the checkout.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// `nats-server`: `RELAY_NATS_SERVER`, else the one under `.tools/`, else the one on the `PATH`.
///
/// # Errors
/// When there is none.
pub fn nats_server() -> Result<PathBuf> {
    find(
        "RELAY_NATS_SERVER",
        ".tools/venv/bin/nats-server",
        "nats-server",
    )
}

/// A Python with nats-py: `RELAY_PYTHON`, else the one under `.tools/`.
///
/// # Errors
/// When there is none.
pub fn python() -> Result<PathBuf> {
    // a Python from the PATH would lack nats-py, and fail later with a worse message
    find("RELAY_PYTHON", ".tools/venv/bin/python", "")
}

/// Node: `RELAY_NODE`, else the one on the `PATH`.
///
/// # Errors
/// When there is none.
pub fn node() -> Result<PathBuf> {
    find("RELAY_NODE", ".tools/node/bin/node", "node")
}

/// Chromium: `RELAY_CHROMIUM`, else the one on the `PATH`.
///
/// # Errors
/// When there is none.
pub fn chromium() -> Result<PathBuf> {
    find("RELAY_CHROMIUM", ".tools/chromium", "chromium")
}

/// nginx: `RELAY_NGINX`, else the one on the `PATH`, or where Debian has it.
///
/// # Errors
/// When there is none.
pub fn nginx() -> Result<PathBuf> {
    for_root("RELAY_NGINX", "nginx")
}

/// haproxy: `RELAY_HAPROXY`, else the one on the `PATH`, or where Debian has it.
///
/// # Errors
/// When there is none.
pub fn haproxy() -> Result<PathBuf> {
    for_root("RELAY_HAPROXY", "haproxy")
}

/// A program that stands where only root's `PATH` leads.
fn for_root(variable: &str, name: &str) -> Result<PathBuf> {
    let place = Path::new("/usr/sbin").join(name);
    find(variable, &format!(".tools/{name}"), name).or_else(|error| match place.is_file() {
        true => Ok(place),
        false => Err(error),
    })
}

fn find(variable: &str, under: &str, on_path: &str) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        let named = PathBuf::from(named);
        if named.is_file() {
            return Ok(named);
        }
        bail!("{variable} names {}, which is not a file", named.display());
    }
    let installed = workspace().join(under);
    if installed.is_file() {
        return Ok(installed);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = (!on_path.is_empty())
        .then(|| std::env::split_paths(&path).map(|directory| directory.join(on_path)))
        .and_then(|mut candidates| candidates.find(|candidate| candidate.is_file()));
    match on_path {
        Some(found) => Ok(found),
        None => bail!(
            "{} is missing: run scripts/setup, or name one with {variable}",
            installed.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_where_the_lock_file_is() {
        assert!(workspace().join("Cargo.lock").is_file());
    }

    #[test]
    fn a_missing_tool_says_how_to_get_it() {
        let error = find(
            "RELAY_NO_SUCH_TOOL",
            ".tools/no-such-tool",
            "no-such-tool-anywhere",
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("run scripts/setup"), "{error}");
    }
}
