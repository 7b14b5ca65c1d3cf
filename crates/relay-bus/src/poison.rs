//! Messages that make the code which reads them panic: such a message is skipped, and no other with it.
//!
//! Taking a message in has two halves. The first reads its bytes, compares them with what is known and
//! changes nothing: a subject is split, a document parsed, a guard asked. [`read`] runs that half. A panic
//! there costs the one message; it is logged, and the caller counts it as `panicked`. That nothing was
//! changed is not a promise but checked by the compiler: what [`read`] runs must be [`UnwindSafe`], and a
//! closure that holds a `&mut` is not.
//!
//! The second half enters what was found into the hub's table, and reads no outside bytes. A panic there is
//! caught by nobody, because the table may be half changed: it ends the process (`Locked` in the hub).
//!
//! Invariant: nothing in this crate catches a panic but [`read`].

use std::fmt::Display;
use std::panic::{UnwindSafe, catch_unwind};

use relay_core::position::Seq;

/// Why a message counts as skipped.
pub(crate) const PANICKED: &str = "panicked";

/// Runs the reading of one message. `None`: it panicked; the panic itself is in the log above.
pub(crate) fn read<T>(
    subject: &dyn Display,
    seq: Option<Seq>,
    reading: impl FnOnce() -> T + UnwindSafe,
) -> Option<T> {
    let read = catch_unwind(reading).ok();
    if read.is_none() {
        let seq = seq.map(Seq::get);
        tracing::error!(%subject, seq, "a message made the code that reads it panic; the message is skipped");
    }
    read
}

/// A fault for tests: it panics at a job of this name.
#[cfg(test)]
pub(crate) fn fault(place: &str, job: &str) {
    assert_ne!(job, place, "a fault injected by a test");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_is_skipped_and_what_does_not_is_handed_on() {
        assert_eq!(
            read(&"progress.u.j.state", Some(Seq::new(7)), || 1),
            Some(1)
        );
        let name = String::from("reading");
        let read = read(&"progress.u.j.state", Some(Seq::new(8)), || {
            fault("reading", &name)
        });
        assert_eq!(read, None);
    }
}
