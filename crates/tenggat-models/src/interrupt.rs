//! A request to stop, heard by everything that takes long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// A flag that somebody sets once, from any thread, and that long work looks at between its parts. Clones
/// share the flag.
///
/// Work that finds it set ends with [`Error::Interrupted`] and leaves no half-written file behind. A default
/// one is never set by anybody.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether an interrupt was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// `Ok`, unless the end was asked for.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.is_requested() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

impl PartialEq for Interrupt {
    /// Whether they share a flag.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interrupt {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag_and_others_do_not() {
        let (one, other) = (Interrupt::default(), Interrupt::default());
        let clone = one.clone();
        assert!(clone.check().is_ok() && one == clone && one != other);
        one.request();
        assert!(clone.check().unwrap_err().is_interrupted());
        assert!(!other.is_requested() && other.check().is_ok());
    }
}
