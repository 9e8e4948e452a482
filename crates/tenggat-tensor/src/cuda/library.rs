//! placeholder until merged
use std::path::PathBuf;
pub(crate) fn preload(folders: &[PathBuf]) -> Vec<PathBuf> {
    folders.to_vec()
}
