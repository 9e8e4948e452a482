//! Whether a disk has room for what a trainer will write next.

use std::path::{Path, PathBuf};

/// Room on the disk that a trainer saves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The folder of its saves.
    pub folder: PathBuf,
    /// Bytes that are free there.
    pub free: u64,
    /// Bytes that the next save and its publication need.
    pub needed: u64,
}

impl Room {
    /// Whether the next save fits.
    pub fn is_enough(&self) -> bool {
        self.free >= self.needed
    }

    /// Both figures in words.
    pub fn in_words(&self) -> String {
        let (free, needed) = (self.free as f64 / 1e9, self.needed as f64 / 1e9);
        format!("{free:.2} GB are free in {} and the next save needs {needed:.2} GB", self.folder.display())
    }
}

/// Bytes that a process without special rights may still write to the disk of a folder, if the system tells.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes that a process may still write to the disk of a folder, if the system tells.
#[cfg(not(unix))]
pub fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// Bytes of all files in a folder, folders in it left out.
pub(crate) fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|found| found.is_file())
        .map(|found| found.len())
        .sum()
}
