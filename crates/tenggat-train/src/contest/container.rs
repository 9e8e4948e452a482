//! Where things lie in the contest's container. Source: rayonlabs/G.O.D, `trainer/image_manager.py`,
//! `constants.py`, `docs/tourn_image.md`.

use std::path::{Path, PathBuf};

use super::{Error, Result};
use crate::lora::file as lora_file;
use crate::run;

/// Folders that the container is given, all movable for tests.
#[derive(Debug, Clone)]
pub struct Roots {
    /// What was downloaded beforehand; read only: `/cache`.
    pub cache: PathBuf,
    /// What is uploaded at the end: `/app/checkpoints`.
    pub checkpoints: PathBuf,
}

/// A task as the container's arguments name it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Name of the task.
    pub id: String,
    /// Model, `org/name` or a folder.
    pub model: String,
    /// Archive of the pictures: a path, or the address that it was downloaded from.
    pub dataset: String,
    /// Name of the folder of the results.
    pub repository: String,
}

impl Roots {
    /// The archive: `<cache>/datasets/<task>_tourn.zip`, else the argument if it is a file.
    ///
    /// # Errors
    /// There is neither.
    pub fn dataset(&self, task: &Task) -> Result<PathBuf> {
        let cached = self.cache.join("datasets").join(format!("{}_tourn.zip", task.id));
        first_of([cached.clone(), PathBuf::from(&task.dataset)], Path::is_file).ok_or_else(|| {
            Error::Missing {
                what: "the pictures",
                path: cached,
                instead: "give the archive's path with --dataset-zip".into(),
            }
        })
    }

    /// The model's folder: `<cache>/models/<org>--<name>`, else the argument if it is a folder.
    ///
    /// # Errors
    /// There is neither.
    pub fn model(&self, task: &Task) -> Result<PathBuf> {
        let cached = self.cache.join("models").join(task.model.replace('/', "--"));
        let folder = first_of([cached.clone(), PathBuf::from(&task.model)], Path::is_dir);
        let Some(folder) = folder else {
            return Err(Error::Missing {
                what: "the model",
                path: cached,
                instead: "put its folder there, or give the folder's path with --model".into(),
            });
        };
        Ok(folder)
    }

    /// The accuracy recovery adapter for 3 bits, if the container has it.
    pub fn recovery_adapter(&self) -> Option<PathBuf> {
        let path = self.cache.join("hf_cache/qwen_image_torchao_uint3.safetensors");
        path.is_file().then_some(path)
    }

    /// The folder that is uploaded: `<checkpoints>/<task>/<repository>`.
    pub fn output(&self, task: &Task) -> PathBuf {
        self.checkpoints.join(&task.id).join(&task.repository)
    }
}

impl Task {
    /// Names that become folders must not lead out of them.
    ///
    /// # Errors
    /// One is empty or has a slash.
    pub fn check(&self) -> Result<()> {
        for (flag, name) in [("--task-id", &self.id), ("--expected-repo-name", &self.repository)] {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
                return Err(Error::Name { flag, name: name.clone() });
            }
        }
        Ok(())
    }
}

fn first_of<const N: usize>(paths: [PathBuf; N], is: fn(&Path) -> bool) -> Option<PathBuf> {
    paths.into_iter().find(|path| is(path))
}

/// The LoRA that the contest takes from an uploaded folder: the first file, by name, that ends in
/// `last.safetensors`; else the first without a number at the end of its name; else the one with the highest.
/// Source: `eval_diffusion.py`.
///
/// # Errors
/// The folder cannot be read.
pub fn picked(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.retain(|name| name.ends_with(".safetensors"));
    let number = |name: &String| -> Option<u64> {
        let stem = name.trim_end_matches(".safetensors");
        stem[stem.trim_end_matches(|c: char| c.is_ascii_digit()).len()..].parse().ok()
    };
    let last = names.iter().find(|name| name.ends_with("last.safetensors"));
    let picked = last
        .or_else(|| names.iter().find(|name| number(name).is_none()))
        .or_else(|| names.iter().max_by_key(|name| number(name)));
    Ok(picked.map(|name| folder.join(name)))
}

/// Prepares a folder of results for resuming: files under the names of LoRAs that cannot be read as such get
/// `.broken` behind their names, so that neither the training nor the contest takes them. Returns the new
/// names.
///
/// # Errors
/// A file cannot be renamed.
pub fn set_broken_aside(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut broken = Vec::new();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")) {
        if matches!(lora_file::load(&path), Err(lora_file::Error::Format { .. })) {
            let mut name = path.clone().into_os_string();
            name.push(".broken");
            std::fs::rename(&path, &name)?;
            broken.push(name.into());
        }
    }
    Ok(broken)
}

/// Removes the checkpoint: the optimiser's state, which may be many times as large as the LoRA and is of no
/// use to whoever gets the folder.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_state(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(run::STATE) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task {
            id: "t1".into(),
            model: "Qwen/Qwen-Image".into(),
            dataset: "https://example.org/t1.zip".into(),
            repository: "repo".into(),
        }
    }

    #[test]
    fn places_follow_the_contract() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("cache");
        let roots = Roots { cache: cache.clone(), checkpoints: "/app/checkpoints".into() };
        let message = roots.dataset(&task()).unwrap_err().to_string();
        assert!(message.contains("datasets/t1_tourn.zip"), "{message}");
        assert!(roots.model(&task()).unwrap_err().to_string().contains("models/Qwen--Qwen-Image"));
        for path in ["models/Qwen--Qwen-Image", "datasets", "hf_cache"] {
            std::fs::create_dir_all(cache.join(path)).unwrap();
        }
        std::fs::write(cache.join("datasets/t1_tourn.zip"), "").unwrap();
        assert_eq!(roots.model(&task()).unwrap(), cache.join("models/Qwen--Qwen-Image"));
        assert_eq!(roots.dataset(&task()).unwrap(), cache.join("datasets/t1_tourn.zip"));
        assert_eq!(roots.output(&task()), Path::new("/app/checkpoints/t1/repo"));
        assert!(roots.recovery_adapter().is_none());
        std::fs::write(cache.join("hf_cache/qwen_image_torchao_uint3.safetensors"), "").unwrap();
        assert!(roots.recovery_adapter().is_some());
    }

    #[test]
    fn names_stay_inside_their_folders() {
        assert!(task().check().is_ok());
        for bad in ["", "..", "a/b", ".x"] {
            let message = Task { repository: bad.into(), ..task() }.check().unwrap_err().to_string();
            assert!(message.contains("--expected-repo-name"), "{message}");
        }
    }

    #[test]
    fn the_contest_picks_last_first() {
        let folder = tempfile::tempdir().unwrap();
        let name = || {
            let path = picked(folder.path()).unwrap()?;
            Some(path.file_name()?.to_string_lossy().into_owned())
        };
        let touch = |file: &str| std::fs::write(folder.path().join(file), "").unwrap();
        assert_eq!(name(), None);
        touch("last-9.safetensors");
        touch("last-10.safetensors");
        touch("config.yaml");
        assert_eq!(name().unwrap(), "last-10.safetensors");
        touch("other.safetensors");
        assert_eq!(name().unwrap(), "other.safetensors");
        touch("last.safetensors");
        assert_eq!(name().unwrap(), "last.safetensors");
    }
    #[test]
    fn what_is_no_lora_is_set_aside_and_the_state_goes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["last.safetensors", "resume.state", "config.yaml"] {
            std::fs::write(folder.path().join(name), "cut off").unwrap();
        }
        let broken = set_broken_aside(folder.path()).unwrap();
        assert_eq!(broken, [folder.path().join("last.safetensors.broken")]);
        assert_eq!(picked(folder.path()).unwrap(), None);
        remove_state(folder.path()).unwrap();
        assert!(!folder.path().join("resume.state").exists() && folder.path().join("config.yaml").exists());
        assert!(set_broken_aside(&folder.path().join("none")).unwrap().is_empty());
    }
}
