//! The cache on disk: contents in `blobs/`, named by their ETag; `snapshots/<commit>/` of links to them, as
//! the repository looks; `refs/<revision>` with the commit that a branch or tag stands for.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::client::RemoteFile;
use super::{HubError, Options, Repository};

/// The part of the cache that belongs to one repository.
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub fn new(options: &Options, repository: &Repository) -> Self {
        let name = repository.folder();
        Cache { folder: options.cache.join(&name), locks: options.cache.join(".locks").join(name) }
    }

    /// Folder that shows the repository at a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Commit of a revision, by the last fetch.
    pub fn commit(&self, repository: &Repository) -> Option<String> {
        if repository.is_pinned() {
            return Some(repository.revision().into());
        }
        let text = fs::read_to_string(self.reference(repository)).ok()?;
        // Only a plain name may become a path.
        let commit = text.trim();
        let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        plain.then(|| commit.to_string())
    }

    /// Remembers the commit of a revision.
    pub fn set_commit(&self, repository: &Repository, commit: &str) -> Result<(), HubError> {
        if repository.is_pinned() {
            return Ok(());
        }
        let path = self.reference(repository);
        let folder = parent(&path);
        create_folder(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(HubError::write(&path))?;
        file.write_all(commit.as_bytes()).map_err(HubError::write(&path))?;
        file.persist(&path).map_err(|e| HubError::write(&path)(e.error))?;
        Ok(())
    }

    fn reference(&self, repository: &Repository) -> PathBuf {
        self.folder.join("refs").join(repository.revision())
    }

    fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(&file.etag)
    }

    /// Where a content grows while it is fetched.
    pub fn incomplete(&self, file: &RemoteFile) -> Result<PathBuf, HubError> {
        let blob = self.blob(file);
        create_folder(parent(&blob))?;
        Ok(blob.with_file_name(format!("{}.incomplete", file.etag)))
    }

    /// Whether the whole content is here.
    pub fn has(&self, file: &RemoteFile) -> bool {
        fs::metadata(self.blob(file)).is_ok_and(|m| m.is_file() && m.len() == file.bytes)
    }

    /// Makes a fetched content part of the cache.
    pub fn keep(&self, file: &RemoteFile, incomplete: &Path) -> Result<(), HubError> {
        let blob = self.blob(file);
        fs::rename(incomplete, &blob).map_err(HubError::write(blob))
    }

    /// Keeps other processes from fetching the same content until the result is dropped.
    pub fn lock(&self, file: &RemoteFile) -> Result<fs::File, HubError> {
        create_folder(&self.locks)?;
        let path = self.locks.join(format!("{}.lock", file.etag));
        let lock = fs::File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(HubError::write(&path))?;
        // A file system without locks (some network mounts) still works for a single process.
        if let Err(e) = lock.lock() {
            tracing::debug!("{}: {e}", path.display());
        }
        Ok(lock)
    }

    /// Shows a content of the cache under its name in the snapshot.
    pub fn link(&self, file: &RemoteFile) -> Result<(), HubError> {
        let (blob, path) = (self.blob(file), self.snapshot(&file.commit).join(&file.path));
        if fs::canonicalize(&path).is_ok_and(|p| fs::canonicalize(&blob).is_ok_and(|b| p == b)) {
            return Ok(());
        }
        let folder = parent(&path);
        create_folder(folder)?;
        // Made beside and renamed, so that a reader finds the old link or the new one.
        let beside = tempfile::Builder::new()
            .prefix(".link-")
            .make_in(folder, |beside| link(&blob, file, beside))
            .map_err(HubError::write(&path))?;
        beside.persist(&path).map_err(|e| HubError::write(&path)(e.error))?;
        Ok(())
    }
}

/// A relative link, so that the cache may be moved.
#[cfg(unix)]
fn link(_blob: &Path, file: &RemoteFile, at: &Path) -> std::io::Result<()> {
    let up = "../".repeat(2 + file.path.matches('/').count());
    std::os::unix::fs::symlink(format!("{up}blobs/{}", file.etag), at)
}

/// Links need a privilege elsewhere: a second name of the same file, else a copy.
#[cfg(not(unix))]
fn link(blob: &Path, _file: &RemoteFile, at: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, at).or_else(|_| fs::copy(blob, at).map(|_| ()))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn create_folder(folder: &Path) -> Result<(), HubError> {
    fs::create_dir_all(folder).map_err(HubError::write(folder))
}
