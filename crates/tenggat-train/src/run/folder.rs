//! The folder of a run: where its files go, and that none of an earlier run is lost.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Name of the file that always holds the newest adapter, whole.
pub const LAST: &str = "last.safetensors";

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    name: String,
    /// Numbered files of this run, oldest first.
    numbered: Vec<PathBuf>,
}

impl RunFolder {
    /// Opens the folder, which is made if need be: removes unfinished files of a killed process, and finds the numbered
    /// files.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(path: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(path).map_err(|e| Error::file("make the folder", path, e))?;
        crate::atomic::sweep(path).map_err(|e| Error::file("tidy the folder", path, e))?;
        let numbered = Self::numbered_in(path, name).into_iter().map(|(_, path)| path).collect();
        Ok(RunFolder { path: path.to_path_buf(), name: name.to_string(), numbered })
    }

    /// Whether a folder holds LoRA files; one of no step, which is there so that there is one, is no result.
    pub fn holds_results(path: &Path) -> bool {
        let Ok(entries) = fs::read_dir(path) else { return false };
        let is_result = |path: &Path| {
            path.extension().is_some_and(|x| x == "safetensors")
                && !(path.ends_with(LAST)
                    && crate::lora_file::load(path).is_ok_and(|file| file.step() == Some(0)))
        };
        entries.flatten().any(|e| is_result(&e.path()))
    }

    /// Renames a folder to `<folder>.old-1` or the next free number, which is returned.
    ///
    /// # Errors
    /// The folder cannot be renamed.
    pub fn move_aside(path: &Path) -> Result<PathBuf> {
        let base = path.file_name().unwrap_or_default().to_os_string();
        for n in 1..=9999 {
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

    /// The files `<name>_<9 digits>.safetensors` of a folder and their numbers, lowest first.
    pub fn numbered_in(path: &Path, name: &str) -> Vec<(u64, PathBuf)> {
        let number = |file: &Path| -> Option<u64> {
            let digits = file.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('_')?;
            let digits = digits.strip_suffix(".safetensors")?;
            (digits.len() == 9 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries.filter_map(|e| Some((number(&e.path())?, e.path()))).collect();
        found.sort();
        found
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

    /// The LoRA after so many steps: `<name>_<9 digits>.safetensors`.
    pub fn numbered(&self, steps: u64) -> PathBuf {
        self.path.join(format!("{}_{steps:09}.safetensors", self.name))
    }

    /// Notes that a numbered file was written, and removes the oldest beyond `keep` (0 keeps all).
    pub fn wrote_numbered(&mut self, path: PathBuf, keep: u64) {
        // A run that goes on may write again what it had written before it was cut off.
        self.numbered.retain(|old| *old != path);
        self.numbered.push(path);
        while keep > 0 && self.numbered.len() as u64 > keep {
            // A file that somebody has taken away already is no loss.
            let _ = fs::remove_file(self.numbered.remove(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_moved_aside_whole() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let folder = RunFolder::open(&path, "fox").unwrap();
        assert!(!RunFolder::holds_results(&path));
        fs::write(folder.finished(), "first").unwrap();
        assert!(RunFolder::holds_results(&path));
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
            fs::write(&path, "").unwrap();
            folder.wrote_numbered(path, 2);
        };
        let mut folder = RunFolder::open(&path, "fox").unwrap();
        [250, 500, 750].into_iter().for_each(|step| write(&mut folder, step));
        let left = || RunFolder::numbered_in(&path, "fox").into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(left(), [500, 750]);
        assert!(folder.numbered(500).ends_with("fox_000000500.safetensors"));
        // Cut off, gone on with: files of before count, the last is written again.
        for other in
            ["fox_1.safetensors", "fox_best.safetensors", "wolf_000000001.safetensors", "fox.safetensors"]
        {
            fs::write(path.join(other), "").unwrap();
        }
        let mut folder = RunFolder::open(&path, "fox").unwrap();
        [750, 1000].into_iter().for_each(|step| write(&mut folder, step));
        assert_eq!(left(), [750, 1000]);
    }
}
