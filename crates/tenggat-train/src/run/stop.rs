//! Requests to a run from outside, and whether the run has unsaved updates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenggat_models::Interrupt;

use super::Result;

/// Shared between a run and its signal handlers; clones share their state.
///
/// Once an interrupt is requested, every phase of the run ends within moments: between two blocks of the
/// model, two images, two parts of a file. What was trained is saved; no more samples or measurements follow.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    interrupt: Interrupt,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    save: AtomicBool,
    has_deadline: AtomicBool,
    is_unsaved: AtomicBool,
}

impl Stop {
    /// Interrupts the run: it saves what it has trained and ends.
    pub fn request(&self) {
        self.interrupt.request();
    }

    /// Whether an interrupt was requested.
    pub fn is_requested(&self) -> bool {
        self.interrupt.is_requested()
    }

    /// The flag, for long work that knows nothing of runs.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Requests a save as soon as the current step is done; the run continues.
    pub fn save_now(&self) {
        self.shared.save.store(true, Ordering::Relaxed);
    }

    /// Says that nobody is watching any more: a run with a deadline continues, any other is interrupted.
    pub fn hang_up(&self) {
        if !self.shared.has_deadline.load(Ordering::Relaxed) {
            self.request();
        }
    }

    /// Notes whether the run ends by itself at some moment.
    pub fn set_has_deadline(&self, has_deadline: bool) {
        self.shared.has_deadline.store(has_deadline, Ordering::Relaxed);
    }

    /// Whether there are updates that no file holds. As long as there are none, the process may end at any
    /// moment.
    pub fn has_unsaved(&self) -> bool {
        self.shared.is_unsaved.load(Ordering::SeqCst)
    }

    pub(super) fn set_unsaved(&self, is_unsaved: bool) {
        self.shared.is_unsaved.store(is_unsaved, Ordering::SeqCst);
    }

    /// Whether a save was requested since the last call.
    pub(super) fn takes_save(&self) -> bool {
        self.shared.save.swap(false, Ordering::Relaxed)
    }
}

/// The result of an optional part of a run; `None` if the run was interrupted meanwhile.
pub(super) fn unless_interrupted<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_interrupted() => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_terminal_ends_a_run_without_a_deadline_alone() {
        let (with, without) = (Stop::default(), Stop::default());
        with.set_has_deadline(true);
        for stop in [&with, &without] {
            stop.clone().hang_up();
        }
        assert!(!with.is_requested() && without.is_requested());
        with.set_has_deadline(false);
        with.hang_up();
        assert!(with.interrupt().check().is_err());
    }

    #[test]
    fn a_save_is_asked_for_once() {
        let stop = Stop::default();
        stop.clone().save_now();
        assert!(stop.takes_save() && !stop.takes_save() && !stop.is_requested());
    }
}
