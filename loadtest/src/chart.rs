//! Curves as SVG: small, with no more in them than axes and lines.
//!
//! It knows nothing of what the lines mean. A file shows on a light and on a dark page alike.

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 36.0;
/// The legend's line.
const LEGEND: f64 = 34.0;
/// Told apart also by those who do not see all colours, and from white and black alike.
const COLOURS: [&str; 6] = [
    "#2f86c8", "#d55e00", "#009e73", "#cc79a7", "#8c6bd1", "#b58900",
];

/// A named line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws lines over a common horizontal axis.
pub(crate) fn draw(title: &str, horizontal: &str, vertical: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let right = round_up(all().map(|point| point.0).fold(0.0, f64::max));
    let top = round_up(all().map(|point| point.1).fold(0.0, f64::max));
    let x = |value: f64| LEFT + value / right * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" fill="#777"><title>{title}</title><text x="{LEFT}" y="16" font-size="13">{title}</text>"##,
        title = escape(title),
    );
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        let (at_x, at_y) = (x(right * part), y(top * part));
        put(
            &mut svg,
            format_args!(
                r##"<path d="M{LEFT} {at_y:.1}H{end}" stroke="#7774"/><text x="{label}" y="{text:.1}" text-anchor="end">{}</text><text x="{at_x:.1}" y="{bottom}" text-anchor="middle">{}</text>"##,
                number(top * part),
                number(right * part),
                end = WIDTH - RIGHT,
                label = LEFT - 6.0,
                text = at_y + 4.0,
                bottom = HEIGHT - BOTTOM + 16.0,
            ),
        );
    }
    put(
        &mut svg,
        format_args!(
            r#"<text x="{}" y="{}" text-anchor="end">{}</text><text x="{LEFT}" y="{}">{}</text>"#,
            WIDTH - RIGHT,
            HEIGHT - 4.0,
            escape(horizontal),
            TOP - 6.0,
            escape(vertical),
        ),
    );
    let mut legend = LEFT;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        for (at, point) in line.points.iter().enumerate() {
            let verb = if at == 0 { 'M' } else { 'L' };
            put(
                &mut path,
                format_args!("{verb}{:.1} {:.1}", x(point.0), y(point.1)),
            );
        }
        put(
            &mut svg,
            format_args!(
                r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/><path d="M{legend} {dash}h14" stroke="{colour}" stroke-width="3"/><text x="{text}" y="{LEGEND}">{}</text>"#,
                escape(&line.name),
                dash = LEGEND - 4.0,
                text = legend + 19.0,
            ),
        );
        legend += 36.0 + 6.0 * line.name.len() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.push_str(&text.to_string());
}

/// The next round number at or above a value, so that quarters of it can be read.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 5.0, 6.0, 8.0, 10.0];
    let fits = steps
        .iter()
        .map(|step| step * unit)
        .find(|each| *each >= value);
    fits.unwrap_or(10.0 * unit)
}

fn number(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number() {
        for (value, end) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (3.3, 4.0),
            (10.1, 12.0),
            (42.0, 50.0),
            (0.07, 0.08),
        ] {
            assert!((round_up(value) - end).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn every_line_is_drawn_and_nothing_breaks_the_markup() {
        let line = |name: &str| Line {
            name: name.to_owned(),
            points: vec![(0.0, 1.0), (2.0, 3.0)],
        };
        let svg = draw("a < b & c", "seconds", "ms", &[line("p50"), line("p99")]);
        assert_eq!(svg.matches("fill=\"none\"").count(), 2);
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN"));
    }
}
