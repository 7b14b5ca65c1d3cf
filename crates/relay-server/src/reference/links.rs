//! No link between the pages of the project leads nowhere, headings included.

use std::collections::BTreeSet;
use std::path::Path;

use super::{root, sources};

/// The names by which a page's headings and anchors can be linked to, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let of_headings = headings.map(|line| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        text.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    });
    let named = page.split("<a id=\"").skip(1);
    let named = named.filter_map(|rest| Some(rest.split('"').next()?.to_owned()));
    of_headings.chain(named).collect()
}

/// What a page links to, code blocks left out.
fn links(page: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for text in page.split("```").step_by(2) {
        let targets = text.split("](").skip(1);
        links.extend(targets.filter_map(|rest| rest.split(')').next()));
    }
    links.retain(|link| !link.contains("://") && !link.contains(' '));
    links
}

#[test]
fn no_link_leads_nowhere() {
    let mut seen = 0;
    for (path, text) in sources::pages() {
        let folder = root().join(&path);
        let folder = folder.parent().unwrap_or(Path::new(""));
        for link in links(&text) {
            seen += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root().join(&path)
            } else {
                folder.join(file)
            };
            assert!(target.exists(), "{path}: {link} does not exist");
            if !anchor.is_empty() {
                let page = std::fs::read_to_string(&target).unwrap();
                assert!(
                    anchors(&page).contains(anchor),
                    "{path}: {link} has no such heading"
                );
            }
        }
    }
    assert!(seen > 80, "only {seen} links found");
}
