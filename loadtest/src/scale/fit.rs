//! Straight lines through what was measured, and where they lead.
//!
//! It knows points and not how they came about. Invariant: what one thread of a node has to do is told apart from
//! what its cores share out.

use serde::Serialize;

use super::{Axis, Sample};

/// Where to.
const SIZES: [f64; 2] = [100_000.0, 1_000_000.0];
const NODES: [f64; 3] = [1.0, 10.0, 100.0];

/// `cost = per_update * updates + per_delivery * deliveries + per_wake * wakes` and
/// `memory = base + per_connection * connections + per_job * jobs`.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Fit {
    /// Reading one, measured with nobody watching; the others are fitted to what remains.
    pub(super) micros_per_update: f64,
    pub(super) micros_per_delivery: f64,
    /// Threads sleep when they have nothing to do, so the less there is to do the more often they are woken.
    pub(super) micros_per_wake: f64,
    /// The most of them that were seen: threads that are busy are not woken.
    pub(super) wakes_per_second: f64,
    pub(super) base_mib: f64,
    pub(super) kib_per_connection: f64,
    /// With the updates that the scenario publishes of each.
    pub(super) kib_per_job: f64,
}

/// What a node would need.
#[derive(Debug, Serialize)]
pub(super) struct Projection {
    pub(super) connections: f64,
    pub(super) nodes: f64,
    pub(super) jobs: f64,
    /// Everybody's: every node reads them all.
    pub(super) updates_per_second: f64,
    pub(super) deliveries_per_second_and_node: f64,
    pub(super) cores_per_node: f64,
    /// The part of them that reads updates, which one thread does.
    pub(super) reading_per_node: f64,
    pub(super) connections_mib_per_node: f64,
    pub(super) jobs_mib_per_node: f64,
}

impl Fit {
    pub(super) fn of(samples: &[Sample], micros_per_update: f64) -> Self {
        let cost = |each: &Sample| {
            let of = [each.deliveries_per_second, each.wakes_per_second];
            (
                of,
                each.cores * 1e6 - each.updates_per_second * micros_per_update,
            )
        };
        let cost: Vec<_> = samples.iter().map(cost).collect();
        let [micros_per_delivery, micros_per_wake] = least_squares(&cost);
        let wakes = samples.iter().map(|each| each.wakes_per_second);
        // A higher rate means a longer history of each job, which is neither a connection's nor a job's.
        let memory = samples.iter().filter(|each| each.axis != Axis::Rate);
        let memory: Vec<_> = memory
            .map(|each| {
                let of = [1.0, each.watchers as f64, each.jobs as f64];
                (of, each.resident_mib)
            })
            .collect();
        let [base_mib, mib_per_connection, mib_per_job] = least_squares(&memory);
        Self {
            micros_per_update,
            micros_per_delivery,
            micros_per_wake,
            wakes_per_second: wakes.fold(0.0, f64::max),
            base_mib,
            kib_per_connection: mib_per_connection * 1024.0,
            kib_per_job: mib_per_job * 1024.0,
        }
    }

    pub(super) fn cores(&self, sample: &Sample) -> f64 {
        (sample.updates_per_second * self.micros_per_update
            + sample.deliveries_per_second * self.micros_per_delivery
            + sample.wakes_per_second * self.micros_per_wake)
            / 1e6
    }

    pub(super) fn mib(&self, sample: &Sample) -> f64 {
        self.base_mib
            + (sample.watchers as f64 * self.kib_per_connection
                + sample.jobs as f64 * self.kib_per_job)
                / 1024.0
    }
}

/// The factors with which the columns come nearest to the value, by least squares. A column that says nothing
/// new beside those before it gets 0.
fn least_squares<const N: usize>(points: &[([f64; N], f64)]) -> [f64; N] {
    let mut rows = [[0.0; N]; N];
    let mut right = [0.0; N];
    for (columns, value) in points {
        for i in 0..N {
            for j in 0..N {
                rows[i][j] += columns[i] * columns[j];
            }
            right[i] += columns[i] * value;
        }
    }
    let scale: [f64; N] = std::array::from_fn(|i| rows[i][i].max(f64::MIN_POSITIVE));
    for i in 0..N {
        if rows[i][i] < scale[i] * 1e-9 {
            rows[i] = std::array::from_fn(|j| f64::from(u8::from(i == j)));
            right[i] = 0.0;
        }
        for below in i + 1..N {
            let times = rows[below][i] / rows[i][i];
            let pivot = rows[i];
            for (left, pivot) in rows[below].iter_mut().zip(pivot) {
                *left -= times * pivot;
            }
            right[below] -= times * right[i];
        }
    }
    let mut found = [0.0; N];
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|j| rows[i][j] * found[j]).sum();
        found[i] = (right[i] - known) / rows[i][i];
    }
    found
}

/// Every node reads every update and keeps every job; connections and deliveries are shared out evenly.
pub(super) fn project(fit: Fit, updates_per_job: f64, watchers_per_job: f64) -> Vec<Projection> {
    let mut projections = Vec::new();
    for connections in SIZES {
        for nodes in NODES {
            let jobs = connections / watchers_per_job;
            let updates = jobs * updates_per_job;
            let deliveries = connections * updates_per_job / nodes;

            let reading = updates * fit.micros_per_update / 1e6;
            projections.push(Projection {
                connections,
                nodes,
                jobs,
                updates_per_second: updates,

                deliveries_per_second_and_node: deliveries,
                cores_per_node: reading
                    + deliveries * fit.micros_per_delivery / 1e6
                    + fit.wakes_per_second * fit.micros_per_wake / 1e6,
                reading_per_node: reading,
                connections_mib_per_node: fit.base_mib
                    + connections / nodes * fit.kib_per_connection / 1024.0,
                jobs_mib_per_node: jobs * fit.kib_per_job / 1024.0,
            });
        }
    }
    projections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_through_their_points() {
        let points = [(1.0, 2.0), (3.0, 1.0), (2.0, 5.0)];
        let points = points.map(|(x, y)| ([x, y, 1.0], 10.0 * x + 4.0 * y + 3.0));
        let found = least_squares(&points);
        for (found, expected) in found.iter().zip([10.0, 4.0, 3.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn what_was_not_varied_is_not_charged() {
        // Twice as much of the first is always twice as much of the second.
        let found = least_squares(&[([1.0, 2.0], 5.0), ([2.0, 4.0], 10.0)]);
        assert!((found[0] - 5.0).abs() < 1e-6 && found[1].abs() < 1e-9);
    }

    #[test]
    fn every_node_reads_every_update_and_shares_the_deliveries() {
        let fit = Fit {
            micros_per_update: 10.0,
            micros_per_delivery: 5.0,
            micros_per_wake: 20.0,
            wakes_per_second: 1000.0,
            kib_per_connection: 1.0,
            kib_per_job: 2.0,
            ..Fit::default()
        };
        let projections = project(fit, 1.0, 10.0);
        // 10,000 updates and 100,000 deliveries a second.
        assert!((projections[0].cores_per_node - (0.1 + 0.5 + 0.02)).abs() < 1e-9);
        assert!((projections[1].cores_per_node - (0.1 + 0.05 + 0.02)).abs() < 1e-9);
        assert!((projections[1].reading_per_node - 0.1).abs() < 1e-9);
        assert!((projections[1].connections_mib_per_node - 10_000.0 / 1024.0).abs() < 1e-9);
        assert!((projections[1].jobs_mib_per_node - 20_000.0 / 1024.0).abs() < 1e-9);
    }
}
