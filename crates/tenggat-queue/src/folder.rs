//! The folder of a queue: the database and what lies beside it.

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
