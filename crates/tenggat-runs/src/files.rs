//! Other files of a run: its LoRAs, its job, and which of its files may be shown.

use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Serialize;

/// Longest job that is read, bytes.
const MOST_CONFIG: u64 = 1 << 20;

/// A LoRA file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Its name in the run's folder.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, in seconds since 1970.
    pub unix_s: f64,
    /// Steps that its name tells.
    pub step: Option<u64>,
}

/// The LoRA files of a run, newest first.
pub fn checkpoints(folder: &Path) -> Vec<Checkpoint> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<Checkpoint> = entries
        .filter_map(|entry| {
            let file = entry.file_name().to_str()?.to_owned();
            let stem = file.strip_suffix(".safetensors")?;
            let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            let digits = stem.rsplit_once('_').map(|(_, digits)| digits).filter(|digits| digits.len() == 9);
            let step = digits.and_then(|digits| digits.parse().ok());
            let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(Checkpoint { file, bytes: metadata.len(), unix_s: since.as_secs_f64(), step })
        })
        .collect();
    found.sort_by(|a, b| b.unix_s.total_cmp(&a.unix_s).then_with(|| b.file.cmp(&a.file)));
    found
}

/// The job of a run as its folder keeps it, if it is text.
pub fn config(folder: &Path) -> Option<String> {
    let path = folder.join("config.yaml");
    let metadata = std::fs::metadata(&path).ok()?;
    if !metadata.is_file() || metadata.len() > MOST_CONFIG {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// The path of an image or LoRA of a run, by its name in the folder; `None` for anything else, for what lies
/// elsewhere, also through a link, and for what is not there.
pub fn file_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let name = Path::new(name);
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let extension = name.extension()?.to_str()?.to_ascii_lowercase();
    if !plain || !["png", "jpg", "jpeg", "webp", "safetensors"].contains(&extension.as_str()) {
        return None;
    }
    let (folder, path) = (folder.canonicalize().ok()?, folder.join(name).canonicalize().ok()?);
    (path.starts_with(&folder) && path.is_file()).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn checkpoints_tell_their_steps() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["fox_000000200.safetensors", "last.safetensors", "fox_12.safetensors", "x.txt"] {
            fs::write(folder.path().join(name), "1234").unwrap();
        }
        fs::create_dir(folder.path().join("d.safetensors")).unwrap();
        let mut found: Vec<_> =
            checkpoints(folder.path()).into_iter().map(|c| (c.file, c.bytes, c.step)).collect();
        found.sort();
        let expected = [
            ("fox_000000200.safetensors".to_owned(), 4, Some(200)),
            ("fox_12.safetensors".to_owned(), 4, None),
            ("last.safetensors".to_owned(), 4, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn only_images_and_loras_inside_of_the_folder_are_given_out() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        fs::create_dir_all(folder.join("samples")).unwrap();
        for name in ["secret.png", "run/samples/a.jpg", "run/config.yaml", "run/last.safetensors"] {
            fs::write(parent.path().join(name), "").unwrap();
        }
        assert!(file_in(&folder, "samples/a.jpg").is_some());
        assert!(file_in(&folder, "last.safetensors").is_some());
        for name in
            ["../secret.png", "samples/../../secret.png", "/etc/x.png", "config.yaml", "", "b.png", "."]
        {
            assert_eq!(file_in(&folder, name), None, "{name}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(parent.path().join("secret.png"), folder.join("link.png")).unwrap();
            assert_eq!(file_in(&folder, "link.png"), None);
        }
    }

    #[test]
    fn a_job_that_is_no_text_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(config(folder.path()), None);
        fs::write(folder.path().join("config.yaml"), b"\xff\xfe").unwrap();
        assert_eq!(config(folder.path()), None);
        fs::write(folder.path().join("config.yaml"), "job: extension\n").unwrap();
        assert_eq!(config(folder.path()).unwrap(), "job: extension\n");
    }
}
