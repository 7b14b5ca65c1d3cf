//! The text of the workspace, for tests that compare a page with it.
//!
//! It finds files by walking the folders, so that moving code from one file or crate to another changes nothing.

use std::path::Path;

use super::root;

/// The shipped code of all crates but the command line, which is a client: no tests.
pub(super) fn shipped() -> Vec<String> {
    let mut files = Vec::new();
    for each in std::fs::read_dir(root().join("crates")).unwrap() {
        walk(&each.unwrap().path().join("src"), &mut files);
    }
    let left_out = ["/tests", "/src/reference", "/src/cli"];
    files.retain(|(path, _)| !left_out.iter().any(|part| path.contains(part)));
    let code = files.into_iter().map(|(_, text)| {
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        code.to_owned()
    });
    code.collect()
}

/// All Rust files and pages of the project, with their paths from the top of the repository.
pub(super) fn everything() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["crates", "loadtest", "examples", "deploy", "docs"] {
        walk(&root().join(folder), &mut files);
    }
    let top = root();
    for (path, _) in &mut files {
        if let Ok(short) = Path::new(path.as_str()).strip_prefix(&top) {
            *path = short.display().to_string();
        }
    }
    for page in [
        "README.md",
        "PROTOCOL.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        files.push((page.to_owned(), super::page(page)));
    }
    files
}

/// All pages of the project, with their paths from the top of the repository.
pub(super) fn pages() -> Vec<(String, String)> {
    let mut pages = everything();
    pages.retain(|(path, _)| path.ends_with(".md"));
    pages
}

fn walk(folder: &Path, files: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default();
            if name != "node_modules" && name != "target" {
                walk(&path, files);
            }
        } else if path
            .extension()
            .is_some_and(|kind| kind == "rs" || kind == "md")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            files.push((path.display().to_string(), text));
        }
    }
}

/// The body of every function of this name, as far as it is indented deeper than its head.
pub(super) fn bodies_of(files: &[String], name: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    for text in files {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if !line.contains(&format!("fn {name}(")) {
                continue;
            }
            let indent = line.len() - line.trim_start().len();
            let end = " ".repeat(indent) + "}";
            let body = lines.by_ref().take_while(|line| *line != end);
            bodies.push(body.collect::<Vec<_>>().join("\n"));
        }
    }
    bodies
}

/// The text literals in `code` that could be a code: lower case, digits and underscores.
pub(super) fn words_in(code: &str) -> impl Iterator<Item = &str> {
    let literals = code.split('"').skip(1).step_by(2);
    literals.filter(|text| {
        let first = text.bytes().next();
        first.is_some_and(|byte| byte.is_ascii_lowercase())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    })
}

/// What stands between backticks in a line of a page.
pub(super) fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}
