//! What can go wrong before a task's training begins.

use std::io;
use std::path::{Path, PathBuf};

use crate::data::pictures;

/// Result of preparing a task.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A task that cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the container should hold is not there.
    #[error("{what}: there is no {}; {instead}", path.display())]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What to do.
        instead: String,
    },
    /// A name that would lead out of its folder.
    #[error("{flag} {name:?} becomes a folder's name; expected no slash, and no dot at the start")]
    Name {
        /// The flag.
        flag: &'static str,
        /// Its value.
        name: String,
    },
    /// An archive that cannot be unpacked.
    #[error("{} cannot be unpacked: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no picture.
    #[error("{} holds no usable image{}", folder.display(), bad.first().map_or(String::new(), |b| format!(": \
        {b}")))]
    NoPictures {
        /// Where they should be.
        folder: PathBuf,
        /// Those that cannot be used, and why.
        bad: Vec<String>,
    },
    /// A folder that somebody else may have laid out.
    #[error("the folder {} is not used: {reason}; remove it, or give a --work-root", folder.display())]
    NotOurs {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The same task has been started and has not ended.
    #[error("this task is already running, in {}; wait for it to end, or stop it", folder.display())]
    UnderWay {
        /// The folder of its pictures.
        folder: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Pictures that cannot be listed.
    #[error(transparent)]
    Pictures(#[from] pictures::Error),
}

impl Error {
    pub(super) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Error::File { doing, path: path.into(), source }
    }
}
