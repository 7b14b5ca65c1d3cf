//! One setting that is not as the relay needs it: what it is, what comes of that, and the cure.
//!
//! It knows how a difference reads, and not which there are.
//!
//! Invariant: whoever reads one knows what to do.

use std::fmt;

/// What a difference costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// The relay cannot work.
    Prevents,
    /// The relay works, and something is lost.
    Loses,
}

/// One setting that is not as the relay needs it, what comes of it, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// As in the stream's, or the server's, configuration.
    pub setting: &'static str,
    /// What it is.
    pub found: String,
    /// What it must be.
    pub needed: String,
    /// What comes of it.
    pub effect: &'static str,
    /// What to do.
    pub cure: String,
    /// Whether the relay can work.
    pub weight: Weight,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let must = match self.weight {
            Weight::Prevents => "must",
            Weight::Loses => "should",
        };
        let Self {
            setting,
            found,
            needed,
            effect,
            cure,
            ..
        } = self;
        write!(
            f,
            "{setting} is {found} and {must} be {needed}: {effect}; {cure}"
        )
    }
}

impl std::error::Error for Difference {}
