//! The LoRA files in the folder of a run: who wrote them, how many steps they hold, and how none is lost.

use std::fs;
use std::path::{Path, PathBuf};

use super::names::{self, LAST, MOST_ASIDE};
use super::{Error, Result};
use crate::lora::file::Header;

/// The program that writes our files, as their metadata name it.
const OWN: &str = "tenggat";

/// Whether we wrote a LoRA file, whole.
pub(super) fn is_own(path: &Path) -> bool {
    Header::read(path).is_ok_and(|header| header.software().as_deref() == Some(OWN))
}

/// A LoRA in the folder of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Save {
    /// The file.
    pub path: PathBuf,
    /// Updates in it.
    pub steps: u64,
    /// Whether we wrote it.
    pub is_own: bool,
}

/// What an earlier run left in a folder.
#[derive(Debug, Default)]
pub struct Found {
    /// Whole LoRA files of the job's name that say how far they were trained, oldest first.
    pub saves: Vec<Save>,
    /// Other LoRA files: damaged, of another name, or of an unknown number of steps.
    pub others: Vec<PathBuf>,
}

impl Found {
    /// Looks for LoRA files. `step_names` is the job's flag of that name: files then say one step less than
    /// they hold.
    pub fn in_folder(folder: &Path, name: &str, step_names: bool) -> Found {
        let mut found = Found::default();
        let numbered = names::numbered_in(folder, name);
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut paths: Vec<_> =
            entries.filter(|p| p.extension().is_some_and(|x| x == "safetensors")).collect();
        paths.sort();
        for path in paths {
            let number = numbered.iter().find(|(_, own)| *own == path).map(|(number, _)| *number);
            let named = number.is_some() || path == folder.join(LAST) || is_finished(&path, name);
            if is_set_aside(&path) {
                continue;
            }
            match Header::read(&path).ok().filter(|_| named).and_then(|h| updates(&h, number, step_names)) {
                Some((steps, is_own)) => found.saves.push(Save { path, steps, is_own }),
                None => found.others.push(path),
            }
        }
        // Of equal ones the last is the finished one, which others would take too.
        found.saves.sort_by_key(|save| (save.steps, is_finished(&save.path, name)));
        found
    }

    /// Whether there is more than the placeholder, a LoRA that changes nothing.
    pub fn holds_results(&self) -> bool {
        !self.others.is_empty() || self.saves.iter().any(|save| save.steps > 0 || !save.is_own)
    }
}

fn is_finished(path: &Path, name: &str) -> bool {
    path.file_stem().is_some_and(|stem| stem == name)
}

/// Whether the name of a file is one that [`set_aside`] gives.
fn is_set_aside(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.rsplit_once(".old-").is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Updates in a file, and whether we wrote it. `number` is that of its name.
///
/// A file that ai-toolkit names after step N, counted from 0, holds N + 1; the one without a number holds
/// what it says. Source: ai-toolkit `jobs/process/BaseSDTrainProcess.py`, `save`.
fn updates(header: &Header, number: Option<u64>, step_names: bool) -> Option<(u64, bool)> {
    let (step, software) = (header.step(), header.software());
    if software.as_deref() == Some(OWN) {
        let step = step.or(number)?;
        return Some((step + u64::from(step_names && step > 0), true));
    }
    let one_more = software.as_deref() == Some("ai-toolkit") && number.is_some();
    Some((step.or(number)?.saturating_add(u64::from(one_more)), false))
}

/// Makes sure that a LoRA of this many steps may be written under this name: a file of another program's, a
/// broken one, or one that is further along than this is kept under the name `<name>.old-1.safetensors` or
/// the next free number, which is returned.
///
/// # Errors
/// The file cannot be renamed.
pub fn set_aside(path: &Path, steps: u64) -> Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    let replaceable = Header::read(path)
        .is_ok_and(|h| h.software().as_deref() == Some(OWN) && h.step().is_some_and(|step| step <= steps));
    if replaceable {
        return Ok(None);
    }
    let stem = path.file_stem().unwrap_or_default().to_os_string();
    for n in 1..=MOST_ASIDE {
        let mut name = stem.clone();
        name.push(format!(".old-{n}.safetensors"));
        let aside = path.with_file_name(name);
        if aside.exists() {
            continue;
        }
        // With a second name there is a file under the first at every moment.
        fs::hard_link(path, &aside)
            .or_else(|_| fs::rename(path, &aside))
            .map_err(|e| Error::file("rename", path, e))?;
        return Ok(Some(aside));
    }
    Err(Error::Job(format!("{} is not replaced; move it away or give another name", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tensor_file::{self, Entry};
    use crate::job::SaveType;

    fn write(path: &Path, software: &str, step: Option<u64>) {
        let entries = [Entry::floats("w".into(), vec![1], &[1.0], SaveType::F32)];
        let step = step.map(|step| ("training_info".to_owned(), format!("{{\"step\": {step}}}")));
        let software = ("software".to_owned(), format!("{{\"name\": \"{software}\"}}"));
        let metadata: Vec<_> = step.into_iter().chain([software]).collect();
        tensor_file::write(path, &metadata, &entries).unwrap();
    }

    fn found(folder: &Path, step_names: bool) -> Vec<(String, u64, bool)> {
        let found = Found::in_folder(folder, "fox", step_names);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        found.saves.into_iter().map(|save| (name(&save.path), save.steps, save.is_own)).collect()
    }

    #[test]
    fn saves_are_sorted_by_the_updates_that_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // ai-toolkit's file of step 32 holds 33 updates, its finished one what it says.
        write(&path("fox_000000032.safetensors"), "ai-toolkit", Some(32));
        write(&path("fox.safetensors"), "ai-toolkit", Some(64));
        write(&path("last.safetensors"), "tenggat", Some(40));
        write(&path("fox_000000007.safetensors"), "somebody", None);
        write(&path("fox.old-1.safetensors"), "ai-toolkit", Some(900));
        fs::write(path("fox_000000099.safetensors"), "cut short").unwrap();
        write(&path("wolf.safetensors"), "tenggat", Some(1000));
        let expected = [
            ("fox_000000007.safetensors".into(), 7, false),
            ("fox_000000032.safetensors".into(), 33, false),
            ("last.safetensors".into(), 40, true),
            ("fox.safetensors".into(), 64, false),
        ];
        assert_eq!(found(folder.path(), false), expected);
        assert_eq!(found(folder.path(), true)[2].1, 41);
        let others = Found::in_folder(folder.path(), "fox", false).others;
        assert_eq!(others, [path("fox_000000099.safetensors"), path("wolf.safetensors")]);
    }

    #[test]
    fn a_lora_of_no_steps_is_no_result() {
        let folder = tempfile::tempdir().unwrap();
        let holds = || Found::in_folder(folder.path(), "fox", true).holds_results();
        assert!(!holds());
        write(&folder.path().join(LAST), "tenggat", Some(0));
        assert!(!holds());
        write(&folder.path().join("fox.safetensors"), "somebody", Some(0));
        assert!(holds());
        write(&folder.path().join("fox.safetensors"), "tenggat", Some(1));
        assert!(holds());
    }

    #[test]
    fn only_what_is_ours_and_not_ahead_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fox.safetensors");
        assert_eq!(set_aside(&path, 5).unwrap(), None);
        for steps in [4, 5] {
            write(&path, "tenggat", Some(steps));
            assert_eq!(set_aside(&path, 5).unwrap(), None);
        }
        let cases: [(&str, Option<u64>); 4] =
            [("tenggat", Some(6)), ("tenggat", None), ("ai-toolkit", Some(1)), ("ai-toolkit", Some(9))];
        for (n, (software, step)) in cases.into_iter().enumerate() {
            write(&path, software, step);
            let bytes = fs::read(&path).unwrap();
            let aside = set_aside(&path, 5).unwrap().unwrap();
            assert!(aside.ends_with(format!("fox.old-{}.safetensors", n + 1)), "{aside:?}");
            // There is a file under its name at every moment, and writing it leaves the other.
            assert!(path.exists());
            write(&path, "tenggat", Some(5));
            assert_eq!(fs::read(aside).unwrap(), bytes);
        }
        fs::write(&path, "cut short").unwrap();
        assert!(set_aside(&path, 5).unwrap().is_some());
    }
}
