//! Text for a terminal: what may be printed, and how a length of time is written.
//!
//! It knows neither frames nor the screen.
//!
//! Invariant: what [`printable`] gives can move no cursor, colour no screen and reverse no line.

/// `text` with everything taken out that could move the cursor, colour the screen or reverse the line:
/// it came from a worker, and goes to somebody's terminal.
pub(crate) fn printable(text: &str) -> String {
    let harmful =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let spaced = text.chars().map(|c| if harmful(c) { ' ' } else { c });
    spaced.collect::<String>().trim().to_owned()
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
    fn durations_read_as_people_say_them() {
        let shown = [0.4, 59.6, 80.0, 7500.0, 273_600.0].map(duration);
        assert_eq!(shown, ["0s", "1m 00s", "1m 20s", "2h 05m", "3d 4h"]);
        assert_eq!(duration(f64::NAN), "0s");
    }
}
