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
    /// Makes the folder. One that holds LoRA files already is renamed to `<folder>.old-1` (or the next free number),
    /// which is returned too.
    ///
    /// # Errors
    /// The folder cannot be made or renamed.
    pub fn create(path: &Path, name: &str) -> Result<(Self, Option<PathBuf>)> {
        let aside = if holds_results(path) { Some(move_aside(path)?) } else { None };
        fs::create_dir_all(path).map_err(|e| Error::file("make the folder", path, e))?;
        Ok((RunFolder { path: path.to_path_buf(), name: name.to_string(), numbered: Vec::new() }, aside))
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The finished LoRA: `<name>.safetensors`.
    pub fn finished(&self) -> PathBuf {
        self.path.join(format!("{}.safetensors", self.name))
    }

    /// The LoRA after so many steps: `<name>_<9 digits>.safetensors`.
    pub fn numbered(&self, steps: u64) -> PathBuf {
        self.path.join(format!("{}_{steps:09}.safetensors", self.name))
    }

    /// Notes that a numbered file was written, and removes the oldest beyond `keep` (0 keeps all).
    pub fn wrote_numbered(&mut self, path: PathBuf, keep: u64) {
        self.numbered.push(path);
        while keep > 0 && self.numbered.len() as u64 > keep {
            // A file that somebody has taken away already is no loss.
            let _ = fs::remove_file(self.numbered.remove(0));
        }
    }
}

fn holds_results(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return false };
    entries.flatten().any(|e| e.path().extension().is_some_and(|x| x == "safetensors"))
}

fn move_aside(path: &Path) -> Result<PathBuf> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_an_earlier_run_are_moved_aside() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let (folder, aside) = RunFolder::create(&path, "fox").unwrap();
        assert!(aside.is_none());
        fs::write(folder.finished(), "first").unwrap();
        let (folder, aside) = RunFolder::create(&path, "fox").unwrap();
        assert!(!folder.finished().exists());
        assert_eq!(fs::read_to_string(aside.unwrap().join("fox.safetensors")).unwrap(), "first");
    }

    #[test]
    fn the_oldest_numbered_files_go_first() {
        let parent = tempfile::tempdir().unwrap();
        let (mut folder, _) = RunFolder::create(&parent.path().join("run"), "fox").unwrap();
        for step in [250, 500, 750] {
            let path = folder.numbered(step);
            fs::write(&path, "").unwrap();
            folder.wrote_numbered(path, 2);
        }
        let left: Vec<bool> = [250, 500, 750].iter().map(|&s| folder.numbered(s).exists()).collect();
        assert_eq!(left, [false, true, true]);
        assert!(folder.numbered(500).ends_with("fox_000000500.safetensors"));
    }
}
