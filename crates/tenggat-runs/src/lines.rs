//! A file of lines that grows, read once.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;
/// Longer lines are none of ours.
const LONGEST: usize = 1 << 20;

/// What becomes of the lines.
pub(crate) trait Reader {
    /// The file was replaced or cut: what was read is void.
    fn start_over(&mut self);
    /// One whole line, without its end.
    fn line(&mut self, line: &[u8]);
}

/// Where the reading of a file stands.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    offset: u64,
    id: u64,
    /// A line that is not whole yet.
    begun: Vec<u8>,
}

impl Lines {
    pub fn new(path: PathBuf) -> Self {
        Lines { path, offset: 0, id: 0, begun: Vec::new() }
    }

    /// Reads what is new. Returns whether there was anything.
    pub fn follow(&mut self, reader: &mut impl Reader) -> bool {
        // Looked at before it is opened: opening a pipe may wait for ever.
        let found = std::fs::metadata(&self.path).ok().filter(Metadata::is_file);
        let Some((id, size)) = found.map(|metadata| (id(&metadata), metadata.len())) else {
            return std::mem::take(&mut self.offset) > 0 && {
                self.begun.clear();
                reader.start_over();
                true
            };
        };
        let is_new = self.offset > 0 && (id != self.id || size < self.offset);
        if is_new {
            self.offset = 0;
            self.begun.clear();
            reader.start_over();
        }
        self.id = id;
        if size == self.offset {
            return is_new;
        }
        self.read(reader) || is_new
    }

    fn read(&mut self, reader: &mut impl Reader) -> bool {
        let Ok(mut file) = File::open(&self.path) else { return false };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return false;
        }
        let (mut chunk, before) = (vec![0; CHUNK], self.offset);
        while let Ok(n @ 1..) = file.read(&mut chunk) {
            self.offset += n as u64;
            let mut rest = &chunk[..n];
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                if self.begun.is_empty() {
                    reader.line(&rest[..end]);
                } else {
                    self.begun.extend_from_slice(&rest[..end]);
                    if self.begun.len() <= LONGEST {
                        reader.line(&self.begun);
                    }
                    self.begun.clear();
                }
                rest = &rest[end + 1..];
            }
            // Of a line that is too long, no more is kept than tells so.
            let room = (LONGEST + 1).saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&rest[..rest.len().min(room)]);
        }
        self.offset > before
    }
}

/// What tells a file from another of its name.
#[cfg(unix)]
fn id(metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.ino()
}

#[cfg(not(unix))]
fn id(metadata: &Metadata) -> u64 {
    let made = metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    made.map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>, usize);

    impl Reader for Seen {
        fn start_over(&mut self) {
            self.0.clear();
            self.1 += 1;
        }
        fn line(&mut self, line: &[u8]) {
            self.0.push(String::from_utf8_lossy(line).into_owned());
        }
    }

    #[test]
    fn lines_are_read_once_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut lines, mut seen) = (Lines::new(path.clone()), Seen::default());
        assert!(!lines.follow(&mut seen));
        let add = |text: &str| {
            let mut file = File::options().append(true).create(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        add("one\ntw");
        assert!(lines.follow(&mut seen));
        assert_eq!(seen.0, ["one"]);
        add("o\nthree\n");
        assert!(lines.follow(&mut seen) && !lines.follow(&mut seen));
        assert_eq!(seen.0, ["one", "two", "three"]);
        // Replaced, as a run that is resumed does.
        let other = folder.path().join("other");
        std::fs::write(&other, "one\nzwei\ndrei\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(lines.follow(&mut seen));
        assert_eq!((seen.0.join(" "), seen.1), ("one zwei drei".into(), 1));
        std::fs::write(&path, "x\n").unwrap();
        lines.follow(&mut seen);
        assert_eq!((seen.0.join(" "), seen.1), ("x".into(), 2));
        std::fs::remove_file(&path).unwrap();
        assert!(lines.follow(&mut seen) && seen.0.is_empty());
    }

    #[test]
    fn a_line_without_an_end_and_a_folder_take_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, format!("{}\nshort\n", "x".repeat(5 * LONGEST))).unwrap();
        let (mut lines, mut seen) = (Lines::new(path), Seen::default());
        lines.follow(&mut seen);
        assert_eq!(seen.0, ["short"]);
        assert!(lines.begun.capacity() <= 4 * LONGEST);
        assert!(!Lines::new(folder.path().to_path_buf()).follow(&mut seen));
    }
}
