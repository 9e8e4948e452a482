//! Files that the readers are given.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// An empty folder in memory, where the system has such, or in the temporary folder.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes the folder.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = tempfile::Builder::new().prefix("tenggat-fuzz-").tempdir_in(memory);
        Scratch(folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        self.write_at(&self.path(name), bytes)
    }

    /// Writes a file with the folders above it.
    pub fn write_at(&self, path: &Path, bytes: &[u8]) -> PathBuf {
        let folder = path.parent().expect("a file in the folder");
        fs::create_dir_all(folder).expect("room for an input");
        fs::write(path, bytes).expect("room for an input");
        path.to_path_buf()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }
}
