//! Text files that people write: small, regular, UTF-8.

use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Most bytes of a job, or of a list that it names.
const MOST_BYTES: u64 = 16 << 20;

/// The text of a file.
///
/// # Errors
/// The file cannot be read, is a folder, pipe or device, is larger than any job, or is not UTF-8.
pub(crate) fn text(path: &Path) -> Result<String> {
    // Looked at before it is opened: opening a pipe may wait for ever.
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(Error::new(ErrorKind::IsADirectory, "it is a folder; name a file"));
    }
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is a pipe or device; name a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        let reason = format!("it is larger than {} MiB; is it the right file?", MOST_BYTES >> 20);
        return Err(Error::new(ErrorKind::FileTooLarge, reason));
    }
    decode(bytes).map_err(|reason| Error::new(ErrorKind::InvalidData, reason))
}

fn decode(bytes: Vec<u8>) -> std::result::Result<String, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.contains(&0) {
        return Err("it is not UTF-8 but looks like UTF-16; save it as UTF-8".into());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
        let byte = e.as_bytes()[at];
        format!("line {line} is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_encodings_are_named() {
        let utf16: Vec<u8> = "job: é".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let with_bom = [&[0xff, 0xfe][..], &utf16].concat();
        for bytes in [with_bom, utf16] {
            assert!(decode(bytes).unwrap_err().contains("UTF-16; save it as UTF-8"));
        }
        let latin = decode(b"a: 1\nb: caf\xe9\n".to_vec()).unwrap_err();
        assert_eq!(latin, "line 2 is not UTF-8 (byte 0xe9); save the file as UTF-8");
        assert_eq!(decode("é".into()).unwrap(), "é");
    }

    #[test]
    fn folders_devices_and_huge_files_are_not_read() {
        assert!(text(&std::env::temp_dir()).unwrap_err().to_string().contains("a folder"));
        let folder = tempfile::tempdir().unwrap();
        let large = folder.path().join("large.yaml");
        std::fs::write(&large, " ".repeat(MOST_BYTES as usize + 1)).unwrap();
        assert!(text(&large).unwrap_err().to_string().contains("larger than 16 MiB"));
        #[cfg(unix)]
        assert!(text(Path::new("/dev/zero")).unwrap_err().to_string().contains("regular file"));
    }
}
