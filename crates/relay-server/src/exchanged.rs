//! A value that is read often, by many threads, and exchanged seldom, as a whole.
//!
//! Invariant: whoever reads has one state of it, for as long as it is looked at.

use std::sync::Arc;

use parking_lot::RwLock;

/// The value of now.
#[derive(Debug, Default)]
pub(crate) struct Exchanged<T>(
    /// Held for as long as it takes to copy a pointer.
    RwLock<Arc<T>>,
);

impl<T> Exchanged<T> {
    /// The first value.
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// The value as it is now.
    pub(crate) fn now(&self) -> Arc<T> {
        self.0.read().clone()
    }

    /// From here on it is this one.
    pub(crate) fn change(&self, value: T) {
        *self.0.write() = Arc::new(value);
    }
}
