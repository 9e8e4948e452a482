//! What a drive stores in the run's folder to resume from, and the lock on that folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::pilot::Known;

/// Folder of a drive's own files, inside the run's. Its name begins with a dot, so that no trainer takes it
/// for a save.
pub const FOLDER: &str = ".drive";

/// A lock that is held is tried again so often, after so long.
const LOOKED_AT: (usize, Duration) = (4, Duration::from_millis(20));

/// The state of a drive.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Seconds of the budget that were spent when it was last written.
    pub spent_s: f64,
    /// Deadline on the run's clock.
    pub deadline_s: f64,
    /// Updates in the published LoRA.
    pub delivered: u64,
    /// Whether the drive came to its end.
    pub finished: bool,
    /// The trainer's process.
    pub trainer_pid: Option<u32>,
    /// When the state was written, in seconds since 1970.
    pub written_unix_s: f64,
    /// What was learnt of the trainer.
    pub known: Known,
    /// The job, less what may change.
    pub job: Value,
}

/// A drive's own folder, locked for as long as this lives.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    lock: File,
}

impl Drop for Home {
    fn drop(&mut self) {
        // A child that another thread is just starting holds a copy of the file until it runs its own
        // program: closing ours would not end the lock.
        let _ = self.lock.unlock();
    }
}

impl Home {
    /// Makes and locks the folder in a run's folder.
    ///
    /// # Errors
    /// It cannot be made, or another drive holds it.
    pub fn open(run: &Path) -> Result<Home> {
        let path = run.join(FOLDER);
        fs::create_dir_all(&path).map_err(|e| Error::file("make the folder", &path, e))?;
        let name = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&name);
        let lock = lock.map_err(|e| Error::file("open", &name, e))?;
        let mut tried = lock.try_lock();
        // Whoever looks whether a run is under way holds the lock for a moment.
        for _ in 0..LOOKED_AT.0 {
            if matches!(tried, Err(fs::TryLockError::WouldBlock)) {
                std::thread::sleep(LOOKED_AT.1);
                tried = lock.try_lock();
            }
        }
        match tried {
            Ok(()) => Ok(Home { path, lock }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(run.into())),
            // A file system without locks: better without than not at all.
            Err(fs::TryLockError::Error(_)) => Ok(Home { path, lock }),
        }
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What an earlier drive left, if it left anything that can be read.
    pub fn state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.file("state.json")).ok()?).ok()
    }

    /// Writes the state beside and renames it into place.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, state: &State) -> Result<()> {
        let path = self.file("state.json");
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
            file.write_all(&serde_json::to_vec_pretty(state)?)?;
            file.persist(&path).map_err(|e| e.error)
        };
        write().map(drop).map_err(|e| Error::file("write", &path, e))
    }
}

/// Seconds since 1970.
pub fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Renames a folder to `<folder>.old-1` or the next free number, which is returned.
///
/// # Errors
/// It cannot be renamed.
pub fn move_aside(folder: &Path) -> Result<PathBuf> {
    let base = folder.file_name().unwrap_or_default().to_os_string();
    for n in 1..=9999 {
        let mut name = base.clone();
        name.push(format!(".old-{n}"));
        let aside = folder.with_file_name(name);
        if !aside.exists() {
            fs::rename(folder, &aside).map_err(|e| Error::file("rename", folder, e))?;
            return Ok(aside);
        }
    }
    Err(Error::file("rename", folder, std::io::Error::other("there are 9999 older ones")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_and_one_drive_holds_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        assert!(home.state().is_none());
        let state = State { spent_s: 12.5, delivered: 40, ..State::default() };
        home.keep(&state).unwrap();
        assert!(matches!(Home::open(folder.path()), Err(Error::Locked(_))));
        drop(home);
        assert_eq!(Home::open(folder.path()).unwrap().state(), Some(state));
        fs::write(folder.path().join(".drive/state.json"), "{").unwrap();
        assert!(Home::open(folder.path()).unwrap().state().is_none());
    }

    #[test]
    fn a_folder_is_moved_aside_whole() {
        let parent = tempfile::tempdir().unwrap();
        let run = parent.path().join("run");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("a"), "x").unwrap();
        assert!(move_aside(&run).unwrap().ends_with("run.old-1") && !run.exists());
    }
}
