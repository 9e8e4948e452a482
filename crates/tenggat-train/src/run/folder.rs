//! The folder of a run: where its files go, and how files of an earlier run are kept.

use std::fs;
use std::path::{Path, PathBuf};

use super::found::is_own;
use super::lock::{Place, RunLock};
use super::names::{self, MOST_ASIDE};
use super::state_file::{PREVIOUS, STATE};
use super::{Error, Result};

/// The folder of one run, which holds the lock on it.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    name: String,
    lock: RunLock,
    /// Numbered files of this run, oldest first.
    numbered: Vec<PathBuf>,
    /// Whether the folder was removed and no other could be made.
    is_lost: bool,
}

impl RunFolder {
    /// Opens a folder that is locked: removes unfinished files of a killed process, and finds the numbered
    /// files.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(path: &Path, name: &str, lock: RunLock) -> Result<Self> {
        sweep(path)?;
        let numbered = Self::own_numbered_in(path, name);
        Ok(RunFolder { path: path.to_path_buf(), name: name.to_string(), lock, numbered, is_lost: false })
    }

    /// Renames a folder to `<folder>.old-1` or the next free number, which is returned.
    ///
    /// # Errors
    /// The folder cannot be renamed.
    pub fn move_aside(path: &Path) -> Result<PathBuf> {
        let base = path.file_name().unwrap_or_default().to_os_string();
        for n in 1..=MOST_ASIDE {
            let mut name = base.clone();
            name.push(format!(".old-{n}"));
            let aside = path.with_file_name(name);
            if !aside.exists() {
                fs::rename(path, &aside).map_err(|e| Error::file("rename", path, e))?;
                return Ok(aside);
            }
        }
        Err(Error::Job(format!(
            "{} holds results of an earlier run; remove it or give another name",
            path.display()
        )))
    }

    /// The numbered files that we wrote, oldest first; those of other programs are not ours to remove.
    fn own_numbered_in(path: &Path, name: &str) -> Vec<PathBuf> {
        names::numbered_in(path, name).into_iter().map(|(_, path)| path).filter(|path| is_own(path)).collect()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock on it.
    pub fn lock(&self) -> &RunLock {
        &self.lock
    }

    /// Gives the lock back, to be held until the process ends.
    pub fn into_lock(self) -> RunLock {
        self.lock
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The finished LoRA: `<name>.safetensors`.
    pub fn finished(&self) -> PathBuf {
        self.path.join(format!("{}.safetensors", self.name))
    }

    /// The LoRA with the lowest validation loss: `<name>_best.safetensors`.
    pub fn best(&self) -> PathBuf {
        self.path.join(format!("{}_best.safetensors", self.name))
    }

    /// The LoRA after this many steps: `<name>_<9 digits>.safetensors`.
    pub fn numbered(&self, steps: u64) -> PathBuf {
        self.path.join(format!("{}_{steps:09}.safetensors", self.name))
    }

    /// Notes that a numbered file was written, and removes the oldest beyond `keep` (0 keeps all).
    pub fn wrote_numbered(&mut self, path: PathBuf, keep: u64) {
        // A run that goes on may write again what it had written before it was cut off.
        self.numbered.retain(|old| *old != path);
        self.numbered.push(path);
        self.rotate(keep);
    }

    /// Removes the numbered file that the next one replaces anyway, on a disk that has no room for both.
    /// Returns whether there was one.
    pub fn make_room_for_numbered(&mut self, keep: u64) -> bool {
        self.numbered.retain(|path| path.exists());
        let before = self.numbered.len();
        if keep > 0 {
            self.rotate((keep - 1).max(1));
        }
        self.numbered.len() < before
    }

    /// Removes the oldest numbered files beyond `keep` (0 keeps all).
    pub fn rotate(&mut self, keep: u64) {
        while keep > 0 && self.numbered.len() as u64 > keep {
            // A file that somebody has already removed needs no removing.
            let _ = fs::remove_file(self.numbered.remove(0));
        }
    }

    /// Follows the folder if somebody renamed it, and begins a new one if it was removed. Returns what the
    /// user should know if it is not where it was. `job` is the text of the job.
    pub fn follow(&mut self, job: &str, warn: &mut dyn FnMut(String)) -> Option<Followed> {
        let before = self.path.clone();
        match self.lock.place() {
            Place::Here => return None,
            Place::Gone if self.is_lost => return None,
            Place::Moved(path) => {
                self.lock.moved_to(&path);
                self.path = path;
                self.numbered = Self::own_numbered_in(&self.path, &self.name);
                let (before, now) = (before.display(), self.path.display());
                let told = format!("{before} was renamed; the files of the run go to {now} from now on");
                return Some(Followed { is_empty: false, told });
            }
            Place::Gone => {}
        }
        // Another run may have begun where this one was.
        for n in 0..=MOST_ASIDE {
            let mut name = before.file_name().unwrap_or_default().to_os_string();
            if n > 0 {
                name.push(format!(".new-{n}"));
            }
            let path = before.with_file_name(name);
            if n > 0 && path.exists() {
                continue;
            }
            match self.lock.replace(&path, job, warn) {
                Err(Error::Locked(_)) => continue,
                Err(e) => {
                    self.is_lost = true;
                    let told = format!("{} was removed while the run was under way: {e}", before.display());
                    return Some(Followed { is_empty: false, told });
                }
                Ok(()) => {}
            }
            self.path = path;
            self.numbered = Self::own_numbered_in(&self.path, &self.name);
            let (before, now) = (before.display(), self.path.display());
            let told = format!("{before} was removed while the run was under way; its files go to {now}");
            return Some(Followed { is_empty: true, told });
        }
        None
    }
}

/// News that the folder of a run was renamed or removed.
#[derive(Debug)]
pub struct Followed {
    /// Whether the earlier files are lost.
    pub is_empty: bool,
    /// What happened.
    pub told: String,
}

/// Removes what a killed process left unfinished in a folder of a run, which has to be locked.
///
/// # Errors
/// The folder cannot be read.
pub fn sweep(path: &Path) -> Result<()> {
    crate::files::atomic::sweep(path).map_err(|e| Error::file("clean up the folder", path, e))?;
    for inner in ["samples", "sheets"].map(|name| path.join(name)).iter().filter(|inner| inner.is_dir()) {
        crate::files::atomic::sweep(inner).map_err(|e| Error::file("clean up the folder", inner, e))?;
    }
    Ok(())
}

/// Removes the previous checkpoint, which is kept in case the newest is damaged; returns whether there was
/// one.
pub fn give_up_previous_state(folder: &Path) -> bool {
    fs::remove_file(folder.join(PREVIOUS)).is_ok()
}

/// Removes the checkpoint of a finished run, with which it could be continued, if it takes at least `bytes`;
/// returns whether it did.
pub fn give_up_state(folder: &Path, bytes: u64) -> bool {
    let state = folder.join(STATE);
    fs::metadata(&state).is_ok_and(|m| m.len() >= bytes) && fs::remove_file(state).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tensor_file::{self, Entry};
    use crate::job::SaveType;

    fn open(path: &Path) -> RunFolder {
        let lock = RunLock::acquire(path, "job", &mut |text| panic!("{text}")).unwrap();
        RunFolder::open(path, "fox", lock).unwrap()
    }

    fn write_by(path: &Path, software: &str) {
        let entries = [Entry::floats("w".into(), vec![1], &[1.0], SaveType::F32)];
        let metadata = [("software".to_owned(), format!("{{\"name\": \"{software}\"}}"))];
        tensor_file::write(path, &metadata, &entries).unwrap();
    }

    #[test]
    fn a_folder_is_moved_aside_whole() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let folder = open(&path);
        fs::write(folder.finished(), "first").unwrap();
        let aside = RunFolder::move_aside(&path).unwrap();
        assert!(!path.exists() && aside.ends_with("run.old-1"));
        assert_eq!(fs::read_to_string(aside.join("fox.safetensors")).unwrap(), "first");
    }

    #[test]
    fn the_oldest_numbered_files_go_first() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let write = |folder: &mut RunFolder, step| {
            let path = folder.numbered(step);
            write_by(&path, "tenggat");
            folder.wrote_numbered(path, 2);
        };
        let mut folder = open(&path);
        [250, 500, 750].into_iter().for_each(|step| write(&mut folder, step));
        let left = || names::numbered_in(&path, "fox").into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(left(), [500, 750]);
        assert!(folder.numbered(500).ends_with("fox_000000500.safetensors"));
        // Interrupted and resumed: files from before count, and the last is written again.
        for other in
            ["fox_1.safetensors", "fox_best.safetensors", "wolf_000000001.safetensors", "fox.safetensors"]
        {
            fs::write(path.join(other), "").unwrap();
        }
        // What another program numbered is not ours to remove.
        write_by(&path.join("fox_000000100.safetensors"), "ai-toolkit");
        drop(folder);
        let mut folder = open(&path);
        [750, 1000].into_iter().for_each(|step| write(&mut folder, step));
        assert_eq!(left(), [100, 750, 1000]);
        assert!(folder.make_room_for_numbered(2));
        assert_eq!(left(), [100, 1000]);
        assert!(!folder.make_room_for_numbered(2) && !folder.make_room_for_numbered(0));
    }
}
