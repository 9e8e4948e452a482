//! What can go wrong with a drive as a whole.

use std::io;
use std::path::{Path, PathBuf};

/// A drive that cannot begin, or that ended with nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be used.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The job file does not say what a drive needs, or says something that cannot be followed.
    #[error("{}: {message}", path.display())]
    Job {
        /// The job file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// The control database.
    #[error("the control database {}: {source}", path.display())]
    Channel {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// The trainer could not be started.
    #[error("cannot start the trainer with `{program}`: {source}; {advice}")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Another process drives a run in the same folder.
    #[error("another `tenggat drive` is running in {}; wait for it, or give this run another name", .0.display())]
    Locked(PathBuf),
    /// The budget cannot be kept by any run.
    #[error(transparent)]
    Budget(#[from] tenggat_plan::BudgetError),
    /// The drive ended without a LoRA.
    #[error("{0}")]
    NothingDelivered(String),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the file system.
    pub(crate) fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        Error::File { what, path: path.into(), source }
    }
}
