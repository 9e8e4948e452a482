//! What can go wrong between a repository's name and its files.

use std::path::PathBuf;

/// A model that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor the form of a repository's name.
    #[error(
        "{name}: no such folder; expected the folder of a model, or a hub repository as org/name or \
         org/name@revision"
    )]
    NoSuchFolder {
        /// The requested name.
        name: String,
    },
    /// Neither a file nor the form of a file's name on the hub.
    #[error("{name}: no such file; expected a file, or one of a hub repository as org/name/file")]
    NoSuchFileHere {
        /// The requested name.
        name: String,
    },
    /// The repository has no such file.
    #[error("{repository}: there is no `{file}` in the repository; check the spelling")]
    NoSuchFile {
        /// The repository.
        repository: String,
        /// Path in the repository.
        file: String,
    },
    /// An upload that went wrong.
    #[error("{repository}: cannot upload: {what}: {reason}")]
    Upload {
        /// The repository.
        repository: String,
        /// What was being done.
        what: String,
        /// What went wrong and what to do.
        reason: String,
    },
    /// The hub knows no such repository or revision.
    #[error(
        "{repository}: neither a folder here nor a repository at {endpoint} (404); check the spelling and \
         the revision"
    )]
    NotFound {
        /// The requested name.
        repository: String,
        /// The hub that was asked.
        endpoint: String,
    },
    /// The repository lacks a file that the model needs.
    #[error(
        "{repository}: `{file}` is missing in the repository; expected a diffusers model of safetensors files"
    )]
    MissingFile {
        /// The repository.
        repository: String,
        /// Path in the repository.
        file: String,
    },
    /// The hub wants to know who asks, or refuses who does.
    #[error("{repository}: access refused ({status}); {hint}")]
    Refused {
        /// The repository.
        repository: String,
        /// HTTP status, 401 or 403.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// Asking the hub is switched off and the cache does not have it all.
    #[error(
        "{repository}: not in the cache {}, or not all of it, and HF_HUB_OFFLINE forbids downloading: \
         {reason}", cache.display()
    )]
    Offline {
        /// The repository.
        repository: String,
        /// Folder of the cache.
        cache: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// No answer, or the connection broke again and again.
    #[error("{url}: {reason}; what has arrived is kept; run again to resume")]
    Transport {
        /// What was asked.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("{url}: {reason}; is HF_ENDPOINT a Hugging Face hub?")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A file arrived, but not the one that the hub announced.
    #[error("{url}: {what}: expected {expected}, got {got}; run again to fetch a fresh copy")]
    Damaged {
        /// Where it came from.
        url: String,
        /// The property that differs.
        what: &'static str,
        /// As announced.
        expected: String,
        /// As arrived.
        got: String,
    },
    /// The repository was changed between two of its files.
    #[error("{repository}: changed while it was being fetched (commit {from} to {to}); run again")]
    Changed {
        /// The repository.
        repository: String,
        /// Commit of the first file.
        from: String,
        /// Commit of a later one.
        to: String,
    },
    /// Somebody asked for the end. What has arrived is kept.
    #[error("interrupted; what has arrived is kept; run again to resume")]
    Interrupted,
    /// The cache could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl HubError {
    /// For `map_err`: the cache could not be written at `path`.
    pub(super) fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| HubError::Write { path, source }
    }
}
