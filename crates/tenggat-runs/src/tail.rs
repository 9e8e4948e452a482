//! The end of a file, without what comes before.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The last `most` bytes of a file, from the first whole line on.
pub(crate) fn tail(path: &Path, most: u64) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Ok(Vec::new());
        }
        let from = metadata.len().saturating_sub(most);
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        if from > 0 {
            let start = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes.drain(..start);
        }
        Ok(bytes)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_begins_with_a_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "first\nsecond\nthird\n").unwrap();
        assert_eq!(tail(&path, 100), b"first\nsecond\nthird\n");
        assert_eq!(tail(&path, 9), b"third\n");
        assert_eq!(tail(&path, 3), b"");
        assert_eq!(tail(folder.path(), 9), b"");
        assert_eq!(tail(&folder.path().join("none"), 9), b"");
    }
}
