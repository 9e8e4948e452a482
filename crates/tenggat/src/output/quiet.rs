//! `--quiet`: how much is told.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether only warnings and failures are told, see [`be_quiet`].
static QUIET: AtomicBool = AtomicBool::new(false);

/// From here on nothing is told but warnings, failures and what a command was called for.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}
