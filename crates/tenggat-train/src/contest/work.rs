//! Room for a task's pictures: a folder that nobody else can own, read or change.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::path::{Path, PathBuf};

use super::container::Task;
use super::{Error, Result};

/// Name of the file that is locked while a task is under way.
const LOCK: &str = "lock";

/// The folder of one task, removed when it is dropped. It has the same name at every start, so that a task
/// that was cut off meets the same job again.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
    /// Why it has another name than usual, if it has.
    pub remark: Option<String>,
    /// Held as long as the folder is used.
    _lock: File,
}

impl Work {
    /// Makes the folder `<root>/<task>-<repository>`, empty, and takes hold of it; without a root, in a
    /// folder of this user's among the system's temporary ones. Their names can be guessed: where somebody
    /// else has laid one out, a new one of a name that cannot be guessed is taken.
    ///
    /// # Errors
    /// It cannot be made, or the task is under way already.
    pub fn open(root: Option<&Path>, task: &Task) -> Result<Self> {
        let name = format!("{}-{}", task.id, task.repository);
        let usual = || {
            let path = match root {
                // It may be shared; what lies in it is not.
                Some(root) => {
                    fs::create_dir_all(root).map_err(|e| Error::file("make the folder", root, e))?;
                    root.join(&name)
                }
                None => {
                    make_private(&default_root())?;
                    default_root().join(&name)
                }
            };
            make_private(&path).map(|()| path)
        };
        let (path, remark) = match usual() {
            Err(e @ Error::NotOurs { .. }) => {
                let parent = root.map_or_else(std::env::temp_dir, Path::to_owned);
                let prefix = format!("{name}-");
                let mut builder = tempfile::Builder::new();
                builder.prefix(&prefix);
                // Others could read it otherwise.
                #[cfg(unix)]
                builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
                let new = builder.tempdir_in(&parent);
                let new = new.map_err(|e| Error::file("make a folder in", &parent, e))?;
                (new.keep(), Some(e.to_string()))
            }
            path => (path?, None),
        };
        let file = path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&file);
        let lock = lock.map_err(|e| Error::file("write", &file, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::UnderWay { folder: path }),
            // Not every file system has locks.
            Err(TryLockError::Error(_)) => {}
        }
        let work = Work { path, remark, _lock: lock };
        work.empty()?;
        Ok(work)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what an earlier start left.
    fn empty(&self) -> Result<()> {
        let entries = fs::read_dir(&self.path).map_err(|e| Error::file("read", &self.path, e))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !path.ends_with(LOCK)) {
            let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|e| Error::file("remove", &path, e))?;
        }
        Ok(())
    }
}

/// The pictures are made again at the next start; what cannot be removed is no failure of the task.
impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The folder for all tasks of this user, unless another is given. Its name has the user's number: a folder
/// of one name would belong to whoever comes first.
fn default_root() -> PathBuf {
    #[cfg(unix)]
    let name = format!("tenggat-task-{}", rustix::process::geteuid().as_raw());
    #[cfg(not(unix))]
    let name = "tenggat-task";
    std::env::temp_dir().join(name)
}

/// Makes a folder that only this user may enter, or finds it so.
///
/// # Errors
/// It cannot be created, or an existing one belongs to somebody else, lets others in, or is a link.
fn make_private(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            match strange(path).map_err(|e| Error::file("read", path, e))? {
                None => Ok(()),
                Some(reason) => Err(Error::NotOurs { folder: path.into(), reason }),
            }
        }
        Err(e) => Err(Error::file("make the folder", path, e)),
    }
}

/// Why a folder is not ours alone, if it is not. Group and others lose their rights to one of our own.
#[cfg(unix)]
fn strange(path: &Path) -> std::io::Result<Option<&'static str>> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Ok(Some("it is a link or a file"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(Some("it belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(None)
}

#[cfg(not(unix))]
fn strange(path: &Path) -> std::io::Result<Option<&'static str>> {
    Ok((!fs::symlink_metadata(path)?.is_dir()).then_some("it is a link or a file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        let (id, repository) = ("t".into(), "r".into());
        Task { id, model: String::new(), dataset: String::new(), repository }
    }

    #[test]
    fn the_folder_is_the_same_at_every_start_and_empty() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("a/b");
        let work = Work::open(Some(&root), &task()).unwrap();
        let path = work.path().to_owned();
        fs::create_dir(path.join("train")).unwrap();
        fs::write(path.join("train/a.png"), "").unwrap();
        let message = Work::open(Some(&root), &task()).unwrap_err().to_string();
        assert!(message.contains("already running"), "{message}");
        assert!(path.join("train/a.png").exists());
        drop(work);
        assert!(!path.exists());
        // As a process that is killed leaves it.
        fs::create_dir_all(path.join("train")).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        let work = Work::open(Some(&root), &task()).unwrap();
        assert!(work.path() == path && !path.join("train").exists());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_gets_in() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t-r");
        let open_to_us = || {
            let work = Work::open(Some(root.path()), &task()).unwrap();
            assert_eq!(work.path(), path);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        };
        open_to_us();
        // Ours, but open to others.
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        open_to_us();
        // A link that somebody has laid out, and another user's folder, which only root can make.
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("a.txt"), "kept").unwrap();
        symlink(&elsewhere, &path).unwrap();
        let other = |reason: &str| {
            let work = Work::open(Some(root.path()), &task()).unwrap();
            assert!(work.path() != path && work.remark.as_ref().unwrap().contains(reason), "{work:?}");
            assert_eq!(fs::metadata(work.path()).unwrap().mode() & 0o777, 0o700);
        };
        other("it is a link");
        assert!(elsewhere.join("a.txt").exists());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
            other("belongs to another user");
        }
        let name = default_root().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(name, format!("tenggat-task-{}", rustix::process::geteuid().as_raw()));
    }
}
