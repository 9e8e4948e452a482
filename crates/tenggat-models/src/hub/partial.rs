//! A content that has not arrived whole yet.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::HubError;
use super::client::RemoteFile;

/// The file `blobs/<etag>.incomplete`, hashed as it grows.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hash: Sha256,
}

impl Partial {
    /// Opens what an earlier fetch has left, or an empty file.
    pub fn open(path: &Path) -> Result<Self, HubError> {
        let error = || HubError::write(path);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut partial =
            Partial { path: path.into(), file: file.map_err(error())?, len: 0, hash: Sha256::new() };
        let mut buffer = vec![0; 1 << 20];
        loop {
            match partial.file.read(&mut buffer).map_err(error())? {
                0 => return Ok(partial),
                n => {
                    partial.hash.update(&buffer[..n]);
                    partial.len += n as u64;
                }
            }
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Throws away what is there.
    pub fn clear(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::write(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(HubError::write(&self.path))?;
        (self.len, self.hash) = (0, Sha256::new());
        Ok(())
    }

    /// Appends.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::write(&self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Checks length and, where the ETag is one, SHA-256; then brings the bytes to the disk.
    pub fn finish(self, file: &RemoteFile) -> Result<PathBuf, HubError> {
        let damaged = |what, expected: String, got: String| {
            Err(HubError::Damaged { url: file.url.clone(), what, expected, got })
        };
        if self.len != file.bytes {
            return damaged("bytes", file.bytes.to_string(), self.len.to_string());
        }
        // Small files have git's 40-digit object id instead.
        if file.etag.len() == 64 && file.etag.chars().all(|c| c.is_ascii_hexdigit()) {
            let got: String = self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            if !got.eq_ignore_ascii_case(&file.etag) {
                return damaged("SHA-256", file.etag.clone(), got);
            }
        }
        self.file.sync_all().map_err(HubError::write(&self.path))?;
        Ok(self.path)
    }
}
