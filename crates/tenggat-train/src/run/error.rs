//! What can end a run early.

use std::path::{Path, PathBuf};

use crate::data;

/// Result of a part of a run.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A run that could not be started or finished. What it had saved stays on disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job has a value that makes no sense, or needs something that tenggat cannot do.
    #[error("{0}")]
    Job(String),
    /// Another run is under way in the folder; nothing there was touched.
    #[error("{0}; wait for it to end, stop it, or give this run another --name")]
    Locked(String),
    /// A file or folder that could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model could not be read or run.
    #[error(transparent)]
    Model(#[from] tenggat_models::Error),
    /// The pictures could not be read.
    #[error(transparent)]
    Data(#[from] crate::data::pictures::Error),
    /// A LoRA file could not be read or written.
    #[error(transparent)]
    LoraFile(#[from] crate::lora::file::Error),
    /// The report's images could not be rendered or written.
    #[error(transparent)]
    Report(#[from] crate::outcome::report::Error),
    /// No run could keep this budget.
    #[error(transparent)]
    Budget(#[from] tenggat_plan::BudgetError),
    /// The training diverged.
    #[error(
        "step {step}: the loss has not been a number for {times} steps in a row; \
         lower the learning rate ({lr:e}) or look at the images of the last batches"
    )]
    Diverged {
        /// The step it was given up at.
        step: u64,
        /// Steps without a loss.
        times: u64,
        /// Learning rate of that step.
        lr: f64,
    },
    /// An update ruined the weights.
    #[error(
        "step {step}: the update made the weights infinite or not a number{as_stored} (learning rate \
         {lr:e}), so they are not saved; {kept}. Lower the learning rate and train again"
    )]
    NotFinite {
        /// The step of the last update.
        step: u64,
        /// Its learning rate.
        lr: f64,
        /// The type in which they are infinite, if they are finite in full precision.
        as_stored: String,
        /// What is on disk.
        kept: String,
    },
}

impl Error {
    /// Whether nothing went wrong, but somebody asked for the end.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Model(e) if e.is_interrupted())
    }

    /// Whether a file could not be written or read, as opposed to a device that failed or numbers that make
    /// no sense.
    pub(super) fn is_of_a_file(&self) -> bool {
        self.io().is_some()
    }

    /// Whether there was no room left on the disk.
    pub(super) fn is_disk_full(&self) -> bool {
        self.io().is_some_and(is_disk_full)
    }

    fn io(&self) -> Option<&std::io::Error> {
        match self {
            Error::File { source, .. } => Some(source),
            Error::LoraFile(crate::lora::file::Error::File { source, .. }) => Some(source),
            Error::Report(crate::outcome::report::Error::Write { source, .. }) => Some(source),
            _ => None,
        }
    }

    pub(super) fn file(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Error::File { action, path: path.to_path_buf(), source }
    }
}

impl From<data::Error> for Error {
    fn from(e: data::Error) -> Self {
        match e {
            data::Error::Job(text) => Error::Job(text),
            data::Error::File { action, path, source } => Error::File { action, path, source },
            data::Error::Model(e) => Error::Model(e),
            data::Error::Images(e) => Error::Data(e),
        }
    }
}

impl From<tenggat_tensor::Error> for Error {
    fn from(e: tenggat_tensor::Error) -> Self {
        Error::Model(e.into())
    }
}

/// Whether an error says that the disk, or the user's share of it, is full.
pub(super) fn is_disk_full(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
