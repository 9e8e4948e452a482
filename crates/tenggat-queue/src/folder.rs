//! The folder of a queue: the database and what lies beside it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Where the queue is below the user's folder for state, `~/.local/state`.
pub const USUAL: &str = "tenggat/queue";

/// The names in the folder of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The queue in this folder.
    pub fn new(path: &Path) -> Self {
        Folder(path.to_path_buf())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.0.join("queue.db")
    }

    /// Locked by the process that runs the queue.
    pub fn runner_lock(&self) -> PathBuf {
        self.0.join("runner.lock")
    }

    /// Whether a process runs the queue. To know, its lock is taken for a moment, shared with others that
    /// look; who begins to run the queue just then tries again.
    pub fn has_runner(&self) -> bool {
        let Ok(file) = File::open(self.runner_lock()) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Locked by the process of an entry for as long as it lives.
    pub fn entry_lock(&self, id: i64) -> PathBuf {
        self.0.join(format!("{id}.lock"))
    }

    /// What the process of an entry says.
    pub fn log(&self, id: i64) -> PathBuf {
        self.0.join(format!("{id}.log"))
    }

    /// Job files that were written on the page.
    pub fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_is_seen_and_its_lock_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Folder::new(folder.path());
        assert!(!queue.has_runner());
        let lock = File::create(queue.runner_lock()).unwrap();
        assert!(!queue.has_runner());
        lock.try_lock().unwrap();
        assert!(queue.has_runner());
        drop(lock);
        assert!(!queue.has_runner());
    }
}
