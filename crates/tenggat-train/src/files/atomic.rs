//! Files that are whole at every moment: written beside, flushed to the disk, renamed into place.
//!
//! A process that is killed, or a machine that loses power, leaves either the old file or the new one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Start of the names of unfinished files.
const PREFIX: &str = ".tenggat-unfinished-";

/// Writes a file of these bytes; makes the folder if need be.
///
/// # Errors
/// The system's reason; an old file of that name is then untouched.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Copies a file.
///
/// # Errors
/// As [`write()`].
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    write_with(to, |file| io::copy(&mut source, file).map(drop))
}

/// Writes a file with what `fill` puts out.
///
/// # Errors
/// As [`write()`], or what `fill` returns.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    replace(path, None, fill)
}

/// As [`write_with`], and keeps the file that it replaces under the name `previous`, in place of an older one
/// there. A process that is killed leaves at least one of the two.
///
/// # Errors
/// As [`write_with`]; neither file is touched unless the new one lies whole beside them.
pub fn write_keeping(
    path: &Path,
    previous: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, Some(previous), fill)
}

fn replace(
    path: &Path,
    previous: Option<&Path>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    make_folder(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Like any new file, subject to the umask; the default would shut out everybody else.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    fill(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_all()?;
    if let Some(previous) = previous {
        match fs::rename(path, previous) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    file.persist(path).map_err(|e| e.error)?;
    sync_folder(folder)
}

/// Gives a file a second name, replacing any file of that name, without using space; copies it where the file
/// system has no links. Files are replaced, never rewritten, so that the two names have nothing more to do
/// with each other.
///
/// # Errors
/// As [`write()`].
pub fn link(from: &Path, to: &Path) -> io::Result<()> {
    let folder = folder_of(to);
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!("{PREFIX}{}-{name}", std::process::id()));
    let _ = fs::remove_file(&beside);
    if fs::hard_link(from, &beside).is_err() {
        return copy(from, to);
    }
    let renamed = fs::rename(&beside, to);
    // Two names of one file are not renamed over each other: the system leaves both.
    let _ = fs::remove_file(&beside);
    renamed?;
    sync_folder(folder)
}

/// Makes a folder and those above it that are missing, so that their names outlast a power cut.
///
/// # Errors
/// The system's reason.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let missing: Vec<&Path> =
        path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().rev().try_for_each(|made| sync_folder(folder_of(made)))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name is on the disk only when its folder is.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some file systems of networks and of other systems know no such thing for folders.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Removes unfinished files that a killed process left in a folder; others stay. For folders that nobody else
/// writes.
///
/// # Errors
/// The folder cannot be read or a file not be removed.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A new folder among the system's temporary files that nobody else may enter, removed when it is dropped.
///
/// # Errors
/// It cannot be made.
pub fn private_folder() -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("tenggat-");
    // The umask alone would let others in.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder.tempdir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_private_folder_lets_nobody_else_in() {
        use std::os::unix::fs::PermissionsExt;
        let folder = private_folder().unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_and_nothing_is_left_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/a.txt");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["a.txt"]);
        let other = folder.path().join("b.txt");
        copy(&path, &other).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"two");
    }

    #[test]
    fn a_link_replaces_a_file_and_lives_its_own_life() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        for _ in 0..2 {
            link(&from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["a", "b"]);
        }
        write(&to, b"newer").unwrap();
        assert_eq!(fs::read(&from).unwrap(), b"new");
        assert!(link(&folder.path().join("none"), &to).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"newer");
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, b"old").unwrap();
        let failed = write_with(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::Error::other("no more room"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more room");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
        assert!(copy(&folder.path().join("none"), &path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let previous = folder.path().join("b.txt");
        let failed = write_keeping(&path, &previous, |_| Err(io::Error::other("no more room")));
        assert!(failed.is_err() && !previous.exists());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn the_file_that_is_replaced_can_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, previous) = (folder.path().join("a"), folder.path().join("b"));
        for text in ["one", "two", "three"] {
            write_keeping(&path, &previous, |file| file.write_all(text.as_bytes())).unwrap();
        }
        assert_eq!(
            (fs::read(&path).unwrap(), fs::read(&previous).unwrap()),
            (b"three".to_vec(), b"two".to_vec())
        );
        assert_eq!(names(folder.path()), ["a", "b"]);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, usual) = (folder.path().join("a"), folder.path().join("b"));
        write(&ours, b"").unwrap();
        fs::write(&usual, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&usual));
    }

    #[test]
    fn sweeping_removes_unfinished_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.txt", ".tenggat-unfinished-x", ".hidden"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        sweep(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".hidden", "a.txt"]);
    }

    /// Whoever has the old file open reads the old bytes to their end, at any size: a file is never written
    /// in place.
    #[test]
    fn an_open_file_stays_what_it_was() {
        use std::io::Read;
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        let previous = folder.path().join("c");
        for bytes in [0, 1, 5 << 20] {
            let (old, new) = (vec![b'o'; bytes], vec![b'n'; bytes + 1]);
            fs::write(&other, &new).unwrap();
            let ways: [(&str, &dyn Fn() -> io::Result<()>); 5] = [
                ("write", &|| write(&path, &new)),
                ("write with", &|| {
                    write_with(&path, |file| new.chunks(1000).try_for_each(|c| file.write_all(c)))
                }),
                ("write keeping", &|| write_keeping(&path, &previous, |file| file.write_all(&new))),
                ("copy", &|| copy(&other, &path)),
                ("link", &|| link(&other, &path)),
            ];
            for (what, replace) in ways {
                let _ = fs::remove_file(&path);
                fs::write(&path, &old).unwrap();
                let mut open = File::open(&path).unwrap();
                replace().unwrap();
                let mut read = Vec::new();
                open.read_to_end(&mut read).unwrap();
                assert!(read == old, "{what}: {bytes} bytes were written in place");
                assert!(fs::read(&path).unwrap() == new, "{what}");
            }
        }
        // A link shares its bytes, so that the file it came from is replaced as well, never written.
        write(&other, b"newer").unwrap();
        assert!(fs::read(&path).unwrap() != b"newer");
    }

    /// While a file is being written, its name stands for the old bytes, and nothing else lies under a name
    /// of its own.
    #[test]
    fn the_old_file_is_there_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, previous) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, b"old").unwrap();
        let half = |file: &mut dyn Write| {
            file.write_all(&vec![b'n'; 3 << 20])?;
            file.flush()?;
            assert_eq!(fs::read(&path).unwrap(), b"old");
            let beside: Vec<String> = names(folder.path()).into_iter().filter(|name| name != "a").collect();
            assert!(beside.iter().all(|name| name.starts_with(PREFIX)), "{beside:?}");
            file.write_all(b"end")
        };
        write_with(&path, half).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), (3 << 20) + 3);
        fs::write(&path, b"old").unwrap();
        write_keeping(&path, &previous, half).unwrap();
        assert_eq!(fs::read(&previous).unwrap(), b"old");
    }
}
