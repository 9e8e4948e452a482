//! What can go wrong between a model folder and its first output.

use std::path::PathBuf;

/// Result of a model operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether a GPU had no room for what was asked.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Tensor(tenggat_tensor::Error::OutOfMemory { .. }))
    }

    /// Whether nothing went wrong, but somebody asked for the end.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Interrupted | Error::Hub(crate::hub::HubError::Interrupted))
    }
}

impl From<tenggat_gpu::Error> for Error {
    fn from(error: tenggat_gpu::Error) -> Self {
        Error::Tensor(error.into())
    }
}

/// A model that could not be read or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on tensors failed.
    #[error(transparent)]
    Tensor(#[from] tenggat_tensor::Error),
    /// A model could not be fetched.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// A file that could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that could not be written.
    #[error("cannot write {}: {source}; is there room on the disk?", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file whose contents make no sense.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A tensor that the architecture needs and the folder does not have.
    #[error("{}: tensor `{name}` is missing; is the download complete, and is this a {architecture}?", path.display())]
    MissingTensor {
        /// The weights folder.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What the folder was read as.
        architecture: &'static str,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor `{name}`: expected {expected:?}, got {got:?}; does config.json belong to these weights?", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// Somebody asked for the end, see [`Interrupt`](crate::Interrupt).
    #[error("interrupted")]
    Interrupted,
    /// Something that this version does not support.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// A file whose contents make no sense.
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Format { path: path.into(), reason: reason.into() }
    }

    /// A file that could not be opened or read.
    pub fn read(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Read { path: path.into(), source }
    }
}
