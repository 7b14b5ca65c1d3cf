//! Text for a terminal: what may be printed, in which order, and how a length of time is written.
//!
//! It knows neither frames nor the screen.
//!
//! Invariant: what [`printable`] gives can move no cursor, colour no screen and reverse no line.

use std::cmp::Ordering;

/// `text` with everything taken out that could move the cursor, colour the screen or reverse the line:
/// it came from a worker, and goes to somebody's terminal.
pub(crate) fn printable(text: &str) -> String {
    let harmful =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let spaced = text.chars().map(|c| if harmful(c) { ' ' } else { c });
    spaced.collect::<String>().trim().to_owned()
}

/// The order people expect: `bob-2` before `bob-10`.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some(x), Some(y)) = (left.chars().next(), right.chars().next()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (m, n) = (take_number(&mut left), take_number(&mut right));
            // Of two numbers without leading zeros the longer one is larger.
            m.len().cmp(&n.len()).then_with(|| m.cmp(n))
        } else {
            left = &left[x.len_utf8()..];
            right = &right[y.len_utf8()..];
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Takes the digits at the beginning, and gives them without leading zeros.
fn take_number<'a>(text: &mut &'a str) -> &'a str {
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    number.trim_start_matches('0')
}

/// Why a job is not there any more, from the word on the wire.
pub(crate) fn why_gone(reason: &str) -> &'static str {
    match reason {
        "removed" => "removed",
        _ => "expired from the relay's history",
    }
}

/// A length of time the way people say it: `45s`, `1m 20s`, `2h 05m`, `3d 4h`.
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_worker_cannot_steer_the_terminal() {
        assert_eq!(
            printable("\u{1b}[2Jhi\r\n\u{202e}there\u{7}"),
            "[2Jhi   there"
        );
    }

    #[test]
    fn numbers_in_names_are_ordered_as_numbers() {
        let sorted = [
            "",
            "a",
            "a-1",
            "a-02",
            "a-2",
            "a-10",
            "a-10b",
            "a-99999999999999999999999",
            "b",
            "bob",
            "bob-2",
            "bob-10",
        ];
        for (at, a) in sorted.iter().enumerate() {
            for (other, b) in sorted.iter().enumerate() {
                assert_eq!(natural_order(a, b), at.cmp(&other), "{a} {b}");
            }
        }
    }

    #[test]
    fn durations_read_as_people_say_them() {
        let shown = [0.4, 59.6, 80.0, 7500.0, 273_600.0].map(duration);
        assert_eq!(shown, ["0s", "1m 00s", "1m 20s", "2h 05m", "3d 4h"]);
        assert_eq!(duration(f64::NAN), "0s");
    }
}
