//! Who has got what, and how long it took.
//!
//! Each update says which one of its job it is; so what arrives tells what was superseded on the way, and
//! when everybody has an update. Latency counts from when an update *should* have been published, so a
//! publisher that was held up does not hide the wait (coordinated omission).
//!
//! Invariant: an update is outstanding until every steady watcher of its job has it or a later one.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use memchr::memmem::Finder;
use tokio::time::Instant;

use crate::door::MESSAGE;

/// The longest latency told apart from longer ones.
const LONGEST_MICROS: u64 = 120_000_000;
/// Says which update a message carries; eight digits follow. Begins in the middle, for the field is not always
/// the same one, and the quotation mark is not always bare.
const MARK: &[u8] = b"\"update ";
const DIGITS: usize = 8;

/// What kind of update it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    State,
    Milestone,
    Ending,
}

/// An update on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// When it was due to be published.
    at: Instant,
    /// Steady watchers still to get it.
    left: u32,
    ending: bool,
}

#[derive(Debug, Default)]
struct Job {
    watchers: u32,
    sent: Vec<Sent>,
}

/// What was counted while [`Tally::start`] was the last thing called.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Deliveries to steady watchers if nothing is superseded.
    pub(crate) expected: u64,
    /// Messages with an update that arrived at steady watchers.
    pub(crate) deliveries: u64,
    /// Messages with an update that arrived at watchers that come and go.
    pub(crate) others: u64,
    /// Updates that a steady watcher did not get because a later one came instead.
    pub(crate) superseded: u64,
    /// Updates that came twice, or after a later one.
    pub(crate) out_of_order: u64,
    /// Bytes of messages, without framing.
    pub(crate) bytes: u64,
    pub(crate) latency: Histogram<u64>,
    pub(crate) endings: Histogram<u64>,
    /// Since the curve was last read.
    pub(crate) recent: Histogram<u64>,
}

impl Counts {
    fn new() -> Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_MICROS, 3);
        Ok(Self {
            expected: 0,
            deliveries: 0,
            others: 0,
            superseded: 0,
            out_of_order: 0,
            bytes: 0,
            latency: histogram()?,
            endings: histogram()?,
            recent: histogram()?,
        })
    }
}

/// Counts.
#[derive(Debug)]
pub(crate) struct Tally {
    jobs: Vec<Job>,
    outstanding: u64,
    pub(crate) counts: Counts,
    /// When a steady watcher last heard of an update.
    pub(crate) heard_at: Option<Instant>,
    finder: Finder<'static>,
}

impl Tally {
    pub(crate) fn new(jobs: usize) -> Result<Self> {
        Ok(Self {
            jobs: std::iter::repeat_with(Job::default).take(jobs).collect(),
            outstanding: 0,
            counts: Counts::new()?,
            heard_at: None,
            finder: Finder::new(MARK),
        })
    }

    /// A steady watcher of a job is there.
    pub(crate) fn joined(&mut self, job: usize) {
        self.jobs[job].watchers += 1;
    }

    /// Forgets what was counted so far, not what is on its way.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.counts = Counts::new()?;
        Ok(())
    }

    /// The number the next update of a job has.
    pub(crate) fn next(&self, job: usize) -> u32 {
        u32::try_from(self.jobs[job].sent.len() + 1).unwrap_or(u32::MAX)
    }

    /// The next update of a job was due at `at`.
    pub(crate) fn published(&mut self, job: usize, at: Instant, class: Class) {
        let job = &mut self.jobs[job];
        job.sent.push(Sent {
            at,
            left: job.watchers,
            ending: class == Class::Ending,
        });
        self.counts.expected += u64::from(job.watchers);
        self.outstanding += u64::from(job.watchers > 0);
    }

    /// Updates that not everybody has yet.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// When the last update of all was due.
    pub(crate) fn last_due(&self) -> Option<Instant> {
        let last = self.jobs.iter().filter_map(|job| job.sent.last());
        last.map(|sent| sent.at).max()
    }

    /// A watcher heard a message, which may carry several updates or none. `last` is the number of the last
    /// update it had; `steady` watchers count.
    pub(crate) fn heard(
        &mut self,
        job: usize,
        last: &mut u32,
        steady: bool,
        text: &[u8],
        now: Instant,
    ) {
        let Self {
            jobs,
            outstanding,
            counts,
            heard_at,
            finder,
        } = self;
        let mut found = false;
        for at in finder.find_iter(text) {
            let Some(number) = number_at(text, at + MARK.len()) else {
                continue;
            };
            found = true;
            if !steady {
                counts.others += 1;
                continue;
            }
            counts.deliveries += 1;
            *heard_at = Some(now);
            let sent = &mut jobs[job].sent;
            let Some(update) = sent.get(number as usize - 1).copied() else {
                continue;
            };
            if number <= *last {
                counts.out_of_order += 1;
                continue;
            }
            let micros = u64::try_from((now - update.at).as_micros()).unwrap_or(u64::MAX);
            counts.latency.saturating_record(micros);
            counts.recent.saturating_record(micros);
            if update.ending {
                counts.endings.saturating_record(micros);
            }
            counts.superseded += u64::from(number - *last - 1);
            // A newer state stands for those it superseded.
            for passed in &mut sent[*last as usize..number as usize] {
                passed.left = passed.left.saturating_sub(1);
                *outstanding -= u64::from(passed.left == 0);
            }
            *last = number;
        }
        if found {
            counts.bytes += text.len() as u64;
        }
    }
}

fn number_at(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + DIGITS)?;
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number > 0).then_some(number)
}

/// A document of `length` bytes that says in `field` which update of its job it is.
pub(crate) fn document(
    number: u32,
    class: Class,
    attempt: u32,
    length: usize,
    field: &str,
) -> String {
    let head = match class {
        Class::State => format!(r#"{{"status":"running","attempt":{attempt},"progress":50,"#),
        Class::Ending => format!(r#"{{"status":"completed","attempt":{attempt},"progress":100,"#),
        Class::Milestone => "{".to_owned(),
    };
    // A dialect that has no word of a field's own says it by another.
    let beside = if field == MESSAGE {
        ""
    } else {
        r#""message":"-","#
    };
    let mut document = format!(r#"{head}{beside}"{field}":"update {number:08} "#);
    let padding = length.saturating_sub(document.len() + 2);
    document.extend(std::iter::repeat_n('.', padding));
    document.push_str("\"}");
    document
}

/// How long ago `at` was, for a person.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(number: u32) -> Vec<u8> {
        document(number, Class::State, 1, 300, MESSAGE).into_bytes()
    }

    #[test]
    fn a_document_has_the_length_asked_for_and_says_its_number() {
        for class in [Class::State, Class::Milestone, Class::Ending] {
            let document = document(42, class, 3, 300, MESSAGE);
            assert_eq!(document.len(), 300);
            assert!(serde_json::from_str::<serde_json::Value>(&document).is_ok());
            let at = memchr::memmem::find(document.as_bytes(), MARK).unwrap();
            assert_eq!(number_at(document.as_bytes(), at + MARK.len()), Some(42));
        }
    }

    #[test]
    fn a_newer_state_stands_for_the_one_it_superseded() {
        let now = Instant::now();
        let mut tally = Tally::new(1).unwrap();
        tally.joined(0);
        tally.joined(0);
        for _ in 0..2 {
            tally.published(0, now, Class::State);
        }
        let mut last = [0; 2];
        tally.heard(0, &mut last[0], true, &state(1), now);
        assert_eq!(tally.outstanding(), 2);
        tally.heard(0, &mut last[0], true, &state(2), now);
        tally.heard(0, &mut last[1], true, &state(2), now);
        assert_eq!(tally.outstanding(), 0);
        let counts = &tally.counts;
        assert_eq!((counts.expected, counts.deliveries), (4, 3));
        assert_eq!((counts.superseded, counts.out_of_order), (1, 0));
    }

    #[test]
    fn several_updates_in_one_message_count_each_and_one_that_comes_again_is_noticed() {
        let now = Instant::now();
        let mut tally = Tally::new(1).unwrap();
        tally.joined(0);
        for _ in 0..2 {
            tally.published(0, now, Class::Milestone);
        }
        let mut last = 0;
        tally.heard(0, &mut last, true, &[state(1), state(2)].concat(), now);
        tally.heard(0, &mut last, true, &state(2), now);
        assert_eq!((tally.counts.deliveries, tally.counts.out_of_order), (3, 1));
        assert_eq!(tally.outstanding(), 0);
    }

    #[test]
    fn whoever_comes_and_goes_is_counted_apart() {
        let now = Instant::now();
        let mut tally = Tally::new(1).unwrap();
        tally.published(0, now, Class::State);
        tally.heard(0, &mut 0, false, &state(1), now);
        let counts = &tally.counts;
        assert_eq!(
            (counts.deliveries, counts.others, counts.expected),
            (0, 1, 0)
        );
    }
}
