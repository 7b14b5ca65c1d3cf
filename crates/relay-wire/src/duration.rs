//! How a duration is written in files and on the command line: `10s`, `250ms`, `24h`.

use std::time::Duration;

/// Reads a duration such as `10s`, `250ms`, `1h 30m`.
///
/// # Errors
/// A sentence that says how to write one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(format!(
            "a duration needs a unit: write \"{text}s\", or with ms, m or h for s"
        ));
    }
    humantime::parse_duration(text).map_err(|_| {
        format!("{text:?} is not a duration; write a number and a unit, such as \"10s\", \"250ms\" or \"24h\"")
    })
}

/// Writes a duration with the largest unit that needs no fraction: `24h`, `90s`, `250ms`.
pub fn format(duration: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, name) in UNITS {
        // A minute is 60s: that is how people compare it with its neighbours.
        if nanos.is_multiple_of(unit) && !(name == "m" && nanos == unit) {
            return format!("{}{name}", nanos / unit);
        }
    }
    format!("{nanos}ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_what_they_write() {
        for text in [
            "24h", "72h", "90s", "60s", "2m", "250ms", "10s", "7us", "3ns",
        ] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(parse("1h 30m").unwrap(), Duration::from_secs(5_400));
    }

    #[test]
    fn a_duration_without_a_unit_is_told_which_to_add() {
        let why = parse("10").unwrap_err();
        assert!(why.contains("\"10s\""), "{why}");
        assert!(parse("ten").unwrap_err().contains("not a duration"));
    }
}
