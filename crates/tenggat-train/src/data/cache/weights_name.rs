//! A name for an encoder's weights, to tell caches of different weights apart.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Bytes of a file that are looked at in one place, and places per file.
const WINDOW: u64 = 1 << 16;
const PLACES: u64 = 16;

/// Hex digits made of the names, sizes and samples of the weight files in a folder, and of its `config.json`.
/// Samples only, because a text encoder is 16 GB; they are spread evenly and include the header, which names
/// every tensor.
///
/// # Errors
/// A file cannot be read.
pub fn weights_name(folder: &Path) -> io::Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors") || path.ends_with("config.json"))
        .collect();
    files.sort();
    let mut hash = Sha256::new();
    for path in &files {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(len.to_le_bytes());
        let last = len.saturating_sub(WINDOW);
        for place in 0..PLACES {
            file.seek(SeekFrom::Start(last * place / (PLACES - 1)))?;
            let mut bytes = Vec::with_capacity(WINDOW as usize);
            (&mut file).take(WINDOW).read_to_end(&mut bytes)?;
            hash.update(&bytes);
        }
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_weights_have_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut bytes = vec![7u8; 100_000];
        fs::write(&path, &bytes).unwrap();
        let name = weights_name(folder.path()).unwrap();
        assert_eq!(weights_name(folder.path()).unwrap(), name);
        fs::write(folder.path().join("notes.txt"), "no weights").unwrap();
        assert_eq!(weights_name(folder.path()).unwrap(), name);
        for place in [0, 50_000, 99_999] {
            bytes[place] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_ne!(weights_name(folder.path()).unwrap(), name, "{place}");
            bytes[place] ^= 1;
        }
        bytes.push(7);
        fs::write(&path, &bytes).unwrap();
        assert_ne!(weights_name(folder.path()).unwrap(), name);
        assert!(weights_name(&folder.path().join("nowhere")).is_err());
    }
}
