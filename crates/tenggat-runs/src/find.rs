//! Looking for runs below a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::event_log::EVENTS;
use crate::metrics::METRICS;

/// Levels below the folder that are looked at.
const DEEPEST: usize = 4;
/// Most runs that are found.
const MOST_RUNS: usize = 2000;
/// Most folders that are looked at: somebody may name his home.
const MOST_FOLDERS: usize = 20_000;
/// Names of what a run folder holds itself.
const INNER: [&str; 4] = ["samples", "sheets", "checkpoints", "node_modules"];

/// The runs in a folder and below it, sorted by name. The folder may be a run itself.
pub fn find(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), MOST_FOLDERS);
    look(folder, DEEPEST, &mut left, &mut found);
    found.sort();
    found
}

/// Whether a folder is that of a run.
pub(crate) fn is_run(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has("run.lock") || has(METRICS) || has(EVENTS) || has(".drive/state.json") || has(".drive/lock") || {
        // ai-toolkit's.
        has("config.yaml") && (has("optimizer.pt") || folder.join("samples").is_dir() || holds_loras(folder))
    }
}

fn holds_loras(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().extension().is_some_and(|x| x == "safetensors"))
}

fn look(folder: &Path, levels: usize, left: &mut usize, found: &mut Vec<PathBuf>) {
    if found.len() >= MOST_RUNS || *left == 0 {
        return;
    }
    *left -= 1;
    if is_run(folder) {
        found.push(folder.to_path_buf());
        return;
    }
    if levels == 0 {
        return;
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // A link may lead in a circle.
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let inner: BTreeSet<PathBuf> = folders.map(|entry| entry.path()).collect();
    for path in inner {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && !INNER.contains(&name.as_ref()) {
            look(&path, levels - 1, left, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn runs_of_all_programs_are_found_and_other_folders_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make("a/run.lock", "");
        make("a/samples/x/run.lock", "");
        make("b/deep/er/events.jsonl", "");
        make("driven/.drive/state.json", "{}");
        make("toolkit/config.yaml", "job: extension");
        make("toolkit/fox_000000100.safetensors", "");
        make("photos/config.yaml", "a: 1");
        make("photos/fox.png", "");
        make(".hidden/run.lock", "");
        make("1/2/3/4/5/run.lock", "");
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path(), folder.path().join("circle")).unwrap();
        let found = find(folder.path());
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b/deep/er", "driven", "toolkit"]);
        assert_eq!(find(&folder.path().join("a")), [folder.path().join("a")]);
        assert!(find(&folder.path().join("nowhere")).is_empty());
        assert!(find(&folder.path().join("a/run.lock")).is_empty());
    }
}
