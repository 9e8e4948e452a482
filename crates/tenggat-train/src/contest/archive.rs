//! The contest's archive of pictures: one folder `train_data` of pictures with captions of the same name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
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

/// What was taken out of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Pictures and captions.
    pub files: usize,
    /// Entries that cannot be used, and why.
    pub bad: Vec<String>,
}

/// Unpacks pictures and captions into an empty folder, flat; everything else in the archive is passed over.
/// An entry that is damaged, encrypted, too large, or compressed in a way that is not read is left out and
/// named.
///
/// # Errors
/// The archive as a whole cannot be read, or a file cannot be written.
pub fn unpack(path: &Path, into: &Path) -> Result<Unpacked> {
    let broken = |reason: String| Error::Archive { path: path.into(), reason };
    let file = File::open(path).map_err(|e| Error::file("read", path, e))?;
    let mut archive = ZipArchive::new(file).map_err(|e| broken(e.to_string()))?;
    std::fs::create_dir_all(into).map_err(|e| Error::file("make the folder", into, e))?;
    let mut left = MOST_BYTES_IN_ALL;
    // A name that is no text stands for itself, so that the numbers stay those of the entries.
    let names: Vec<String> =
        archive.file_names().map(|name| name.map(Into::into).unwrap_or_default()).collect();
    let mut unpacked = Unpacked::default();
    for (name, number) in &wanted(&names) {
        let to = into.join(name);
        let most = MOST_BYTES.min(left);
        let taken = match archive.by_index(*number) {
            Ok(entry) => take(&mut entry.take(most + 1), most, &to)?,
            Err(e) => Err(e.to_string()),
        };
        match taken {
            Ok(bytes) => {
                left -= bytes;
                unpacked.files += 1;
            }
            Err(reason) => {
                // What was written of it is not whole.
                let _ = std::fs::remove_file(&to);
                unpacked.bad.push(format!("{name} of {}: {reason}", path.display()));
            }
        }
    }
    Ok(unpacked)
}

/// Copies an entry into a file and returns its length, or inside why the entry is no good.
///
/// # Errors
/// The file cannot be written.
fn take(entry: &mut dyn Read, most: u64, to: &Path) -> Result<std::result::Result<u64, String>> {
    let cannot_write = |e| Error::file("write", to, e);
    let file = match File::create(to) {
        Ok(file) => file,
        // Names that no file here can have.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename) => {
            return Ok(Err(e.to_string()));
        }
        Err(e) => return Err(cannot_write(e)),
    };
    let mut out = BufWriter::new(file);
    let mut chunk = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let n = match entry.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Ok(Err(e.to_string())),
        };
        bytes += n as u64;
        if bytes > most {
            return Ok(Err("it is too large to be an image or a caption".into()));
        }
        out.write_all(&chunk[..n]).map_err(cannot_write)?;
    }
    out.flush().map_err(cannot_write)?;
    Ok(Ok(bytes))
}

/// File names and the numbers of the entries that they are taken from. Without a folder `train_data` all
/// pictures count.
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
        assert_eq!(unpack(&path, &into).unwrap(), Unpacked { files: 2, bad: Vec::new() });
        assert_eq!(std::fs::read(into.join("a.txt")).unwrap(), b"a fox");
        assert!(into.join("a.PNG").exists() && !folder.path().join("b.png").exists());
        let path = archive(folder.path(), &files[5..]);
        assert_eq!(unpack(&path, &folder.path().join("flat")).unwrap().files, 1);
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
    /// Where the bytes of an entry lie in an archive.
    fn at(bytes: &[u8], of: &[u8]) -> usize {
        bytes.windows(of.len()).position(|window| window == of).unwrap()
    }

    #[test]
    fn a_bad_entry_is_named_and_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in [("a.png", b"first"), ("b.png", b"other"), ("c.txt", b"third")] {
            writer.start_file(format!("train_data/{name}"), stored).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        // In the central directory: flags 8 and the method 10 bytes after the signature, the name 46 bytes
        // after it.
        let names: Vec<usize> =
            (0..whole.len()).filter(|&i| whole[i..].starts_with(b"train_data/b.png")).collect();
        let (local, central) = (names[0] - 30, names[1] - 46);
        assert!(whole[local..].starts_with(b"PK\x03\x04") && whole[central..].starts_with(b"PK\x01\x02"));
        let changed = |at: &[(usize, u8)]| {
            let mut bytes = whole.clone();
            at.iter().for_each(|&(i, value)| bytes[i] = value);
            bytes
        };
        let methods = [9, 12, 14, 93, 95, 98, 99, 7].map(|m| changed(&[(local + 8, m), (central + 10, m)]));
        let encrypted = changed(&[(local + 6, 1), (central + 8, 1)]);
        let bad_sum = changed(&[(at(&whole, b"other"), b'O')]);
        let no_header = changed(&[(local, b'x')]);
        for (i, bytes) in methods.iter().chain([&encrypted, &bad_sum, &no_header]).enumerate() {
            std::fs::write(&path, bytes).unwrap();
            let into = folder.path().join(i.to_string());
            let unpacked = unpack(&path, &into).unwrap();
            assert_eq!((unpacked.files, unpacked.bad.len()), (2, 1), "{i}: {unpacked:?}");
            assert!(unpacked.bad[0].starts_with("b.png of "), "{i}: {unpacked:?}");
            assert!(
                into.join("a.png").exists() && into.join("c.txt").exists() && !into.join("b.png").exists()
            );
        }
    }

    #[test]
    fn an_entry_that_is_too_large_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("a.txt");
        let taken = |most| take(&mut std::io::repeat(7).take(100), most, &to).unwrap();
        assert_eq!(taken(100), Ok(100));
        assert!(taken(99).unwrap_err().contains("too large"));
        let name = "x".repeat(300);
        let taken = take(&mut std::io::empty(), 9, &folder.path().join(name)).unwrap();
        assert!(taken.is_err(), "a name that is too long is the entry's fault");
    }
}
