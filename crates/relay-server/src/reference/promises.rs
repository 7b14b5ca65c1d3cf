//! Keeps `docs/explanation/promises.md` true where a test can: its numbers are there, and so are the tests it
//! names.

use std::collections::BTreeSet;

use super::sources;

const PAGE: &str = "docs/explanation/promises.md";

#[test]
fn every_promise_that_is_cited_is_on_the_page() {
    let page = super::page(PAGE);
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    let known: BTreeSet<u32> = headings
        .filter_map(|heading| heading.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(known, (1..=14).collect(), "{PAGE}");
    let mut cited = 0;
    for (path, text) in sources::everything() {
        for after in text.split("promise ").skip(1) {
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            if let Ok(number) = digits.parse() {
                cited += 1;
                assert!(known.contains(&number), "{path} cites promise {number}");
            }
        }
    }
    assert!(cited > 10, "only {cited} citations found");
}

#[test]
fn every_test_that_the_page_names_exists() {
    let page = super::page(PAGE);
    let shown = page.lines().filter(|line| line.starts_with("Shown by: "));
    let names: Vec<&str> = shown.flat_map(sources::quoted).collect();
    assert!(names.len() > 30, "{names:?}");
    let files = sources::everything();
    for name in names {
        let head = format!("fn {name}(");
        let exists = files
            .iter()
            .any(|(path, text)| path.ends_with(".rs") && text.contains(&head));
        assert!(exists, "{PAGE} names {name}, which is not a test here");
    }
}
