//! Files of a data set, opened so that none can keep the program waiting.
//!
//! A pipe or a device under an image's name would never end, whatever the budget says.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Opens a regular file.
///
/// # Errors
/// The file cannot be opened, or it is a folder, a pipe, a socket or a device.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Before the file is opened: opening a pipe waits for whoever writes into it.
    let kind = std::fs::metadata(path)?;
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)
}

/// Opens a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`], or the file is longer.
pub(super) fn open_at_most(path: &Path, most: u64) -> io::Result<File> {
    let file = open(path)?;
    if file.metadata()?.len() > most { Err(too_large(most)) } else { Ok(file) }
}

/// The bytes of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open_at_most`].
pub(super) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Some files, as those of /proc, are longer than they say.
    open_at_most(path, most)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large(most)) } else { Ok(bytes) }
}

fn too_large(most: u64) -> io::Error {
    let text = format!("it is larger than {} MB", most >> 20);
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        assert_eq!(read(&path, 1 << 20).unwrap().len(), 1 << 20);
        std::fs::write(&path, vec![7; (1 << 20) + 1]).unwrap();
        assert_eq!(read(&path, 1 << 20).unwrap_err().to_string(), "it is larger than 1 MB");
        assert!(open_at_most(&path, 1 << 20).is_err() && open_at_most(&path, 2 << 20).is_ok());
        assert_eq!(read(folder.path(), 9).unwrap_err().to_string(), "it is not a regular file");
        assert_eq!(read(&folder.path().join("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// Both would keep a plain read busy for ever.
    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, zero) = (folder.path().join("pipe.png"), folder.path().join("zero.png"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
        for path in [&pipe, &zero] {
            assert_eq!(read(path, 9).unwrap_err().to_string(), "it is not a regular file");
        }
    }
}
