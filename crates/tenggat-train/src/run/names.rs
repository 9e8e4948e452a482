//! Names of the files in the folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

/// Name of the file that always holds the newest adapter, whole.
pub const LAST: &str = "last.safetensors";

/// Most names that are tried for files moved aside.
pub(super) const MOST_ASIDE: u32 = 9999;

/// The files `<name>_<9 digits>.safetensors` of a folder and their numbers, lowest first.
pub(super) fn numbered_in(path: &Path, name: &str) -> Vec<(u64, PathBuf)> {
    let number = |file: &Path| -> Option<u64> {
        let digits = file.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('_')?;
        let digits = digits.strip_suffix(".safetensors")?;
        (digits.len() == 9 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
    };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|e| Some((number(&e.path())?, e.path()))).collect();
    found.sort();
    found
}
