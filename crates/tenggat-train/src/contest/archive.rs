//! The contest's archive of pictures: one folder `train_data` of pictures with captions of the same name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use super::{Error, Result};

/// Folder of the pictures inside the archive.
const FOLDER: &str = "train_data";
/// Endings of pictures and captions.
const KINDS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "txt"];
/// Largest file, and largest sum of all, that is unpacked: archives can claim to hold more than any disk.
const MOST_BYTES: u64 = 1 << 28;
const MOST_BYTES_IN_ALL: u64 = 1 << 34;

/// Unpacks pictures and captions into an empty folder, flat; everything else in the archive is passed over. Returns how
/// many files there are.
///
/// # Errors
/// The archive cannot be read, or what it holds is too large.
pub fn unpack(path: &Path, into: &Path) -> Result<usize> {
    let broken = |reason: String| Error::Archive { path: path.into(), reason };
    let file = File::open(path).map_err(|e| Error::file("read", path, e))?;
    let mut archive = ZipArchive::new(file).map_err(|e| broken(e.to_string()))?;
    std::fs::create_dir_all(into).map_err(|e| Error::file("make the folder", into, e))?;
    let mut left = MOST_BYTES_IN_ALL;
    let names: Vec<String> =
        archive.file_names().map(|name| name.map(Into::into).unwrap_or_default()).collect();
    let wanted = wanted(&names);
    for (name, number) in &wanted {
        let entry = archive.by_index(*number).map_err(|e| broken(format!("{name}: {e}")))?;
        let to = into.join(name);
        let mut out = File::create(&to).map_err(|e| Error::file("write", &to, e))?;
        let most = MOST_BYTES.min(left);
        let bytes = std::io::copy(&mut entry.take(most + 1), &mut out)
            .map_err(|e| broken(format!("{name} into {}: {e}", into.display())))?;
        if bytes > most {
            return Err(broken(format!("{name} is too large to be a picture or a caption")));
        }
        left -= bytes;
    }
    Ok(wanted.len())
}

/// File names and the numbers of the entries that they are taken from. Without a folder `train_data` all pictures count.
fn wanted(entries: &[String]) -> BTreeMap<String, usize> {
    let mut inside = BTreeMap::new();
    let mut elsewhere = BTreeMap::new();
    for (number, entry) in entries.iter().enumerate() {
        let path = PathBuf::from(entry);
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let hidden = parts.iter().any(|part| part.starts_with('.') || part == "__MACOSX");
        let kind = path.extension().map(|kind| kind.to_string_lossy().to_lowercase());
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if hidden || entry.ends_with('/') || !kind.is_some_and(|kind| KINDS.contains(&kind.as_str())) {
            continue;
        }
        let in_folder = parts[..parts.len() - 1].iter().any(|part| part == FOLDER);
        let found = if in_folder { &mut inside } else { &mut elsewhere };
        found.entry(name).or_insert(number);
    }
    if inside.is_empty() { elsewhere } else { inside }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::{SimpleFileOptions, ZipWriter};

    fn archive(folder: &Path, files: &[(&str, &[u8])]) -> PathBuf {
        let path = folder.join("a.zip");
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    #[test]
    fn pictures_and_captions_are_unpacked_flat() {
        let folder = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 6] = [
            ("x/train_data/a.PNG", b"picture"),
            ("x/train_data/a.txt", b"a fox"),
            ("x/train_data/../../b.png", b"outside"),
            ("__MACOSX/x/train_data/a.png", b"junk"),
            ("x/train_data/run.sh", b"no"),
            ("cover.png", b"other"),
        ];
        let path = archive(folder.path(), &files);
        let into = folder.path().join("out");
        assert_eq!(unpack(&path, &into).unwrap(), 2);
        assert_eq!(std::fs::read(into.join("a.txt")).unwrap(), b"a fox");
        assert!(into.join("a.PNG").exists() && !folder.path().join("b.png").exists());
        let path = archive(folder.path(), &files[5..]);
        assert_eq!(unpack(&path, &folder.path().join("flat")).unwrap(), 1);
    }

    #[test]
    fn broken_archives_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path(), &[("train_data/a.png", &[7; 4000])]);
        let bytes = std::fs::read(&path).unwrap();
        for bytes in [&bytes[..bytes.len() / 2], b"no archive".as_slice(), b"".as_slice()] {
            std::fs::write(&path, bytes).unwrap();
            let message = unpack(&path, &folder.path().join("out")).unwrap_err().to_string();
            assert!(message.contains("a.zip"), "{message}");
        }
        assert!(unpack(&folder.path().join("none.zip"), folder.path()).is_err());
    }
}
