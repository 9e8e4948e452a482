//! Why there is nothing to train or measure on.

use std::path::{Path, PathBuf};

use super::pictures;

/// Result of preparing data.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Data that cannot be used or encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job has a value that makes no sense, or needs something that tenggat cannot do.
    #[error("{0}")]
    Job(String),
    /// A file that could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An encoder failed.
    #[error(transparent)]
    Model(#[from] tenggat_models::Error),
    /// The images could not be read.
    #[error(transparent)]
    Images(#[from] pictures::Error),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Error::File { action, path: path.to_path_buf(), source }
    }
}

impl From<tenggat_tensor::Error> for Error {
    fn from(e: tenggat_tensor::Error) -> Self {
        Error::Model(e.into())
    }
}
