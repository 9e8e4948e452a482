//! Models by name: a local folder, or a repository of the Hugging Face hub, fetched into the cache that all
//! Hugging Face libraries share.
//!
//! Source of the protocol and of the cache's layout: huggingface_hub `file_download.py` and `constants.py`,
//! and its guide "Understand caching".

mod cache;
mod client;
mod download;
mod error;
mod fetch;
mod file;
mod options;
mod partial;
mod repository;
mod upload;

/// A way for the fuzz targets to what is private otherwise.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    /// ETag, commit and size of the file that an answer describes, if it does.
    pub fn described(status: u16, headers: &[(&str, &str)]) -> Option<(String, String, u64)> {
        super::client::described(status, headers)
    }
}

use std::path::{Path, PathBuf};

pub use error::HubError;
pub use options::Options;
pub use repository::Repository;
pub use upload::Upload;

use crate::Result;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file that bytes just came in for, as its path in the repository.
    pub file: &'a str,
    /// Bytes here already, of the files to fetch; what an earlier fetch left half done counts.
    pub done_bytes: u64,
    /// Bytes of all files to fetch, without those found whole in the cache.
    pub total_bytes: u64,
}

/// Called again and again while bytes come in, from several threads.
pub type OnProgress<'a> = &'a (dyn Fn(Progress<'_>) + Sync);

/// The folder of a model given as `name_or_path`: that folder, if there is one, else the repository
/// `org/name` or `org/name@revision` of the hub, fetched as far as it is not in the cache yet.
///
/// # Errors
/// There is neither such a folder nor such a repository; the hub refuses it, cannot be reached, or may not be
/// asked while the cache lacks a file; a file arrives damaged; the model's architecture is not supported.
pub fn locate(name_or_path: &str, options: &Options, progress: OnProgress<'_>) -> Result<PathBuf> {
    let path = Path::new(name_or_path);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    match Repository::parse(name_or_path) {
        Some(repository) if !path.exists() => fetch::fetch(&repository, options, progress),
        _ => Err(HubError::NoSuchFolder { name: name_or_path.into() }.into()),
    }
}

/// A single file: that of this path, if there is one, else the file `org/name/path` (or
/// `org/name@revision/path`) of the hub, fetched as far as it is not in the cache yet.
///
/// # Errors
/// As [`locate`].
pub fn locate_file(name: &str, options: &Options, progress: OnProgress<'_>) -> Result<PathBuf> {
    let path = Path::new(name);
    match file::parse(name) {
        _ if path.is_file() => Ok(path.to_path_buf()),
        Some((repository, path)) => file::fetch(&repository, path, options, progress),
        None => Err(HubError::NoSuchFileHere { name: name.into() }.into()),
    }
}

/// Whether a text has the form of a file of the hub, `org/name/path`.
pub fn is_file_name(name: &str) -> bool {
    file::parse(name).is_some()
}

/// Uploads files to a repository, which is made if it is not there, in one commit.
///
/// # Errors
/// There is no token, the hub refuses it or cannot be reached, or a file cannot be read.
pub fn upload(
    repository: &Repository,
    uploads: &[Upload<'_>],
    private: bool,
    options: &Options,
) -> Result<()> {
    upload::upload(repository, uploads, private, options)
}
