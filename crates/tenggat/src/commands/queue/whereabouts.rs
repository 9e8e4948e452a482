//! Where the queue is, and the time as it counts it.

use std::path::PathBuf;

use anyhow::Context;
use jiff::Timestamp;
use tenggat_queue::{Folder, USUAL};

/// The folder of this user's queue: `TENGGAT_QUEUE`, else below `~/.local/state`.
///
/// # Errors
/// There is no home folder.
pub fn folder() -> anyhow::Result<Folder> {
    if let Some(folder) = std::env::var_os("TENGGAT_QUEUE").filter(|folder| !folder.is_empty()) {
        return Ok(Folder::new(&std::path::absolute(PathBuf::from(folder))?));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
    let state = state.context("no home folder; set TENGGAT_QUEUE to a folder that can be written")?;
    Ok(Folder::new(&state.join(USUAL)))
}

/// Seconds since 1970.
pub fn now_unix_s() -> f64 {
    unix_s(Timestamp::now())
}

/// A moment in seconds since 1970.
pub fn unix_s(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}
