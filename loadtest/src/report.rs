//! How results are told: as a table to people, as JSON to programs.
//!
//! It knows nothing of what was measured.
//!
//! Invariant: both say the same numbers.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

/// A result that can be told both ways.
pub(crate) trait Report: Serialize {
    /// The table, headings first; columns are aligned when printed.
    fn table(&self) -> Vec<Vec<String>>;

    /// What to say below the table.
    fn conclusion(&self) -> String;
}

/// Prints to stdout.
pub(crate) fn print(report: &impl Report, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
        return Ok(());
    }
    let table = report.table();
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
    };
    for row in &table {
        let cells = (0..columns).map(|column| {
            let cell = row.get(column).map_or("", String::as_str);
            format!("{cell:>width$}", width = width(column).unwrap_or(0))
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    writeln!(out, "\n{}", report.conclusion())?;
    Ok(())
}

/// The middle of `values` (the mean of the two middle ones of an even number); 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle)) {
        (_, None) => 0.0,
        (1, Some(value)) => *value,
        (_, Some(value)) => f64::midpoint(values[middle - 1], *value),
    }
}

/// The value below which `part` (0 to 1) of `sorted` lies.
pub(crate) fn quantile(sorted: &[u32], part: f64) -> u32 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

/// `numerator / denominator` for numbers far below 2^52; 0 if there is nothing to divide by.
pub(crate) fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 {
        0.0
    } else {
        numerator as f64 / denominator as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let close = |a: f64, b: f64| (a - b).abs() < f64::EPSILON;
        assert!(close(median([3.0, 1.0, 2.0]), 2.0));
        assert!(close(median([4.0, 1.0]), 2.5));
        assert!(close(median([]), 0.0));
    }

    #[test]
    fn a_quantile_never_leaves_its_slice() {
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!(quantile(&sorted, 0.5), 51);
        assert_eq!(quantile(&sorted, 1.0), 100);
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
