//! Whether somebody trains in a folder, and what they say about it.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

/// Longest note that is read, bytes.
const NOTE_BYTES: u64 = 1 << 14;

/// What the holder of a folder notes: `run.lock` of `train`, `.drive/state.json` of `drive`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Note {
    pub process: Option<u32>,
    pub started_unix_s: Option<f64>,
    pub deadline_unix_s: Option<f64>,
    /// Deadline on the run's clock; of `drive` alone.
    pub deadline_s: Option<f64>,
    pub spent_s: Option<f64>,
    pub delivered: Option<u64>,
    /// Of `drive` alone.
    pub finished: bool,
}

impl Note {
    /// What stands in a file, if it can be read.
    pub fn read(path: &Path) -> Option<Note> {
        let mut bytes = Vec::new();
        regular(path)?.take(NOTE_BYTES).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// Name of the lock file of `train` in the folder of a run.
pub(crate) const TRAIN: &str = "run.lock";
/// That of `drive`.
const DRIVE: &str = ".drive/lock";

/// Whether a process holds the folder of a run.
pub fn is_locked(folder: &Path) -> bool {
    [TRAIN, DRIVE].iter().any(|name| is_held(&folder.join(name)))
}

/// Whether any process of ours ever held it.
pub(crate) fn is_there(folder: &Path) -> bool {
    [TRAIN, DRIVE].iter().any(|name| folder.join(name).is_file())
}

/// Whether a process holds the lock of this file. To know, it is locked for a moment, shared with others that
/// look; a run that begins just then tries again.
fn is_held(path: &Path) -> bool {
    let Some(file) = regular(path) else { return false };
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}

/// Opens a file that is one.
fn regular(path: &Path) -> Option<File> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    File::open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_and_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lock");
        assert!(!is_held(&path));
        let file = File::create(&path).unwrap();
        assert!(!is_held(&path));
        file.try_lock().unwrap();
        assert!(is_held(&path));
        file.unlock().unwrap();
        assert!(!is_held(&path));
        file.try_lock().unwrap();
    }

    #[test]
    fn a_folder_is_locked_by_either_command() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".drive")).unwrap();
        for name in [TRAIN, DRIVE] {
            assert!(!is_locked(folder.path()), "{name}");
            let file = File::create(folder.path().join(name)).unwrap();
            file.try_lock().unwrap();
            assert!(is_locked(folder.path()), "{name}");
        }
    }

    #[test]
    fn notes_that_are_spoilt_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lock");
        for spoilt in [&b""[..], b"{", b"\xff\xff", b"1", b"{\"process\":-1}", b"{\"process\":\"x\"}"] {
            std::fs::write(&path, spoilt).unwrap();
            assert_eq!(Note::read(&path), None, "{spoilt:?}");
        }
        std::fs::write(&path, "{\"process\":7,\"spent_s\":2.5,\"new\":[]}   \n").unwrap();
        let note = Note::read(&path).unwrap();
        assert_eq!((note.process, note.spent_s, note.delivered), (Some(7), Some(2.5), None));
    }
}
