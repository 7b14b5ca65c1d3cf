//! How results are told: as a table to people, as JSON to programs, against the floor and what was to be
//! reached.
//!
//! It knows no server. Invariant: table and JSON say the same numbers.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use crate::figure::{median, ratio};
use crate::measure::Run;
use crate::scenario::{FLOOR, Kind, RELAY, Reach, Scenario};

/// The column of a delivery's cost as a multiple of the floor's.
const BESIDE_FLOOR: usize = 8;

/// All runs of one scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: Scenario,
    /// Turn by turn, the servers of a turn in the order they were played to.
    pub(crate) runs: Vec<Run>,
    pub(crate) summaries: Vec<Summary>,
    pub(crate) targets: Vec<Target>,
}

/// One server over all its runs: median, least and most.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) server: String,
    pub(crate) micros_per_delivery: Spread,
    pub(crate) user_micros_per_delivery: Spread,
    pub(crate) deliveries_per_second: Spread,
    pub(crate) p50_ms: Spread,
    pub(crate) p99_ms: Spread,
    pub(crate) kib_per_connection: Spread,
    pub(crate) peak_kib: Spread,
    pub(crate) connections_per_second: Spread,
    pub(crate) micros_per_connection: Spread,
    /// Of each run to the floor's in the same turn.
    pub(crate) cpu_to_floor: Option<Spread>,
    /// Of each run of a dialect to the native protocol's in the same turn.
    pub(crate) cpu_to_native: Option<Spread>,
    pub(crate) p50_to_floor: Option<Spread>,
    pub(crate) p99_to_floor: Option<Spread>,
}

/// A median and its range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        Self {
            median: median(values.clone()),
            least: values.clone().fold(f64::INFINITY, f64::min),
            most: values.fold(0.0, f64::max),
        }
    }
}

/// A figure that was to be reached.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    /// `true`: at most; `false`: at least.
    pub(crate) at_most: bool,
    pub(crate) wanted: f64,
    pub(crate) got: f64,
    pub(crate) reached: bool,
}

impl Report {
    /// Puts runs together.
    pub(crate) fn new(scenario: Scenario, runs: Vec<Run>) -> Self {
        let mut servers: Vec<&str> = Vec::new();
        for run in &runs {
            if !servers.contains(&run.server.as_str()) {
                servers.push(&run.server);
            }
        }
        let summaries: Vec<Summary> = servers
            .iter()
            .map(|server| Summary::of(server, &scenario, &runs))
            .collect();
        let targets = targets(&scenario.reach, &summaries, &runs);
        Self {
            scenario,
            runs,
            summaries,
            targets,
        }
    }

    /// The table, headings first.
    fn table(&self) -> Vec<Vec<String>> {
        let heads: &[&str] = match self.scenario.kind {
            Kind::Fanout => &[
                "",
                "conns",
                "got",
                "superseded",
                "missing",
                "B",
                "us/del",
                "user",
                "x floor",
                "del/s",
                "p50 ms",
                "p99 ms",
                "p99.9",
                "peak MiB",
            ],
            Kind::Idle | Kind::Ramp => &[
                "", "conns", "refused", "KiB each", "us each", "conns/s", "p50 ms", "p99 ms",
                "peak MiB",
            ],
            Kind::Intake => &[
                "",
                "updates",
                "refused",
                "us/update",
                "per s",
                "KiB/job",
                "peak MiB",
            ],
        };
        let mut table = vec![
            heads
                .iter()
                .map(|head| (*head).to_owned())
                .collect::<Vec<_>>(),
        ];
        table.extend(self.runs.iter().map(|run| self.row(run)));
        if self.scenario.kind == Kind::Fanout && !self.scenario.dialects.is_empty() {
            let beside = self.runs.iter().map(|run| self.beside_native(run));
            let beside = std::iter::once("x native".to_owned()).chain(beside);
            for (row, cell) in table.iter_mut().zip(beside) {
                row.insert(BESIDE_FLOOR + 1, cell);
            }
        }
        table
    }

    fn row(&self, run: &Run) -> Vec<String> {
        let mib = format!("{:.1}", run.memory.peak_kib as f64 / 1024.0);
        let cells = match self.scenario.kind {
            Kind::Fanout => vec![
                run.connect.connections.to_string(),
                format!("{}/{}", run.deliveries, run.deliveries_expected),
                run.superseded.to_string(),
                run.missing.to_string(),
                format!("{:.0}", run.bytes_per_delivery),
                format!("{:.2}", run.micros_per_delivery),
                format!("{:.2}", ratio(run.cpu.user_micros, run.deliveries)),
                self.floor_of(run).map_or_else(String::new, |floor| {
                    format!("{:.2}", run.micros_per_delivery / floor.micros_per_delivery)
                }),
                format!("{:.0}", run.deliveries_per_second),
                format!("{:.2}", run.latency.p50_ms),
                format!("{:.2}", run.latency.p99_ms),
                format!("{:.2}", run.latency.p999_ms),
                mib,
            ],
            Kind::Idle | Kind::Ramp => vec![
                run.connect.connections.to_string(),
                run.connect.refused.to_string(),
                format!("{:.2}", run.kib_per_connection),
                format!("{:.1}", run.connect.cpu_micros_each),
                format!("{:.0}", run.connect.per_second),
                format!("{:.1}", run.connect.p50_ms),
                format!("{:.1}", run.connect.p99_ms),
                mib,
            ],
            Kind::Intake => vec![
                run.published.to_string(),
                run.refused_updates.to_string(),
                format!("{:.2}", run.micros_per_update),
                format!("{:.0}", run.updates_per_second),
                format!("{:.2}", run.kib_per_job.unwrap_or(0.0)),
                mib,
            ],
        };
        std::iter::once(run.server.clone()).chain(cells).collect()
    }

    /// The floor's run of the same turn.
    fn floor_of<'a>(&'a self, run: &'a Run) -> Option<&'a Run> {
        pairs(&run.server, FLOOR, &self.runs)
            .find(|(own, _)| std::ptr::eq(*own, run))
            .map(|(_, floor)| floor)
    }

    /// A dialect's cost as a multiple of the native protocol's in the same turn.
    fn beside_native(&self, run: &Run) -> String {
        let is_dialect = is_dialect(&self.scenario, &run.server);
        let pair = pairs(&run.server, RELAY, &self.runs).find(|(own, _)| std::ptr::eq(*own, run));
        pair.filter(|_| is_dialect)
            .map_or_else(String::new, |(own, native)| {
                format!(
                    "{:.2}",
                    own.micros_per_delivery / native.micros_per_delivery
                )
            })
    }

    /// Prints to stdout.
    pub(crate) fn print(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "\n{}", self.scenario.title)?;
        print_table(&mut out, &self.table())?;
        for target in &self.targets {
            let (verb, sign) = match (target.reached, target.at_most) {
                (true, true) => ("reached", "<="),
                (true, false) => ("reached", ">="),
                (false, true) => ("MISSED", "<="),
                (false, false) => ("MISSED", ">="),
            };
            writeln!(
                out,
                "{verb}: {} {:.2} ({sign} {})",
                target.what, target.got, target.wanted
            )?;
        }
        let odd: u64 = self
            .runs
            .iter()
            .map(|run| run.missing + run.out_of_order + run.lost_connections + run.refused_updates)
            .sum();
        if odd > 0 {
            let loss = self.runs.iter().find_map(|run| run.loss.as_deref());
            writeln!(
                out,
                "not all went well: see missing, out_of_order, lost_connections and refused_updates in the JSON{}",
                loss.map_or_else(String::new, |loss| format!(
                    "; a connection was lost: {loss}"
                ))
            )?;
        }
        Ok(())
    }
}

/// Prints rows of cells, headings first, aligned to the right.
pub(crate) fn print_table(out: &mut impl Write, table: &[Vec<String>]) -> Result<()> {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or(0)
    };
    for row in table {
        let cells = (0..columns).map(|column| {
            let cell = row.get(column).map_or("", String::as_str);
            format!("{cell:>width$}", width = width(column))
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    Ok(())
}

impl Summary {
    fn of(server: &str, scenario: &Scenario, runs: &[Run]) -> Self {
        let own = || runs.iter().filter(|run| run.server == server);
        let spread = |figure: fn(&Run) -> f64| Spread::of(own().map(figure));
        let ratios = |to: &str, figure: fn(&Run) -> f64| {
            let ratios: Vec<f64> = pairs(server, to, runs)
                .map(|(own, other)| figure(own) / figure(other))
                .collect();
            (server != to && !ratios.is_empty()).then(|| Spread::of(ratios.iter().copied()))
        };
        let to_floor = |figure| ratios(FLOOR, figure);
        let native = is_dialect(scenario, server).then_some(RELAY);
        Self {
            server: server.to_owned(),
            micros_per_delivery: spread(|run| run.micros_per_delivery),
            user_micros_per_delivery: spread(|run| ratio(run.cpu.user_micros, run.deliveries)),
            deliveries_per_second: spread(|run| run.deliveries_per_second),
            p50_ms: spread(|run| run.latency.p50_ms),
            p99_ms: spread(|run| run.latency.p99_ms),
            kib_per_connection: spread(|run| run.kib_per_connection),
            peak_kib: spread(|run| run.memory.peak_kib as f64),
            connections_per_second: spread(|run| run.connect.per_second),
            micros_per_connection: spread(|run| run.connect.cpu_micros_each),
            cpu_to_floor: to_floor(|run| run.micros_per_delivery),
            cpu_to_native: native.and_then(|native| ratios(native, |run| run.micros_per_delivery)),
            p50_to_floor: to_floor(|run| run.latency.p50_ms),
            p99_to_floor: to_floor(|run| run.latency.p99_ms),
        }
    }
}

fn is_dialect(scenario: &Scenario, server: &str) -> bool {
    scenario.dialects.iter().any(|each| each.name == server)
}

/// A server's runs, each with another's of the same turn.
fn pairs<'a>(
    server: &'a str,
    other: &'a str,
    runs: &'a [Run],
) -> impl Iterator<Item = (&'a Run, &'a Run)> {
    let of = move |name| runs.iter().filter(move |run: &&Run| run.server == name);
    of(server).zip(of(other))
}

fn targets(reach: &Reach, summaries: &[Summary], runs: &[Run]) -> Vec<Target> {
    let Some(relay) = summaries.iter().find(|each| each.server == RELAY) else {
        return Vec::new();
    };
    let mut targets = Vec::new();
    let mut check = |what: &str, at_most: bool, wanted: Option<f64>, got: Option<f64>| {
        if let (Some(wanted), Some(got)) = (wanted, got) {
            targets.push(Target {
                what: what.to_owned(),
                at_most,
                wanted,
                got,
                reached: if at_most {
                    got <= wanted
                } else {
                    got >= wanted
                },
            });
        }
    };
    let own = || runs.iter().filter(|run| run.server == relay.server);
    let middle = |figure: fn(&Run) -> f64| Some(median(own().map(figure)));
    let ratio_of = |spread: &Option<Spread>| spread.map(|spread| spread.median);
    check(
        "CPU per delivery, times the floor's",
        true,
        reach.cpu_ratio,
        ratio_of(&relay.cpu_to_floor),
    );
    for dialect in summaries {
        check(
            &format!(
                "CPU per delivery as {}, times the native one's",
                dialect.server
            ),
            true,
            reach.dialect_ratio,
            ratio_of(&dialect.cpu_to_native),
        );
    }
    check(
        "median latency, times the floor's",
        true,
        reach.p50_ratio,
        ratio_of(&relay.p50_to_floor),
    );
    check(
        "99th percentile, times the floor's",
        true,
        reach.p99_ratio,
        ratio_of(&relay.p99_to_floor),
    );
    check(
        "KiB per connection",
        true,
        reach.kib_per_connection,
        Some(relay.kib_per_connection.median),
    );
    check(
        "KiB per job beyond its payloads",
        true,
        reach.kib_per_job,
        middle(|run| run.kib_per_job.unwrap_or(0.0)),
    );
    check(
        "connections per second",
        false,
        reach.connections_per_second,
        Some(relay.connections_per_second.median),
    );
    check(
        "us of CPU per connection",
        true,
        reach.micros_per_connection,
        Some(relay.micros_per_connection.median),
    );
    check(
        "updates per second of CPU",
        false,
        reach.updates_per_cpu_second,
        middle(|run| 1e6 / run.micros_per_update),
    );
    check(
        "share delivered",
        true,
        reach.delivered_share,
        middle(|run| ratio(run.deliveries, run.deliveries_expected)),
    );
    check(
        "last update within ms",
        true,
        reach.last_within_ms,
        middle(|run| run.last_within_ms),
    );
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_run_is_held_against_the_floor_of_its_own_turn() {
        let run = |server: &str, micros_per_delivery| Run {
            server: server.to_owned(),
            micros_per_delivery,
            ..Run::default()
        };
        let runs = vec![
            run("relay", 6.0),
            run(FLOOR, 5.0),
            run("relay", 11.0),
            run(FLOOR, 10.0),
        ];
        let mut scenario: Scenario = toml::from_str("title = \"t\"").unwrap();
        scenario.reach.cpu_ratio = Some(1.15);
        let report = Report::new(scenario, runs);
        let ratios = report.summaries[0].cpu_to_floor.unwrap();
        assert!(close(ratios.least, 1.1) && close(ratios.most, 1.2) && close(ratios.median, 1.15));
        assert!(report.summaries[1].cpu_to_floor.is_none());
        assert!(close(report.targets[0].got, 1.15));
        assert_eq!(report.row(&report.runs[0])[BESIDE_FLOOR], "1.20");
    }

    #[test]
    fn a_dialect_is_held_against_the_native_protocol_of_its_own_turn() {
        let run = |server: &str, micros_per_delivery| Run {
            server: server.to_owned(),
            micros_per_delivery,
            ..Run::default()
        };
        let runs = vec![
            run(RELAY, 10.0),
            run("shop", 11.0),
            run(RELAY, 20.0),
            run("shop", 26.0),
        ];
        let text =
            "title = 't'\n[reach]\ndialect_ratio = 1.2\n[[dialects]]\nname = 'shop'\npath = '/'";
        let report = Report::new(toml::from_str(text).unwrap(), runs);
        let column: Vec<String> = report
            .table()
            .into_iter()
            .map(|row| row[BESIDE_FLOOR + 1].clone())
            .collect();
        assert_eq!(column, ["x native", "", "1.10", "", "1.30"]);
        assert!(report.targets.len() == 1 && close(report.targets[0].got, 1.2));
        assert!(report.summaries[0].cpu_to_native.is_none());
    }
}
