//! What is asked of a run from outside while it is under way, and whether it has anything to lose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenggat_models::Interrupt;

use super::Result;

/// Shared between a run and whoever hears signals for it; clones are the same.
///
/// Once the end is asked for, every phase of the run ends within moments: between two blocks of the model,
/// two pictures, two parts of a file. What was trained is saved; nothing is drawn or measured any more.
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
    /// Asks for the end: the run saves what it has trained.
    pub fn request(&self) {
        self.interrupt.request();
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        self.interrupt.is_requested()
    }

    /// The flag, for what takes long and knows nothing of runs.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Asks for a save as soon as the step under way is done. The run goes on.
    pub fn save_now(&self) {
        self.shared.save.store(true, Ordering::Relaxed);
    }

    /// Tells that nobody is watching any more: a run with a deadline goes on, any other is asked to end.
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

    /// Whether a save was asked for since this was last called.
    pub(super) fn takes_save(&self) -> bool {
        self.shared.save.swap(false, Ordering::Relaxed)
    }
}

/// The result of a part of a run that may be left out; `None` if somebody asked for the end meanwhile.
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
