//! The saves of a trainer that nothing is known of but a pattern of their paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use globset::{GlobBuilder, GlobMatcher};

use crate::lora::{self, LAST, NotWhole};

/// Deepest folders that are looked into.
const DEEPEST: usize = 8;

/// A pattern such as `out/**/*.safetensors`.
#[derive(Debug, Clone)]
pub struct Pattern {
    base: PathBuf,
    matcher: GlobMatcher,
}

/// A whole save that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Steps in it, as far as its metadata or its path tells.
    pub steps: Option<u64>,
    /// When it was last written.
    pub written: SystemTime,
}

impl Pattern {
    /// Reads a pattern; `**` stands for any folders, `*` for anything inside one name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Pattern, String> {
        let glob = GlobBuilder::new(text).literal_separator(true).build().map_err(|e| e.to_string())?;
        let plain = |part: &&str| !part.contains(['*', '?', '[', '{']);
        let parts: Vec<&str> = text.split('/').collect();
        let literal: Vec<&str> = parts[..parts.len() - 1].iter().copied().take_while(plain).collect();
        let base = literal.join("/");
        let base = match (base.is_empty(), text.starts_with('/')) {
            (true, true) => PathBuf::from("/"),
            (true, false) => PathBuf::from("."),
            _ => base.into(),
        };
        Ok(Pattern { base, matcher: glob.compile_matcher() })
    }

    /// The folder that all saves are below.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Files that match, written since; ours are none.
    fn paths(&self, since: SystemTime) -> Vec<(SystemTime, PathBuf)> {
        let mut found = Vec::new();
        self.walk(&self.base, 0, since, &mut found);
        found.sort();
        found
    }

    fn walk(&self, folder: &Path, depth: usize, since: SystemTime, found: &mut Vec<(SystemTime, PathBuf)>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !hidden && depth < DEEPEST {
                self.walk(&path, depth + 1, since, found);
            } else if kind.is_file() && entry.file_name() != LAST {
                let shown = path.strip_prefix("./").unwrap_or(&path);
                let written = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                if written >= since && self.matcher.is_match(shown) {
                    found.push((written, path));
                }
            }
        }
    }

    /// The newest file whose header and length agree; and whether a newer one is being written.
    pub fn newest(&self, since: SystemTime) -> (Option<Found>, bool) {
        let mut unfinished = false;
        for (written, path) in self.paths(since).into_iter().rev() {
            match lora::peek(&path) {
                Ok(checked) => {
                    let steps = checked.steps.or_else(|| number(&path));
                    return (Some(Found { path, steps, written }), unfinished);
                }
                Err(NotWhole::Io(_)) => {}
                Err(_) => unfinished = true,
            }
        }
        (None, unfinished)
    }
}

/// The last number in a file's name, or in its folder's: `fox-step00000025.safetensors`, `checkpoint-500/…`.
fn number(path: &Path) -> Option<u64> {
    let last = |name: &str| {
        let digits = |text: &str| text.chars().next().is_some_and(|c| c.is_ascii_digit());
        name.split(|c: char| !c.is_ascii_digit()).rfind(|part| digits(part))?.parse().ok()
    };
    let folder = path.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    path.file_stem().and_then(|n| n.to_str()).and_then(last).or_else(|| folder.and_then(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &Path) {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 4]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_newest_whole_match_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pattern = Pattern::new(&format!("{}/**/*.safetensors", folder.path().display())).unwrap();
        assert_eq!(pattern.base(), folder.path());
        assert_eq!(pattern.newest(SystemTime::UNIX_EPOCH), (None, false));
        save(&at("checkpoint-25/lora.safetensors"));
        std::thread::sleep(std::time::Duration::from_millis(15));
        save(&at("checkpoint-50/lora.safetensors"));
        save(&at(".drive/x.safetensors"));
        save(&at("last.safetensors"));
        std::thread::sleep(std::time::Duration::from_millis(15));
        fs::create_dir(at("checkpoint-75")).unwrap();
        fs::write(at("checkpoint-75/lora.safetensors"), "half").unwrap();
        let (found, unfinished) = pattern.newest(SystemTime::UNIX_EPOCH);
        assert_eq!((found.unwrap().steps, unfinished), (Some(50), true));
        assert!(pattern.newest(SystemTime::now() + std::time::Duration::from_secs(9)).0.is_none());
    }

    #[test]
    fn steps_are_read_from_names() {
        for (name, steps) in [
            ("out/fox-step00000025.safetensors", Some(25)),
            ("out/checkpoint-500/pytorch_lora_weights.safetensors", Some(500)),
            ("out/fox.safetensors", None),
        ] {
            assert_eq!(number(Path::new(name)), steps, "{name}");
        }
    }

    #[test]
    fn patterns_have_a_base() {
        let base = |text: &str| Pattern::new(text).unwrap().base().to_path_buf();
        assert_eq!(base("out/**/*.safetensors"), Path::new("out"));
        assert_eq!(base("*.safetensors"), Path::new("."));
        assert_eq!(base("/a/b/c.safetensors"), Path::new("/a/b"));
        assert!(Pattern::new("a[").is_err());
    }
}
