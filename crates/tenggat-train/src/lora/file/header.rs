//! What a LoRA file says about itself, without its tensors being read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use safetensors::tensor::Metadata;

/// Largest header that the format allows. Source: safetensors, `MAX_HEADER_SIZE`.
const LARGEST: u64 = 100_000_000;

/// The metadata of a file that is whole, as far as its length tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads the header and compares the length of the file with what it announces.
    ///
    /// # Errors
    /// The file cannot be read, or it is no whole safetensors file.
    pub fn read(path: &Path) -> io::Result<Header> {
        let broken = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > LARGEST.min(bytes.saturating_sub(8)) {
            return Err(broken("it is not a safetensors file, or it is cut short".into()));
        }
        let mut text = Vec::new();
        file.take(header_bytes).read_to_end(&mut text)?;
        let header: Metadata = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
        let announced = 8 + header_bytes + header.data_len() as u64;
        if announced != bytes {
            return Err(broken(format!("it has {bytes} bytes, but its header announces {announced}")));
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Header { metadata })
    }

    /// The step that `training_info` names, if it does.
    pub fn step(&self) -> Option<u64> {
        step(&self.metadata)
    }

    /// The program that wrote the file, as `software` names it.
    pub fn software(&self) -> Option<String> {
        software(&self.metadata)
    }
}

/// See [`Header::step`].
pub(super) fn step(metadata: &BTreeMap<String, String>) -> Option<u64> {
    let info: serde_json::Value = serde_json::from_str(metadata.get("training_info")?).ok()?;
    info.get("step")?.as_u64()
}

/// See [`Header::software`].
fn software(metadata: &BTreeMap<String, String>) -> Option<String> {
    let software: serde_json::Value = serde_json::from_str(metadata.get("software")?).ok()?;
    Some(software.get("name")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tensor_file::{self, Entry};
    use crate::job::SaveType;

    #[test]
    fn a_header_is_read_without_the_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let entries = [Entry::floats("w".into(), vec![2], &[1.0, 2.0], SaveType::F32)];
        let metadata = [
            ("training_info".to_owned(), r#"{"step": 64, "epoch": 5}"#.to_owned()),
            ("software".to_owned(), r#"{"name": "ai-toolkit", "version": "1"}"#.to_owned()),
        ];
        tensor_file::write(&path, &metadata, &entries).unwrap();
        let header = Header::read(&path).unwrap();
        assert_eq!((header.step(), header.software().as_deref()), (Some(64), Some("ai-toolkit")));
        tensor_file::write(&path, &[], &entries).unwrap();
        let header = Header::read(&path).unwrap();
        assert_eq!((header.step(), header.software()), (None, None));
    }

    #[test]
    fn files_that_are_not_whole_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let entries = [Entry::floats("w".into(), vec![2], &[1.0, 2.0], SaveType::F32)];
        tensor_file::write(&path, &[], &entries).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Header::read(&path).is_err(), "{length} bytes");
        }
        std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        assert!(Header::read(&path).is_err());
        std::fs::write(&path, [0xff; 64]).unwrap();
        assert!(Header::read(&path).is_err());
        assert!(Header::read(folder.path()).is_err());
    }
}
