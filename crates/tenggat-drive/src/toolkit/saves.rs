//! The LoRA files that ai-toolkit has written: which is the newest whole one, and which one it would go on
//! with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::lora::{self, NotWhole};

/// A save of the trainer.
#[derive(Debug, Clone, PartialEq)]
pub struct Save {
    /// The file.
    pub path: PathBuf,
    /// Updates in it.
    pub steps: u64,
    /// When it was written.
    pub written: SystemTime,
}

/// The trainer's folder.
#[derive(Debug, Clone)]
pub struct Saves {
    folder: PathBuf,
    name: String,
}

impl Saves {
    /// For a folder and the name that its files begin with.
    pub fn new(folder: &Path, name: &str) -> Self {
        Saves { folder: folder.into(), name: name.into() }
    }

    /// All LoRA files with the trainer's name, whole or not.
    fn paths(&self) -> Vec<PathBuf> {
        let ours = |path: &Path| {
            let name = path.file_name().and_then(|n| n.to_str());
            let rest = name.and_then(|n| n.strip_prefix(self.name.as_str())?.strip_suffix(".safetensors"));
            // `<name>.safetensors`, `<name>_LoRA.safetensors`, `<name>_000000250.safetensors`
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| ours(p)).collect()
    }

    /// The files whose header and length agree, most steps last; and the others.
    pub fn all(&self) -> (Vec<Save>, Vec<PathBuf>) {
        let (mut whole, mut broken) = (Vec::new(), Vec::new());
        for path in self.paths() {
            match lora::peek(&path) {
                Ok(checked) => {
                    let steps = checked.steps.or_else(|| number(&path)).unwrap_or(0);
                    let written =
                        fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                    whole.push(Save { path, steps, written });
                }
                Err(NotWhole::Io(_)) => {}
                Err(_) => broken.push(path),
            }
        }
        whole.sort_by_key(|save| (save.steps, save.written));
        (whole, broken)
    }

    /// The save with the most steps above `beyond`, of those written since.
    pub fn newest(&self, beyond: u64, since: SystemTime) -> Option<Save> {
        let (whole, _) = self.all();
        whole.into_iter().rev().find(|save| save.steps > beyond && save.written >= since)
    }

    /// Makes the save with the most steps the one that the trainer resumes from, and returns its steps; 0 if
    /// there is none.
    ///
    /// The trainer takes the newest path that begins with its name. Files that were cut off are put into
    /// `aside`; a finished `<name>.safetensors` gets a number, for its name would be written over; and
    /// the chosen one is touched. `last` counts too, if it holds more than any save.
    ///
    /// # Errors
    /// A file cannot be moved or touched.
    pub fn prepare(&self, last: &Path, aside: &Path) -> Result<u64> {
        let (mut whole, broken) = self.all();
        for path in broken {
            fs::create_dir_all(aside).map_err(|e| Error::file("make the folder", aside, e))?;
            let to = aside.join(path.file_name().unwrap_or_default());
            fs::rename(&path, to).map_err(|e| Error::file("move aside", &path, e))?;
        }
        // A LoRA with NaN would be resumed from for ever.
        while whole.last().is_some_and(|save| lora::check(&save.path).is_err()) {
            let Some(save) = whole.pop() else { break };
            fs::create_dir_all(aside).map_err(|e| Error::file("make the folder", aside, e))?;
            let to = aside.join(save.path.file_name().unwrap_or_default());
            fs::rename(&save.path, to).map_err(|e| Error::file("move aside", &save.path, e))?;
        }
        let best = whole.last().cloned();
        let published = lora::check(last).ok().and_then(|checked| checked.steps);
        if let Some(steps) = published.filter(|n| *n > 0 && best.as_ref().is_none_or(|save| save.steps < *n))
        {
            let path = self.numbered(steps);
            lora::publish(last, &path)
                .map_err(|e| Error::file("copy the LoRA to", &path, std::io::Error::other(e)))?;
            return Ok(steps);
        }
        let Some(best) = best else { return Ok(0) };
        let finished = self.folder.join(format!("{}.safetensors", self.name));
        let numbered = self.numbered(best.steps);
        if best.path == finished && !numbered.exists() {
            fs::rename(&finished, &numbered).map_err(|e| Error::file("rename", &finished, e))?;
            return touch(&numbered).map(|()| best.steps);
        }
        touch(&best.path).map(|()| best.steps)
    }

    /// Removes the saves that are older than the newest `keep` (0: all are kept), and returns their bytes.
    /// What holds more than `published` updates stays, and so does the newest.
    pub fn remove_beyond(&self, keep: u64, published: u64) -> u64 {
        if keep == 0 {
            return 0;
        }
        let (mut whole, _) = self.all();
        whole.truncate(whole.len().saturating_sub(keep as usize));
        let old = whole.iter().filter(|save| save.steps <= published);
        old.filter_map(|save| {
            let bytes = fs::metadata(&save.path).ok()?.len();
            fs::remove_file(&save.path).ok().map(|()| bytes)
        })
        .sum()
    }

    /// The file `<name>_<9 digits>.safetensors`.
    pub fn numbered(&self, steps: u64) -> PathBuf {
        self.folder.join(format!("{}_{steps:09}.safetensors", self.name))
    }
}

/// The number in the name of a file such as `fox_000000250.safetensors`.
fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.rsplit_once('_')?.1.parse().ok()
}

/// Makes a file the newest of its folder, by the time that ai-toolkit looks at: that of its last change.
fn touch(path: &Path) -> Result<()> {
    let set = || File::options().append(true).open(path)?.set_modified(SystemTime::now());
    set().map_err(|e| Error::file("touch", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, step: u64, value: f32) {
        let header = format!(
            r#"{{"__metadata__":{{"training_info":"{{\"step\":{step}}}"}},"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(value.to_le_bytes());
        fs::write(path, bytes).unwrap();
    }

    struct Scene {
        folder: tempfile::TempDir,
        saves: Saves,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let saves = Saves::new(folder.path(), "fox");
            Scene { folder, saves }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn prepare(&self) -> u64 {
            self.saves.prepare(&self.path("last.safetensors"), &self.path(".drive/unfinished")).unwrap()
        }

        /// As ai-toolkit chooses.
        fn newest(&self) -> PathBuf {
            use std::os::unix::fs::MetadataExt;
            let ours = fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().path());
            let ours = ours.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("fox"));
            let changed = |p: &PathBuf| fs::metadata(p).map(|m| (m.ctime(), m.ctime_nsec())).unwrap();
            ours.max_by_key(changed).unwrap()
        }
    }

    #[test]
    fn room_is_made_by_the_oldest_saves_that_the_job_does_not_keep() {
        let scene = Scene::new();
        for step in [10, 20, 30, 40, 50] {
            write(&scene.saves.numbered(step), step, 1.0);
        }
        assert_eq!(scene.saves.remove_beyond(0, 100), 0, "all are kept");
        let bytes = fs::metadata(scene.saves.numbered(10)).unwrap().len();
        // What is not published yet stays, and so do the newest three.
        assert_eq!(scene.saves.remove_beyond(3, 10), bytes);
        assert_eq!(scene.saves.remove_beyond(3, 100), bytes);
        let (whole, _) = scene.saves.all();
        assert_eq!(whole.iter().map(|save| save.steps).collect::<Vec<_>>(), [30, 40, 50]);
    }

    #[test]
    fn a_lora_that_changes_nothing_is_not_gone_on_with() {
        let scene = Scene::new();
        write(&scene.path("last.safetensors"), 0, 0.0);
        assert_eq!(scene.prepare(), 0);
        assert!(!scene.saves.numbered(0).exists());
    }

    #[test]
    fn the_most_trained_whole_file_is_gone_on_with() {
        let scene = Scene::new();
        assert_eq!(scene.prepare(), 0);
        write(&scene.path("fox_000000050.safetensors"), 50, 1.0);
        write(&scene.path("fox_000000025.safetensors"), 25, 1.0);
        write(&scene.path("foxes_000000099.safetensors"), 99, 1.0);
        fs::write(scene.path("fox_000000075.safetensors"), "cut o").unwrap();
        write(&scene.path("fox_000000060.safetensors"), 60, f32::NAN);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(scene.prepare(), 50);
        fs::remove_file(scene.path("foxes_000000099.safetensors")).unwrap();
        assert_eq!(scene.newest(), scene.path("fox_000000050.safetensors"));
        assert_eq!(fs::read_dir(scene.path(".drive/unfinished")).unwrap().count(), 2);
    }

    #[test]
    fn a_finished_file_is_kept_under_a_number() {
        let scene = Scene::new();
        write(&scene.path("fox_000000050.safetensors"), 50, 1.0);
        write(&scene.path("fox.safetensors"), 64, 2.0);
        assert_eq!(scene.prepare(), 64);
        assert!(!scene.path("fox.safetensors").exists());
        assert_eq!(scene.newest(), scene.path("fox_000000064.safetensors"));
    }

    #[test]
    fn what_was_published_counts_when_the_saves_are_gone() {
        let scene = Scene::new();
        write(&scene.path("last.safetensors"), 70, 1.0);
        write(&scene.path("fox_000000050.safetensors"), 50, 1.0);
        assert_eq!(scene.prepare(), 70);
        assert_eq!(scene.newest(), scene.path("fox_000000070.safetensors"));
    }
}
