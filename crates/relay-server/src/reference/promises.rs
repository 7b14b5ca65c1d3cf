//! Keeps `docs/explanation/promises.md` and `security.md` true where a test can: the numbers are there, and so are
//! the tests and the scripts that they name.

use std::collections::BTreeSet;

use super::sources;

const PAGE: &str = "docs/explanation/promises.md";
const SECURITY: &str = "docs/explanation/security.md";

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
    all_exist(PAGE, names);
}

fn all_exist<'a>(page: &str, names: impl IntoIterator<Item = &'a str>) {
    let files = sources::everything();
    for name in names {
        let head = format!("fn {name}(");
        let exists = files
            .iter()
            .any(|(path, text)| path.ends_with(".rs") && text.contains(&head));
        assert!(exists, "{page} names {name}, which is not a test here");
    }
}

#[test]
fn every_test_and_script_that_the_page_of_security_names_exists() {
    let page = super::page(SECURITY);
    let (mut tests, mut files) = (Vec::new(), Vec::new());
    for name in page.lines().flat_map(sources::quoted) {
        let is_test = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        // A test is a sentence; keys of the configuration have dots.
        if name.matches('_').count() >= 3 && name.chars().all(is_test) {
            tests.push(name);
        } else if ["scripts/", "deploy/", "fuzz/"]
            .iter()
            .any(|root| name.starts_with(root))
        {
            files.push(name);
        }
    }
    assert!(tests.len() > 30, "{tests:?}");
    all_exist(SECURITY, tests);
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let path = super::root().join(file);
        assert!(path.exists(), "{SECURITY} names {file}, which is not here");
    }
}
