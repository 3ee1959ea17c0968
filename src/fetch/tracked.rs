//! A value that knows whether it changed since the checkpoint was saved. Invariant: no mutable
//! access goes unnoticed but those of the checkpoint itself, through the fields.

use std::ops::{Deref, DerefMut};

/// A value that knows whether it changed since it was saved: each mutable access counts as a
/// change.
pub(super) struct Tracked<T> {
    /// The value.
    pub(super) value: T,
    /// Whether it changed.
    pub(super) changed: bool,
}

impl<T> Tracked<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value,
            changed: true,
        }
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Tracked<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        &mut self.value
    }
}
