//! What can go wrong.

use std::path::PathBuf;

/// An error of the queue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be created.
    #[error("cannot create {path}; set TENGGAT_QUEUE to a folder that can be written")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database cannot be read or written.
    #[error("the queue in {path} cannot be used")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A later version of the program made it.
    #[error("the queue in {path} was made by a newer tenggat; use that one, or another TENGGAT_QUEUE")]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// There is no such entry.
    #[error("the queue has no entry {0}; `tenggat queue list` shows them")]
    Unknown(i64),
    /// Only an entry that waits can be moved.
    #[error("entry {0} is not waiting; only waiting entries can be moved")]
    NotWaiting(i64),
    /// An entry that has ended cannot be cancelled.
    #[error("entry {0} has already ended")]
    Ended(i64),
}

/// A result of the queue.
pub type Result<T> = std::result::Result<T, Error>;
