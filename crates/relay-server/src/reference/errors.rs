//! Compares `docs/reference/errors.md` with the code: every error code, close code and label of a refusal.
//!
//! The page is written by hand, since what to do about an error stands nowhere in the code. The codes are found in
//! the text of all crates, so a new one that nobody has put on the page fails here.

use std::collections::{BTreeMap, BTreeSet};

use super::{page, sources};
use crate::answer::ApiError;
use relay_core::watcher::session::CloseReason;

const PAGE: &str = "docs/reference/errors.md";

/// Before a code, in the code: the first text after it is one, if nothing but plain arguments stands between.
const BEFORE_ONE: &[&str] = &[
    "bad_request(",
    "unauthorized(",
    "unavailable(",
    "too_many(",
    "StatusCode::",
    "code: ",
    "self.reject(",
    "refuse(id",
    "refuse(None",
];
/// Before a call or a `match` that names codes among other arguments, and what ends it.
const BEFORE_SEVERAL: &[(&str, &str)] = &[
    ("NotJoined::new(", ")"),
    ("(code, message) = match", "};"),
    ("(message, code) = match", "};"),
];

/// The codes that the code can send.
fn codes_in_code(files: &[String]) -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for text in files {
        for anchor in BEFORE_ONE {
            for after in text.split(anchor).skip(1) {
                let Some((between, _)) = after.split_once('"') else {
                    continue;
                };
                let plain = match anchor.ends_with(": ") {
                    true => between.is_empty(),
                    false => !between
                        .replace("()", "")
                        .contains(['(', '{', '=', '|', ';']),
                };
                let word = sources::words_in(after).next();
                if let Some(word) = word.filter(|_| plain)
                    && after[between.len()..].starts_with(&format!("\"{word}\""))
                {
                    codes.insert(word.to_owned());
                }
            }
        }
        for (anchor, end) in BEFORE_SEVERAL {
            for after in text.split(anchor).skip(1) {
                let place = after.split(end).next().unwrap_or_default();
                let arguments = sources::words_in(place)
                    // An arm's pattern is not an argument.
                    .filter(|word| !place.contains(&format!("\"{word}\" =>")));
                codes.extend(arguments.map(str::to_owned));
            }
        }
    }
    let late = sources::bodies_of(files, "as_str")
        .into_iter()
        .filter(|body| body.contains("::AfterEnding"));
    for body in sources::bodies_of(files, "code").into_iter().chain(late) {
        codes.extend(sources::words_in(&body).map(str::to_owned));
    }
    codes
}

/// The rows of every table of the page that has such a column, as (cell of that column, whole row).
fn cells<'a>(page: &'a str, column: &str) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut rows = Vec::new();
    let mut at = None;
    for line in page.lines() {
        let Some(line) = line.strip_prefix("| ") else {
            if !line.starts_with("|---") {
                at = None;
            }
            continue;
        };
        let row: Vec<&str> = line
            .trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        match at {
            None => at = Some(row.iter().position(|cell| *cell == column)),
            Some(Some(index)) => rows.push((row[index], row)),
            Some(None) => {}
        }
    }
    rows
}

fn codes_on_page(page: &str) -> BTreeSet<String> {
    let cells = cells(page, "Code");
    let words = cells.iter().flat_map(|(cell, _)| sources::quoted(cell));
    words.map(str::to_owned).collect()
}

#[test]
fn every_code_is_on_the_page_and_nothing_else() {
    let files = sources::shipped();
    let (in_code, page) = (codes_in_code(&files), page(PAGE));
    let on_page = codes_on_page(&page);
    let missing: Vec<_> = in_code.difference(&on_page).collect();
    assert!(missing.is_empty(), "not on {PAGE}: {missing:?}");
    let gone: Vec<_> = on_page.difference(&in_code).collect();
    assert!(
        gone.is_empty(),
        "on {PAGE}, and not found in the code; if they are there, tell this test where: {gone:?}"
    );
}

#[test]
fn the_statuses_on_the_page_are_those_of_the_answers() {
    let page = page(PAGE);
    let rows = cells(&page, "Code");
    for error in [
        ApiError::bad_request("bad_topic", ""),
        ApiError::forbidden(),
        ApiError::may_not_publish("alice"),
        ApiError::no_route(),
        ApiError::unknown_job("j"),
        ApiError::method_not_allowed("GET"),
        ApiError::unsupported_encoding("gzip"),
        ApiError::bad_websocket_version(),
        ApiError::too_large(1),
        ApiError::payload_too_large(1),
        ApiError::upgrade_required(),
        ApiError::rate_limited(1, 1),
        ApiError::limit("user_limit", ""),
        ApiError::mapping_failed(),
        ApiError::draining(),
        ApiError::busy(),
        ApiError::bus_unavailable(),
    ] {
        let code = format!("`{}`", error.code());
        let status = error.status().as_u16().to_string();
        let told = rows
            .iter()
            .any(|(cell, row)| *cell == code && row[0] == status);
        assert!(told, "{status} {code}");
    }
}

/// The close code for each reason, as the code has it.
fn close_codes(files: &[String]) -> BTreeMap<String, u16> {
    let mut numbers = BTreeMap::new();
    for text in files {
        for constant in text.split("const ").skip(1) {
            let Some((name, rest)) = constant.split_once(": u16 = ") else {
                continue;
            };
            if let Some(number) = rest.split(';').next().and_then(|n| n.parse().ok()) {
                numbers.insert(name.to_owned(), number);
            }
        }
    }
    let bodies = sources::bodies_of(files, "close_words");
    let [body] = bodies.as_slice() else {
        panic!("close_words, which gives each reason its close code, is not found");
    };
    let mut codes = BTreeMap::new();
    let mut waiting = Vec::new();
    for word in body.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
        if let Some(reason) = word.strip_prefix("CloseReason::") {
            waiting.push(reason.to_owned());
        } else if let Some(name) = word.strip_prefix("close::") {
            codes.extend(waiting.drain(..).map(|reason| (reason, numbers[name])));
        } else if word == "None" {
            waiting.clear();
        }
    }
    codes
}

#[test]
fn every_reason_has_its_close_code_on_the_page() {
    let codes = close_codes(&sources::shipped());
    let page = page(PAGE);
    let rows = cells(&page, "Reason");
    assert_eq!(rows.len(), CloseReason::ALL.len());
    let listed = CloseReason::ALL.map(|reason| format!("{reason:?}"));
    let unlisted: Vec<_> = codes
        .keys()
        .filter(|reason| !listed.contains(reason))
        .collect();
    assert!(unlisted.is_empty(), "not in CloseReason::ALL: {unlisted:?}");
    for reason in CloseReason::ALL {
        let word = format!("`{}`", reason.as_str());
        let row = rows.iter().find(|(cell, _)| *cell == word);
        let (_, row) = row.unwrap_or_else(|| panic!("{word} is not on the page"));
        let code = codes.get(&format!("{reason:?}"));
        let code = code.map_or_else(|| "–".to_owned(), u16::to_string);
        assert_eq!(row[1], code, "{word}");
    }
}

#[test]
fn every_label_of_an_engine_io_refusal_is_on_the_page() {
    let files = sources::shipped();
    let labels = files.iter().flat_map(|text| sources::words_in(text));
    let labels: BTreeSet<&str> = labels
        .filter(|word| word.starts_with("engineio_"))
        .collect();
    let page = page(PAGE);
    let cells = cells(&page, "Label");
    let on_page = cells.iter().flat_map(|(cell, _)| sources::quoted(cell));
    assert_eq!(on_page.collect::<BTreeSet<_>>(), labels);
}
