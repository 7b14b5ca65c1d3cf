//! A job's history on its way to the hub, bounded whatever was published.
//!
//! Only a job with more than four thousand messages, which takes scores of milestone names, reaches the
//! bound. Then its newest messages are kept, and its last state whatever its age.
//!
//! Invariant: what is kept has no hole, but for a state that stands before the rest.

use std::collections::{HashMap, VecDeque};

use relay_core::position::Seq;

use crate::jetstream::decode::Stored;
use crate::seam::{History, Incoming};

const MESSAGES: usize = 4096;
const BYTES: usize = 64 << 20;

/// The newest messages of a job.
#[derive(Debug, Default)]
pub(super) struct Window {
    kept: VecDeque<Stored>,
    bytes: usize,
    /// Per subject, the last state that fell out.
    states: HashMap<String, Stored>,
    /// Up to here something was left out before it was read.
    left_out_to: Seq,
}

impl Window {
    /// Adds a message; of one subject, in ascending order.
    pub(super) fn push(&mut self, stored: Stored) {
        self.bytes += stored.bytes();
        self.kept.push_back(stored);
        while self.kept.len() > MESSAGES || self.bytes > BYTES {
            let Some(oldest) = self.kept.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes();
            if oldest.is_state() {
                self.states.insert(oldest.subject.clone(), oldest);
            }
        }
    }

    /// The last messages alone of subjects that hold too much to be read.
    pub(super) fn of_lasts(lasts: &[Stored]) -> Self {
        let mut window = Self::default();
        for last in lasts {
            window.left_out_to = window.left_out_to.max(last.seq.before());
            window.push(last.clone());
        }
        window
    }

    /// The histories of different subjects as one, up to the number as of which all are known: what came
    /// later on one of them may have come on another after that was read.
    pub(super) fn merge(windows: Vec<Self>, up_to: Seq) -> Self {
        let mut merged = Self::default();
        let mut all = Vec::new();
        for window in windows {
            merged.left_out_to = merged.left_out_to.max(window.left_out_to);
            merged.states.extend(window.states);
            all.extend(window.kept.into_iter().filter(|stored| stored.seq <= up_to));
        }
        all.sort_unstable_by_key(|stored: &Stored| stored.seq);
        // States may have been found twice: by themselves, and among the rest.
        all.dedup_by_key(|stored| stored.seq);
        for stored in all {
            merged.push(stored);
        }
        merged
    }

    /// The updates in ascending order, each with the number of the one before it on its subject.
    pub(super) fn finish(mut self, up_to: Seq) -> History {
        let left_out_to = self.left_out_to;
        for stored in &self.kept {
            self.states.remove(&stored.subject);
        }
        let mut all: Vec<Stored> = self.states.into_values().chain(self.kept).collect();
        all.sort_unstable_by_key(|stored| stored.seq);
        let mut last: HashMap<String, Seq> = HashMap::new();
        let with_previous = all.into_iter().filter_map(|stored| {
            let update = stored.update?;
            let previous = last.insert(stored.subject, stored.seq).unwrap_or_default();
            Some(Incoming {
                previous: Some(previous),
                ..update
            })
        });
        History {
            updates: with_previous.collect(),
            up_to,
            left_out_to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::What;
    use crate::subject::Subjects;
    use relay_core::moment::WallTime;

    fn stored(last: &str, seq: u64) -> Stored {
        let subject = format!("progress.u.j.{last}");
        let address = Subjects::new("progress", "live")
            .unwrap()
            .parse(&subject)
            .unwrap();
        Stored {
            subject,
            seq: Seq::new(seq),
            update: Some(Incoming {
                job: address.job,
                what: address.what,
                payload: bytes::Bytes::from_static(b"{}"),
                seq: Seq::new(seq),
                previous: None,
                stored_at: WallTime::default(),
                first: None,
            }),
        }
    }

    #[test]
    fn each_message_names_the_one_before_it_on_its_subject() {
        let mut window = Window::default();
        for (last, seq) in [("state", 1), ("clip", 4), ("state", 7), ("clip", 9)] {
            window.push(stored(last, seq));
        }
        let chain: Vec<_> = window
            .finish(Seq::new(9))
            .updates
            .iter()
            .map(|each| (each.seq.get(), each.previous.map(Seq::get)))
            .collect();
        assert_eq!(
            chain,
            [(1, Some(0)), (4, Some(0)), (7, Some(1)), (9, Some(4))]
        );
    }

    #[test]
    fn histories_of_several_subjects_end_where_all_are_known() {
        let windows = [("state", [1, 5, 9]), ("clip", [2, 6, 12])].map(|(last, numbers)| {
            let mut window = Window::default();
            for seq in numbers {
                window.push(stored(last, seq));
            }
            window
        });
        let merged = Window::merge(windows.into(), Seq::new(9)).finish(Seq::new(9));
        let numbers: Vec<_> = merged.updates.iter().map(|each| each.seq.get()).collect();
        assert_eq!(numbers, [1, 2, 5, 6, 9]);
    }

    #[test]
    fn a_job_with_too_many_messages_keeps_its_newest_and_its_last_state() {
        let mut window = Window::default();
        window.push(stored("state", 1));
        window.push(stored("state", 2));
        for seq in 3..10_000 {
            window.push(stored(&format!("frame{seq}"), seq));
        }
        let updates = window.finish(Seq::new(9_999)).updates;
        assert_eq!(updates.len(), MESSAGES + 1);
        assert_eq!((updates[0].seq.get(), &updates[0].what), (2, &What::State));
        assert_eq!(updates[1].seq.get(), 10_000 - MESSAGES as u64);
        assert_eq!(updates[MESSAGES].seq.get(), 9_999);
    }
}
