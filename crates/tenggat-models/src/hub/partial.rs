//! A content that has not arrived whole yet.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::HubError;
use super::client::RemoteFile;

/// The digest that an ETag of the hub is.
enum Hash {
    /// Of large files: SHA-256 of the content.
    Sha256(Sha256),
    /// Of small files: the object id that git gives them, SHA-1 of `blob <length>\0` and the content.
    Git(Sha1),
    /// The ETag is no digest, as those of plain file servers.
    None,
}

impl Hash {
    fn of(file: &RemoteFile) -> Self {
        match file.etag.len() {
            _ if !file.etag.chars().all(|c| c.is_ascii_hexdigit()) => Hash::None,
            64 => Hash::Sha256(Sha256::new()),
            40 => Hash::Git(Sha1::new_with_prefix(format!("blob {}\0", file.bytes))),
            _ => Hash::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Git(hash) => hash.update(bytes),
            Hash::None => {}
        }
    }

    /// Its name, and its hexadecimal digits.
    fn finish(self) -> Option<(&'static str, String)> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Hash::Sha256(hash) => Some(("SHA-256", hex(&hash.finalize()))),
            Hash::Git(hash) => Some(("SHA-1", hex(&hash.finalize()))),
            Hash::None => None,
        }
    }
}

/// The file `blobs/<etag>.incomplete`, hashed as it grows.
pub(super) struct Partial<'a> {
    remote: &'a RemoteFile,
    path: PathBuf,
    file: File,
    len: u64,
    hash: Hash,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier fetch of the file has left, or an empty one.
    pub fn open(path: &Path, remote: &'a RemoteFile) -> Result<Self, HubError> {
        let error = || HubError::write(path);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let (file, hash) = (file.map_err(error())?, Hash::of(remote));
        let mut partial = Partial { remote, path: path.into(), file, len: 0, hash };
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

    /// Deletes what has arrived.
    pub fn clear(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::write(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(HubError::write(&self.path))?;
        (self.len, self.hash) = (0, Hash::of(self.remote));
        Ok(())
    }

    /// Appends.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::write(&self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Checks length and, where the ETag is one, the digest; then brings the bytes to the disk.
    pub fn finish(self) -> Result<PathBuf, HubError> {
        let remote = self.remote;
        let damaged = |what, expected: String, got: String| {
            Err(HubError::Damaged { url: remote.url.clone(), what, expected, got })
        };
        if self.len != remote.bytes {
            return damaged("bytes", remote.bytes.to_string(), self.len.to_string());
        }
        if let Some((what, got)) = self.hash.finish()
            && !got.eq_ignore_ascii_case(&remote.etag)
        {
            return damaged(what, remote.etag.clone(), got);
        }
        self.file.sync_all().map_err(HubError::write(&self.path))?;
        Ok(self.path)
    }
}
