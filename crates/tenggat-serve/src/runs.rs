//! The runs that are shown, read again as they grow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tenggat_runs::{Overview, Run, Series, find};

/// Time between two searches for runs.
const FIND_EVERY: Duration = Duration::from_secs(3);
/// Time between two looks at the files of a run.
const LOOK_EVERY: Duration = Duration::from_millis(900);
/// Runs whose steps are kept in memory; the page compares no more of them.
const MOST_SERIES: usize = 8;

/// All runs in a folder.
#[derive(Debug)]
pub(crate) struct Runs {
    folder: PathBuf,
    known: Mutex<Known>,
    /// Steps of the runs that were asked for last, newest last.
    series: Mutex<Vec<(String, Series)>>,
}

#[derive(Debug, Default)]
struct Known {
    runs: BTreeMap<String, Run>,
    found_at: Option<Instant>,
    looked_at: Option<Instant>,
    listed: Vec<Listed>,
}

/// A run in the list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Listed {
    /// Names it in requests: its path below the folder.
    pub id: String,
    #[serde(flatten)]
    pub overview: Overview,
}

impl Runs {
    pub fn new(folder: PathBuf) -> Self {
        Runs { folder, known: Mutex::default(), series: Mutex::default() }
    }

    /// All runs as they are now.
    pub fn list(&self) -> Vec<Listed> {
        let mut known = lock(&self.known);
        known.look(&self.folder);
        known.listed.clone()
    }

    /// Reads what is new of a run and shows it; `None` if there is none of this name.
    pub fn with<T>(&self, id: &str, show: impl FnOnce(&Run) -> T) -> Option<T> {
        let mut known = lock(&self.known);
        known.look(&self.folder);
        let run = known.runs.get_mut(id)?;
        run.refresh();
        Some(show(run))
    }

    /// The folder of a run.
    pub fn folder_of(&self, id: &str) -> Option<PathBuf> {
        self.with(id, |run| run.folder().to_path_buf())
    }

    /// Shows the steps of a run.
    pub fn with_series<T>(&self, id: &str, show: impl FnOnce(&Series) -> T) -> Option<T> {
        let folder = self.folder_of(id)?;
        let mut kept = lock(&self.series);
        let (id, mut series) = match kept.iter().position(|(known, _)| known == id) {
            Some(at) => kept.remove(at),
            None => (id.to_owned(), Series::new(&folder)),
        };
        series.follow();
        let shown = show(&series);
        kept.push((id, series));
        if kept.len() > MOST_SERIES {
            kept.remove(0);
        }
        Some(shown)
    }
}

impl Known {
    fn look(&mut self, folder: &Path) {
        if self.found_at.is_none_or(|at| at.elapsed() >= FIND_EVERY) {
            self.found_at = Some(Instant::now());
            let found: BTreeMap<String, PathBuf> =
                find(folder).into_iter().map(|run| (id(folder, &run), run)).collect();
            self.runs.retain(|id, _| found.contains_key(id));
            for (id, run) in found {
                self.runs.entry(id).or_insert_with(|| Run::new(&run));
            }
            self.looked_at = None;
        }
        if self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked_at = Some(Instant::now());
            self.listed.clear();
            for (id, run) in &mut self.runs {
                run.refresh();
                self.listed.push(Listed { id: id.clone(), overview: run.overview() });
            }
        }
    }
}

/// The path of a run below the folder, `.` for the folder itself.
fn id(folder: &Path, run: &Path) -> String {
    let inner = run.strip_prefix(folder).unwrap_or(run).to_string_lossy().into_owned();
    if inner.is_empty() { ".".into() } else { inner }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_that_were_found_have_names() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("output");
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        std::fs::create_dir_all(parent.path().join("secret")).unwrap();
        for run in [folder.join("a/b"), parent.path().join("secret")] {
            std::fs::write(run.join("metrics.jsonl"), "{\"step\":3,\"loss\":1}\n").unwrap();
        }
        let runs = Runs::new(folder.clone());
        let ids: Vec<String> = runs.list().into_iter().map(|listed| listed.id).collect();
        assert_eq!(ids, ["a/b"]);
        assert!(runs.with("a/b", |_| ()).is_some());
        for id in ["../secret", "/etc", "", "a", "a/b/../../../secret"] {
            assert!(runs.with(id, |_| ()).is_none() && runs.with_series(id, |_| ()).is_none(), "{id}");
        }
        assert_eq!(runs.with_series("a/b", Series::len), Some(1));
        assert_eq!(Runs::new(folder.join("a/b")).list()[0].id, ".");
    }
}
