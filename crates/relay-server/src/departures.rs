//! Where clients of dialects stood when they left, for when they return: a page that speaks a plain WebSocket brings no
//! cursor itself.
//!
//! Kept on this node, for as long as the dialect says, and taken once. It does not know what a client watches, or what
//! it is told when it is back.
//!
//! Invariant: at most [`MAX_KEPT`] are kept at a time.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use relay_core::moment::Moment;
use relay_wire::dialect::{Params, Parting};

use crate::poll_limits::Caller;

/// Clients that left and are remembered. Past it the one that left first is forgotten.
const MAX_KEPT: usize = 4096;

/// By what a client is known again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Whence {
    /// The path as its file has it.
    pub(crate) path: String,
    /// What was in its places.
    pub(crate) params: Params,
    /// The client's user, or its address where it has none.
    pub(crate) caller: Caller,
}

/// Those who left.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    /// Held for one look-up.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_client: HashMap<Whence, VecDeque<(Moment, Parting)>>,
    /// In the order in which they left; some are taken or forgotten since.
    order: VecDeque<Whence>,
}

impl Departures {
    /// A client leaves at `now`, and is remembered for so long. How many are forgotten for it that might have come back.
    pub(crate) fn keep(
        &self,
        whence: Whence,
        parting: Parting,
        now: Moment,
        within: Duration,
    ) -> u64 {
        let mut kept = self.kept.lock();
        let kept = &mut *kept;
        let mut forgotten = 0;
        while kept.order.len() >= MAX_KEPT {
            let first = kept.order.pop_front();
            let first = first.and_then(|first| kept.take(&first));
            forgotten += u64::from(first.is_some_and(|(until, _)| now < until));
        }
        let until = now + within;
        kept.order.push_back(whence.clone());
        let partings = kept.by_client.entry(whence).or_default();
        partings.push_back((until, parting));
        forgotten
    }

    /// A client comes that may be one of those who left: where it stood. Of several, the one that left first.
    pub(crate) fn take(&self, whence: &Whence, now: Moment) -> Option<Parting> {
        let mut kept = self.kept.lock();
        loop {
            let (until, parting) = kept.take(whence)?;
            if let Some(at) = kept.order.iter().position(|each| each == whence) {
                kept.order.remove(at);
            }
            if now < until {
                return Some(parting);
            }
        }
    }
}

impl Kept {
    fn take(&mut self, whence: &Whence) -> Option<(Moment, Parting)> {
        let partings = self.by_client.get_mut(whence)?;
        let first = partings.pop_front();
        if partings.is_empty() {
            self.by_client.remove(whence);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use relay_core::cursor::Cursor;
    use relay_core::position::{Epoch, Position, Seq};

    use super::*;

    fn whence(n: u32) -> Whence {
        Whence {
            path: "/x".to_owned(),
            params: Params::default(),
            caller: Caller::Address(std::net::Ipv4Addr::from(n).into()),
        }
    }

    fn parting(seq: u64) -> Parting {
        let topics: [&relay_core::topic::Topic; 0] = [];
        let cursor = Cursor::at(Position::new(Epoch::default(), Seq::new(seq)), topics);
        Parting::at(cursor)
    }

    fn seq(taken: Option<Parting>) -> Option<u64> {
        taken.map(|parting| parting.cursor().position.seq.get())
    }

    #[test]
    fn whoever_left_is_known_again_once_and_for_a_while() {
        let departures = Departures::default();
        let begin = Moment::default();
        let late = begin + Duration::from_secs(2);
        for (n, within) in [(1, 1), (2, 9), (3, 9)] {
            let within = Duration::from_secs(within);
            assert_eq!(departures.keep(whence(1), parting(n), begin, within), 0);
        }
        assert_eq!(seq(departures.take(&whence(2), begin)), None);
        // The first is forgotten by then.
        assert_eq!(seq(departures.take(&whence(1), late)), Some(2));
        assert_eq!(seq(departures.take(&whence(1), late)), Some(3));
        assert_eq!(seq(departures.take(&whence(1), late)), None);
        assert_eq!(departures.kept.lock().order.len(), 0);
    }

    #[test]
    fn as_many_are_kept_as_the_bound_says() {
        let departures = Departures::default();
        let begin = Moment::default();
        let within = Duration::from_secs(60);
        let keep = |n: usize, now| {
            let n = u32::try_from(n).unwrap();
            departures.keep(whence(n), parting(1), now, within)
        };
        let forgotten: u64 = (0..=MAX_KEPT).map(|n| keep(n, begin)).sum();
        assert_eq!(forgotten, 1);
        assert_eq!(departures.kept.lock().by_client.len(), MAX_KEPT);
        assert_eq!(seq(departures.take(&whence(0), begin)), None);
        assert_eq!(seq(departures.take(&whence(1), begin)), Some(1));
        keep(0, begin);
        // Whose time is over would not have been known again.
        assert_eq!(keep(0, begin + within), 0);
    }
}
