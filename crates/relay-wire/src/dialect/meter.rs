//! Where the runs of mappings are counted.
//!
//! What a count becomes, and whether a failure is logged, is up to the reader of the dialects.

use std::fmt;

use super::jq::Failure;

/// Counts the runs of one mapping. Mappings of one dialect that have one name may share what they count.
pub trait Meter: fmt::Debug + Send + Sync {
    /// The mapping runs.
    fn ran(&self);
    /// A run gave nothing, or something that cannot be used.
    fn failed(&self, failure: &Failure);
}

/// Gives the meter for a dialect, by name, and a mapping, by its key in the file; asked once for each mapping.
pub type Meters<'a> = &'a dyn Fn(&str, &str) -> Box<dyn Meter>;

/// Counts nothing: for dialects that are only checked.
impl Meter for () {
    fn ran(&self) {}

    fn failed(&self, _: &Failure) {}
}
